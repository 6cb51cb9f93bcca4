"""X-rays from files, their geometry completed by assumptions where a header does not hold all of it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import SimpleITK

from DiffDRRCore import Camera, CArm, Pose, XRay
from DiffDRRCore.errors import MissingGeometryError
from DiffDRRCore.imaging.camera_file import LIMITS_MM, CameraFile
from DiffDRRCore.imaging.image_files import quiet_itk, reading
from DiffDRRCore.imaging.xray_dicom import XRayDicom
from DiffDRRCore.imaging.xray_dicom_header import Header
from DiffDRRCore.imaging.xray_reading import given_camera, is_dicom, read_dicom_parts
from DiffDRRSlicerLib.scene import assumptions as words
from DiffDRRSlicerLib.scene.assumptions import assumed
from DiffDRRSlicerLib.scene.errors import SceneError

_SPACING_SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")  # in others it means print resolution
_OTHER_MODALITIES = ("CT", "MR", "PT", "NM", "US")


class Loaded(NamedTuple):
    """An X-ray with a pose, and how much of its geometry is known."""

    xray: XRay
    source_to_isocenter: float | None  # mm; None where nothing says it
    placed: bool  # whether the pose is in the patient's coordinates, not about an isocentre at the RAS origin
    missing: list[str]


def read_file(path: str | Path, frame: int | str | None, camera) -> Loaded:
    """An X-ray file of any kind that `XRay.read` knows; arguments and errors are those, but geometry may be missing."""
    path = Path(path)
    if path.is_file() and is_dicom(path):
        return read_dicom(path, frame, camera)
    try:
        xray, missing = XRay.read(path, frame, camera), []
    except MissingGeometryError:
        default, missing = default_camera(*_grid_of(path))
        xray = XRay.read(path, frame, default)
    return completed(xray, missing)


def read_dicom(path: Path, frame: int | str | None, camera) -> Loaded:
    """A DICOM X-ray. Raises SceneError for a slice of a CT or the like, ReadError for a damaged or colour image."""
    given = given_camera(camera)
    file = XRayDicom(Path(path))
    modality = file.header.text("Modality")
    if modality in _OTHER_MODALITIES:
        raise SceneError(f"'{path}' is an image of modality {modality}; choose an X-ray (XA, RF, DX or CR).")
    missing = [] if given else _complete_camera(file)
    posed = given is not None and given.pose is not None
    missing += [] if posed else _complete_arm(file, frame, given)
    xray = _without_gaps(XRay(*read_dicom_parts(file, frame, given)), missing)
    if not given:
        missing += _assumed_by_core(xray.meta)
    if posed:
        return Loaded(xray, None, True, missing)
    distance = -float(xray.pose.translation @ xray.pose.rotation[:, 2])
    return Loaded(xray, distance, False, missing)


def completed(xray: XRay, missing: list[str]) -> Loaded:
    """An image of another file or of a node: what is bright and the pose are assumed where they are not said."""
    missing = list(missing)
    if "intensity" not in xray.meta:
        whole = bool((xray.image == xray.image.round()).all()) and float(xray.image.min()) >= 0
        intensity = "transmission" if whole else "attenuation"
        xray = xray.with_image(xray.image, intensity=intensity, intensity_source="assumed")
        missing.append(assumed(words.INTENSITY, "air is bright" if whole else "bone is bright"))
    if xray.pose is not None:
        return Loaded(xray, None, True, missing)
    arm = default_arm(xray.camera)
    return Loaded(xray.with_pose(arm.pose), float(arm.source_to_isocenter), False, [*missing, *_arm_words(arm)])


def default_camera(height: int, width: int, spacing: tuple[float, float] | None) -> tuple[Camera, list[str]]:
    """A usual camera, and what was assumed for it; `spacing` (row_mm, col_mm) counts where it is plausible."""
    missing = [assumed(words.DISTANCE, f"{words.SOURCE_TO_DETECTOR:g} mm")]
    low, high = LIMITS_MM["pixel_spacing"]
    if spacing is None or tuple(spacing) == (1.0, 1.0) or not all(low <= value <= high for value in spacing):
        side = words.DETECTOR_SIDE / max(height, width)
        spacing = side, side
        missing.append(assumed(words.SPACING, f"{side:.4g} mm"))
    missing.append(assumed(words.POINT, "image centre"))
    missing.append(assumed(words.SIDE, "seen from the detector"))
    return Camera(height, width, spacing, words.SOURCE_TO_DETECTOR, None, "detector"), missing


def default_arm(camera: Camera) -> CArm:
    """The C-arm of a camera of which nothing more is known: isocentre at the RAS origin, angles zero."""
    distance = float(camera.source_to_detector)
    return CArm(distance, words.ISOCENTER_SHARE * distance)


def _arm_words(arm: CArm) -> list[str]:
    return [
        assumed(words.ISOCENTER, f"{float(arm.source_to_isocenter):g} mm"),
        assumed(words.PRIMARY, "0 degrees"),
        assumed(words.SECONDARY, "0 degrees"),
    ]


def _grid_of(path: Path) -> tuple[int, int, tuple[float, float] | None]:
    """(height, width, spacing (row_mm, col_mm)) of an image file that is known to be readable."""
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    with quiet_itk(), reading(path):
        reader.ReadImageInformation()
    width, height = reader.GetSize()[:2]
    column, row = reader.GetSpacing()[:2]
    return height, width, (row, column) if path.name.lower().endswith(_SPACING_SUFFIXES) else None


def _complete_camera(file: XRayDicom) -> list[str]:
    """Write what a header lacks of the camera into it, and say so."""
    header, missing = file.header.at(0), []
    if not header.positive("DistanceSourceToDetector"):
        file.dataset.DistanceSourceToDetector = words.SOURCE_TO_DETECTOR
        missing.append(assumed(words.DISTANCE, f"{words.SOURCE_TO_DETECTOR:g} mm"))
    if not _says_spacing(file):
        side = (_positive(header, "IntensifierSize") or words.DETECTOR_SIDE) / max(file.height, file.width)
        file.dataset.ImagerPixelSpacing = [side, side]
        missing.append(assumed(words.SPACING, f"{side:.4g} mm"))
    return missing


def _says_spacing(file: XRayDicom) -> bool:
    try:
        file.geometry([0], None)
    except MissingGeometryError as error:
        return not any("PixelSpacing" in name for name in error.missing)
    return True


def _positive(header: Header, keyword: str) -> float | None:
    value = header.positive(keyword)
    return value if value and value > 0 else None


def _complete_arm(file: XRayDicom, frame: int | str | None, given: CameraFile | None) -> list[str]:
    """Write what a header lacks of the C-arm into it, and say so."""
    header, missing = file.header.at(frame if isinstance(frame, int) else 0), []
    distance = float(given.camera.source_to_detector) if given else header.positive("DistanceSourceToDetector")
    if not (header.positive("DistanceSourceToPatient") or header.positive("DistanceSourceToIsocenter")):
        file.dataset.DistanceSourceToPatient = words.ISOCENTER_SHARE * distance
        missing.append(assumed(words.ISOCENTER, f"{words.ISOCENTER_SHARE * distance:g} mm"))
    for keyword, word in (("PositionerPrimaryAngle", words.PRIMARY), ("PositionerSecondaryAngle", words.SECONDARY)):
        if header.number(keyword) is None:
            setattr(file.dataset, keyword, 0.0)
            missing.append(assumed(word, "0 degrees"))
    return missing


def _without_gaps(xray: XRay, missing: list[str]) -> XRay:
    """With a pose where even a completed header gives none: frames of a moving C-arm that were reduced to one image."""
    if xray.pose is not None:
        return xray
    arm = default_arm(xray.camera)
    missing += [entry for entry in _arm_words(arm) if entry not in missing]
    return xray.with_pose(arm.pose)


def _assumed_by_core(meta: dict[str, Any]) -> list[str]:
    missing = []
    if meta.get("principal_point_source") == "image centre":
        missing.append(assumed(words.POINT, "image centre"))
    if str(meta.get("view_from_source", "")).startswith("assumed"):
        missing.append(assumed(words.SIDE, "seen from the detector"))
    return missing


def moved_to(pose: Pose, isocenter) -> Pose:
    """A pose about an isocentre at the RAS origin as one about `isocenter` [3] (world mm). Raises SceneError."""
    shift = pose.matrix.new_tensor([float(value) for value in isocenter])
    if shift.shape != (3,) or not all(math.isfinite(value) for value in shift.tolist()):
        raise SceneError(f"The isocentre is three numbers in mm, not {list(isocenter)}.")
    matrix = pose.matrix.clone()
    matrix[:3, 3] += shift
    return Pose(matrix)
