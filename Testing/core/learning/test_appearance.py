from __future__ import annotations

import math

import pytest
import torch

from DiffDRRCore import DiffDRRError, Renderer, Volume
from DiffDRRCore.errors import LearningError
from DiffDRRCore.learning.appearance.appearance import Appearance, aperture, blades, blurred, with_bone_contrast
from DiffDRRCore.learning.appearance.spectra_bank import _entries
from DiffDRRCore.learning.data.draws import Draws
from DiffDRRCore.physics import (
    Blur,
    Collimator,
    Detector,
    Effects,
    Exposure,
    Scatter,
    Simulator,
    Spectrum,
    decompose,
    gaussian_mtf,
    material,
)
from DiffDRRCore.physics.simulation.ranges import Ranges
from Testing.core.learning import scene

PLAIN = {"kvp": 90.0, "aluminium": 3.0, "copper": 0.1}


def appearance(**ranges) -> Appearance:
    return Appearance(Ranges.from_dict({**PLAIN, **ranges}, [*PLAIN, *ranges]))


def images(**ranges):
    views = scene.views()
    return appearance(**ranges)(scene.subject().areal(views.camera, views.pose), views, Draws(1))


def simulator(volume=None, **options) -> Simulator:
    detector = Detector.scintillating(material("CsI").mass_attenuation, 0.6)
    return Simulator(volume or scene.ct(), Spectrum.tungsten(90, {"Al": 3, "Cu": 0.1}), detector, **options)


def simulated(simulator: Simulator) -> torch.Tensor:
    """Expected images of the views, [B, H, W]."""
    views = scene.views()
    poses = scene.subject().to_world(views.pose)
    return torch.stack([simulator.expected(views[[n]].camera, poses[[n]]) for n in range(len(views))])


def test_attenuation_is_that_of_the_simulator():
    image, field = images()
    torch.testing.assert_close(torch.exp(-image[:, 0]), simulated(simulator()), atol=2e-4, rtol=1e-3)
    assert bool(field.all())
    assert float(image.amax()) > 4  # there is something to attenuate


def test_scatter_focal_spot_and_blades_are_those_of_the_simulator():
    share = 0.125
    found = torch.exp(-images(scatter=1.0, blades=share, focal_spot=1.0).image[:, 0])
    mm = share * 320
    effects = Effects(
        focal_spot_mm=1.0, scatter=Scatter(90, 200.0), collimator=Collimator((mm,) * 4, transmission=1e-3)
    )
    expected = simulated(simulator(effects=effects))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=2e-3)
    alone = torch.exp(-images(blades=share).image[:, 0])
    assert float((found - alone).abs().mean()) > 0.005


def test_bone_contrast_is_that_of_the_voxels():
    factor = 1.6
    hu = scene.ct().hu.clamp(max=900.0)  # so that no voxel becomes denser than cortical bone
    stretched = torch.where(hu > 100, 100 + factor * (hu - 100), hu)
    views = scene.views(2)
    pose = scene.subject().to_world(views.pose)

    def areal(hu):
        composition = decompose(Volume(hu, scene.ct().ijk_to_ras))
        parts = [Volume.from_attenuation(part, composition.ijk_to_ras) for part in composition.densities]
        return torch.stack([Renderer(part)(views.camera, pose)[:, 0] / 10 for part in parts])

    found = with_bone_contrast(areal(hu), torch.tensor([factor, 1.0], dtype=torch.float64))
    torch.testing.assert_close(found[:, 0], areal(stretched)[:, 0], atol=2e-3, rtol=1e-3)
    torch.testing.assert_close(found[:, 1], areal(hu)[:, 1], atol=0, rtol=0)
    assert float((found[1, 0] - areal(hu)[1, 0]).max()) > 0.5


