"""Cases with a known answer: a CT, a simulated fluoroscopy of it, and starts around the truth."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from DiffDRRCore import CArm, Pose, Volume, XRay
from DiffDRRCore.datasets.simulated import points_in_bone, simulated_xray
from DiffDRRCore.evaluation.measures import pose_errors
from DiffDRRCore.registration.problem.motion import MotionFrame


@dataclass(frozen=True)
class Case:
    """A CT with one simulated X-ray, the pose it was taken from, and the points [N, 3] at which errors are measured."""

    name: str
    volume: Volume
    xray: XRay
    truth: Pose
    targets: Tensor


def make_case(name: str, volume: Volume, primary=0.0, secondary=0.0, size=128, field=400.0, seed=0) -> Case:
    """A C-arm (SDD 1020, source to isocentre 850) on the volume's centre, `size` pixels over `field` mm of detector."""
    carm = CArm(1020.0, 850.0, volume.center, primary, secondary)
    camera = carm.camera(size, size, (field / size, field / size))
    xray = simulated_xray(volume, camera, carm.pose, seed=seed)
    return Case(name, volume, xray, carm.pose, points_in_bone(volume))


def random_starts(case: Case, count: int, degrees=5.0, plane=10.0, depth=30.0, seed=0) -> list[Pose]:
    """Poses around the truth: normal deviations per axis, about the volume's centre and along the camera's axes."""
    generator = torch.Generator().manual_seed(seed)
    frame = MotionFrame(case.volume.center, case.truth.rotation)
    spread = torch.tensor([degrees * torch.pi / 180] * 3 + [plane, plane, depth], dtype=torch.float64)
    offsets = spread * torch.randn(count, 6, generator=generator, dtype=torch.float64)
    return [frame.motion(q) @ case.truth for q in offsets]


def moved_by(center: Tensor, degrees: float, millimetres: float, seed: int) -> Pose:
    """A rigid motion of the world: an angle about a random axis through `center`, a shift in a random direction."""
    generator = torch.Generator().manual_seed(seed)
    axis, direction = torch.nn.functional.normalize(torch.randn(2, 3, generator=generator, dtype=torch.float64), dim=-1)
    shifted = Pose.from_parameters(torch.zeros(3), direction * millimetres, "axis_angle")
    still = Pose.identity()
    return shifted @ still.retract(torch.cat([torch.deg2rad(axis * degrees), torch.zeros(3).double()]), about=center)


def errors(case: Case, pose: Pose) -> dict[str, float]:
    """The evaluation's measures at the case's targets."""
    return {name: float(value) for name, value in pose_errors(pose, case.truth, case.xray.camera, case.targets).items()}
