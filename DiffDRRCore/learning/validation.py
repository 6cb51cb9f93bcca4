"""How well a network finds poses that it has not seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from DiffDRRCore.geometry import Pose
from DiffDRRCore.learning.batches import Batch
from DiffDRRCore.learning.losses import pose_error
from DiffDRRCore.learning.network import PoseNet
from DiffDRRCore.learning.subjects import Subject
from DiffDRRCore.learning.targets import Target

_TARGETS = 200
_DENSE = 0.8  # quantile of the attenuation of what is not air: targets are where the bone is
_AIR = 0.2  # of the attenuation's range


@dataclass(frozen=True)
class Validation:
    """Errors over held-out views: target registration error (mm; median and 90 % quantile), and medians of the angle
    (degrees) and of the distance (mm) of the anatomy's centre in the camera.
    """

    mm: float
    mm_90: float
    degrees: float
    center_mm: float

    def to_dict(self) -> dict[str, float]:
        """Plain values."""
        return asdict(self)


def validate(net: PoseNet, target: Target, batches: Sequence[tuple[Batch, Tensor]]) -> Validation:
    """Of batches, each with its target points [N, 3] in the model's frame (`targets_of`)."""
    errors, angles, distances = [], [], []
    with torch.no_grad():
        for batch, points in batches:
            outputs = net(batch.input)
            pose = target.decode(batch.views.camera, outputs.rotation, outputs.offsets)
            errors.append(target_errors(pose, batch.views.pose, points))
            xi = pose_error(pose, batch.views.pose)
            angles.append(xi[:, :3].norm(dim=-1).rad2deg())
            distances.append(xi[:, 3:].norm(dim=-1))
    error, angle, distance = (torch.cat(parts).double().cpu() for parts in (errors, angles, distances))
    return Validation(
        float(error.median()), float(error.quantile(0.9)), float(angle.median()), float(distance.median())
    )


def target_errors(estimate: Pose, truth: Pose, points: Tensor) -> Tensor:
    """Mean distance in mm [B] of points [N, 3] as the true and the estimated camera see them."""
    points = points.to(estimate.matrix)
    difference = estimate.inverse().transform(points) - truth.to(estimate.matrix).inverse().transform(points)
    return difference.norm(dim=-1).mean(dim=-1)


def targets_of(subject: Subject) -> Tensor:
    """Some [N, 3] points of dense matter, bone where there is some, in the model's frame; always the same."""
    volume = subject.volume
    field = volume.attenuation.detach().cpu()
    low, high = (float(value) for value in field.aminmax())
    matter = field[field > low + _AIR * (high - low)]
    limit = float(np.quantile(matter.numpy(), _DENSE)) if len(matter) else low
    voxels = (field >= limit).nonzero().flip(-1).double()
    chosen = np.random.default_rng(0).choice(len(voxels), min(_TARGETS, len(voxels)), replace=False)
    world = Pose.identity().matrix.new_tensor(volume.ijk_to_ras.detach().cpu().numpy())
    points = voxels[torch.from_numpy(np.sort(chosen))] @ world[:3, :3].T + world[:3, 3]
    return subject.frame_to_world.inverse().to("cpu").transform(points)


def held_out(
    make: Callable[[Subject, int], Batch], subjects: Sequence[Subject], count: int
) -> list[tuple[Batch, Tensor]]:
    """Batches of the held-out views, the subjects in turn: make(subject, number), until there are `count` views."""
    batches, views = [], 0
    while views < count:
        subject = subjects[len(batches) % len(subjects)]
        batches.append((make(subject, len(batches)), targets_of(subject)))
        views += len(batches[-1][0].input)
    return batches
