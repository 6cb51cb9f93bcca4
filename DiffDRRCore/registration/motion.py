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

from DiffDRRCore.errors import RegistrationError
from DiffDRRCore.geometry import Pose, as_tensor
from DiffDRRCore.geometry.se3 import exp_so3, log_so3
from DiffDRRCore.geometry.tensors import homogeneous


@dataclass(frozen=True)
class MotionFrame:
    """Pivot [3] (world mm) and axes [3, 3] (columns, world) in which a motion is written as q [6]."""

    pivot: Tensor
    axes: Tensor

    def coordinates(self, motion: Pose) -> Tensor:
        """q [..., 6] of a motion: radians, then mm."""
        turn = log_so3(motion.rotation)
        shift = motion.transform(self.pivot[None])[..., 0, :] - self.pivot
        return torch.cat([turn @ self.axes, shift @ self.axes], dim=-1)

    def motion(self, q: Tensor) -> Pose:
        """The inverse of `coordinates`."""
        rotation = exp_so3(q[..., :3] @ self.axes.T)
        shift = q[..., 3:] @ self.axes.T
        moved = self.pivot + shift - (rotation @ self.pivot[..., None])[..., 0]
        return Pose._rigid(homogeneous(rotation, moved))


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
        for name in ("bounds", "deviations"):
            values = getattr(self, name)
            if values is None:
                continue
            if len(values) != 6 or any(value is not None and not value > 0 for value in values):
                raise RegistrationError(
                    f"{name} are six positive numbers or None (3 angles in degrees; right, down, depth in mm), "
                    f"got {values}."
                )
        if not self.weight >= 0:
            raise RegistrationError(f"The weight of the prior must be 0 or more, got {self.weight}.")

    def clamp(self, q: Tensor) -> Tensor:
        """q within the bounds."""
        largest = _in_radians(self.bounds, math.inf).to(q)
        return torch.minimum(torch.maximum(q, -largest), largest)

    def at_bound(self, q: Tensor) -> list[str]:
        """The names of the coordinates that lie on their bound."""
        return [name for name, hit in zip(COORDINATES, self._reached(q).tolist(), strict=True) if hit]

    def held(self, q: Tensor, direction: Tensor) -> Tensor:
        """[6] bool: the coordinates that lie on their bound, and that `direction` would take beyond it."""
        return self._reached(q) & (q * direction > 0)

    def _reached(self, q: Tensor) -> Tensor:
        return q.abs() >= _in_radians(self.bounds, math.inf).to(q) * (1 - 1e-6)

    def residual(self, q: Tensor) -> Tensor:
        """Six numbers, half of whose squared sum is the prior's cost."""
        return math.sqrt(2 * self.weight) * q / _in_radians(self.deviations, math.inf).to(q)


COORDINATES = ("tilt about image x", "tilt about image y", "turn in the image", "right", "down", "depth")


def _in_radians(values: tuple[float | None, ...] | None, missing: float) -> Tensor:
    numbers = as_tensor([missing if value is None else float(value) for value in values or (None,) * 6])
    return torch.cat([numbers[:3] * (math.pi / 180), numbers[3:]])
