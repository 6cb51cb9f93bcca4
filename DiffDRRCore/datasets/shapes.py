"""Solid shapes whose line integrals are known in closed form, to test renderers against."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from DiffDRRCore.errors import GeometryError, VolumeError
from DiffDRRCore.geometry.tensors import as_tensor, transform_points
from DiffDRRCore.imaging.volume import Volume

Triple = Sequence[float]


class Shape(ABC):
    """A closed convex solid in world mm. Everything is computed in float64, whatever comes in."""

    def chord(self, source, target) -> Tensor:
        """The length in mm of the part inside the shape of the segment from `source` to `target`.

        Both are [..., 3] and broadcast to each other; the result is [...] in their dtype. The segment ends where it
        ends: what lies behind the source or beyond the target does not count. A segment that runs within the surface
        is inside.
        """
        source, target = as_tensor(source), as_tensor(target)
        dtype = torch.promote_types(source.dtype, target.dtype)
        s, t = torch.broadcast_tensors(source.double(), target.double())
        near, far = self._interval(s, t - s)
        part = far.clamp(max=1) - near.clamp(min=0)
        return (part.clamp(min=0) * torch.linalg.vector_norm(t - s, dim=-1)).to(dtype)

    def interval(self, source, target) -> tuple[Tensor, Tensor]:
        """(near, far): the line from `source` to `target` [..., 3] is inside from `near` to `far` mm from the source.

        In float64; near > far where it misses. Neither end of the line cuts it short.
        """
        s, t = torch.broadcast_tensors(as_tensor(source).double(), as_tensor(target).double())
        length = torch.linalg.vector_norm(t - s, dim=-1)
        near, far = self._interval(s, t - s)
        # Infinities are set, not computed, lest they make the slopes of what misses NaN.
        meets = near <= far
        near, far = (torch.where(meets, end, 0) * length for end in (near, far))
        return torch.where(meets, near, torch.inf), torch.where(meets, far, -torch.inf)

    def corners(self) -> Tensor:
        """[8, 3] world mm, float64: those of a box around the shape."""
        center, edges = self._box()
        signs = torch.tensor(list(product((-0.5, 0.5), repeat=3)), dtype=torch.float64)
        return as_tensor(center).double() + signs @ edges

    def inside(self, points) -> Tensor:
        """Whether points [..., 3] lie in the shape, its surface included; boolean [...]."""
        return self.level(points) <= 0

    @abstractmethod
    def level(self, points) -> Tensor:
        """[...] in mm, float64: the depth below the surface, negative, inside; at most the distance to it outside."""

    @abstractmethod
    def _box(self) -> tuple[Triple, Tensor]:
        """The center of a box around the shape, and its edges as the rows of [3, 3] mm."""

    @abstractmethod
    def _interval(self, s: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
        """(near, far): the line s + a d is inside for near <= a <= far; near > far where it misses."""


@dataclass(frozen=True)
class Sphere(Shape):
    """A ball of `radius` mm about `center` (world mm)."""

    center: Triple
    radius: float

    def __post_init__(self):
        _check_sizes(self.radius)

    def level(self, points) -> Tensor:
        """See `Shape.level`."""
        return torch.linalg.vector_norm(_local(points, self.center), dim=-1) - self.radius

    def _box(self) -> tuple[Triple, Tensor]:
        return self.center, 2 * self.radius * torch.eye(3, dtype=torch.float64)

    def _interval(self, s: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
        return _ball_interval(_local(s, self.center), d, self.radius)


@dataclass(frozen=True)
class Box(Shape):
    """A box of edge lengths `size` (mm) about `center`; the rows of `axes` are its edges' directions (default: world).

    Raises GeometryError for sizes that are not positive and axes that are not orthonormal.
    """

    center: Triple
    size: Triple
    axes: Sequence[Triple] = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))

    def __post_init__(self):
        _check_sizes(*self.size)
        axes = as_tensor(self.axes).double()
        if axes.shape != (3, 3) or not torch.allclose(axes @ axes.T, torch.eye(3, dtype=torch.float64), atol=1e-9):
            raise GeometryError(f"The axes of a box are three orthogonal unit vectors, got {axes.tolist()}.")

    def level(self, points) -> Tensor:
        """See `Shape.level`."""
        local = self._in_axes(_local(points, self.center))
        return (local.abs() - as_tensor(self.size).to(local) / 2).amax(dim=-1)

    def _box(self) -> tuple[Triple, Tensor]:
        return self.center, as_tensor(self.size).double()[:, None] * as_tensor(self.axes).double()

    def _interval(self, s: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
        half = as_tensor(self.size).to(s) / 2
        near, far = _slab_interval(self._in_axes(_local(s, self.center)), self._in_axes(d), half)
        return near.amax(dim=-1), far.amin(dim=-1)

    def _in_axes(self, vectors: Tensor) -> Tensor:
        return vectors @ as_tensor(self.axes).to(vectors).mT


@dataclass(frozen=True)
class Cylinder(Shape):
    """A cylinder with flat ends: `radius` and `length` in mm, about `center`, along the direction `axis` (any length).

    Raises GeometryError for sizes that are not positive and an axis of zero length.
    """

    center: Triple
    axis: Triple
    radius: float
    length: float

    def __post_init__(self):
        _check_sizes(self.radius, self.length, float(torch.linalg.vector_norm(as_tensor(self.axis).double())))

    def level(self, points) -> Tensor:
        """See `Shape.level`."""
        along, across = self._split(_local(points, self.center))
        return torch.maximum(along.abs() - self.length / 2, torch.linalg.vector_norm(across, dim=-1) - self.radius)

    def _box(self) -> tuple[Triple, Tensor]:
        axis = as_tensor(self.axis).double()
        around = torch.linalg.svd(axis[None]).Vh  # the first row is along the axis, the others are across
        return self.center, around * torch.tensor([[self.length], [2 * self.radius], [2 * self.radius]]).double()

    def _interval(self, s: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
        (s_along, s_across), (d_along, d_across) = self._split(_local(s, self.center)), self._split(d)
        near_side, far_side = _ball_interval(s_across, d_across, self.radius)
        near_end, far_end = _slab_interval(s_along, d_along, torch.full_like(s_along, self.length / 2))
        return torch.maximum(near_side, near_end), torch.minimum(far_side, far_end)

    def _split(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        axis = as_tensor(self.axis).to(vectors)
        axis = axis / torch.linalg.vector_norm(axis)
        along = vectors @ axis
        return along, vectors - along[..., None] * axis


def voxelize(shape: Shape, grid_shape: Sequence[int], ijk_to_ras, mu: float, supersample: int = 4) -> Volume:
    """A CT volume of the shape: attenuation `mu` (1/mm) times the fraction of each voxel that the shape fills.

    Args:
        grid_shape: (K, J, I).
        ijk_to_ras: [4, 4], voxel index (i, j, k, 1) to world mm.
        supersample: voxels that the surface may cross are sampled at the centres of `supersample`^3 equal parts. A box
            whose faces lie on voxel faces comes out exactly.

    Raises VolumeError for an attenuation that is not positive or fewer than one sample.
    """
    if not (0 < mu < float("inf")) or supersample < 1:
        raise VolumeError(f"Give an attenuation above 0 and at least one sample, got {mu} per mm and {supersample}.")
    affine = as_tensor(ijk_to_ras).double()
    k, j, i = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid_shape), indexing="ij")
    centers = transform_points(affine, torch.stack([i, j, k], dim=-1).reshape(-1, 3))
    level = shape.level(centers)
    corners = torch.tensor(list(product((-0.5, 0.5), repeat=3)), dtype=torch.float64) @ affine[:3, :3].T
    crossed = level.abs() <= torch.linalg.vector_norm(corners, dim=-1).max()
    fraction = (level <= 0).double()
    parts = (torch.arange(supersample, dtype=torch.float64) + 0.5) / supersample - 0.5
    offsets = torch.cartesian_prod(parts, parts, parts).reshape(-1, 3) @ affine[:3, :3].T
    fraction[crossed] = sum(shape.inside(centers[crossed] + offset).double() for offset in offsets) / len(offsets)
    return Volume.from_attenuation((mu * fraction).reshape(*grid_shape), affine)


def _local(points, center: Triple) -> Tensor:
    points = as_tensor(points).double()
    return points - as_tensor(center).to(points)


def _check_sizes(*sizes: float) -> None:
    if not all(0 < size < float("inf") for size in sizes):
        raise GeometryError(f"The sizes of a shape must be positive (mm), got {', '.join(str(s) for s in sizes)}.")


def _ball_interval(p: Tensor, d: Tensor, radius: float) -> tuple[Tensor, Tensor]:
    """The interval of a in which |p + a d| <= radius, in any number of dimensions."""
    length = torch.linalg.vector_norm(d, dim=-1)
    moves = length > 0
    length = torch.where(moves, length, 1)
    unit = d / length[..., None]
    along = (p * unit).sum(dim=-1)
    room = radius**2 - (p - along[..., None] * unit).square().sum(dim=-1)
    half = torch.where(room > 0, room, 1).sqrt() * (room > 0)
    # A line that only touches, or a point, is inside for no length or for all a.
    near, far = (-along - half) / length, (-along + half) / length
    near = torch.where(moves, near, -torch.inf)
    far = torch.where(moves, far, torch.inf)
    return torch.where(room >= 0, near, torch.inf), torch.where(room >= 0, far, -torch.inf)


def _slab_interval(p: Tensor, d: Tensor, half: Tensor) -> tuple[Tensor, Tensor]:
    """The interval of a in which |p + a d| <= half, for each component."""
    moves = d != 0
    step = torch.where(moves, d, 1)
    a, b = (-half - p) / step, (half - p) / step
    within = p.abs() <= half
    near = torch.where(moves, torch.minimum(a, b), torch.where(within, -torch.inf, torch.inf))
    far = torch.where(moves, torch.maximum(a, b), torch.where(within, torch.inf, -torch.inf))
    return near, far
