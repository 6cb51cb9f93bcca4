"""Exact integral over voxels of constant attenuation (Siddon 1985), in plain torch: the readable reference."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from DiffDRRCore.rendering.field import Field
from DiffDRRCore.rendering.rays import PARALLEL, Segments, clip_to_grid


@dataclass(frozen=True)
class TorchSiddon:
    """Sort where a ray crosses the grid's planes; each gap between crossings lies in one voxel."""

    def bytes_per_ray(self, field: Field) -> int:
        """Working memory of one ray without gradients: positions, gaps, and the sort's 64-bit indices."""
        return int(field.size.sum() + 3) * (6 * field.attenuation.element_size() + 24)

    def __call__(self, field: Field, s: Tensor, t: Tensor) -> Tensor:
        """Integrals [C, N] of rays s -> t [N, 3]."""
        dtype = field.attenuation.dtype
        inside = clip_to_grid(s, t, field.ras_to_ijk, field.size, margin=0.5)
        crossings = torch.cat([_crossings(inside, axis, dtype) for axis in range(3)], dim=-1).sort(dim=-1).values
        gaps = crossings.diff(dim=-1)
        voxels = _voxel_indices(inside, (crossings[:, 1:] + crossings[:, :-1]).detach() / 2, field)
        attenuation = field.attenuation.reshape(-1)[voxels] * gaps
        if not field.channels:
            sums = attenuation.sum(-1)[None]
        else:
            label = field.labels.reshape(-1)[voxels]
            sums = torch.stack([torch.where(label == channel, attenuation, 0.0).sum(-1) for channel in field.channels])
        return sums * inside.length.to(dtype)


def _crossings(inside: Segments, axis: int, dtype: torch.dtype) -> Tensor:
    """Where the segments cross the planes between voxels along one axis: fractions [N, planes + 2] in [0, 1], unsorted.

    The two extra columns are the segment's ends; columns a ray does not need hold its end, a gap of length zero.
    """
    start, end = inside.start[:, axis, None], inside.end[:, axis, None]
    extent = (end - start).detach()
    forward = extent >= 0
    first = torch.where(forward, torch.ceil(start.detach() + 0.5) - 0.5, torch.floor(start.detach() - 0.5) + 0.5)
    count = int(extent.abs().max().ceil()) + 1
    offset = torch.arange(count, dtype=start.dtype, device=start.device)
    plane = torch.where(forward, first + offset, first - offset)
    flat = extent.abs() < PARALLEL
    fraction = (plane - start) / torch.where(flat, 1.0, end - start)
    ends = torch.tensor([0.0, 1.0], dtype=start.dtype, device=start.device).expand(len(start), 2)
    return torch.cat([ends, torch.where(flat, 1.0, fraction).clamp(0.0, 1.0)], dim=-1).to(dtype)


def _voxel_indices(inside: Segments, middle: Tensor, field: Field) -> Tensor:
    """Flat index into [K, J, I] of the voxel that holds each gap's middle [N, M]."""
    flat = None
    for axis in (2, 1, 0):
        size = field.attenuation.shape[2 - axis]
        start, end = (points[:, axis, None].detach().to(middle.dtype) for points in (inside.start, inside.end))
        index = torch.floor(torch.lerp(start, end, middle) + 0.5).long().clamp(0, size - 1)
        flat = index if flat is None else flat * size + index
    return flat
