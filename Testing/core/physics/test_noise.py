"""Noise against the statistics of Poisson and compound Poisson variables."""

from __future__ import annotations

import pytest
import torch

from DiffDRRCore.errors import PhysicsError
from DiffDRRCore.physics.blur import Blur, gaussian_mtf
from DiffDRRCore.physics.detector import Detector
from DiffDRRCore.physics.materials import material
from DiffDRRCore.physics.noise import compound_poisson, noisy, seeded, signal_moments
from DiffDRRCore.physics.spectra import Spectrum

ENERGIES = torch.tensor([30.0, 50.0, 90.0], dtype=torch.float64)
SHARES = torch.tensor([0.3, 0.5, 0.2], dtype=torch.float64)


def _photons(number: float, size: int = 600) -> torch.Tensor:
    return (number * SHARES)[:, None, None].expand(-1, size, size)


@pytest.mark.parametrize(("water_mm", "factor"), [(0, 1.094), (100, 1.058), (200, 1.044), (300, 1.036)])
def test_the_factor_of_an_energy_integrator_at_90_kvp(water_mm, factor):
    # Golden numbers of SpekPy 2.5.4, 90 kVp, 12 degrees, 4 mm Al, with the attenuation of xraylib.
    spectrum = Spectrum.tungsten(90, {"Al": 4.0})
    mu = material("water").mass_attenuation(spectrum.energies) / 10
    photons = (spectrum.photons * torch.exp(-mu * water_mm))[:, None]
    mean, variance = signal_moments(photons, Detector().weights(spectrum.energies))
    assert float(variance / mean**2 * photons.sum()) == pytest.approx(factor, abs=2e-3)
    mean, variance = signal_moments(photons, Detector("photon_counting").weights(spectrum.energies))
    assert float(mean) == float(variance) == pytest.approx(float(photons.sum()))


@pytest.mark.parametrize("number", [0.7, 40.0])
def test_exact_noise_has_the_moments_of_compound_poisson(number):
    photons = _photons(number)
    signal = compound_poisson(photons, ENERGIES, seeded(3))
    mean, variance = signal_moments(photons[:, 0, 0], Detector().weights(ENERGIES))
    third = (photons[:, 0, 0] * ENERGIES**3).sum()  # cumulants of compound Poisson are N <E^k>
    assert float(signal.mean()) == pytest.approx(float(mean), rel=0.01)
    assert float(signal.var()) == pytest.approx(float(variance), rel=0.02)
    assert float(((signal - mean) ** 3).mean()) == pytest.approx(float(third), rel=0.15)


def test_exact_noise_at_low_dose_keeps_empty_pixels():
    signal = compound_poisson(_photons(0.7), ENERGIES, seeded(4))
    assert float((signal == 0).double().mean()) == pytest.approx(2.718281828**-0.7, rel=0.01)
    assert float(signal.min()) == 0


@pytest.mark.parametrize("kind", ["energy_integrating", "photon_counting"])
def test_gaussian_noise_has_the_same_two_moments(kind):
    weights = Detector(kind, absorption=torch.tensor([0.9, 0.8, 0.5])).weights(ENERGIES)
    mean, variance = signal_moments(_photons(200.0), weights)
    signal = noisy(mean, variance, seeded(5))
    assert float(signal.mean()) == pytest.approx(float(mean[0, 0]), rel=0.001)
    assert float(signal.var()) == pytest.approx(float(variance[0, 0]), rel=0.02)
    if kind == "photon_counting":
        assert float(signal.var() / signal.mean()) == pytest.approx(1, rel=0.02)


def test_swank_and_electronic_noise_add_to_the_variance():
    photons = _photons(30.0)
    mean, variance = signal_moments(photons, Detector().weights(ENERGIES))
    expected = float(variance[0, 0]) / 0.8 + 200.0**2
    approximate = noisy(mean, variance, seeded(6), electronic=200.0, swank=0.8)
    exact = compound_poisson(photons, ENERGIES, seeded(7), electronic=200.0, swank=0.8)
    assert float(approximate.var()) == pytest.approx(expected, rel=0.02)
    assert float(exact.var()) == pytest.approx(expected, rel=0.02)


