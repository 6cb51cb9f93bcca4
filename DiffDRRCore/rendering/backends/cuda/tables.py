"""What the kernels read of a Field, prepared once for each Grid and kept in `grid.tables`."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
import warp as wp
from torch import Tensor
from torch.nn.functional import pad

from DiffDRRCore.errors import RenderError
from DiffDRRCore.rendering.backends.cuda.interop import launch, start
from DiffDRRCore.rendering.backends.cuda.segments import Voxels, flat
from DiffDRRCore.rendering.backends.cuda.sharing import Channels
from DiffDRRCore.rendering.field import Field

if TYPE_CHECKING:
    from DiffDRRCore.rendering.backends.fused.grid import Grid

wp.set_module_options({"enable_backward": False})

_KEY = "warp"
_BRICK = 8
_MAX_CHANNELS = 2**15 - 1
_MAX_VOXELS = 2**31 - 1


class Tables(NamedTuple):
    """The kernels' argument, and how their channels become the field's.

    Attributes:
        voxels: the kernels' argument; it refers to the memory of `arrays`.
        channels: how a sample is shared.
        order: kernel's channel [C] of each of the field's channels, which may repeat; None where they are the same.
        count: number of the kernels' channels.
        arrays: the tensors that must live as long as `voxels`.
    """

    voxels: Voxels
    channels: Channels
    order: Tensor | None
    count: int
    arrays: tuple[Tensor, ...]


def tables_of(grid: Grid) -> Tables:
    """The tables of a grid, made at the first call.

    Raises RenderError where a volume or its number of channels is too large for the kernels' indices.
    """
    if _KEY not in grid.tables:
        start()
        grid.tables[_KEY] = _make_tables(grid.field, reach=_BRICK + (grid.integrator == "trilinear"))
    return grid.tables[_KEY]


def _make_tables(field: Field, reach: int) -> Tables:
    """Padded voxels, their channels, and the bricks that are not empty."""
    attenuation = field.attenuation.detach().to(torch.float32)
    padded = [n + 2 for n in attenuation.shape]
    if padded[0] * padded[1] * padded[2] > _MAX_VOXELS:
        raise RenderError(f"A volume of {tuple(attenuation.shape)} voxels is too large for the cuda backend.")
    kind, labels, order = _kernel_channels(field)
    index = _channel_of_voxels(field, labels)
    if kind == Channels.SOFT:
        attenuation = torch.where(index[1:-1, 1:-1, 1:-1] >= 0, attenuation, 0.0)
    values = pad(attenuation, (1,) * 6).reshape(-1)
    bricks = [(n + 1) // _BRICK + 1 for n in attenuation.shape]
    occupied = torch.zeros(bricks[0] * bricks[1] * bricks[2], dtype=torch.uint8, device=values.device)
    voxels = Voxels()
    voxels.ras_to_ijk = wp.mat44d(*field.ras_to_ijk.detach().to("cpu", torch.float64).flatten().tolist())
    voxels.size = wp.vec3i(*reversed(attenuation.shape))
    voxels.bricks = wp.vec3i(*reversed(bricks))
    voxels.values, voxels.channels, voxels.occupied = (wp.from_torch(x) for x in (values, index.reshape(-1), occupied))
    launch(find_occupied, (len(occupied),), (voxels, reach, bool(field.channels)), occupied.device)
    return Tables(voxels, kind, order, len(labels), (values, index, occupied))


def _kernel_channels(field: Field) -> tuple[Channels, Tensor, Tensor | None]:
    """How samples are shared, the sorted labels that the kernels have channels for, and `Tables.order`."""
    device = field.attenuation.device
    if not field.channels:
        return Channels.ONE, torch.zeros(1, dtype=torch.int64, device=device), None
    asked = torch.tensor(field.channels, dtype=torch.int64, device=device)
    labels, order = torch.unique(asked, return_inverse=True)
    if len(labels) > _MAX_CHANNELS:
        raise RenderError(f"The cuda backend renders at most {_MAX_CHANNELS} labels at a time, got {len(labels)}.")
    same = list(field.channels) == sorted(set(field.channels))
    return Channels.SOFT if field.soft else Channels.NEAREST, labels, None if same else order


def _channel_of_voxels(field: Field, labels: Tensor) -> Tensor:
    """Channel of each voxel, -1 for none, int16, with the outermost ones repeated all around; nothing for one channel.

    Slice by slice, as what this takes on the way is many times the result.
    """
    if not field.channels:
        return torch.zeros(0, dtype=torch.int16, device=labels.device)
    k, j, i = (torch.arange(-1, n + 1, device=labels.device).clamp(0, n - 1) for n in field.labels.shape)
    return torch.stack([_channels_of_slice(plane, labels) for plane in field.labels])[k[:, None, None], j[:, None], i]


def _channels_of_slice(plane: Tensor, labels: Tensor) -> Tensor:
    plane = plane.to(torch.int64)
    index = torch.searchsorted(labels, plane).clamp(max=len(labels) - 1)
    return torch.where(labels[index] == plane, index, -1).to(torch.int16)


@wp.kernel
def find_occupied(voxels: Voxels, reach: int, labelled: bool):
    """Which bricks add to an integral: one of `reach` voxels along each axis has attenuation, and one a channel."""
    brick = wp.tid()
    low = 8 * wp.vec3i(
        brick % voxels.bricks[0],
        (brick // voxels.bricks[0]) % voxels.bricks[1],
        brick // (voxels.bricks[0] * voxels.bricks[1]),
    )
    dense = wp.bool(False)
    wanted = not labelled
    for k in range(low[2], wp.min(low[2] + reach, voxels.size[2] + 2)):
        for j in range(low[1], wp.min(low[1] + reach, voxels.size[1] + 2)):
            for i in range(low[0], wp.min(low[0] + reach, voxels.size[0] + 2)):
                index = flat(wp.vec3i(i, j, k), voxels.size)
                dense = dense or voxels.values[index] != 0.0
                wanted = wanted or voxels.channels[index] >= wp.int16(0)
    voxels.occupied[brick] = wp.uint8(wp.where(dense and wanted, 1, 0))
