"""Integrals of the trilinearly interpolated attenuation, sixteen rays at a time, with their derivatives.

The midpoint rule over equal parts of what lies of each ray within the volume and its rim, at the very samples of the
torch backend. A voxel's share of a sample is a product of hats 1 - |x - n|; next to the border one of the two voxels
of a pair lies outside and the hats of a pair that is moved inside give the same sum.

With the ends a, b of the part inside, lambda from 0 to 1 between them, the sum over samples gives the derivatives by a
(with 1 - lambda) and by b (with lambda); the ends follow s and t along the ray and on the plane that cuts it.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from DiffDRRCore.rendering.backends.cpu.rays import clipped, length_of, on_grid
from DiffDRRCore.rendering.backends.cpu.simd import (
    LANES,
    absolute,
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
    where_float,
)

BRICK = 8  # voxels a side
_BRICK_SHIFT = np.int32(3)
_F, _I = np.float32, np.int32
# Rows of a packet's scratch memory, sixteen numbers each.
_X, _Y, _Z, _DX, _DY, _DZ = range(0, 6 * LANES, LANES)
_SUM, _GX, _GY, _GZ, _GX_B, _GY_B, _GZ_B = range(6 * LANES, 13 * LANES, LANES)
_ROWS = 13


@njit(nogil=True, cache=True, error_model="numpy")
def trilinear(voxels, bricks, matrix, size, parts, chunk, s, t, first, last, integral, by_source, by_target):
    """Integrals of the rays first .. last - 1 into `integral` [N], derivatives into the [N, 3] unless these are empty.

    voxels: flat float32 [K, J, I], each axis at least 2.  bricks: flat int32, 0 where a brick and its neighbours are
    empty.  matrix: [3, 4] world mm to (i, j, k).  size: (I, J, K) of the volume.  chunk: samples between two looks at
    the bricks.
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
                integral[n] = _finish(matrix, size, parts, s[n], t[n], lane, floats, by_source[n], by_target[n])
            else:
                near, far, _, _ = _clipped(matrix, size, s[n], t[n])
                integral[n] = floats[_SUM + lane] * length_of(s[n], t[n]) * (far - near) / parts


@njit(inline="always")
def _clipped(matrix, size, s, t):
    start, extent = on_grid(matrix, s, t)
    return clipped(start, extent, (-1.0, -1.0, -1.0), (float(size[0]), float(size[1]), float(size[2])))


@njit(inline="always")
def _prepare(matrix, size, s, t, lane, floats):
    """Write the part of a ray that lies inside into its lane: where it begins, and how far it goes."""
    start, extent = on_grid(matrix, s, t)
    near, far, _, _ = clipped(start, extent, (-1.0, -1.0, -1.0), (float(size[0]), float(size[1]), float(size[2])))
    floats[_X + lane], floats[_DX + lane] = start[0] + near * extent[0], (far - near) * extent[0]
    floats[_Y + lane], floats[_DY + lane] = start[1] + near * extent[1], (far - near) * extent[1]
    floats[_Z + lane], floats[_DZ + lane] = start[2] + near * extent[2], (far - near) * extent[2]


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
def _hats(x, size):
    """(first voxel of the pair, share of the first, share of the second) along one axis."""
    zero, one = splat(_F(0)), splat(_F(1))
    voxel = int_minimum(int_maximum(truncated(x), splat(_I(0))), splat(_I(max(size - 2, 0))))
    beyond = x - as_floats(voxel)
    return voxel, maximum(one - absolute(beyond), zero), maximum(one - absolute(beyond - one), zero), beyond


@njit(inline="always")
def _slopes(beyond, one_share, other_share):
    """The derivatives of the two shares."""
    zero, one, minus = splat(_F(0)), splat(_F(1)), splat(_F(-1))
    return (
        where_float(zero < one_share, where_float(beyond < zero, one, minus), zero),
        where_float(zero < other_share, where_float(beyond < one, one, minus), zero),
    )


