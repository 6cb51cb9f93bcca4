"""Integrals of the trilinearly interpolated attenuation, sixteen rays at a time, with their derivatives.

The midpoint rule over equal parts of what lies of each ray within the volume and its rim, at the very samples of the
torch backend. The voxels are whole numbers of 16 bits, with a rim of zeros (see rimmed.py): two neighbours come in one
read, and half as much memory has to be gone through.

With the ends a, b of the part inside, lambda from 0 to 1 between them, the sum over samples gives the derivatives by a
(with 1 - lambda) and by b (with lambda); the ends follow s and t along the ray and on the plane that cuts it.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from DiffDRRCore.rendering.backends.cpu.rays import clipped, length_of, on_grid
from DiffDRRCore.rendering.backends.cpu.simd import (
    LANES,
    any_of,
    as_floats,
    gather,
    gather_pair,
    int_maximum,
    int_minimum,
    load,
    maximum,
    splat,
    store,
    truncated,
)

BRICK = 8  # voxels a side
RIM = 3  # voxels more along an axis: one before the first, and two after the last for samples on the very edge
_BRICK_SHIFT = np.int32(3)
_F, _I = np.float32, np.int32
# Rows of a packet's scratch memory, sixteen numbers each.
_X, _Y, _Z, _DX, _DY, _DZ = range(0, 6 * LANES, LANES)
_SUM, _GX, _GY, _GZ, _GX_B, _GY_B, _GZ_B = range(6 * LANES, 13 * LANES, LANES)
_ROWS = 13


@njit(nogil=True, cache=True, error_model="numpy")
def trilinear(voxels, unit, bricks, matrix, size, parts, chunk, s, t, first, last, integral, by_source, by_target):
    """Integrals of the rays first .. last - 1 into `integral` [N], derivatives into the [N, 3] unless these are empty.

    voxels: flat uint16 [K + 3, J + 3, I + 3], in units of `unit` (1/mm).  bricks: flat int32, 0 where a brick and its
    neighbours are empty.  matrix: [3, 4] world mm to (i, j, k).  size: (I, J, K) of the volume.  chunk: samples between
    two looks at the bricks.
    """
    floats = np.zeros(_ROWS * LANES, _F)
    derivatives = by_source.shape[0] > 0
    for ray in range(first, last, LANES):
        count = min(LANES, last - ray)
        for lane in range(LANES):
            n = ray + min(lane, count - 1)
            _prepare(matrix, size, s[n], t[n], lane, floats)
        if derivatives:
            _march_with_derivatives(voxels, bricks, size, parts, chunk, floats)
        else:
            _march(voxels, bricks, size, parts, chunk, floats)
        for lane in range(count):
            n = ray + lane
            if derivatives:
                integral[n] = _finish(matrix, size, unit, parts, s[n], t[n], lane, floats, by_source[n], by_target[n])
            else:
                near, far, _, _ = _clipped(matrix, size, s[n], t[n])
                integral[n] = unit * floats[_SUM + lane] * length_of(s[n], t[n]) * (far - near) / parts


@njit(inline="always")
def _clipped(matrix, size, s, t):
    start, extent = on_grid(matrix, s, t)
    return clipped(start, extent, (-1.0, -1.0, -1.0), (float(size[0]), float(size[1]), float(size[2])))


@njit(inline="always")
def _prepare(matrix, size, s, t, lane, floats):
    """Write the part of a ray that lies inside into its lane: where it begins, and how far it goes."""
    start, extent = on_grid(matrix, s, t)
    near, far, _, _ = clipped(start, extent, (-1.0, -1.0, -1.0), (float(size[0]), float(size[1]), float(size[2])))
    share = far - near
    for axis in range(3):
        begin, reach = start[axis] + near * extent[axis], share * extent[axis]
        inside = share > 0 and -2 < begin < size[axis] + 1 and abs(reach) < size[axis] + 2  # no for NaN, too
        floats[_X + axis * LANES + lane] = begin if inside else 0
        floats[_DX + axis * LANES + lane] = reach if inside else 0


@njit(inline="always")
def _brick(x, count):
    """Which brick holds x, along one axis."""
    brick = truncated(x + splat(_F(1))) >> splat(_BRICK_SHIFT)
    return int_minimum(int_maximum(brick, splat(_I(0))), splat(_I(count - 1)))


@njit(inline="always")
def _occupied(bricks, size, x, y, z):
    """Whether any of the sixteen rays may meet matter within half a chunk."""
    across, down = brick_count(size[0]), brick_count(size[1])
    index = (_brick(z, brick_count(size[2])) * splat(_I(down)) + _brick(y, down)) * splat(_I(across)) + _brick(
        x, across
    )
    return any_of(gather(bricks, index) != splat(_I(0)))


@njit(inline="always")
def brick_count(size):
    """Bricks along an axis of `size` voxels and the rim."""
    return ((size + 1) >> 3) + 1


@njit(inline="always")
def _cell(x):
    """(voxel before x, the part of the way to the next one) along one axis, in a volume with a rim of one voxel."""
    inner = maximum(x + splat(_F(1)), splat(_F(0)))
    voxel = truncated(inner)
    return voxel, inner - as_floats(voxel)


@njit(inline="always")
def _between(a, b, share):
    return a + share * (b - a)


@njit(inline="always")
def _rows(voxels, wide, deep, i, j, k):
    """The four pairs along i around a sample: at (j, k), (j + 1, k), (j, k + 1), (j + 1, k + 1)."""
    place = k * splat(_I(deep)) + j * splat(_I(wide)) + i
    p00, q00 = gather_pair(voxels, place)
    p10, q10 = gather_pair(voxels, place + splat(_I(wide)))
    p01, q01 = gather_pair(voxels, place + splat(_I(deep)))
    p11, q11 = gather_pair(voxels, place + splat(_I(deep + wide)))
    return p00, q00, p10, q10, p01, q01, p11, q11


@njit(inline="always")
def _march(voxels, bricks, size, parts, chunk, floats):
    """The sum of the samples of sixteen rays."""
    x, y, z = load(floats, _X), load(floats, _Y), load(floats, _Z)
    dx, dy, dz = load(floats, _DX), load(floats, _DY), load(floats, _DZ)
    wide, deep = size[0] + RIM, (size[0] + RIM) * (size[1] + RIM)
    total = splat(_F(0))
    for begin in range(0, parts, chunk):
        end = min(begin + chunk, parts)
        middle = splat(_F((begin + end) * 0.5 / parts))
        if not _occupied(bricks, size, x + middle * dx, y + middle * dy, z + middle * dz):
            continue
        for n in range(begin, end):
            share = splat(_F((n + 0.5) / parts))
            i, part_i = _cell(x + share * dx)
            j, part_j = _cell(y + share * dy)
            k, part_k = _cell(z + share * dz)
            p00, q00, p10, q10, p01, q01, p11, q11 = _rows(voxels, wide, deep, i, j, k)
            near = _between(_between(p00, q00, part_i), _between(p10, q10, part_i), part_j)
            far = _between(_between(p01, q01, part_i), _between(p11, q11, part_i), part_j)
            total = total + _between(near, far, part_k)
    store(floats, _SUM, total)


@njit(inline="always")
def _march_with_derivatives(voxels, bricks, size, parts, chunk, floats):
    """The sums of the samples of sixteen rays, of their gradients, and of lambda times these."""
    x, y, z = load(floats, _X), load(floats, _Y), load(floats, _Z)
    dx, dy, dz = load(floats, _DX), load(floats, _DY), load(floats, _DZ)
    wide, deep = size[0] + RIM, (size[0] + RIM) * (size[1] + RIM)
    zero = splat(_F(0))
    total, gx, gy, gz, gx_b, gy_b, gz_b = zero, zero, zero, zero, zero, zero, zero
    for begin in range(0, parts, chunk):
        end = min(begin + chunk, parts)
        middle = splat(_F((begin + end) * 0.5 / parts))
        if not _occupied(bricks, size, x + middle * dx, y + middle * dy, z + middle * dz):
            continue
        for n in range(begin, end):
            share = splat(_F((n + 0.5) / parts))
            i, part_i = _cell(x + share * dx)
            j, part_j = _cell(y + share * dy)
            k, part_k = _cell(z + share * dz)
            p00, q00, p10, q10, p01, q01, p11, q11 = _rows(voxels, wide, deep, i, j, k)
            x00, x10, x01, x11 = q00 - p00, q10 - p10, q01 - p01, q11 - p11
            r00, r10, r01, r11 = p00 + part_i * x00, p10 + part_i * x10, p01 + part_i * x01, p11 + part_i * x11
            near, far = _between(r00, r10, part_j), _between(r01, r11, part_j)
            slope = far - near
            total = total + (near + part_k * slope)
            gz, gz_b = gz + slope, gz_b + share * slope
            slope = _between(r10 - r00, r11 - r01, part_k)
            gy, gy_b = gy + slope, gy_b + share * slope
            slope = _between(_between(x00, x10, part_j), _between(x01, x11, part_j), part_k)
            gx, gx_b = gx + slope, gx_b + share * slope
    store(floats, _SUM, total)
    store(floats, _GX, gx)
    store(floats, _GY, gy)
    store(floats, _GZ, gz)
    store(floats, _GX_B, gx_b)
    store(floats, _GY_B, gy_b)
    store(floats, _GZ_B, gz_b)


@njit(inline="always")
def _finish(matrix, size, unit, parts, s, t, lane, floats, by_source, by_target):
    """Write a ray's derivatives by world coordinates; its integral."""
    total = unit * floats[_SUM + lane]
    by_b = (unit * floats[_GX_B + lane], unit * floats[_GY_B + lane], unit * floats[_GZ_B + lane])
    by_a = (
        unit * floats[_GX + lane] - by_b[0],
        unit * floats[_GY + lane] - by_b[1],
        unit * floats[_GZ + lane] - by_b[2],
    )
    return spread_to_ends(matrix, size, parts, s, t, total, by_a, by_b, by_source, by_target)


