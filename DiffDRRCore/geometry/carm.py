"""C-arms, by the positioner angles of DICOM.

DICOM PS3.3 C.8.7.5: the positioner primary angle is positive towards LAO, the secondary angle towards CRA, and with
both at zero the beam runs from posterior to anterior through a supine patient. So the primary angle turns the beam
about the patient's long axis and the secondary angle lifts it towards the head:

    camera_to_world rotation = Rz(primary) Rx(secondary) R0 Rz_camera(roll),

with R0's columns (camera x, y, z) = (+R, inferior, +A). The roll turns the detector about the beam.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from DiffDRRCore.errors import GeometryError, MissingGeometryError
from DiffDRRCore.geometry.camera import Camera
from DiffDRRCore.geometry.euler import euler_to_matrix, matrix_to_euler
from DiffDRRCore.geometry.pose import Pose
from DiffDRRCore.geometry.tensors import as_components, as_tensor, homogeneous, promote

_BEAM_TO_ANTERIOR = ((1.0, 0.0, 0.0), (0.0, 0.0, 1.0), (0.0, -1.0, 0.0))


class CArmAngles(NamedTuple):
    """Positioner angles in degrees: primary (+ LAO), secondary (+ CRA), roll about the beam."""

    primary: Tensor
    secondary: Tensor
    roll: Tensor


class CArm:
    """A C-arm that looks at an isocentre.

    Args:
        source_to_detector, source_to_isocenter: SID and SOD in mm.
        isocenter: [..., 3] world point in mm that the central ray passes.
        primary, secondary: DICOM positioner angles in degrees, + LAO and + CRA.
        roll: degrees about the beam, right-handed about the direction of the X-rays.
        detector_offset: (x, y) in mm by which the detector's centre lies off the central ray, along the camera's axes.

    All may be tensors with gradients and a leading batch. Raises GeometryError where a distance is not positive or a
    number not finite.
    """

    def __init__(
        self,
        source_to_detector,
        source_to_isocenter,
        isocenter=(0.0, 0.0, 0.0),
        primary=0.0,
        secondary=0.0,
        roll=0.0,
        detector_offset=(0.0, 0.0),
    ):
        self.source_to_detector = as_tensor(source_to_detector)
        self.source_to_isocenter = as_tensor(source_to_isocenter)
        self.isocenter = as_tensor(isocenter)
        self.primary, self.secondary, self.roll = as_tensor(primary), as_tensor(secondary), as_tensor(roll)
        self.detector_offset = as_components(detector_offset)
        self._check()

    def _check(self) -> None:
        for name, count in (("isocenter", 3), ("detector_offset", 2)):
            if getattr(self, name).shape[-1:] != (count,):
                raise GeometryError(f"{name} has {count} numbers (mm), got shape {list(getattr(self, name).shape)}.")
        for name in ("isocenter", "detector_offset", "primary", "secondary", "roll"):
            if not bool(torch.isfinite(getattr(self, name).detach()).all()):
                raise GeometryError(f"{name} must be finite, got {getattr(self, name).tolist()}.")
        for name in ("source_to_detector", "source_to_isocenter"):
            value = getattr(self, name).detach()
            if not bool((torch.isfinite(value) & (value > 0)).all()):
                raise GeometryError(f"{name} must be positive (mm), got {value.tolist()}.")

    @property
    def pose(self) -> Pose:
        """camera_to_world [..., 4, 4]."""
        angles, isocenter, distance = promote(
            as_components([self.primary, self.secondary, self.roll]), self.isocenter, self.source_to_isocenter
        )
        turn = euler_to_matrix(angles * (math.pi / 180), "ZXY")
        rotation = turn @ torch.tensor(_BEAM_TO_ANTERIOR, dtype=turn.dtype, device=turn.device)
        return Pose._rigid(homogeneous(rotation, isocenter - distance[..., None] * rotation[..., 2]))

    def camera(self, height: int, width: int, pixel_spacing, view_from: str = "source") -> Camera:
        """The camera of this C-arm with a detector of height x width pixels of (row_mm, col_mm)."""
        centred = Camera(height, width, pixel_spacing, self.source_to_detector, None, view_from)
        offset, spacing, middle = promote(self.detector_offset, centred.pixel_spacing, centred.principal_point)
        side = torch.sign(centred.K[..., 0, 0]).to(offset)
        along_image = torch.stack([side * offset[..., 0] / spacing[..., 1], offset[..., 1] / spacing[..., 0]], dim=-1)
        return Camera(height, width, pixel_spacing, self.source_to_detector, middle - along_image, view_from)

    @staticmethod
    def angles_from(pose: Pose) -> CArmAngles:
        """Positioner angles in degrees [...] of a camera pose, secondary in [-90, 90].

        With the beam along the patient's axis (secondary = +-90) primary and roll cannot be told apart: roll is 0 then.
        """
        start = torch.tensor(_BEAM_TO_ANTERIOR, dtype=pose.matrix.dtype, device=pose.matrix.device)
        angles = matrix_to_euler(pose.rotation @ start.T, "ZXY") * (180 / math.pi)
        return CArmAngles(*angles.unbind(-1))

    @classmethod
    def from_dicom(cls, dataset, isocenter=(0.0, 0.0, 0.0)) -> CArm:
        """The C-arm of an X-ray's DICOM header (a `pydicom.Dataset`).

        Read are DistanceSourceToDetector, DistanceSourceToPatient (which DICOM defines to the isocentre, PS3.3 C.8.7.5)
        and PositionerPrimaryAngle / PositionerSecondaryAngle. No tag tells where the patient lies with respect to the
        isocentre: it is placed at `isocenter` (RAS mm). Raises MissingGeometryError that names what the header lacks.
        """
        names = (
            "DistanceSourceToDetector",
            "DistanceSourceToPatient",
            "PositionerPrimaryAngle",
            "PositionerSecondaryAngle",
        )
        values = {name: dataset.get(name) for name in names}
        missing = [name for name, value in values.items() if value is None or value == ""]
        if missing:
            raise MissingGeometryError(
                f"The DICOM header lacks {', '.join(missing)}; make a CArm of numbers you know instead.", missing
            )
        detector, patient, primary, secondary = (float(values[name]) for name in names)
        return cls(detector, patient, isocenter, primary, secondary)
