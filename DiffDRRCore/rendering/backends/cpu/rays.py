"""Rays in voxel coordinates, one at a time, in float64: where each enters and leaves a box."""

from __future__ import annotations

import math

from numba import njit

PARALLEL = 1e-12  # as in DiffDRRCore.rendering.rays


@njit(inline="always")
def moved(matrix, p, axis):
    """One coordinate of a world point p [3] on a grid: row `axis` of the affine `matrix` [3, 4]."""
    return matrix[axis, 0] * p[0] + matrix[axis, 1] * p[1] + matrix[axis, 2] * p[2] + matrix[axis, 3]


@njit(inline="always")
def length_of(s, t):
    """|t - s|."""
    return math.sqrt((t[0] - s[0]) ** 2 + (t[1] - s[1]) ** 2 + (t[2] - s[2]) ** 2)


@njit(inline="always")
def clip_axis(start, extent, low, high, near, far, first, last, axis):
    """Narrow the ray's interval (near, far) to low < x < high along one axis.

    first, last: the axes whose planes bound the interval so far; -1 for the ray's own ends.
    """
    if abs(extent) < PARALLEL:
        if start <= low or start >= high:
            far = -1.0
        return near, far, first, last
    one, other = (low - start) / extent, (high - start) / extent
    if min(one, other) > near:
        near, first = min(one, other), axis
    if max(one, other) < far:
        far, last = max(one, other), axis
    return near, far, first, last


@njit(inline="always")
def clipped(start, extent, low, high):
    """(near, far, first, last) of a ray start + alpha extent (3-tuples) in a box; near == far == 0 where it misses."""
    near, far, first, last = clip_axis(start[0], extent[0], low[0], high[0], 0.0, 1.0, -1, -1, 0)
    near, far, first, last = clip_axis(start[1], extent[1], low[1], high[1], near, far, first, last, 1)
    near, far, first, last = clip_axis(start[2], extent[2], low[2], high[2], near, far, first, last, 2)
    if far <= near:
        return 0.0, 0.0, -1, -1
    return near, far, first, last


@njit(inline="always")
def on_grid(matrix, s, t):
    """Start and extent of the segment s -> t (world) on the grid of the affine `matrix` [3, 4], as 3-tuples."""
    start = (moved(matrix, s, 0), moved(matrix, s, 1), moved(matrix, s, 2))
    return start, (moved(matrix, t, 0) - start[0], moved(matrix, t, 1) - start[1], moved(matrix, t, 2) - start[2])
