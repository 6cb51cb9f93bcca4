"""A small CT and X-rays of it for the tests of registration, made by another integrator than the registration's."""

from __future__ import annotations

from functools import cache

import torch

from DiffDRRCore import Camera, CArm, Pose, Volume, XRay
from DiffDRRCore.datasets import phantom
from DiffDRRCore.datasets.simulated import points_in_bone, simulated_xray

SIZES = (32, 64)
OFFSET = (0.06, -0.05, 0.07, 6.0, -5.0, 8.0)  # rad and mm: the starts are some 14 mm off


@cache
def ct() -> Volume:
    """The phantom, 5 mm voxels."""
    return phantom((48, 40, 48), 5.0, seed=1)


def arm(primary: float = 10.0, secondary: float = 5.0) -> CArm:
    return CArm(1000.0, 600.0, ct().center, primary=primary, secondary=secondary)


@cache
def xray(primary: float = 10.0, secondary: float = 5.0, view_from: str = "source") -> XRay:
    """64 x 64 pixels with noise, gain and offset, at its true pose."""
    carm = arm(primary, secondary)
    camera = carm.camera(64, 64, (5.0, 5.0), view_from=view_from)
    return simulated_xray(ct(), camera, carm.pose, oversampling=2)


def moved(pose: Pose, offset=OFFSET) -> Pose:
    """A start: the pose turned about the CT's centre and shifted."""
    return pose.retract(torch.tensor(offset, dtype=torch.float64), about=ct().center)


def error(found: Pose, truth: Pose) -> float:
    """Mean distance in mm, in the camera's frame, of bone points seen by the two poses; computed by plain matrices."""
    points = points_in_bone(ct(), 100)
    homogeneous = torch.cat([points, torch.ones(len(points), 1)], dim=1).double()
    local = [homogeneous @ torch.linalg.inv(pose.matrix).T for pose in (found, truth)]
    return float((local[0] - local[1])[:, :3].norm(dim=-1).mean())


def image_of(volume: Volume, camera: Camera, pose: Pose, gain: float = 1.0) -> XRay:
    """Another X-ray by the same route, without gain."""
    return simulated_xray(volume, camera, pose, oversampling=2, gain=gain, offset=0.0)
