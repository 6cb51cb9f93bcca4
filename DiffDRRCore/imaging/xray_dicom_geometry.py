"""The camera and the C-arm pose in the header of a DICOM X-ray.

Pixel size at the detector, in this order:

1. ImagerPixelSpacing (0018,1164): measured at the detector's front plane (PS3.3 C.8.7.3, C.8.11.4), used as it is.
2. PixelSpacing (0028,0030), by definition "in the patient" (PS3.3 10.7.1.1), times the magnification, where
   PixelSpacingCalibrationType (0028,0A02) is GEOMETRY or FIDUCIAL (PS3.3 10.7.1.2), or where the header gives
   EstimatedRadiographicMagnificationFactor (0018,1114), which is SID / SOD. Without the latter, the magnification is
   DistanceSourceToDetector / DistanceSourceToPatient.
3. PixelSpacing with neither: PS3.3 10.7.1.1 says that it cannot be determined whether it was corrected. It is taken as
   measured at the detector, and a DiffDRRWarning says so.

Principal point: the centre of the image, unless FieldOfViewOrigin and DetectorElementSpacing say where the image lies
on the detector (PS3.3 C.8.11.4.1.1). Then it is PositionOfIsocenterProjection (0018,9430), or else the middle of the
physical detector (PhysicalDetectorSize) or of its active area (DetectorActiveOrigin and DetectorActiveDimensions),
carried into the image through FieldOfViewRotation (clockwise) and then FieldOfViewHorizontalFlip.

Pose: `CArm` of the positioner angles and distances, isocentre at the RAS origin. In a run the increments count
(PS3.3 C.8.7.5.1.3: one value is the change per frame, several are offsets from the first frame). PatientOrientation
(0020,0020) decides from which side the image is seen and its roll in steps of 90 degrees; without it the image is taken
as displayed by radiologists, view_from = "detector".
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch

from DiffDRRCore.errors import DiffDRRWarning, MissingGeometryError, ReadError
from DiffDRRCore.geometry.camera import Camera
from DiffDRRCore.geometry.carm import CArm
from DiffDRRCore.geometry.pose import Pose
from DiffDRRCore.imaging.camera_file import CameraFile, check_units
from DiffDRRCore.imaging.xray_dicom_header import Header

_logger = logging.getLogger(__name__)

_TO_RAS = {
    "R": (1.0, 0.0, 0.0),
    "L": (-1.0, 0.0, 0.0),
    "A": (0.0, 1.0, 0.0),
    "P": (0.0, -1.0, 0.0),
    "H": (0.0, 0.0, 1.0),
    "F": (0.0, 0.0, -1.0),
}
_SIDES = {"source": 1.0, "detector": -1.0}
_STILL_DEGREES = 0.01


def header_geometry(
    header: Header, size: tuple[int, int], indices: Sequence[int], given: CameraFile | None
) -> tuple[Camera, Pose | None, dict[str, Any]]:
    """(camera, pose or None, meta) of the frames `indices` of an image of `size` (height, width).

    `given` replaces the header's camera, and its pose the header's pose. Raises MissingGeometryError for a camera that
    the header does not hold; a pose that it does not hold is None, and meta["pose_missing"] names what lacks; where
    that is the distance to the isocentre alone, meta["pose_angles"] has the primary and secondary angle (None in a
    moving run).
    """
    first = header.at(indices[0])
    meta = _reported(first)
    given_pose = given.pose if given else None
    arms = [] if given_pose is not None else _arms(header, indices, given, meta)
    # PatientOrientation of a run is that of its first frame.
    view_from, roll = _orientation(first, _arms(header, [0], given, {}) if arms else [], given, meta)
    camera = given.camera if given else _camera(first, size, view_from, meta)
    if given:
        meta.update(given.meta, camera_source="given", **({"intensity": given.intensity} if given.intensity else {}))
    return camera, _pose(arms, roll, meta) if given_pose is None else given_pose, meta


def _camera(header: Header, size: tuple[int, int], view_from: str, meta: dict[str, Any]) -> Camera:
    distance = header.positive("DistanceSourceToDetector")
    spacing = _spacing_at_detector(header, meta)
    missing = [] if distance else ["DistanceSourceToDetector (mm)"]
    missing += [] if spacing else ["ImagerPixelSpacing (mm)"]
    if missing:
        raise MissingGeometryError(
            f"'{header.path}': the DICOM header lacks {' and '.join(missing)}; give camera=Camera(height, width, "
            "pixel_spacing, source_to_detector) or the path of a JSON camera.",
            missing,
        )
    if distance < 0 or min(spacing) <= 0:
        raise ReadError(f"'{header.path}': the source-to-detector distance and the pixel spacing must be positive.")
    point = _principal_point(header, size, spacing)
    meta.update(camera_source="DICOM header", principal_point_source="detector" if point else "image centre")
    camera = Camera(*size, spacing, distance, point, view_from)
    check_units(camera, f"'{header.path}'")
    return camera


def _spacing_at_detector(header: Header, meta: dict[str, Any]) -> tuple[float, float] | None:
    """(row_mm, col_mm), by the rule of the module's text."""
    imager = header.pair("ImagerPixelSpacing")
    if imager:
        meta["pixel_spacing_source"] = "ImagerPixelSpacing"
        return imager
    spacing = header.pair("PixelSpacing")
    if not spacing:
        return None
    magnification = header.positive("EstimatedRadiographicMagnificationFactor")
    calibrated = header.text("PixelSpacingCalibrationType") in ("GEOMETRY", "FIDUCIAL")
    if not magnification and not calibrated:
        meta["pixel_spacing_source"] = "PixelSpacing, taken as measured at the detector"
        warnings.warn(
            f"'{header.path}' has PixelSpacing without ImagerPixelSpacing, calibration type or magnification: it is "
            "taken as measured at the detector; give camera= if it is not.",
            DiffDRRWarning,
            stacklevel=2,
        )
        return spacing
    magnification = magnification or _magnification(header)
    if not magnification:
        return None
    meta.update(pixel_spacing_source="PixelSpacing x magnification", magnification=magnification)
    return spacing[0] * magnification, spacing[1] * magnification


