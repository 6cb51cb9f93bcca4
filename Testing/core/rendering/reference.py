"""Slow float64 references in NumPy and SciPy, that share no code with the renderer: one ray at a time."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from scipy.ndimage import map_coordinates

from DiffDRRCore import Volume


def double(volume_array, ijk_to_ras, labels=None, **more) -> Volume:
    """A float64 volume of attenuation [K, J, I]."""
    mu = torch.as_tensor(np.asarray(volume_array), dtype=torch.float64)
    return Volume.from_attenuation(mu, np.asarray(ijk_to_ras, dtype=float), labels, **more)


def grid(spacing, shape, center=(0.0, 0.0, 0.0)) -> np.ndarray:
    """ijk_to_ras [4, 4] along the world axes, with the middle of a grid [K, J, I] = `shape` at `center`."""
    affine = np.diag([*np.broadcast_to(spacing, 3), 1.0]).astype(float)
    affine[:3, 3] = np.asarray(center) - affine[:3, :3] @ ((np.array(shape[::-1]) - 1) / 2)
    return affine


def siddon(mu: np.ndarray, ijk_to_ras: np.ndarray, s, t) -> float:
    """Exact integral over voxels of constant value along the segment s -> t (world mm)."""
    start, end = _to_ijk(ijk_to_ras, s), _to_ijk(ijk_to_ras, t)
    parameters = _breaks(start, end, [np.arange(size + 1) - 0.5 for size in mu.shape[::-1]])
    total = 0.0
    for a, b in pairwise(parameters):
        i, j, k = np.floor(start + (a + b) / 2 * (end - start) + 0.5).astype(int)
        if 0 <= k < mu.shape[0] and 0 <= j < mu.shape[1] and 0 <= i < mu.shape[2]:
            total += (b - a) * mu[k, j, i]
    return total * float(np.linalg.norm(np.subtract(t, s)))


def trilinear(mu: np.ndarray, ijk_to_ras: np.ndarray, s, t) -> float:
    """Exact integral of the trilinear interpolation, which falls to zero one voxel outside the outermost centres.

    Between planes of integer coordinates the field along a ray is a cubic, which two Gauss points integrate exactly.
    """
    start, end = _to_ijk(ijk_to_ras, s), _to_ijk(ijk_to_ras, t)
    parameters = _breaks(start, end, [np.arange(-1, size + 1) for size in mu.shape[::-1]])
    a, b = parameters[:-1], parameters[1:]
    total = 0.0
    for node in (0.5 - np.sqrt(1 / 12), 0.5 + np.sqrt(1 / 12)):
        points = start[:, None] + (a + node * (b - a)) * (end - start)[:, None]
        values = map_coordinates(mu, points[::-1], order=1, mode="grid-constant", cval=0.0, prefilter=False)
        total += float(((b - a) / 2 * values).sum())
    return total * float(np.linalg.norm(np.subtract(t, s)))


def _to_ijk(ijk_to_ras: np.ndarray, point) -> np.ndarray:
    return np.linalg.solve(ijk_to_ras, np.append(point, 1.0))[:3]


def _breaks(start: np.ndarray, end: np.ndarray, planes: list[np.ndarray]) -> np.ndarray:
    """Sorted parameters in [0, 1] where a segment crosses planes, the ends included."""
    found = [np.array([0.0, 1.0])]
    for axis in range(3):
        if end[axis] != start[axis]:
            found.append((planes[axis] - start[axis]) / (end[axis] - start[axis]))
    return np.unique(np.clip(np.concatenate(found), 0.0, 1.0))
