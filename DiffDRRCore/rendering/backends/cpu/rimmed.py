"""The volume as the trilinear kernel reads it: 16 bits a voxel, with a rim of zeros."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numba import njit

from DiffDRRCore.rendering.backends.cpu.threads import in_parallel
from DiffDRRCore.rendering.backends.cpu.trilinear import RIM

_LEVELS = 2**16 - 2
_PIECE = 2**21  # voxels: some fifteen milliseconds on one core


def rimmed(attenuation: np.ndarray) -> tuple[np.ndarray, float]:
    """(voxels, unit): uint16, flat, of shape [K + 3, J + 3, I + 3] with voxel (0, 0, 0) at (1, 1, 1); 1/mm of one.

    Zero stays zero. Other voxels are rounded up or down by chance, with odds that leave their mean as it is: in an even
    region, plain rounding would err the same way everywhere, and a ray adds hundreds of such errors.
    """
    *_, result = rimming(attenuation)
    return result


def rimming(attenuation: np.ndarray) -> Iterator[tuple[np.ndarray, float] | None]:
    """What `rimmed` gives, as the last thing; None between the pieces before."""
    voxels = np.zeros([size + RIM for size in attenuation.shape], np.uint16)
    largest = float(attenuation.max())
    yield
    deep = max(1, _PIECE // max(1, attenuation[:1].size))
    for begin in range(0, attenuation.shape[0] if largest > 0 else 0, deep):
        _fill_slices(attenuation, _LEVELS / largest, begin, min(begin + deep, attenuation.shape[0]), voxels)
        yield
    yield voxels.reshape(-1), largest / _LEVELS


def _fill_slices(attenuation, scale: float, begin: int, end: int, voxels: np.ndarray) -> None:
    in_parallel(lambda a, b: _fill(attenuation, scale, begin + a, begin + b, voxels), end - begin, 1)


@njit(inline="always")
def _scrambled(number):
    """32 bits that have nothing to do with those of the next number (the finalizer of MurmurHash3)."""
    bits = np.uint32(number)
    bits = np.uint32((bits ^ (bits >> np.uint32(16))) * np.uint32(0x85EBCA6B))
    bits = np.uint32((bits ^ (bits >> np.uint32(13))) * np.uint32(0xC2B2AE35))
    return np.uint32(bits ^ (bits >> np.uint32(16)))


@njit(nogil=True, cache=True)
def _fill(attenuation, scale, first, last, voxels):
    for k in range(first, last):
        for j in range(attenuation.shape[1]):
            state = _scrambled(k * attenuation.shape[1] + j)
            for i in range(attenuation.shape[2]):
                state = np.uint32(state * 1664525 + 1013904223)  # Numerical Recipes' generator
                chance = (state >> np.uint32(8)) * np.float32(2**-24)
                voxels[k + 1, j + 1, i + 1] = np.uint16(attenuation[k, j, i] * scale + chance)
