"""Blocks of voxels: mean, majority, and the grid of the blocks."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d


def block_mean(values: Tensor, factors: tuple[int, int, int]) -> Tensor:
    """Mean of each block of (k, j, i) `factors` voxels of `values` [K, J, I], zeros beyond the end."""
    area = factors[1] * factors[2]
    if area > 1:  # the divisor makes what a window lacks at the end count as zero
        wide = values.to(torch.promote_types(values.dtype, torch.float32))
        pooled = avg_pool2d(wide[None], factors[1:], ceil_mode=True, divisor_override=area)[0]
        values = pooled.to(values.dtype)
    return _blocks(values, (factors[0], 1, 1)).mean(dim=(1, 3, 5))


def block_majority(labels: Tensor, factors: tuple[int, int, int]) -> Tensor:
    """Most frequent number in each block of `labels` [K, J, I], zeros beyond the end; of equals the smallest."""
    blocks = _blocks(labels, factors).permute(0, 2, 4, 1, 3, 5)
    return blocks.reshape(*blocks.shape[:3], -1).mode(dim=-1).values


def coarse_grid(ijk_to_ras: Tensor, factors: tuple[int, int, int]) -> Tensor:
    """The affine of the blocks: block n of an axis is centred on voxel factor * n + (factor - 1) / 2."""
    size = ijk_to_ras.new_tensor(factors[::-1])
    block_to_voxel = torch.diag(torch.cat([size, size.new_ones(1)]))
    block_to_voxel[:3, 3] = (size - 1) / 2
    return ijk_to_ras @ block_to_voxel


def _blocks(values: Tensor, factors: tuple[int, int, int]) -> Tensor:
    """[K', fk, J', fj, I', fi], the axes filled up with zeros."""
    missing = [-length % factor for length, factor in zip(values.shape, factors, strict=True)]
    padded = torch.nn.functional.pad(values, (0, missing[2], 0, missing[1], 0, missing[0]))
    shape = [n for length, factor in zip(padded.shape, factors, strict=True) for n in (length // factor, factor)]
    return padded.reshape(shape)