@njit(inline="always")
def spread_to_ends(matrix, size, parts, s, t, total, by_a, by_b, by_source, by_target):
    """Write the derivatives by s and t (world), given a ray's sum of samples and its derivatives by a and b (voxels).

    a = s + near d, b = s + far d, d = t - s; near and far are alpha = (plane - s_axis) / d_axis where a plane cuts the
    ray, whose derivative is (alpha - 1) / d_axis by s_axis and -alpha / d_axis by t_axis.
    """
    start, d = on_grid(matrix, s, t)
    near, far, first, last = clipped(start, d, (-1.0, -1.0, -1.0), (float(size[0]), float(size[1]), float(size[2])))
    length = length_of(s, t)
    weight = length / parts
    inside = far - near
    along_a = by_a[0] * d[0] + by_a[1] * d[1] + by_a[2] * d[2]
    along_b = by_b[0] * d[0] + by_b[1] * d[1] + by_b[2] * d[2]
    for axis in range(3):
        direction = (t[axis] - s[axis]) / length if length > 0 else 0.0
        by_length = total * inside / parts * direction
        by_source[axis], by_target[axis] = -by_length, by_length
    for row in range(3):
        of_s = inside * ((1 - near) * by_a[row] + (1 - far) * by_b[row])
        of_t = inside * (near * by_a[row] + far * by_b[row])
        if row == first:
            slope = (inside * along_a - total) / d[row]
            of_s, of_t = of_s + (near - 1) * slope, of_t - near * slope
        if row == last:
            slope = (inside * along_b + total) / d[row]
            of_s, of_t = of_s + (far - 1) * slope, of_t - far * slope
        for axis in range(3):
            by_source[axis] += weight * of_s * matrix[row, axis]
            by_target[axis] += weight * of_t * matrix[row, axis]
    return total * weight * inside
