"""Exact integrals over voxels of constant attenuation (Siddon 1985), sixteen rays at a time, with their derivatives.

In each column of voxels along the ray's main axis x, a difference of running sums (see prefix.py) is all the ray
passes. Where it crosses a plane of y or z, it changes the column. Of J = integral of v d alpha along s + alpha (t - s):

  - by y of both ends: the sum over crossings of (v before - v after) times the derivative of the crossing's alpha,
    which is (alpha - 1) / d_y by s_y and -alpha / d_y by t_y; the same for z;
  - by x: longer rays see more, dJ/dt . d = v(t) - J and dJ/ds . d = J - v(s), which gives the third component.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from DiffDRRCore.rendering.backends.cpu.prefix import COLUMNS
from DiffDRRCore.rendering.backends.cpu.rays import PARALLEL, clipped, length_of, on_grid
from DiffDRRCore.rendering.backends.cpu.simd import (
    LANES,
    as_floats,
    gather,
    gather_where,
    int_maximum,
    int_minimum,
    load,
    minimum,
    product,
    splat,
    store,
    truncated,
    where_float,
    where_int,
)

_F, _I = np.float32, np.int32
_SHIFT, _MASK = _I(COLUMNS.bit_length() - 1), _I(COLUMNS - 1)
# Rows of a packet's scratch memory, sixteen numbers each.
_X, _DX, _Y_COUNT, _Z_COUNT, _Y_FIRST, _Y_GAP, _Z_FIRST, _Z_GAP = range(0, 8 * LANES, LANES)
_SUM, _JUMP_Y, _JUMP_Y_ALPHA, _JUMP_Z, _JUMP_Z_ALPHA, _V_FIRST, _V_LAST = range(8 * LANES, 15 * LANES, LANES)
_FLOAT_ROWS = 15
_Y, _Z_ROW, _Y_STEP, _Z_STEP = range(0, 4 * LANES, LANES)
_INT_ROWS = 4


@njit(nogil=True, cache=True, error_model="numpy")
def siddon(sums, occupied, bits, sparse, matrix, size, unit, s, t, first, last, integral, by_source, by_target):
    """Integrals of the rays first .. last - 1 into `integral` [N], derivatives into the [N, 3] unless these are empty.

    sums .. unit: a `Prefix`.  s, t: [N, 3] world mm.  The main axis of every ray should be x.
    """
    floats, ints = np.zeros(_FLOAT_ROWS * LANES, _F), np.zeros(_INT_ROWS * LANES, _I)
    derivatives = by_source.shape[0] > 0
    rows = -(-size[1] // COLUMNS)
    for ray in range(first, last, LANES):
        count = min(LANES, last - ray)
        steps = 0
        for lane in range(LANES):
            n = ray + min(lane, count - 1)
            steps = max(steps, _prepare(matrix, size, rows, s[n], t[n], lane, floats, ints))
        _march(sums, occupied, bits, sparse, size, steps, derivatives, floats, ints)
        for lane in range(count):
            n = ray + lane
            if derivatives:
                integral[n] = _finish(matrix, size, unit, s[n], t[n], lane, floats, by_source[n], by_target[n])
            else:
                extent = on_grid(matrix, s[n], t[n])[1][0]
                passed = floats[_SUM + lane]
                integral[n] = unit * passed / extent * length_of(s[n], t[n]) if passed != 0 else 0.0


@njit(inline="always")
def _crossings(start, end, extent, size):
    """(first voxel, crossings, first crossing, gap between crossings) along one axis; as fractions of the segment."""
    one = min(max(math.floor(start), 0), size - 1)
    other = min(max(math.floor(end), 0), size - 1)
    if one == other:
        return one, 0, 0.0, 0.0
    plane = one + 1 if extent > 0 else one
    return one, other - one, (plane - start) / extent, 1 / abs(extent)


@njit(inline="always")
def _prepare(matrix, size, rows, s, t, lane, floats, ints):
    """Write a ray's state into its lane; the number of planes of y and z that it crosses."""
    start, extent = on_grid(matrix, s, t)
    near, far, _, _ = clipped(start, extent, (0.0, 0.0, 0.0), (float(size[0]), float(size[1]), float(size[2])))
    share = far - near
    if share == 0:
        for row in range(_X, _SUM, LANES):
            floats[row + lane] = 0
        for row in range(_Y, _INT_ROWS * LANES, LANES):
            ints[row + lane] = 0
        return 0
    x, y, z = start[0] + near * extent[0], start[1] + near * extent[1], start[2] + near * extent[2]
    dy, dz = share * extent[1], share * extent[2]
    first_y, count_y, alpha_y, gap_y = _crossings(y, y + dy, dy, size[1])
    first_z, count_z, alpha_z, gap_z = _crossings(z, z + dz, dz, size[2])
    floats[_X + lane], floats[_DX + lane] = x, share * extent[0]
    floats[_Y_COUNT + lane], floats[_Z_COUNT + lane] = abs(count_y), abs(count_z)
    floats[_Y_FIRST + lane], floats[_Y_GAP + lane] = alpha_y, gap_y
    floats[_Z_FIRST + lane], floats[_Z_GAP + lane] = alpha_z, gap_z
    ints[_Y + lane], ints[_Z_ROW + lane] = first_y, first_z * rows
    ints[_Y_STEP + lane] = 1 if count_y > 0 else -1
    ints[_Z_STEP + lane] = rows if count_z > 0 else -rows
    return abs(count_y) + abs(count_z)


