"""Correlation of grey values: over the whole image, over patches, and over both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from DiffDRRCore.errors import DiffDRRError
from DiffDRRCore.similarity.base import (
    IMAGE_DIMS,
    FeatureCorrelation,
    LeastSquaresSimilarity,
    centred,
    checked_pair,
    divided_by_root,
    rounding,
    scale_to_unit,
    standardized,
    total,
    unit_tangents,
    weighted,
)
from DiffDRRCore.similarity.filters import box


@dataclass(frozen=True)
class ZNCC(FeatureCorrelation):
    """Zero-normalised cross-correlation, the weighted Pearson correlation of the pixels, in [-1, 1].

    sum w (m - mean m)(f - mean f) / sqrt(sum w (m - mean m)^2 sum w (f - mean f)^2), with weighted means.
    Unchanged by a gain > 0 and an offset of either image.
    Source: J. P. Lewis, "Fast normalized cross-correlation", Vision Interface 1995.
    """

    pointwise = True

    def features(self, image: Tensor, weight: Tensor | None = None) -> Tensor:
        """[B, H*W]: sqrt(w) (x - mean) / std with weights that sum to one; |difference|^2 = 2 (1 - zncc)."""
        image, w = weighted(image, weight)
        return (w.sqrt() * standardized(image, w)).flatten(1)

    def tangents(self, image: Tensor, slopes: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As for `LeastSquaresSimilarity`, in closed form."""
        image, w = weighted(image, weight)
        root, floor = w.sqrt(), rounding(image.dtype) * (w * image.square()).sum(dim=IMAGE_DIMS)
        vector = root * (image - total(w * image))
        return unit_tangents(vector.flatten(1), (root * centred(slopes, w)).flatten(2), floor[:, None])


