"""Losses of predicted poses, each with a gradient that reaches the pose and is finite, at a perfect prediction too.

Poses are `camera_to_frame` [B, 4, 4], as `Target.decode` gives them. Measures in mm are those of
`evaluation.measures`, of batches and with gradients.

The geodesic is one length for all of the pose, so its gradient goes where the largest error is: as long as rotations
are off by degrees, it hardly tells a shift or the depth. "seen" tells each of them by itself, from the first step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor

from DiffDRRCore.errors import LearningError
from DiffDRRCore.geometry.camera import Camera
from DiffDRRCore.geometry.pose import Pose
from DiffDRRCore.geometry.se3 import log_so3
from DiffDRRCore.geometry.tensors import promote, transform_points
from DiffDRRCore.learning.network.targets import as_seen
from DiffDRRCore.rendering import Renderer
from DiffDRRCore.similarity import MultiscaleNCC

OPAQUE = 0.1  # a label's line integral that makes its soft mask 1 - 1/e: some 2 mm of bone
_TINY = 1e-6  # mm: lengths and angles are smooth below it
_VISIBLE = 1e-4  # mean square of a soft mask from which on a label is in the image


@dataclass(frozen=True)
class LossWeights:
    """What each term counts; 0 leaves it out. The geodesic and the consistency are in mm, the others of order one.

    `seen` needs the spread of what the training's views show (`seen_loss`).

    Raises LearningError for weights that are negative or not finite, or where no term for the pose is left.
    """

    seen: float = 1.0
    ncc: float = 1.0
    geodesic: float = 1e-2
    dice: float = 0.0
    consistency: float = 0.0
    likelihood: float = 0.1

    def __post_init__(self):
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        for name, value in values.items():
            if not (math.isfinite(value) and value >= 0):
                raise LearningError(f"The weight of the loss '{name}' is a number from 0 up, not {value}.")
        if not any(value for name, value in values.items() if name not in ("consistency", "likelihood")):
            raise LearningError("A network needs a loss that knows the pose: seen, ncc, geodesic or dice above 0.")


class Losses(NamedTuple):
    """The weighted sum, a scalar with a graph, and the means of the terms before weighting, without one."""

    total: Tensor
    terms: dict[str, Tensor]


@dataclass(frozen=True)
class PoseLosses:
    """All terms of a batch of views of one subject.

    Args:
        weights: what each term counts.
        spread: [4] for "seen".
        patch_sizes: of the `MultiscaleNCC`; None is the whole image.
        labels: numbers or names of the labels for "dice"; each must be in the volume.
        opaque: line integral of a label that makes its soft mask 1 - 1/e.
        stop_mean: whether the likelihood teaches the deviation only and leaves the pose to the other terms.
            (Together they neglect what is hard: M. Seitzer et al., "On the pitfalls of heteroscedastic uncertainty
            estimation", ICLR 2022.)

    Raises LearningError where "dice" counts and there are no labels, or "seen" and there is no spread.
    """

    weights: LossWeights = LossWeights()
    spread: Sequence[float] | None = None
    patch_sizes: Sequence[int | None] = (None, 9)
    labels: Sequence[int | str] = ()
    opaque: float = OPAQUE
    stop_mean: bool = True

    def __post_init__(self):
        if self.weights.dice > 0 and not self.labels:
            raise LearningError("The loss 'dice' needs labels: name some of the CT's, or set its weight to 0.")
        if self.weights.seen > 0 and self.spread is None:
            raise LearningError("The loss 'seen' needs the spread of the views' poses, or a weight of 0.")
        MultiscaleNCC(tuple(self.patch_sizes))

    def __call__(
        self,
        estimate: Pose,
        truth: Pose,
        camera: Camera,
        log_deviation: Tensor | None = None,
        renderer: Renderer | None = None,
        frame_to_world: Pose | None = None,
        clean: Tensor | None = None,
    ) -> Losses:
        """The losses of predicted poses.

        Args:
            estimate, truth: `camera_to_frame` [B, 4, 4].
            camera: of the views, one or [B].
            log_deviation: [B, 6] of the network, for "likelihood".
            renderer, frame_to_world, clean: of the subject, and the line integrals [B, 1, H, W] at the true poses, for
                "ncc" and "dice" (which needs no `clean`).
        """
        estimate, truth = (Pose._rigid(matrix) for matrix in promote(estimate.matrix, truth.matrix))
        weights, terms = self.weights, {}
        if weights.seen > 0:
            terms["seen"] = seen_loss(estimate, truth, camera, self.spread)
        if weights.ncc > 0:
            image = renderer(camera, _in_world(estimate, frame_to_world))
            terms["ncc"] = ncc_loss(image, clean, self.patch_sizes)
        if weights.geodesic > 0:
            terms["geodesic"] = geodesic_loss(estimate, truth, camera)
        if weights.dice > 0:
            terms["dice"] = self._dice(estimate, truth, camera, renderer, frame_to_world)
        if weights.consistency > 0:
            terms["consistency"] = consistency_loss(estimate, truth, camera)
        if weights.likelihood > 0 and log_deviation is not None:
            terms["likelihood"] = likelihood_loss(estimate, truth, log_deviation, self.stop_mean)
        means = {name: term.double().mean() for name, term in terms.items()}
        total = sum(getattr(weights, name) * mean for name, mean in means.items())
        return Losses(total, {name: mean.detach() for name, mean in means.items()})

    def _dice(self, estimate, truth, camera, renderer, frame_to_world) -> Tensor:
        with torch.no_grad():
            true = renderer(camera, _in_world(truth, frame_to_world), self.labels, "soft")
        found = renderer(camera, _in_world(estimate, frame_to_world), self.labels, "soft")
        return dice_loss(found, true, self.opaque)


def _in_world(pose: Pose, frame_to_world: Pose | None) -> Pose:
    return pose if frame_to_world is None else frame_to_world @ pose


def seen_loss(estimate: Pose, truth: Pose, camera: Camera, spread: Sequence[float]) -> Tensor:
    """Mean square of what the poses show differently, in spreads of the training's views: [B].

    Its mean is 1 for who says the middle of the ranges of any view.

    Args:
        spread: [4], root mean squares of the distance |R_1 - R_2| / sqrt(2) (Frobenius' norm; for small angles the
            angle in rad) of allocentric rotations, and of u, v and the log scale (`network.targets`).

    Rotations count half, the other three the other half. The squares of each have a gradient of their own, of the size
    of its own error.
    """
    (rotation, raw), (true_rotation, true_raw) = as_seen(camera, estimate), as_seen(camera, truth)
    turned = (rotation - true_rotation).square().sum(dim=(-2, -1)) / 2
    spread = torch.as_tensor(spread, dtype=raw.dtype, device=raw.device)
    moved = ((raw - true_raw) / spread[1:]).square().mean(dim=-1)
    return (turned / spread[0].square() + moved) / 2


def ncc_loss(moving: Tensor, fixed: Tensor, patch_sizes: Sequence[int | None] = (None, 9), weight=None) -> Tensor:
    """1 - multiscale NCC of images [B, 1, H, W]: [B], from 0 (alike up to gain and offset) to 2."""
    return 1 - MultiscaleNCC(tuple(patch_sizes))(moving, fixed.to(moving), weight)


def geodesic_loss(estimate: Pose, truth: Pose, camera: Camera) -> Tensor:
    """The double geodesic distance in mm [B], at the frame's origin: see `evaluation.measures.double_geodesic`.

    Below 1e-6 mm it is smooth, with gradient 0 at a perfect prediction.
    """
    est, true = promote(estimate.inverse().matrix, truth.inverse().matrix)
    return _double_geodesic(est, true, camera, est[..., :3, 3] - true[..., :3, 3])


def consistency_loss(estimate: Pose, truth: Pose, camera: Camera) -> Tensor:
    """The double geodesic distance in mm, a scalar: of the relative poses of all pairs of views, the mean.

    With M = T_i T_j^-1, T from the frame into a camera: the rotation between M_estimate and M_true, and how far apart
    they put the frame's origin of view j in camera i. It does not change where all predictions are wrong by the same
    motion of the frame. 0 for a single view.
    """
    est, true = promote(estimate.inverse().matrix, truth.inverse().matrix)
    count = len(est)
    if count < 2:
        return 0 * est.sum()
    i, j = torch.triu_indices(count, count, offset=1, device=est.device)
    relative_est, relative_true = (x[i] @ Pose._rigid(x[j]).inverse().matrix for x in (est, true))
    origin = true[j, None, :3, 3]
    shift = transform_points(relative_est, origin) - transform_points(relative_true, origin)
    distance = camera.source_to_detector.expand(count)[i]
    return _double_geodesic(relative_est, relative_true, distance, shift[:, 0]).mean()


def _double_geodesic(est: Tensor, true: Tensor, camera: Camera | Tensor, shift: Tensor) -> Tensor:
    distance = camera.source_to_detector if isinstance(camera, Camera) else camera
    relative = est[..., :3, :3] @ true[..., :3, :3].mT
    skew = relative - relative.mT
    axis = torch.stack([skew[..., 2, 1], skew[..., 0, 2], skew[..., 1, 0]], dim=-1)
    half = distance.to(est) / 2
    # sqrt(x^2 + e^2) is smooth where |x| is not; atan2 has a finite slope where arccos has not
    sine = (axis.square().sum(dim=-1) + (_TINY / half).square()).sqrt()
    angle = torch.atan2(sine, relative.diagonal(dim1=-2, dim2=-1).sum(dim=-1) - 1)
    return ((half * angle).square() + shift.square().sum(dim=-1) + _TINY**2).sqrt()


def pose_error(estimate: Pose, truth: Pose) -> Tensor:
    """xi [B, 6] = (rotation vector in rad, translation in mm) from estimate to truth, in the camera's axes.

    With T from the frame into the camera: R_true = exp(xi_rotation) R_estimate, and T_true(o) = T_estimate(o) +
    xi_translation, o the frame's origin. For small errors truth = estimate.retract(zeta), zeta being -R xi_rotation and
    -R xi_translation with R the rotation of the estimate.
    """
    est, true = promote(estimate.inverse().matrix, truth.inverse().matrix)
    rotation = log_so3(true[..., :3, :3] @ est[..., :3, :3].mT)
    return torch.cat([rotation, true[..., :3, 3] - est[..., :3, 3]], dim=-1)


def likelihood_loss(estimate: Pose, truth: Pose, log_deviation: Tensor, stop_mean: bool = True) -> Tensor:
    """Negative logarithm of the Gaussian density of the `pose_error`, but for a constant: [B], the mean of six numbers.

    xi_k^2 / (2 s_k^2) + log s_k: least where s_k is the root mean square of xi_k. Source: A. Kendall and Y. Gal, "What
    uncertainties do we need in Bayesian deep learning for computer vision?", NIPS 2017.
    """
    error = pose_error(estimate, truth)
    error, log_deviation = promote(error.detach() if stop_mean else error, log_deviation)
    return (0.5 * (error * (-log_deviation).exp()).square() + log_deviation).mean(dim=-1)


def soft_mask(integrals: Tensor, opaque: float = OPAQUE) -> Tensor:
    """1 - exp(-L / opaque) of the line integrals L of labels: from 0 outside to 1, with a gradient everywhere."""
    return -torch.expm1(-integrals / opaque)


def dice_loss(found: Tensor, true: Tensor, opaque: float = OPAQUE) -> Tensor:
    """1 - soft Dice of labels' line integrals [B, C, H, W], the mean of the labels in the true image: [B].

    Of soft masks p and t, Dice = 2 sum p t / (sum p^2 + sum t^2), which is 1 for p = t. (F. Milletari et al., "V-Net",
    3DV 2016.) 0 where no label is in the true image.
    """
    p, t = soft_mask(found, opaque), soft_mask(true.to(found), opaque)
    overlap, squares = (2 * p * t).mean(dim=(-2, -1)), (p.square() + t.square()).mean(dim=(-2, -1))
    visible = t.square().mean(dim=(-2, -1)) > _VISIBLE
    dice = overlap / torch.where(visible, squares, 1.0)
    lost = torch.where(visible, 1 - dice, 0.0).sum(dim=-1)
    return lost / visible.sum(dim=-1).clamp(min=1)
