"""Rays in voxel coordinates: from world segments to the part of each that lies inside the volume."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

PARALLEL = 1e-12
"""A ray that moves less than this along an axis, in voxels, does not move: gradients divide by its square."""


class Segments(NamedTuple):
    """The parts of rays inside a box, in voxel coordinates (i, j, k); [N, 3] each, and their lengths in mm [N].

    A ray that misses the box has length zero.
    """

    start: Tensor
    end: Tensor
    length: Tensor


def clip_to_grid(s: Tensor, t: Tensor, ras_to_ijk: Tensor, size: Tensor, margin: float) -> Segments:
    """Clip rays s -> t [N, 3] (world mm) to the box [-margin, size - 1 + margin] of a grid, by the slab method.

    Only what lies between s and t counts: nothing behind the source or beyond the detector.
    """
    linear = ras_to_ijk[:3, :3].T
    start, end = s @ linear + ras_to_ijk[:3, 3], t @ linear + ras_to_ijk[:3, 3]
    direction = end - start
    entry, leave = _slab_interval(start, direction, -margin, size - 1 + margin)
    length = torch.linalg.vector_norm(t - s, dim=-1) * (leave - entry)[..., 0]
    return Segments(start + entry * direction, start + leave * direction, length)


def _slab_interval(start: Tensor, direction: Tensor, low: float, high: Tensor) -> tuple[Tensor, Tensor]:
    """Ray parameters [N, 1] of entry and exit, both equal for a ray that misses."""
    parallel = direction.abs() < PARALLEL
    divisor = torch.where(parallel, 1.0, direction)
    first, second = (low - start) / divisor, (high - start) / divisor
    outside = parallel & ((start <= low) | (start >= high))
    near = torch.where(parallel, 0.0, torch.minimum(first, second)).amax(-1, keepdim=True).clamp(min=0.0)
    far = torch.where(parallel, 1.0, torch.maximum(first, second)).amin(-1, keepdim=True).clamp(max=1.0)
    missed = (far <= near) | outside.any(-1, keepdim=True)
    return torch.where(missed, 0.0, near), torch.where(missed, 0.0, far)
