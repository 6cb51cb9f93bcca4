"""How well a network finds poses that it has not seen."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from DiffDRRCore.errors import LearningError
from DiffDRRCore.geometry import Pose
from DiffDRRCore.learning.data.subjects import Subject, spread
from DiffDRRCore.learning.network.losses import pose_error
from DiffDRRCore.learning.network.pose_net import PoseNet
from DiffDRRCore.learning.network.targets import Target
from DiffDRRCore.learning.training.batches import Batch

_TARGETS, _ENOUGH = 200, 20
_BONE, _SOFT = 150.0, -300.0  # HU
_MOST = 16  # CTs that are looked at
_SHARE, CHI_SQUARED = 0.9, 10.645  # its quantile for six degrees of freedom
_TINY = 1e-12


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


def calibrated(net: PoseNet, target: Target, batches: Sequence[tuple[Batch, Tensor]]) -> PoseNet:
    """A copy whose deviations are all larger or smaller by one factor, so that they are true of held-out views.

    Afterwards the error xi of 90 % of them lies in the ellipsoid sum xi_k^2 / s_k^2 <= CHI_SQUARED, as that of a
    Gaussian does.
    """
    squares = torch.cat([squared_distances(net, target, batch) for batch, _ in batches])
    factor = float(squares.quantile(_SHARE)) / CHI_SQUARED
    net = copy.deepcopy(net)
    with torch.no_grad():
        net.deviation[-1].bias += math.log(max(factor, _TINY)) / 2
    return net


def squared_distances(net: PoseNet, target: Target, batch: Batch) -> Tensor:
    """[B] float64 on the CPU: sum xi_k^2 / s_k^2 of the pose error and the deviations that the network tells."""
    with torch.no_grad():
        outputs = net(batch.input)
        pose = target.decode(batch.views.camera, outputs.rotation, outputs.offsets)
        xi = pose_error(pose, batch.views.pose).double()
        return (xi / outputs.log_deviation.double().exp()).square().sum(dim=-1).cpu()


def target_errors(estimate: Pose, truth: Pose, points: Tensor) -> Tensor:
    """Mean distance in mm [B] of points [N, 3] as the true and the estimated camera see them."""
    points = points.to(estimate.matrix)
    difference = estimate.inverse().transform(points) - truth.to(estimate.matrix).inverse().transform(points)
    return difference.norm(dim=-1).mean(dim=-1)


def targets_of(subject: Subject) -> Tensor:
    """Some [N, 3] points of bone, or of all that is not air where there is no bone, in the model's frame.

    Always the same. Raises LearningError where there is nothing but air.
    """
    from DiffDRRCore.datasets.simulated import points_in_bone

    volume = subject.volume.detached()
    points = points_in_bone(volume, _TARGETS, _BONE)
    if len(points) < _ENOUGH:
        points = points_in_bone(volume, _TARGETS, _SOFT)
    if not len(points):
        raise LearningError(f"There is nothing but air in the CT '{subject.name}'.")
    return subject.frame_to_world.inverse().to("cpu").transform(points.cpu().double())


def held_out(
    make: Callable[[Subject, int], Batch], subjects: Sequence[Subject], count: int
) -> list[tuple[Batch, Tensor]]:
    """Batches of `count` held-out views: make(subject, number), and target points.

    They are of up to 16 CTs, evenly over all, the same number of each but for the last, which has the rest; what is
    read of many CTs is forgotten again.
    """
    some = spread(subjects, min(_MOST, count))
    batches, left = [], count
    for place, subject in enumerate(some):
        views, points = -(-left // (len(some) - place)), targets_of(subject)
        while views > 0:
            made = make(subject, len(batches)).first(views)
            batches.append((made, points))
            views, left = views - len(made.input), left - len(made.input)
        if len(some) > 1:
            subject.release()
    return batches