def _magnification(header: Header) -> float | None:
    detector = header.positive("DistanceSourceToDetector")
    patient = _source_to_isocenter(header)
    return detector / patient if detector and patient else None


def _source_to_isocenter(header: Header) -> float | None:
    return header.positive("DistanceSourceToPatient") or header.positive("DistanceSourceToIsocenter")


def _principal_point(header: Header, size: tuple[int, int], spacing: tuple[float, float]) -> tuple[float, float] | None:
    """(u0, v0), or None where the header does not say where the image lies on the detector."""
    origin, pitch = header.numbers("FieldOfViewOrigin"), header.pair("DetectorElementSpacing")
    if not origin or len(origin) != 2 or not pitch or min(pitch) <= 0:
        return None
    center = _detector_center(header, pitch)
    if center is None:
        return None
    turns = round((header.number("FieldOfViewRotation") or 0) / 90) % 4
    extent = [size[axis] * spacing[axis] for axis in (0, 1)][:: -1 if turns % 2 else 1]
    y, x = (center[axis] - (origin[axis] * pitch[axis] + extent[axis] / 2) for axis in (0, 1))
    for _ in range(turns):
        x, y = -y, x
    if header.text("FieldOfViewHorizontalFlip") == "YES":
        x = -x
    return (size[1] - 1) / 2 + x / spacing[1], (size[0] - 1) / 2 + y / spacing[0]


def _detector_center(header: Header, pitch: tuple[float, float]) -> tuple[float, float] | None:
    """(down, right) in mm from the detector's top left corner to where the central ray lands."""
    isocenter = header.numbers("PositionOfIsocenterProjection")
    if isocenter and len(isocenter) == 2:
        return (isocenter[0] + 0.5) * pitch[0], (isocenter[1] + 0.5) * pitch[1]
    physical = header.pair("PhysicalDetectorSize")
    if physical:
        return physical[0] / 2, physical[1] / 2
    origin, active = header.numbers("DetectorActiveOrigin"), header.numbers("DetectorActiveDimensions")
    if origin and active and len(origin) == len(active) == 2:
        return origin[0] * pitch[0] + active[0] / 2, origin[1] * pitch[1] + active[1] / 2
    return None


def _arms(header: Header, indices: Sequence[int], given: CameraFile | None, meta: dict[str, Any]) -> list[CArm]:
    """The C-arm of each frame, or none where the header lacks a value (named in meta["pose_missing"])."""
    try:
        return [CArm.from_dicom(_arm_values(header.at(index), index, given)) for index in _ends(indices)]
    except MissingGeometryError as error:
        meta["pose_missing"] = list(error.missing)
        if error.missing == ("DistanceSourceToPatient",):
            meta["pose_angles"] = _still_angles(
                [_arm_values(header.at(index), index, given) for index in _ends(indices)]
            )
        return []


def _still_angles(values: list[dict[str, float | None]]) -> list[float] | None:
    """[primary, secondary] of all frames, degrees; None where the C-arm moves."""
    angles = torch.tensor([[one["PositionerPrimaryAngle"], one["PositionerSecondaryAngle"]] for one in values])
    return None if float((angles - angles[0]).abs().max()) > _STILL_DEGREES else angles[0].tolist()


