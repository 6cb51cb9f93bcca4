"""Preprocessing: Beer-Lambert by hand, SciPy as a reference, gradients by finite differences."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, stats

from DiffDRRCore.errors import XRayError
from DiffDRRCore.geometry import Camera
from DiffDRRCore.imaging.preprocessing import (
    background_level,
    equalize_histogram,
    estimate_i0,
    gaussian_smooth,
    line_integrals,
    preprocess,
    remove_background,
    soft_equalize_histogram,
)
from DiffDRRCore.imaging.resampling import resample
from DiffDRRCore.imaging.xray import XRay


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def xray(image, **meta) -> XRay:
    return XRay(image, Camera(*image.shape, (0.3, 0.4), 1000.0), meta={"intensity": "transmission", **meta})


def test_beer_lambert_by_hand():
    # 50 mm of water at 0.02 / mm let through 10000 exp(-1) = 3678.794; half the beam is 0.693147.
    image = torch.tensor([[10000.0, 3678.794411714423], [5000.0, 1000.0]], dtype=torch.float64)
    expected = torch.tensor([[0.0, 1.0], [0.6931471805599453, 2.302585092994046]], dtype=torch.float64)
    torch.testing.assert_close(line_integrals(image, 10000.0), expected)


def test_zero_and_negative_counts_end_at_the_floor():
    integrals = line_integrals(torch.tensor([[0.0, -5.0, 1e-3, 1000.0]], dtype=torch.float64), 1000.0)
    assert integrals[0, :3].tolist() == pytest.approx([math.log(1e4)] * 3)
    assert line_integrals(torch.tensor([[0.0, 8.0]]), 8.0, floor=0.25).tolist()[0] == pytest.approx([math.log(4), 0])


def test_noise_above_i0_is_kept_but_an_i0_below_most_pixels_is_refused():
    image = torch.tensor([[100.0, 110.0, 50.0, 20.0]])
    assert float(line_integrals(image, 100.0)[0, 1]) == pytest.approx(-math.log(1.1))
    with pytest.raises(XRayError, match=r"I0 = 30 is below 75 % of the pixels"):
        line_integrals(image, 30.0)


@pytest.mark.parametrize("i0", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_i0(i0):
    with pytest.raises(XRayError, match="I0 must be a positive number"):
        line_integrals(torch.ones(2, 2), i0)


def test_constant_and_empty_images():
    assert line_integrals(torch.full((3, 3), 7.0)).unique().tolist() == [0.0]
    for image in (torch.zeros(3, 3), -torch.ones(3, 3)):
        with pytest.raises(XRayError, match="no pixel above zero"):
            line_integrals(image)


def test_the_estimate_of_i0_ignores_one_pixel_in_a_thousand():
    image = 100 + 900 * noise(100, 100)
    image[0, :10] = 1e6
    assert 990 < estimate_i0(image) <= 1000
    image[0, :11] = 1e6
    assert estimate_i0(image) == 1e6


def test_line_integrals_have_the_gradient_of_minus_log():
    image = (1 + noise(3, 4)).requires_grad_()
    line_integrals(image, 2.0).sum().backward()
    torch.testing.assert_close(image.grad, -1 / image.detach())


def test_background_is_the_commonest_value():
    image = 0.4 + 0.01 * (noise(64, 64) - 0.5)
    image[:20] = 1 + 2 * noise(20, 64, seed=1)
    assert background_level(image) == pytest.approx(0.4, abs=0.02)
    assert background_level(torch.full((4, 4), 3.0)) == 3.0
    assert remove_background(torch.tensor([[0.1, 0.4, 1.0]]), 0.4).tolist()[0] == pytest.approx([0, 0, 0.6])


@pytest.mark.parametrize("sigma", [0.7, 2.0, (1.5, 3.0)])
def test_smoothing_agrees_with_scipy(sigma):
    image = noise(21, 34)
    reference = ndimage.gaussian_filter(image.numpy(), sigma, mode="nearest", truncate=8)
    np.testing.assert_allclose(gaussian_smooth(image, sigma).numpy(), reference, atol=2e-4)


def test_smoothing_edge_cases():
    image = noise(5, 6)
    assert torch.equal(gaussian_smooth(image, 0.0), image)
    torch.testing.assert_close(gaussian_smooth(torch.full((3, 2), 5.0), 4.0), torch.full((3, 2), 5.0))
    for sigma in (-1.0, float("nan"), (1.0, 2.0, 3.0)):
        with pytest.raises(XRayError, match="sigma"):
            gaussian_smooth(image, sigma)


def test_hard_equalisation_is_the_rank_of_scipy():
    image = torch.tensor([[3.0, 1.0, 1.0], [7.0, 3.0, 3.0]])
    reference = (stats.rankdata(image.numpy().ravel()) - 0.5) / 6
    np.testing.assert_allclose(equalize_histogram(image).numpy().ravel(), reference, rtol=1e-6)
    assert equalize_histogram(torch.full((4, 4), 2.0)).unique().tolist() == [0.5]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.01, 100), st.floats(-50, 50))
def test_soft_equalisation_approaches_the_hard_one_and_ignores_gain_and_offset(seed, gain, offset):
    image = noise(40, 50, seed=seed)
    soft = soft_equalize_histogram(image, 256)
    assert float((soft - equalize_histogram(image)).abs().max()) < 0.02
    torch.testing.assert_close(soft_equalize_histogram(gain * image + offset, 256), soft, atol=1e-6, rtol=0)


def test_soft_equalisation_has_the_right_gradient():
    image = noise(4, 5, seed=3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: soft_equalize_histogram(x, 8), image, eps=1e-7, atol=1e-4)
    constant = torch.full((3, 3), 2.0, requires_grad=True)
    result = soft_equalize_histogram(constant)
    result.sum().backward()
    assert result.detach().unique().tolist() == [0.5]
    assert constant.grad.unique().tolist() == [0.0]
    with pytest.raises(XRayError, match="bins"):
        soft_equalize_histogram(image, 1)


def test_the_steps_run_in_the_documented_order():
    image = 1000 * (0.2 + 0.8 * noise(20, 30))
    start = xray(image)
    done = preprocess(start, crop=(2, 4, 0, 6), i0=1000.0, background=0.1, smoothing=1.0, size=(7, 12), equalize="soft")
    camera = start.camera.cropped(2, 4, 0, 6)
    by_hand = torch.log(1000 / image[2:16, :24])
    by_hand = gaussian_smooth((by_hand - 0.1).clamp(min=0), 1.0)
    by_hand = soft_equalize_histogram(resample(by_hand, camera, camera.resized(7, 12)))
    torch.testing.assert_close(done.image, by_hand)
    torch.testing.assert_close(done.camera.K, camera.resized(7, 12).K)
    assert (done.intensity, start.intensity) == ("attenuation", "transmission")
    assert done.meta["preprocessing"] == {
        "crop": [2, 4, 0, 6], "i0": 1000.0, "background": 0.1, "smoothing": 1.0, "size": [7, 12], "equalize": "soft",
    }  # fmt: skip


def test_the_logarithm_comes_before_averaging():
    image = torch.tensor([[1000.0, 10.0]], dtype=torch.float64)
    done = preprocess(xray(image), i0=1000.0, size=(1, 1))
    assert float(done.image) == pytest.approx(math.log(100) / 2)  # not ln(1000 / 505)


def test_attenuation_images_keep_their_values_and_logarithmic_ones_are_only_subtracted():
    image = noise(4, 5)
    done = preprocess(xray(image, intensity="attenuation"))
    assert torch.equal(done.image, image)
    with pytest.raises(XRayError, match="leave i0 out"):
        preprocess(xray(image, intensity="attenuation"), i0=3.0)
    logarithmic = preprocess(xray(image, logarithmic=True), i0=1.0)
    torch.testing.assert_close(logarithmic.image, 1 - image)
    assert logarithmic.intensity == "attenuation"


def test_preprocess_says_what_it_cannot_do():
    image = 1 + noise(4, 5)
    for options, words in (
        ({"crop": (1, 2)}, "crop is"), ({"crop": "best"}, "crop is"), ({"equalize": "clahe"}, "equalize is"),
        ({"crop": (4, 0, 0, 0)}, "leaves nothing"), ({"smoothing": -1}, "sigma"),
    ):  # fmt: skip
        with pytest.raises(XRayError, match=words):
            preprocess(xray(image), **options)
    with pytest.raises(XRayError, match="does not say what is bright"):
        preprocess(XRay(image, Camera(4, 5, (0.3, 0.3), 1000.0)))
