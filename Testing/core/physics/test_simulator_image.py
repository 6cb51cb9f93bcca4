import json
import math

import pytest
import torch
from torch.testing import assert_close

from DiffDRRCore import Camera, Pose
from DiffDRRCore.datasets.shapes import Box, Cylinder, Sphere
from DiffDRRCore.geometry import pixel_rays
from DiffDRRCore.imaging.preprocessing import preprocess
from DiffDRRCore.physics import (
    BeamObject,
    Collimator,
    Detector,
    Effects,
    Exposure,
    Grid,
    Heel,
    Lag,
    Scatter,
    Spectrum,
    gaussian_mtf,
    heel_factor,
    material,
)
from Testing.core.physics.scenes import BEAM, FROM_BELOW, body, simulated, slab, spekpy_spectrum, view


@pytest.fixture(scope="module")
def spekpy() -> Spectrum:
    return spekpy_spectrum()


@pytest.mark.parametrize(("cm", "excess"), [(0, 1.094), (10, 1.058), (20, 1.044), (30, 1.036)])
def test_noise_of_an_energy_integrator(spekpy, cm, excess):
    camera = Camera.parallel_beam(256, 256, (0.5, 0.5), 1000.0)
    simulator = simulated(slab(max(10.0 * cm, 1.0), 0.0 if cm else -1000.0), spekpy, exposure=Exposure(photons=1e5))
    image = simulator(camera, FROM_BELOW, 5).counts.double()
    left = torch.exp(-10 * cm * material("water").linear_attenuation(spekpy.energies))
    arrived = 1e5 * float((spekpy.photons * left).sum() / spekpy.photons.sum())
    assert float(image.var() / image.mean() ** 2) * arrived == pytest.approx(excess, rel=0.02)


@pytest.mark.parametrize("cm", [0, 15])
def test_noise_of_a_photon_counter_is_poisson(spekpy, cm):
    camera = Camera.parallel_beam(256, 256, (0.5, 0.5), 1000.0)
    volume = slab(max(10.0 * cm, 1.0), 0.0 if cm else -1000.0)
    detector = Detector("photon_counting", gain=3.0, offset=100.0)
    simulator = simulated(volume, spekpy, detector=detector, exposure=Exposure(photons=2e4))
    image = (simulator(camera, FROM_BELOW, 5).counts.double() - 100) / 3
    assert float(image.var() / image.mean()) == pytest.approx(1.0, rel=0.02)
    # The noise of a line integral is 1 / N.
    line = -torch.log(image / simulator.i0(camera) * 3)
    assert float(line.var() * image.mean()) == pytest.approx(1.0, rel=0.03)


@pytest.mark.parametrize("kind", ["photon_counting", "energy_integrating"])
def test_few_photons(spekpy, kind):
    # 0.7 photons per pixel: skew, never below zero, and of the right mean and variance
    camera = Camera.parallel_beam(256, 256, (0.5, 0.5), 1000.0)
    csi = Detector.scintillating(material("CsI").mass_attenuation, 0.3, kind=kind)
    effects = Effects(scatter=Scatter(90))
    exposure = Exposure(photons=5.0, poisson=True)
    simulator = simulated(slab(100.0), spekpy, detector=csi, exposure=exposure, effects=effects)
    image = simulator(camera, FROM_BELOW, 4)
    signal, wanted = image.counts.double(), simulator.expected(camera, FROM_BELOW).double() * image.i0
    assert float(signal.min()) == 0
    assert float(signal.mean()) == pytest.approx(float(wanted.mean()), rel=0.02)
    gaussian = simulator.changed(exposure=Exposure(photons=5.0))(camera, FROM_BELOW, 4).counts.double()
    assert float((signal - wanted).var()) == pytest.approx(float((gaussian - wanted).var()), rel=0.03)
    if kind == "photon_counting":
        assert torch.equal(signal, signal.round())
        assert float((signal - wanted).var() / wanted.mean()) == pytest.approx(1.0, rel=0.03)


def test_noise_power_has_the_shape_of_the_mtf():
    camera, sigma = Camera.parallel_beam(256, 256, (0.5, 0.5), 1000.0), 0.4
    options = {"exposure": Exposure(photons=1e4), "effects": Effects(detector_mtf=gaussian_mtf(sigma))}
    spectra = [simulated(slab(1.0, -1000.0), **options)(camera, FROM_BELOW, seed).counts.double() for seed in range(4)]
    power = sum(torch.fft.fft2(one - one.mean()).abs().square() for one in spectra)
    f = torch.fft.fftfreq(256, 0.5, dtype=torch.float64)
    radius = (f[:, None].square() + f.square()).sqrt()
    rings = [(radius > a) & (radius <= a + 0.1) for a in (0.1, 0.3, 0.5)]
    found = [float(power[ring].mean()) for ring in rings]
    mtf = [float(torch.exp(-4 * math.pi**2 * sigma**2 * radius[ring].square()).mean()) for ring in rings]
    assert found[1] / found[0] == pytest.approx(mtf[1] / mtf[0], rel=0.05)
    assert found[2] / found[0] == pytest.approx(mtf[2] / mtf[0], rel=0.05)