def _ends(indices: Sequence[int]) -> Sequence[int]:
    """All frames of a run, or three of a very long one: they only tell whether the C-arm moves."""
    return indices if len(indices) <= 1000 else [indices[0], indices[len(indices) // 2], indices[-1]]


def _arm_values(header: Header, index: int, given: CameraFile | None) -> dict[str, float | None]:
    """What `CArm.from_dicom` asks for, as it applies to one frame."""
    distance = float(given.camera.source_to_detector) if given else header.positive("DistanceSourceToDetector")
    values = {"DistanceSourceToDetector": distance, "DistanceSourceToPatient": _source_to_isocenter(header)}
    for name in ("PositionerPrimaryAngle", "PositionerSecondaryAngle"):
        angle = header.number(name)
        values[name] = None if angle is None else angle + _increment(header, f"{name}Increment", index)
    return values


def _increment(header: Header, keyword: str, index: int) -> float:
    increments = header.numbers(keyword)
    if not increments:
        return 0.0
    if len(increments) == 1:
        return index * increments[0]
    if index >= len(increments):
        raise ReadError(f"'{header.path}': {keyword} has {len(increments)} values, too few for frame {index}.")
    return increments[index]


def _pose(arms: list[CArm], roll: float, meta: dict[str, Any]) -> Pose | None:
    if not arms:
        return None
    angles = torch.stack([torch.stack([arm.primary, arm.secondary]) for arm in arms])
    if float((angles - angles[0]).abs().max()) > _STILL_DEGREES:
        meta["pose_missing"] = ["one frame (the C-arm moves during this run)"]
        return None
    arm = arms[0]
    meta.update(
        positioner_primary_angle=float(arm.primary),
        positioner_secondary_angle=float(arm.secondary),
        pose_source="DICOM positioner angles, isocentre assumed at the RAS origin",
    )
    return CArm(arm.source_to_detector, arm.source_to_isocenter, arm.isocenter, arm.primary, arm.secondary, roll).pose


def _orientation(header: Header, arms: list[CArm], given: CameraFile | None, meta: dict[str, Any]) -> tuple[str, float]:
    """(view_from, roll in degrees) by PatientOrientation: the directions of the image's columns and rows."""
    sides = [given.camera.view_from] if given else ["detector", "source"]
    directions = [_direction(word) for word in header.words("PatientOrientation")]
    assumed = (sides[0], 0.0)
    if not arms or len(directions) != 2 or None in directions:
        meta["view_from_source"] = "given camera" if given else "assumed (radiological display)"
        return assumed
    rotation = arms[0].pose.rotation.T
    right, down = (rotation @ torch.tensor(direction, dtype=rotation.dtype) for direction in directions)
    scores = {(side, roll): _agreement(right, down, side, roll) for side in sides for roll in (0.0, 90.0, 180.0, -90.0)}
    best = max(scores, key=scores.get)
    others = [score for key, score in scores.items() if key != best]
    if scores[best] < 1.2 or scores[best] - max(others) < 0.3:
        meta["view_from_source"] = "given camera" if given else "assumed (PatientOrientation does not fit the angles)"
        return assumed
    meta.update(view_from_source="PatientOrientation", roll=best[1])
    return best


def _agreement(right: torch.Tensor, down: torch.Tensor, side: str, roll: float) -> float:
    """How well image axes of a rolled camera lie along two directions given in the unrolled camera: at most 2."""
    cosine, sine = math.cos(math.radians(roll)), math.sin(math.radians(roll))
    along_columns = cosine * right[0] + sine * right[1]
    along_rows = -sine * down[0] + cosine * down[1]
    return float(_SIDES[side] * along_columns + along_rows)


def _direction(letters: str) -> tuple[float, ...] | None:
    """A unit vector (RAS) for an anatomical direction such as "L" or "LAH", the first letter counting most."""
    if not letters or any(letter not in _TO_RAS for letter in letters):
        return None
    total = [0.0, 0.0, 0.0]
    for order, letter in enumerate(letters):
        total = [sum_ + part / 2**order for sum_, part in zip(total, _TO_RAS[letter], strict=True)]
    length = math.hypot(*total)
    return tuple(part / length for part in total) if length else None


def _reported(header: Header) -> dict[str, Any]:
    """What the header says of field of view, collimator and beam, for the user to see."""
    edges = ("UpperHorizontalEdge", "LowerHorizontalEdge", "LeftVerticalEdge", "RightVerticalEdge")
    collimator = {edge: _if_sound(header.number, f"Collimator{edge}") for edge in edges}
    meta = {
        "patient_orientation": header.words("PatientOrientation") or None,
        "field_of_view_rotation": _if_sound(header.number, "FieldOfViewRotation"),
        "field_of_view_horizontal_flip": header.text("FieldOfViewHorizontalFlip"),
        "field_of_view_origin": _if_sound(header.numbers, "FieldOfViewOrigin"),
        "detector_active_origin": _if_sound(header.numbers, "DetectorActiveOrigin"),
        "collimator_edges": None if None in collimator.values() else collimator,
        "kvp": _if_sound(header.number, "KVP"),
    }
    return {key: value for key, value in meta.items() if value is not None}


def _if_sound(look_up: Callable[[str], Any], keyword: str) -> Any:
    """A value that is only reported: a malformed one must not keep the image from being read."""
    try:
        return look_up(keyword)
    except ReadError as error:
        _logger.warning("%s It is left out.", error)
        return None
