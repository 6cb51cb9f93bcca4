"""Similarity of image gradients: edges count, slow changes of brightness (scatter, gain) do not."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

from DiffDRRCore.errors import DiffDRRError
from DiffDRRCore.similarity.base import (
    FeatureCorrelation,
    centred,
    divided_by_root,
    rounding,
    scale_to_unit,
    standardized,
    total,
    unit_tangents,
    weighted,
)
from DiffDRRCore.similarity.filters import gaussian


@dataclass(frozen=True)
class _GradientMeasure(FeatureCorrelation):
    """A correlation of gradients, after smoothing by a Gaussian with standard deviation `sigma` in pixels."""

    sigma: float = 1.0

    local = True

    def __post_init__(self):
        if not 0 <= self.sigma < float("inf"):
            raise DiffDRRError(f"The smoothing sigma must be 0 or a positive number of pixels, got {self.sigma!r}.")


@dataclass(frozen=True)
class GradientNCC(_GradientMeasure):
    """Gradient NCC: one normalised correlation over the x and y gradient images together, in [-1, 1].

    sum w (dm/dx df/dx + dm/dy df/dy) / (|grad m| |grad f|) with each gradient image's mean taken off, so that a linear
    shading does not count. Unlike gradient correlation it keeps the ratio of the two gradients.
    `sigma` (pixels, 0 for none) smooths first; see `gradients` for the filter, the border and the weights.
    """

    def features(self, image: Tensor, weight: Tensor | None = None) -> Tensor:
        """[B, 2 (H-2)(W-2)]: both centred gradient images as one unit vector; |difference|^2 = 2 (1 - gradient_ncc)."""
        dx, dy, w = gradients(image, weight, self.sigma)
        both = torch.cat([dx - total(w * dx), dy - total(w * dy)], dim=1)
        unit = divided_by_root(both, total(w * both.square()), rounding(both.dtype))
        return (w.sqrt() * unit).flatten(1)

    def tangents(self, image: Tensor, slopes: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As for `LeastSquaresSimilarity`: a linear filter, then the unit vector of the result."""
        dx, dy, w = _slopes_of_gradients(image, slopes, weight, self.sigma)
        both = w.sqrt()[:, :, None] * torch.stack([centred(dx, w), centred(dy, w)], dim=2)
        both = both.flatten(2)
        return unit_tangents(both[:, 0], both[:, 1:], rounding(both.dtype))


