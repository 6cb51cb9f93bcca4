"""Points in the patient from their pixels in several calibrated views.

The point whose projections lie nearest to the measured pixels (least squares: Hartley and Zisserman, Multiple View
Geometry, 2nd edition, chapter 12), from the point nearest to the rays, by Levenberg-Marquardt steps; its covariance to
first order (section 5.2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from DiffDRRCore.errors import GeometryError
from DiffDRRCore.geometry.camera import Camera
from DiffDRRCore.geometry.pose import Pose
from DiffDRRCore.geometry.projection import backproject
from DiffDRRCore.geometry.tensors import as_tensor

LEAST_ANGLE = 0.5  # degrees between rays: below, the error along them is more than a hundred times that across
_STEPS, _STILL = 50, 1e-10  # at most so many steps; a step below so many mm per mm from the source ends them


@dataclass(frozen=True)
class Triangulation:
    """Points and how well the views agree on them; a point that fewer than two views show is NaN throughout.

    points         [N, 3] in world mm
    residuals_px   [V, N] distance between the measured pixel and the point's projection; NaN where none was measured
    gap_mm         [N] the largest of the shortest distances between two rays of the point
    covariance     [N, 3, 3] in mm^2, for a noise of 1 px in each coordinate of a pixel of weight 1; for another noise,
                   multiply it by the noise's square, for instance that of `noise_px`
    noise_px       of a coordinate of a pixel of weight 1, from the residuals of all points; NaN without a point
    """

    points: Tensor
    residuals_px: Tensor
    gap_mm: Tensor
    covariance: Tensor
    noise_px: float


def triangulate(
    cameras: Camera | Sequence[Camera], poses: Pose | Sequence[Pose], points_2d, weights=None
) -> Triangulation:
    """Points that several views show.

    Args:
        cameras: one per view, or one for all; perspective or parallel, of either side.
        poses: camera_to_world, one per view (a batch [V] or a sequence).
        points_2d: [V, N, 2] pixels (u, v); NaN where a view does not show the point.
        weights: [V] or [V, N], 1 / variance of a pixel's coordinate, up to one factor; 0 leaves a pixel out.

    Raises:
        GeometryError: fewer than two views, numbers that do not fit together, no point in two views, views from nearly
            the same place, which cannot tell the depth, or pixels whose rays meet behind a source.
    """
    views = _views(cameras, poses)
    pixels = as_tensor(points_2d, torch.float64).detach().cpu()
    if pixels.ndim != 3 or pixels.shape[0] != len(views) or pixels.shape[2] != 2:
        raise GeometryError(
            f"points_2d must be [views, points, 2], here [{len(views)}, N, 2]; got {list(pixels.shape)}."
        )
    weight = _weights(weights, pixels)
    usable = (weight > 0).sum(0) >= 2
    if not bool(usable.any()):
        raise GeometryError("No point is seen in two views: a position in space needs pixels in at least two.")
    found = _triangulated(views, pixels[:, usable], weight[:, usable], usable.nonzero()[:, 0])
    return _with_missing(*found, weight, usable)


def _views(cameras, poses) -> list[tuple[Camera, Pose]]:
    poses = [poses] if isinstance(poses, Pose) and poses.matrix.ndim == 2 else list(poses)
    cameras = [cameras] * len(poses) if isinstance(cameras, Camera) else list(cameras)
    if len(poses) < 2:
        raise GeometryError(f"Triangulation needs at least two views, got {len(poses)}: one view has no depth.")
    if len(cameras) != len(poses):
        raise GeometryError(
            f"Give one camera and one pose per view; got {len(cameras)} cameras and {len(poses)} poses."
        )
    if any(camera.K.ndim != 2 or pose.matrix.ndim != 2 for camera, pose in zip(cameras, poses, strict=True)):
        raise GeometryError("Each view has one camera and one pose, not a batch of them.")
    to = {"device": "cpu", "dtype": torch.float64}
    return [(camera.detached().to(**to), pose.detach().to(**to)) for camera, pose in zip(cameras, poses, strict=True)]


def _weights(weights, pixels: Tensor) -> Tensor:
    """[V, N], 0 where there is no pixel."""
    seen = torch.isfinite(pixels).all(-1)
    if weights is None:
        return seen.double()
    weights = as_tensor(weights, torch.float64).detach().cpu()
    weights = weights[:, None] if weights.ndim == 1 else weights
    if weights.ndim != 2 or weights.shape[0] != len(pixels) or weights.shape[1] not in (1, pixels.shape[1]):
        raise GeometryError(f"weights must be [views] or [views, points], got shape {list(weights.shape)}.")
    if not bool((torch.isfinite(weights) & (weights >= 0)).all()):
        raise GeometryError("weights must be finite and not negative.")
    return torch.where(seen, weights.expand_as(seen), 0.0)


def _triangulated(views, pixels: Tensor, weight: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(points [M, 3], misses [V, M, 2], gap [M], covariance [M, 3, 3]) of points that two views or more show."""
    pixels = torch.where((weight > 0)[..., None], pixels, 0.0)
    rays = [backproject(camera, pose, view) for (camera, pose), view in zip(views, pixels, strict=True)]
    origin, along = (torch.cat(parts) for parts in zip(*rays, strict=True))
    _check_angles(along, weight > 0, numbers)
    points = _refined(views, pixels, weight, _nearest_to_rays(origin, along, weight > 0))
    misses, jacobian, depth = _misses(views, pixels, points)
    behind = ((depth <= 0) & (weight > 0)).any(0)
    if bool(behind.any()):
        raise GeometryError(
            f"The rays of point {int(numbers[behind][0])} (from 0) meet behind a source: its pixels do not belong "
            "together, or a pose is wrong."
        )
    normal = torch.einsum("vnki,vn,vnkj->nij", jacobian, weight, jacobian)
    return points, misses, _gap(origin, along, weight > 0), torch.linalg.inv(normal)


