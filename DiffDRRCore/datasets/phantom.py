"""A CT that needs no download: lower thorax to hips, drawn from a few hundred solids."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from DiffDRRCore.datasets.anatomy import CORTEX, FAT, LABELS, MUSCLE, Structure, build_anatomy
from DiffDRRCore.datasets.solids import Axes, Solid
from DiffDRRCore.errors import VolumeError
from DiffDRRCore.geometry.tensors import as_tensor
from DiffDRRCore.imaging.volume import Volume

AIR = -1000.0
SKIN_AND_FAT = 14.0  # mm


def phantom(shape: Sequence[int] = (192, 128, 168), spacing=2.0, seed: int = 0, noise: float = 0.0) -> Volume:
    """A synthetic CT in HU with labels: vertebrae, sacrum, ribs, hips and femurs with cortex and marrow, lungs, organs.

    The anatomy has its own size (an adult) and place, about the RAS origin, where the grid is centred: fewer voxels
    show less of it, larger voxels show it coarser. Voxels on a surface hold the mean of both sides. The two sides of
    the body differ, so that a registration has one optimum.

    Args:
        shape: voxels (K, J, I): superior, anterior, right. The default covers 384 x 256 x 336 mm.
        spacing: mm, one number or (i, j, k).
        seed: which patient: the bones' places and the texture vary by it.
        noise: standard deviation of the CT noise in HU.

    Raises VolumeError for sizes that are not positive.
    """
    step = as_tensor(spacing).double().expand(3)
    if len(shape) != 3 or min(shape) < 1 or not bool((step > 0).all()) or noise < 0:
        raise VolumeError(f"A phantom needs 3 positive sizes and spacings, got {tuple(shape)} and {step.tolist()} mm.")
    counts = torch.tensor(tuple(shape)[::-1], dtype=torch.float64)
    ijk_to_ras = torch.diag(torch.cat([step, torch.ones(1, dtype=torch.float64)]))
    ijk_to_ras[:3, 3] = -step * (counts - 1) / 2
    axes = _grid_axes(ijk_to_ras, shape)
    generator = torch.Generator().manual_seed(seed)
    hu = _torso(axes, float(step.max()))
    labels = torch.zeros(tuple(shape), dtype=torch.int16)
    for structure in build_anatomy(seed).structures:
        _paint(hu, labels, structure, axes, float(step.max()))
    hu += _texture(hu, axes, generator)
    if noise > 0:
        hu += noise * torch.randn(hu.shape, generator=generator)
    return Volume(hu.clamp(min=-1024), ijk_to_ras, labels, LABELS)


def phantom_landmarks(seed: int = 0) -> dict[str, Tensor]:
    """Named points of `phantom(seed=seed)` in RAS mm, each [3] float64; some lie outside small grids."""
    points = build_anatomy(seed).landmarks
    return {name: torch.tensor(point, dtype=torch.float64) for name, point in points.items()}


def _grid_axes(ijk_to_ras: Tensor, shape: Sequence[int]) -> Axes:
    """x [I], y [J, 1], z [K, 1, 1] in mm, float32."""
    x, y, z = (
        (torch.arange(n, dtype=torch.float64) * ijk_to_ras[axis, axis] + ijk_to_ras[axis, 3]).float()
        for axis, n in enumerate(tuple(shape)[::-1])
    )
    return x, y[:, None], z[:, None, None]


def _torso(axes: Axes, step: float) -> Tensor:
    """HU of fat around muscle in air: a rounded cross-section, wider at the hips, leaning a little, thighs below."""
    x, y, z = axes
    width = 140 + 18 * torch.exp(-(((z + 130) / 75) ** 2)) + 12 * torch.sigmoid((z - 100) / 25)
    depth = 98 + 8 * torch.exp(-(((z + 110) / 60) ** 2)) + 6 * torch.sigmoid((z - 90) / 30)
    lean = 9 * torch.sin((z - 20) / 80)
    radius = (((x - lean) / width).abs() ** 2.4 + ((y - 2) / depth).abs() ** 2.4) ** (1 / 2.4)
    distance = (radius - 1) * torch.minimum(width, depth)
    # between the thighs, from 170 mm below the origin on
    distance = torch.maximum(distance, 12 - (x**2 + 0.5 * (z + 190).clamp(min=0) ** 2).sqrt())
    skin, inner = _filled(distance, step), _filled(distance + SKIN_AND_FAT, step)
    return AIR + (FAT - AIR) * skin + (MUSCLE - FAT) * inner


def _paint(hu: Tensor, labels: Tensor, structure: Structure, axes: Axes, step: float) -> None:
    """Replace, in place, what the structure fills."""
    bounds = [solid.bounds() for solid in structure.solids]
    low = [min(b[0][n] for b in bounds) - step for n in range(3)]
    high = [max(b[1][n] for b in bounds) + step for n in range(3)]
    window = _window(axes, low, high)
    if window is None:
        return
    inner_axes = axes[0][window[2]], axes[1][window[1]], axes[2][window[0]]
    distance = _union(structure.solids, inner_axes, step)
    filled = _filled(distance, step)
    material = torch.full_like(filled, structure.hu)
    if structure.shell > 0:
        material = CORTEX + (structure.hu - CORTEX) * _filled(distance + structure.shell, step)
    hu[window] = torch.lerp(hu[window], material, filled)
    labels[window].masked_fill_(filled > 0.5, structure.number)


def _union(solids: Sequence[Solid], axes: Axes, step: float) -> Tensor:
    """The distance to the nearest of the solids, [K, J, I]; far from all of them just a large number."""
    distance = torch.full(torch.broadcast_shapes(*(axis.shape for axis in axes)), 1e6)
    for solid in solids:
        low, high = solid.bounds()
        window = _window(axes, [value - step for value in low], [value + step for value in high])
        if window is not None:
            part = axes[0][window[2]], axes[1][window[1]], axes[2][window[0]]
            distance[window] = torch.minimum(distance[window], solid.distance(part))
    return distance


def _window(axes: Axes, low: Sequence[float], high: Sequence[float]) -> tuple[slice, slice, slice] | None:
    """The slices (K, J, I) of the voxels between two corners, None where there are none."""
    slices = []
    for axis, a, b in zip(axes, low, high, strict=True):
        first, last = torch.searchsorted(axis.flatten(), torch.tensor([a, b])).tolist()
        if first == last:
            return None
        slices.append(slice(first, last))
    return slices[2], slices[1], slices[0]


def _filled(distance: Tensor, step: float) -> Tensor:
    """The fraction of a voxel inside a surface at a signed distance from its centre."""
    return (0.5 - distance / step).clamp(0, 1)


def _texture(hu: Tensor, axes: Axes, generator: torch.Generator) -> Tensor:
    """Smooth variations of the tissues, 8 HU in soft tissue and 40 HU in bone, the same on every grid."""
    lattice = torch.randn(1, 1, 64, 48, 48, generator=generator)
    x, y, z = torch.broadcast_tensors(axes[0] / 240, axes[1] / 240, axes[2] / 320)
    where = torch.stack([x, y, z], dim=-1)[None]
    smooth = torch.nn.functional.grid_sample(lattice, where, align_corners=True, padding_mode="reflection")[0, 0]
    amplitude = torch.where(hu > 150, 40.0, 8.0) * ((hu + 200) / 100).clamp(0, 1)
    return amplitude * smooth
