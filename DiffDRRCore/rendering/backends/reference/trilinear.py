"""Integral of the trilinearly interpolated attenuation, in plain torch: the readable reference."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn.functional import grid_sample

from DiffDRRCore.rendering.field import NEAREST_TIE, Field
from DiffDRRCore.rendering.rays import clip_to_grid


@dataclass(frozen=True)
class TorchTrilinear:
    """Midpoint rule over equal parts of each ray's own interval inside the volume.

    The interpolated field ends in zero one voxel outside the outermost voxel centres, and so does the interval. Every
    ray has the same number of parts, enough for the volume's diagonal at `step` mm, so that a pixel never depends on
    other pixels and is a smooth function of the pose.
    """

    step: float

    def bytes_per_ray(self, field: Field) -> int:
        """Working memory of one ray without gradients: sample positions, a few numbers at each, voxel indices."""
        indices = 48 if field.channels and not field.soft else 0
        return field.samples(self.step) * (6 * field.attenuation.element_size() + indices)

    def __call__(self, field: Field, s: Tensor, t: Tensor) -> Tensor:
        """Integrals [C, N] of rays s -> t [N, 3]."""
        count, dtype = field.samples(self.step), field.attenuation.dtype
        inside = clip_to_grid(s, t, field.ras_to_ijk, field.size, margin=1.0)
        start, end = (self._normalized(points, field).to(dtype) for points in (inside.start, inside.end))
        weight = (torch.arange(count, dtype=dtype, device=start.device) + 0.5) / count
        points = torch.lerp(start[:, None], end[:, None], weight[:, None])
        sums = torch.stack([samples.sum(-1) for samples in _channel_samples(field, points)])
        return sums * (inside.length / count).to(dtype)

    @staticmethod
    def _normalized(points: Tensor, field: Field) -> Tensor:
        """Voxel coordinates as `grid_sample` wants them (align_corners=False, good for a single slice too)."""
        return (2 * points + 1) / field.size - 1


def _channel_samples(field: Field, points: Tensor):
    """Attenuation [N, n] of each channel at the points [N, n, 3]."""
    if not field.channels:
        yield _sample(field.attenuation, points)
    elif field.soft:
        for label in field.channels:
            yield _sample(field.of_label(label), points)
    else:
        everything = _sample(field.attenuation, points)
        nearest = _nearest_labels(field, points.detach())
        for label in field.channels:
            yield torch.where(nearest == label, everything, 0.0)


def _nearest_labels(field: Field, points: Tensor) -> Tensor:
    """Label [N, n] of the voxel nearest to each point; on the rim beyond the outermost faces that is the last one."""
    size = field.size.to(points.dtype)
    index = torch.floor((points + 1) / 2 * size + NEAREST_TIE).long()
    i, j, k = torch.minimum(index.clamp(min=0), (size - 1).long()).unbind(-1)
    return field.labels[k, j, i]


def _sample(volume: Tensor, points: Tensor) -> Tensor:
    """Volume [K, J, I] at points [N, n, 3]."""
    return _Sample.apply(volume, points)


class _Sample(Function):
    """Trilinear samples by torch's own kernel, whose derivative is differentiable again; torch's own is not."""

    generate_vmap_rule = True

    @staticmethod
    def forward(volume, points):
        """[N, n]."""
        return _grid_samples(volume, points)

    @staticmethod
    def setup_context(ctx, inputs, output):
        """Keep both."""
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, gradient):
        """By torch's kernel, or, where the gradient will be differentiated, by plain arithmetic."""
        if torch.is_grad_enabled():
            found = torch.func.vjp(_weighted_neighbours, *ctx.saved_tensors)[1](gradient)
        else:
            found = _grid_gradients(*ctx.saved_tensors, gradient, ctx.needs_input_grad)
        return tuple(part if needed else None for part, needed in zip(found, ctx.needs_input_grad, strict=True))


def _grid_samples(volume: Tensor, points: Tensor) -> Tensor:
    """By `grid_sample`."""
    batch, grid = _as_batch(volume, points)
    samples = grid_sample(batch, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return samples.reshape(points.shape[:-1])


def _grid_gradients(volume: Tensor, points: Tensor, gradient: Tensor, needed) -> tuple[Tensor | None, Tensor | None]:
    """By the kernel that autograd calls for `grid_sample`; only those needed, as the volume's is as large as itself."""
    batch, grid = _as_batch(volume, points)
    bilinear, zeros, align_corners = 0, 0, False
    by_batch, by_grid = torch.ops.aten.grid_sampler_3d_backward(
        gradient.reshape(len(batch), 1, *grid.shape[1:4]), batch, grid, bilinear, zeros, align_corners, list(needed)
    )
    return by_batch.sum(0)[0] if needed[0] else None, by_grid.reshape(points.shape)


def _as_batch(volume: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """[T, 1, K, J, I] and [T, 1, N / T, n, 3]: torch's threads on a CPU are by batch item, so the rays become one."""
    rays, threads = points.shape[0], torch.get_num_threads()
    threads = threads if points.device.type == "cpu" and rays % threads == 0 else 1
    return volume.expand(threads, 1, -1, -1, -1), points.reshape(threads, 1, rays // threads, *points.shape[1:])


def _weighted_neighbours(volume: Tensor, points: Tensor) -> Tensor:
    """The same by its formula: eight voxels, each with the product of its three shares; zero outside."""
    size = torch.tensor(volume.shape[::-1], device=points.device)
    voxel = ((points + 1) * size - 1) / 2
    low = voxel.detach().floor()
    share = voxel - low
    total = torch.zeros_like(points[..., 0])
    for corner in itertools.product((0, 1), repeat=3):
        side = torch.tensor(corner, device=points.device)
        index = low.long() + side
        inside = ((index >= 0) & (index < size)).all(-1)
        i, j, k = torch.minimum(index.clamp(min=0), size - 1).unbind(-1)
        total = total + torch.where(inside, torch.where(side > 0, share, 1 - share).prod(-1) * volume[k, j, i], 0.0)
    return total
