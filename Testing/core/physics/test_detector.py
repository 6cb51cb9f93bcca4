"""The detector against closed forms, IEC 62220-1 and the golden numbers of a published spectrum."""

from __future__ import annotations

import math

import pytest
import torch

from DiffDRRCore.errors import PhysicsError
from DiffDRRCore.geometry.camera import Camera
from DiffDRRCore.physics.detector import (
    Detector,
    absorbed_fraction,
    heel_map,
    photons_from_kerma,
    pixel_solid_angle,
    quantised,
)
from DiffDRRCore.physics.spectra import Spectrum

MOBILE = Camera(1536, 1536, (0.194, 0.194), 1020.0)


def test_solid_angles_fall_with_the_cube_of_the_cosine():
    part = MOBILE.cropped(0, 1336, 668, 668)
    angle = pixel_solid_angle(part)
    half = (1536 - 1) / 2 * 0.194
    offsets = torch.linspace(-half, half, 1536, dtype=torch.float64)
    offsets, columns = offsets[:200], offsets[668:-668]
    distance = (1020**2 + offsets[:, None] ** 2 + columns**2).sqrt()
    torch.testing.assert_close(angle, 0.194**2 * 1020 / distance**3, rtol=1e-7, atol=0)
    corner, center = (float(pixel_solid_angle(MOBILE.cropped(n, 1535 - n, n, 1535 - n))) for n in (0, 768))
    assert corner / center == pytest.approx(0.939, abs=5e-4)


def test_solid_angles_of_large_pixels_are_exact():
    # A rectangle a x b whose centre faces the source at d: 4 asin(ab / sqrt((a^2 + 4 d^2) (b^2 + 4 d^2))).
    one = pixel_solid_angle(Camera(1, 1, (300.0, 500.0), 200.0))
    expected = 4 * math.asin(300 * 500 / math.sqrt((300**2 + 4 * 200**2) * (500**2 + 4 * 200**2)))
    assert float(one) == pytest.approx(expected, rel=1e-12)
    parts = pixel_solid_angle(Camera(6, 10, (50.0, 50.0), 200.0))
    assert float(parts.sum()) == pytest.approx(expected, rel=1e-12)


def test_solid_angles_follow_the_inverse_square_law_and_any_camera():
    near, far = (pixel_solid_angle(Camera(3, 3, (0.2, 0.3), d, (4.0, -2.0))) for d in (500.0, 1e6))
    assert float(far[1, 1] * 1e12) == pytest.approx(0.06, rel=1e-9)
    assert near.shape == (3, 3) and float(near[2, 0]) < float(near[0, 2])
    mirrored = pixel_solid_angle(Camera(3, 3, (0.2, 0.3), 500.0, (4.0, -2.0)).flipped())
    torch.testing.assert_close(mirrored, near.flip(-1), rtol=1e-9, atol=0)


def test_solid_angles_have_gradients_and_refuse_a_parallel_beam():
    distance = torch.tensor(500.0, dtype=torch.float64, requires_grad=True)
    pixel_solid_angle(Camera(1, 1, (0.2, 0.2), distance)).sum().backward()
    assert float(distance.grad) == pytest.approx(-2 * 0.04 / 500**3, rel=1e-6)
    with pytest.raises(PhysicsError, match="parallel beam"):
        pixel_solid_angle(Camera.parallel_beam(2, 2, (1.0, 1.0), 500.0))


def test_heel_is_interpolated_over_the_angle():
    camera = Camera(3, 5, (20.0, 20.0), 100.0)
    heel = heel_map(camera, [-45.0, 0.0, 45.0], [0.5, 1.0, 1.2])
    top, bottom = math.degrees(math.atan(-0.2)), math.degrees(math.atan(0.2))
    assert heel[1].tolist() == [1.0] * 5
    assert heel[0].tolist() == pytest.approx([1 + 0.5 * top / 45] * 5)
    assert heel[2].tolist() == pytest.approx([1 + 0.2 * bottom / 45] * 5)
    across = heel_map(camera, [-45.0, 0.0, 45.0], [0.5, 1.0, 1.2], toward=(-1.0, 0.0))
    assert float(across[0, 0]) == pytest.approx(1 + 0.2 * math.degrees(math.atan(0.4)) / 45)


