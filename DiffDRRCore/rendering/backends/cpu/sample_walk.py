"""Trilinear samples, one ray at a time: for labels, and for the gradients by voxels and, with labels, by rays.

A sample belongs to the channel of its nearest voxel, or ("soft") each of its eight voxels to its own channel.
"""

from __future__ import annotations

import math

from numba import njit

from DiffDRRCore.rendering.backends.cpu.channels import channel_of_voxel
from DiffDRRCore.rendering.backends.cpu.rays import clipped, length_of, on_grid
from DiffDRRCore.rendering.backends.cpu.trilinear import spread_to_ends
from DiffDRRCore.rendering.field import NEAREST_TIE


@njit(inline="always")
def _inside(matrix, shape, s, t):
    """(first sample's end a, extent of the part inside, its length in mm) of a ray, in voxel coordinates."""
    start, d = on_grid(matrix, s, t)
    box = (float(shape[2]), float(shape[1]), float(shape[0]))
    near, far, _, _ = clipped(start, d, (-1.0, -1.0, -1.0), box)
    a = (start[0] + near * d[0], start[1] + near * d[1], start[2] + near * d[2])
    share = far - near
    return a, (share * d[0], share * d[1], share * d[2]), share * length_of(s, t)


@njit(inline="always")
def _nearest(x, size):
    return min(max(math.floor(x + 0.5 + NEAREST_TIE), 0), size - 1)


@njit(inline="always")
def _channel_of_sample(labels, channel_of, shape, x, y, z):
    i, j, k = _nearest(x, shape[2]), _nearest(y, shape[1]), _nearest(z, shape[0])
    return channel_of_voxel(labels, channel_of, k, j, i)


@njit(inline="always")
def _hat(x, voxel):
    return max(1 - abs(x - voxel), 0.0)


@njit(inline="always")
def _slope(x, voxel):
    """d hat / dx for a voxel beside x."""
    return 1.0 if x < voxel else -1.0


@njit(inline="always")
def _first_and_past(x, size):
    """The one or two voxels beside x, as a range."""
    first = math.floor(x)
    return max(first, 0), min(first + 2, size)


@njit(nogil=True, cache=True, error_model="numpy")
def integrals(voxels, labels, channel_of, soft, matrix, parts, s, t, first, last, result):
    """result [C, N] of the rays first .. last - 1; voxels [K, J, I], matrix: world mm to voxel centres."""
    shape = voxels.shape
    for n in range(first, last):
        result[:, n] = 0
        a, d, length = _inside(matrix, shape, s[n], t[n])
        if length == 0:
            continue
        weight = length / parts
        for part in range(parts):
            share = (part + 0.5) / parts
            x, y, z = a[0] + share * d[0], a[1] + share * d[1], a[2] + share * d[2]
            channel = -1 if soft else _channel_of_sample(labels, channel_of, shape, x, y, z)
            if channel < 0 and not soft:
                continue
            i0, i1 = _first_and_past(x, shape[2])
            j0, j1 = _first_and_past(y, shape[1])
            k0, k1 = _first_and_past(z, shape[0])
            for k in range(k0, k1):
                for j in range(j0, j1):
                    across = weight * _hat(z, k) * _hat(y, j)
                    for i in range(i0, i1):
                        of_voxel = channel_of_voxel(labels, channel_of, k, j, i) if soft else channel
                        if of_voxel >= 0:
                            result[of_voxel, n] += across * _hat(x, i) * voxels[k, j, i]


@njit(nogil=True, cache=True, error_model="numpy")
def ray_gradients(voxels, labels, channel_of, soft, matrix, parts, s, t, weight, first, last, by_source, by_target):
    """Derivatives [N, 3] (world) of sum_c weight[c, n] I[c, n]."""
    shape = voxels.shape
    size = (shape[2], shape[1], shape[0])
    for n in range(first, last):
        a, d, length = _inside(matrix, shape, s[n], t[n])
        total, ax, ay, az, bx, by, bz = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
        for part in range(parts if length > 0 else 0):
            share = (part + 0.5) / parts
            x, y, z = a[0] + share * d[0], a[1] + share * d[1], a[2] + share * d[2]
            channel = -1 if soft else _channel_of_sample(labels, channel_of, shape, x, y, z)
            i0, i1 = _first_and_past(x, shape[2])
            j0, j1 = _first_and_past(y, shape[1])
            k0, k1 = _first_and_past(z, shape[0])
            gx, gy, gz = 0.0, 0.0, 0.0
            for k in range(k0, k1):
                for j in range(j0, j1):
                    for i in range(i0, i1):
                        of_voxel = channel_of_voxel(labels, channel_of, k, j, i) if soft else channel
                        if of_voxel < 0:
                            continue
                        value = weight[of_voxel, n] * voxels[k, j, i]
                        hat_x, hat_y, hat_z = _hat(x, i), _hat(y, j), _hat(z, k)
                        total += value * hat_x * hat_y * hat_z
                        gx += value * _slope(x, i) * hat_y * hat_z
                        gy += value * hat_x * _slope(y, j) * hat_z
                        gz += value * hat_x * hat_y * _slope(z, k)
            ax, ay, az = ax + (1 - share) * gx, ay + (1 - share) * gy, az + (1 - share) * gz
            bx, by, bz = bx + share * gx, by + share * gy, bz + share * gz
        spread_to_ends(matrix, size, parts, s[n], t[n], total, (ax, ay, az), (bx, by, bz), by_source[n], by_target[n])


@njit(nogil=True, cache=True, error_model="numpy")
def voxel_gradients(labels, channel_of, soft, matrix, parts, s, t, weight, low, high, result):
    """Add each sample's shares to the slices low .. high - 1 of result [K, J, I]; rays and samples in order."""
    shape = result.shape
    for n in range(s.shape[0]):
        a, d, length = _inside(matrix, shape, s[n], t[n])
        if length == 0:
            continue
        for part in range(parts):
            share = (part + 0.5) / parts
            z = a[2] + share * d[2]
            k0, k1 = _first_and_past(z, shape[0])
            if k1 <= low or k0 >= high:
                continue
            x, y = a[0] + share * d[0], a[1] + share * d[1]
            channel = -1 if soft else _channel_of_sample(labels, channel_of, shape, x, y, z)
            if channel < 0 and not soft:
                continue
            i0, i1 = _first_and_past(x, shape[2])
            j0, j1 = _first_and_past(y, shape[1])
            for k in range(max(k0, low), min(k1, high)):
                for j in range(j0, j1):
                    across = length / parts * _hat(z, k) * _hat(y, j)
                    for i in range(i0, i1):
                        of_voxel = channel_of_voxel(labels, channel_of, k, j, i) if soft else channel
                        if of_voxel >= 0:
                            result[k, j, i] += weight[of_voxel, n] * across * _hat(x, i)
