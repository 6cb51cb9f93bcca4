"""What DICOM headers say of each CT slice, and the slices' pixels in HU."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.pixels import get_decoder
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    LegacyConvertedEnhancedCTImageStorage,
    MediaStorageDirectoryStorage,
    RLELossless,
)

from DiffDRRCore.errors import MissingGeometryError, ReadError
from DiffDRRCore.imaging.image_files import check_declared_size, itk_array, reading

_MULTI_FRAME = (EnhancedCTImageStorage, LegacyConvertedEnhancedCTImageStorage)
_NEEDED = ("PixelSpacing", "ImageOrientationPatient", "ImagePositionPatient")
_MACROS = (
    *("PixelMeasuresSequence", "PlaneOrientationSequence", "PlanePositionSequence"),
    "PixelValueTransformationSequence",
)
_ROUNDING = 1e-3  # how far written direction cosines may be from unit length and a right angle


@dataclass(frozen=True)
class Header:
    """One DICOM CT file, without its pixels."""

    path: Path
    dataset: Dataset
    series: str
    description: str
    is_multi_frame: bool
    is_localizer: bool


@dataclass(frozen=True)
class Slice:
    """One image plane in DICOM's patient coordinates (LPS, mm)."""

    path: Path
    frame: int  # from 0 in its file
    size: tuple[int, int]  # rows, columns
    position: np.ndarray  # [3] centre of the first pixel
    axes: np.ndarray  # [3, 2] unit directions of growing column and of growing row index
    spacing: tuple[float, float]  # between rows, between columns
    slope: float
    intercept: float | None  # None where the header has none


def read_header(path: Path) -> Header | None:
    """The header of a CT file; None for a DICOM file of another kind. Raises ReadError for a damaged one."""
    with reading(path):
        dataset = pydicom.dcmread(path, stop_before_pixels=True)
        kind, announced = dataset.get("SOPClassUID"), dataset.file_meta.get("MediaStorageSOPClassUID")
        if announced == MediaStorageDirectoryStorage:
            return None
        # A class cut short is not that of another kind of image: leaving the file aside would lose a slice unnoticed.
        if not kind or kind != (announced or kind):
            raise ReadError(f"'{path}' is truncated or damaged: its header does not say what it is.")
        if kind != CTImageStorage and kind not in _MULTI_FRAME:
            return None
        if missing := [name for name in ("SeriesInstanceUID", "Rows", "Columns") if not dataset.get(name)]:
            raise ReadError(f"'{path}' is truncated or damaged: it lacks {' and '.join(missing)}.")
        return Header(
            path,
            dataset,
            series=str(dataset.SeriesInstanceUID),
            description=str(dataset.get("SeriesDescription") or ""),
            is_multi_frame=kind in _MULTI_FRAME,
            is_localizer="LOCALIZER" in str(dataset.get("ImageType")).upper(),
        )


def slices_of(header: Header) -> list[Slice]:
    """The image planes of a file, in its order. Raises ReadError, MissingGeometryError where values are absent."""
    path, dataset = header.path, header.dataset
    with reading(path):
        if int(dataset.get("SamplesPerPixel") or 1) != 1:
            raise ReadError(f"'{path}' is a colour image; a CT has one value per pixel.")
        if not header.is_multi_frame:
            return [_slice(path, 0, dataset, [dataset])]
        shared = list(dataset.get("SharedFunctionalGroupsSequence") or [])
        frames = list(dataset.get("PerFrameFunctionalGroupsSequence") or [])
        if not frames or len(frames) != int(dataset.get("NumberOfFrames") or 0):
            raise MissingGeometryError(
                f"'{path}' does not describe each of its frames (PerFrameFunctionalGroupsSequence).",
                ["PerFrameFunctionalGroupsSequence"],
            )
        return [_slice(path, n, dataset, _macros([frame, *shared])) for n, frame in enumerate(frames)]


