"""The stated covariance against the scatter of many registrations, and rays averaged within pixels."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import avg_pool2d

from DiffDRRCore import Pose, Registration, Renderer, register
from DiffDRRCore.pieces import finished
from DiffDRRCore.registration import FoundBody, Limits
from DiffDRRCore.registration.certainty import covariance
from DiffDRRCore.registration.objective.views import View
from Testing.core.registration import scene

REPEATS = 30


def scattered(noise) -> float:
    """Mean of chi^2 / 6 of registrations of X-rays with different noise, by the covariance that each of them states."""
    clean = scene.xray()
    with torch.no_grad():
        fine = Renderer(scene.ct())(clean.camera.resized(128, 128), clean.pose)
    clean = clean.with_image(-avg_pool2d((-fine).exp(), 2).log()[0, 0])
    random, found = torch.Generator().manual_seed(0), []
    for _ in range(REPEATS):
        xray = clean.with_image(clean.image + noise(torch.randn(64, 64, generator=random)))
        result = register(scene.ct(), xray, clean.pose, sizes=(64,), search=0, samples=2, tolerance=1e-4)
        motion = result.poses[0] @ clean.pose.inverse()
        turn = torch.stack([motion.rotation[2, 1], motion.rotation[0, 2], motion.rotation[1, 0]])
        xi = torch.cat([turn, motion.transform(result.about[None])[0] - result.about])
        found.append(float(xi @ torch.linalg.solve(result.covariance, xi)))
    return sum(found) / REPEATS / 6


def test_white_noise():
    """The mean of 30 chi^2 of 6 degrees of freedom is 1 +- 0.1."""
    assert 0.7 < scattered(lambda white: 0.1 * white) < 1.4


def test_noise_that_goes_together_over_some_pixels(monkeypatch):
    """Independent pixels would state less than a third of the variance."""

    def smooth(white):
        return 0.3 * avg_pool2d(white[None, None], 3, stride=1, padding=1)[0, 0]

    found = scattered(smooth)
    assert 0.7 < found < 2.0
    monkeypatch.setattr(covariance, "WINDOW", 1)
    assert scattered(smooth) > 2 * found


def test_what_is_locked_is_certain_and_a_prior_makes_surer():
    xray = scene.xray()
    options = {"sizes": (32,), "search": 0}
    free = register(scene.ct(), xray, xray.pose, **options).covariance
    known = Limits(deviations=(None,) * 5 + (0.01,), weight=1.0)
    held = register(scene.ct(), xray, xray.pose, limits=known, **options).covariance
    beam = xray.pose.rotation[:, 2]
    assert float(beam @ held[3:, 3:] @ beam) < 0.1 * float(beam @ free[3:, 3:] @ beam)


def test_target_error_by_hand():
    """One degree about an axis 100 mm away, and 2 mm along it."""
    covariance = torch.zeros(6, 6, dtype=torch.float64)
    covariance[2, 2], covariance[5, 5] = math.radians(1) ** 2, 4.0
    body = FoundBody("bone", Pose.identity(), covariance, torch.tensor([1.0, 2, 3]).double())
    points = torch.tensor([[1.0, 2, 50], [101, 2, 3], [1, 102, 3]]).double()
    lever = math.hypot(100 * math.radians(1), 2)
    assert body.target_error(points).tolist() == pytest.approx([2.0, lever, lever])
    assert body.target_covariance(points)[1].diagonal().tolist() == pytest.approx([0, math.radians(100) ** 2, 4.0])


def test_rays_of_a_recorded_pixel_average_as_intensities():
    xray = scene.xray()
    registration = Registration(scene.ct(), xray, xray.pose, sizes=(64,), samples=3)
    (level,) = registration.levels
    view, renderer = level.objective.views[0], level.objective.renderer
    image = finished(level.objective.images.rendering(view, level.objective.unknowns.start()))
    fine = renderer(view.camera.resized(192, 192), view.start)
    assert torch.allclose(image, -avg_pool2d((-fine).exp(), 3).log(), atol=1e-4)


def test_rays_of_a_larger_pixel_average_as_attenuation():
    xray = scene.xray()
    registration = Registration(scene.ct(), xray, xray.pose, sizes=(32,), samples=2)
    (level,) = registration.levels
    view, renderer = level.objective.views[0], level.objective.renderer
    image = finished(level.objective.images.rendering(view, level.objective.unknowns.start()))
    assert torch.allclose(image, avg_pool2d(renderer(view.camera.resized(64, 64), view.start), 2), atol=1e-4)


@pytest.mark.parametrize("recorded", [True, False])
def test_slopes_of_averaged_rays(recorded):
    xray = scene.xray()
    view = View(xray.image[None, None], None, xray.camera, xray.pose, xray.camera, samples=2, recorded=recorded)
    random = torch.Generator().manual_seed(0)
    image, slopes = (torch.randn(1, n, 5 * 4, generator=random, dtype=torch.float64) for n in (1, 3))
    for number in range(3):
        _, expected = torch.func.jvp(lambda x: view.averaged(x)[0], (image,), (slopes[:, number : number + 1],))
        assert torch.allclose(view.averaged(image, slopes)[1][:, number], expected[:, 0])
