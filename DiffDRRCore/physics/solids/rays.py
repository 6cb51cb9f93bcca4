"""Rays through closed meshes, exact: where each enters and leaves, and how long it is inside.

Whether a ray passes through a triangle is decided in the plane across it: the corners are sheared along the ray onto a
plane of constant z (Woop, Benthin and Wald, J. Comput. Graph. Tech. 2(1), 2013), and the origin must lie to one side of
all three edges. Each edge's side is that of the exact product of the rounded corners (Dekker's two-product where
rounding hides it), and an origin on an edge is moved by (e, e^2) with e towards zero (simulation of simplicity;
Edelsbrunner and Muecke, ACM Trans. Graph. 9, 1990). So neighbouring triangles never disagree: a ray enters a closed
mesh as often as it leaves, also through edges and corners. The distance is interpolated between the corners by areas.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from DiffDRRCore.errors import GeometryError, PhysicsError
from DiffDRRCore.geometry import Camera, Pose, as_tensor, pixel_rays
from DiffDRRCore.physics.solids.crossings import Crossings, from_steps
from DiffDRRCore.physics.solids.mesh import Mesh
from DiffDRRCore.physics.solids.pixels import candidate_pixels, pixels_around

_PAIRS_AT_A_TIME = 2**20
_SPLIT = 2.0**27 + 1  # Veltkamp's constant for the halves of a float64


class Convex(Protocol):
    """A solid that a ray meets in one interval, known in closed form."""

    def interval(self, source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Distances in mm from source [..., 3] towards target at which the line enters and leaves; enter >= leave where
        it misses."""

    # A solid may also have `corners()`: [N, 3] world mm with the solid in their convex hull, or None. Then only the
    # pixels around it are looked at.


class _Rays(NamedTuple):
    """Rays that move along z: origin [3, R] (None: all at 0), slope (x, y) per z [2, R], mm per mm of z [R], signed."""

    origin: Tensor | None
    slope: Tensor
    stretch: Tensor

    def of(self, index: Tensor) -> _Rays:
        origin = None if self.origin is None else self.origin.index_select(1, index)
        return _Rays(origin, self.slope.index_select(1, index), self.stretch.index_select(0, index))

    def detach(self) -> _Rays:
        return _Rays(None if self.origin is None else self.origin.detach(), self.slope.detach(), self.stretch.detach())


class _Hits(NamedTuple):
    """Rays that pass through triangles: [N] numbers, and 1 where the level of the inside rises, -1 where it falls."""

    ray: Tensor
    triangle: Tensor
    step: Tensor


def crossings(solid: Mesh | Convex, camera: Camera, pose: Pose, allow_inside: bool = False) -> Crossings:
    """Where each pixel's ray is inside a solid in world coordinates, between the source and the detector.

    Of a mesh, gradients flow from the distances to its vertices, the pose and the camera.

    Args:
        camera, pose: one view.
        allow_inside: accept a source inside the solid; the ray is then inside from distance 0.

    Returns the crossings of rays of shape (H, W), in float64. Raises PhysicsError where the source is inside and may
    not be, or lies on the surface; GeometryError for a batch of views.
    """
    device = solid.vertices.device if isinstance(solid, Mesh) else None
    camera, pose = _one_view(camera, pose, device)
    if not isinstance(solid, Mesh):
        return _in_view(solid, camera, pose, allow_inside)
    vertices = pose.inverse().transform(solid.vertices)
    hits = _pixel_hits(vertices.detach()[solid.triangles], camera.detached())
    distance = _distances(vertices, solid.triangles, _pixel_rays(camera, hits.ray), hits)
    if not camera.parallel:  # of what lies behind the source, not all was looked at; but its sum is known
        hits, distance = _begin_at(_winding_number(solid, pose.translation.detach()), hits, distance)
    result = _intervals(solid, hits, distance, (camera.height, camera.width), allow_inside)
    return result.between(0.0, camera.source_to_detector * _pixel_rays(camera, result.ray).stretch)


