"""Which parts of a volume hold anything: bricks of 8 x 8 x 8 voxels."""

from __future__ import annotations

import numpy as np
from numba import njit

from DiffDRRCore.rendering.backends.cpu.threads import in_parallel
from DiffDRRCore.rendering.backends.cpu.trilinear import BRICK, brick_count


def occupied_bricks(attenuation: np.ndarray) -> np.ndarray:
    """int32, flat, [k, j, i] of bricks: 1 where the brick or one of its 26 neighbours attenuates (3D, [K, J, I]).

    Brick n of an axis holds the voxels 8 n - 1 .. 8 n + 6, so that the rim of the first voxel is in brick 0.
    """
    shape = tuple(brick_count(size) for size in attenuation.shape)
    filled = np.zeros(shape, np.int32)
    in_parallel(lambda first, last: _fill(attenuation, first, last, filled), shape[0], 1)
    for axis in range(3):
        filled = _spread(filled, axis)
    return np.ascontiguousarray(filled).reshape(-1)


def _spread(filled: np.ndarray, axis: int) -> np.ndarray:
    """Each brick also counts what its two neighbours along an axis hold."""
    padded = np.pad(filled, [(1, 1) if n == axis else (0, 0) for n in range(3)])
    count = filled.shape[axis]
    neighbours = [np.take(padded, range(shift, shift + count), axis) for shift in range(3)]
    return np.maximum.reduce(neighbours)


@njit(nogil=True, cache=True)
def _fill(attenuation, first, last, filled):
    for brick in range(first, last):
        for k in range(max(BRICK * brick - 1, 0), min(BRICK * brick + BRICK - 1, attenuation.shape[0])):
            for j in range(attenuation.shape[1]):
                for i in range(attenuation.shape[2]):
                    if attenuation[k, j, i] > 0:
                        filled[brick, (j + 1) // BRICK, (i + 1) // BRICK] = 1
