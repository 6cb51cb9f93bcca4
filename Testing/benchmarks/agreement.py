"""Whether two engines' images show the same view."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Agreement:
    """Of an image with a reference.

    Attributes:
        correlation: Pearson's.
        error: norm of the difference over the norm of the reference, after the one factor that fits best.
        median_error: median over pixels of the absolute difference, over the largest value of the reference.
        scale: that factor: 1 for an image in our units.
    """

    correlation: float
    error: float
    median_error: float
    scale: float

    def text(self) -> str:
        """A cell of the table."""
        return f"{self.correlation:.5f}, {self.error:.1e} ({self.median_error:.1e})"


def agreement(image: np.ndarray, reference: np.ndarray) -> Agreement:
    """Of [H, W] with [H, W]. Raises ValueError for other shapes."""
    if image.shape != reference.shape:
        raise ValueError(f"The images have the shapes {image.shape} and {reference.shape}; they must be the same.")
    image, reference = image.astype(np.float64), reference.astype(np.float64)
    scale = float((image * reference).sum() / (image * image).sum())
    difference = scale * image - reference
    return Agreement(
        float(np.corrcoef(image.ravel(), reference.ravel())[0, 1]),
        float(np.linalg.norm(difference) / np.linalg.norm(reference)),
        float(np.median(np.abs(difference)) / reference.max()),
        scale,
    )
