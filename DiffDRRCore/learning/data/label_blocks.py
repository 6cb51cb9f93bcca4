"""Labels on the coarser grid that a CT is rendered on."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

import torch
from torch import Tensor

from DiffDRRCore.imaging.coarsening import block_majority, block_mean

_SLAB = 2**22  # voxels that are looked at a time
_LEAST = 0.5  # of a structure's volume, below which the majority does not do it justice


def counted(labels: Tensor) -> Counter[int]:
    """{number: voxels} of whole numbers [K, J, I]."""
    found: Counter[int] = Counter()
    for slab in labels.flatten().split(_SLAB):
        least = int(slab.min())
        counts = torch.bincount(slab.long() - least)
        present = counts.nonzero()[:, 0]
        found.update(dict(zip((present + least).tolist(), counts[present].tolist(), strict=True)))
    return found


def coarse_labels(labels: Tensor, factors: tuple[int, int, int], wanted: Iterable[int]) -> Tensor:
    """Labels [K, J, I] in blocks of (k, j, i) `factors` voxels: the most frequent one of each.

    Of `wanted` structures that lose more than half of their volume by that (thin ones: they are nowhere in the
    majority), as many blocks as they have volume are theirs, those with most of them; the smaller structure wins.
    """
    coarse, block = block_majority(labels, factors), math.prod(factors)
    if block == 1:
        return coarse
    before, after = counted(labels), counted(coarse)
    for number in sorted(wanted, key=lambda one: -before[one]):
        blocks = max(1, round(before[number] / block))
        if before[number] and after[number] < _LEAST * blocks:
            coarse.view(-1)[_share(labels, factors, number).flatten().topk(blocks).indices] = number
    return coarse


def _share(labels: Tensor, factors: tuple[int, int, int], number: int) -> Tensor:
    """Of each block that a structure fills."""
    rows = max(1, _SLAB // (labels.shape[1] * labels.shape[2] * factors[0])) * factors[0]
    return torch.cat([block_mean((slab == number).float(), factors) for slab in labels.split(rows)])