def test_absorption_is_that_of_a_layer():
    # NIST: mu/rho of CsI at 60 keV is 7.92 cm2/g.
    expected = 1 - math.exp(-7.92 * 4.51 * 0.75 * 0.06)
    assert float(absorbed_fraction(7.92, 0.6)) == pytest.approx(expected)
    thin = Detector.scintillating(lambda energies: 7.92 + 0 * energies, thickness=0.6)
    assert thin.absorbed([60.0, 80.0]).tolist() == pytest.approx([expected] * 2)
    assert (thin.scintillator, thin.thickness) == ("CsI", 0.6)


def test_weights_are_moments_of_energy_or_of_counts():
    energies = torch.tensor([30.0, 60.0])
    fraction = torch.tensor([0.9, 0.5])
    first, second = Detector(absorption=fraction).weights(energies)
    assert first.tolist() == pytest.approx([27, 30]) and second.tolist() == pytest.approx([810, 1800])
    first, second = Detector("photon_counting", absorption=fraction).weights(energies)
    assert first.tolist() == second.tolist() == pytest.approx([0.9, 0.5])


@pytest.mark.parametrize(("kvp", "added", "photons"), [(70, 21, 30174), (90, 30, 32362), (120, 40, 31077)])
def test_kerma_gives_the_photons_of_iec_62220(kvp, added, photons):
    assert float(photons_from_kerma(2.0, 0.194**2, 100 * photons)) == pytest.approx(2 * photons * 0.194**2)
    # RQA5, 7 and 9: that much aluminium added to some 3 mm of the tube's own.
    spectrum = Spectrum.tungsten(kvp, {"Al": 3.0 + added})
    per_kerma = spectrum.photons.sum() / spectrum.air_kerma
    assert float(photons_from_kerma(1.0, 1.0, per_kerma)) == pytest.approx(photons, rel=0.03)


def test_read_out_is_gain_offset_saturation_and_bits():
    signal = torch.tensor([-40.0, 0.0, 10.26, 1e9], requires_grad=True)
    counts = Detector(gain=2.0, offset=50.0, bits=12).read_out(signal)
    assert counts.tolist() == [0, 50, 71, 4095]
    counts.sum().backward()
    assert signal.grad.tolist() == [0, 2, 2, 0]
    assert Detector(gain=2.0, saturation=30.0).read_out(signal).tolist() == pytest.approx([-80, 0, 20.52, 30])


def test_quantisation_has_steps_of_one():
    values = torch.linspace(0, 7, 1001, dtype=torch.float64)
    steps = quantised(values, 3)
    assert set(steps.tolist()) == set(range(8)) and float((steps - values).abs().max()) <= 0.5
    assert quantised(torch.tensor([-3.0, 99.0]), 3).tolist() == [0, 7]


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Detector("film"), "photon_counting"),
        (lambda: Detector(gain=0.0), "Gain"),
        (lambda: Detector(bits=40), "Bit depth"),
        (lambda: Detector(offset=10.0, saturation=5.0), "saturates"),
        (lambda: Detector(absorption=torch.tensor([1.5])).absorbed([60.0]), "between 0 and 1"),
        (lambda: Detector(absorption=torch.ones(3)).absorbed([60.0]), "3 energies but 1"),
        (lambda: Detector().weights([-60.0]), "keV"),
        (lambda: absorbed_fraction(7.9, 600.0), "up to 10 mm thick"),
        (lambda: absorbed_fraction(7.9, float("nan")), "mm thick"),
        (lambda: absorbed_fraction(-1.0, 0.6), "negative"),
        (lambda: photons_from_kerma(-1.0, 1.0, 3e6), "kerma"),
        (lambda: photons_from_kerma(float("nan"), 1.0, 3e6), "kerma"),
        (lambda: photons_from_kerma(1.0, 0.0, 3e6), "Pixel area"),
        (lambda: heel_map(MOBILE, [-1.0, 1.0], [1.0, 1.0]), "longer profile"),
        (lambda: heel_map(MOBILE, [1.0, -1.0], [1.0, 1.0]), "rising"),
        (lambda: heel_map(MOBILE, [-20.0, 20.0], [1.0, -1.0]), "0 or more"),
    ],
)
def test_bad_input_is_one_sentence(make, sentence):
    with pytest.raises(PhysicsError, match=sentence):
        make()