def crossings_along(solid: Mesh | Convex, source, target, allow_inside: bool = False) -> Crossings:
    """Where rays are inside a solid, between `source` and `target` [..., 3] (world mm, broadcast to each other).

    Every ray is held against every triangle: for some thousand rays, or to check `crossings` against. Otherwise as
    there; the crossings are those of rays of shape [...]. Raises PhysicsError where a source is inside.
    """
    source, target = torch.broadcast_tensors(as_tensor(source).double(), as_tensor(target).double())
    if source.shape[-1:] != (3,):
        raise GeometryError(f"The ends of rays have three numbers each, got shape {list(source.shape)}.")
    if not isinstance(solid, Mesh):
        return _of_convex(solid, source, target, allow_inside)
    shape = source.shape[:-1]
    source, target = (x.reshape(-1, 3).to(solid.vertices.device) for x in (source, target))
    direction = target - source
    main = direction.detach().abs().argmax(dim=-1)
    found = [_along_axis(solid, source, direction, main, axis) for axis in range(3)]
    hits = _joined([hits for hits, _ in found])
    distance = torch.cat([distance for _, distance in found])
    result = _intervals(solid, hits, distance, tuple(shape), allow_inside)
    return result.between(0.0, torch.linalg.vector_norm(direction, dim=-1)[result.ray])


def chord_lengths(solid: Mesh | Convex, camera: Camera, pose: Pose, allow_inside: bool = False) -> Tensor:
    """The length of each pixel's ray inside the solid, mm, float64 [H, W]; see `crossings`."""
    return crossings(solid, camera, pose, allow_inside).chord_lengths()


def mask(solid: Mesh | Convex, camera: Camera, pose: Pose, allow_inside: bool = False) -> Tensor:
    """Which pixels' rays go through the solid, boolean [H, W]; see `crossings`."""
    return crossings(solid, camera, pose, allow_inside).mask()


def depth(solid: Mesh | Convex, camera: Camera, pose: Pose, allow_inside: bool = False) -> Tensor:
    """The distance from the source along each pixel's ray to the solid, mm, float64 [H, W]; inf where it misses."""
    return crossings(solid, camera, pose, allow_inside).depth()


def _one_view(camera: Camera, pose: Pose, device: torch.device | None) -> tuple[Camera, Pose]:
    if pose.matrix.numel() != 16 or camera.K.numel() != 9 or camera.source_to_detector.numel() != 1:
        raise GeometryError("A mesh is projected for one camera and one pose at a time; loop over a batch of views.")
    return camera.to(device, torch.float64), Pose(pose.matrix.reshape(4, 4).to(device, torch.float64))


