"""Siddon's walk from voxel to voxel, one ray at a time: for labels, and for the gradients by rays and voxels.

A channel's integral takes the voxels whose label has that channel in `channel_of` (see `channels.py`); without labels
there is one channel of everything.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from DiffDRRCore.rendering.backends.cpu.channels import channel_of_voxel
from DiffDRRCore.rendering.backends.cpu.rays import clipped, length_of, on_grid


@njit(inline="always")
def _axis(start, extent, near, far, low, high):
    """(voxel, step, alpha of the next plane, gap between planes, planes left) along one axis, from alpha `near` on."""
    begin, end = start + near * extent, start + far * extent
    voxel = min(max(math.floor(begin), low), high - 1)
    final = min(max(math.floor(end), low), high - 1)
    if voxel == final:
        return voxel, 0, math.inf, 0.0, 0
    step = 1 if extent > 0 else -1
    plane = voxel + 1 if step > 0 else voxel
    return voxel, step, (plane - start) / extent, 1 / abs(extent), abs(final - voxel)


@njit(inline="always")
def _next(left, alpha, gap):
    """The plane after the next one, along one axis: (planes left, its alpha)."""
    return left - 1, alpha + gap if left > 1 else math.inf


@njit(nogil=True, cache=True, error_model="numpy")
def integrals(voxels, labels, channel_of, matrix, s, t, first, last, result):
    """result [C, N] of the rays first .. last - 1; voxels [K, J, I], matrix: world mm to voxel edges."""
    for n in range(first, last):
        start, d = on_grid(matrix, s[n], t[n])
        box = (float(voxels.shape[2]), float(voxels.shape[1]), float(voxels.shape[0]))
        near, far, _, _ = clipped(start, d, (0.0, 0.0, 0.0), box)
        result[:, n] = 0
        if far == near:
            continue
        length = length_of(s[n], t[n])
        i, i_step, i_alpha, i_gap, i_left = _axis(start[0], d[0], near, far, 0, voxels.shape[2])
        j, j_step, j_alpha, j_gap, j_left = _axis(start[1], d[1], near, far, 0, voxels.shape[1])
        k, k_step, k_alpha, k_gap, k_left = _axis(start[2], d[2], near, far, 0, voxels.shape[0])
        alpha = near
        while True:
            ahead = max(min(i_alpha, j_alpha, k_alpha, far), alpha)
            channel = channel_of_voxel(labels, channel_of, k, j, i)
            if channel >= 0:
                result[channel, n] += voxels[k, j, i] * (ahead - alpha) * length
            alpha = ahead
            if i_left + j_left + k_left == 0:
                break
            if i_alpha <= j_alpha and i_alpha <= k_alpha:
                i += i_step
                i_left, i_alpha = _next(i_left, i_alpha, i_gap)
            elif j_alpha <= k_alpha:
                j += j_step
                j_left, j_alpha = _next(j_left, j_alpha, j_gap)
            else:
                k += k_step
                k_left, k_alpha = _next(k_left, k_alpha, k_gap)


@njit(inline="always")
def _jump(axis, alpha, jump, d, by_s, by_t):
    """A change of the value by `jump` (before - after) at a plane of `axis`: dI = jump * d alpha."""
    by_s[axis] += jump * (alpha - 1) / d[axis]
    by_t[axis] -= jump * alpha / d[axis]


@njit(inline="always")
def _weighed(voxels, labels, channel_of, weight, n, k, j, i):
    channel = channel_of_voxel(labels, channel_of, k, j, i)
    return voxels[k, j, i] * weight[channel, n] if channel >= 0 else 0.0


@njit(nogil=True, cache=True, error_model="numpy")
def ray_gradients(voxels, labels, channel_of, matrix, s, t, weight, first, last, by_source, by_target):
    """Derivatives [N, 3] (world) of sum_c weight[c, n] I[c, n]."""
    of_s, of_t = np.empty(3), np.empty(3)
    for n in range(first, last):
        by_source[n], by_target[n] = 0, 0
        start, d = on_grid(matrix, s[n], t[n])
        box = (float(voxels.shape[2]), float(voxels.shape[1]), float(voxels.shape[0]))
        near, far, enters, leaves = clipped(start, d, (0.0, 0.0, 0.0), box)
        if far == near:
            continue
        of_s[:], of_t[:] = 0, 0
        i, i_step, i_alpha, i_gap, i_left = _axis(start[0], d[0], near, far, 0, voxels.shape[2])
        j, j_step, j_alpha, j_gap, j_left = _axis(start[1], d[1], near, far, 0, voxels.shape[1])
        k, k_step, k_alpha, k_gap, k_left = _axis(start[2], d[2], near, far, 0, voxels.shape[0])
        value = _weighed(voxels, labels, channel_of, weight, n, k, j, i)
        if enters >= 0:
            _jump(enters, near, -value, d, of_s, of_t)
        alpha, total = near, 0.0
        while i_left + j_left + k_left > 0:
            ahead = max(min(i_alpha, j_alpha, k_alpha, far), alpha)
            total += value * (ahead - alpha)
            alpha, before = ahead, value
            if i_alpha <= j_alpha and i_alpha <= k_alpha:
                axis, i = 0, i + i_step
                i_left, i_alpha = _next(i_left, i_alpha, i_gap)
            elif j_alpha <= k_alpha:
                axis, j = 1, j + j_step
                j_left, j_alpha = _next(j_left, j_alpha, j_gap)
            else:
                axis, k = 2, k + k_step
                k_left, k_alpha = _next(k_left, k_alpha, k_gap)
            value = _weighed(voxels, labels, channel_of, weight, n, k, j, i)
            _jump(axis, alpha, before - value, d, of_s, of_t)
        total += value * (far - alpha)
        if leaves >= 0:
            _jump(leaves, far, value, d, of_s, of_t)
        _to_world(matrix, s[n], t[n], total, of_s, of_t, by_source[n], by_target[n])


@njit(inline="always")
def _to_world(matrix, s, t, total, of_s, of_t, by_source, by_target):
    """Derivatives by voxel coordinates of the integral over alpha, to those by mm of the integral over length."""
    length = length_of(s, t)
    for axis in range(3):
        along = total * (t[axis] - s[axis]) / length
        across = matrix[0, axis] * of_s[0] + matrix[1, axis] * of_s[1] + matrix[2, axis] * of_s[2]
        by_source[axis] = length * across - along
        across = matrix[0, axis] * of_t[0] + matrix[1, axis] * of_t[1] + matrix[2, axis] * of_t[2]
        by_target[axis] = length * across + along


@njit(nogil=True, cache=True, error_model="numpy")
def voxel_gradients(labels, channel_of, matrix, s, t, weight, low, high, result):
    """Add weight * length of the ray in the voxel to the slices low .. high - 1 of result [K, J, I]; rays in order."""
    for n in range(s.shape[0]):
        start, d = on_grid(matrix, s[n], t[n])
        box = (float(result.shape[2]), float(result.shape[1]), float(high))
        near, far, _, _ = clipped(start, d, (0.0, 0.0, float(low)), box)
        if far == near:
            continue
        length = length_of(s[n], t[n])
        i, i_step, i_alpha, i_gap, i_left = _axis(start[0], d[0], near, far, 0, result.shape[2])
        j, j_step, j_alpha, j_gap, j_left = _axis(start[1], d[1], near, far, 0, result.shape[1])
        k, k_step, k_alpha, k_gap, k_left = _axis(start[2], d[2], near, far, low, high)
        alpha = near
        while True:
            ahead = max(min(i_alpha, j_alpha, k_alpha, far), alpha)
            channel = channel_of_voxel(labels, channel_of, k, j, i)
            if channel >= 0:
                result[k, j, i] += weight[channel, n] * (ahead - alpha) * length
            alpha = ahead
            if i_left + j_left + k_left == 0:
                break
            if i_alpha <= j_alpha and i_alpha <= k_alpha:
                i += i_step
                i_left, i_alpha = _next(i_left, i_alpha, i_gap)
            elif j_alpha <= k_alpha:
                j += j_step
                j_left, j_alpha = _next(j_left, j_alpha, j_gap)
            else:
                k += k_step
                k_left, k_alpha = _next(k_left, k_alpha, k_gap)
