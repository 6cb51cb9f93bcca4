"""What the network is asked for: numbers that an image shows by itself, whatever camera took it.

A pose is `camera_to_frame`, the frame being that of the model (mm, origin at the anatomy's centre). With c the frame's
origin in the camera, d = c / |c|, and A(d) the least rotation that takes the camera's z axis to d, an image shows

* the allocentric rotation A(d)^T R_frame_to_camera: how the anatomy looks from where it is seen. It stays the same
  where the anatomy moves about the image and the egocentric rotation, R_frame_to_camera, does not. (S. Mahendran et
  al., "3D pose regression using convolutional neural networks", 2017; A. Kundu et al., "3D-RCNN", CVPR 2018.)
* where c lies in the image, from its centre, in widths and heights of the image;
* the scale there, sqrt(|fx fy|) / c_z in pixels per mm, as its logarithm.

An image that is mirrored (K[0, 0] < 0) has the target of the image before it was mirrored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import roma
import torch
from torch import Tensor

from DiffDRRCore.errors import DiffDRRError, LearningError
from DiffDRRCore.geometry.camera import Camera
from DiffDRRCore.geometry.pose import Pose
from DiffDRRCore.geometry.rotations import PARAMETERIZATIONS, lookup
from DiffDRRCore.geometry.se3 import hat
from DiffDRRCore.geometry.tensors import as_tensor, homogeneous, promote
from DiffDRRCore.values import Key, number, optional, section, several, text

DEFAULT_PARAMETERIZATION = "quaternion_adjugate"
LEAST_SPREAD = 0.01  # of widths, heights and log scale: where the training ranges do not vary them, so far is noise
# The network's numbers are free, so a matrix is projected onto the rotations; translations are not coupled to them.
_FREE = {"matrix": "rotation_9d", "se3_log": "axis_angle"}


def rotation_size(parameterization: str) -> int:
    """How many numbers a rotation has. Raises GeometryError for an unknown name."""
    return lookup(_FREE.get(parameterization, parameterization)).shape[0]


def rotation_to_numbers(rotation: Tensor, parameterization: str, convention: str | None = None) -> Tensor:
    """[..., n] of rotations [..., 3, 3]: as `Pose.to_parameters`, for any of its parameterizations.

    "matrix" is as "rotation_9d" and "se3_log" as "axis_angle", as translations are separate here.
    """
    return lookup(_FREE.get(parameterization, parameterization)).from_matrix(rotation, convention)


def numbers_to_rotation(numbers: Tensor, parameterization: str, convention: str | None = None) -> Tensor:
    """The inverse of `rotation_to_numbers`; takes whatever numbers a network gives."""
    return lookup(_FREE.get(parameterization, parameterization)).to_matrix(numbers, convention)


@dataclass(frozen=True)
class Target:
    """From poses to the network's numbers, and back.

    Attributes:
        reference_rotation: [3][3], the allocentric rotation in the middle of the training ranges; rotations are told
            relative to it: R = relative @ reference_rotation.
        center, spread: of the offsets (u in widths, v in heights, log of pixels per mm): told is (value - center) /
            spread.
        parameterization, convention: of the relative rotation, as for `Pose.from_parameters`.
    """

    reference_rotation: Sequence[Sequence[float]]
    center: Sequence[float]
    spread: Sequence[float]
    parameterization: str = DEFAULT_PARAMETERIZATION
    convention: str | None = None

    def __post_init__(self):
        rotation = torch.eye(4, dtype=torch.float64)
        rotation[:3, :3] = as_tensor(self.reference_rotation)
        Pose(rotation)
        spread = as_tensor(self.spread)
        if len(self.center) != 3 or len(self.spread) != 3 or not bool((spread > 0).all() & spread.isfinite().all()):
            raise LearningError("The target of a network needs three centres and three spreads, positive ones.")
        check_parameterization(self.parameterization, self.convention)

    @classmethod
    def from_views(
        cls,
        camera: Camera,
        pose: Pose,
        parameterization: str = DEFAULT_PARAMETERIZATION,
        convention: str | None = None,
    ) -> Target:
        """The target of views [B] drawn from the training ranges (some hundred): their mean and standard deviation.

        The reference rotation is the chordal mean. Raises LearningError where a frame's origin is not before a source.
        """
        rotation, raw = as_seen(camera, Pose(pose.matrix.detach().reshape(-1, 4, 4)))
        if not bool(raw.isfinite().all()):
            raise LearningError("In some of the training views the anatomy's centre is behind the X-ray source.")
        mean = roma.special_procrustes(rotation.double().mean(dim=0))
        deviation = raw.double().std(dim=0, correction=0).clamp(min=LEAST_SPREAD)
        center = raw.double().mean(dim=0)
        return cls(mean.tolist(), center.tolist(), deviation.tolist(), parameterization, convention)

    def spread_of(self, camera: Camera, pose: Pose) -> list[float]:
        """[4] for `losses.seen_loss`: the views' root mean square about the target's middle, at least LEAST_SPREAD."""
        rotation, raw = as_seen(camera, pose)
        turned = (rotation - self._constant(self.reference_rotation, rotation)).square().sum(dim=(-2, -1)) / 2
        moved = (raw - self._constant(self.center, raw)).square()
        mean = torch.cat([turned[:, None], moved], dim=-1).double().mean(dim=0)
        return mean.sqrt().clamp(min=LEAST_SPREAD).tolist()

    def encode(self, camera: Camera, pose: Pose) -> tuple[Tensor, Tensor]:
        """(rotation numbers [B, n], offsets [B, 3]) of poses `camera_to_frame` [B, 4, 4]; offsets are of order one.

        Offsets are NaN where the frame's origin is level with the source or behind it. Raises LearningError for a
        parallel beam, whose image does not show the distance.
        """
        rotation, raw = as_seen(camera, pose)
        relative = rotation @ self._constant(self.reference_rotation, rotation).mT
        offsets = (raw - self._constant(self.center, raw)) / self._constant(self.spread, raw)
        return rotation_to_numbers(relative, self.parameterization, self.convention), offsets

    def decode(self, camera: Camera, rotation: Tensor, offsets: Tensor) -> Pose:
        """The poses `camera_to_frame` [B, 4, 4] of rotation numbers [B, n] and offsets [B, 3]: inverse of `encode`.

        Computed in the common dtype with the camera's, float64 as a rule, and with a gradient.
        """
        rotation, offsets, K = promote(rotation, offsets, camera.K)
        relative = numbers_to_rotation(rotation, self.parameterization, self.convention)
        allocentric = relative @ self._constant(self.reference_rotation, relative)
        raw = self._constant(self.center, offsets) + self._constant(self.spread, offsets) * offsets
        origin = _origin(_unmirrored(K, camera.width), camera.height, camera.width, raw)
        rotation = least_rotation(_unit(origin)) @ allocentric
        return Pose._rigid(homogeneous(rotation.mT, -(rotation.mT @ origin[..., None])[..., 0]))

    @staticmethod
    def _constant(value, like: Tensor) -> Tensor:
        return torch.tensor(value, dtype=like.dtype, device=like.device)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; exact."""
        return {
            "reference_rotation": [[float(value) for value in row] for row in self.reference_rotation],
            "center": [float(value) for value in self.center],
            "spread": [float(value) for value in self.spread],
            "parameterization": self.parameterization,
            "convention": self.convention,
        }

    @classmethod
    def from_dict(cls, content: Any, where: str = "target") -> Target:
        """The inverse of `to_dict`. Raises DiffDRRError that names the place for what does not fit."""
        return cls(**section(where, content, _KEYS))