def test_seeds():
    camera, pose = view()
    simulator = simulated(body(), exposure=Exposure(kerma=1.0), detector=Detector(gain=1e-2))
    first, again, other = (simulator(camera, pose, seed) for seed in (7, 7, 8))
    assert torch.equal(first.counts, again.counts)
    noises = [(one.counts - simulator.expected(camera, pose) * one.i0) for one in (first, other)]
    assert abs(float(torch.corrcoef(torch.stack([noise.flatten() for noise in noises]))[0, 1])) < 0.15
    drawn = simulator(camera, pose)
    assert torch.equal(drawn.counts, simulator(camera, pose, drawn.xray.meta["seed"]).counts)
    assert drawn.xray.meta["seed"] != simulator(camera, pose).xray.meta["seed"]


def test_the_dose_in_kerma():
    # RQA5: 30174 photons per mm2 and uGy (IEC 62220-1); 21 mm Al added, the voltage such that the HVL is 7.1 mm
    spectrum = Spectrum.tungsten(74.3, {"Al": 23.5})
    assert spectrum.half_value_layer() == pytest.approx(7.1, abs=0.05)
    camera = Camera(4, 4, (0.2, 0.3), 1000.0)
    assert Exposure(kerma=2.5).photons_per_pixel(spectrum, camera) == pytest.approx(30174 * 2.5 * 0.06, rel=0.01)
    assert Exposure(photons=123.0).photons_per_pixel(spectrum, camera) == 123


def test_counts_and_line_integrals(spekpy):
    camera, pose = view(3)
    detector = Detector(gain=0.01, bits=16)
    simulator = simulated(body(3), spekpy, detector=detector, exposure=Exposure(photons=1e5, noise=False))
    image = simulator(camera, pose, 0)
    assert image.i0 == pytest.approx(1e5 * spekpy.mean_energy * 0.01, rel=1e-6)
    assert torch.equal(image.counts, image.counts.round())
    assert_close(image.counts, (image.i0 * image.primary), rtol=0, atol=0.51)
    line = preprocess(image.xray, i0=image.i0).image
    assert_close(line, -simulator.primary(camera, pose).log(), rtol=1e-3, atol=1e-4)


def test_a_detector_saturates():
    detector = Detector(gain=1.0, bits=10)
    simulator = simulated(slab(1.0, -1000.0), detector=detector, exposure=Exposure(photons=1e5))
    assert bool((simulator(BEAM, FROM_BELOW, 0).counts == 1023).all())


def test_without_an_exposure_the_open_field_is_one():
    camera, pose = view()
    simulator = simulated(body())
    image = simulator(camera, pose)
    assert image.i0 == 1 and torch.equal(image.counts, simulator.primary(camera, pose))
    assert image.xray.meta["unit"] == "relative" and not bool(image.scatter.any())


def test_meta_is_json_and_holds_the_parameters(tmp_path):
    camera, pose = view()
    effects = Effects(
        focal_spot_mm=0.6, detector_mtf=1.2, scatter=Scatter(80, grid=Grid()), heel=Heel(), solid_angle=True,
        collimator=Collimator(radius=50.0), lag=Lag((0.1,), (0.5,)),
    )  # fmt: skip
    pin = BeamObject(Sphere((0, 0, 0), 3.0), "steel", Pose.identity(), name="pin")
    simulator = simulated(body(), objects=[pin], exposure=Exposure(kerma=0.5), effects=effects, materials={1: "Ti"})
    meta = simulator(camera, pose, 3).xray.meta
    again = json.loads(json.dumps(meta))
    assert again == meta
    run = meta["simulation"]
    assert (meta["seed"], meta["intensity"], run["spectrum"]["kvp"], run["exposure"]["kerma"]) == (
        3, "transmission", 80.0, 0.5,
    )  # fmt: skip
    assert run["effects"]["scatter"]["grid"] == {"primary": 0.706, "scatter": 0.21}
    assert run["objects"][0]["material"]["name"] == material("steel").name and run["materials"]["1"] == "Ti"
    simulator(camera, pose, 3).xray.write(tmp_path / "image.tif")


def row_spectrum(image: torch.Tensor) -> torch.Tensor:
    return torch.fft.rfft((1 - image.double()).mean(dim=0)).abs()


@pytest.mark.parametrize("which", ["detector", "spot"])
def test_the_mtf_of_the_blur(which):
    camera = Camera(8, 256, (0.25, 0.25), 1000.0)
    wire = BeamObject(Cylinder((0.0, 0.0, 0.0), (0.0, 1.0, 0.0), 0.8, 60.0), "Ti")  # at magnification 2
    if which == "detector":
        effects, width = Effects(detector_mtf=gaussian_mtf(0.5)), 0.5
    else:  # a (M - 1) = 1.2 mm, uniform
        effects, width = Effects(focal_spot_mm=1.2, focal_spot_shape="uniform"), 1.2
    simulator = simulated(objects=[wire])
    sharp = row_spectrum(simulator.expected(camera, FROM_BELOW))
    blurred = row_spectrum(simulator.changed(effects=effects).expected(camera, FROM_BELOW))
    f = torch.fft.rfftfreq(256, 0.25, dtype=torch.float64)
    gaussian, uniform = torch.exp(-2 * (math.pi * width * f).square()), torch.sinc(width * f).abs()
    expected, low = gaussian if which == "detector" else uniform, f < 0.5
    assert_close((blurred / sharp)[low], expected[low], rtol=0, atol=0.01)


