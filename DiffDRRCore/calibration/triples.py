"""Poses from three points, very many triples at a time: scaled orthography, then Newton's method for perspective."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from DiffDRRCore.registration.landmarks.p3p import rigid_motion

Array = NDArray[np.float64]
_PAIRS = ((0, 1), (0, 2), (1, 2))
_STEPS = 6
_SOLVED = 1e-4  # of the squared distances
_CHUNK = 50_000


def poses_of_triples(points: Array, plane: Array) -> tuple[Array, NDArray[np.int64]]:
    """world_to_camera [S, 4, 4] under which triples [T, 3, 3] (mm) are seen at three points; and each one's triple [S].

    plane [3, 2]: the points seen, as (x / z, y / z). At most two poses a triple, those near to scaled orthography, as a
    phantom is small against its distance from the source.
    """
    parts = [_some(points[k : k + _CHUNK], plane, k) for k in range(0, len(points), _CHUNK)]
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def _some(points: Array, plane: Array, first: int) -> tuple[Array, NDArray[np.int64]]:
    depths = _orthographic(points, plane)
    rays = np.concatenate([plane, np.ones((3, 1))], axis=1)
    squares = np.stack([((points[:, i] - points[:, j]) ** 2).sum(-1) for i, j in _PAIRS], axis=-1)[:, None]
    with np.errstate(all="ignore"):
        depths = _perspective(depths, rays, squares)
        miss = np.abs(_squares(depths, rays) - squares).max(-1) / squares.max(-1)
        triple, which = np.nonzero((miss < _SOLVED) & (depths > 0).all(-1))
    seen = depths[triple, which, :, None] * rays
    return rigid_motion(points[triple], seen), triple + first


def _orthographic(points: Array, plane: Array) -> Array:
    """Depths [T, 2, 3] in mm; NaN for triples on a line."""
    a, b = points[:, 1] - points[:, 0], points[:, 2] - points[:, 0]
    p, q = plane[1] - plane[0], plane[2] - plane[0]
    aa, bb, ab = (a * a).sum(-1), (b * b).sum(-1), (a * b).sum(-1)
    pp, qq, pq = p @ p, q @ q, p @ q
    # (s aa - pp) (s bb - qq) = (s ab - pq)^2 in s = 1 / depth^2, the larger root
    two, one, none = aa * bb - ab**2, -(aa * qq + bb * pp - 2 * ab * pq), pp * qq - pq**2
    with np.errstate(all="ignore"):
        s = (-one + np.sqrt(np.maximum(one**2 - 4 * two * none, 0))) / (2 * two)
        first = np.sqrt(np.maximum(s * aa - pp, 0))
        second = np.sqrt(np.maximum(s * bb - qq, 0)) * np.sign(s * ab - pq)
        relative = np.stack([np.zeros_like(first), first, second], axis=-1)
        relative = relative - relative.mean(-1, keepdims=True)
        return np.stack([1 + relative, 1 - relative], axis=1) / np.sqrt(s)[:, None, None]


def _squares(depths: Array, rays: Array) -> Array:
    """[..., 3] squared distances of the three pairs."""
    cosines = rays @ rays.T
    parts = [
        depths[..., i] ** 2 * cosines[i, i]
        + depths[..., j] ** 2 * cosines[j, j]
        - 2 * depths[..., i] * depths[..., j] * cosines[i, j]
        for i, j in _PAIRS
    ]
    return np.stack(parts, axis=-1)


def _perspective(depths: Array, rays: Array, squares: Array) -> Array:
    """Newton's method for the depths, by Cramer's rule."""
    c = rays @ rays.T
    for _ in range(_STEPS):
        x, y, z = np.moveaxis(depths, -1, 0)
        e, f, g = np.moveaxis((_squares(depths, rays) - squares) / 2, -1, 0)
        # rows of the Jacobian: (m1, m2, 0), (m3, 0, m4), (0, m5, m6)
        m1, m2 = x * c[0, 0] - y * c[0, 1], y * c[1, 1] - x * c[0, 1]
        m3, m4 = x * c[0, 0] - z * c[0, 2], z * c[2, 2] - x * c[0, 2]
        m5, m6 = y * c[1, 1] - z * c[1, 2], z * c[2, 2] - y * c[1, 2]
        det = -m1 * m4 * m5 - m2 * m3 * m6
        dx = (-e * m4 * m5 - m2 * f * m6 + m2 * m4 * g) / det
        dy = (m1 * (f * m6 - m4 * g) - e * m3 * m6) / det
        dz = (-m1 * f * m5 - m2 * m3 * g + e * m3 * m5) / det
        step = np.stack([dx, dy, dz], axis=-1)
        limit = 0.2 * np.abs(depths)
        depths = depths - np.clip(step, -limit, limit)
    return depths
