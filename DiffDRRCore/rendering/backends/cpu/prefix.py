"""Running sums of the attenuation along one axis: what a ray passes between two planes is then one difference.

A ray crosses few planes across its main direction and many along it. With the sums S[m] = v[0] + ... + v[m - 1] of a
column of voxels, all that lies in that column between two crossings is S(x1) - S(x0), with S linear inside a voxel.
That is exact, and visits a voxel only where the ray changes columns (after Crow, SIGGRAPH 1984, in one dimension).

The sums are integers: attenuation in units of its maximum / 2^b, with as many bits b as a whole column leaves free (22
for 512 voxels). Their differences have no rounding error, however far along a column they lie.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from DiffDRRCore.rendering.backends.cpu.threads import in_parallel

COLUMNS = 4  # neighbouring columns that share a cache line: oblique rays change columns at each step
_SPARSE = 0.6  # of the stretches of columns occupied
_AXES = ((0, 1, 2), (1, 0, 2), (2, 0, 1))  # (along, across, across) for each axis along which sums run


class Box(NamedTuple):
    """The voxels that attenuate: [first, last) along i, j, k."""

    first: tuple[int, int, int]
    last: tuple[int, int, int]


class Prefix(NamedTuple):
    """Running sums along one axis x, with the other two called y and z.

    sums        int32, flat: at [z, y // 4, m, y % 4] the sum of the voxels before m, m = 0 .. nx
    occupied    int32, flat: at [z, y // 4] a bit for each 2^bits voxels of the four columns that are not all empty
    bits        see there
    sparse      whether so much is empty that looking at `occupied` first saves time
    matrix      [3, 4] float64: world mm to (x, y, z), where voxel n reaches from n to n + 1
    size        (nx, ny, nz)
    unit        attenuation (1/mm) of one
    """

    sums: np.ndarray
    occupied: np.ndarray
    bits: int
    sparse: bool
    matrix: np.ndarray
    size: tuple[int, int, int]
    unit: float


def box_of_matter(attenuation: np.ndarray) -> Box | None:
    """The smallest box of voxels [K, J, I] that holds all that attenuate; None where nothing does."""
    slices = np.empty((attenuation.shape[0], 5), np.int32)
    in_parallel(lambda first, last: _extents(attenuation, first, last, slices), attenuation.shape[0], 1)
    filled = np.flatnonzero(slices[:, 0])
    if len(filled) == 0:
        return None
    low, high = slices[filled, 1::2].min(0), slices[filled, 2::2].max(0)
    return Box((int(low[0]), int(low[1]), int(filled[0])), (int(high[0]) + 1, int(high[1]) + 1, int(filled[-1]) + 1))


def make_prefix(attenuation: np.ndarray, ras_to_ijk: np.ndarray, box: Box, axis: int) -> Prefix:
    """The sums along i, j or k (axis 0, 1, 2) of the voxels [K, J, I] in a box.

    Raises MemoryError where there are more sums than 32 bits can number.
    """
    order = list(_AXES[axis])
    first = np.array(box.first)
    size = tuple(int(n) for n in (np.array(box.last) - first)[order])
    inside = attenuation[tuple(slice(a, b) for a, b in zip(box.first[::-1], box.last[::-1], strict=True))]
    voxels = inside.transpose([2 - order[2], 2 - order[1], 2 - order[0]])
    largest = float(inside.max())
    levels = 2 ** (31 - (size[0] + 1).bit_length()) - 1
    blocks = -(-size[1] // COLUMNS)
    shape = (size[2], blocks, size[0] + 1, COLUMNS)
    if np.prod(shape, dtype=np.int64) >= 2**31:
        raise MemoryError
    sums, occupied = np.empty(shape, np.int32), np.empty(shape[:2], np.int32)
    scale, bits = levels / largest, max(0, (size[0] - 1).bit_length() - 5)
    in_parallel(lambda a, b: _sum_columns(voxels, scale, bits, a, b, sums, occupied), size[2], 1)
    share = np.unpackbits(occupied.view(np.uint8)).sum() / (occupied.size * (1 + ((size[0] - 1) >> bits)))
    matrix = ras_to_ijk[:3].copy()
    matrix[:, 3] += 0.5 - first
    sparse = bool(share < _SPARSE)
    return Prefix(
        sums.reshape(-1),
        occupied.reshape(-1),
        bits,
        sparse,
        np.ascontiguousarray(matrix[order]),
        size,
        largest / levels,
    )


@njit(nogil=True, cache=True)
def _extents(attenuation, first, last, slices):
    """For each slice: whether anything attenuates, and the first and last such i and j."""
    for k in range(first, last):
        low_i, high_i, low_j, high_j = attenuation.shape[2], -1, attenuation.shape[1], -1
        for j in range(attenuation.shape[1]):
            row = attenuation[k, j]
            i = 0
            while i < row.size and not row[i] > 0:
                i += 1
            if i == row.size:
                continue
            end = row.size - 1
            while not row[end] > 0:
                end -= 1
            low_i, high_i = min(low_i, i), max(high_i, end)
            low_j, high_j = min(low_j, j), j
        slices[k, 0] = high_j >= 0
        slices[k, 1], slices[k, 2], slices[k, 3], slices[k, 4] = low_i, high_i, low_j, high_j


@njit(nogil=True, cache=True)
def _sum_columns(voxels, scale, bits, first, last, sums, occupied):
    """Fill sums [Z, Y / 4, X + 1, 4] and occupied [Z, Y / 4] from voxels [Z, Y, X]; what is beyond Y is empty."""
    totals = np.empty(COLUMNS, np.int32)
    for z in range(first, last):
        for block in range(sums.shape[1]):
            begin = block * COLUMNS
            count = min(COLUMNS, voxels.shape[1] - begin)
            totals[:] = 0
            sums[z, block, 0] = 0
            filled = 0
            for x in range(voxels.shape[2]):
                for lane in range(count):
                    value = np.int32(voxels[z, begin + lane, x] * scale + 0.5)
                    totals[lane] += value
                    filled |= (value > 0) << (x >> bits)
                for lane in range(COLUMNS):
                    sums[z, block, x + 1, lane] = totals[lane]
            occupied[z, block] = np.uint32(filled)
