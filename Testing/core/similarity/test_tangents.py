"""Closed forms of derivatives against forward-mode and reverse-mode differentiation; filters against SciPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from DiffDRRCore.similarity import SIMILARITIES, LeastSquaresSimilarity, similarity
from DiffDRRCore.similarity.base import gradient
from DiffDRRCore.similarity.filters import box, gaussian
from Testing.core.similarity.test_similarity import smooth_image, weights

LEAST_SQUARES = [name for name, kind in SIMILARITIES.items() if issubclass(kind, LeastSquaresSimilarity)]


def slopes(batch: int = 3) -> torch.Tensor:
    """Six of them, with means, so that what is centred must be."""
    return torch.cat([smooth_image(seed, batch) - 4 for seed in range(10, 16)], dim=1)


def weight(kind: str) -> torch.Tensor | None:
    mask = weights(3) > 0.6
    one_each = torch.cat([weights(seed) * (weights(seed + 9) > 0.5) for seed in range(3)])
    return {"none": None, "weights": weights(2), "mask": mask, "one each": one_each}[kind]


@pytest.mark.parametrize("name", LEAST_SQUARES)
@pytest.mark.parametrize("kind", ["none", "weights", "mask", "one each"])
def test_tangents_are_those_of_forward_mode(name, kind):
    measure, image, w = similarity(name), smooth_image(0, 3), weight(kind)
    features, tangents = measure.tangents(image, slopes(), w)
    expected_features, expected = LeastSquaresSimilarity.tangents(measure, image, slopes(), w)
    assert tangents.shape == (3, 6, features.shape[-1])
    torch.testing.assert_close(features, expected_features, atol=1e-14, rtol=1e-10)
    torch.testing.assert_close(tangents, expected, atol=1e-14, rtol=1e-10)
    torch.testing.assert_close(features, measure.features(image, w), atol=1e-14, rtol=1e-10)


@pytest.mark.parametrize("name", LEAST_SQUARES)
def test_tangents_of_slopes_in_another_memory_order(name):
    image, moved = smooth_image(0, 3), slopes().permute(0, 2, 3, 1).contiguous().movedim(-1, 1)
    assert not moved.is_contiguous()
    torch.testing.assert_close(
        similarity(name).tangents(image, moved)[1], similarity(name).tangents(image, slopes())[1]
    )


@pytest.mark.parametrize("name", LEAST_SQUARES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tangents_of_flat_images_are_zero(name, dtype):
    flat = torch.full((1, 1, 26, 31), 2.5, dtype=dtype)
    for w in (None, torch.zeros(26, 31)):
        features, tangents = similarity(name).tangents(flat, slopes(1).to(dtype), w)
        assert bool(torch.isfinite(tangents).all())
        if name != "ssd" or w is not None:
            assert bool((features == 0).all())
            assert bool((tangents == 0).all())


@pytest.mark.parametrize("name", SIMILARITIES)
@pytest.mark.parametrize("kind", ["none", "weights", "mask", "one each"])
def test_gradient_is_that_of_autograd(name, kind):
    measure, moving, fixed, w = similarity(name), smooth_image(0, 3), smooth_image(1), weight(kind)
    value, by_pixel = measure.gradient(moving, fixed, w)
    expected_value, expected = gradient(measure, moving, fixed, w)
    assert by_pixel.shape == moving.shape
    torch.testing.assert_close(value, expected_value, atol=1e-14, rtol=1e-10)
    torch.testing.assert_close(by_pixel, expected, atol=1e-14, rtol=1e-9)
    torch.testing.assert_close(value, measure(moving, fixed, w))


@pytest.mark.parametrize("largest", [256, 0])
def test_filters_against_scipy(largest, monkeypatch):
    """By banded matrices, and by convolution."""
    monkeypatch.setattr("DiffDRRCore.similarity.filters._LARGEST_PRODUCT", largest)
    image = smooth_image(0, 2, sigma=0.7)
    for ours, theirs in (
        (box(image, 5), [ndimage.uniform_filter(x, 5, mode="constant") for x in image[:, 0].numpy()]),
        (gaussian(image, 1.5), [ndimage.gaussian_filter(x, 1.5, truncate=3.4, mode="constant") for x in image[:, 0]]),
    ):
        assert ours.shape == image.shape
        np.testing.assert_allclose(ours[:, 0], np.stack(theirs), atol=1e-12)
