"""Writing X-rays as DICOM: XA (X-Ray Angiographic; single images and runs) and DX (Digital X-Ray, for processing).

The tags are those that `xray_dicom` and `xray_dicom_geometry` read. The camera goes into DistanceSourceToDetector,
ImagerPixelSpacing and, for the principal point, FieldOfViewOrigin, DetectorElementSpacing and
PositionOfIsocenterProjection (float32); a pose into the positioner angles, DistanceSourceToPatient and
PatientOrientation; the poses of a run into the increments of the angles.

What DICOM has no place for, so that it belongs in a JSON camera beside the file: where the patient lies (the reader
puts the isocentre at the RAS origin), a roll other than 90, 180 or 270 degrees, skewed pixels, parallel rays, and
decimals of more than 16 characters. A run has one camera and one distance to the isocentre for all its frames.

Pixels that are whole numbers from 0 to 65535 are stored as they are; in an XA image others in 65536 even steps over
their range, by RescaleSlope and RescaleIntercept, and a DiffDRRWarning tells the step.

A simulated X-ray (meta["simulated"] or meta["simulation"]) is marked as such: ImageType DERIVED\\SECONDARY and
SyntheticData YES.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from pydicom.dataset import Dataset

from DiffDRRCore.errors import DiffDRRWarning, XRayError
from DiffDRRCore.files import replacing
from DiffDRRCore.geometry.camera import Camera
from DiffDRRCore.geometry.carm import CArm
from DiffDRRCore.geometry.pose import Pose
from DiffDRRCore.imaging.xray import XRay
from DiffDRRCore.imaging.xray_dicom_modules import (
    Technique,
    add_pixels,
    add_run,
    add_technique,
    decimal,
    decimals,
    described,
)

__all__ = ["Technique", "write_xray_dicom", "write_xray_run"]

_LETTERS = (("R", "L"), ("A", "P"), ("H", "F"))
_LEAST_SKEW = 1e-6  # pixels
_LEAST = 0.2  # of a direction's component that PatientOrientation names
_SAME_MM, _SAME_PIXELS, _SAME_DEGREES = 1e-3, 1e-6, 1e-3
_LOCKED_DEGREES = 1e-5  # from a secondary angle of 90, where primary angle and roll cannot be told apart


def write_xray_dicom(
    path: str | Path,
    xray: XRay,
    pose: Pose | None = None,
    isocenter=(0.0, 0.0, 0.0),
    patient: str = "",
    study: str | None = None,
    technique: Technique | None = None,
    modality: str = "XA",
    series: str | None = None,
) -> None:
    """Write one X-ray (see the module's text).

    Args:
        path: the file, by custom .dcm.
        pose: camera_to_world (RAS mm) for the header's angles, or None for a header without them.
        isocenter: [3] RAS mm; the distance to the patient is that of this point along the beam.
        patient: PatientName and PatientID.
        study, series: StudyInstanceUID and SeriesInstanceUID; new ones by default.
        technique: kVp, filters, grid and the like, as far as known.
        modality: "XA" or "DX".

    Raises XRayError for a camera with skew or parallel rays, an unknown modality, a DX image without a pose or with
    pixels that are not whole numbers; DiffDRRError where the file cannot be written.
    """
    camera = xray.camera
    dataset = _begun(path, [xray], patient, study, series, technique, modality)
    if pose is not None:
        _add_angles(dataset, pose)
        distance = _distance(pose, isocenter)
        if distance > 0:
            dataset.DistanceSourceToPatient = decimal(distance)
            dataset.EstimatedRadiographicMagnificationFactor = decimal(float(camera.source_to_detector) / distance)
        dataset.PatientOrientation = _orientation(pose, camera)
    elif modality == "DX":
        raise XRayError("A DX image must say how the patient lies in it: give a pose, or write an XA image.")
    _save(dataset, path)


def write_xray_run(
    path: str | Path,
    xrays: Sequence[XRay],
    isocenter=(0.0, 0.0, 0.0),
    patient: str = "",
    study: str | None = None,
    technique: Technique | None = None,
    frame_time: float = 1000 / 15,
    series: str | None = None,
) -> None:
    """Write X-rays of one camera as the frames of an XA run; their own poses give the angles of each frame.

    Args:
        frame_time: ms from one frame to the next.
        others: as of `write_xray_dicom`.

    Raises XRayError where there are no X-rays, or they have different cameras, distances to the isocentre or rolls,
    poses for some only, or as `write_xray_dicom` does.
    """
    if not xrays:
        raise XRayError("A run needs at least one X-ray.")
    if not frame_time > 0:
        raise XRayError(f"The time from frame to frame must be above 0 ms, got {frame_time}.")
    camera, poses = xrays[0].camera, [xray.pose for xray in xrays]
    if not all(_same_camera(camera, xray.camera) for xray in xrays):
        raise XRayError("A DICOM run has one camera for all frames: write X-rays of different cameras one by one.")
    dataset = _begun(path, xrays, patient, study, series, technique, "XA")
    add_run(dataset, len(xrays), frame_time)
    if None not in poses:
        _add_motion(dataset, poses, isocenter, camera)
    elif any(pose is not None for pose in poses):
        raise XRayError("Some frames of the run have a pose and others do not: give it to all or to none.")
    else:
        dataset.PositionerMotion = "STATIC"
    _save(dataset, path)


def _begun(path, xrays, patient, study, series, technique, modality) -> Dataset:
    """Everything but poses."""
    camera, meta = xrays[0].camera, xrays[0].meta
    if camera.parallel or abs(float(camera.K[0, 1])) > _LEAST_SKEW:
        raise XRayError(
            f"Cannot write '{path}': DICOM has no place for parallel rays or skewed pixels; use PNG or NIfTI."
        )
    dataset = described(modality, meta, patient, study, series)
    step = add_pixels(dataset, np.stack([xray.image.detach().cpu().double().numpy() for xray in xrays]), meta)
    if step is not None:
        warnings.warn(
            f"'{path}' holds pixels in steps of {step:.3g}, because DICOM X-rays hold whole numbers; "
            "use another format for exact ones.",
            DiffDRRWarning,
            stacklevel=3,
        )
    add_technique(dataset, technique or Technique())
    _add_camera(dataset, camera)
    return dataset


def _save(dataset: Dataset, path: str | Path) -> None:
    with replacing(path) as temporary:
        dataset.save_as(temporary, enforce_file_format=True)


def _add_camera(dataset: Dataset, camera: Camera) -> None:
    spacing = decimals(camera.pixel_spacing.detach().tolist())
    dataset.DistanceSourceToDetector = decimal(float(camera.source_to_detector))
    dataset.ImagerPixelSpacing = dataset.DetectorElementSpacing = spacing
    u, v = camera.principal_point.detach().tolist()
    dataset.FieldOfViewOrigin, dataset.PositionOfIsocenterProjection = [0, 0], [v, u]
    dataset.FieldOfViewRotation, dataset.FieldOfViewHorizontalFlip = "0", "NO"
    if dataset.Modality == "XA":
        dataset.PositionerPrimaryAngle = dataset.PositionerSecondaryAngle = ""


def _add_angles(dataset: Dataset, pose: Pose) -> None:
    angles = CArm.angles_from(pose)
    dataset.PositionerPrimaryAngle = decimal(float(angles.primary))
    dataset.PositionerSecondaryAngle = decimal(float(angles.secondary))
    if dataset.Modality == "DX":
        dataset.PositionerType = "CARM"


def _add_motion(dataset: Dataset, poses: Sequence[Pose], isocenter, camera: Camera) -> None:
    """Angles of the first frame, and for each its offset from that (PS3.3 C.8.7.5.1.3)."""
    angles = torch.stack([torch.stack(CArm.angles_from(pose)).detach().double().cpu() for pose in poses])
    angles = torch.from_numpy(_continuous(angles.numpy()))
    distances = [_distance(pose, isocenter) for pose in poses]
    if max(distances) - min(distances) > _SAME_MM or float((angles[:, 2] - angles[0, 2]).abs().max()) > _SAME_DEGREES:
        raise XRayError(
            "The frames of a DICOM run differ in the positioner angles only: with another distance to the isocentre "
            "or another roll, write the X-rays one by one."
        )
    _add_angles(dataset, poses[0])
    if distances[0] > 0:
        dataset.DistanceSourceToPatient = decimal(distances[0])
    dataset.PatientOrientation = _orientation(poses[0], camera)
    offsets = angles - angles[0]
    moves = bool((offsets[:, :2].abs() > _SAME_DEGREES).any())
    dataset.PositionerMotion = "DYNAMIC" if moves else "STATIC"
    if moves:
        dataset.PositionerPrimaryAngleIncrement = decimals(offsets[:, 0].tolist())
        dataset.PositionerSecondaryAngleIncrement = decimals(offsets[:, 1].tolist())


def _continuous(angles: np.ndarray) -> np.ndarray:
    """Angles [F, 3] in degrees, without jumps by a whole turn, or where the secondary one passes 90 degrees.

    A pose has two sets of angles, (p, s, r) and (p + 180, 180 - s, r + 180); the one nearer to the frame before counts.
    At s = +-90 only p +- r is known: the roll is that of the frame before.
    """
    result = [angles[0]]
    for primary, secondary, roll in angles[1:]:
        before, side = result[-1], math.copysign(1.0, secondary)
        if 90 - abs(secondary) < _LOCKED_DEGREES:
            primary, roll = primary + side * (roll - before[2]), before[2]
        both = np.array([[primary, secondary, roll], [primary + 180, 180 - secondary, roll + 180]])
        steps = (both - before + 180) % 360 - 180
        result.append(before + min(steps, key=lambda step: np.abs(step).sum()))
    return np.stack(result)


def _same_camera(one: Camera, other: Camera) -> bool:
    sizes = (one.height, one.width) == (other.height, other.width)
    K = (one.K.detach() - other.K.detach()).abs().max() < _SAME_PIXELS
    return sizes and bool(K) and abs(float(one.source_to_detector) - float(other.source_to_detector)) < _SAME_MM


def _distance(pose: Pose, isocenter) -> float:
    """Of the isocentre from the source along the beam, in mm."""
    rotation, source = pose.rotation.detach().double().cpu(), pose.translation.detach().double().cpu()
    return float((torch.as_tensor(isocenter, dtype=torch.float64).cpu() - source) @ rotation[:, 2])


def _orientation(pose: Pose, camera: Camera) -> list[str]:
    rotation = pose.rotation.detach().double().cpu()
    side = 1.0 if camera.view_from == "source" else -1.0
    return [_letters(side * rotation[:, 0]), _letters(rotation[:, 1])]


def _letters(direction: torch.Tensor) -> str:
    """An anatomical direction such as "LA", the largest component first (PS3.3 C.7.6.1.1.1)."""
    order = sorted(range(3), key=lambda axis: -abs(float(direction[axis])))
    return "".join(_LETTERS[axis][direction[axis] < 0] for axis in order if abs(float(direction[axis])) > _LEAST)
