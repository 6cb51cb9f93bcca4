"""One rigid motion in six numbers that a person can read, and what is known about it beforehand.

A registration looks for one rigid motion G of the C-arms in the world, the same for all views: the pose of a view is
G @ (its start pose). Its coordinates q = (rotation vector, translation) are taken about the anatomy's centre and along
the axes of the first view's camera at the start: q[0:2] tilt, q[2] turns in the image plane, q[3:5] shift in the image
plane (right and down), q[5] is depth (source towards detector).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from DiffDRRCore.geometry import Pose, as_tensor
from DiffDRRCore.geometry.se3 import exp_so3, hat, log_so3
from DiffDRRCore.geometry.tensors import homogeneous
from DiffDRRCore.registration.problem.told import check_six, check_weight


@dataclass(frozen=True)
class MotionFrame:
    """Pivot [..., 3] (world mm) and axes [..., 3, 3] (columns, world) in which a motion is written as q [..., 6].

    With leading dimensions it is a frame for each of several motions.
    """

    pivot: Tensor
    axes: Tensor

    def coordinates(self, motion: Pose) -> Tensor:
        """q [..., 6] of a motion: radians, then mm."""
        return self._along(log_so3(motion.rotation), self._shift(motion))

    def coordinates_and_slope(self, motion: Pose) -> tuple[Tensor, Tensor]:
        """q [..., 6], and its derivatives [..., 6, 6] by the xi of `moved`.

        d log(exp(w) R) / dw is the inverse of the left Jacobian of SO(3) at log R (Barfoot, State Estimation for
        Robotics, 2017, equation 7.80).
        """
        turn, shift = log_so3(motion.rotation), self._shift(motion)
        slope = torch.zeros(*turn.shape[:-1], 6, 6, dtype=turn.dtype)
        slope[..., :3, :3] = self.axes.mT @ _inverse_left_jacobian(turn)
        slope[..., 3:, :3] = -self.axes.mT @ hat(shift)
        slope[..., 3:, 3:] = self.axes.mT
        return self._along(turn, shift), slope

    def moved(self, motion: Pose, xi: Tensor) -> Pose:
        """The motion, then a turn about the pivot by the rotation vector xi[:3], then a shift by xi[3:], world axes.

        To first order `motion.retract(xi, about=self.pivot)`.
        """
        turn = exp_so3(xi[..., :3])
        arm = (motion.translation - self.pivot)[..., None]
        return Pose._rigid(homogeneous(turn @ motion.rotation, (turn @ arm)[..., 0] + self.pivot + xi[..., 3:]))

    def displacement(self, before: Pose, after: Pose, reach: Tensor | float) -> Tensor:
        """Upper bound [...] in mm on how far a point `reach` mm from the pivot moves between two motions."""
        change = after.matrix - before.matrix
        shift = _times(change[..., :3, :3], self.pivot) + change[..., :3, 3]
        # |R - S| = 2 sqrt(2) sin(angle / 2) in the Frobenius norm
        sine = change[..., :3, :3].flatten(-2).norm(dim=-1) / 8**0.5
        return shift.norm(dim=-1) + 2 * torch.asin(sine.clamp(max=1)) * reach

    def motion(self, q: Tensor) -> Pose:
        """The inverse of `coordinates`."""
        rotation = exp_so3(_times(self.axes, q[..., :3]))
        moved = self.pivot + _times(self.axes, q[..., 3:]) - _times(rotation, self.pivot)
        return Pose._rigid(homogeneous(rotation, moved))

    def _shift(self, motion: Pose) -> Tensor:
        """[..., 3] where the pivot goes."""
        return _times(motion.rotation, self.pivot) + motion.translation - self.pivot

    def _along(self, turn: Tensor, shift: Tensor) -> Tensor:
        return torch.cat([_times(self.axes.mT, turn), _times(self.axes.mT, shift)], dim=-1)


def carried_slope(motion: Pose, pivot: Tensor, about: Tensor) -> Tensor:
    """[..., 6, 6] from xi before a motion to xi after it: M exp(xi about `about`) = exp(S xi about `pivot`) M.

    The adjoint of SE(3) (Barfoot 2017, section 7.1.4) with both turns about points [..., 3] of the world (mm).
    """
    rotation = motion.rotation
    arm = pivot - (_times(rotation, about) + motion.translation)
    slope = torch.zeros(*arm.shape[:-1], 6, 6, dtype=rotation.dtype)
    slope[..., :3, :3] = slope[..., 3:, 3:] = rotation
    slope[..., 3:, :3] = -hat(arm) @ rotation
    return slope


def target_covariance(covariance: Tensor, about: Tensor, points: Tensor) -> Tensor:
    """[N, 3, 3] in mm^2 of points [N, 3], by a covariance [6, 6] of xi = (rad, mm) about the point `about` [3].

    A point X moves by w x (X - about) + v under xi = (w, v). (J. M. Fitzpatrick and J. B. West, "The distribution of
    target registration error in rigid-body point-based registration", IEEE TMI 20(9), 2001.)
    """
    arms = points.double() - about.double()
    slope = torch.cat([-hat(arms), torch.eye(3, dtype=torch.float64).expand(len(arms), 3, 3)], dim=-1)
    return slope @ covariance.double() @ slope.mT


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector[..., None])[..., 0]


@dataclass(frozen=True)
class Limits:
    """What may happen to the start pose, in q's terms: (tilt x, tilt y, turn) in degrees, (right, down, depth) in mm.

    Attributes:
        bounds: six largest changes, None for no bound: `Limits(bounds=(None,) * 5 + (20,))` is "no more than 20 mm in
            depth".
        deviations: six standard deviations of a Gaussian prior around the start, None for no prior.
        weight: of the prior against the image: the similarity that one squared deviation costs, 0 or more.
    """

    bounds: tuple[float | None, ...] | None = None
    deviations: tuple[float | None, ...] | None = None
    weight: float = 1e-3

    def __post_init__(self):
        check_six("bounds", self.bounds)
        check_six("deviations", self.deviations)
        check_weight("the prior", self.weight)

    def clamp(self, q: Tensor) -> Tensor:
        """q within the bounds."""
        largest = self.largest.to(q)
        return torch.minimum(torch.maximum(q, -largest), largest)

    @property
    def largest(self) -> Tensor:
        """[6] bounds in radians and mm, infinite where there is none."""
        return in_radians(self.bounds, math.inf)

    @property
    def stiffness(self) -> Tensor:
        """[6] d residual / dq."""
        return math.sqrt(2 * self.weight) / in_radians(self.deviations, math.inf)


COORDINATES = ("tilt about image x", "tilt about image y", "turn in the image", "right", "down", "depth")


def in_radians(values: tuple[float | None, ...] | None, missing: float) -> Tensor:
    """[6] of three degrees and three mm; `missing` for None."""
    numbers = as_tensor([missing if value is None else float(value) for value in values or (None,) * 6])
    return torch.cat([numbers[:3] * (math.pi / 180), numbers[3:]])


def _inverse_left_jacobian(turn: Tensor) -> Tensor:
    """[..., 3, 3] of a rotation vector [..., 3]."""
    square = turn.square().sum(-1)
    half = torch.where(square > 1e-4, square, 1.0).sqrt() / 2
    closed = (1 - half / torch.tan(half)) / (4 * half.square())
    factor = torch.where(square > 1e-4, closed, 1 / 12 + square / 720)[..., None, None]
    w = hat(turn)
    return torch.eye(3, dtype=turn.dtype) - 0.5 * w + factor * (w @ w)
