"""How bodies are expected to move: by a constant twist, changed by accelerations that nobody can foretell.

A body's motion M [4, 4] takes the CT to where the X-rays see it. It is handled as C = M T(p), the pose of axes that sit
at the body's pivot p. Its twist [6] = (rotation vector in rad, translation in mm) a frame is along the body's own axes:
C(k + 1) = C(k) exp(twist), a screw motion, which a turning hinge makes as well as a straight flight. Accelerations are
white noise (T. D. Barfoot, State Estimation for Robotics, 2017, section 11.1: "white-noise-on-acceleration" prior), so
that over n frames the pose becomes uncertain by n^3 / 3 and the twist by n times their variance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from DiffDRRCore.geometry.se3 import exp_se3, hat, log_se3
from DiffDRRCore.geometry.tensors import homogeneous

ACCELERATION = (1.0, 2.0)  # degrees and mm a frame^2, standard deviation along each axis
_SPEED = (10.0, 20.0)  # degrees and mm a frame: of a body that has just come into sight
_FLOOR = (0.02, 0.05)  # degrees and mm: less is not believed of a covariance, which knows of the images' noise alone


def six(degrees_and_mm: Sequence[float]) -> Tensor:
    """[6] variances of (rad, mm) from the standard deviation of each axis in degrees, and in mm."""
    turn, shift = math.radians(degrees_and_mm[0]), degrees_and_mm[1]
    return torch.tensor([turn**2] * 3 + [shift**2] * 3, dtype=torch.float64)


def centred(motions: Tensor, about: Tensor) -> Tensor:
    """C [..., 4, 4] of motions [..., 4, 4] about pivots [..., 3]."""
    at = (motions[..., :3, :3] @ about[..., None])[..., 0] + motions[..., :3, 3]
    return homogeneous(motions[..., :3, :3], at)


def uncentred(poses: Tensor, about: Tensor) -> Tensor:
    """The inverse of `centred`."""
    return centred(poses, -about)


def inverse(poses: Tensor) -> Tensor:
    """Of rigid matrices [..., 4, 4]."""
    turned = poses[..., :3, :3].mT
    return homogeneous(turned, -(turned @ poses[..., :3, 3:])[..., 0])


def difference(first: Tensor, second: Tensor) -> Tensor:
    """[..., 6] the twist that leads from one pose to another: second = first exp(twist)."""
    return log_se3(inverse(first) @ second)


def between(first: Tensor, second: Tensor, share: float | Tensor) -> Tensor:
    """[..., 4, 4] on the screw motion from one pose (share 0) to another (share 1)."""
    return first @ exp_se3(share * difference(first, second))


def adjoint(poses: Tensor) -> Tensor:
    """[..., 6, 6]: P exp(xi) = exp(adjoint(P) xi) P (Barfoot 2017, section 7.1.4)."""
    rotation, zero = poses[..., :3, :3], torch.zeros_like(poses[..., :3, :3])
    top = torch.cat([rotation, zero], dim=-1)
    return torch.cat([top, torch.cat([hat(poses[..., :3, 3]) @ rotation, rotation], dim=-1)], dim=-2)


def noise(acceleration: Tensor, frames: float) -> Tensor:
    """[12, 12] covariance of (pose, twist) that so many frames add, by variances [6] of the acceleration."""
    grown = torch.tensor([[frames**3 / 3, frames**2 / 2], [frames**2 / 2, frames]], dtype=torch.float64)
    return torch.kron(grown, torch.diag(acceleration))


@dataclass(frozen=True)
class Expectation:
    """What is known of B bodies at a frame: a Kalman filter on the poses.

    Attributes:
        pose: [B, 4, 4] centred.  twist: [B, 6] a frame, in the direction in which frames are gone through.
        covariance: [B, 12, 12] of both.
    """

    pose: Tensor
    twist: Tensor
    covariance: Tensor

    @classmethod
    def first(cls, pose: Tensor, covariance: Tensor, twist: Tensor | None = None) -> Expectation:
        """Where only one frame is known, [B, 4, 4] with [B, 6, 6], and maybe a guess of the twist."""
        whole = torch.diag(six(_SPEED).repeat(2)).repeat(len(pose), 1, 1)
        whole[:, :6, :6] = believed(covariance)
        return cls(pose, torch.zeros(len(pose), 6, dtype=torch.float64) if twist is None else twist, whole)

    def later(self, frames: float, acceleration: Tensor) -> Expectation:
        """So many frames on."""
        step = frames * self.twist
        change = torch.eye(12, dtype=torch.float64).repeat(len(step), 1, 1)
        change[:, :6, :6] = adjoint(exp_se3(-step))
        change[:, :6, 6:] = frames * torch.eye(6, dtype=torch.float64)
        covariance = change @ self.covariance @ change.mT + noise(acceleration, frames)
        return Expectation(self.pose @ exp_se3(step), self.twist, covariance)

    def seen(self, pose: Tensor, covariance: Tensor) -> Expectation:
        """After a registration at this frame found `pose` [B, 4, 4] with `covariance` [B, 6, 6]."""
        gain = torch.linalg.solve(self._spread(covariance), self.covariance[:, :6]).mT
        change = (gain @ difference(self.pose, pose)[..., None])[..., 0]
        left = self.covariance - gain @ self.covariance[:, :6]
        return Expectation(self.pose @ exp_se3(change[:, :6]), self.twist + change[:, 6:], (left + left.mT) / 2)

    def surprise(self, pose: Tensor, covariance: Tensor) -> Tensor:
        """[B] how far from here a pose lies, in standard deviations of the two (Mahalanobis distance)."""
        change = difference(self.pose, pose)[..., None]
        square = change.mT @ torch.linalg.solve(self._spread(covariance), change)
        return square.clamp(min=0).sqrt()[:, 0, 0]

    def _spread(self, covariance: Tensor) -> Tensor:
        return self.covariance[:, :6, :6] + believed(covariance)


def believed(covariance: Tensor) -> Tensor:
    """A registration's covariance [..., 6, 6], but no less than what no image can promise."""
    return covariance + torch.diag(six(_FLOOR))
