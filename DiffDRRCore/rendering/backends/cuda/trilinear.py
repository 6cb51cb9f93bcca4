"""Device functions of the trilinear integrator: samples at the middles of equal parts of each ray's segment.

A sample's position is fixed-point, 32 bits below the voxel, because float32 at voxel 500 is good to 3e-5 voxels only:
enough samples would then fall on the wrong side of a voxel's face, where labels and derivatives jump. Adding integers
is exact, their upper half is the voxel and their lower half the fraction, and no sample can leave the padded grid.
"""

from __future__ import annotations

import warp as wp

from DiffDRRCore.rendering.backends.cuda.segments import Segment, Voxels, brick_of, vec3l

wp.set_module_options({"enable_backward": False})

ONE = 4294967296.0
MARGIN = 1.0
vec8f = wp.types.vector(length=8, dtype=wp.float32)


@wp.struct
class March:
    """Samples first <= i < last of a segment: position of the next, the step to the one after it, both fixed-point.

    per_step is 1 / |step| along each axis, to see how many samples leave a brick. brick is that of the last sample that
    was looked at, and occupied whether anything is in it.
    """

    position: vec3l
    step: vec3l
    per_step: wp.vec3
    first: int
    last: int
    brick: int
    occupied: bool


@wp.func
def march(segment: Segment, size: wp.vec3i, parts: int, piece: int, pieces: int) -> March:
    """The samples of one piece of a segment. None where the ray misses."""
    m = March()
    m.brick = -1
    if segment.leave > segment.entry:
        m.first = int(wp.int64(parts) * wp.int64(piece) // wp.int64(pieces))
        m.last = int(wp.int64(parts) * wp.int64(piece + 1) // wp.int64(pieces))
        guard = wp.float64(parts)
        for axis in range(3):
            highest = wp.float64(size[axis] + 1) * wp.float64(ONE) - guard
            middle = segment.extent[axis] / wp.float64(parts)
            start = segment.start[axis] + wp.float64(1.0) + middle * (wp.float64(m.first) + wp.float64(0.5))
            end = start + middle * wp.float64(m.last - m.first - 1)
            start = wp.clamp(wp.round(start * wp.float64(ONE)), guard, highest)
            end = wp.clamp(wp.round(end * wp.float64(ONE)), guard, highest)
            step = wp.round((end - start) / wp.float64(wp.max(1, m.last - m.first - 1)))
            m.position[axis] = wp.int64(start)
            m.step[axis] = wp.int64(step)
            m.per_step[axis] = 1.0 / wp.max(wp.float32(wp.abs(step)), 1.0)
    return m


@wp.func
def cell_of(position: vec3l) -> wp.vec3i:
    """The padded voxel at the low corner of the cell that holds a position."""
    bits = wp.int64(32)
    return wp.vec3i(wp.int32(position[0] >> bits), wp.int32(position[1] >> bits), wp.int32(position[2] >> bits))


@wp.func
def fraction_of(position: vec3l) -> wp.vec3:
    """Where a position lies in its cell, 0 to 1."""
    scale = 1.0 / ONE
    return scale * wp.vec3(
        wp.float32(wp.uint32(position[0])), wp.float32(wp.uint32(position[1])), wp.float32(wp.uint32(position[2]))
    )


@wp.func
def look(m: March, voxels: Voxels, cell: wp.vec3i) -> March:
    """See whether the brick of a cell is occupied."""
    brick = brick_of(cell, voxels.bricks)
    if brick != m.brick:
        m.brick = brick
        m.occupied = voxels.occupied[brick] != wp.uint8(0)
    return m


@wp.func
def samples_to_leave(m: March, cell: wp.vec3i) -> int:
    """How many samples further on the brick of the next sample may be left; at least 1, and never beyond the first
    sample of another brick."""
    least = wp.float32(1.0e6)
    for axis in range(3):
        low = wp.int64(cell[axis] >> 3) << wp.int64(35)
        room = m.position[axis] - low
        if m.step[axis] > wp.int64(0):
            room = low + (wp.int64(1) << wp.int64(35)) - m.position[axis]
        if m.step[axis] != wp.int64(0):
            least = wp.min(least, wp.float32(room) * m.per_step[axis])
    return wp.max(1, wp.int32(wp.ceil(least * 0.999999)))


@wp.func
def ahead(m: March, samples: int) -> March:
    """The march that many samples further on."""
    m.first = m.first + samples
    m.position = m.position + m.step * wp.int64(samples)
    return m


@wp.func
def corners(values: wp.array(dtype=wp.float32), base: int, size: wp.vec3i) -> vec8f:
    """The cell's eight voxels, i fastest."""
    row = base + size[0] + 2
    above = base + (size[0] + 2) * (size[1] + 2)
    top = above + size[0] + 2
    return vec8f(
        values[base],
        values[base + 1],
        values[row],
        values[row + 1],
        values[above],
        values[above + 1],
        values[top],
        values[top + 1],
    )


@wp.func
def corner(number: int, base: int, size: wp.vec3i) -> int:
    """Index of one of the cell's eight voxels, i fastest."""
    row = size[0] + 2
    return base + (number & 1) + ((number >> 1) & 1) * row + (number >> 2) * row * (size[1] + 2)


@wp.func
def share(number: int, at: wp.vec3) -> float:
    """Share of one of the cell's eight voxels in a sample."""
    x = wp.where((number & 1) == 1, at[0], 1.0 - at[0])
    y = wp.where(((number >> 1) & 1) == 1, at[1], 1.0 - at[1])
    z = wp.where((number >> 2) == 1, at[2], 1.0 - at[2])
    return x * y * z


@wp.func
def interpolate(c: vec8f, at: wp.vec3) -> float:
    """The field in a cell."""
    low = wp.lerp(wp.lerp(c[0], c[1], at[0]), wp.lerp(c[2], c[3], at[0]), at[1])
    high = wp.lerp(wp.lerp(c[4], c[5], at[0]), wp.lerp(c[6], c[7], at[0]), at[1])
    return wp.lerp(low, high, at[2])


@wp.func
def slope(c: vec8f, at: wp.vec3) -> wp.vec3:
    """The field's gradient in a cell, per voxel."""
    x_low = wp.lerp(c[1] - c[0], c[3] - c[2], at[1])
    x_high = wp.lerp(c[5] - c[4], c[7] - c[6], at[1])
    front_low, front_high = wp.lerp(c[0], c[1], at[0]), wp.lerp(c[4], c[5], at[0])
    back_low, back_high = wp.lerp(c[2], c[3], at[0]), wp.lerp(c[6], c[7], at[0])
    return wp.vec3(
        wp.lerp(x_low, x_high, at[2]),
        wp.lerp(back_low - front_low, back_high - front_high, at[2]),
        wp.lerp(front_high - front_low, back_high - back_low, at[1]),
    )
