"""Coordinates that the poses in a file of motion start from: the CT's RAS or LPS, or Autoscoper's volume.

Autoscoper knows a volume as a stack of TIFF images with a voxel size (VoxelSize of the trial) and nothing else. Its
origin is the outer corner of the first slice's last row: voxel (i, j, k) of a stack of I x J x K voxels has its centre
at (sx (i + 1/2), sy (J - 1/2 - j), -sz (k + 1/2)) mm. VolumeFlip mirrors the voxels within that box. (Sampling in
RayCaster.cl with VolumeDescription's scale and offset.) Its world is the calibration's: the X of `K (R X + t)` in a
MayaCam 2.0 file (Camera::loadMayaCam2).
"""

from __future__ import annotations

import enum
from collections.abc import Sequence

import torch
from torch import Tensor

from DiffDRRCore.errors import GeometryError
from DiffDRRCore.geometry.converters.lps import lps_to_ras
from DiffDRRCore.geometry.pose import Pose
from DiffDRRCore.geometry.tensors import as_tensor


class CTFrame(enum.Enum):
    """Coordinates of a body's CT that a pose starts from, in mm."""

    RAS = "ras"
    LPS = "lps"
    AUTOSCOPER = "autoscoper"


def ras_to_ct_frame(
    frame: CTFrame, ijk_to_ras=None, shape: Sequence[int] | None = None, flip: Sequence[bool] = (False, False, False)
) -> Tensor:
    """[4, 4] rigid, from RAS of a CT to other coordinates of it; a pose P that starts from those is P @ this from RAS.

    Args:
        ijk_to_ras, shape, flip: as for `ras_to_volume`; needed for AUTOSCOPER only.

    Raises GeometryError as `ras_to_volume`.
    """
    if frame is CTFrame.AUTOSCOPER:
        if ijk_to_ras is None or shape is None:
            raise GeometryError("Autoscoper's coordinates need the grid of the CT that was its volume.")
        return ras_to_volume(ijk_to_ras, shape, flip)
    identity = torch.eye(4, dtype=torch.float64)
    return lps_to_ras(identity) if frame is CTFrame.LPS else identity


def ras_to_volume(ijk_to_ras, shape: Sequence[int], flip: Sequence[bool] = (False, False, False)) -> Tensor:
    """[4, 4] rigid, from RAS of a CT to Autoscoper's coordinates of it as a volume.

    Args:
        ijk_to_ras: [4, 4] of the CT whose voxels, in their order, are the TIFF stack's.
        shape: [K, J, I] of its voxels.
        flip: the trial's VolumeFlip, x y z.

    Raises GeometryError where the grid is sheared, or left-handed with an even number of flips: Autoscoper then shows
    the patient mirrored, and no rigid pose lays that on an X-ray.
    """
    affine = as_tensor(ijk_to_ras, torch.float64).detach().cpu()
    if affine.shape != (4, 4) or len(shape) != 3 or len(flip) != 3:
        raise GeometryError("A CT's grid is ijk_to_ras [4, 4] and a shape [K, J, I]; VolumeFlip has three values.")
    spacing = affine[:3, :3].norm(dim=0)
    to_volume = _volume_axes(spacing, shape) @ _flipped(shape, flip) @ torch.linalg.inv(affine)
    if float(torch.linalg.det(to_volume[:3, :3])) < 0:
        raise GeometryError(
            "Autoscoper shows this CT mirrored, because its voxels are in left-handed order: say how the trial flips "
            "it (VolumeFlip), or use the CT that the TIFF stack was made of."
        )
    return Pose(to_volume).matrix


def _volume_axes(spacing: Tensor, shape: Sequence[int]) -> Tensor:
    matrix = torch.diag(torch.cat([spacing * torch.tensor([1.0, -1.0, -1.0]), torch.ones(1)]))
    matrix[:3, 3] = spacing * torch.tensor([0.5, shape[1] - 0.5, -0.5], dtype=torch.float64)
    return matrix


def _flipped(shape: Sequence[int], flip: Sequence[bool]) -> Tensor:
    """Voxel to voxel: i becomes I - 1 - i on a flipped axis."""
    matrix = torch.eye(4, dtype=torch.float64)
    for axis, flipped in enumerate(flip):
        if flipped:
            matrix[axis, axis], matrix[axis, 3] = -1.0, shape[2 - axis] - 1
    return matrix