_THREE = several(number(), count=3)
_KEYS = {
    "reference_rotation": Key(several(_THREE, count=3)),
    "center": Key(_THREE),
    "spread": Key(several(number(above=0), count=3)),
    "parameterization": Key(text, DEFAULT_PARAMETERIZATION),
    "convention": Key(optional(text), None),
}


def check_parameterization(parameterization: str, convention: str | None) -> None:
    """Raise LearningError where a network cannot tell rotations in this way."""
    if parameterization not in (*PARAMETERIZATIONS, "se3_log"):
        names = ", ".join([*PARAMETERIZATIONS, "se3_log"])
        raise LearningError(f"Unknown parameterization {parameterization!r} of rotations; choose from {names}.")
    try:
        rotation_to_numbers(torch.eye(3, dtype=torch.float64), parameterization, convention)
    except DiffDRRError as error:
        raise LearningError(f"Rotations as {parameterization}: {error}") from error


def as_seen(camera: Camera, pose: Pose) -> tuple[Tensor, Tensor]:
    """The allocentric rotation [..., 3, 3], and (u, v, log scale) [..., 3], of poses `camera_to_frame`.

    u is in widths and v in heights of the image from its centre; the scale is in pixels per mm. Raises LearningError
    for a parallel beam.
    """
    if camera.parallel:
        raise LearningError("A network needs a camera with a point source; this one has a parallel beam.")
    frame_to_camera, K = promote(pose.inverse().matrix, camera.K)
    K = _unmirrored(K, camera.width)
    rotation, origin = frame_to_camera[..., :3, :3], frame_to_camera[..., :3, 3]
    x, y, z = origin.unbind(-1)
    z = torch.where(z > 0, z, torch.nan)
    pixel = (K @ torch.stack([x / z, y / z, torch.ones_like(z)], dim=-1)[..., None])[..., 0]
    u = (pixel[..., 0] - (camera.width - 1) / 2) / camera.width
    v = (pixel[..., 1] - (camera.height - 1) / 2) / camera.height
    raw = torch.stack(torch.broadcast_tensors(u, v, _log_focal(K) - z.log()), dim=-1)
    return least_rotation(_unit(origin)).mT @ rotation, raw


