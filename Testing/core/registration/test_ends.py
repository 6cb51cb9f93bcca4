"""Pixels that show more than the CT holds, by hand, and what leaving them out does for a CT that was cut."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from DiffDRRCore import CArm, Renderer, Volume, register
from DiffDRRCore.registration.masks.automatic import differ
from DiffDRRCore.registration.masks.ends import within_ends
from Testing.core.registration import scene

CENTER = torch.zeros(3, dtype=torch.float64)


def block(height: int, air: int = 0) -> Volume:
    """A block of water, 100 mm across, `height` slices of 5 mm high, with slices of air above its upper end."""
    mu = torch.zeros(height + air, 20, 20)
    mu[:height] = 0.02
    affine = torch.diag(torch.tensor([5.0, 5.0, 5.0, 1.0], dtype=torch.float64))
    affine[:3, 3] = torch.tensor([-47.5, -47.5, -2.5 * (height - 1)], dtype=torch.float64)
    return Volume.from_attenuation(mu, affine)


def front(size: int = 101) -> tuple:
    """A C-arm that sees 200 mm of the plane through the world's origin, in pixels of 4 mm at the detector."""
    carm = CArm(1000.0, 500.0, CENTER)
    return carm.camera(size, size, (400 / size,) * 2), carm.pose


def test_rays_beyond_the_ends_by_hand():
    """The end at 50 mm: of rays through it, the nearest to the beam's middle leaves the block's front at 450 mm from
    the source there, and lands 50 / 450 * 1000 mm = 111 mm off the middle of the detector."""
    camera, pose = front()
    known = within_ends(camera, pose, block(20))
    row, column = (torch.arange(101) - 50) * 400 / 101, (torch.arange(101) - 50) * 400 / 101
    steepest = 50 / 550 * 1000  # a ray that leaves the block's back, 550 mm from the source, at its end
    middle = known[:, 50]
    assert bool(middle[row.abs() < steepest - 4].all())
    assert not bool(middle[row.abs() > steepest + 4].any())
    beside = column.abs() > 50 / 450 * 1000 + 4  # rays that miss the block and what it goes on in
    assert bool(known[:, beside].all())


def test_an_end_in_air_ends():
    camera, pose = front()
    rows = (torch.arange(101) - 50) * 400 / 101
    known = within_ends(camera, pose, block(16, air=4))
    lost = [bool((~known[side]).any()) for side in (rows < 0, rows > 0)]
    assert sorted(lost) == [False, True]
    assert lost[1] == (float(pose.rotation[2, 1]) < 0)  # down in the image is towards the feet
    assert bool(within_ends(camera, pose, _in_air(12)).all())


def _in_air(height: int) -> Volume:
    mu = torch.zeros(height + 8, 20, 20)
    mu[4:-4] = 0.02
    affine = torch.diag(torch.tensor([5.0, 5.0, 5.0, 1.0], dtype=torch.float64))
    affine[:3, 3] = -47.5
    return Volume.from_attenuation(mu, affine)


@pytest.mark.parametrize(("tilt", "least"), [(0, 0.95), (20, 0.8), (30, 0.5)])
def test_what_is_left_is_what_a_longer_ct_shows_alike(tilt, least):
    """An elliptic patient in air, cut to 250 mm: all pixels that are left show what 2 m of the patient show."""
    carm = CArm(1020.0, 600.0, CENTER, secondary=float(tilt))
    camera = carm.camera(64, 64, (300 / 64,) * 2)
    known = within_ends(camera, carm.pose, patient(250), 12.0)
    images = [Renderer(patient(length), integrator="siddon")(camera, carm.pose)[0, 0] for length in (250, 2000)]
    alike = (images[0] - images[1]).abs() < 0.02 * images[1].max()
    assert bool(alike[known].all())
    assert float((known & alike).sum()) > 0.8 * float(alike.sum())
    assert float(known.double().mean()) > least


@cache
def patient(length: float) -> Volume:
    """350 x 220 mm of water in 500 x 500 mm of air."""
    side, count = (torch.arange(100) - 49.5) * 5, round(length / 5)
    inside = (side / 175) ** 2 + (side[:, None] / 110) ** 2 < 1
    affine = torch.diag(torch.tensor([5.0, 5.0, 5.0, 1.0], dtype=torch.float64))
    affine[:3, 3] = torch.tensor([-247.5, -247.5, -2.5 * (count - 1)], dtype=torch.float64)
    return Volume.from_attenuation(0.02 * inside.float().repeat(count, 1, 1), affine)


def test_a_mask_that_is_all_beyond_an_end_counts():
    camera, pose = front()
    known = within_ends(camera, pose, block(20))
    assert bool(within_ends(camera, pose, block(20), given=(~known).float()).all())
    assert not bool(within_ends(camera, pose, block(20), given=torch.ones(101, 101)).all())


def test_a_pose_that_may_be_off_leaves_out_more():
    camera, pose = front()
    known, less = (within_ends(camera, pose, block(20), reach) for reach in (0.0, 20.0))
    lost = (known & ~less)[:, 50].nonzero()[:, 0]
    assert len(lost) == pytest.approx(2 * 20 / (400 / 101), abs=2)
    assert not bool((less & ~known).any())


def test_nothing_is_left_out_where_nothing_would_be_left():
    camera, pose = front()
    assert bool(within_ends(camera, pose, block(20), 150.0).all())


def test_weights_that_differ():
    ones, half = torch.ones(10, 10), torch.ones(10, 10)
    half[:5] = 0
    assert not differ([None, ones], [None, None])
    assert differ([None, half], [None, ones])


@cache
def cut() -> Volume:
    """The middle half of the phantom of the tests."""
    k = scene.ct().shape[0]
    affine = scene.ct().ijk_to_ras.clone()
    affine[:3, 3] += affine[:3, 2] * (k // 4)
    return Volume(scene.ct().hu[k // 4 : k - k // 4], affine)


@pytest.mark.parametrize("beyond", [True, False])
def test_a_ct_that_is_cut(beyond):
    """The X-ray is of all of the phantom, the CT of half of it."""
    xray = scene.xray()
    start = scene.moved(xray.pose, (0.03, -0.03, 0.03, 3.0, -3.0, 4.0))
    found = register(cut(), xray, start, sizes=scene.SIZES, search=0, beyond_ends=beyond).poses[0]
    error = scene.error(found, xray.pose)
    assert (error > 5) if beyond else (error < 1.5)


def test_a_far_start_is_looked_at_again():
    """What the start's mask hides or shows wrongly is put right at the second level, whose answer has no rivals."""
    xray = scene.xray()
    result = register(cut(), xray, scene.moved(xray.pose), sizes=(32, 64), search=0)
    assert scene.error(result.poses[0], xray.pose) < 3
    assert not any("nearly as good" in doubt for doubt in result.doubts)
