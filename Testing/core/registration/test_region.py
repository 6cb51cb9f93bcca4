"""Cutting an X-ray to the CT's shadow."""

from __future__ import annotations

import pytest
import torch

from DiffDRRCore import CArm, Renderer, Volume, XRay
from DiffDRRCore.errors import RegistrationError
from DiffDRRCore.registration.masks.region import crop_to_volume


def block() -> Volume:
    """10 x 20 x 40 mm of matter in the middle of a much larger box of air."""
    mu = torch.zeros(100, 60, 50)
    mu[30:70, 20:40, 20:30] = 0.02
    ijk_to_ras = torch.eye(4).double()
    ijk_to_ras[:3, 3] = torch.tensor([-24.5, -29.5, -49.5])
    return Volume.from_attenuation(mu, ijk_to_ras)


def xray(volume: Volume, **carm) -> XRay:
    arm = CArm(1000.0, 500.0, volume.center, **carm)
    camera = arm.camera(400, 300, (0.5, 1.0), view_from="detector")
    with torch.no_grad():
        return XRay(Renderer(volume, "siddon")(camera, arm.pose)[0, 0], camera, arm.pose)


def test_margin_by_hand():
    """AP, magnification 2 at the centre: the near face, 490 mm from the source, is magnified 1000/490."""
    full = xray(block())
    cut = crop_to_volume(full, block(), full.pose, margin=15.0)
    width, height = 10 * 1000 / 490 + 30, (40 * 1000 / 490 + 30) / 0.5
    assert 0 <= cut.camera.width - width <= 3  # both ends' pixels, and rounding outwards
    assert 0 <= cut.camera.height - height <= 3


def test_nothing_of_the_shadow_is_lost():
    full = xray(block(), primary=35.0, secondary=-20.0, roll=15.0)
    cut = crop_to_volume(full, block(), full.pose, margin=0.0)
    assert float(cut.image.sum()) == pytest.approx(float(full.image.sum()), rel=1e-6)
    with torch.no_grad():
        again = Renderer(block(), "siddon")(cut.camera, full.pose)[0, 0]
    assert torch.allclose(again, cut.image, atol=1e-5)


def test_a_shadow_outside_the_image_is_an_error():
    full = xray(block())
    away = full.pose.retract([0, 0, 0, 900.0, 0, 0])
    with pytest.raises(RegistrationError, match="misses the X-ray"):
        crop_to_volume(full, block(), away)


def test_an_empty_ct_is_an_error():
    full = xray(block())
    empty = Volume.from_attenuation(torch.zeros(4, 4, 4), torch.eye(4))
    with pytest.raises(RegistrationError, match="nothing that attenuates"):
        crop_to_volume(full, empty, full.pose)
