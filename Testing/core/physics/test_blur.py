"""Blur against the closed forms of transfer functions, measured on deltas and edges; lag against its step response."""

from __future__ import annotations

import math

import pytest
import torch

from DiffDRRCore.errors import PhysicsError
from DiffDRRCore.physics.blur import (
    Blur,
    aperture_mtf,
    focal_spot_mtf,
    focal_spot_width,
    gaussian_mtf,
    lagged,
    lorentzian_mtf,
    measured_mtf,
)


def _along_columns(image: torch.Tensor, spacing: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(frequency, modulation) of the line spread function of a delta."""
    line = image.sum(dim=0)
    return torch.fft.rfftfreq(len(line), spacing, dtype=torch.float64), torch.fft.rfft(line).abs()


def _delta(size: int) -> torch.Tensor:
    image = torch.zeros(size, size, dtype=torch.float64)
    image[size // 2, size // 2] = 1
    return image


@pytest.mark.parametrize("sigma", [0.05, 0.2, 0.8])
def test_gaussian_mtf_measured_on_a_delta(sigma):
    blurred = Blur(gaussian_mtf(sigma), (0.2, 0.2))(_delta(255))
    f, mtf = _along_columns(blurred, 0.2)
    # Where the MTF is cut off at the Nyquist frequency the spread function rings beyond the image.
    torch.testing.assert_close(mtf, torch.exp(-2 * math.pi**2 * sigma**2 * f**2), rtol=0, atol=1e-3)


def test_gaussian_mtf_measured_on_an_edge():
    image = torch.zeros(8, 512, dtype=torch.float64)
    image[:, 256:] = 1
    profile = Blur(gaussian_mtf(0.6), (0.2, 0.2))(image)[0]
    place = (torch.arange(512, dtype=torch.float64) - 255.5) * 0.2
    # A sampled edge is the sum of pixels, so it is the normal distribution to the accuracy of the midpoint rule.
    torch.testing.assert_close(profile, 0.5 * (1 + torch.erf(place / 0.6 / math.sqrt(2))), rtol=0, atol=5e-3)
    f = torch.fft.rfftfreq(511, 0.2, dtype=torch.float64)
    torch.testing.assert_close(
        torch.fft.rfft(profile.diff()).abs(), torch.exp(-2 * math.pi**2 * 0.36 * f**2), rtol=0, atol=1e-3
    )


def test_rows_and_columns_have_their_own_spacing_and_sigma():
    blurred = Blur(gaussian_mtf([1.0, 0.5]), (0.5, 0.25))(_delta(129))
    rows, columns = blurred.sum(dim=1), blurred.sum(dim=0)
    place = torch.arange(129, dtype=torch.float64) - 64
    assert float((rows * (place * 0.5) ** 2).sum()) == pytest.approx(1.0, rel=1e-3)
    assert float((columns * (place * 0.25) ** 2).sum()) == pytest.approx(0.25, rel=1e-3)


def test_other_transfer_functions_measured_on_a_delta():
    size, spacing = 255, 0.2
    curve = ([0.0, 1.0, 3.0], [1.0, 0.6, 0.1])
    expected = {
        lorentzian_mtf(1.2): lambda f: 1 / (1 + (f / 1.2) ** 2),
        measured_mtf(*curve): lambda f: torch.where(f < 1, 1 - 0.4 * f, 0.6 - 0.25 * (f - 1)),
        aperture_mtf(0.7): lambda f: (torch.sinc(0.7 * f)).abs(),
    }
    for mtf, closed_form in expected.items():
        f, found = _along_columns(Blur(mtf, (spacing, spacing))(_delta(size)), spacing)
        # What leaves the image's 51 mm is missing from the lowest frequencies of the long tails.
        torch.testing.assert_close(found, closed_form(f), rtol=0, atol=5e-3)


def test_the_focal_spot_blurs_by_its_size_times_magnification_minus_one():
    assert focal_spot_width(0.6, 1020 / 530) == pytest.approx(0.6 * (1020 - 530) / 530)
    width = focal_spot_width(3.0, 1.9)
    place = (torch.arange(255, dtype=torch.float64) - 127) * 0.1
    gaussian = Blur(focal_spot_mtf(3.0, 1.9), (0.1, 0.1))(_delta(255)).sum(dim=0)
    half = place[gaussian >= gaussian.max() / 2]
    assert float(half.max() - half.min()) == pytest.approx(width, abs=0.2)
    square = Blur(focal_spot_mtf(3.0, 1.9, "uniform"), (0.1, 0.1))(_delta(255)).sum(dim=0)
    assert float((square * place**2).sum()) == pytest.approx(width**2 / 12, rel=0.05)
    assert torch.equal(Blur(focal_spot_mtf(3.0, 1.0), (0.1, 0.1)).transfer(8, 8, place), torch.ones(8, 5).double())


def test_two_gaussians_are_one_of_the_summed_variance():
    image = torch.rand(64, 80, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    both = Blur((gaussian_mtf(0.3), gaussian_mtf(0.4)), (0.2, 0.2))(image)
    torch.testing.assert_close(both, Blur(gaussian_mtf(0.5), (0.2, 0.2))(image), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (100, 37), (2, 3, 64, 64)])
def test_flat_stays_flat_and_shapes_are_kept(shape):
    blur = Blur((gaussian_mtf(3.0), lorentzian_mtf(0.5)), (0.4, 0.4))
    torch.testing.assert_close(blur(torch.full(shape, 7.0)), torch.full(shape, 7.0))
    image = torch.rand(shape, dtype=torch.float64)
    assert blur(image).shape == shape and blur(image).dtype == torch.float64


def test_a_mirrored_edge_keeps_the_total():
    image = torch.rand(96, 96, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    assert float(Blur(gaussian_mtf(0.5), (0.2, 0.2))(image).sum()) == pytest.approx(float(image.sum()), rel=1e-9)


def test_no_blur_leaves_the_image():
    image = torch.rand(20, 21)
    assert torch.equal(Blur((), (1.0, 1.0))(image), image)
    torch.testing.assert_close(Blur(gaussian_mtf(0.0), (1.0, 1.0))(image), image)


def test_blur_is_differentiable_in_image_and_sigma():
    image = torch.rand(6, 7, dtype=torch.float64, requires_grad=True)
    sigma = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, s: Blur(gaussian_mtf(s), (0.3, 0.3))(a), (image, sigma))


def test_lag_has_its_step_response():
    weights, retentions = (0.03, 0.02), (0.5, 0.95)
    frames = torch.zeros(20, 2, 3, dtype=torch.float64)
    frames[5:15] = 1
    seen, _ = lagged(frames, weights, retentions, "dark")
    for k in range(10):
        missing = sum(w * r ** (k + 1) for w, r in zip(weights, retentions, strict=True))
        assert float(seen[5 + k, 0, 0]) == pytest.approx(1 - missing)
    held = sum(w * (1 - r**10) * r for w, r in zip(weights, retentions, strict=True))
    assert float(seen[15, 1, 2]) == pytest.approx(held)
    assert torch.equal(seen[:5], frames[:5])


def test_lag_starts_steady_and_goes_on_from_its_state():
    frames = torch.rand(9, 4, 4, dtype=torch.float64)
    still, _ = lagged(frames[:1].expand(6, 4, 4), (0.3,), (0.8,))
    torch.testing.assert_close(still, frames[:1].expand(6, 4, 4))
    whole, _ = lagged(frames, (0.3, 0.1), (0.8, 0.2))
    first, state = lagged(frames[:4], (0.3, 0.1), (0.8, 0.2))
    second, _ = lagged(frames[4:], (0.3, 0.1), (0.8, 0.2), state)
    torch.testing.assert_close(torch.cat([first, second]), whole)
    torch.testing.assert_close(lagged(frames, (), ())[0], frames)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: gaussian_mtf(-0.1), "sigma"),
        (lambda: gaussian_mtf([0.1, 0.2, 0.3]), "sigma"),
        (lambda: gaussian_mtf(float("nan")), "sigma"),
        (lambda: lorentzian_mtf(0.0), "half modulation"),
        (lambda: measured_mtf([0.0, 1.0], [0.9, 0.5]), "1 at frequency 0"),
        (lambda: measured_mtf([0.1, 1.0], [1.0, 0.5]), "rise from 0"),
        (lambda: measured_mtf([0.0], [1.0]), "two lists"),
        (lambda: focal_spot_width(-0.6, 1.5), "focal spot"),
        (lambda: focal_spot_width(0.6, 0.5), "Magnification"),
        (lambda: focal_spot_mtf(0.6, 1.5, "round"), "gaussian"),
        (lambda: Blur(gaussian_mtf(1.0), (0.0, 1.0)), "Pixel spacing"),
        (lambda: Blur(gaussian_mtf(1.0), (1.0, 1.0))(torch.full((3, 3), torch.nan)), "finite"),
        (lambda: lagged(torch.ones(3, 2, 2), (0.5,), (1.0,)), "fraction"),
        (lambda: lagged(torch.ones(3, 2, 2), (0.7, 0.6), (0.5, 0.5)), "at most 1"),
        (lambda: lagged(torch.ones(3, 2, 2), (0.7,), ()), "as many"),
        (lambda: lagged(torch.ones(0, 2, 2), (0.7,), (0.5,)), "at least one frame"),
        (lambda: lagged(torch.ones(3, 2, 2), (0.7,), (0.5,), "warm"), "steady"),
        (lambda: lagged(torch.ones(3, 2, 2), (0.7,), (0.5,), torch.ones(2, 2)), "another sequence"),
    ],
)
def test_bad_input_is_one_sentence(make, sentence):
    with pytest.raises(PhysicsError, match=sentence):
        make()
