"""The building blocks of the phantom: rounded solids, each with a (nearly) signed distance to its surface.

A solid is evaluated on axis-aligned grids: x [I], y [J, 1] and z [K, 1, 1] in mm broadcast to [K, J, I].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import cos, sin

import torch
from torch import Tensor

Point = tuple[float, float, float]
Axes = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Ellipsoid:
    """Semi-axes `radii` along the world axes, after a turn of `tilt` radians about x (anterior side up)."""

    center: Point
    radii: Point
    tilt: float = 0.0

    def bounds(self) -> tuple[Point, Point]:
        """Opposite corners of a box around the solid."""
        reach = max(self.radii[1:]) if self.tilt else 0.0
        return _around(self.center, tuple(max(r, reach) if n else r for n, r in enumerate(self.radii)))

    def distance(self, axes: Axes) -> Tensor:
        """Signed distance, to first order near the surface; negative inside."""
        x, y, z = _turned(axes, self.center, self.tilt)
        a, b, c = self.radii
        value = (x / a) ** 2 + (y / b) ** 2 + (z / c) ** 2 - 1
        slope = 4 * ((x / a**2) ** 2 + (y / b**2) ** 2 + (z / c**2) ** 2)
        return value * slope.clamp(min=1e-6).rsqrt()


@dataclass(frozen=True)
class Drum:
    """A vertebral body: an elliptic cylinder with a waist and rounded edges; `radii` in x and y, half `height` in z."""

    center: Point
    radii: tuple[float, float]
    height: float
    tilt: float = 0.0

    def bounds(self) -> tuple[Point, Point]:
        """Opposite corners of a box around the solid."""
        reach = self.radii[1] + self.height
        return _around(self.center, (self.radii[0], reach, reach))

    def distance(self, axes: Axes) -> Tensor:
        """Signed distance, approximate; negative inside."""
        x, y, z = _turned(axes, self.center, self.tilt)
        a, b = self.radii
        waist = 0.1 * (1 - (z / self.height).clamp(-1, 1) ** 2)
        side = (((x / a) ** 2 + (y / b) ** 2).sqrt() - 1 + waist) * min(a, b)
        end = z.abs() - self.height
        rounding = 2.0
        outside = ((side + rounding).clamp(min=0) ** 2 + (end + rounding).clamp(min=0) ** 2).sqrt()
        return outside + torch.maximum(side, end).clamp(max=-rounding)


@dataclass(frozen=True)
class Rod:
    """A tapered round bar from `start` to `end`, with a radius at each."""

    start: Point
    end: Point
    radii: tuple[float, float]

    def bounds(self) -> tuple[Point, Point]:
        """Opposite corners of a box around the solid."""
        reach = max(self.radii)
        low = tuple(min(a, b) - reach for a, b in zip(self.start, self.end, strict=True))
        high = tuple(max(a, b) + reach for a, b in zip(self.start, self.end, strict=True))
        return low, high

    def distance(self, axes: Axes) -> Tensor:
        """Signed distance; negative inside."""
        steps = [b - a for a, b in zip(self.start, self.end, strict=True)]
        local = [axis - a for axis, a in zip(axes, self.start, strict=True)]
        square = sum(step**2 for step in steps)
        inner = sum(p * (step / square) for p, step in zip(local, steps, strict=True))
        along = inner.clamp(0, 1)
        # |p - along d|^2, written so that most of it is a sum of terms of one axis each
        away = (sum(p**2 for p in local) + square * along * (along - 2 * inner)).clamp(min=0).sqrt()
        return away - (self.radii[0] + along * (self.radii[1] - self.radii[0]))


@dataclass(frozen=True)
class Cup:
    """The part of a spherical shell that lies on the far side of the plane through `center` along `opening` (unit)."""

    center: Point
    radii: tuple[float, float]
    opening: Point
    rim: float

    def bounds(self) -> tuple[Point, Point]:
        """Opposite corners of a box around the solid."""
        return _around(self.center, (self.radii[1],) * 3)

    def distance(self, axes: Axes) -> Tensor:
        """Signed distance, exact inside; negative inside."""
        local = [axis - c for axis, c in zip(axes, self.center, strict=True)]
        away = sum(p**2 for p in local).sqrt()
        outward = sum(p * n for p, n in zip(local, self.opening, strict=True))
        shell = torch.maximum(self.radii[0] - away, away - self.radii[1])
        return torch.maximum(shell, outward - self.rim)


Solid = Ellipsoid | Drum | Rod | Cup


def chain(points: Sequence[Point], radii: Sequence[float]) -> list[Rod]:
    """Rods from point to point, with a radius at each point."""
    ends = zip(points, points[1:], radii, radii[1:], strict=False)
    return [Rod(start, end, (a, b)) for start, end, a, b in ends]


def _around(center: Point, reach: Sequence[float]) -> tuple[Point, Point]:
    return (
        tuple(c - r for c, r in zip(center, reach, strict=True)),
        tuple(c + r for c, r in zip(center, reach, strict=True)),
    )


def _turned(axes: Axes, center: Point, tilt: float) -> Axes:
    x, y, z = (axis - c for axis, c in zip(axes, center, strict=True))
    return x, cos(tilt) * y + sin(tilt) * z, cos(tilt) * z - sin(tilt) * y
