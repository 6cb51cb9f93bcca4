"""Histogram equalisation of batches, with limited contrast (CLAHE), inside a mask; for augmentation.

`physics.display.clahe` does it image by image, for display; this one has no loop over images and waits for no device.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

_ROUNDS = 16  # of bisection: 1e-5 of a bin's share


def equalized(image: Tensor, inside: Tensor, clip: Tensor, tiles: int = 1, bins: int = 64) -> Tensor:
    """Images [B, H, W] of 0..1, equalised by tiles (K. Zuiderveld, Graphics Gems IV, 1994).

    The map of each tile is the cumulated histogram of its pixels inside the mask after no bin holds more than `clip`
    times the mean one; a pixel takes those of the four nearest tiles, interpolated.

    Args:
        inside: [B, H, W] bool.
        clip: [B], 1 or more: the largest gain of contrast; `bins` and more is none.
        tiles: along each side; 1 is global.
    """
    count, height, width = image.shape
    maps = _maps(image, inside, clip, tiles, bins).flatten()
    place = image.clamp(0, 1) * bins
    left = place.floor().clamp(max=bins - 1)
    share, left = place - left, left.long()
    first = torch.arange(count, device=image.device)[:, None, None] * tiles**2

    def mapped(row: Tensor, column: Tensor) -> Tensor:
        start = (first + row[:, None] * tiles + column) * (bins + 1) + left
        return torch.lerp(maps[start], maps[start + 1], share)

    upper, lower, down = _neighbours(height, tiles, image)
    near, far, across = _neighbours(width, tiles, image)
    top = torch.lerp(mapped(upper, near), mapped(upper, far), across)
    bottom = torch.lerp(mapped(lower, near), mapped(lower, far), across)
    return torch.lerp(top, bottom, down[:, None])


def _maps(image: Tensor, inside: Tensor, clip: Tensor, tiles: int, bins: int) -> Tensor:
    """[B * tiles * tiles, bins + 1]: the value of each bin's edge."""
    count, height, width = image.shape
    row, column = (torch.arange(n, device=image.device) * tiles // n for n in (height, width))
    tile = torch.arange(count, device=image.device)[:, None, None] * tiles**2 + row[:, None] * tiles + column
    level = (image.clamp(0, 1) * bins).long().clamp(max=bins - 1)
    counts = image.new_zeros(count * tiles**2 * bins)
    counts = counts.scatter_add(0, (tile * bins + level).flatten(), inside.to(image).flatten()).view(-1, bins)
    total = counts.sum(dim=1, keepdim=True)
    histogram = torch.where(total > 0, counts / total.clamp(min=1), 1 / bins)
    limit = (clip.to(image) / bins).clamp(max=1)[:, None].expand(-1, tiles**2).reshape(-1, 1)
    return pad(_limited(histogram, limit).cumsum(dim=1), (1, 0)).clamp(max=1)


def _limited(histogram: Tensor, limit: Tensor) -> Tensor:
    """Histograms [n, bins] of sum 1 with no bin above limits [n, 1]: all bins raised by one amount, then cut."""
    low, high = torch.zeros_like(limit), limit
    for _ in range(_ROUNDS):
        middle = (low + high) / 2
        short = torch.minimum(histogram + middle, limit).sum(dim=1, keepdim=True) < 1
        low, high = torch.where(short, middle, low), torch.where(short, high, middle)
    return torch.minimum(histogram + high, limit)


def _neighbours(size: int, count: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For each of `size` pixels the tile before and after it, and how far it is on the way, 0..1."""
    place = (torch.arange(size, dtype=like.dtype, device=like.device) + 0.5) * (count / size) - 0.5
    first = place.floor().clamp(0, count - 1)
    second = (first + 1).clamp(max=count - 1)
    return first.long(), second.long(), (place - first).clamp(0, 1)
