"""Pixels that the CT cannot explain (an implant, a tool, a hand), weighed down by how far off they are."""

from __future__ import annotations

import torch
from torch import Tensor

_MAD_TO_DEVIATION = 1.4826  # of a normal distribution
_CUTS = {"huber": 1.345, "tukey": 4.685}  # deviations; 95 % efficiency where the noise is normal
_LEAST_SCALE = 1e-6  # of the X-ray's own deviation: less is rounding
_ROUNDS = 3  # of fitting and weighing, from scratch
NAMES = tuple(_CUTS)


def outlier_weights(image: Tensor, fixed: Tensor, weight: Tensor | None, old: Tensor | None, kind: str) -> Tensor:
    """Weights [B, 1, H, W] of the pixels by iteratively reweighted least squares.

    The residual is the X-ray less the rendered image with the gain and offset that fit best; its scale is the median
    absolute deviation of the pixels in which the CT shows, as air on air says nothing of the rest. Huber: 1 up to 1.345
    deviations, then falling as 1 / residual; Tukey: (1 - (r / 4.685)^2)^2, zero beyond.
    Source: P. J. Huber and E. M. Ronchetti, Robust Statistics, 2009, chapters 4 and 7.

    Args:
        image: [B, 1, H, W].  fixed: [1, 1, H, W].  weight: of the user, or None.  old: weights to go on from; None
            starts at 1.
    """
    x, y = image.flatten(1), fixed.flatten(1).expand(len(image), -1).to(image)
    base = torch.ones_like(y) if weight is None else weight.flatten(1).expand_as(y).to(y)
    current = base if old is None else old.flatten(1)
    least = _LEAST_SCALE * _deviation(y, base)
    for _ in range(_ROUNDS if old is None else 1):
        residual = _residual(x, y, current)
        current = base * _weights(residual / _scale(residual, base * (x > 0)).maximum(least), kind)
    return current.reshape(image.shape)


def _deviation(y: Tensor, w: Tensor) -> Tensor:
    """[B, 1] weighted standard deviation, more than zero."""
    w = w / w.sum(dim=1, keepdim=True).clamp(min=torch.finfo(w.dtype).tiny)
    mean = (w * y).sum(dim=1, keepdim=True)
    return (w * (y - mean).square()).sum(dim=1, keepdim=True).sqrt().clamp(min=torch.finfo(w.dtype).tiny)


def _residual(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
    """y - (gain x + offset) by weighted least squares."""
    w = w / w.sum(dim=1, keepdim=True).clamp(min=torch.finfo(w.dtype).tiny)
    x = x - (w * x).sum(dim=1, keepdim=True)
    y = y - (w * y).sum(dim=1, keepdim=True)
    square = (w * x * x).sum(dim=1, keepdim=True)
    return y - (w * x * y).sum(dim=1, keepdim=True) / torch.where(square > 0, square, torch.inf) * x


def _scale(residual: Tensor, base: Tensor) -> Tensor:
    """[B, 1] standard deviation of normal noise with the same median absolute residual, of pixels that count."""
    size = torch.where(base > 0, residual.abs(), torch.nan)
    scale = _MAD_TO_DEVIATION * size.nanmedian(dim=1, keepdim=True).values
    return scale.nan_to_num(nan=0.0)


def _weights(deviations: Tensor, kind: str) -> Tensor:
    cut = _CUTS[kind]
    if kind == "huber":
        return cut / deviations.abs().clamp(min=cut)
    return (1 - (deviations / cut).square()).clamp(min=0).square()
