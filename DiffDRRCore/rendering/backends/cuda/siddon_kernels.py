"""Kernels of Siddon's integrator, one of each without channels and one with.

One thread takes one piece of one ray, and threads share nothing but the adjoint's atomic additions.
"""

from __future__ import annotations

import warp as wp

from DiffDRRCore.rendering.backends.cuda.segments import Voxels, add, by_ends, clip, flat, length_mm, vec7f, weight_of
from DiffDRRCore.rendering.backends.cuda.siddon import MARGIN, UNIT, cross_next, leave_brick, look, walk

wp.set_module_options({"enable_backward": False})


@wp.func
def only_channel(voxels: Voxels, index: int) -> int:
    """The channel of everything."""
    return 0


@wp.func
def channel_of_voxel(voxels: Voxels, index: int) -> int:
    """A voxel's channel, or -1."""
    return wp.int32(voxels.channels[index])


@wp.func
def plain_value(voxels: Voxels, index: int, weight: wp.array2d(dtype=wp.float32), ray: int) -> float:
    """A voxel's attenuation; the weight is not read."""
    return voxels.values[index]


@wp.func
def weighted_value(voxels: Voxels, index: int, weight: wp.array2d(dtype=wp.float32), ray: int) -> float:
    """A voxel's attenuation times the weight of its channel."""
    return voxels.values[index] * weight_of(wp.int32(voxels.channels[index]), weight, ray)


def make_integrals(channel_of):
    """Kernel: integrals of each piece, out [pieces, channels, N] (zero before)."""

    @wp.kernel
    def siddon_integrals(
        voxels: Voxels,
        s: wp.array(dtype=wp.vec3d),
        t: wp.array(dtype=wp.vec3d),
        out: wp.array3d(dtype=wp.float32),
    ):
        piece, ray = wp.tid()
        segment = clip(s[ray], t[ray], voxels.ras_to_ijk, voxels.size, wp.float64(MARGIN))
        w = walk(segment, voxels.size, piece, out.shape[0])
        scale = wp.float32(length_mm(segment) / wp.float64(UNIT))
        channel = wp.int32(0)
        total = wp.float32(0.0)
        while w.at < w.end:
            w = look(w, voxels)
            if w.occupied:
                index = flat(w.voxel, voxels.size)
                of_voxel = channel_of(voxels, index)
                if of_voxel != channel:
                    add(out, piece, channel, ray, total * scale)
                    total = wp.float32(0.0)
                    channel = of_voxel
                start = w.at
                w = cross_next(w)
                total += voxels.values[index] * wp.float32(w.at - start)
            else:
                w = leave_brick(w)
        add(out, piece, channel, ray, total * scale)

    return siddon_integrals


@wp.func
def along_axis(axis: int, value: float) -> wp.vec3:
    """A vector along one axis; zero where the axis is -1."""
    return wp.vec3(wp.where(axis == 0, value, 0.0), wp.where(axis == 1, value, 0.0), wp.where(axis == 2, value, 0.0))


@wp.func
def inverse(extent: wp.vec3d) -> wp.vec3:
    """1 / extent along each axis; zero along an axis without one, where no plane is crossed."""
    result = wp.vec3(0.0, 0.0, 0.0)
    for axis in range(3):
        if extent[axis] != wp.float64(0.0):
            result[axis] = wp.float32(wp.float64(1.0) / extent[axis])
    return result


def make_derivatives(value_of):
    """Kernel: integral and derivatives by s and t of each piece, out [pieces, N] of seven numbers.

    The integral's derivative by the position of a plane is the jump of attenuation there. With channels, it is their
    weighted sum, weight [channels, N]; without, weight is not read.
    """

    @wp.kernel
    def siddon_derivatives(
        voxels: Voxels,
        s: wp.array(dtype=wp.vec3d),
        t: wp.array(dtype=wp.vec3d),
        weight: wp.array2d(dtype=wp.float32),
        out: wp.array2d(dtype=vec7f),
    ):
        piece, ray = wp.tid()
        segment = clip(s[ray], t[ray], voxels.ras_to_ijk, voxels.size, wp.float64(MARGIN))
        w = walk(segment, voxels.size, piece, out.shape[0])
        per_extent = inverse(segment.extent)
        unit = wp.float32(1.0 / UNIT)
        by_entry = wp.float32(0.0)
        before = wp.float32(0.0)
        total = wp.float32(0.0)
        moved = wp.vec3(0.0, 0.0, 0.0)
        tilted = wp.vec3(0.0, 0.0, 0.0)
        while w.at < w.end:
            w = look(w, voxels)
            value = wp.float32(0.0)
            if w.occupied:
                value = value_of(voxels, flat(w.voxel, voxels.size), weight, ray)
            if w.at == wp.int64(0) and w.crossed < 0:
                by_entry = -value
            jump = wp.cw_mul(along_axis(w.crossed, value - before), per_extent)
            moved += jump
            tilted += jump * (wp.float32(w.at) * unit)
            before = value
            start = w.at
            if w.occupied:
                w = cross_next(w)
                total += value * (wp.float32(w.at - start) * unit)
            else:
                w = leave_brick(w)
        by_leave = wp.where(piece + 1 == out.shape[0], before, 0.0)
        length = length_mm(segment)
        out[piece, ray] = by_ends(
            segment,
            voxels.ras_to_ijk,
            t[ray] - s[ray],
            wp.float64(total) * length,
            wp.vec3d(moved) * length,
            wp.vec3d(tilted) * length,
            wp.float64(by_entry) * segment.distance,
            wp.float64(by_leave) * segment.distance,
        )

    return siddon_derivatives


def make_adjoint(channel_of):
    """Kernel: adds weight [channels, N] times the derivative of the integrals to out [K, J, I]. Empty bricks count."""

    @wp.kernel
    def siddon_adjoint(
        voxels: Voxels,
        s: wp.array(dtype=wp.vec3d),
        t: wp.array(dtype=wp.vec3d),
        pieces: int,
        weight: wp.array2d(dtype=wp.float32),
        out: wp.array3d(dtype=wp.float32),
    ):
        piece, ray = wp.tid()
        segment = clip(s[ray], t[ray], voxels.ras_to_ijk, voxels.size, wp.float64(MARGIN))
        w = walk(segment, voxels.size, piece, pieces)
        scale = wp.float32(length_mm(segment) / wp.float64(UNIT))
        while w.at < w.end:
            channel = channel_of(voxels, flat(w.voxel, voxels.size))
            start = w.at
            voxel = w.voxel
            w = cross_next(w)
            value = weight_of(channel, weight, ray) * scale * wp.float32(w.at - start)
            if value != 0.0:
                wp.atomic_add(out, voxel[2] - 1, voxel[1] - 1, voxel[0] - 1, value)

    return siddon_adjoint


INTEGRALS = (make_integrals(only_channel), make_integrals(channel_of_voxel))
DERIVATIVES = (make_derivatives(plain_value), make_derivatives(weighted_value))
ADJOINT = (make_adjoint(only_channel), make_adjoint(channel_of_voxel))
