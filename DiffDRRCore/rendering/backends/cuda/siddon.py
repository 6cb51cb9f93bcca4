"""Device functions of Siddon's integrator: a walk from voxel to voxel along a ray's segment.

Where the ray crosses the planes between voxels is kept as integers, 2^56 to the segment: adding to them is exact, so
crossings come in their true order (float32 would swap close ones, and derivatives are jumps at crossings), the pieces
of a ray meet without a gap, and the number of crossings, known beforehand, keeps the walk inside the grid.
"""

from __future__ import annotations

import warp as wp

from DiffDRRCore.rendering.backends.cuda.segments import PARALLEL, Segment, Voxels, brick_of, vec3l

wp.set_module_options({"enable_backward": False})

MARGIN = 0.5
UNIT = 2.0**56
NEVER = 2.0**62


@wp.struct
class Walk:
    """Where a walk is: at <= end on the segment, in a (padded) voxel, having crossed a plane of axis `crossed`, or -1.

    next are the positions of the next plane of each axis, period apart, and left the number of planes to cross.
    brick is that of the last voxel that was looked at, and occupied whether anything is in it.
    """

    at: wp.int64
    end: wp.int64
    voxel: wp.vec3i
    crossed: int
    step: wp.vec3i
    left: wp.vec3i
    next: vec3l
    period: vec3l
    brick: int
    occupied: bool


@wp.func
def walk(segment: Segment, size: wp.vec3i, piece: int, pieces: int) -> Walk:
    """The start of one piece of a segment; at its end already where the ray misses.

    A plane right between two pieces, as there often is in the middle of the grid, is left to the latter.
    """
    w = Walk()
    w.crossed = -1
    w.brick = -1
    if segment.leave > segment.entry:
        part = wp.int64(UNIT) // wp.int64(pieces)
        w.at = part * wp.int64(piece)
        w.end = wp.where(piece + 1 == pieces, wp.int64(UNIT), w.at + part)
        for axis in range(3):
            start = segment.start[axis]
            extent = segment.extent[axis]
            first = wp.clamp(int(wp.floor(start + wp.float64(0.5))), 0, size[axis] - 1)
            last = wp.clamp(int(wp.floor(start + extent + wp.float64(0.5))), 0, size[axis] - 1)
            step = wp.where(extent < wp.float64(0.0), -1, 1)
            left = wp.max(0, (last - first) * step)
            w.next[axis] = wp.int64(NEVER)
            if left > 0 and wp.abs(segment.direction[axis]) >= wp.float64(PARALLEL):
                plane = wp.float64(first) + wp.float64(0.5) * wp.float64(step)
                fraction = wp.clamp((plane - start) / extent, wp.float64(0.0), wp.float64(1.0))
                w.next[axis] = wp.int64(fraction * wp.float64(UNIT))
                w.period[axis] = wp.int64(wp.min(wp.float64(1.0) / wp.abs(extent), wp.float64(2.0)) * wp.float64(UNIT))
            else:
                left = 0
            w.voxel[axis] = first + 1
            w.step[axis] = step
            w.left[axis] = left
        begin = w.at
        w = cross_until(w, begin - wp.int64(1))
        w.at = begin
    return w


@wp.func
def look(w: Walk, voxels: Voxels) -> Walk:
    """See whether the brick of the voxel is occupied."""
    brick = brick_of(w.voxel, voxels.bricks)
    if brick != w.brick:
        w.brick = brick
        w.occupied = voxels.occupied[brick] != wp.uint8(0)
    return w


@wp.func
def cross_until(w: Walk, position: wp.int64) -> Walk:
    """Cross every plane up to and including a position."""
    for axis in range(3):
        if w.next[axis] <= position:
            count = wp.min(w.left[axis], 1 + int((position - w.next[axis]) // w.period[axis]))
            w.voxel[axis] = w.voxel[axis] + w.step[axis] * count
            w.left[axis] = w.left[axis] - count
            w.next[axis] = w.next[axis] + w.period[axis] * wp.int64(count)
            if w.left[axis] == 0:
                w.next[axis] = wp.int64(NEVER)
    w.at = position
    return w


@wp.func
def cross_next(w: Walk) -> Walk:
    """Cross the next plane, or go to the end where that comes first."""
    position = wp.min(wp.min(w.next[0], w.next[1]), w.next[2])
    w.at = wp.min(position, w.end)
    w.crossed = -1
    if position < w.end:
        w.crossed = 2
        if w.next[1] == position:
            w.crossed = 1
        if w.next[0] == position:
            w.crossed = 0
        for axis in range(3):
            if axis == w.crossed:
                w.voxel[axis] = w.voxel[axis] + w.step[axis]
                w.left[axis] = w.left[axis] - 1
                w.next[axis] = wp.where(w.left[axis] == 0, wp.int64(NEVER), w.next[axis] + w.period[axis])
    return w


@wp.func
def leave_brick(w: Walk) -> Walk:
    """Go to where the ray leaves its brick of 8 x 8 x 8 voxels, or to the end where that comes first."""
    position = w.end
    crossed = wp.int32(-1)
    for axis in range(3):
        inside = w.voxel[axis] & 7
        if w.step[axis] > 0:
            inside = 7 - inside
        if w.left[axis] > inside:
            leaving = w.next[axis] + w.period[axis] * wp.int64(inside)
            if leaving < position:
                position = leaving
                crossed = axis
    w = cross_until(w, position)
    w.crossed = crossed
    return w