def test_pixels_far_from_the_axis_see_less():
    camera = Camera(1536, 1536, (0.194, 0.194), 1020.0).resized(48, 48)  # a mobile C-arm
    simulator = simulated(slab(1.0, -1000.0), effects=Effects(solid_angle=True))
    image = simulator(camera, FROM_BELOW)
    source, target = pixel_rays(camera, FROM_BELOW)
    cosine = 1020 / (target - source)[0].norm(dim=-1).reshape(48, 48)
    assert_close(image.counts.double(), cosine**3, rtol=1e-4, atol=0)
    assert float((1 + 2 * (1536 * 0.194 / 2 / 1020) ** 2) ** -1.5) == pytest.approx(0.939, abs=5e-4)
    assert_close(image.open_field, image.counts)


def test_heel_and_collimator():
    camera = Camera(41, 5, (8.0, 8.0), 1000.0)
    effects = Effects(heel=Heel(anode_angle=12.0, toward=(0.0, 1.0), filtration={"Al": 2.5}))
    found = simulated(slab(1.0, -1000.0), effects=effects)(camera, FROM_BELOW).counts[:, 2].double()
    angles = torch.rad2deg(torch.atan((torch.arange(41) - 20) * 0.008))
    expected = heel_factor(80, 12.0, angles, {"Al": 2.5})
    assert_close(found, expected, rtol=2e-3, atol=0)
    assert float(found[-1]) < 0.8 * float(found[20])
    shut = Effects(collimator=Collimator(blades=(80.0, 0, 0, 0), transmission=1e-3))
    image = simulated(slab(1.0, -1000.0), effects=shut)(camera, FROM_BELOW)
    assert_close(image.counts[:9], torch.full((9, 5), 1e-3)) and bool((image.counts[11:] == 1).all())


@pytest.mark.parametrize(("mm", "ratio"), [(100.0, 0.6), (200.0, 1.6), (300.0, 2.8)])
def test_scatter(mm, ratio):
    # The ratios of the scatter module's text: 100 kVp, a field of 300 x 300 mm, a gap of 200 mm
    camera = Camera.parallel_beam(60, 60, (5.0, 5.0), 1000.0)
    simulator = simulated(slab(mm), Spectrum.tungsten(100, {"Al": 3.0}), effects=Effects(scatter=Scatter(100, 200.0)))
    image = simulator(camera, FROM_BELOW)
    assert float((image.scatter / image.primary)[30, 30]) == pytest.approx(ratio, rel=0.1)
    assert_close(image.counts, image.primary + image.scatter)
    behind = simulator.changed(effects=Effects(scatter=Scatter(100, 200.0, grid=Grid(0.7, 0.1))))(camera, FROM_BELOW)
    assert_close(behind.scatter, image.scatter / 7)
    assert_close(behind.counts, image.primary + image.scatter / 7)


def test_scatter_takes_contrast_by_its_ratio():
    camera = Camera.parallel_beam(60, 60, (5.0, 5.0), 1000.0)
    bead = BeamObject(Box((0.0, 0.0, 200.0), (9.0, 9.0, 1.0)), "Al")
    simulator = simulated(slab(200.0), objects=[bead], effects=Effects(scatter=Scatter(80, 200.0)))
    image, without = simulator(camera, FROM_BELOW), simulator.changed(objects=())(camera, FROM_BELOW)

    def contrast(kind):
        return float(1 - getattr(image, kind)[30, 30] / getattr(without, kind)[30, 30])

    ratio = float((without.scatter / without.primary)[30, 30])
    assert contrast("primary") > 0.05 and ratio > 1
    assert contrast("counts") == pytest.approx(contrast("primary") / (1 + ratio), rel=0.03)


def test_the_air_gap_of_scatter_is_that_of_the_view():
    """A slab of 100 mm about z = 0, source 500 mm below: the beam leaves it after 550 mm."""
    thick = slab(100.0)
    shares = []
    for distance in (700.0, 900.0):
        camera = Camera(16, 16, (12.0, 12.0), distance)
        found = simulated(thick, effects=Effects(scatter=Scatter()))(camera, FROM_BELOW, seed=0).scatter
        told = simulated(thick, effects=Effects(scatter=Scatter(80, air_gap=distance - 550.0)))
        torch.testing.assert_close(found, told(camera, FROM_BELOW, seed=0).scatter, rtol=1e-6, atol=0)
        shares.append(float(found.mean()))
    assert shares[1] < 0.9 * shares[0]
