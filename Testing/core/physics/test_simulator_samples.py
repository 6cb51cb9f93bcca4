"""Several rays a pixel: pixels are the mean intensity over their area."""

import math

import pytest
import torch
from torch.testing import assert_close

from DiffDRRCore import Camera, DiffDRRError
from DiffDRRCore.datasets.shapes import Box, Cylinder, Sphere
from DiffDRRCore.physics import BeamObject, Detector, Effects, Exposure, Mesh, Spectrum, material
from Testing.core import samples
from Testing.core.physics.scenes import FROM_BELOW, body, simulated, view
from Testing.core.physics.solids import icosphere_arrays

BEAM = Camera.parallel_beam(6, 8, (1.0, 1.0), 1000.0)  # pixel (u, v) is centred on x = u - 3.5 mm
KEV = 60.0
PLATE = math.exp(-2.0 * float(material("Ti").linear_attenuation(KEV)))


def image(objects, n: int, camera: Camera = BEAM) -> torch.Tensor:
    simulator = simulated(spectrum=Spectrum.monochromatic(KEV), objects=objects, effects=Effects(samples=n))
    return simulator.primary(camera, FROM_BELOW).double()


def plate(x: float, y: float = 50.0) -> BeamObject:
    """2 mm of titanium that ends at this x and y."""
    return BeamObject(Box((x - 50.0, y - 50.0, 0.0), (100.0, 100.0, 2.0)), "Ti")


@pytest.mark.parametrize("eighths", [1, 3, 6])
def test_an_edge_in_a_pixel_is_weighted_by_its_area(eighths):
    x = eighths / 8  # of the pixel u = 3 .. 4 of which x = 0 is the left edge
    row = image([plate(x)], 8)[3]
    mixed = x * PLATE + (1 - x)
    assert_close(row, torch.tensor([PLATE] * 4 + [mixed] + [1.0] * 3, dtype=torch.float64), rtol=0, atol=1e-6)
    assert abs(mixed - PLATE**x) > 0.01  # what a mean of line integrals would give
    assert float(image([plate(x)], 1)[3, 4]) == pytest.approx(PLATE if x > 0.5 else 1.0, abs=1e-6)


@pytest.mark.parametrize("n", [2, 5, 16])
def test_a_corner_converges_as_one_over_n(n):
    x, y = 0.317, 1.593  # covers 0.317 of the pixels' width, 0.593 of their height
    found = image([plate(x, y)], n)
    corner = (x * 0.593) * PLATE + (1 - x * 0.593)
    assert float(found[4, 4]) == pytest.approx(corner, abs=(1 - PLATE) * 1.1 / n)
    assert float(found.mean()) == pytest.approx(1 - (1 - PLATE) * (4 + x) * 4.593 / 48, abs=(1 - PLATE) / (4 * n))


def test_a_thin_wire_is_seen_everywhere():
    """0.3 mm of steel across pixels of 1 mm, at a slant: rows have the same share of it."""
    camera, slope = Camera.parallel_beam(240, 8, (1.0, 1.0), 1000.0), 0.0873
    wire = BeamObject(Cylinder((0.0, 0.0, 0.0), (slope, 1.0, 0.0), 0.15, 400.0), "steel")
    mu, radius = float(material("steel").linear_attenuation(KEV)), 0.15
    across = torch.linspace(-radius, radius, 20001, dtype=torch.float64)
    lost = float(torch.trapezoid(1 - torch.exp(-2 * mu * (radius**2 - across.square()).sqrt()), across))
    lost *= math.hypot(1.0, slope)  # per row
    inner = slice(84, 156)  # where the whole width of the wire is in the image
    jagged, smooth = (1 - image([wire], n, camera)[inner].sum(dim=1) + 7 for n in (1, 8))
    assert float((smooth / lost - 1).abs().max()) < 0.15
    assert float(smooth.mean()) == pytest.approx(lost, rel=0.005)
    assert float((jagged / lost - 1).abs().max()) > 0.8


@pytest.mark.parametrize("side", ["source", "detector"])
def test_it_is_the_mean_of_a_finer_image(side):
    camera, pose = view(2, 12, 10, side)
    effects = Effects(samples=3)
    pin = BeamObject(Sphere((5.0, 2.0, 3.0), 8.0), "Ti")
    simulator = simulated(body(2), objects=[pin], effects=effects)
    assert simulator.project(camera, pose).areal.shape[1:] == (12, 10)
    x, y = ((torch.arange(n * 3) // 3 == torch.arange(n)[:, None]).double() / 3 for n in (10, 12))
    fine = Camera(36, 30, (6.1 / 3, 5.3 / 3), 1000.0, view_from=side)
    finer = simulator.changed(effects=Effects()).primary(fine, pose).double()
    assert_close(simulator.primary(camera, pose).double(), y @ finer @ x.T, rtol=1e-5, atol=1e-6)
    found = simulator(camera, pose, 1)
    plain = simulator.changed(effects=Effects())(camera, pose, 1)
    assert torch.equal(found.objects["sphere"], plain.objects["sphere"])
    assert torch.equal(found.labels["core"], plain.labels["core"])
    assert found.counts.shape == found.open_field.shape == (12, 10)


@pytest.mark.parametrize("poisson", [False, True])
def test_the_noise_is_that_of_the_pixels_photons(poisson):
    camera = Camera.parallel_beam(200, 60, (1.0, 1.0), 1000.0)
    bars = [BeamObject(Box((x, 0.0, 0.0), (0.5, 400.0, 2.0)), "Ti", name=f"{x}") for x in range(-20, 30, 10)]
    exposure = Exposure(photons=1e3, poisson=poisson)
    simulator = simulated(
        spectrum=Spectrum.monochromatic(KEV), detector=Detector("photon_counting"), objects=bars, exposure=exposure,
        effects=Effects(samples=4),
    )  # fmt: skip
    counted, expected = simulator(camera, FROM_BELOW, 2).counts.double(), 1e3 * simulator.expected(camera, FROM_BELOW)
    behind = (expected < 999).any(dim=0)
    assert int(behind.sum()) == 2 * 5  # each bar lies across the border of two pixels
    assert_close(expected[:, behind].double(), torch.full((200, 10), 1e3 * (0.75 + 0.25 * PLATE)).double())
    scaled = (counted - expected) / expected.sqrt()
    assert float(scaled[:, behind].std()) == pytest.approx(1.0, abs=0.06)
    assert float(scaled.std()) == pytest.approx(1.0, abs=0.03)


def test_gradients_to_the_pose():
    camera, pose = view(5, 5, 6)
    pin = BeamObject(Mesh(*icosphere_arrays(6.0, 1, (5.0, 2.0, 3.0))), "Ti")
    simulator = simulated(body(5, torch.float64), objects=[pin], effects=Effects(samples=2))

    def loss(xi):
        found = simulator.primary(camera, pose.retract(xi, about=(0.0, 0.0, 0.0)))
        return (found * torch.arange(30.0, dtype=torch.float64).reshape(5, 6).sin()).sum()

    zero = torch.zeros(6, dtype=torch.float64)
    assert_close(samples.jacobian(loss, zero), samples.differences(loss, zero, 1e-6), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("wrong", [0, -1, 1.5, 17, "4", None])
def test_bad_numbers_are_one_sentence(wrong):
    with pytest.raises(DiffDRRError, match="rays along each side of a pixel are a whole number from 1 to 16"):
        Effects(samples=wrong)
    assert isinstance(Effects(samples=4.0).samples, int)
