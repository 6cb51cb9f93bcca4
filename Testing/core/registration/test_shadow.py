"""The weights that keep to a CT's shadow, against the shadow of a ball in closed form."""

from __future__ import annotations

import math

import pytest
import torch

from DiffDRRCore import Camera, CArm, Volume, XRay
from DiffDRRCore.errors import RegistrationError
from DiffDRRCore.geometry import pixel_grid, pixel_rays
from DiffDRRCore.registration.masks.shadow import shadow_weights

RADIUS, CENTRE = 20.0, torch.tensor([5.0, -3.0, 8.0], dtype=torch.float64)
ARM = CArm(1000.0, 700.0, CENTRE, 20.0, 10.0)
CAMERA = Camera(120, 150, (1.0, 1.0), 1000.0, (70.0, 60.0))


def ball(cut: bool = False) -> Volume:
    """A ball of water of 2 mm voxels in air; `cut`: the half of it above its middle (superior) is not in the CT."""
    half = 15
    steps = 2.0 * torch.arange(-half, half + 1)
    k, j, i = torch.meshgrid(steps[: half + 1] if cut else steps, steps, steps, indexing="ij")
    affine = torch.diag(torch.tensor([2.0, 2.0, 2.0, 1.0])).double()
    affine[:3, 3] = CENTRE - 2.0 * half
    return Volume(torch.where(i**2 + j**2 + k**2 < RADIUS**2, 0.0, -1000.0), affine)


def from_centre() -> torch.Tensor:
    """mm [H, W] at which each pixel's ray passes the ball's centre."""
    source, target = pixel_rays(CAMERA, ARM.pose, pixel_grid(CAMERA, 0, 120 * 150, torch.device("cpu")))
    ray = torch.nn.functional.normalize(target - source, dim=-1)
    return torch.linalg.cross(CENTRE - source, ray).norm(dim=-1).reshape(120, 150)


@pytest.mark.parametrize("margin", [0.0, 10.0])
def test_the_shadow_of_a_ball_is_a_disc(margin):
    xray = XRay(torch.zeros(120, 150), CAMERA)
    (weight,) = shadow_weights([xray], ball(), [ARM.pose], margin)
    edge = RADIUS + margin * 700 / 1000  # mm on the detector are fewer at the ball
    off = from_centre()
    assert weight.shape == (120, 150)
    assert bool((weight[off < edge - 2.0] == 1).all())
    assert bool((weight[off > edge + 2.0] == 0).all())


def test_a_large_x_ray_is_measured_small_and_covered_whole():
    fine = Camera(601, 751, (0.2, 0.2), 1000.0, (352.0, 302.0))
    (large,) = shadow_weights([XRay(torch.zeros(601, 751), fine)], ball(), [ARM.pose])
    (small,) = shadow_weights([XRay(torch.zeros(120, 150), CAMERA)], ball(), [ARM.pose])
    assert large.shape == (601, 751)
    assert float(large.sum()) * 0.04 == pytest.approx(float(small.sum()), rel=0.03)


def test_the_cut_end_does_not_count():
    """An AP view of the lower half: its straight upper edge is left out, its round one counts."""
    arm = CArm(1000.0, 700.0, CENTRE, 0.0, 0.0)
    xray = XRay(torch.zeros(120, 150), CAMERA)
    (weight,) = shadow_weights([xray], ball(cut=True), [arm.pose], 5.0, ends=4.0)
    (whole,) = shadow_weights([xray], ball(cut=True), [arm.pose], 5.0, ends=0.0)
    assert float(weight[58:63, 60:81].max()) == 0  # the image of the cut lies in row 60
    assert float(whole[58:63, 60:81].min()) == 1
    low = 60 + math.floor(RADIUS / 0.7)
    assert float(weight[low - 3 : low + 3, 70].min()) == 1


def test_no_shadow():
    away = CArm(1000.0, 700.0, (500.0, 0.0, 0.0), 0.0, 0.0)
    with pytest.raises(RegistrationError, match="no shadow in X-ray 1"):
        shadow_weights([XRay(torch.zeros(120, 150), CAMERA)], ball(), [away.pose])