def least_rotation(direction: Tensor) -> Tensor:
    """A(d) [..., 3, 3]: the rotation by the least angle with A z = d, for unit vectors d [..., 3] with d_z > -1.

    With v = z x d: A = I + hat(v) + hat(v)^2 / (1 + d_z), by Rodrigues; smooth at d = z.
    """
    x, y, z = direction.unbind(-1)
    cross = hat(torch.stack([-y, x, torch.zeros_like(x)], dim=-1))
    identity = torch.eye(3, dtype=direction.dtype, device=direction.device)
    return identity + cross + cross @ cross / (1 + z)[..., None, None]


def _origin(K: Tensor, height: int, width: int, raw: Tensor) -> Tensor:
    """c [..., 3] in mm, of (u, v, log scale)."""
    u, v, log_scale = raw.unbind(-1)
    u = u * width + (width - 1) / 2
    v = v * height + (height - 1) / 2
    y = (v - K[..., 1, 2]) / K[..., 1, 1]
    x = (u - K[..., 0, 2] - K[..., 0, 1] * y) / K[..., 0, 0]
    depth = (_log_focal(K) - log_scale).exp()
    return depth[..., None] * torch.stack(torch.broadcast_tensors(x, y, torch.ones_like(x)), dim=-1)


def _log_focal(K: Tensor) -> Tensor:
    return (K[..., 0, 0] * K[..., 1, 1]).abs().log() / 2


def _unmirrored(K: Tensor, width: int) -> Tensor:
    """K of the image as seen from the source: u becomes width - 1 - u where K[0, 0] < 0."""
    mirror = torch.tensor([[-1.0, 0.0, width - 1.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], dtype=K.dtype, device=K.device)
    return torch.where(K[..., :1, :1] < 0, mirror @ K, K)


def _unit(vector: Tensor) -> Tensor:
    return vector / torch.linalg.vector_norm(vector, dim=-1, keepdim=True)