def test_after_the_logarithm_the_variance_is_one_over_n():
    signal = noisy(torch.full((600, 600), 1e4, dtype=torch.float64), torch.tensor(1e4), seeded(8))
    assert float(signal.log().var()) == pytest.approx(1e-4, rel=0.02)


def test_blur_makes_the_noise_power_spectrum_sigma_squared_mtf_squared():
    spacing, sigma, size, count = 0.2, 0.25, 96, 200
    blur = Blur(gaussian_mtf(sigma), (spacing, spacing))
    mean = torch.full((count, size, size), 1000.0, dtype=torch.float64)
    signal = noisy(mean, mean, seeded(9), electronic=5.0, blur=blur)
    # The window keeps the steep spectrum from leaking; an edge of the image is no edge of the noise.
    window = torch.outer(*(torch.hann_window(size, dtype=torch.float64),) * 2)
    power = torch.fft.fft2((signal - 1000) * window).abs().square().mean(dim=0) / window.square().sum()
    f = torch.fft.fftfreq(size, spacing, dtype=torch.float64)
    mtf = torch.exp(-2 * torch.pi**2 * sigma**2 * (f[:, None] ** 2 + f**2))
    expected = 1000 * mtf**2 + 25
    white = noisy(mean, mean, seeded(9))
    flat = torch.fft.fft2(white - 1000).abs().square().mean(dim=0) / size**2
    radius = (f[:, None] ** 2 + f**2).sqrt()
    for low in (0.3, 0.6, 0.9, 1.2, 2.0):
        ring = (radius > low) & (radius < low + 0.4)
        assert float(power[ring].mean()) == pytest.approx(float(expected[ring].mean()), rel=0.02)
        assert float(flat[ring].mean()) == pytest.approx(1000, rel=0.02)


def test_seeds_repeat_and_differ():
    mean = torch.full((8, 8), 100.0)
    first, again, other = (noisy(mean, mean, seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    photons = _photons(5.0, 8)
    assert torch.equal(*(compound_poisson(photons, ENERGIES, seeded(1)) for _ in range(2)))


def test_neighbouring_seeds_are_independent_and_negative_ones_refused():
    normal = torch.stack([torch.randn(20_000, generator=seeded(seed), dtype=torch.float64) for seed in range(12)])
    correlation = torch.corrcoef(normal) - torch.eye(12)
    assert float(correlation.abs().max()) < 4 / 20_000**0.5
    with pytest.raises(PhysicsError, match="seed"):
        seeded(-1)


def test_noise_is_differentiable_in_the_mean_and_silent_in_the_dark():
    mean = torch.tensor([0.0, 4.0, 400.0], dtype=torch.float64, requires_grad=True)
    signal = noisy(mean, mean, seeded(1))
    assert float(signal.detach()[0]) == 0
    signal.sum().backward()
    normal = ((signal - mean) / mean.sqrt()).detach()[1:]
    assert mean.grad[1:].tolist() == pytest.approx((1 + normal / (2 * mean.detach()[1:].sqrt())).tolist())
    assert float(mean.grad[0]) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_and_batch_are_kept(dtype):
    mean = torch.ones(2, 3, 4, 5, dtype=dtype)
    assert noisy(mean, mean, seeded(1), electronic=1.0).dtype == dtype
    assert compound_poisson(mean, [30.0, 40.0], seeded(1)).shape == (3, 4, 5)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda one: noisy(one, -one), "variance"),
        (lambda one: noisy(one * torch.nan, one), "finite"),
        (lambda one: noisy(one, one, electronic=-1.0), "Electronic"),
        (lambda one: noisy(one, one, swank=1.2), "Swank"),
        (lambda one: noisy(one, one, swank=0.0), "Swank"),
        (lambda one: compound_poisson(-one, [1.0, 1.0]), "Photons per pixel"),
        (lambda one: compound_poisson(one, [1.0, 1.0, 1.0]), "3 energies"),
        (lambda one: signal_moments(one, (torch.ones(2), torch.ones(1))), "1 energies"),
    ],
)
def test_bad_input_is_one_sentence(make, sentence):
    with pytest.raises(PhysicsError, match=sentence):
        make(torch.ones(2, 4))