@njit(inline="always")
def _voxel_at(x, last):
    """(the voxel along the main axis that holds x, how far into it)."""
    voxel = int_minimum(int_maximum(truncated(x), splat(_I(0))), last)
    return voxel, x - as_floats(voxel)


@njit(inline="always")
def _touches(occupied, bits, one, other):
    """Whether there is anything between two voxels of a column, or beside it."""
    shift, two, single = splat(_I(bits)), splat(_I(2)), splat(_I(1))
    low, high = int_minimum(one, other) >> shift, int_maximum(one, other) >> shift
    stretch = (two << high) - (single << low)
    return (occupied & stretch) != splat(_I(0))


@njit(inline="always")
def _sum_at(sums, place, part, seen):
    """(sum before the voxel at a place, its value, the part of it that is passed); zero where nothing is to be seen."""
    before = gather_where(sums, place, seen)
    value = as_floats(gather_where(sums, place + splat(_I(COLUMNS)), seen) - before)
    # Rounded by itself, so that a ray which is at its end adds nothing more while others in its packet go on.
    return before, value, product(part, value)


@njit(inline="always")
def _march(sums, occupied, bits, sparse, size, steps, derivatives, floats, ints):
    """Take the sixteen rays of the scratch memory through the volume, a column at a time."""
    zero, one, beyond, nothing = splat(_F(0)), splat(_F(1)), splat(_F(2)), splat(_I(0))
    last, block, shift, mask = splat(_I(size[0] - 1)), splat(_I((size[0] + 1) * COLUMNS)), splat(_SHIFT), splat(_MASK)
    x, dx = load(floats, _X), load(floats, _DX)
    count_y, first_y, gap_y = load(floats, _Y_COUNT), load(floats, _Y_FIRST), load(floats, _Y_GAP)
    count_z, first_z, gap_z = load(floats, _Z_COUNT), load(floats, _Z_FIRST), load(floats, _Z_GAP)
    y, row, y_step, z_step = load(ints, _Y), load(ints, _Z_ROW), load(ints, _Y_STEP), load(ints, _Z_STEP)
    done_y, done_z, passed, alpha, v_before, v_first = zero, zero, zero, zero, zero, zero
    jump_y, jump_y_alpha, jump_z, jump_z_alpha = zero, zero, zero, zero
    seen, at_y, at_z = zero < one, one < zero, one < zero
    voxel, part = _voxel_at(x, last)
    for step in range(steps + 1):
        begun_voxel, begun_part, begun_alpha = voxel, part, alpha
        alpha_y = where_float(done_y < count_y, first_y + done_y * gap_y, beyond)
        alpha_z = where_float(done_z < count_z, first_z + done_z * gap_z, beyond)
        alpha = minimum(minimum(alpha_y, alpha_z), one)
        voxel, part = _voxel_at(x + alpha * dx, last)
        line = row + (y >> shift)
        if sparse:
            seen = _touches(gather(occupied, line), bits, begun_voxel, voxel)
        column = line * block + (y & mask)
        begun, v_begun, passed_before = _sum_at(sums, column + (begun_voxel << shift), begun_part, seen)
        ended, v_ended, passed_after = _sum_at(sums, column + (voxel << shift), part, seen)
        passed = passed + (as_floats(ended - begun) + (passed_after - passed_before))
        if derivatives:
            jump = where_float(at_y, v_before - v_begun, zero)
            jump_y, jump_y_alpha = jump_y + jump, jump_y_alpha + jump * begun_alpha
            jump = where_float(at_z, v_before - v_begun, zero)
            jump_z, jump_z_alpha = jump_z + jump, jump_z_alpha + jump * begun_alpha
            if step == 0:
                v_first = v_begun
            v_before = v_ended
        at_y = (alpha_y <= alpha_z) & (done_y < count_y)
        at_z = (alpha_z < alpha_y) & (done_z < count_z)
        y, row = y + where_int(at_y, y_step, nothing), row + where_int(at_z, z_step, nothing)
        done_y, done_z = done_y + where_float(at_y, one, zero), done_z + where_float(at_z, one, zero)
    store(floats, _SUM, passed)
    if derivatives:
        store(floats, _JUMP_Y, jump_y)
        store(floats, _JUMP_Y_ALPHA, jump_y_alpha)
        store(floats, _JUMP_Z, jump_z)
        store(floats, _JUMP_Z_ALPHA, jump_z_alpha)
        store(floats, _V_FIRST, v_first)
        store(floats, _V_LAST, v_before)


