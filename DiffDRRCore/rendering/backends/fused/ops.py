"""The fused kernels as torch operators, with fake kernels so that torch.compile sees their shapes.

Operators take tensors and numbers only, so a grid and its kernels go by a number. What autograd and torch.func make of
them is in autograd.py.
"""

from __future__ import annotations

import itertools
import weakref
from dataclasses import replace

import torch
from torch import Tensor

from DiffDRRCore.errors import RenderError
from DiffDRRCore.rendering.backends.fused.grid import Grid, Kernels
from DiffDRRCore.rendering.field import Field

_numbers = itertools.count()
_problems: weakref.WeakValueDictionary[int, Problem] = weakref.WeakValueDictionary()


class Problem:
    """A field and the kernels that work on it, known to the operators by `number` for as long as it lives."""

    def __init__(self, field: Field, integrator: str, parts: int, kernels: Kernels):
        self.kernels, self.number = kernels, next(_numbers)
        bare = replace(field, attenuation=None)  # the field itself is the key by which a tracer finds this problem
        self._make = lambda voxels: Grid(replace(bare, attenuation=voxels), integrator, parts)
        self._grid: Grid | None = None
        _problems[self.number] = self

    def grid(self, attenuation: Tensor) -> Grid:
        """What the kernels get. Only an operator sees the voxels themselves: torch.func hands out wrappers of them."""
        if self._grid is None:
            voxels = attenuation.detach().float().contiguous()
            if not bool(voxels.min() >= 0):  # not so for NaN, too
                raise RenderError(
                    "Some voxels have an attenuation below 0, or none at all (NaN), which the fused backends cannot "
                    "render; clamp them, or use backend='torch'."
                )
            self._grid = self._make(voxels)
        return self._grid


def problem_of(number: int) -> Problem:
    """The problem of that number; a backward pass keeps it alive."""
    return _problems[number]


@torch.library.custom_op("diffdrr::integrals", mutates_args=())
def integrals(
    attenuation: Tensor, s: Tensor, t: Tensor, problem: int, channels: int, derivatives: bool
) -> list[Tensor]:
    """Integrals [C, N] of rays s -> t [N, 3] and, where `derivatives` are wanted of one channel, those by s and t."""
    grid, kernels = _problems[problem].grid(attenuation), _problems[problem].kernels
    if derivatives:
        integral, *slopes = kernels.integrals_with_derivatives(grid, s.contiguous(), t.contiguous())
        return [integral[None], *slopes]
    return [kernels.integrals(grid, s.contiguous(), t.contiguous()), *(s.new_empty((0, 3)).float() for _ in range(2))]


@integrals.register_fake
def _(attenuation, s, t, problem, channels, derivatives):
    rows = s.shape[0] if derivatives else 0
    slopes = [s.new_empty((rows, 3), dtype=torch.float32) for _ in range(2)]
    return [s.new_empty((channels, s.shape[0]), dtype=torch.float32), *slopes]


@torch.library.custom_op("diffdrr::ray_gradients", mutates_args=())
def ray_gradients(attenuation: Tensor, s: Tensor, t: Tensor, weight: Tensor, problem: int) -> list[Tensor]:
    """Gradients [N, 3] by s and t of the integrals weighted by `weight` [C, N]."""
    known, rays = _problems[problem], (s.contiguous(), t.contiguous())
    return list(known.kernels.ray_gradients(known.grid(attenuation), *rays, weight.float().contiguous()))


@ray_gradients.register_fake
def _(attenuation, s, t, weight, problem):
    return [s.new_empty(s.shape, dtype=torch.float32) for _ in range(2)]


@torch.library.custom_op("diffdrr::voxel_gradients", mutates_args=())
def voxel_gradients(attenuation: Tensor, s: Tensor, t: Tensor, weight: Tensor, problem: int) -> Tensor:
    """Gradient [K, J, I] by the attenuation of the integrals weighted by `weight` [C, N]."""
    known, rays = _problems[problem], (s.contiguous(), t.contiguous())
    return known.kernels.voxel_gradients(known.grid(attenuation), *rays, weight.float().contiguous())


@voxel_gradients.register_fake
def _(attenuation, s, t, weight, problem):
    return attenuation.new_empty(attenuation.shape, dtype=torch.float32)