@pytest.mark.parametrize("dose", [{"photons": 5e3}, {"dose": 0.002}])
def test_noise_has_the_variance_of_the_simulators(dose):
    """Behind nothing and behind 10 cm of water, in both ways to tell the exposure."""
    views = scene.views(1)
    camera = views.camera
    side = 160
    areal = torch.zeros(2, 1, side, side)
    areal[0, :, :, side // 2 :] = 10.0
    noisy = torch.exp(-appearance(**dose)(areal, views, Draws(2)).image[0, 0])
    given = {"kerma" if name == "dose" else name: value for name, value in dose.items()}
    reference = simulator(exposure=Exposure(**given))
    photons = reference.exposure.photons_per_pixel(reference.spectrum, camera)
    full = Spectrum.tungsten(90, {"Al": 3, "Cu": 0.1})
    for half, water in ((noisy[:, : side // 2], 0.0), (noisy[:, side // 2 :], 10.0)):
        left = full.photons * torch.exp(-material("water").mass_attenuation(full.energies) * water)
        first, second = reference.detector.weights(full.energies)
        share = full.photons.sum()
        open_mean = (full.photons * first).sum() / share
        mean = (left * first).sum() / share / open_mean
        variance = (left * second).sum() / share / open_mean**2 / photons
        count = half.numel()
        assert float(half.mean()) == pytest.approx(float(mean), abs=5 * math.sqrt(variance / count))
        assert float(half.var()) == pytest.approx(float(variance), rel=5 * math.sqrt(2 / count))


def test_read_out_noise_is_white_and_of_its_size():
    areal, views = torch.zeros(2, 1, 128, 128), scene.views(1)
    kev = float(_entries(90.0, 3.0, 0.1)[3])  # a photon leaves in the detector
    assert 20 < kev < 50
    made = appearance(photons=1e6, electronic=1e6, blur=20.0)(areal, views, Draws(3))
    noise = torch.exp(-made.image[0, 0]) - 1
    expected = 1e6 / 1e6 / kev
    assert float(noise.std()) == pytest.approx(expected, rel=0.05)
    neighbours = torch.corrcoef(torch.stack([noise[:, 1:].flatten(), noise[:, :-1].flatten()]))[0, 1]
    assert abs(float(neighbours)) < 0.05


def test_blur_is_that_of_a_gaussian_transfer_function():
    image = torch.rand(2, 40, 48, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sigma = torch.tensor([[1.5, 0.9], [2.5, 3.0]], dtype=torch.float64)
    for one, found, (rows, columns) in zip(image, blurred(image, sigma), sigma.tolist(), strict=True):
        expected = Blur((gaussian_mtf((rows, columns)),), (1.0, 1.0))(one)
        torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)
    torch.testing.assert_close(blurred(image, torch.zeros(2, 2, dtype=torch.float64)), image)
    flat = torch.ones(2, 8, 9, dtype=torch.float64)
    torch.testing.assert_close(blurred(flat, sigma), flat)


def test_blades_and_apertures_are_those_of_the_collimator():
    covered = torch.tensor([[0.1, 0.0, 0.33, 0.2], [0.0, 0.05, 0.0, 0.4]], dtype=torch.float64)
    for share, found in zip(covered, blades(covered, 20, 30), strict=True):
        px = (share * torch.tensor([20, 20, 30, 30])).tolist()
        expected = Collimator(tuple(px), unit="px").field(20, 30, (1.0, 1.0), torch.float64)
        torch.testing.assert_close(found, expected)
    radius = torch.tensor([7.3, 11.0], dtype=torch.float64)
    for one, found in zip(radius.tolist(), aperture(radius, 20, 30), strict=True):
        torch.testing.assert_close(found, Collimator(radius=one, unit="px").field(20, 30, (1.0, 1.0), torch.float64))


def test_there_is_little_noise_where_there_is_little_beam():
    made = appearance(photons=1e4, blades=0.25)(torch.zeros(2, 1, 64, 64), scene.views(1), Draws(0))
    covered = torch.exp(-made.image[0, 0])[:12]
    assert float(covered.mean()) == pytest.approx(1e-3, rel=0.1)
    assert float(covered.std()) == pytest.approx((1e-3 * float(_entries(90.0, 3.0, 0.1)[2]) / 1e4) ** 0.5, rel=0.1)
    assert not made.field[0, 0, :12].any()


def test_what_has_a_chance_happens_so_often():
    made = Appearance(Ranges.from_dict({"aperture": 0.6}, ["aperture"]), {"aperture": 0.3})
    views = scene.sampler().candidates(scene.subject(), 400, Draws(1))
    field = made(torch.zeros(2, 400, 16, 16), views, Draws(0)).field
    assert float((~field.flatten(1).all(dim=1)).double().mean()) == pytest.approx(0.3, abs=0.07)


def test_defaults_vary_everything_and_can_be_switched_off():
    views = scene.views()
    areal = scene.subject().areal(views.camera, views.pose)
    made = Appearance.from_dict({})
    one, other, again = (made(areal, views, Draws(n)).image for n in (0, 1, 0))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert bool(torch.isfinite(one).all())
    assert made.bank.variance.unique().numel() > 20
    off = Appearance.from_dict({**dict.fromkeys(made.ranges.of), **PLAIN})
    assert torch.equal(off(areal, views, Draws(0)).image, images().image)
    assert "photons" not in Appearance.from_dict({"dose": 1.0}).ranges.of


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"kvq": 80}, "kvq"),
        ({"kvp": [20, 80]}, "kvp"),
        ({"photons": 1e3, "dose": 1.0}, "not both"),
        ({"chances": {"blades": 1.5}}, "from 0 to 1"),
        ({"chances": {"noise": 0.5}}, "noise"),
        ({"blur": {"normal": [1, 1]}}, "blur"),
    ],
)
def test_what_cannot_be(content, words):
    with pytest.raises(DiffDRRError, match=words):
        Appearance.from_dict(content)


def test_nothing_random_touches_the_global_generator():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    with pytest.raises(LearningError):
        Appearance(Ranges.from_dict({"primary": 3}))
    images(photons=1e4)
    assert torch.equal(torch.rand(3), expected)
