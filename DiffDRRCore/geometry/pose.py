"""Rigid poses."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from DiffDRRCore.errors import GeometryError
from DiffDRRCore.geometry.rotations import rotation_matrix, rotation_parameters
from DiffDRRCore.geometry.se3 import exp_se3, log_se3
from DiffDRRCore.geometry.tensors import as_tensor, homogeneous, promote, transform_points

_TOLERANCE = 1e-3  # on the entries of R^T R - I: room for float32 and for matrices typed by hand
_ANGLES = ("axis_angle", "euler_angles")


class Pose:
    """A rigid transform, one or a batch; of a camera: `camera_to_world`, in mm of the patient's RAS.

    Args:
        matrix: [..., 4, 4], the rotation proper (determinant +1). It is kept as given, never re-orthonormalised.

    Raises:
        GeometryError: if the matrix is not rigid. A mirrored image is a property of `Camera` (`view_from`), not a pose.
    """

    def __init__(self, matrix):
        self.matrix: Tensor = as_tensor(matrix)
        _check_rigid(self.matrix.detach())

    @classmethod
    def _rigid(cls, matrix: Tensor) -> Pose:
        """Of a matrix that is rigid by construction: nothing to check, nothing to wait for on a GPU."""
        pose = cls.__new__(cls)
        pose.matrix = matrix
        return pose

    @classmethod
    def identity(cls, dtype: torch.dtype = torch.float64) -> Pose:
        """The pose [4, 4] that moves nothing."""
        return cls._rigid(torch.eye(4, dtype=dtype))

    @classmethod
    def from_parameters(
        cls, rotation, translation, parameterization: str, convention: str | None = None, degrees: bool = False
    ) -> Pose:
        """A pose from numbers.

        Args:
            rotation: [..., n] as `rotations` lists them; for "se3_log" the rotation vector [..., 3].
            translation: [..., 3] in mm: the last column of the matrix (for a camera: the source in world coordinates);
                for "se3_log" the translational part of the twist.
            parameterization: axis_angle, euler_angles, quaternion, quaternion_adjugate, rotation_6d, rotation_9d,
                rotation_10d, matrix or se3_log.
            convention: axis order of Euler angles ("ZXY", "zxy", ...), or "xyzw" / "wxyz" for quaternions.
            degrees: angles (axis_angle, euler_angles, se3_log) are in degrees.

        Raises GeometryError for an unknown name, numbers of the wrong shape, or numbers that make no rotation.
        """
        rotation, translation = promote(as_tensor(rotation), as_tensor(translation))
        if translation.shape[-1:] != (3,):
            raise GeometryError(f"A translation has three numbers, got shape {list(translation.shape)}.")
        if degrees and parameterization in (*_ANGLES, "se3_log"):
            rotation = rotation * (math.pi / 180)
        if parameterization == "se3_log":
            return cls.exp(torch.cat(torch.broadcast_tensors(rotation, translation), dim=-1))
        return cls(homogeneous(rotation_matrix(rotation, parameterization, convention), translation))

    def to_parameters(
        self, parameterization: str, convention: str | None = None, degrees: bool = False
    ) -> tuple[Tensor, Tensor]:
        """(rotation [..., n], translation [..., 3]): the inverse of `from_parameters`."""
        if parameterization == "se3_log":
            rotation, translation = self.log().split(3, dim=-1)
        else:
            rotation, translation = rotation_parameters(self.rotation, parameterization, convention), self.translation
        if degrees and parameterization in (*_ANGLES, "se3_log"):
            rotation = rotation * (180 / math.pi)
        return rotation, translation

    @property
    def rotation(self) -> Tensor:
        """[..., 3, 3]"""
        return self.matrix[..., :3, :3]

    @property
    def translation(self) -> Tensor:
        """[..., 3] in mm; of a camera pose: the X-ray source in world coordinates."""
        return self.matrix[..., :3, 3]

    def inverse(self) -> Pose:
        """The inverse transform (of a camera pose: `world_to_camera`)."""
        transposed = self.rotation.transpose(-1, -2)
        return Pose._rigid(homogeneous(transposed, -(transposed @ self.translation[..., None])[..., 0]))

    def compose(self, other: Pose) -> Pose:
        """self @ other: `other` is applied to a point first."""
        return Pose._rigid(torch.matmul(*promote(self.matrix, other.matrix)))

    __matmul__ = compose

    def transform(self, points) -> Tensor:
        """Points [..., N, 3] in mm moved by the pose."""
        return transform_points(*promote(self.matrix, as_tensor(points)))

    @classmethod
    def exp(cls, xi) -> Pose:
        """Exponential of a twist xi [..., 6] = (rotation vector in radians, translation part in mm).

        Raises GeometryError where xi has not six numbers.
        """
        return cls._rigid(exp_se3(_twist(xi)))

    def log(self) -> Tensor:
        """The twist xi [..., 6] with exp(xi) = self, rotation angle in [0, pi]."""
        return log_se3(self.matrix)

    def retract(self, xi, about=None) -> Pose:
        """The pose after a small rigid motion in the world: T(p) exp(xi) T(-p) @ self.

        Args:
            xi: [..., 6] = (rotation vector in radians, translation in mm), in world axes.
            about: pivot p [..., 3] in world mm; None is the world's origin. With the anatomy's centre as the pivot,
                rotations do not drag the anatomy out of the image.
        """
        motion = exp_se3(_twist(xi))
        if about is not None:
            motion, pivot = promote(motion, as_tensor(about))
            shift = pivot - (motion[..., :3, :3] @ pivot[..., None])[..., 0]
            motion = homogeneous(motion[..., :3, :3], motion[..., :3, 3] + shift)
        return Pose._rigid(torch.matmul(*promote(motion, self.matrix)))

    def to(self, *args, **kwargs) -> Pose:
        """As `torch.Tensor.to`."""
        return Pose._rigid(self.matrix.to(*args, **kwargs))

    def detach(self) -> Pose:
        """The same pose without its graph."""
        return Pose._rigid(self.matrix.detach())

    def __len__(self) -> int:
        if self.matrix.ndim == 2:
            raise TypeError("A single pose has no length.")
        return self.matrix.shape[0]

    def __getitem__(self, index) -> Pose:
        if self.matrix.ndim == 2:
            raise TypeError("A single pose cannot be indexed.")
        return Pose._rigid(self.matrix[index])

    def __iter__(self) -> Iterator[Pose]:
        return (self[index] for index in range(len(self)))

    def __repr__(self) -> str:
        return f"Pose({self.matrix.detach().cpu().tolist()})"


def stack_poses(poses) -> Pose:
    """One batch [N, 4, 4] of single poses."""
    return Pose._rigid(torch.stack(promote(*(pose.matrix for pose in poses))))


def _twist(xi) -> Tensor:
    xi = as_tensor(xi)
    if xi.shape[-1:] != (6,):
        raise GeometryError(f"A twist has six numbers (rotation vector, translation), got shape {list(xi.shape)}.")
    return xi


def _check_rigid(matrix: Tensor) -> None:
    if matrix.shape[-2:] != (4, 4):
        raise GeometryError(f"A pose is a 4 x 4 matrix (or a batch of them), got shape {list(matrix.shape)}.")
    if not bool(torch.isfinite(matrix).all()):
        raise GeometryError("The pose has entries that are not finite numbers.")
    last_row = torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=matrix.dtype, device=matrix.device)
    if bool(((matrix[..., 3, :] - last_row).abs() > _TOLERANCE).any()):
        raise GeometryError("The last row of a pose must be 0 0 0 1.")
    rotation = matrix[..., :3, :3]
    identity = torch.eye(3, dtype=matrix.dtype, device=matrix.device)
    if bool(((rotation.transpose(-1, -2) @ rotation - identity).abs() > _TOLERANCE).any()):
        raise GeometryError("The pose is not rigid: its 3 x 3 part scales or shears.")
    if bool((torch.linalg.det(rotation) < 0).any()):
        raise GeometryError(
            "The pose holds a reflection (determinant -1); a mirrored display is the camera's: view_from='detector'."
        )