@njit(inline="always")
def _rows(voxels, size, i, j, k):
    """The four pairs along i that surround a sample: at (j, k), (j + 1, k), (j, k + 1), (j + 1, k + 1)."""
    wide = max(size[0], 2)
    deep = wide * max(size[1], 2)
    place = (k * splat(_I(deep // wide)) + j) * splat(_I(wide)) + i
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
    total = splat(_F(0))
    for begin in range(0, parts, chunk):
        end = min(begin + chunk, parts)
        middle = splat(_F((begin + end) * 0.5 / parts))
        if not _occupied(bricks, size, x + middle * dx, y + middle * dy, z + middle * dz):
            continue
        for n in range(begin, end):
            share = splat(_F((n + 0.5) / parts))
            i, i0, i1, _ = _hats(x + share * dx, size[0])
            j, j0, j1, _ = _hats(y + share * dy, size[1])
            k, k0, k1, _ = _hats(z + share * dz, size[2])
            p00, q00, p10, q10, p01, q01, p11, q11 = _rows(voxels, size, i, j, k)
            near = j0 * (i0 * p00 + i1 * q00) + j1 * (i0 * p10 + i1 * q10)
            far = j0 * (i0 * p01 + i1 * q01) + j1 * (i0 * p11 + i1 * q11)
            total = total + (k0 * near + k1 * far)
    store(floats, _SUM, total)


@njit(inline="always")
def _march_with_derivatives(voxels, bricks, size, parts, chunk, floats):
    """The sums of the samples of sixteen rays, of their gradients, and of lambda times these."""
    x, y, z = load(floats, _X), load(floats, _Y), load(floats, _Z)
    dx, dy, dz = load(floats, _DX), load(floats, _DY), load(floats, _DZ)
    zero = splat(_F(0))
    total, gx, gy, gz, gx_b, gy_b, gz_b = zero, zero, zero, zero, zero, zero, zero
    for begin in range(0, parts, chunk):
        end = min(begin + chunk, parts)
        middle = splat(_F((begin + end) * 0.5 / parts))
        if not _occupied(bricks, size, x + middle * dx, y + middle * dy, z + middle * dz):
            continue
        for n in range(begin, end):
            share = splat(_F((n + 0.5) / parts))
            i, i0, i1, beyond_i = _hats(x + share * dx, size[0])
            j, j0, j1, beyond_j = _hats(y + share * dy, size[1])
            k, k0, k1, beyond_k = _hats(z + share * dz, size[2])
            i0_x, i1_x = _slopes(beyond_i, i0, i1)
            j0_y, j1_y = _slopes(beyond_j, j0, j1)
            k0_z, k1_z = _slopes(beyond_k, k0, k1)
            p00, q00, p10, q10, p01, q01, p11, q11 = _rows(voxels, size, i, j, k)
            r00, r10, r01, r11 = i0 * p00 + i1 * q00, i0 * p10 + i1 * q10, i0 * p01 + i1 * q01, i0 * p11 + i1 * q11
            near, far = j0 * r00 + j1 * r10, j0 * r01 + j1 * r11
            total = total + (k0 * near + k1 * far)
            near_x = j0 * (i0_x * p00 + i1_x * q00) + j1 * (i0_x * p10 + i1_x * q10)
            far_x = j0 * (i0_x * p01 + i1_x * q01) + j1 * (i0_x * p11 + i1_x * q11)
            slope = k0 * near_x + k1 * far_x
            gx, gx_b = gx + slope, gx_b + share * slope
            slope = k0 * (j0_y * r00 + j1_y * r10) + k1 * (j0_y * r01 + j1_y * r11)
            gy, gy_b = gy + slope, gy_b + share * slope
            slope = k0_z * near + k1_z * far
            gz, gz_b = gz + slope, gz_b + share * slope
    store(floats, _SUM, total)
    store(floats, _GX, gx)
    store(floats, _GY, gy)
    store(floats, _GZ, gz)
    store(floats, _GX_B, gx_b)
    store(floats, _GY_B, gy_b)
    store(floats, _GZ_B, gz_b)


@njit(inline="always")
def _finish(matrix, size, parts, s, t, lane, floats, by_source, by_target):
    """Write a ray's derivatives by world coordinates; its integral."""
    total = floats[_SUM + lane]
    gradient = (floats[_GX + lane], floats[_GY + lane], floats[_GZ + lane])
    by_b = (floats[_GX_B + lane], floats[_GY_B + lane], floats[_GZ_B + lane])
    by_a = (gradient[0] - by_b[0], gradient[1] - by_b[1], gradient[2] - by_b[2])
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
