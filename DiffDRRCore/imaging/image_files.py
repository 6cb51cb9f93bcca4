"""Image files as voxel arrays with their place in the patient, and back."""

from __future__ import annotations

import logging
import os
import re
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import SimpleITK

from DiffDRRCore.errors import DiffDRRError, DiffDRRWarning, ReadError, VolumeError
from DiffDRRCore.files import replacing

_logger = logging.getLogger(__name__)
_stderr_lock = threading.RLock()

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # its own inverse
WRITABLE = (".nii", ".nii.gz", ".nrrd", ".mha")

# zlib cannot shrink data by more than this, so a header that promises more voxels than that is wrong.
_MOST_COMPRESSION = 1032


class Grid(NamedTuple):
    """Voxels and where they are."""

    array: np.ndarray  # [K, J, I]
    ijk_to_ras: np.ndarray  # [4, 4] float64, mm
    names: Mapping[int, str] = MappingProxyType({})  # of label numbers, where the file holds them


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn whatever a parser raises on the contents of `path` into one sentence, a ReadError."""
    try:
        yield
    except (DiffDRRError, DiffDRRWarning):
        raise
    except Exception as error:
        raise ReadError(f"'{path}' cannot be read: {_one_line(error)}.") from error


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error).rsplit("ERROR:", 1)[-1].strip()
    if "Unable to determine ImageIO reader" in text:
        return "it is not an image of a known format, or it is damaged"
    text = re.sub(r"^\w+\(0x\w+\): ", "", text).splitlines()[0] if text else type(error).__name__
    return f"the file is damaged or incomplete ({text.strip(' .:')})"


@contextmanager
def quiet_itk() -> Iterator[None]:
    """Send what ITK and its C libraries print on standard error to the log (level debug) instead."""
    with _stderr_lock, tempfile.TemporaryFile() as sink:
        try:
            terminal = os.dup(2)
        except OSError:  # a program without a console has no standard error to keep clean
            yield
            return
        os.dup2(sink.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)
            sink.seek(0)
            if text := sink.read().decode(errors="replace").strip():
                _logger.debug("ITK: %s", text)


def itk_array(path: Path) -> tuple[np.ndarray, SimpleITK.Image]:
    """The voxels of an image file and the image they come from. Raises ReadError."""
    with quiet_itk(), reading(path):
        reader = SimpleITK.ImageFileReader()
        reader.SetFileName(str(path))
        reader.ReadImageInformation()
        check_declared_size(path, float(np.prod(reader.GetSize(), dtype=float)) * reader.GetNumberOfComponents())
        image = reader.Execute()
        return SimpleITK.GetArrayFromImage(image), image


def check_declared_size(path: Path, declared_bytes: float) -> None:
    """Raise ReadError before memory is asked for that no file of this size can fill."""
    detached = path.suffix.lower() in (".mhd", ".nhdr")
    files = [item for item in path.parent.iterdir() if item.is_file()] if detached else [path]
    size = sum(item.stat().st_size for item in files)
    if declared_bytes > _MOST_COMPRESSION * size:
        raise ReadError(
            f"'{path}' cannot be read: its header promises {declared_bytes:.3g} bytes, but the file has only {size}."
        )


def read_itk(path: Path) -> Grid:
    """Read a 3D image with SimpleITK. Raises ReadError."""
    array, image = itk_array(path)
    if image.GetNumberOfComponentsPerPixel() > 1:
        raise ReadError(
            f"'{path}' holds {image.GetNumberOfComponentsPerPixel()} values per voxel; a volume has one. "
            "Of a segmentation with overlapping segments, export a labelmap."
        )
    if image.GetDimension() == 4 and image.GetSize()[3] == 1:
        array, image = array[0], image[..., 0]
    check_three_dimensions(path, array.shape)
    return Grid(array, _ijk_to_ras(image), _segment_names(image))


def check_three_dimensions(path: Path, shape: tuple[int, ...]) -> None:
    """Raise ReadError for [J, I], [T, K, J, I], a single slice, or an image without voxels."""
    if len(shape) == 3 and min(shape) > 0 and shape[0] > 1:
        return
    size = " x ".join(str(length) for length in reversed(shape))
    if 0 in shape:
        raise ReadError(f"'{path}' is an image without voxels ({size}).")
    if len(shape) < 3 or shape[0] == 1:
        raise ReadError(f"'{path}' is a 2D image ({size}); a CT volume with several slices is needed.")
    raise ReadError(f"'{path}' has {len(shape)} dimensions ({size}); save the one 3D volume that is wanted.")


def _segment_names(image: SimpleITK.Image) -> dict[int, str]:
    """Label names from the Segment<n>_LabelValue and Segment<n>_Name fields of a .seg.nrrd file."""
    # Other keys are not asked for: SimpleITK cannot look up those of a damaged header that are not UTF-8.
    keys = [key for key in image.GetMetaDataKeys() if re.fullmatch(r"Segment\d+_(LabelValue|Name)", key, re.ASCII)]
    fields = {key: image.GetMetaData(key).encode("utf-8", "replace").decode() for key in keys}
    names = {}
    for key, value in fields.items():
        name = fields.get(key.replace("_LabelValue", "_Name"))
        if key.endswith("_LabelValue") and name and re.fullmatch(r"-?\d+", value.strip(), re.ASCII):
            names[int(value)] = name
    return names


def write_image(
    path: str | Path,
    array: np.ndarray,
    ijk_to_ras: np.ndarray,
    metadata: Mapping | None = None,
    compress: bool = True,
) -> None:
    """Write [K, J, I] with its grid. Raises VolumeError for a sheared grid or a file type that cannot be written."""
    path = Path(path)
    if not path.name.lower().endswith(WRITABLE):
        raise VolumeError(f"Cannot write '{path}': the file name must end in one of {', '.join(WRITABLE)}.")
    image = _itk_image(array, ijk_to_ras)
    for key, value in (metadata or {}).items():
        image.SetMetaData(key, value)
    with replacing(path) as temporary, quiet_itk():
        try:
            SimpleITK.WriteImage(image, str(temporary), useCompression=compress)
        except RuntimeError as error:
            raise DiffDRRError(f"Cannot write '{path}': {_one_line(error)}.") from error


def _ijk_to_ras(image: SimpleITK.Image) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return LPS_TO_RAS @ affine


def _itk_image(array: np.ndarray, ijk_to_ras: np.ndarray) -> SimpleITK.Image:
    affine = LPS_TO_RAS @ ijk_to_ras
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    direction = affine[:3, :3] / spacing
    if np.abs(direction.T @ direction - np.eye(3)).max() > 1e-5:
        raise VolumeError(
            "The axes of this volume are not perpendicular (a tilted gantry); image files cannot hold that. "
            "Resample it on to a rectangular grid first."
        )
    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing(spacing.tolist())
    image.SetDirection(direction.ravel().tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    return image
