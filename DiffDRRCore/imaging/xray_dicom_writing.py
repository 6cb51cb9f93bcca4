"""Writing X-rays as DICOM (X-Ray Angiographic, XA), in the tags that `xray_dicom` and `xray_dicom_geometry` read.

The camera goes into DistanceSourceToDetector, ImagerPixelSpacing and, for the principal point, FieldOfViewOrigin,
DetectorElementSpacing and PositionOfIsocenterProjection (float32); a pose into the positioner angles,
DistanceSourceToPatient and PatientOrientation. DICOM has no place for where the patient lies and for a roll other than
90, 180 or 270 degrees, and keeps decimals with at most 16 characters: write a JSON camera beside the file where the
geometry must be exact.

Pixels that are whole numbers from 0 to 65535 are stored as they are; others in 65536 even steps over their range, by
RescaleSlope and RescaleIntercept, and a DiffDRRWarning tells the step.
"""

from __future__ import annotations

import warnings
from datetime import datetime
from pathlib import Path

import numpy as np
import torch
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, XRayAngiographicImageStorage, generate_uid
from pydicom.valuerep import DSfloat

from DiffDRRCore.errors import DiffDRRWarning, XRayError
from DiffDRRCore.files import replacing
from DiffDRRCore.geometry.carm import CArm
from DiffDRRCore.geometry.pose import Pose
from DiffDRRCore.imaging.xray import XRay

_LARGEST = 65535
_LETTERS = (("R", "L"), ("A", "P"), ("H", "F"))
_LEAST_SKEW = 1e-6  # pixels
_LEAST = 0.2  # of a direction's component that PatientOrientation names


def write_xray_dicom(
    path: str | Path,
    xray: XRay,
    pose: Pose | None = None,
    isocenter=(0.0, 0.0, 0.0),
    patient: str = "",
    study: str | None = None,
) -> None:
    """Write one X-ray (see the module's text).

    Args:
        path: the file, by custom .dcm.
        pose: camera_to_world (RAS mm) for the header's angles, or None for a header without them.
        isocenter: [3] RAS mm; the distance to the patient is that of this point along the beam.
        patient: PatientName and PatientID.
        study: StudyInstanceUID; a new one by default.

    Raises XRayError for a camera with skew or parallel rays, DiffDRRError where the file cannot be written.
    """
    camera = xray.camera
    if camera.parallel or abs(float(camera.K[0, 1])) > _LEAST_SKEW:
        raise XRayError(
            f"Cannot write '{path}': DICOM has no place for parallel rays or skewed pixels; use PNG or NIfTI."
        )
    dataset = _described(patient, study)
    _add_pixels(dataset, xray, path)
    _add_camera(dataset, xray)
    if pose is not None:
        _add_pose(dataset, pose, isocenter, camera.view_from)
    with replacing(path) as temporary:
        dataset.save_as(temporary, enforce_file_format=True)


def _described(patient: str, study: str | None) -> Dataset:
    """Who, when, and what kind of object."""
    dataset, now = Dataset(), datetime.now()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = XRayAngiographicImageStorage, generate_uid()
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study or generate_uid(), generate_uid()
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.PatientName, dataset.PatientID = patient, patient[:64]
    dataset.StudyDate = dataset.ContentDate = now.strftime("%Y%m%d")
    dataset.StudyTime = dataset.ContentTime = now.strftime("%H%M%S")
    dataset.Modality, dataset.ImageType = "XA", ["DERIVED", "PRIMARY", "SINGLE PLANE"]
    dataset.SeriesNumber = dataset.InstanceNumber = 1
    for keyword in (
        "PatientBirthDate",
        "PatientSex",
        "AccessionNumber",
        "ReferringPhysicianName",
        "StudyID",
        "Manufacturer",
    ):
        setattr(dataset, keyword, "")
    return dataset


def _add_pixels(dataset: Dataset, xray: XRay, path: str | Path) -> None:
    values = xray.image.detach().cpu().double().numpy()
    stored = np.rint(values)
    if not np.array_equal(stored, values) or values.min() < 0 or values.max() > _LARGEST:
        stored = _scaled(dataset, values, path)
    dataset.Rows, dataset.Columns = values.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation = 15, 0
    dataset.PixelIntensityRelationship = "LOG" if xray.meta.get("logarithmic") else "LIN"
    if "intensity" in xray.meta:
        dataset.PixelIntensityRelationshipSign = 1 if xray.intensity == "transmission" else -1
    dataset.PixelData = stored.astype("<u2").tobytes()


def _scaled(dataset: Dataset, values: np.ndarray, path: str | Path) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    # A little more than the range, so that 16 characters for each number still hold all of it.
    slope = DSfloat((high - low) / _LARGEST * (1 + 1e-6) or 1.0, auto_format=True)
    intercept = DSfloat(low, auto_format=True)
    dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = slope, intercept, "US"
    step = float(str(slope))
    warnings.warn(
        f"'{path}' holds pixels in steps of {step:.3g}, because DICOM X-rays hold whole numbers; "
        "use another format for exact ones.",
        DiffDRRWarning,
        stacklevel=2,
    )
    return np.clip(np.rint((values - float(str(intercept))) / step), 0, _LARGEST)


def _add_camera(dataset: Dataset, xray: XRay) -> None:
    camera = xray.camera
    spacing = [DSfloat(value, auto_format=True) for value in camera.pixel_spacing.detach().tolist()]
    dataset.DistanceSourceToDetector = DSfloat(float(camera.source_to_detector), auto_format=True)
    dataset.ImagerPixelSpacing = dataset.DetectorElementSpacing = spacing
    u, v = camera.principal_point.detach().tolist()
    dataset.FieldOfViewOrigin, dataset.PositionOfIsocenterProjection = [0, 0], [v, u]


def _add_pose(dataset: Dataset, pose: Pose, isocenter, view_from: str) -> None:
    angles = CArm.angles_from(pose)
    dataset.PositionerPrimaryAngle = DSfloat(float(angles.primary), auto_format=True)
    dataset.PositionerSecondaryAngle = DSfloat(float(angles.secondary), auto_format=True)
    rotation, source = pose.rotation.detach().double().cpu(), pose.translation.detach().double().cpu()
    distance = float((torch.as_tensor(isocenter, dtype=torch.float64).cpu() - source) @ rotation[:, 2])
    if distance > 0:
        dataset.DistanceSourceToPatient = DSfloat(distance, auto_format=True)
    side = 1.0 if view_from == "source" else -1.0
    dataset.PatientOrientation = [_letters(side * rotation[:, 0]), _letters(rotation[:, 1])]


def _letters(direction: torch.Tensor) -> str:
    """An anatomical direction such as "LA", the largest component first (PS3.3 C.7.6.1.1.1)."""
    order = sorted(range(3), key=lambda axis: -abs(float(direction[axis])))
    return "".join(_LETTERS[axis][direction[axis] < 0] for axis in order if abs(float(direction[axis])) > _LEAST)
