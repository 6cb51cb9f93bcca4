"""Perspective from three points: all poses of a camera that sees three known points along three known directions.

The distances L = (l1, l2, l3) of the points obey Grunert's equations l_i^2 + l_j^2 - 2 l_i l_j cos_ij = d_ij^2: two
homogeneous quadrics and a scale. Finsterwalder's way to solve them (Haralick, Lee, Ottenberg, Noelle: Review and
analysis of solutions of the three point perspective pose estimation problem, IJCV 13, 1994) takes a degenerate member
of the pencil of the two quadrics, a pair of planes, from the root of a cubic, and meets each plane with another member.
Solving for directions in the plane, not for ratios of distances, leaves no special cases for symmetric triangles.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
_PAIRS = ((0, 1), (0, 2), (1, 2))
_POLISH_STEPS = 4


def solve_p3p(points: Array, bearings: Array) -> tuple[Array, Array]:
    """All solutions of T triples at once.

    Args:
        points: [T, 3, 3] in mm, world; row i is point i. Not collinear.
        bearings: [T, 3, 3], unit vectors from the source to the points, in the camera frame.

    Returns:
        world_to_camera [S, 4, 4] and the triple [S] that each comes from; at most four per triple. Every point lies in
        front of the source, along its bearing.
    """
    squares = np.stack([((points[:, i] - points[:, j]) ** 2).sum(-1) for i, j in _PAIRS], axis=-1)
    quadrics = np.stack([_grunert_quadric(bearings, i, j) for i, j in _PAIRS], axis=1)
    distances = _polished(_directions(quadrics, squares), quadrics, squares)
    triple, candidate = np.nonzero(_valid(distances, quadrics, squares))
    seen = distances[triple, candidate, :, None] * bearings[triple]
    return rigid_motion(points[triple], seen), triple


def _grunert_quadric(bearings: Array, i: int, j: int) -> Array:
    """M [T, 3, 3] with L^T M L = squared distance of points i and j."""
    quadric = np.zeros((len(bearings), 3, 3))
    quadric[:, i, i] = quadric[:, j, j] = 1
    quadric[:, i, j] = quadric[:, j, i] = -(bearings[:, i] * bearings[:, j]).sum(-1)
    return quadric


def _directions(quadrics: Array, squares: Array) -> Array:
    """[T, 4, 3]: directions of L up to scale and sign; NaN where a solution is complex."""
    a, b, c = (squares[:, k, None, None] for k in range(3))
    first, second = _pencil(
        _normalised(quadrics[:, 0] * c - quadrics[:, 2] * a), _normalised(quadrics[:, 1] * c - quadrics[:, 2] * b)
    )
    weights = _degenerate_member(first, second)
    degenerate = weights[:, :1, None] * first + weights[:, 1:, None] * second
    other = -weights[:, 1:, None] * first + weights[:, :1, None] * second
    values, vectors = np.linalg.eigh(degenerate)
    high = np.sqrt(np.maximum(values[:, 2], 0))[:, None] * vectors[:, :, 2]
    low = np.sqrt(np.maximum(-values[:, 0], 0))[:, None] * vectors[:, :, 0]
    planes = [_plane_meets_cone(normal, other) for normal in (high + low, high - low)]
    return np.concatenate(planes, axis=1)


def _normalised(matrix: Array) -> Array:
    norm = np.linalg.norm(matrix, axis=(-2, -1), keepdims=True)
    return matrix / np.where(norm > 0, norm, 1)


def _pencil(first: Array, second: Array) -> tuple[Array, Array]:
    """Two other members of the same pencil, the second one with a determinant that is not zero.

    The determinant is a cubic in the mixing angle with at most three zeros, so one of four angles will do.
    """
    angles = np.arange(4) * (np.pi / 4)
    members = np.cos(angles)[:, None, None] * first[:, None] + np.sin(angles)[:, None, None] * second[:, None]
    best = angles[np.argmax(np.abs(np.linalg.det(members)), axis=1)][:, None, None]
    return np.cos(best) * second - np.sin(best) * first, np.cos(best) * first + np.sin(best) * second


def _degenerate_member(first: Array, second: Array) -> Array:
    """(p, q) [T, 2], unit: p first + q second has determinant zero and, if there is one, is a real pair of planes."""
    plus, minus = np.linalg.det(first + second), np.linalg.det(first - second)
    start, end = np.linalg.det(first), np.linalg.det(second)
    ratio = _cubic_roots(np.stack([end, (plus + minus) / 2 - start, (plus - minus) / 2 - end, start], axis=-1))
    pairs = np.stack([np.ones_like(ratio), ratio], axis=-1)
    pairs /= np.linalg.norm(pairs, axis=-1, keepdims=True)
    members = pairs[..., :1, None] * first[:, None] + pairs[..., 1:, None] * second[:, None]
    values = np.linalg.eigvalsh(members)
    best = np.argmax(np.minimum(values[..., 2], -values[..., 0]), axis=1)
    return pairs[np.arange(len(pairs)), best]


def _cubic_roots(coefficients: Array) -> Array:
    """The real roots [T, 3] of c0 x^3 + c1 x^2 + c2 x + c3; a complex pair is replaced by the real root."""
    leading = coefficients[:, :1]
    companion = np.zeros((len(coefficients), 3, 3))
    companion[:, 0] = -coefficients[:, 1:] / np.where(leading == 0, 1, leading)
    companion[:, 1, 0] = companion[:, 2, 1] = 1
    roots = np.linalg.eigvals(companion)
    real = np.abs(roots.imag) < 1e-5 * (1 + np.abs(roots.real))
    nearest = np.argmin(np.abs(roots.imag), axis=1)
    real_root = roots.real[np.arange(len(roots)), nearest][:, None]
    return np.where(real, roots.real, real_root)


def _plane_meets_cone(normal: Array, cone: Array) -> Array:
    """[T, 2, 3]: the lines in which the plane normal^T L = 0 meets the cone L^T Q L = 0; NaN where they are complex."""
    basis = np.linalg.svd(normal[:, None, :])[2][:, 1:, :]
    form = basis @ cone @ basis.transpose(0, 2, 1)
    a, b, c = form[:, 0, 0], form[:, 0, 1], form[:, 1, 1]
    discriminant = b * b - a * c
    scale = a * a + b * b + c * c
    root = np.sqrt(np.where(discriminant < -1e-9 * scale, np.nan, np.maximum(discriminant, 0)))
    r = b + np.copysign(root, b)
    coordinates = np.stack([np.stack([-r, a], axis=-1), np.stack([-c, r], axis=-1)], axis=1)
    return coordinates @ basis


def _polished(directions: Array, quadrics: Array, squares: Array) -> Array:
    """Distances [T, 4, 3]: the directions at their scale, then Newton steps on the three equations."""
    with np.errstate(all="ignore"):
        lengths = directions * np.sign(directions.sum(-1, keepdims=True))
        made = np.einsum("tsi,tkij,tsj->ts", lengths, quadrics, lengths)
        lengths = lengths * np.sqrt(squares.sum(-1)[:, None] / made)[..., None]
        for _ in range(_POLISH_STEPS):
            gradient = np.einsum("tkij,tsj->tski", quadrics, lengths)
            residual = np.einsum("tski,tsi->tsk", gradient, lengths) - squares[:, None]
            step = np.linalg.pinv(np.nan_to_num(2 * gradient, posinf=0, neginf=0)) @ residual[..., None]
            lengths = lengths - step[..., 0]
    return lengths


def _valid(distances: Array, quadrics: Array, squares: Array) -> NDArray[np.bool_]:
    with np.errstate(all="ignore"):
        made = np.einsum("tsi,tkij,tsj->tsk", distances, quadrics, distances)
        solved = np.abs(made - squares[:, None]).max(-1) < 1e-6 * squares.max(-1)[:, None]
        return solved & (distances > 0).all(-1)


def rigid_motion(points: Array, seen: Array) -> Array:
    """[S, 4, 4] that takes the triangle `points` [S, 3, 3] to the congruent triangle `seen`."""
    rotation = _triad(seen) @ _triad(points).transpose(0, 2, 1)
    motion = np.zeros((len(points), 4, 4))
    motion[:, :3, :3] = rotation
    motion[:, :3, 3] = seen.mean(1) - np.einsum("sij,sj->si", rotation, points.mean(1))
    motion[:, 3, 3] = 1
    return motion


def _triad(triangle: Array) -> Array:
    """Orthonormal axes [S, 3, 3] (columns) of a triangle: along its first side, across it, and its normal."""
    along, side = triangle[:, 1] - triangle[:, 0], triangle[:, 2] - triangle[:, 0]
    normal = np.cross(along, side)
    axes = np.stack([along, np.cross(normal, along), normal], axis=-1)
    return axes / np.linalg.norm(axes, axis=1, keepdims=True)
