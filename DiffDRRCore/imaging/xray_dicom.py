"""The pixels of a DICOM X-ray (XA, RF, DX, CR) and what they mean.

Values are those after the Modality LUT (PS3.3 C.11.1; rescale slope and intercept included). What a large value means
goes into meta["intensity"], by this rule:

1. Where the header has PixelIntensityRelationshipSign (0028,1041), it decides: +1, larger stored values mean more X-ray
   intensity ("transmission"); -1, less ("attenuation"). PS3.3 C.8.11.3.1.2: it relates *stored* values to the beam and
   is no display transformation, so MONOCHROME1 changes nothing here, and a Modality LUT that falls turns it over.
2. Where it is absent, only the display tells (PS3.3 C.7.6.3.1.2: the smallest value of MONOCHROME2 is black, that of
   MONOCHROME1 is white). A MONOCHROME1 image is turned over within its stored range, v -> low + high - v, so that large
   is bright; then XA, RF (fluoroscopy shows bone dark; PS3.3 C.8.7.1 relates their values to the X-ray intensity) are
   "transmission", and DX, CR and the other radiographs (bone white) are "attenuation".

PixelIntensityRelationship LOG without a Modality LUT sequence sets meta["logarithmic"]: values are then proportional to
the logarithm of the X-ray intensity.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import SimpleITK
from pydicom.errors import InvalidDicomError
from pydicom.pixels import apply_modality_lut, get_decoder, pixel_array

from DiffDRRCore.errors import ReadError
from DiffDRRCore.geometry.camera import Camera
from DiffDRRCore.geometry.pose import Pose
from DiffDRRCore.imaging.camera_file import CameraFile
from DiffDRRCore.imaging.image_files import quiet_itk, reading
from DiffDRRCore.imaging.xray_dicom_geometry import header_geometry
from DiffDRRCore.imaging.xray_dicom_header import Header

_BONE_IS_BRIGHT = ("DX", "CR", "MG", "IO", "PX", "CT")
_LARGEST_RUN = 2_000_000_000  # pixels held at once
_LUT_TAGS = ("RescaleSlope", "RescaleIntercept", "RescaleType", "ModalityLUTSequence")


def _dataset(path: Path) -> pydicom.Dataset:
    try:
        return pydicom.dcmread(path)
    except InvalidDicomError as error:
        raise ReadError(f"'{path}' is not a DICOM file, though its name says so.") from error


class XRayDicom:
    """An X-ray file opened for reading. Every method raises ReadError where the file is damaged."""

    def __init__(self, path: Path):
        self.path = path
        with reading(path):
            self.dataset = _dataset(path)
        self.header = Header(self.dataset, path)
        self._check_pixel_module()

    def _check_pixel_module(self) -> None:
        header = self.header
        if not any(name in self.dataset for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
            raise ReadError(f"'{self.path}' is DICOM but has no image in it.")
        self.height, self.width = header.integer("Rows"), header.integer("Columns")
        self.frames = header.integer("NumberOfFrames", default=1) or 1
        self.samples = header.integer("SamplesPerPixel", default=1)
        self.bits = header.integer("BitsStored", default=16), header.integer("BitsAllocated", default=16)
        self.photometric = header.text("PhotometricInterpretation") or "MONOCHROME2"
        if self.samples != 1 or not self.photometric.startswith("MONOCHROME"):
            raise ReadError(
                f"'{self.path}' is a colour image ({self.photometric}); an X-ray has one grey value per pixel: "
                "convert it to greyscale."
            )
        if not 1 <= self.bits[0] <= self.bits[1] <= 64:
            raise ReadError(f"'{self.path}' has {self.bits[0]} bits stored in {self.bits[1]}, which cannot be.")

    def geometry(self, indices: Sequence[int], given: CameraFile | None) -> tuple[Camera, Pose | None, dict[str, Any]]:
        """(camera, pose, meta) of the frames `indices`; `given` wins over the header."""
        return header_geometry(self.header, (self.height, self.width), indices, given)

    def values(self, index: int) -> np.ndarray:
        """Frame `index` [H, W] as the module's text says."""
        values = self._modality(self._stored(index))
        if not self._is_inverted:
            return values
        return sum(self._range) - values.astype(np.float64)

    def meta(self) -> dict[str, Any]:
        """intensity and how it was decided, logarithmic, and what else of the header helps to judge the pixels."""
        sign = self._sign
        if sign:
            direction = 1 if self._range[1] >= self._range[0] else -1
            bright_air, source = sign * direction > 0, "PixelIntensityRelationshipSign"
        else:
            bright_air = self.header.text("Modality") not in _BONE_IS_BRIGHT
            source = "how this modality is displayed"
        relationship = self.header.text("PixelIntensityRelationship")
        return {
            "intensity": "transmission" if bright_air else "attenuation",
            "intensity_source": source,
            "logarithmic": relationship == "LOG" and "ModalityLUTSequence" not in self.dataset,
            "pixel_intensity_relationship": relationship,
            "photometric_interpretation": self.photometric,
            "inverted": self._is_inverted,
            "bits_stored": self.bits[0],
            "modality": self.header.text("Modality"),
        }

    @property
    def _sign(self) -> int:
        sign = self.header.integer("PixelIntensityRelationshipSign", default=0)
        return sign if sign in (1, -1) else 0

    @property
    def _is_inverted(self) -> bool:
        return self._sign == 0 and self.photometric == "MONOCHROME1"

    @cached_property
    def _range(self) -> tuple[float, float]:
        """The smallest and largest stored value that the header allows, after the Modality LUT."""
        span = 1 << self.bits[0]
        low = -(span >> 1) if self.header.integer("PixelRepresentation", default=0) == 1 else 0
        first, last = self._modality(np.array([low, low + span - 1], dtype=np.int64))
        return float(first), float(last)

    def _modality(self, stored: np.ndarray) -> np.ndarray:
        with reading(self.path):
            return apply_modality_lut(stored, self.dataset)

    def _stored(self, index: int) -> np.ndarray:
        with reading(self.path):
            self._check_length()
            syntax = self.dataset.file_meta.TransferSyntaxUID
            if syntax.is_compressed and not get_decoder(syntax).is_available:
                frame = self._frames_by_gdcm[index]
            else:
                frame = pixel_array(self.dataset, index=index, raw=True)
        if frame.shape != (self.height, self.width):
            shape = " x ".join(map(str, frame.shape))
            raise ReadError(f"'{self.path}' is damaged: a frame has {shape} pixels, not {self.height} x {self.width}.")
        return frame if frame.dtype.kind == "f" else self._without_unused_bits(frame)

    def _check_length(self) -> None:
        """An uncompressed image must be as long as its header says: checked before anything is allocated."""
        if self.dataset.file_meta.TransferSyntaxUID.is_compressed or "PixelData" not in self.dataset:
            return
        needed = self.height * self.width * self.frames * self.bits[1] // 8
        if len(self.dataset.PixelData) < needed:
            raise ReadError(
                f"'{self.path}' is cut off or damaged: its header promises {needed} bytes of pixels, "
                f"it has {len(self.dataset.PixelData)}."
            )

    def _without_unused_bits(self, frame: np.ndarray) -> np.ndarray:
        """Only BitsStored bits up to HighBit count: above them may lie overlays or rubbish (PS3.5 8.1.1)."""
        stored, allocated = self.bits
        below = min(max(self.header.integer("HighBit", default=stored - 1) - stored + 1, 0), allocated - stored)
        if stored == allocated:
            return frame
        values = (frame.astype(np.int64) >> below) & ((1 << stored) - 1)
        if frame.dtype.kind == "i":
            values -= (values >> (stored - 1)) << stored
        return values

    @cached_property
    def _frames_by_gdcm(self) -> np.ndarray:
        """All stored frames [N, H, W] by SimpleITK's decoders.

        From a copy without Modality LUT, which GDCM would apply in part. GDCM decodes a run as a whole.
        """
        if self.frames * self.height * self.width > _LARGEST_RUN:
            raise ReadError(f"'{self.path}' is too large to decompress; save it uncompressed by another program first.")
        plain = pydicom.Dataset(self.dataset)
        plain.file_meta, plain.preamble = self.dataset.file_meta, bytes(128)
        for tag in _LUT_TAGS:
            if tag in plain:
                del plain[tag]
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / "copy.dcm"
            plain.save_as(copy)
            return self._decompressed(copy).reshape(-1, self.height, self.width)

    def _decompressed(self, copy: Path) -> np.ndarray:
        try:
            with quiet_itk():
                return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(copy)))
        except RuntimeError as error:
            name = self.dataset.file_meta.TransferSyntaxUID.name
            raise ReadError(
                f"'{self.path}' is compressed ({name}) and cannot be decompressed: it is damaged, or needs to be "
                "saved uncompressed by another program first."
            ) from error