def load_hu(slices: list[Slice]) -> np.ndarray:
    """Pixels in HU, float32 [slice, row, column]. Raises ReadError."""
    indices_by_path = defaultdict(list)
    for index, item in enumerate(slices):
        indices_by_path[item.path].append(index)
    for path, indices in indices_by_path.items():
        check_declared_size(path, float(np.prod(slices[indices[0]].size)) * len(indices))
    hu = np.empty((len(slices), *slices[0].size), np.float32)
    for path, indices in indices_by_path.items():
        with reading(path):
            frames, is_hu = _frames(path)
            for index in indices:
                item = slices[index]
                stored = frames[item.frame].astype(np.float32)
                hu[index] = stored if is_hu else stored * np.float32(item.slope) + np.float32(item.intercept or 0)
    return hu


def _macros(groups: list[Dataset]) -> list[Dataset]:
    """The items of the functional groups that hold geometry and rescaling, those of the frame before shared ones."""
    return [group[name][0] for group in groups for name in _MACROS if group.get(name)]


def _slice(path: Path, frame: int, dataset: Dataset, sources: list[Dataset]) -> Slice:
    missing = [name for name in _NEEDED if _find(sources, name) is None]
    if missing:
        raise MissingGeometryError(
            f"'{path}' lacks {' and '.join(missing)}, so where its pixels are in the patient is unknown.",
            missing,
        )
    spacing, orientation, position = (_numbers(path, name, _find(sources, name)) for name in _NEEDED)
    axes = orientation.reshape(2, 3).T
    if np.abs(axes.T @ axes - np.eye(2)).max() > _ROUNDING:
        raise ReadError(f"'{path}' has row and column directions that are not perpendicular unit vectors.")
    if spacing.min() <= 0:
        raise ReadError(f"'{path}' has the pixel spacing {spacing.tolist()}; it must be positive.")
    slope, intercept = _find(sources, "RescaleSlope"), _find(sources, "RescaleIntercept")
    return Slice(
        path,
        frame,
        size=(int(dataset.Rows), int(dataset.Columns)),
        position=position,
        axes=axes,
        spacing=(float(spacing[0]), float(spacing[1])),
        slope=1.0 if slope is None else float(slope),
        intercept=None if intercept is None else float(intercept),
    )


def _find(sources: list[Dataset], name: str):
    values = (source.get(name) for source in sources)
    return next((value for value in values if value is not None and value != ""), None)


def _numbers(path: Path, name: str, value) -> np.ndarray:
    count = {"PixelSpacing": 2, "ImageOrientationPatient": 6, "ImagePositionPatient": 3}[name]
    numbers = np.array([float(number) for number in value])
    if len(numbers) != count or not np.isfinite(numbers).all():
        raise ReadError(f"'{path}' has a damaged header: {name} is {value}.")
    return numbers


def _frames(path: Path) -> tuple[np.ndarray, bool]:
    """[frame, row, column] and whether these are HU already (True) or stored values (False)."""
    dataset = pydicom.dcmread(path)
    syntax = dataset.file_meta.TransferSyntaxUID
    multi_frame = dataset.get("SOPClassUID") in _MULTI_FRAME
    if syntax.is_encapsulated and syntax != RLELossless and not multi_frame:
        # GDCM inside SimpleITK decodes every kind of JPEG, whatever plugins pydicom has, and applies the rescaling.
        array, _ = itk_array(path)
        return array.reshape(-1, dataset.Rows, dataset.Columns), True
    if syntax.is_encapsulated and not get_decoder(syntax).is_available:
        raise ReadError(
            f"'{path}' is compressed ({syntax.name}) in a way that needs a decoder; install pylibjpeg with "
            "pylibjpeg-libjpeg and pylibjpeg-openjpeg, or save it uncompressed."
        )
    return dataset.pixel_array.reshape(-1, dataset.Rows, dataset.Columns), False
