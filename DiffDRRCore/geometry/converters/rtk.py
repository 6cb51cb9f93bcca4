"""RTK (Reconstruction Toolkit): one projection of `rtk::ThreeDCircularProjectionGeometry` with a flat detector.

RTK's world ("fixed system") is the physical space of the ITK volume that it reconstructs or projects. At gantry angle
zero the source is at (0, 0, SID), the beam runs towards -z, the detector's u axis along +x and v along +y; the gantry
turns about y. The matrix (documentation of rtk::ThreeDCircularProjectionGeometry)

    P = T(source_offset - projection_offset) M(sdd, sid) T(-source_offset) Rz(-in_plane) Rx(-out_of_plane) Ry(-gantry)

gives detector coordinates in mm. They are ITK physical coordinates of the projection image, whose origin is the centre
of its first pixel and whose directions are the identity.

How the fixed system lies in the patient is for the user to say:

- by default its axes are LPS, as ITK and Slicer take the coordinates of a volume file;
- for a volume in the IEC 61217 frame of a head-first supine patient (x to the left, y to the head, z to the front),
  pass `fixed_to_ras=IEC_SUPINE_HEAD_FIRST_TO_RAS`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from DiffDRRCore.errors import GeometryError
from DiffDRRCore.geometry.camera import Camera
from DiffDRRCore.geometry.converters._common import require_single_without_skew
from DiffDRRCore.geometry.euler import euler_to_matrix, matrix_to_euler
from DiffDRRCore.geometry.pose import Pose
from DiffDRRCore.geometry.tensors import as_tensor, homogeneous

LPS_AXES_TO_RAS = ((-1.0, 0.0, 0.0, 0.0), (0.0, -1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))
IEC_SUPINE_HEAD_FIRST_TO_RAS = (
    (-1.0, 0.0, 0.0, 0.0),
    (0.0, 0.0, 1.0, 0.0),
    (0.0, 1.0, 0.0, 0.0),
    (0.0, 0.0, 0.0, 1.0),
)


@dataclass(frozen=True)
class RTKProjection:
    """The arguments of `ThreeDCircularProjectionGeometry.AddProjection`: mm and degrees; offsets are (x, y)."""

    source_to_isocenter: float
    source_to_detector: float
    gantry_angle: float = 0.0
    projection_offset: tuple[float, float] = (0.0, 0.0)
    out_of_plane_angle: float = 0.0
    in_plane_angle: float = 0.0
    source_offset: tuple[float, float] = (0.0, 0.0)


def from_rtk(
    projection: RTKProjection,
    height: int,
    width: int,
    pixel_spacing,
    origin=None,
    fixed_to_ras=LPS_AXES_TO_RAS,
) -> tuple[Camera, Pose]:
    """Camera and pose (float64) of one RTK projection.

    Args:
        height, width, pixel_spacing: projection image in pixels, (row_mm, col_mm).
        origin: (x, y) in mm, ITK origin of the projection image; None is an image centred on (0, 0).
        fixed_to_ras: [4, 4], rigid, RTK's fixed system to RAS (see the module's text).

    Raises:
        GeometryError: a distance or spacing is not positive, or fixed_to_ras is not rigid.
    """
    spacing = as_tensor(pixel_spacing, torch.float64)
    first_pixel = _centered_origin(height, width, spacing) if origin is None else as_tensor(origin, torch.float64)
    source_offset = torch.tensor(projection.source_offset, dtype=torch.float64)
    principal_point = (
        source_offset - torch.tensor(projection.projection_offset, dtype=torch.float64) - first_pixel
    ) / spacing.flip(-1)
    camera = Camera(
        height,
        width,
        pixel_spacing,
        float(projection.source_to_detector),
        principal_point,
        view_from="detector",
    )
    gantry_to_fixed = _fixed_to_gantry(projection).T
    source = torch.tensor([*projection.source_offset, projection.source_to_isocenter], dtype=torch.float64)
    camera_to_fixed = Pose(homogeneous(gantry_to_fixed @ _camera_to_gantry(), gantry_to_fixed @ source))
    return camera, Pose(as_tensor(fixed_to_ras, torch.float64)) @ camera_to_fixed


def to_rtk(camera: Camera, pose: Pose, fixed_to_ras=LPS_AXES_TO_RAS) -> RTKProjection:
    """RTK's numbers for one pose and a projection image centred on (0, 0): the inverse of `from_rtk`.

    RTK's u axis runs left as seen from the source, so the image must be one seen from the detector: mirror it, and use
    `camera.flipped()`, if it is not. Raises GeometryError for that, for a parallel beam, skew or a batch.
    """
    require_single_without_skew(camera, "RTK")
    if pose.matrix.ndim != 2:
        raise GeometryError("to_rtk takes one pose; convert the poses of a batch one by one.")
    if camera.view_from != "detector":
        raise GeometryError("RTK's images are seen from the detector: mirror the image and pass camera.flipped().")
    K = camera.K.detach()
    in_fixed = Pose(as_tensor(fixed_to_ras, torch.float64)).inverse() @ pose.detach()
    fixed_to_gantry = _camera_to_gantry() @ in_fixed.rotation.T
    in_plane, out_of_plane, gantry = torch.rad2deg(-matrix_to_euler(fixed_to_gantry, "ZXY")).tolist()
    source = fixed_to_gantry @ in_fixed.translation
    spacing = camera.pixel_spacing.detach()
    principal_mm = _centered_origin(camera.height, camera.width, spacing) + K[:2, 2] * spacing.flip(-1)
    return RTKProjection(
        source_to_isocenter=float(source[2]),
        source_to_detector=float(camera.source_to_detector),
        gantry_angle=gantry,
        projection_offset=tuple((source[:2] - principal_mm).tolist()),
        out_of_plane_angle=out_of_plane,
        in_plane_angle=in_plane,
        source_offset=tuple(source[:2].tolist()),
    )


def _camera_to_gantry() -> Tensor:
    """Camera axes x, y, z along -x, +y, -z of RTK's rotated frame, where the detector is a plane of constant z."""
    return torch.diag(torch.tensor([-1.0, 1.0, -1.0], dtype=torch.float64))


def _fixed_to_gantry(projection: RTKProjection) -> Tensor:
    angles = (projection.in_plane_angle, projection.out_of_plane_angle, projection.gantry_angle)
    return euler_to_matrix(torch.tensor([-math.radians(angle) for angle in angles], dtype=torch.float64), "ZXY")


def _centered_origin(height: int, width: int, spacing: Tensor) -> Tensor:
    """(x, y) in mm of the first pixel's centre, of an image centred on (0, 0); spacing is (row_mm, col_mm)."""
    if spacing.shape != (2,):
        raise GeometryError(f"pixel_spacing is a pair (row_mm, col_mm), got shape {list(spacing.shape)}.")
    return -torch.tensor([(width - 1) / 2, (height - 1) / 2], dtype=torch.float64) * spacing.flip(-1)
