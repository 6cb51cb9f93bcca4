"""Two views, two bones, unknown cameras and metal: the same engine finds them, on simulated X-rays of the phantom."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch

from DiffDRRCore import CArm, Pose, Volume, XRay, register
from DiffDRRCore.datasets import phantom
from DiffDRRCore.datasets.simulated import moved_apart, simulated_xray
from DiffDRRCore.registration import Body, FreeCamera, Joint, Limits
from Testing.protocol.simulated import moved_by

HIPS = ("hip_left", "hip_right")


@cache
def volume() -> Volume:
    return phantom((60, 50, 60), 5.0)


def arm(primary: float, sdd: float = 1000.0) -> CArm:
    return CArm(sdd, 700.0, volume().center, primary=primary, secondary=5.0)


def xrays(*primaries: float, parts=None, sdd: float = 1000.0) -> list[XRay]:
    found = []
    for number, primary in enumerate(primaries):
        camera = arm(primary, sdd).camera(96, 96, (4.2, 4.2))
        found.append(simulated_xray(parts or volume(), camera, arm(primary).pose, oversampling=2, seed=number))
    return found


@cache
def motions() -> dict[str, Pose]:
    """5 mm and 5 degrees each, in different directions."""
    return {name: moved_by(center(name), 5.0, 5.0, seed) for seed, name in enumerate(HIPS)}


def center(name: str) -> torch.Tensor:
    voxels = torch.nonzero(volume().labels == volume().label_id(name)).double().mean(0).flip(0)
    return volume().ijk_to_ras[:3, :3] @ voxels + volume().ijk_to_ras[:3, 3]


def errors(found: Pose, truth: Pose, name: str) -> tuple[float, float]:
    """mm at the bone's centre, degrees."""
    apart = found @ truth.inverse()
    cosine = (float(apart.rotation.trace()) - 1) / 2
    shift = found.transform(center(name)[None]) - truth.transform(center(name)[None])
    return float(shift.norm()), math.degrees(math.acos(max(-1.0, min(1.0, cosine))))


BODIES = [*(Body(name, [name]) for name in HIPS), Body("rest", locked=True)]


@pytest.mark.parametrize("one_by_one", [False, True])
def test_two_bones_moved_apart(one_by_one):
    images = xrays(0.0, 80.0, parts=moved_apart(volume(), motions()))
    result = register(volume(), images, sizes=(48, 96), bodies=BODIES, one_by_one=one_by_one)
    assert result.converged
    for name in HIPS:
        shift, angle = errors(result.body(name).motion, motions()[name], name)
        assert shift < 1.0 and angle < 1.0, (name, shift, angle)
        assert 0 < float(result.body(name).target_error(center(name)[None])) < 1.0
    whole = register(volume(), images, sizes=(48, 96))
    assert result.similarity > whole.similarity


def test_a_joint_keeps_what_an_image_does_not_show():
    """In one view each hip may slide along the beam; a prior on their relative motion holds it."""
    images = xrays(0.0, parts=moved_apart(volume(), {HIPS[0]: motions()[HIPS[0]]}))
    apart = []
    for joints in ((), (Joint(HIPS, deviations=(None, None, None, 0.1, 0.1, 0.1), weight=1.0),)):
        result = register(volume(), images, sizes=(48,), bodies=BODIES, joints=joints)
        relative = result.bodies[0].motion.inverse() @ result.bodies[1].motion
        middle = (center(HIPS[0]) + center(HIPS[1])) / 2
        apart.append(float((relative.transform(middle[None])[0] - middle).norm()))
    assert apart[1] < 0.5 < apart[0]


def test_two_views_know_the_depth_that_one_does_not():
    images, start = xrays(0.0, 90.0), Pose.exp(torch.tensor([0.02, 0.03, -0.02, 5.0, -8.0, 6.0]).double())
    poses = [start @ xray.pose for xray in images]
    depth = []
    for count in (1, 2):
        result = register(volume(), images[:count], poses[:count], sizes=(48, 96), samples=2)
        apart = [pose.inverse().transform(volume().center[None])[0, 2] for pose in (result.poses[0], images[0].pose)]
        depth.append(float(apart[0] - apart[1]))
        beam = images[0].pose.rotation[:, 2]
        depth.append(float((beam @ result.covariance[3:, 3:] @ beam).sqrt()))
    assert abs(depth[2]) < 0.5
    assert depth[3] < 0.3 * depth[1]


def test_arms_that_are_not_calibrated_to_each_other():
    images = xrays(0.0, 80.0)
    wrong = [images[0].pose, Pose.exp(torch.tensor([0.03, -0.02, 0.02, 6.0, 5.0, -7.0]).double()) @ images[1].pose]
    result = register(volume(), images, wrong, sizes=(48, 96), free_views=[None, Limits()])
    free = result.carms[0].inverse() @ result.carms[1]
    true = images[0].pose.inverse() @ images[1].pose
    apart = free.transform(torch.tensor([[0.0, 0, 700]]).double()) - true.transform(
        torch.tensor([[0.0, 0, 700]]).double()
    )
    assert float(apart[:, :2].norm()) < 2.0
    held = register(volume(), images, wrong, sizes=(48, 96))
    assert result.similarity > held.similarity + 5e-4


def test_the_distance_to_the_detector_is_found_from_two_views():
    """Told 1030, true 1000: two views at 80 degrees know how large things are."""
    images = []
    for xray, primary in zip(xrays(0.0, 80.0), (0.0, 80.0), strict=True):
        told = arm(primary, 1030.0).camera(96, 96, (4.2, 4.2))
        images.append(XRay(xray.image, told, arm(primary).pose, xray.meta))
    result = register(volume(), images, sizes=(48, 96), free_cameras=FreeCamera(source_to_detector=math.inf), samples=2)
    assert float(result.cameras[0].camera.source_to_detector) == pytest.approx(1000, abs=5)
    assert torch.equal(result.cameras[0].changes, result.cameras[1].changes)
    assert 0 < float(result.cameras[0].deviations[0]) < 10


def test_an_x_ray_with_a_steel_ball():
    """Left alone it misleads, and the result says so; automatic weights leave it out."""
    xray = xrays(0.0)[0]
    v, u = torch.meshgrid(torch.arange(96.0), torch.arange(96.0), indexing="ij")
    ball = (1 - ((u - 60) ** 2 + (v - 40) ** 2) / 12.0**2).clamp(min=0).sqrt() * 8
    spoilt = xray.with_image(xray.image + ball)
    start = Pose.exp(torch.tensor([0.02, 0.03, -0.02, 5.0, -8.0, 6.0]).double()) @ xray.pose
    misled = register(volume(), spoilt, start, sizes=(48, 96))
    mended = register(volume(), spoilt, start, sizes=(48, 96), weights="auto")
    shown = center("sacrum")[None]

    def error(result) -> float:
        return float((result.poses[0].inverse().transform(shown) - xray.pose.inverse().transform(shown))[0, :2].norm())

    assert misled.doubts
    assert error(mended) < 1.0 < error(misled)
