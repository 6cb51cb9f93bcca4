"""How trilinear samples are shared among channels: not at all, by the nearest voxel, or by each of its eight voxels.

For each way a function of the same form gives the channel of a sample, its cell weighted by the channels' weights on a
ray, and the weight of one of its cell's voxels; kernels are made from them.
"""

from __future__ import annotations

from enum import IntEnum

import warp as wp

from DiffDRRCore.rendering.backends.cuda.segments import Voxels, add, flat, vec3l, weight_of
from DiffDRRCore.rendering.backends.cuda.trilinear import cell_of, corner, corners, share, vec8f
from DiffDRRCore.rendering.field import NEAREST_TIE

wp.set_module_options({"enable_backward": False})

HALF_WAY = round((0.5 + NEAREST_TIE) * 2**32)
"""Added to a position, it makes the cell the nearest voxel."""

MIXED = -2
"""Not a channel: the voxels of this cell have several."""


class Channels(IntEnum):
    """The ways, in the order of the tables of functions below."""

    ONE = 0
    NEAREST = 1
    SOFT = 2


@wp.func
def only_channel(voxels: Voxels, position: vec3l) -> int:
    """The channel of everything."""
    return 0


@wp.func
def nearest_channel(voxels: Voxels, position: vec3l) -> int:
    """Channel of the nearest voxel; the padding has the channels of the outermost voxels."""
    half = wp.int64(HALF_WAY)
    voxel = cell_of(vec3l(position[0] + half, position[1] + half, position[2] + half))
    return wp.int32(voxels.channels[flat(voxel, voxels.size)])


@wp.func
def common_channel(voxels: Voxels, position: vec3l) -> int:
    """The channel of all eight voxels of a cell, or MIXED."""
    base = flat(cell_of(position), voxels.size)
    common = wp.int32(voxels.channels[base])
    for number in range(1, 8):
        if wp.int32(voxels.channels[corner(number, base, voxels.size)]) != common:
            common = MIXED
    return common


@wp.func
def add_mixed(
    out: wp.array3d(dtype=wp.float32), piece: int, ray: int, voxels: Voxels, base: int, at: wp.vec3, scale: float
):
    """Add each of a cell's voxels' share of a sample to its own channel."""
    for number in range(8):
        index = corner(number, base, voxels.size)
        value = voxels.values[index] * share(number, at) * scale
        add(out, piece, wp.int32(voxels.channels[index]), ray, value)


@wp.func
def plain_cell(voxels: Voxels, position: vec3l, base: int, weight: wp.array2d(dtype=wp.float32), ray: int) -> vec8f:
    """The cell's voxels; the weight is not read."""
    return corners(voxels.values, base, voxels.size)


@wp.func
def nearest_cell(voxels: Voxels, position: vec3l, base: int, weight: wp.array2d(dtype=wp.float32), ray: int) -> vec8f:
    """The cell's voxels, times the weight of the sample's channel."""
    return corners(voxels.values, base, voxels.size) * weight_of(nearest_channel(voxels, position), weight, ray)


@wp.func
def soft_cell(voxels: Voxels, position: vec3l, base: int, weight: wp.array2d(dtype=wp.float32), ray: int) -> vec8f:
    """The cell's voxels, each times the weight of its own channel."""
    c = corners(voxels.values, base, voxels.size)
    for number in range(8):
        channel = wp.int32(voxels.channels[corner(number, base, voxels.size)])
        c[number] = c[number] * weight_of(channel, weight, ray)
    return c


@wp.func
def plain_weight(voxels: Voxels, position: vec3l, index: int, weight: wp.array2d(dtype=wp.float32), ray: int) -> float:
    """The weight of the ray."""
    return weight[0, ray]


@wp.func
def nearest_weight(
    voxels: Voxels, position: vec3l, index: int, weight: wp.array2d(dtype=wp.float32), ray: int
) -> float:
    """The weight of the sample's channel."""
    return weight_of(nearest_channel(voxels, position), weight, ray)


@wp.func
def soft_weight(voxels: Voxels, position: vec3l, index: int, weight: wp.array2d(dtype=wp.float32), ray: int) -> float:
    """The weight of the voxel's own channel."""
    return weight_of(wp.int32(voxels.channels[index]), weight, ray)


CHANNEL_OF_SAMPLE = (only_channel, nearest_channel, common_channel)
WEIGHTED_CELL = (plain_cell, nearest_cell, soft_cell)
WEIGHT_OF_VOXEL = (plain_weight, nearest_weight, soft_weight)
