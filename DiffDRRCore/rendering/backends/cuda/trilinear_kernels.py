"""Kernels of the trilinear integrator, one of each for each way of sharing a sample among channels.

One thread takes one piece of one ray, and threads share nothing but the adjoint's atomic additions.
"""

from __future__ import annotations

import warp as wp

from DiffDRRCore.rendering.backends.cuda.segments import Segment, Voxels, add, by_ends, clip, flat, length_mm, vec7f
from DiffDRRCore.rendering.backends.cuda.sharing import (
    CHANNEL_OF_SAMPLE,
    MIXED,
    WEIGHT_OF_VOXEL,
    WEIGHTED_CELL,
    Channels,
    add_mixed,
)
from DiffDRRCore.rendering.backends.cuda.trilinear import (
    MARGIN,
    ahead,
    cell_of,
    corner,
    corners,
    fraction_of,
    interpolate,
    look,
    march,
    samples_to_leave,
    share,
    slope,
)

wp.set_module_options({"enable_backward": False})


def make_integrals(channels: Channels):
    """Kernel: integrals of each piece, out [pieces, channels, N] (zero before)."""
    channel_of = CHANNEL_OF_SAMPLE[channels]

    @wp.kernel
    def trilinear_integrals(
        voxels: Voxels,
        s: wp.array(dtype=wp.vec3d),
        t: wp.array(dtype=wp.vec3d),
        parts: int,
        out: wp.array3d(dtype=wp.float32),
    ):
        piece, ray = wp.tid()
        segment = clip(s[ray], t[ray], voxels.ras_to_ijk, voxels.size, wp.float64(MARGIN))
        m = march(segment, voxels.size, parts, piece, out.shape[0])
        scale = wp.float32(length_mm(segment) / wp.float64(parts))
        channel = wp.int32(0)
        total = wp.float32(0.0)
        while m.first < m.last:
            cell = cell_of(m.position)
            m = look(m, voxels, cell)
            if m.occupied:
                of_sample = channel_of(voxels, m.position)
                if of_sample != channel:
                    add(out, piece, channel, ray, total * scale)
                    total = wp.float32(0.0)
                    channel = of_sample
                base = flat(cell, voxels.size)
                if channel >= 0:
                    total += interpolate(corners(voxels.values, base, voxels.size), fraction_of(m.position))
                elif channel == MIXED:
                    add_mixed(out, piece, ray, voxels, base, fraction_of(m.position), scale)
                m = ahead(m, 1)
            else:
                m = ahead(m, samples_to_leave(m, cell))
        add(out, piece, channel, ray, total * scale)

    return trilinear_integrals


def make_derivatives(channels: Channels):
    """Kernel: integral and derivatives by s and t of each piece, out [pieces, N] of seven numbers.

    With channels, it is their weighted sum, weight [channels, N]; without, weight is not read.
    """
    weighted_cell = WEIGHTED_CELL[channels]

    @wp.kernel
    def trilinear_derivatives(
        voxels: Voxels,
        s: wp.array(dtype=wp.vec3d),
        t: wp.array(dtype=wp.vec3d),
        parts: int,
        weight: wp.array2d(dtype=wp.float32),
        out: wp.array2d(dtype=vec7f),
    ):
        piece, ray = wp.tid()
        segment = clip(s[ray], t[ray], voxels.ras_to_ijk, voxels.size, wp.float64(MARGIN))
        m = march(segment, voxels.size, parts, piece, out.shape[0])
        per_part = 1.0 / wp.float32(parts)
        total = wp.float32(0.0)
        moved = wp.vec3(0.0, 0.0, 0.0)
        tilted = wp.vec3(0.0, 0.0, 0.0)
        while m.first < m.last:
            cell = cell_of(m.position)
            m = look(m, voxels, cell)
            if m.occupied:
                at = fraction_of(m.position)
                c = weighted_cell(voxels, m.position, flat(cell, voxels.size), weight, ray)
                gradient = slope(c, at)
                total += interpolate(c, at)
                moved += gradient
                tilted += gradient * ((wp.float32(m.first) + 0.5) * per_part)
                m = ahead(m, 1)
            else:
                m = ahead(m, samples_to_leave(m, cell))
        along = t[ray] - s[ray]
        out[piece, ray] = derivatives_of_sums(segment, voxels.ras_to_ijk, along, parts, total, moved, tilted)

    return trilinear_derivatives


@wp.func
def derivatives_of_sums(
    segment: Segment,
    ras_to_ijk: wp.mat44d,
    along: wp.vec3d,
    parts: int,
    total: float,
    moved: wp.vec3,
    tilted: wp.vec3,
) -> vec7f:
    """The integral and its derivatives, from sums over samples of the field, its gradient g, and w g (see `by_ends`).

    The integral is |t - s| (leave - entry) / parts times the sum of the field, whose samples move with entry and leave
    along the ray by 1 - w and w.
    """
    scale = length_mm(segment) / wp.float64(parts)
    shifted = wp.vec3d(moved) * scale
    turned = wp.vec3d(tilted) * scale
    longer = segment.distance * wp.float64(total) / wp.float64(parts)
    by_entry = wp.dot(shifted - turned, segment.direction) - longer
    by_leave = wp.dot(turned, segment.direction) + longer
    return by_ends(segment, ras_to_ijk, along, wp.float64(total) * scale, shifted, turned, by_entry, by_leave)


@wp.func
def scatter(out: wp.array3d(dtype=wp.float32), cell: wp.vec3i, number: int, size: wp.vec3i, value: float):
    """Add to one of a cell's eight voxels, unless it is padding."""
    i = cell[0] + (number & 1) - 1
    j = cell[1] + ((number >> 1) & 1) - 1
    k = cell[2] + (number >> 2) - 1
    if i >= 0 and j >= 0 and k >= 0 and i < size[0] and j < size[1] and k < size[2] and value != 0.0:
        wp.atomic_add(out, k, j, i, value)


def make_adjoint(channels: Channels):
    """Kernel: adds weight [channels, N] times the derivative of the integrals to out [K, J, I]. Empty bricks count."""
    weight_of_voxel = WEIGHT_OF_VOXEL[channels]

    @wp.kernel
    def trilinear_adjoint(
        voxels: Voxels,
        s: wp.array(dtype=wp.vec3d),
        t: wp.array(dtype=wp.vec3d),
        parts: int,
        pieces: int,
        weight: wp.array2d(dtype=wp.float32),
        out: wp.array3d(dtype=wp.float32),
    ):
        piece, ray = wp.tid()
        segment = clip(s[ray], t[ray], voxels.ras_to_ijk, voxels.size, wp.float64(MARGIN))
        m = march(segment, voxels.size, parts, piece, pieces)
        scale = wp.float32(length_mm(segment) / wp.float64(parts))
        while m.first < m.last:
            cell = cell_of(m.position)
            at = fraction_of(m.position)
            for number in range(8):
                index = corner(number, flat(cell, voxels.size), voxels.size)
                value = weight_of_voxel(voxels, m.position, index, weight, ray) * share(number, at) * scale
                scatter(out, cell, number, voxels.size, value)
            m = ahead(m, 1)

    return trilinear_adjoint


INTEGRALS = tuple(make_integrals(channels) for channels in Channels)
DERIVATIVES = tuple(make_derivatives(channels) for channels in Channels)
ADJOINT = tuple(make_adjoint(channels) for channels in Channels)
