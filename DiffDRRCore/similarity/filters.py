"""Separable filters of images, zeros outside."""

from __future__ import annotations

from math import ceil

import torch
from torch import Tensor
from torch.nn.functional import conv2d

_LARGEST_PRODUCT = 256  # pixels a side; up to here a product with a banded matrix is several times faster


def box(image: Tensor, size: int) -> Tensor:
    """The mean over the `size` x `size` window around each pixel of [..., H, W]; size is odd."""
    return separable(image, image.new_full((size,), 1 / size))


def gaussian(image: Tensor, sigma: float) -> Tensor:
    """[..., H, W] convolved with a Gaussian of `sigma` pixels cut at 3 sigma."""
    radius = ceil(3 * sigma)
    offsets = torch.arange(-radius, radius + 1, dtype=image.dtype, device=image.device)
    kernel = torch.exp(-0.5 * (offsets / sigma).square())
    return separable(image, kernel / kernel.sum())


def separable(image: Tensor, kernel: Tensor) -> Tensor:
    """[..., H, W] filtered along rows and columns by a symmetric kernel [2 r + 1]."""
    height, width = image.shape[-2:]
    if max(height, width) <= _LARGEST_PRODUCT:
        return _banded(kernel, height) @ image @ _banded(kernel, width)
    radius = len(kernel) // 2
    flat = image.reshape(-1, 1, height, width)
    rows = conv2d(flat, kernel.view(1, 1, -1, 1), padding=(radius, 0))
    return conv2d(rows, kernel.view(1, 1, 1, -1), padding=(0, radius)).reshape(image.shape)


def _banded(kernel: Tensor, size: int) -> Tensor:
    """The filter as a matrix [size, size]."""
    place = torch.arange(size, device=kernel.device)
    distance = (place[:, None] - place).abs()
    radius = len(kernel) // 2
    half = torch.cat([kernel[radius:], kernel.new_zeros(1)])
    return half[distance.clamp(max=radius + 1)]
