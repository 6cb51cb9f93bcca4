"""Few energies in place of many: Gauss quadrature of a spectrum."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def compress(
    points: np.ndarray, weights: np.ndarray, count: int, breaks: Sequence[float] = ()
) -> tuple[np.ndarray, np.ndarray]:
    """About `count` points and weights whose sums over smooth functions are those of the given ones.

    Sums over polynomials are exact up to degree 2 n - 1 with n points, so functions must be smooth; where they jump (at
    absorption edges), `breaks` part the range, and each part gets points by the root of its weight, one at least.
    (G. H. Golub and J. H. Welsch, "Calculation of Gauss quadrature rules", Mathematics of Computation 23, 1969.)
    """
    present = weights > 0
    points, weights = points[present], weights[present]
    part = np.searchsorted(np.unique(np.asarray(breaks, float)), points, side="right")
    used = [part == index for index in np.unique(part)]
    shares = np.sqrt([weights[one].sum() for one in used])
    counts = np.maximum(np.floor((count - len(used)) * shares / shares.sum()).astype(int) + 1, 1)
    rules = [_gauss(points[one], weights[one], each) for one, each in zip(used, counts, strict=True)]
    return np.concatenate([rule[0] for rule in rules]), np.concatenate([rule[1] for rule in rules])


def _gauss(points: np.ndarray, weights: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Gauss's rule of the discrete measure: eigenvalues of the matrix that Lanczos's iteration makes of it."""
    if len(points) <= count:
        return points, weights
    basis = np.sqrt(weights / weights.sum())[:, None]
    for _ in range(count - 1):
        vector = points * basis[:, -1]
        for _ in range(2):  # twice, or the basis loses its orthogonality
            vector = vector - basis @ (basis.T @ vector)
        basis = np.column_stack([basis, vector / np.linalg.norm(vector)])
    nodes, vectors = np.linalg.eigh(basis.T @ (points[:, None] * basis))
    return nodes, vectors[0] ** 2 * weights.sum()
