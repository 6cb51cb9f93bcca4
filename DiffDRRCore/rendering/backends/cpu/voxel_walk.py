"""Siddon's walk from voxel to voxel, one ray at a time: for labels, and for the gradients by rays and voxels.

A channel's integral takes the voxels whose label has that channel in `channel_of` (see channels.py); without labels
there is one channel of everything. A walk's state is a tuple of three for each of: voxel, alpha of the next plane,
planes left; its plan, of the steps from voxel to voxel and of the gaps between planes.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from DiffDRRCore.rendering.backends.cpu.channels import channel_of_voxel
from DiffDRRCore.rendering.backends.cpu.rays import clipped, length_of, on_grid


@njit(inline="always")
def _axis(start, extent, near, far, low, high):
    """(voxel, alpha of the next plane, planes left, step, gap between planes) along one axis, from alpha `near` on."""
    voxel = min(max(math.floor(start + near * extent), low), high - 1)
    final = min(max(math.floor(start + far * extent), low), high - 1)
    if voxel == final:
        return voxel, math.inf, 0, 0, 0.0
    step = 1 if extent > 0 else -1
    plane = voxel + 1 if step > 0 else voxel
    return voxel, (plane - start) / extent, abs(final - voxel), step, 1 / abs(extent)


@njit(inline="always")
def _begun(start, d, near, far, low, high):
    """(voxel, alpha, left), (step, gap) of a walk from alpha `near` to `far` through the voxels low <= n < high."""
    i, i_alpha, i_left, i_step, i_gap = _axis(start[0], d[0], near, far, low[0], high[0])
    j, j_alpha, j_left, j_step, j_gap = _axis(start[1], d[1], near, far, low[1], high[1])
    k, k_alpha, k_left, k_step, k_gap = _axis(start[2], d[2], near, far, low[2], high[2])
    state = (i, j, k), (i_alpha, j_alpha, k_alpha), (i_left, j_left, k_left)
    return state, ((i_step, j_step, k_step), (i_gap, j_gap, k_gap))


@njit(inline="always")
def _after(left, alpha, gap):
    """The alpha of the plane after the next one, along one axis."""
    return alpha + gap if left > 1 else math.inf


@njit(inline="always")
def _crossed(state, plan):
    """(axis of the next plane, the state behind it)."""
    (i, j, k), (i_alpha, j_alpha, k_alpha), (i_left, j_left, k_left) = state
    step, gap = plan
    if i_alpha <= j_alpha and i_alpha <= k_alpha:
        alpha = (_after(i_left, i_alpha, gap[0]), j_alpha, k_alpha)
        return 0, ((i + step[0], j, k), alpha, (i_left - 1, j_left, k_left))
    if j_alpha <= k_alpha:
        alpha = (i_alpha, _after(j_left, j_alpha, gap[1]), k_alpha)
        return 1, ((i, j + step[1], k), alpha, (i_left, j_left - 1, k_left))
    alpha = (i_alpha, j_alpha, _after(k_left, k_alpha, gap[2]))
    return 2, ((i, j, k + step[2]), alpha, (i_left, j_left, k_left - 1))


@njit(inline="always")
def _ahead(state, alpha, far):
    """Where the ray leaves its voxel; never behind `alpha`, never beyond `far`."""
    return max(min(state[1][0], state[1][1], state[1][2], far), alpha)


@njit(inline="always")
def _is_last(state):
    """Whether there is no plane left to cross."""
    return state[2][0] + state[2][1] + state[2][2] == 0


@njit(nogil=True, cache=True, error_model="numpy")
def integrals(voxels, labels, channel_of, matrix, s, t, first, last, result):
    """result [C, N] of the rays first .. last - 1; voxels [K, J, I], matrix: world mm to voxel edges."""
    shape = (voxels.shape[2], voxels.shape[1], voxels.shape[0])
    box = (float(shape[0]), float(shape[1]), float(shape[2]))
    for n in range(first, last):
        start, d = on_grid(matrix, s[n], t[n])
        near, far, _, _ = clipped(start, d, (0.0, 0.0, 0.0), box)
        result[:, n] = 0
        length, alpha = length_of(s[n], t[n]), near
        state, plan = _begun(start, d, near, far, (0, 0, 0), shape)
        while far > near:
            i, j, k = state[0]
            ahead = _ahead(state, alpha, far)
            channel = channel_of_voxel(labels, channel_of, k, j, i)
            if channel >= 0:
                result[channel, n] += voxels[k, j, i] * (ahead - alpha) * length
            if _is_last(state):
                break
            alpha = ahead
            _, state = _crossed(state, plan)


@njit(inline="always")
def _jump(axis, alpha, jump, d, by_s, by_t):
    """A change of the value by `jump` (before - after) at a plane of `axis`: dI = jump * d alpha."""
    by_s[axis] += jump * (alpha - 1) / d[axis]
    by_t[axis] -= jump * alpha / d[axis]


@njit(inline="always")
def _weighed(voxels, labels, channel_of, weight, n, voxel):
    i, j, k = voxel
    channel = channel_of_voxel(labels, channel_of, k, j, i)
    return voxels[k, j, i] * weight[channel, n] if channel >= 0 else 0.0


@njit(nogil=True, cache=True, error_model="numpy")
def ray_gradients(voxels, labels, channel_of, matrix, s, t, weight, first, last, by_source, by_target):
    """Derivatives [N, 3] (world) of sum_c weight[c, n] I[c, n]."""
    shape = (voxels.shape[2], voxels.shape[1], voxels.shape[0])
    box = (float(shape[0]), float(shape[1]), float(shape[2]))
    of_s, of_t = np.empty(3), np.empty(3)
    for n in range(first, last):
        start, d = on_grid(matrix, s[n], t[n])
        near, far, enters, leaves = clipped(start, d, (0.0, 0.0, 0.0), box)
        if far == near:
            by_source[n], by_target[n] = 0, 0
            continue
        of_s[:], of_t[:] = 0, 0
        state, plan = _begun(start, d, near, far, (0, 0, 0), shape)
        value, alpha, total = _weighed(voxels, labels, channel_of, weight, n, state[0]), near, 0.0
        if enters >= 0:
            _jump(enters, near, -value, d, of_s, of_t)
        while not _is_last(state):
            ahead, before = _ahead(state, alpha, far), value
            total += value * (ahead - alpha)
            alpha = ahead
            axis, state = _crossed(state, plan)
            value = _weighed(voxels, labels, channel_of, weight, n, state[0])
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
    first, past = (0, 0, low), (result.shape[2], result.shape[1], high)
    box = (float(past[0]), float(past[1]), float(past[2]))
    for n in range(s.shape[0]):
        start, d = on_grid(matrix, s[n], t[n])
        near, far, _, _ = clipped(start, d, (0.0, 0.0, float(low)), box)
        length, alpha = length_of(s[n], t[n]), near
        state, plan = _begun(start, d, near, far, first, past)
        while far > near:
            i, j, k = state[0]
            ahead = _ahead(state, alpha, far)
            channel = channel_of_voxel(labels, channel_of, k, j, i)
            if channel >= 0:
                result[k, j, i] += weight[channel, n] * (ahead - alpha) * length
            if _is_last(state):
                break
            alpha = ahead
            _, state = _crossed(state, plan)
