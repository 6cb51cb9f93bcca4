"""Where rays are inside a solid: intervals on each ray, and the set algebra of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from DiffDRRCore.errors import PhysicsError


@dataclass(frozen=True, eq=False)
class Crossings:
    """The parts of rays that lie inside something: disjoint intervals, sorted by ray and along each ray.

    ray     [N] int64: the number of the ray; of a camera's rays, row * width + column
    entry   [N] float64: the distance in mm from the source, along the ray, at which the interval begins
    exit    [N] float64: where it ends; exit > entry
    shape   the shape of the rays: (H, W) of a camera's, [...] of sources and targets [..., 3]
    """

    ray: Tensor
    entry: Tensor
    exit: Tensor
    shape: tuple[int, ...]

    @classmethod
    def of_convex(cls, entry: Tensor, exit: Tensor) -> Crossings:
        """Of one interval a ray, [...] in mm; none where exit <= entry."""
        first, last = torch.broadcast_tensors(entry, exit)
        ray = torch.nonzero((last > first).flatten())[:, 0]
        return cls(ray, first.flatten()[ray], last.flatten()[ray], tuple(first.shape))

    @property
    def count(self) -> int:
        """How many rays there are, those that meet nothing included."""
        return math.prod(self.shape)

    def chord_lengths(self) -> Tensor:
        """The length inside, mm, [*shape]."""
        empty = self.entry.new_zeros(self.count)
        return empty.index_add(0, self.ray, self.exit - self.entry).reshape(self.shape)

    def mask(self) -> Tensor:
        """Which rays go through, boolean [*shape]."""
        met = torch.zeros(self.count, dtype=torch.bool, device=self.ray.device)
        met[self.ray] = True
        return met.reshape(self.shape)

    def depth(self) -> Tensor:
        """The distance from the source to the first entry, mm, [*shape]; inf where there is none."""
        first = torch.ones_like(self.ray, dtype=torch.bool)
        first[1:] = self.ray[1:] != self.ray[:-1]
        nothing = self.entry.new_full((self.count,), torch.inf)
        return nothing.index_put((self.ray[first],), self.entry[first]).reshape(self.shape)

    def between(self, nearest: float | Tensor, farthest: float | Tensor) -> Crossings:
        """What of it lies between two distances (mm), each one number or one an interval [N]."""
        near, far = (torch.as_tensor(x, dtype=self.entry.dtype, device=self.entry.device) for x in (nearest, farthest))
        entry, exit = torch.maximum(self.entry, near), torch.minimum(self.exit, far)
        kept = exit > entry
        return Crossings(self.ray[kept], entry[kept], exit[kept], self.shape)


def merge(*solids: Crossings) -> Crossings:
    """The union: inside any of the solids, counted once. Raises PhysicsError where none is given or shapes differ."""
    return _combine(solids, lambda inside: inside.any(dim=-1))


def subtract(solid: Crossings, *others: Crossings) -> Crossings:
    """What is inside `solid` and inside none of `others`. Raises PhysicsError where the shapes of the rays differ."""
    return _combine((solid, *others), lambda inside: inside[..., 0] & ~inside[..., 1:].any(dim=-1))


def by_priority(solids: Sequence[Crossings]) -> list[Crossings]:
    """Each solid without what belongs to those before it: first come, first served. Then their lengths add up.

    Leave out what is disabled: it is then absent, and what it would have displaced is back.
    """
    taken, result = None, []
    for solid in solids:
        result.append(solid if taken is None else subtract(solid, taken))
        taken = solid if taken is None else merge(taken, solid)
    return result


def from_steps(ray: Tensor, distance: Tensor, step: Tensor, shape: tuple[int, ...]) -> Crossings:
    """The intervals in which a level is not zero that begins at zero and changes by `step` [N] (int64) at `distance`.

    All are [N], in any order; the steps of each ray add up to zero.
    """
    return _sweep(ray, distance, step[:, None], shape, lambda level: (level != 0).any(dim=-1))


def _combine(solids: Sequence[Crossings], rule: Callable[[Tensor], Tensor]) -> Crossings:
    shapes = {solid.shape for solid in solids}
    if len(shapes) != 1:
        raise PhysicsError(f"Give solids crossed by the same rays; these have the shapes {sorted(shapes)}.")
    ray, distance = (torch.cat(part) for part in zip(*(_ends(solid) for solid in solids), strict=True))
    step = torch.zeros((len(ray), len(solids)), dtype=torch.int64, device=ray.device)
    begin = 0
    for column, solid in enumerate(solids):
        middle, end = begin + len(solid.ray), begin + 2 * len(solid.ray)
        step[begin:middle, column], step[middle:end, column] = 1, -1
        begin = end
    return _sweep(ray, distance, step, solids[0].shape, lambda level: rule(level > 0))


def _ends(solid: Crossings) -> tuple[Tensor, Tensor]:
    return torch.cat([solid.ray, solid.ray]), torch.cat([solid.entry, solid.exit])


def _sweep(
    ray: Tensor, distance: Tensor, step: Tensor, shape: tuple[int, ...], rule: Callable[[Tensor], Tensor]
) -> Crossings:
    """The intervals in which `rule` holds for the levels, the running sums of step [N, C] along each ray."""
    # At equal distances what begins comes first, so that solids that touch are one.
    rises = step.sum(dim=-1) > 0
    order = torch.cat([torch.nonzero(rises)[:, 0], torch.nonzero(~rises)[:, 0]])
    for key in (distance.detach(), ray):
        order = order.index_select(0, torch.argsort(key.index_select(0, order), stable=True))
    ray, distance = ray.index_select(0, order), distance.index_select(0, order)
    # Each ray's steps add up to zero, so the running sums of all are those of each.
    inside = rule(step.index_select(0, order).cumsum(dim=0))
    before = torch.zeros_like(inside)
    before[1:] = inside[:-1]
    begins, ends = inside & ~before, before & ~inside
    entry, exit = distance[begins], distance[ends]
    kept = exit > entry
    return Crossings(ray[begins][kept], entry[kept], exit[kept], shape)