@dataclass(frozen=True)
class GradientCorrelation(_GradientMeasure):
    """Gradient correlation: the mean of the ZNCC of the x and the ZNCC of the y gradient images, in [-1, 1].

    `sigma` (pixels, 0 for none) smooths first; see `gradients` for the filter, the border and the weights.
    Source: G. P. Penney et al., "A comparison of similarity measures for use in 2-D-3-D medical image registration",
    IEEE Transactions on Medical Imaging 17(4), 1998 (there with Sobel filters).
    """

    def features(self, image: Tensor, weight: Tensor | None = None) -> Tensor:
        """[B, 2 (H-2)(W-2)]: two unit vectors over sqrt(2); |difference|^2 = 2 (1 - gradient_correlation)."""
        dx, dy, w = gradients(image, weight, self.sigma)
        parts = []
        for derivative in (dx, dy):
            vector = derivative - total(w * derivative)
            unit = divided_by_root(vector, total(w * vector.square()), rounding(vector.dtype))
            parts.append((w.sqrt() * unit).flatten(1) / sqrt(2))
        return torch.cat(parts, dim=-1)

    def tangents(self, image: Tensor, slopes: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As for `LeastSquaresSimilarity`: a linear filter, then the unit vectors of the results."""
        dx, dy, w = _slopes_of_gradients(image, slopes, weight, self.sigma)
        parts = [(w.sqrt() * centred(derivative, w)).flatten(2) for derivative in (dx, dy)]
        units = [unit_tangents(part[:, 0], part[:, 1:], rounding(part.dtype)) for part in parts]
        return tuple(torch.cat([unit[which] for unit in units], dim=-1) / sqrt(2) for which in (0, 1))


@dataclass(frozen=True)
class GradientOrientation(_GradientMeasure):
    """Normalised gradient fields: how well the directions of the edges agree, whatever their strength, in [0, 1].

    sum w (n_m . n_f)^2 / sqrt(sum w |n_m|^4 sum w |n_f|^4) with n = g / sqrt(|g|^2 + eta^2), g the image gradient and
    eta = `edge` times the root mean square of |g|: gradients well below eta are taken for noise. The sign of an edge
    does not count, so images of opposite polarity compare; edges of unrelated directions still score about 1/2.
    `sigma` (pixels, 0 for none) smooths first; see `gradients` for the filter, the border and the weights.
    Source: E. Haber and J. Modersitzki, "Intensity gradient based registration and fusion of multi-modal images",
    MICCAI 2006. Theirs is the plain sum, and eta from the mean of |g|; with our scale an image against itself scores 1.
    """

    edge: float = 1.0

    def __post_init__(self):
        super().__post_init__()
        if not self.edge > 0:
            raise DiffDRRError(f"The edge parameter must be greater than 0, got {self.edge!r}.")

    def features(self, image: Tensor, weight: Tensor | None = None) -> Tensor:
        """[B, 3 (H-2)(W-2)]: the outer products n n^T as one unit vector.

        |features(m) - features(f)|^2 = 2 (1 - gradient_orientation), because (n_m . n_f)^2 is the inner product of n_m
        n_m^T and n_f n_f^T, whose entries are nx^2, ny^2 and nx ny (twice).
        """
        dx, dy, w = gradients(image, weight, self.sigma)
        squared = dx.square() + dy.square()
        mean_square = total(w * squared)
        noise = torch.where(mean_square > rounding(dx.dtype), self.edge**2 * mean_square, torch.inf)
        tensors = torch.cat([dx.square(), dy.square(), sqrt(2) * dx * dy], dim=1) / (squared + noise)
        return (w.sqrt() * divided_by_root(tensors, total(w * tensors.square()), 0.0)).flatten(1)


def gradients(image: Tensor, weight: Tensor | None, sigma: float) -> tuple[Tensor, Tensor, Tensor]:
    """d/dx, d/dy (per pixel) of the smoothed image and their weights (sum one), each [B, 1, H-2, W-2].

    The image is brought to mean 0 and variance 1, smoothed by a Gaussian cut at 3 sigma and renormalised at the image
    border and at the mask (normalised convolution), and differentiated by central differences at the inner pixels. A
    gradient weighs as much as the least of the pixels that it was taken from, so a mask's edge is never an edge.
    """
    image, w = weighted(image, weight)
    if min(image.shape[-2:]) < 3:
        raise DiffDRRError(f"Image gradients need at least 3 x 3 pixels, got {list(image.shape[-2:])}.")
    return *_derivatives(standardized(image, w), w, sigma), _weights_of_gradients(w)


def _slopes_of_gradients(image: Tensor, slopes: Tensor, weight: Tensor | None, sigma: float):
    """`gradients` of the image, and of each of `slopes` [B, D, H, W] in the same unit, as [B, 1 + D, H-2, W-2].

    That the image's own mean and variance move along is left out: what is made of it here is free of both.
    """
    image, w = weighted(image, weight)
    if min(image.shape[-2:]) < 3:
        raise DiffDRRError(f"Image gradients need at least 3 x 3 pixels, got {list(image.shape[-2:])}.")
    stack = torch.cat([standardized(image, w), slopes * scale_to_unit(image, w)], dim=1)
    return *_derivatives(stack, w, sigma), _weights_of_gradients(w)


def _derivatives(image: Tensor, weight: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    """d/dx, d/dy of each channel, smoothed."""
    if sigma > 0:
        blurred = gaussian(weight, sigma)
        image = gaussian(weight * image, sigma) / torch.where(blurred > 0, blurred, 1)
    dx = (image[..., 1:-1, 2:] - image[..., 1:-1, :-2]) / 2
    return dx, (image[..., 2:, 1:-1] - image[..., :-2, 1:-1]) / 2


def _weights_of_gradients(w: Tensor) -> Tensor:
    around = (w[..., 1:-1, 2:], w[..., 1:-1, :-2], w[..., 2:, 1:-1], w[..., :-2, 1:-1], w[..., 1:-1, 1:-1])
    least = torch.stack(around).amin(dim=0)
    sum_of_weights = total(least)
    return least / torch.where(sum_of_weights > 0, sum_of_weights, 1)
