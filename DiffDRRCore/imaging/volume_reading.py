"""From a path to the voxels, grid and labels of a CT, whatever the kind of file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from pydicom.misc import is_dicom

from DiffDRRCore.errors import ReadError, VolumeError
from DiffDRRCore.imaging.dicom_series import read_dicom
from DiffDRRCore.imaging.image_files import Grid, read_itk, reading
from DiffDRRCore.imaging.labelmap import find_label_names, resample_labels
from DiffDRRCore.imaging.nifti import read_nifti


def read_ct(path: str | Path, series: str | None = None, uneven: str = "error") -> Grid:
    """The CT at `path` in HU, float32 unless the file holds float64, and its grid. See `Volume.read`."""
    path = _existing(path)
    if uneven not in ("error", "resample"):
        raise ReadError(f"uneven must be 'error' or 'resample', not {uneven!r}.")
    if path.is_dir() or _is_dicom(path):
        return read_dicom(path, series, uneven)
    if series is not None:
        raise ReadError(f"A series can be chosen in a DICOM folder only; '{path}' is not DICOM.")
    grid = _read_image(path)
    if grid.array.dtype not in (np.float32, np.float64):
        grid = grid._replace(array=_real(path, grid.array).astype(np.float32))
    return grid


def read_labels(
    path: str | Path, ct: Grid, label_names: str | Path | Mapping[int, str] | None = None
) -> tuple[np.ndarray, dict[int, str]]:
    """The labels at `path` on the grid of `ct`, int16 [K, J, I], and their names. See `Volume.read`."""
    path = _existing(path)
    if path.is_dir() or _is_dicom(path):
        raise ReadError(f"'{path}' cannot serve as a labelmap; give a NIfTI, NRRD or MetaImage file.")
    grid = _read_image(path)
    labels = grid._replace(array=_whole_numbers(path, _real(path, grid.array)))
    return resample_labels(path, labels, ct), find_label_names(path, grid.names, label_names)


def _existing(path: str | Path) -> Path:
    path = Path(path)
    if not path.exists():
        raise ReadError(f"There is no file or folder '{path}'.")
    return path


def _is_dicom(path: Path) -> bool:
    with reading(path):
        return is_dicom(path)


def _read_image(path: Path) -> Grid:
    name = path.name.lower()
    if name.endswith((".nii", ".nii.gz")):
        return read_nifti(path)
    if name.endswith((".nrrd", ".nhdr", ".mha", ".mhd")):
        return read_itk(path)
    raise ReadError(
        f"'{path}' is no DICOM file, or a damaged one, and its name is not that of a NIfTI, NRRD or MetaImage file."
    )


def _real(path: Path, array: np.ndarray) -> np.ndarray:
    if array.dtype.kind not in "buif":
        raise ReadError(f"'{path}' holds {array.dtype} numbers; a volume needs real ones.")
    return array


def _whole_numbers(path: Path, array: np.ndarray) -> np.ndarray:
    if array.dtype.kind == "f" and not np.array_equal(array, np.rint(array)):
        raise VolumeError(f"'{path}' is not a labelmap: its voxels are not whole numbers.")
    low, high = float(array.min()), float(array.max())
    if low < -32768 or high > 32767:
        raise VolumeError(f"'{path}' has labels from {low:g} to {high:g}; they must lie between -32768 and 32767.")
    return array.astype(np.int16)
