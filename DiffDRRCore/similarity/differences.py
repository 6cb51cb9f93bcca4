"""Similarity from plain differences."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from DiffDRRCore.similarity.base import IMAGE_DIMS, LeastSquaresSimilarity, checked_pair, weighted


@dataclass(frozen=True)
class SSD(LeastSquaresSimilarity):
    """The negative weighted mean of squared differences, -sum w (m - f)^2 / sum w.

    In the square of the images' unit, 0 at best. Only for images whose gain and offset agree.
    """

    unit_features = False
    pointwise = True

    def __call__(self, moving: Tensor, fixed: Tensor, weight: Tensor | None = None) -> Tensor:
        """[B]; see `Similarity`."""
        moving, fixed = checked_pair(moving, fixed)
        difference, w = weighted(moving - fixed, weight)
        return -(w * difference.square()).sum(dim=IMAGE_DIMS)

    def features(self, image: Tensor, weight: Tensor | None = None) -> Tensor:
        """[B, H*W]: sqrt(w) x with weights that sum to one, so that |features(m) - features(f)|^2 = -ssd."""
        image, w = weighted(image, weight)
        return (w.sqrt() * image).flatten(1)

    def tangents(self, image: Tensor, slopes: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As for `LeastSquaresSimilarity`: the features are linear in the image."""
        image, w = weighted(image, weight)
        root = w.sqrt()
        return (root * image).flatten(1), (root * slopes).flatten(2)
