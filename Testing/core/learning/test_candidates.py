"""The poses that a shadow is nearly the same from, and that rendering tells them apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from DiffDRRCore import Camera, CArm, Pose, Renderer, Volume
from DiffDRRCore.datasets import phantom
from DiffDRRCore.datasets.simulated import simulated_xray
from DiffDRRCore.geometry import project
from DiffDRRCore.learning.inference.candidates import antipodal, ranked, similarities, unmirrored

FAR = 1e6  # mm: rays are as good as parallel


@pytest.fixture(scope="module")
def volume() -> Volume:
    return phantom((48, 40, 48), 5.0, seed=1)


def arm(volume: Volume, primary=25.0, secondary=12.0, roll=8.0, sod=700.0) -> CArm:
    return CArm(sod + 300.0, sod, volume.center, primary, secondary, roll)


def shifted(pose: Pose, x: float, y: float) -> Pose:
    """Moved along the camera's own axes."""
    step = torch.eye(4, dtype=torch.float64)
    step[:3, 3] = torch.tensor([x, y, 0.0])
    return pose @ Pose(step)


def test_antipodal_of_a_centred_view_is_a_half_turn_about_the_image_s_vertical(volume):
    pose = arm(volume).pose
    about = volume.center
    y = pose.rotation[:, 1]
    turn = 2 * torch.outer(y, y) - torch.eye(3, dtype=torch.float64)
    found = antipodal(pose, about)
    torch.testing.assert_close(found.rotation, turn @ pose.rotation)
    torch.testing.assert_close(found.translation, about + turn @ (pose.translation - about))


def test_the_antipodal_source_is_opposite_and_the_centre_stays_in_the_image(volume):
    camera = Camera(60, 70, (6.0, 5.0), 1000.0, (40.0, 20.0), "detector")
    pose, about = shifted(arm(volume).pose, 60.0, -35.0), volume.center
    found = antipodal(pose, about)
    torch.testing.assert_close(found.translation, 2 * about - pose.translation)
    torch.testing.assert_close(project(camera, found, about[None]), project(camera, pose, about[None]))
    torch.testing.assert_close(antipodal(found, about).matrix, pose.matrix)
    assert float(torch.linalg.det(found.rotation)) == pytest.approx(1.0)


def test_from_far_away_the_antipodal_image_is_mirrored_about_the_centre(volume):
    """Of a parallel beam it is so exactly."""
    pose = arm(volume, sod=FAR).pose
    camera = Camera(56, 64, (6.0, 5.0), FAR + 300.0)
    renderer = Renderer(volume)
    there, here = (renderer(camera, one)[0, 0] for one in (antipodal(pose, volume.center), pose))
    assert float((there - here.flip(-1)).abs().max()) < 0.01 * float(here.max())
    assert float((there - here).abs().max()) > 0.2 * float(here.max())


def test_unmirrored_shows_the_flipped_image(volume):
    """From far away, off centre in both directions, with a principal point that is flipped too."""
    camera = Camera(56, 64, (6.0, 5.0), FAR + 300.0, principal_point=(36.5, 24.0))
    flipped = Camera(56, 64, (6.0, 5.0), FAR + 300.0, principal_point=(63 - 36.5, 24.0))
    pose = shifted(arm(volume, sod=FAR).pose, 20.0, -15.0)
    renderer = Renderer(volume)
    image = renderer(flipped, pose)[0, 0]
    found = unmirrored(pose, volume.center)
    assert float((renderer(camera, found)[0, 0] - image.flip(-1)).abs().max()) < 0.02 * float(image.max())
    u, v = project(camera, found, volume.center[None])[0, 0].tolist()
    u_flipped, v_flipped = project(flipped, pose, volume.center[None])[0, 0].tolist()
    assert (u, v) == pytest.approx((63 - u_flipped, v_flipped))
    torch.testing.assert_close(unmirrored(found, volume.center).matrix, pose.matrix)


def test_batches(volume):
    poses = [shifted(arm(volume, primary).pose, 30.0, 10.0) for primary in (0.0, 40.0)]
    together = Pose(torch.stack([pose.matrix for pose in poses]))
    for change in (antipodal, unmirrored):
        each = torch.stack([change(pose, volume.center).matrix for pose in poses])
        torch.testing.assert_close(change(together, volume.center).matrix, each)


@pytest.mark.parametrize("primary", [0.0, 35.0, 90.0, 160.0])
@pytest.mark.parametrize("view_from", ["source", "detector"])
def test_the_right_one_of_the_pair_wins(volume, primary, view_from):
    """Also where the network was some degrees and mm beside it."""
    carm = arm(volume, primary)
    xray = simulated_xray(volume, carm.camera(120, 128, (3.0, 3.0), view_from), carm.pose, seed=0)
    near = carm.pose.retract([0.06, -0.05, 0.04, 5.0, -6.0, 8.0], about=volume.center)
    right = [("right", near, False), ("wrong", antipodal(near, volume.center), False)]
    for order in (right, right[::-1]):
        found = ranked(volume, xray, order, volume.center)
        assert [one.name for one in found] == ["right", "wrong"]
        assert found[0].similarity > found[1].similarity + 0.02


def test_similarity_is_the_correlation_of_the_pixels(volume):
    carm = arm(volume)
    xray = simulated_xray(volume, carm.camera(50, 60, (6.0, 6.0)), carm.pose, seed=0)
    poses = Pose(torch.stack([carm.pose.matrix, shifted(carm.pose, 25.0, 0.0).matrix]))
    found = similarities(volume, xray, poses, volume.center)
    for row, score in enumerate(found.tolist()):
        image = Renderer(volume)(xray.camera, poses[row])[0, 0]
        expected = np.corrcoef(image.numpy().ravel(), xray.image.numpy().ravel())[0, 1]
        assert score == pytest.approx(expected, abs=0.01)
    assert found[0] > found[1]


def test_a_pose_that_sees_nothing_is_the_last(volume):
    carm = arm(volume)
    xray = simulated_xray(volume, carm.camera(50, 60, (6.0, 6.0)), carm.pose, seed=0)
    away = shifted(carm.pose, 9000.0, 0.0)
    found = ranked(volume, xray, [("away", away, False), ("right", carm.pose, False)], volume.center)
    assert found[0].name == "right"
    assert found[1].similarity == 0


def test_an_inverted_x_ray_must_be_clearly_likelier(volume):
    carm = arm(volume)
    xray = simulated_xray(volume, carm.camera(50, 60, (6.0, 6.0)), carm.pose, seed=0)
    named = [("plain", carm.pose, False), ("negative", carm.pose, True)]
    assert [one.name for one in ranked(volume, xray, named, volume.center)] == ["plain", "negative"]
    negative = xray.with_image(-xray.image)
    found = ranked(volume, negative, named, volume.center)
    assert found[0].name == "negative"
    assert found[0].inverted
    assert found[0].similarity == pytest.approx(-found[1].similarity)
    assert found[0].similarity > 0.9
