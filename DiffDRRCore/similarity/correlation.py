"""Correlation of grey values: over the whole image, over patches, and over both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from DiffDRRCore.errors import DiffDRRError
from DiffDRRCore.similarity.base import (
    IMAGE_DIMS,
    FeatureCorrelation,
    LeastSquaresSimilarity,
    checked_pair,
    divided_by_root,
    rounding,
    standardized,
    total,
    weighted,
)


@dataclass(frozen=True)
class ZNCC(FeatureCorrelation):
    """Zero-normalised cross-correlation, the weighted Pearson correlation of the pixels, in [-1, 1].

    sum w (m - mean m)(f - mean f) / sqrt(sum w (m - mean m)^2 sum w (f - mean f)^2), with weighted means.
    Unchanged by a gain > 0 and an offset of either image.
    Source: J. P. Lewis, "Fast normalized cross-correlation", Vision Interface 1995.
    """

    def features(self, image: Tensor, weight: Tensor | None = None) -> Tensor:
        """[B, H*W]: sqrt(w) (x - mean) / std with weights that sum to one; |difference|^2 = 2 (1 - zncc)."""
        image, w = weighted(image, weight)
        return (w.sqrt() * standardized(image, w)).flatten(1)


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

    def _moments(self, image: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        mean = self._local_mean(image, weight)
        return mean, (self._local_mean(image.square(), weight) - mean.square()).clamp(min=0)

    def _local_mean(self, image: Tensor, weight: Tensor) -> Tensor:
        sum_of_weights = self._box(weight)
        return self._box(weight * image) / torch.where(sum_of_weights > 0, sum_of_weights, 1)

    def _box(self, image: Tensor) -> Tensor:
        half = self.size // 2
        rows = avg_pool2d(image, (self.size, 1), stride=1, padding=(half, 0))
        return avg_pool2d(rows, (1, self.size), stride=1, padding=(0, half))


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
