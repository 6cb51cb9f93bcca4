"""Derivatives of the fused integrals for autograd and torch.func: reverse mode, forward mode by the rays, and vmap.

Second derivatives do not exist here: Siddon's image is piecewise smooth, and the kernels stop at the first order. The
torch backend has them.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import Function

from DiffDRRCore.errors import RenderError
from DiffDRRCore.rendering.backends.fused.ops import integrals, problem_of, ray_gradients, voxel_gradients
from DiffDRRCore.rendering.field import Field


class TraceRays(Function):
    """(attenuation [K, J, I], s, t [N, 3], problem, channels, derivatives) -> integrals [C, N], by s, by t [N, 3].

    The attenuation is what the problem was made of. The derivatives are there for the backward pass; they are empty
    unless asked for.
    """

    @staticmethod
    def forward(attenuation, s, t, problem, channels, derivatives):
        """Integrals, and derivatives where wanted."""
        return tuple(integrals(attenuation, s, t, problem, channels, derivatives))

    @staticmethod
    def setup_context(ctx, inputs, output):
        """Keep the rays, their derivatives and, alive, the problem."""
        attenuation, s, t, ctx.number, ctx.channels, ctx.derivatives = inputs
        ctx.problem = problem_of(ctx.number)
        ctx.save_for_backward(attenuation, s, t, *output[1:])
        ctx.save_for_forward(attenuation, s, t, *output[1:])
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, weight, *_):
        """Gradients by the attenuation and by both ends of the rays."""
        attenuation, s, t, by_source, by_target = ctx.saved_tensors
        voxels, of_s, of_t = None, None, None
        if weight is not None and ctx.needs_input_grad[0]:
            voxels = VoxelGradients.apply(attenuation, s, t, weight, ctx.number).to(attenuation.dtype)
        if weight is not None and any(ctx.needs_input_grad[1:3]):
            if ctx.derivatives:
                found = (by_source * weight[0, :, None], by_target * weight[0, :, None])
                found = (FirstOrder.apply(part, weight, s, t, attenuation) for part in found)
            else:
                found = RayGradients.apply(attenuation, s, t, weight, ctx.number)
            of_s, of_t = (part.to(s.dtype) for part in found)
        return voxels, of_s, of_t, None, None, None

    @staticmethod
    def jvp(ctx, voxels, of_s, of_t, *_):
        """The change of the integrals with moving rays."""
        attenuation, s, t, by_source, by_target = ctx.saved_tensors
        if voxels is not None:
            raise RenderError("The fused backends have no forward-mode derivative by the voxels; use backend='torch'.")
        zero = torch.zeros_like(s)
        of_s, of_t = (zero if x is None else x for x in (of_s, of_t))
        if ctx.derivatives:
            slopes = [(by_source, by_target)]
        else:
            rows = torch.eye(ctx.channels, device=s.device)
            slopes = [
                RayGradients.apply(attenuation, s, t, row[:, None].expand(-1, len(s)), ctx.number) for row in rows
            ]
        moved = [(a * of_s).sum(-1) + (b * of_t).sum(-1) for a, b in slopes]
        return torch.stack(moved).to(torch.float32), None, None

    @staticmethod
    def vmap(info, dims, attenuation, s, t, problem, channels, derivatives):
        """A batch of rays is more rays."""
        if dims[0] is not None:
            raise RenderError(
                "The fused backends render one volume at a time; use backend='torch' to vmap over volumes."
            )
        size = info.batch_size
        s, t = (_batched(x, dim, size) for x, dim in zip((s, t), dims[1:3], strict=True))
        integral, *slopes = TraceRays.apply(
            attenuation, s.flatten(0, 1), t.flatten(0, 1), problem, channels, derivatives
        )
        outputs = [integral.unflatten(1, (size, -1)), *(part.unflatten(0, (size, -1)) for part in slopes)]
        return tuple(outputs), (1, 0, 0)


class _OnlyFirst(Function):
    """A gradient: who differentiates it again is told that this cannot be."""

    @staticmethod
    def setup_context(ctx, inputs, output):
        """Nothing to keep."""

    @staticmethod
    def backward(ctx, *_):
        """Raises RenderError."""
        raise RenderError(
            "The fused backends have no second derivatives; make the renderer with backend='torch' to differentiate "
            "twice."
        )


class FirstOrder(_OnlyFirst):
    """(gradient, what it depends on ...) -> the gradient."""

    generate_vmap_rule = True

    @staticmethod
    def forward(gradient, *dependence):
        """The gradient as it is."""
        return gradient.view_as(gradient)


class RayGradients(_OnlyFirst):
    """(attenuation, s, t [N, 3], weight [C, N], problem) -> gradients [N, 3] by s and by t."""

    @staticmethod
    def forward(attenuation, s, t, weight, problem):
        """By the kernels."""
        return tuple(ray_gradients(attenuation, s, t, weight, problem))

    @staticmethod
    def vmap(info, dims, attenuation, s, t, weight, problem):
        """A batch of rays is more rays."""
        size = info.batch_size
        s, t, weight = (_batched(x, dim, size) for x, dim in zip((s, t, weight), dims[1:4], strict=True))
        rays = s.flatten(0, 1), t.flatten(0, 1), weight.transpose(0, 1).flatten(1, 2)
        found = RayGradients.apply(attenuation, *rays, problem)
        return tuple(part.unflatten(0, (size, -1)) for part in found), (0, 0)


class VoxelGradients(_OnlyFirst):
    """(attenuation, s, t [N, 3], weight [C, N], problem) -> gradient [K, J, I]."""

    @staticmethod
    def forward(attenuation, s, t, weight, problem):
        """By the kernels."""
        return voxel_gradients(attenuation, s, t, weight, problem)

    @staticmethod
    def vmap(info, dims, attenuation, s, t, weight, problem):
        """One after the other: each has a volume of its own to fill."""
        rays = (_batched(x, dim, info.batch_size) for x, dim in zip((s, t, weight), dims[1:4], strict=True))
        parts = [VoxelGradients.apply(attenuation, *ray, problem) for ray in zip(*rays, strict=True)]
        return torch.stack(parts), 0


def _batched(x: Tensor, dim: int | None, size: int) -> Tensor:
    """The batch first, also where there is none."""
    return x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)


def trace_rays(field: Field, s: Tensor, t: Tensor, problem: int) -> Tensor:
    """Integrals [C, N], differentiable once; the derivatives by the rays come with them where they will be needed."""
    derivatives = torch.is_grad_enabled() and (s.requires_grad or t.requires_grad) and not field.channels
    return TraceRays.apply(field.attenuation, s, t, problem, field.count, derivatives)[0]