@njit(inline="always")
def _jumps(axis, jump, jump_alpha, near, far, first, last, v_first, v_last):
    """The sums of jump and jump * alpha over the crossings of an axis, box faces included; alpha of the whole ray."""
    total, total_alpha = jump, near * jump + (far - near) * jump_alpha
    if first == axis:
        total, total_alpha = total - v_first, total_alpha - v_first * near
    if last == axis:
        total, total_alpha = total + v_last, total_alpha + v_last * far
    return total, total_alpha


@njit(inline="always")
def _finish(matrix, size, unit, s, t, lane, floats, by_source, by_target):
    """Write a ray's derivatives by world coordinates; its integral."""
    start, d = on_grid(matrix, s, t)
    near, far, first, last = clipped(start, d, (0.0, 0.0, 0.0), (float(size[0]), float(size[1]), float(size[2])))
    if far == near:
        by_source[:] = 0
        by_target[:] = 0
        return 0.0
    length = length_of(s, t)
    J = floats[_SUM + lane] / d[0]
    v_first, v_last = floats[_V_FIRST + lane], floats[_V_LAST + lane]
    y, y_alpha = _jumps(
        1, floats[_JUMP_Y + lane], floats[_JUMP_Y_ALPHA + lane], near, far, first, last, v_first, v_last
    )
    z, z_alpha = _jumps(
        2, floats[_JUMP_Z + lane], floats[_JUMP_Z_ALPHA + lane], near, far, first, last, v_first, v_last
    )
    v_s, v_t = (v_first if first < 0 else 0.0), (v_last if last < 0 else 0.0)
    s_y = (y_alpha - y) / d[1] if abs(d[1]) > PARALLEL else 0.0
    s_z = (z_alpha - z) / d[2] if abs(d[2]) > PARALLEL else 0.0
    t_y = -y_alpha / d[1] if abs(d[1]) > PARALLEL else 0.0
    t_z = -z_alpha / d[2] if abs(d[2]) > PARALLEL else 0.0
    s_x = (J - v_s - s_y * d[1] - s_z * d[2]) / d[0]
    t_x = (v_t - J - t_y * d[1] - t_z * d[2]) / d[0]
    for axis in range(3):
        along = unit * J * (t[axis] - s[axis]) / length
        across = matrix[0, axis] * s_x + matrix[1, axis] * s_y + matrix[2, axis] * s_z
        by_source[axis] = unit * length * across - along
        across = matrix[0, axis] * t_x + matrix[1, axis] * t_y + matrix[2, axis] * t_z
        by_target[axis] = unit * length * across + along
    return unit * J * length
