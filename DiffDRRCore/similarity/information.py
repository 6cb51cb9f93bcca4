"""Mutual information."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from DiffDRRCore.errors import DiffDRRError
from DiffDRRCore.similarity.base import Similarity, checked_pair, divided_by_root, standardized, weighted

PIXELS_PER_CHUNK = 65536
TINY = 1e-12


@dataclass(frozen=True)
class MutualInformation(Similarity):
    """Mutual information of a smooth joint histogram, scaled: 1 for an image against itself, near 0 for unrelated ones.

    I(m, f) / sqrt(I(m, m) I(f, f)) with I(a, b) = sum p_ab log(p_ab / (p_a p_b)). The joint histogram has `bins` x
    `bins` cells, and each pixel adds the product of two cubic B-splines (Parzen windows of unit bin width) times its
    weight. Each image's range is spread over the bins but for two at each end, where the splines run out. The scale is
    needed because the windows blur the diagonal: 2 I / (H_a + H_b) of an image with itself is well below 1. Finite
    images leave unrelated ones slightly above 0, by about bins^2 / (number of pixels). Any gain and offset of either
    image are without effect, and so is an inversion of the contrast. Memory grows with the image but not with image
    times bins: the histogram is summed over chunks of pixels that are computed again for the gradient.
    Source: P. Thevenaz and M. Unser, "Optimization of mutual information for multiresolution image registration", IEEE
    Transactions on Image Processing 9(12), 2000; the scaling is ours.
    """

    bins: int = 32

    def __post_init__(self):
        if not isinstance(self.bins, int) or self.bins < 8:
            raise DiffDRRError(f"Mutual information needs 8 bins or more, got {self.bins!r}.")

    def __call__(self, moving: Tensor, fixed: Tensor, weight: Tensor | None = None) -> Tensor:
        """[B]; see `Similarity`."""
        moving, fixed = torch.broadcast_tensors(*checked_pair(moving, fixed))
        (m, w), (f, _) = weighted(moving, weight), weighted(fixed, weight)
        m, f, w = self._positions(m, w), self._positions(f, w), w.flatten(1)
        both, own_m, own_f = (_information(joint) for joint in self._histograms(m, f, w))
        contrast = (m.amax(dim=1) > 2) & (f.amax(dim=1) > 2)
        return divided_by_root(both, torch.where(contrast, own_m * own_f, 0), TINY)

    def _positions(self, image: Tensor, weight: Tensor) -> Tensor:
        """[B, N] places on the bin axis, from 2 to bins - 3; all 2 for an image without contrast."""
        image, counts = standardized(image, weight).flatten(1), weight.flatten(1) > 0
        low = torch.where(counts, image, torch.inf).amin(dim=1, keepdim=True)
        high = torch.where(counts, image, -torch.inf).amax(dim=1, keepdim=True)
        extent = torch.where(high > low, high - low, torch.inf)
        shifted = torch.where(counts & (high > low), image - low, 0)
        return 2 + (self.bins - 5) * shifted / extent

    def _histograms(self, a: Tensor, b: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        """The joint histograms of (a, b), (a, a) and (b, b), each [B, bins, bins] with sum one."""
        size = max(1, PIXELS_PER_CHUNK // len(a))
        chunks = list(zip(*(x.split(size, dim=1) for x in (a, b, weight)), strict=True))
        if len(chunks) == 1:
            return self._counts(*chunks[0])
        parts = [checkpoint(self._counts, *chunk, use_reentrant=False) for chunk in chunks]
        return tuple(sum(part) for part in zip(*parts, strict=True))

    def _counts(self, a: Tensor, b: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        bins = torch.arange(self.bins, dtype=a.dtype, device=a.device)
        windows_a, windows_b = cubic_bspline(a[..., None] - bins), cubic_bspline(b[..., None] - bins)
        counts_a, counts_b = windows_a * weight[..., None], windows_b * weight[..., None]
        return counts_a.mT @ windows_b, counts_a.mT @ windows_a, counts_b.mT @ windows_b


def _information(joint: Tensor) -> Tensor:
    """I = sum p_ab log(p_ab / (p_a p_b)) in nats, [B]."""
    independent = joint.sum(dim=2, keepdim=True) * joint.sum(dim=1, keepdim=True)
    return (joint * ((joint + TINY).log() - (independent + TINY).log())).sum(dim=(1, 2))


def cubic_bspline(x: Tensor) -> Tensor:
    """The centred cubic B-spline: support (-2, 2), integral one, sum over integer shifts one."""
    x = x.abs()
    outer, inner = (2 - x).clamp(min=0) ** 3, (1 - x).clamp(min=0) ** 3
    return (outer - 4 * inner) / 6
