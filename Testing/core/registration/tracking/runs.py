"""A run of X-rays of the small phantom by two C-arms, made by another integrator than the registration's."""

from __future__ import annotations

import math
from functools import cache

import torch

from DiffDRRCore import CArm, Pose, Volume, XRay
from DiffDRRCore.datasets import phantom
from DiffDRRCore.datasets.simulated import moved_apart, points_in_bone, simulated_xray

SIZES = (32, 64)
STEP = (0.6, -0.5, 0.6, 1.2, 1.0, -1.2)  # 1 degree and 2 mm a frame


@cache
def ct() -> Volume:
    """The phantom, 5 mm voxels."""
    return phantom((48, 40, 48), 5.0, seed=1)


def arms() -> list[CArm]:
    return [CArm(1000.0, 700.0, ct().center, primary=primary) for primary in (0.0, 90.0)]


def starts() -> list[Pose]:
    return [arm.pose for arm in arms()]


def motion(steps: float, step=STEP, about=None) -> Pose:
    """So many times the step: degrees and mm, a screw about the CT's centre."""
    turn = [steps * value * math.pi / 180 for value in step[:3]]
    xi = torch.tensor([*turn, *(steps * value for value in step[3:])], dtype=torch.float64)
    return Pose.identity().retract(xi, about=ct().center if about is None else about)


@cache
def frame(steps: float, pixels: int = 64, noise: int = 0) -> list[XRay]:
    """Both views of the CT after that motion; without poses."""
    return seen(ct(), motion(steps), pixels, noise)


def seen(volume, moved: Pose, pixels: int = 64, noise: int = 0, room: Pose | None = None) -> list[XRay]:
    found = []
    for number, arm in enumerate(arms()):
        camera = arm.camera(pixels, pixels, (320.0 / pixels,) * 2)
        pose = moved.inverse() @ (arm.pose if room is None else room @ arm.pose)
        found.append(simulated_xray(volume, camera, pose, oversampling=2, seed=2 * noise + number).with_pose(None))
    return found


def apart(volume: Volume, motions: dict) -> list[XRay]:
    """Both views with structures moved on their own."""
    return seen(moved_apart(volume, motions), Pose.identity())


def error(found, truth: Pose) -> float:
    """Mean distance in mm of bone points under the two motions."""
    found = Pose(torch.as_tensor(found)) if not isinstance(found, Pose) else found
    points = points_in_bone(ct(), 100).double()
    return float((found.transform(points) - truth.transform(points)).norm(dim=-1).mean())
