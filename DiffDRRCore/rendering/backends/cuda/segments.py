"""Device functions that all kernels share: clipping a ray to the grid, the chain rule back to its two ends, indices.

Clipping and chain rule are float64: they run once for each thread, and rays are long while voxels are small.
"""

from __future__ import annotations

import warp as wp

wp.set_module_options({"enable_backward": False})

PARALLEL = 1e-12
"""As in the reference: a ray that moves less than this along an axis, in voxels, does not move."""
TINY = 1e-60
"""For a ray without length, whose integral is zero."""

vec3l = wp.types.vector(length=3, dtype=wp.int64)
vec7f = wp.types.vector(length=7, dtype=wp.float32)


@wp.struct
class Voxels:
    """A grid as the kernels read it, with one voxel of zeros around it: voxel (i, j, k) is at (i + 1, j + 1, k + 1).

    values and channels are flat, [(K + 2) * (J + 2) * (I + 2)]; a voxel of no channel has channel -1. occupied is flat
    over bricks of 8 x 8 x 8 padded voxels, zero where nothing in the brick can add to an integral.
    """

    ras_to_ijk: wp.mat44d
    size: wp.vec3i
    bricks: wp.vec3i
    values: wp.array(dtype=wp.float32)
    channels: wp.array(dtype=wp.int16)
    occupied: wp.array(dtype=wp.uint8)


@wp.struct
class Segment:
    """The part of a ray inside the grid, in voxel coordinates (i, j, k).

    start and extent are its own; direction is the whole ray's. entry and leave are where it starts and ends on the
    whole ray, and the axis of the face it does so through, or -1 where the ray itself starts or ends inside. A ray that
    misses has entry = leave = 0. distance is the whole ray's length in mm.
    """

    start: wp.vec3d
    extent: wp.vec3d
    direction: wp.vec3d
    entry: wp.float64
    leave: wp.float64
    entry_axis: int
    leave_axis: int
    distance: wp.float64


@wp.func
def clip(s: wp.vec3d, t: wp.vec3d, ras_to_ijk: wp.mat44d, size: wp.vec3i, margin: wp.float64) -> Segment:
    """Clip the ray s -> t (world mm) to the box [-margin, size - 1 + margin] by the slab method."""
    segment = Segment()
    start = wp.transform_point(ras_to_ijk, s)
    direction = wp.transform_point(ras_to_ijk, t) - start
    near = wp.float64(0.0)
    far = wp.float64(1.0)
    entry_axis = wp.int32(-1)
    leave_axis = wp.int32(-1)
    for axis in range(3):
        low = -margin
        high = wp.float64(size[axis] - 1) + margin
        if wp.abs(direction[axis]) < wp.float64(PARALLEL):
            if start[axis] <= low or start[axis] >= high:
                far = wp.float64(-1.0)
        else:
            first = (low - start[axis]) / direction[axis]
            second = (high - start[axis]) / direction[axis]
            if wp.min(first, second) > near:
                near = wp.min(first, second)
                entry_axis = axis
            if wp.max(first, second) < far:
                far = wp.max(first, second)
                leave_axis = axis
    segment.distance = wp.length(t - s)
    segment.start = start
    segment.direction = direction
    segment.entry_axis = -1
    segment.leave_axis = -1
    if far > near and wp.isfinite(wp.length_sq(start) + wp.length_sq(direction)):
        segment.start = start + direction * near
        segment.extent = direction * (far - near)
        segment.entry = near
        segment.leave = far
        segment.entry_axis = entry_axis
        segment.leave_axis = leave_axis
    return segment


@wp.func
def length_mm(segment: Segment) -> wp.float64:
    """Length of the segment in mm."""
    return segment.distance * (segment.leave - segment.entry)


@wp.func
def by_ends(
    segment: Segment,
    ras_to_ijk: wp.mat44d,
    along: wp.vec3d,
    integral: wp.float64,
    moved: wp.vec3d,
    tilted: wp.vec3d,
    by_entry: wp.float64,
    by_leave: wp.float64,
) -> vec7f:
    """The integral and its derivatives by s and t (world mm), from the derivatives in voxel coordinates.

    With w from 0 to 1 on the segment, a point on it is s + (entry + w (leave - entry)) (t - s), so with g(w) the
    derivative of the integral by a shift of the point at w,

        d / ds = (1 - entry) moved - (leave - entry) tilted,   d / dt = entry moved + (leave - entry) tilted,

    where moved = sum of g and tilted = sum of w g. The ends of the segment slide on the faces they go through: with d
    the ray's direction along the axis of the face, d entry / ds = -(1 - entry) / d and d entry / dt = -entry / d, and
    alike for leave. At last, the integral is proportional to |t - s|.

    Args:
        along: t - s in mm.
        by_entry, by_leave: derivatives of the integral by entry and leave, with s and t fixed.
    """
    inner = segment.leave - segment.entry
    by_s = moved * (wp.float64(1.0) - segment.entry) - tilted * inner
    by_t = moved * segment.entry + tilted * inner
    for axis in range(3):
        if segment.entry_axis == axis:
            slope = by_entry / segment.direction[axis]
            by_s[axis] = by_s[axis] - slope * (wp.float64(1.0) - segment.entry)
            by_t[axis] = by_t[axis] - slope * segment.entry
        if segment.leave_axis == axis:
            slope = by_leave / segment.direction[axis]
            by_s[axis] = by_s[axis] - slope * (wp.float64(1.0) - segment.leave)
            by_t[axis] = by_t[axis] - slope * segment.leave
    to_world = wp.transpose(ras_to_ijk)
    stretch = along * (integral / wp.max(segment.distance * segment.distance, wp.float64(TINY)))
    by_s = wp.transform_vector(to_world, by_s) - stretch
    by_t = wp.transform_vector(to_world, by_t) + stretch
    return vec7f(
        wp.float32(integral),
        wp.float32(by_s[0]),
        wp.float32(by_s[1]),
        wp.float32(by_s[2]),
        wp.float32(by_t[0]),
        wp.float32(by_t[1]),
        wp.float32(by_t[2]),
    )


@wp.func
def flat(voxel: wp.vec3i, size: wp.vec3i) -> int:
    """Index of a padded voxel."""
    return (voxel[2] * (size[1] + 2) + voxel[1]) * (size[0] + 2) + voxel[0]


@wp.func
def brick_of(cell: wp.vec3i, bricks: wp.vec3i) -> int:
    """Index of the brick of 8 x 8 x 8 cells that holds a cell."""
    return ((cell[2] >> 3) * bricks[1] + (cell[1] >> 3)) * bricks[0] + (cell[0] >> 3)


@wp.func
def add(out: wp.array3d(dtype=wp.float32), piece: int, channel: int, ray: int, value: float):
    """Add to a channel of this thread's own ray; no other thread writes there."""
    if channel >= 0:
        before = out[piece, channel, ray]
        out[piece, channel, ray] = before + value


@wp.func
def weight_of(channel: int, weight: wp.array2d(dtype=wp.float32), ray: int) -> float:
    """A channel's weight on a ray; none for no channel."""
    if channel < 0:
        return 0.0
    return weight[channel, ray]