def _check_angles(along: Tensor, seen: Tensor, numbers: Tensor) -> None:
    """Raise where all rays of a point are nearly parallel. along [V, M, 3] of unit length, seen [V, M]."""
    largest = torch.zeros(along.shape[1], dtype=along.dtype)
    for one, other in combinations(range(len(along)), 2):
        sine = torch.linalg.cross(along[one], along[other]).norm(dim=-1)
        angle = torch.rad2deg(torch.atan2(sine, (along[one] * along[other]).sum(-1).abs()))
        largest = torch.where(seen[one] & seen[other], torch.maximum(largest, angle), largest)
    worst = int(largest.argmin())
    if float(largest[worst]) < LEAST_ANGLE:
        raise GeometryError(
            f"The views cannot tell the depth of point {int(numbers[worst])} (from 0): its rays are nearly parallel "
            f"({float(largest[worst]):.2g} degrees apart, at least {LEAST_ANGLE:g} are needed); take views from "
            "different directions, and none twice."
        )


def _nearest_to_rays(origin: Tensor, along: Tensor, seen: Tensor) -> Tensor:
    """[M, 3]: the points with the least squared distance from their rays."""
    across = torch.eye(3, dtype=along.dtype) - along[..., :, None] * along[..., None, :]
    across = across * seen[..., None, None]
    right = (across @ origin[..., None]).sum(0)
    return torch.linalg.solve(across.sum(0), right)[..., 0]


def _refined(views, pixels: Tensor, weight: Tensor, points: Tensor) -> Tensor:
    """The points [M, 3] of least weighted squares, each with its own damping."""
    damping = torch.full(points.shape[:1], 1e-6, dtype=points.dtype)
    misses, jacobian, depth = _misses(views, pixels, points)
    for _ in range(_STEPS):
        normal = torch.einsum("vnki,vn,vnkj->nij", jacobian, weight, jacobian)
        gradient = torch.einsum("vnki,vn,vnk->ni", jacobian, weight, misses)
        damped = normal + torch.diag_embed(damping[:, None] * normal.diagonal(dim1=-2, dim2=-1))
        step = torch.linalg.solve(damped, gradient)
        tried = _misses(views, pixels, points - step)
        better = _cost(tried[0], tried[2], weight) <= _cost(misses, depth, weight)
        points = torch.where(better[:, None], points - step, points)
        damping = torch.where(better, damping / 10, damping * 10).clamp(1e-12, 1e12)
        if bool((step.norm(dim=-1) <= _STILL * depth.abs().amax(0).clamp_min(1.0)).all()):
            break
        misses, jacobian, depth = _misses(views, pixels, points)
    return points


def _cost(misses: Tensor, depth: Tensor, weight: Tensor) -> Tensor:
    """[M]; infinite where the point lies behind a source that shows it."""
    cost = (weight[..., None] * misses**2).sum((0, -1))
    return torch.where(((depth <= 0) & (weight > 0)).any(0), math.inf, cost)


def _misses(views, pixels: Tensor, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Projection minus pixel [V, M, 2], its derivative by the point [V, M, 2, 3], depth in mm [V, M]."""
    parts = [_miss(camera, pose, view, points) for (camera, pose), view in zip(views, pixels, strict=True)]
    return tuple(torch.stack(part) for part in zip(*parts, strict=True))


def _miss(camera: Camera, pose: Pose, pixels: Tensor, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    inverse = pose.inverse()
    local = inverse.transform(points)
    scale, center = camera.K[:2, :2], camera.K[:2, 2]
    if camera.parallel:
        jacobian = (scale @ inverse.rotation[:2]).expand(len(points), 2, 3)
        return local[:, :2] @ scale.T + center - pixels, jacobian, torch.ones_like(local[:, 2])
    depth = local[:, 2]
    safe = torch.where(depth.abs() > 1e-9, depth, 1e-9)
    plane = local[:, :2] / safe[:, None]
    slope = inverse.rotation[:2] - plane[:, :, None] * inverse.rotation[2]
    return plane @ scale.T + center - pixels, scale @ slope / safe[:, None, None], depth


def _gap(origin: Tensor, along: Tensor, seen: Tensor) -> Tensor:
    """[M] mm: the largest distance between two of the lines of a point."""
    gap = torch.zeros(origin.shape[1], dtype=origin.dtype)
    for one, other in combinations(range(len(origin)), 2):
        between, normal = origin[other] - origin[one], torch.linalg.cross(along[one], along[other])
        sine = normal.norm(dim=-1)
        skew = (between * normal).sum(-1).abs() / sine.clamp_min(1e-12)
        parallel = torch.linalg.cross(between, along[one]).norm(dim=-1)
        distance = torch.where(sine > 1e-9, skew, parallel)
        gap = torch.where(seen[one] & seen[other], torch.maximum(gap, distance), gap)
    return gap


def _with_missing(points, misses, gap, covariance, weight: Tensor, usable: Tensor) -> Triangulation:
    """All N points, NaN where there are none."""

    def filled(values: Tensor, dim: int = 0) -> Tensor:
        shape = list(values.shape)
        shape[dim] = len(usable)
        return torch.full(shape, math.nan, dtype=values.dtype).index_copy_(dim, usable.nonzero()[:, 0], values)

    used = weight[:, usable]
    freedom = 2 * int((used > 0).sum()) - 3 * len(points)
    noise = math.sqrt(float((used[..., None] * misses**2).sum()) / freedom)
    residuals = torch.where(used > 0, misses.norm(dim=-1), math.nan)
    return Triangulation(filled(points), filled(residuals, 1), filled(gap), filled(covariance), noise)
