"""The fused kernels as torch operators: with fake kernels for torch.compile, autograd and vmap.

Operators take tensors and numbers only, so a grid goes by its number. The second derivative does not exist here: the
image is piecewise smooth (siddon) or its kernels stop at first order (trilinear); the torch backend has it.
"""

from __future__ import annotations

import itertools
import weakref

import torch
from torch import Tensor

from DiffDRRCore.errors import RenderError
from DiffDRRCore.rendering.backends.fused.grid import Grid, Kernels

_numbers = itertools.count()
_problems: weakref.WeakValueDictionary[int, Problem] = weakref.WeakValueDictionary()


class Problem:
    """A grid and the kernels that work on it, known to the operators by `number` for as long as it lives."""

    def __init__(self, grid: Grid, kernels: Kernels):
        self.grid, self.kernels = grid, kernels
        self.number = next(_numbers)
        _problems[self.number] = self


@torch.library.custom_op("diffdrr::trace", mutates_args=())
def trace(attenuation: Tensor, s: Tensor, t: Tensor, problem: int, channels: int, derivatives: bool) -> list[Tensor]:
    """Integrals [C, N], and, where `derivatives` are wanted of one channel, those by s and t [N, 3]; float32."""
    grid, kernels = _problems[problem].grid, _problems[problem].kernels
    if derivatives:
        integral, by_source, by_target = kernels.integrals_with_derivatives(grid, s, t)
        return [integral[None], by_source, by_target]
    return [kernels.integrals(grid, s, t), *_no_derivatives(s)]


@trace.register_fake
def _(attenuation, s, t, problem, channels, derivatives):
    count = s.shape[0]
    integral = s.new_empty((channels, count), dtype=torch.float32)
    if derivatives:
        return [integral, *(s.new_empty((count, 3), dtype=torch.float32) for _ in range(2))]
    return [integral, *_no_derivatives(s)]


@torch.library.custom_op("diffdrr::ray_gradients", mutates_args=())
def ray_gradients(attenuation: Tensor, s: Tensor, t: Tensor, weight: Tensor, problem: int) -> list[Tensor]:
    """Gradients [N, 3] by s and t of the integrals weighted by `weight` [C, N]."""
    known = _problems[problem]
    return list(known.kernels.ray_gradients(known.grid, s, t, weight.to(torch.float32).contiguous()))


@ray_gradients.register_fake
def _(attenuation, s, t, weight, problem):
    return [s.new_empty(s.shape, dtype=torch.float32) for _ in range(2)]


@torch.library.custom_op("diffdrr::voxel_gradients", mutates_args=())
def voxel_gradients(attenuation: Tensor, s: Tensor, t: Tensor, weight: Tensor, problem: int) -> Tensor:
    """Gradient [K, J, I] by the attenuation of the integrals weighted by `weight` [C, N]."""
    known = _problems[problem]
    return known.kernels.voxel_gradients(known.grid, s, t, weight.to(torch.float32).contiguous())


@voxel_gradients.register_fake
def _(attenuation, s, t, weight, problem):
    return attenuation.new_empty(attenuation.shape, dtype=torch.float32)


def _no_derivatives(s: Tensor) -> list[Tensor]:
    return [s.new_empty((0, 3), dtype=torch.float32) for _ in range(2)]


def _keep(ctx, inputs, output) -> None:
    attenuation, s, t, problem, _, ctx.derivatives = inputs
    ctx.problem = _problems.get(problem)  # alive until the backward pass is over
    ctx.number = problem
    ctx.save_for_backward(attenuation, s, t, *output[1:])


def _backward(ctx, gradients):
    attenuation, s, t, by_source, by_target = ctx.saved_tensors
    weight = gradients[0]
    voxels = rays = None
    if ctx.needs_input_grad[0]:
        voxels = voxel_gradients(attenuation, s, t, weight, ctx.number).to(attenuation.dtype)
    if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
        if ctx.derivatives:
            rays = [part * weight[0, :, None] for part in (by_source, by_target)]
        else:
            rays = ray_gradients(attenuation, s, t, weight, ctx.number)
        rays = [part.to(s.dtype) for part in rays]
    return voxels, *(rays or (None, None)), None, None, None


def _no_second_derivative(ctx, *gradients):
    raise RenderError(
        "The fused backends have no second derivatives; make the renderer with backend='torch' to differentiate twice."
    )


trace.register_autograd(_backward, setup_context=_keep)
for _operator in (ray_gradients, voxel_gradients):
    _operator.register_autograd(_no_second_derivative)