def _in_view(solid: Convex, camera: Camera, pose: Pose, allow_inside: bool) -> Crossings:
    shape = (camera.height, camera.width)
    corners = getattr(solid, "corners", lambda: None)()
    if corners is None:
        pixels = torch.arange(math.prod(shape), device=camera.K.device)
    else:
        pixels = pixels_around(pose.inverse().detach().transform(corners.to(camera.K)), camera)
    uv = torch.stack([pixels % camera.width, pixels // camera.width], dim=-1).double()
    source, target = torch.broadcast_tensors(*(end[0] for end in pixel_rays(camera, pose, uv)))
    found = _of_convex(solid, source, target, allow_inside)
    return replace(found, ray=pixels[found.ray], shape=shape)


def _of_convex(solid: Convex, source: Tensor, target: Tensor, allow_inside: bool) -> Crossings:
    entry, leave = solid.interval(source, target)
    result = Crossings.of_convex(entry.double(), leave.double())
    if not allow_inside:
        _check_outside(result, "solid")
    return result.between(0.0, torch.linalg.vector_norm(target - source, dim=-1).double().flatten()[result.ray])


def _pixel_rays(camera: Camera, pixel: Tensor) -> _Rays:
    """The rays of pixels (row * width + column) [R] in the camera frame.

    A pixel's ray is the same to the last bit in whatever company it is made, which matrix products do not promise.
    """
    row = torch.div(pixel, camera.width, rounding_mode="floor")
    u, v = (pixel - camera.width * row).double(), row.double()
    to_plane = torch.linalg.inv(camera.K.reshape(3, 3))
    plane = torch.stack([a * u + b * v + c for a, b, c in to_plane[:2]])
    if camera.parallel:
        origin = torch.cat([plane, torch.zeros_like(plane[:1])])
        return _Rays(origin, torch.zeros_like(plane), torch.ones_like(u))
    return _Rays(None, plane, (plane[0].square() + plane[1].square() + 1).sqrt())


def _pixel_hits(corners: Tensor, camera: Camera) -> _Hits:
    """All that the rays of the pixels meet of triangles with corners [M, 3, 3] in the camera frame."""
    found, by_axis = [_none(corners.device)], corners.permute(2, 1, 0).contiguous()
    for triangle, pixel in candidate_pixels(corners, camera):
        x, y, _ = _sheared(by_axis.index_select(2, triangle), _pixel_rays(camera, pixel))
        found.append(_met(pixel, triangle, _steps(x, y)))
    return _joined(found)


def _along_axis(solid: Mesh, source: Tensor, direction: Tensor, main: Tensor, axis: int) -> tuple[_Hits, Tensor]:
    """The hits of those rays [R] that move most along one axis, and their distances [N]."""
    order = [(axis + 1) % 3, (axis + 2) % 3, axis]
    number = torch.nonzero((main == axis) & (direction.detach()[:, axis] != 0))[:, 0]
    ahead, vertices = direction[number][:, order].T, solid.vertices[:, order]
    stretch = torch.linalg.vector_norm(ahead, dim=0) / ahead[2]
    rays = _Rays(source[number][:, order].T, ahead[:2] / ahead[2], stretch)
    at_a_time = max(1, _PAIRS_AT_A_TIME // len(solid.triangles))
    starts = torch.arange(0, len(number), at_a_time, device=number.device)
    pieces = (torch.arange(a, min(a + at_a_time, len(number)), device=number.device) for a in starts.tolist())
    found = [_all_pairs(vertices.detach(), solid.triangles, rays.detach(), piece) for piece in pieces]
    hits = _joined([_none(vertices.device), *found])
    distance = _distances(vertices, solid.triangles, rays.of(hits.ray), hits)
    forward = stretch.detach()[hits.ray] > 0
    return _Hits(number[hits.ray], hits.triangle, torch.where(forward, hits.step, -hits.step)), distance


def _all_pairs(vertices: Tensor, triangles: Tensor, rays: _Rays, piece: Tensor) -> _Hits:
    x, y, _ = _sheared(vertices.T[..., None], rays.of(piece))
    x, y = (part.index_select(0, triangles.T.flatten()).unflatten(0, (3, -1)) for part in (x, y))
    near = (x.amin(0) <= 0) & (x.amax(0) >= 0) & (y.amin(0) <= 0) & (y.amax(0) >= 0)
    triangle, ray = torch.nonzero(near, as_tuple=True)
    return _met(piece[ray], triangle, _steps(x[:, triangle, ray], y[:, triangle, ray]))


def _met(ray: Tensor, triangle: Tensor, step: Tensor) -> _Hits:
    met = torch.nonzero(step)[:, 0]
    return _Hits(*(part.index_select(0, met) for part in (ray, triangle, step)))


def _joined(found: list[_Hits]) -> _Hits:
    return _Hits(*(torch.cat(part) for part in zip(*found, strict=True)))


def _sheared(points: Tensor, rays: _Rays) -> tuple[Tensor, Tensor, Tensor]:
    """x, y and z of points [3, n, P] from the origins of rays [P], sheared so that each ray is its z axis; [n, P]."""
    x, y, z = points if rays.origin is None else points - rays.origin[:, None]
    return x - rays.slope[0] * z, y - rays.slope[1] * z, z


def _steps(x: Tensor, y: Tensor) -> Tensor:
    """For triangles with corners (x, y) [3, P]: 1 where the z axis enters through it, -1 where it leaves, else 0."""
    around = torch.zeros_like(x[0], dtype=torch.int64)
    for a, b in ((0, 1), (1, 2), (2, 0)):
        one, two = x[a] * y[b], x[b] * y[a]
        side = (one > two).long() - (one < two).long()
        unsure = torch.nonzero(side == 0)[:, 0]
        if len(unsure):
            side[unsure] = _side_of_origin(x[a, unsure], y[a, unsure], x[b, unsure], y[b, unsure])
        around += side
    return (around == -3).long() - (around == 3).long()


def _side_of_origin(x1: Tensor, y1: Tensor, x2: Tensor, y2: Tensor) -> Tensor:
    """The sign of x1 y2 - x2 y1 where both products round to one number, and of its perturbation where it is zero."""
    side = torch.sign(_lost(x1, y2) - _lost(x2, y1))
    side = torch.where(side == 0, torch.sign(y1 - y2), side)
    return torch.where(side == 0, torch.sign(x2 - x1), side).long()


def _lost(a: Tensor, b: Tensor) -> Tensor:
    """a b minus its rounded value, exactly (Dekker, Numer. Math. 18, 1971)."""
    high_a, high_b = (x * _SPLIT - (x * _SPLIT - x) for x in (a, b))
    low_a, low_b = a - high_a, b - high_b
    return low_a * low_b - (((a * b - high_a * high_b) - low_a * high_b) - high_a * low_b)


def _distances(vertices: Tensor, triangles: Tensor, rays: _Rays, hits: _Hits) -> Tensor:
    """The distance in mm [N] along the ray [N] of each hit to the triangle that it passes through."""
    corners = vertices.T.index_select(1, triangles.index_select(0, hits.triangle).T.flatten()).reshape(3, 3, -1)
    x, y, z = _sheared(corners, rays)
    area = torch.stack([x[a] * y[b] - x[b] * y[a] for a, b in ((1, 2), (2, 0), (0, 1))])
    total = area.sum(dim=0)
    weight = torch.where(total == 0, 1 / 3, area / torch.where(total == 0, 1, total))
    return (weight * z).sum(dim=0) * rays.stretch


def _winding_number(solid: Mesh, point: Tensor) -> int:
    """How often the surface goes around a point: its solid angle / 4 pi (van Oosterom and Strackee, IEEE TBME 1983)."""
    corners = solid.corners.detach() - point.to(solid.vertices)
    a, b, c = corners.unbind(dim=1)
    (la, lb, lc) = torch.linalg.vector_norm(corners, dim=-1).unbind(dim=1)
    top = (a * torch.linalg.cross(b, c)).sum(dim=-1)
    ab, bc, ca = ((p * q).sum(dim=-1) for p, q in ((a, b), (b, c), (c, a)))
    half = torch.atan2(top, la * lb * lc + ab * lc + bc * la + ca * lb)
    return round(float(half.sum()) / (2 * torch.pi))


def _begin_at(level: int, hits: _Hits, distance: Tensor) -> tuple[_Hits, Tensor]:
    """What lies ahead of the source, and the level at the source, which is reached somewhere behind it."""
    ahead = torch.nonzero(distance.detach() > 0)[:, 0]
    hits, distance = _Hits(*(part[ahead] for part in hits)), distance[ahead]
    if level == 0:
        return hits, distance
    ray = hits.ray.unique()
    extra = _Hits(ray, torch.zeros_like(ray), torch.full_like(ray, level))
    return _joined([hits, extra]), torch.cat([distance, distance.new_full((len(ray),), -1.0)])


def _intervals(solid: Mesh, hits: _Hits, distance: Tensor, shape: tuple[int, ...], allow_inside: bool) -> Crossings:
    met, place = torch.unique(hits.ray, return_inverse=True)
    leaks = int((torch.zeros_like(met).index_add(0, place, hits.step) != 0).sum())
    if leaks:
        raise PhysicsError(
            f"{leaks} rays do not enter the mesh '{solid.name}' as often as they leave it: move the X-ray source, "
            "which lies on its surface."
        )
    result = from_steps(hits.ray, distance, hits.step, shape)
    if not allow_inside:
        _check_outside(result, f"mesh '{solid.name}'")
    return result


def _check_outside(result: Crossings, name: str) -> None:
    if bool(((result.entry < 0) & (result.exit > 0)).any()):
        raise PhysicsError(f"The X-ray source lies inside the {name}; move the source or the {name.split()[0]}.")


def _none(device: torch.device) -> _Hits:
    return _Hits(*(torch.zeros(0, dtype=torch.int64, device=device) for _ in range(3)))
