"""The modules of DICOM's XA and DX images (PS3.3 A.14, A.26) that are not about geometry, for `xray_dicom_writing`.

All attributes of type 1 and 2 are there; those of type 2 whose value nobody knows are empty, as the standard wants it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    UID,
    DigitalXRayImageStorageForProcessing,
    ExplicitVRLittleEndian,
    XRayAngiographicImageStorage,
    generate_uid,
)
from pydicom.valuerep import DSfloat

from DiffDRRCore.errors import XRayError

CLASSES = {"XA": XRayAngiographicImageStorage, "DX": DigitalXRayImageStorageForProcessing}
LARGEST = 65535
_EMPTY = (
    *("PatientBirthDate", "PatientSex", "AccessionNumber", "ReferringPhysicianName", "StudyID"),
    *("ExposureTime", "XRayTubeCurrent", "Exposure", "KVP"),
)
_MATERIALS = {"al": "ALUMINUM", "aluminium": "ALUMINUM", "cu": "COPPER", "pb": "LEAD", "sn": "TIN", "mo": "MOLYBDENUM"}
_QUANTILES = (0.005, 0.995)
_LONGEST_NAME = 64


@dataclass(frozen=True)
class Technique:
    """How an X-ray was taken, for its header; what is None or empty is not known.

    kvp:        kV
    mas:        exposure in mAs
    filters:    mm of each added filter, by material
    grid:       whether there is an anti-scatter grid
    focal_spot: mm
    fluoroscopy: low dose (RadiationSetting SC) rather than GR
    maker, model: of the device
    blades:     (top, bottom, left, right), pixels of the image that the collimator covers
    aperture:   (row, column, radius) of a round collimator in pixels of the image from 0
    """

    kvp: float | None = None
    mas: float | None = None
    filters: Mapping[str, float] = field(default_factory=dict)
    grid: bool | None = None
    focal_spot: float | None = None
    fluoroscopy: bool = False
    maker: str = ""
    model: str = ""
    blades: tuple[float, float, float, float] | None = None
    aperture: tuple[float, float, float] | None = None


def described(modality: str, meta: Mapping[str, Any], patient: str, study: str | None, series: str | None) -> Dataset:
    """Patient, Study, Series, Image, SOP Common: who, when, and what kind of object."""
    if modality not in CLASSES:
        raise XRayError(f"X-rays are written as {' or '.join(CLASSES)}, not {modality!r}.")
    dataset = _file(CLASSES[modality])
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study or generate_uid(), series or generate_uid()
    dataset.PatientName, dataset.PatientID = patient[:_LONGEST_NAME], patient[:_LONGEST_NAME]
    now = datetime.now()
    for keyword in ("Study", "Series", "Content"):
        setattr(dataset, f"{keyword}Date", now.strftime("%Y%m%d"))
        setattr(dataset, f"{keyword}Time", now.strftime("%H%M%S"))
    for keyword in _EMPTY:
        setattr(dataset, keyword, "")
    dataset.Modality, dataset.SeriesNumber, dataset.InstanceNumber = modality, 1, 1
    simulated = bool(meta.get("simulated") or meta.get("simulation"))
    if simulated:
        dataset.SyntheticData = "YES"
        dataset.DerivationDescription = "Simulated X-ray of a CT"
    dataset.BurnedInAnnotation, dataset.LossyImageCompression = "NO", "00"
    # C.7.6.1.1.2: what was made after the examination is SECONDARY; a DX image has an empty third value (C.8.11.3.1.1).
    third = "SINGLE PLANE" if modality == "XA" else ""
    dataset.ImageType = ["DERIVED", "SECONDARY" if simulated else "PRIMARY", third]
    if modality == "DX":
        _add_radiograph(dataset)
    else:
        dataset.Laterality = dataset.PatientOrientation = ""
    return dataset


def _file(sop_class: UID) -> Dataset:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.SOPClassUID, dataset.SOPInstanceUID = sop_class, generate_uid()
    return dataset


def _add_radiograph(dataset: Dataset) -> None:
    """DX Series, DX Anatomy Imaged, DX Image, DX Detector, DX Positioning, Acquisition Context."""
    dataset.PresentationIntentType, dataset.PresentationLUTShape = "FOR PROCESSING", "IDENTITY"
    dataset.AnatomicRegionSequence, dataset.ImageLaterality = [], "U"
    dataset.AcquisitionContextSequence = []
    dataset.DetectorType, dataset.PositionerType = "SCINTILLATOR", "NONE"
    dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = "0", "1", "US"


def add_technique(dataset: Dataset, technique: Technique) -> None:
    """General Equipment, X-Ray Acquisition (or Generation, Filtration, Grid), X-Ray Collimator."""
    dataset.Manufacturer, dataset.SoftwareVersions = technique.maker, _version()
    if technique.model:
        dataset.ManufacturerModelName = technique.model[:_LONGEST_NAME]
    if dataset.Modality == "XA":
        dataset.RadiationSetting = "SC" if technique.fluoroscopy else "GR"
    if technique.kvp is not None:
        dataset.KVP = decimal(technique.kvp)
    if technique.mas is not None:
        dataset.Exposure, dataset.ExposureInuAs = round(technique.mas), round(technique.mas * 1000)
    if technique.focal_spot:
        dataset.FocalSpots = decimal(technique.focal_spot)
    if technique.grid is not None:
        present = "IN" if dataset.Modality == "XA" else "FOCUSED"
        dataset.Grid = present if technique.grid else "NONE"
    _add_filters(dataset, technique.filters)
    _add_collimator(dataset, technique)


def _add_filters(dataset: Dataset, filters: Mapping[str, float]) -> None:
    if not filters:
        return
    dataset.FilterType = "FLAT" if len(filters) == 1 else "MULTIPLE"
    dataset.FilterMaterial = [_MATERIALS.get(name.lower(), name.upper()[:16]) for name in filters]
    thickness = [decimal(mm) for mm in filters.values()]
    dataset.FilterThicknessMinimum = dataset.FilterThicknessMaximum = thickness


def _add_collimator(dataset: Dataset, technique: Technique) -> None:
    """C.8.7.3: rows and columns are counted from 1."""
    shapes = []
    if technique.blades is not None:
        shapes.append("RECTANGULAR")
        top, bottom, left, right = (round(covered) for covered in technique.blades)
        dataset.CollimatorUpperHorizontalEdge = top
        dataset.CollimatorLowerHorizontalEdge = dataset.Rows + 1 - bottom
        dataset.CollimatorLeftVerticalEdge, dataset.CollimatorRightVerticalEdge = left, dataset.Columns + 1 - right
    if technique.aperture is not None:
        shapes.append("CIRCULAR")
        row, column, radius = technique.aperture
        dataset.CenterOfCircularCollimator = [round(row + 1), round(column + 1)]
        dataset.RadiusOfCircularCollimator = round(radius)
    if shapes:
        dataset.CollimatorShape = shapes


def add_pixels(dataset: Dataset, frames: np.ndarray, meta: Mapping[str, Any]) -> float | None:
    """Image Pixel, X-Ray or DX Image, VOI LUT of frames [F, H, W]; the step between values, if they were rounded.

    Whole numbers from 0 to 65535 are stored as they are, others in 65536 steps by RescaleSlope and RescaleIntercept.
    Raises XRayError where the object has no place for these.
    """
    stored, step = np.rint(frames), None
    if not np.array_equal(stored, frames) or frames.min() < 0 or frames.max() > LARGEST:
        stored, step = _scaled(dataset, frames)
    if stored.size * 2 >= 2**32 - 2:
        raise XRayError("The run is too large for a DICOM file (4 GB): write fewer frames or smaller ones.")
    dataset.Rows, dataset.Columns = frames.shape[1:]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation = 15, 0
    _add_meaning(dataset, meta, step is not None)
    dataset.PixelData = stored.astype("<u2").tobytes()
    if dataset.Modality == "XA":
        low, high = np.quantile(frames[:: max(1, len(frames) // 16)], _QUANTILES)
        dataset.WindowCenter, dataset.WindowWidth = decimal((low + high) / 2), decimal(max(high - low, step or 1.0))
    return step


def _add_meaning(dataset: Dataset, meta: Mapping[str, Any], rescaled: bool) -> None:
    """What a stored value says of the beam. XA has a Modality LUT for LOG and DISP only (PS3.3 A.14.3)."""
    transmission = meta.get("intensity", "transmission") == "transmission"
    relationship = "LOG" if meta.get("logarithmic") else "LIN"
    if dataset.Modality == "XA" and relationship == "LIN" and (rescaled or not transmission):
        relationship = "DISP"
    dataset.PixelIntensityRelationship = relationship
    if "intensity" in meta or dataset.Modality == "DX":
        dataset.PixelIntensityRelationshipSign = 1 if transmission else -1
    if relationship == "LOG" and "RescaleSlope" not in dataset:
        dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = "0", "1", "US"


def _scaled(dataset: Dataset, frames: np.ndarray) -> tuple[np.ndarray, float]:
    if dataset.Modality == "DX":
        raise XRayError("A DX image holds whole numbers from 0 to 65535: round the pixels, or write an XA image.")
    low, high = float(frames.min()), float(frames.max())
    # A little more than the range, so that 16 characters for each number still hold all of it.
    slope, intercept = decimal((high - low) / LARGEST * (1 + 1e-6) or 1.0), decimal(low)
    dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = slope, intercept, "US"
    step = float(str(slope))
    return np.clip(np.rint((frames - float(str(intercept))) / step), 0, LARGEST), step


def add_run(dataset: Dataset, frames: int, frame_time: float) -> None:
    """Cine and Multi-frame. frame_time: ms."""
    dataset.NumberOfFrames, dataset.FrameTime = frames, decimal(frame_time)
    dataset.FrameIncrementPointer = 0x00181063
    dataset.StartTrim, dataset.StopTrim = 1, frames
    dataset.RecommendedDisplayFrameRate = max(1, round(1000 / frame_time))


def decimal(value: float) -> DSfloat:
    """A decimal string of at most 16 characters."""
    return DSfloat(float(value), auto_format=True)


def decimals(values: Sequence[float]) -> list[DSfloat]:
    """Several."""
    return [decimal(value) for value in values]


def _version() -> str:
    from DiffDRRCore import __version__

    return f"DiffDRRCore {__version__}"