@dataclass(frozen=True)
class LNCC(LeastSquaresSimilarity):
    """Local normalised cross-correlation: the mean over all pixels p of the correlation within the window around p.

    lncc = sum_p w_p cov_p(m, f) / sqrt((var_p(m) + eps)(var_p(f) + eps)) / sum_p w_p, with (weighted) covariance and
    variances over the `size` x `size` window around p. Both images are first brought to variance one, so `eps` is in
    units of the whole image's variance: at its default a window whose standard deviation is 1 % of the image's counts
    half, and one without contrast counts 0. Windows are cut at the image border: no value is made up outside.
    An image against itself scores mean(var_p / (var_p + eps)), a little below 1.
    Box sums are separable average pooling: memory does not depend on `size`.
    Source: B. B. Avants et al., "Symmetric diffeomorphic image registration with cross-correlation", Medical Image
    Analysis 12(1), 2008 (there squared; here signed, because a DRR and an X-ray have the same polarity).
    """

    size: int = 9
    eps: float = 1e-4

    exact = False
    local = True

    def __post_init__(self):
        if not isinstance(self.size, int) or self.size < 3 or self.size % 2 == 0:
            raise DiffDRRError(f"The patch size must be an odd number of pixels from 3 up, got {self.size!r}.")
        if not self.eps > 0:
            raise DiffDRRError(f"eps of the local correlation must be greater than 0, got {self.eps!r}.")

    def __call__(self, moving: Tensor, fixed: Tensor, weight: Tensor | None = None) -> Tensor:
        """[B]; see `Similarity`."""
        moving, fixed = checked_pair(moving, fixed)
        (moving, w), (fixed, w_fixed) = weighted(moving, weight), weighted(fixed, weight)
        moving, fixed = standardized(moving, w), standardized(fixed, w_fixed)
        mean_m, variance_m = self._moments(moving, w)
        mean_f, variance_f = self._moments(fixed, w_fixed)
        covariance = self._local_mean(moving * fixed, w) - mean_m * mean_f
        local = covariance / ((variance_m + self.eps) * (variance_f + self.eps)).sqrt()
        return (w * local).sum(dim=IMAGE_DIMS)

    def features(self, image: Tensor, weight: Tensor | None = None) -> Tensor:
        """[B, H*W]: the locally normalised image n = (x - mean_p) / sqrt(var_p + eps), scaled to a unit vector.

        |features(m) - features(f)|^2 = 2 (1 - r), where r is the correlation of the two locally normalised images. r
        weighs the centre of each window where lncc weighs all its pixels; the two agree at the optimum and closely
        around it. Writing lncc itself as a sum of squares would take size^2 features per pixel.
        """
        image, w = weighted(image, weight)
        image = standardized(image, w)
        mean, variance = self._moments(image, w)
        local = (image - mean) / (variance + self.eps).sqrt()
        unit = divided_by_root(local, total(w * local.square()), rounding(image.dtype))
        return (w.sqrt() * unit).flatten(1)

    def tangents(self, image: Tensor, slopes: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As for `LeastSquaresSimilarity`, in closed form: with x the image of variance one and dx its slope,

        dn = (dx - mean_p dx) / sd_p - n cov_p(x, dx) / sd_p^2.
        """
        image, w = weighted(image, weight)
        x = standardized(image, w)
        dx = centred(slopes, w) * scale_to_unit(image, w)
        dx = dx - x * (w * x * dx).sum(dim=(-2, -1), keepdim=True)
        means = self._local_mean(torch.cat([x, x * x, dx, x * dx], dim=1), w)
        mean, square, mean_dx, product = means.split([1, 1, slopes.shape[1], slopes.shape[1]], dim=1)
        sd = ((square - mean.square()).clamp(min=0) + self.eps).sqrt()
        n = (x - mean) / sd
        dn = (dx - mean_dx) / sd - n / sd.square() * (product - mean * mean_dx)
        root = w.sqrt()
        return unit_tangents((root * n).flatten(1), (root * dn).flatten(2), rounding(image.dtype))

    def gradient(self, moving: Tensor, fixed: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As for `Similarity`, in closed form.

        With a_p = w_p / (sd_p(m) sd_p(f) W_p), W_p the window's weight and c_p = a_p cov_p / sd_p(m)^2, the derivative
        by a pixel of the image m of variance one is w (f box a - box(a mean f) - m box c + box(c mean m)).
        """
        moving, fixed = torch.broadcast_tensors(*checked_pair(moving, fixed))
        (image, w), (f, _) = weighted(moving, weight), weighted(fixed, weight)
        m, f = standardized(image, w), standardized(f, w)
        means = self._local_mean(torch.cat([m, f, m * m, f * f, m * f], dim=1), w)
        mean_m, mean_f, square_m, square_f, product = means.split(1, dim=1)
        variance_m = (square_m - mean_m.square()).clamp(min=0) + self.eps
        variance_f = (square_f - mean_f.square()).clamp(min=0) + self.eps
        local = w / (variance_m * variance_f).sqrt()
        windows = box(w, self.size)
        covariance = product - mean_m * mean_f
        a = local / torch.where(windows > 0, windows, 1)
        c = a * covariance / variance_m
        a_sum, f_sum, c_sum, m_sum = box(torch.cat([a, a * mean_f, c, c * mean_m], dim=1), self.size).split(1, dim=1)
        slope = f * a_sum - f_sum - m * c_sum + m_sum
        slope = w * scale_to_unit(image, w) * (slope - total(w * slope) - m * total(w * m * slope))
        return total(local * covariance).flatten(), slope

    def _moments(self, image: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        mean = self._local_mean(image, weight)
        return mean, (self._local_mean(image.square(), weight) - mean.square()).clamp(min=0)

    def _local_mean(self, image: Tensor, weight: Tensor) -> Tensor:
        sum_of_weights = box(weight, self.size)
        return box(weight * image, self.size) / torch.where(sum_of_weights > 0, sum_of_weights, 1)


@dataclass(frozen=True)
class MultiscaleNCC(LeastSquaresSimilarity):
    """The weighted mean of correlations at several patch sizes (odd, in pixels; None is the whole image).

    sum_k a_k ncc_k / sum_k a_k with ncc_k the `ZNCC` or the `LNCC` of that size.
    Source: V. Gopalakrishnan et al., "Intraoperative 2D/3D image registration via differentiable X-ray rendering", CVPR
    2024 (there the sizes are None and 13, with weights 1/2).
    """

    sizes: Sequence[int | None] = (None, 13)
    weights: Sequence[float] | None = None
    eps: float = 1e-4

    exact = False

    def __post_init__(self):
        weights = tuple(self.weights) if self.weights is not None else (1.0,) * len(self.sizes)
        if not self.sizes or len(weights) != len(self.sizes) or min(weights) < 0 or sum(weights) <= 0:
            raise DiffDRRError(
                f"Give patch sizes and a weight >= 0 for each, got sizes {self.sizes}, weights {self.weights}."
            )
        self._parts()

    def _parts(self) -> list[tuple[float, LeastSquaresSimilarity]]:
        weights = self.weights if self.weights is not None else (1.0,) * len(self.sizes)
        measures = [ZNCC() if size is None else LNCC(size, self.eps) for size in self.sizes]
        return [(weight / sum(weights), measure) for weight, measure in zip(weights, measures, strict=True)]

    def __call__(self, moving: Tensor, fixed: Tensor, weight: Tensor | None = None) -> Tensor:
        """[B]; see `Similarity`."""
        return sum(share * measure(moving, fixed, weight) for share, measure in self._parts())

    def features(self, image: Tensor, weight: Tensor | None = None) -> Tensor:
        """[B, K*H*W]: each scale's features times sqrt(a_k / sum a).

        |features(m) - features(f)|^2 = 2 (1 - r), r the mean of zncc and of the r that `LNCC.features` describes.
        """
        return torch.cat([share**0.5 * part.features(image, weight) for share, part in self._parts()], dim=-1)

    def gradient(self, moving: Tensor, fixed: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As for `Similarity`, from those of the parts."""
        parts = [(share, part.gradient(moving, fixed, weight)) for share, part in self._parts()]
        return tuple(sum(share * part[which] for share, part in parts) for which in (0, 1))

    def tangents(self, image: Tensor, slopes: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As for `LeastSquaresSimilarity`, from those of the parts."""
        parts = [(share**0.5, part.tangents(image, slopes, weight)) for share, part in self._parts()]
        return tuple(torch.cat([root * part[which] for root, part in parts], dim=-1) for which in (0, 1))
