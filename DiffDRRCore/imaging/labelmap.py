"""Labelmaps: on to the grid of the CT, and the names of the structures."""

from __future__ import annotations

import csv
import logging
import warnings
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path

import numpy as np

from DiffDRRCore.errors import DiffDRRWarning, ReadError, VolumeError
from DiffDRRCore.imaging.image_files import Grid

_logger = logging.getLogger(__name__)

_SAME_GRID = 1e-3  # voxels
_MOST_OUTSIDE = 0.05  # share of the labelled voxels beyond the CT that is worth a warning
_NUMBER_COLUMNS = ("id", "label", "labelvalue", "value", "number", "index")
_NAME_COLUMNS = ("structure", "name", "labelname", "segment", "description")


def resample_labels(path: Path | str, labels: Grid, ct: Grid) -> np.ndarray:
    """Nearest label at each voxel of `ct`, 0 outside; exact where the voxels coincide (flipped, permuted axes too).

    Raises VolumeError where no label falls inside the CT; warns with DiffDRRWarning where a part lies outside.
    """
    return labels.array if _is_same_grid(labels, ct) else np.stack(list(resampled_slices(path, labels, ct)))


def resampled_slices(path: Path | str, labels: Grid, ct: Grid) -> Iterator[np.ndarray]:
    """What `resample_labels` gives, slice by slice of the CT, [J, I] each; with its errors and warnings."""
    if _is_same_grid(labels, ct):
        yield from labels.array
        return
    _check_overlap(path, labels, ct)
    yield from nearest_slices(labels.array, _ct_to_label(labels, ct), ct.array.shape)


def nearest_slices(labels: np.ndarray, ct_to_label: np.ndarray, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    """Nearest of `labels` [K, J, I] at each voxel of a CT of `shape` [K, J, I], 0 outside; half-way points go down.

    Slice by slice of the CT. `ct_to_label` is the [4, 4] affine from the CT's voxel indices (i, j, k, 1) to those of
    the labels.
    """
    return (_nearest_in_slice(labels, ct_to_label, k, shape[1:]) for k in range(shape[0]))


def find_label_names(
    path: Path, in_file: Mapping[int, str], given: str | Path | Mapping[int, str] | None
) -> dict[int, str]:
    """The names given (CSV file or mapping), else those in the labelmap file, else those of a CSV file beside it.

    Beside it counts a CSV of the same name, or the only CSV of the folder that has a number and a name column.
    """
    if isinstance(given, Mapping):
        return {int(number): str(name) for number, name in given.items()}
    if given is not None:
        return read_label_names(given)
    if in_file:
        return dict(in_file)
    stem = path.name.split(".")[0]
    candidates = [item for item in sorted(path.parent.glob("*.csv")) if _has_names(item)]
    matching = [item for item in candidates if item.stem == stem] or candidates
    if len(matching) != 1:
        return {}
    _logger.info("The names of the labels are taken from '%s'.", matching[0])
    return read_label_names(matching[0])


def read_label_names(path: str | Path) -> dict[int, str]:
    """{number: name} from a CSV file whose header names a number column (id, label, value, ...) and a name column.

    Raises ReadError.
    """
    path = Path(path)
    columns = _columns(path)
    if columns is None:
        raise ReadError(
            f"'{path}' cannot give label names: it must be a CSV file with a header that names a number column "
            f"({', '.join(_NUMBER_COLUMNS)}) and a name column ({', '.join(_NAME_COLUMNS)})."
        )
    names = {}
    for line, row in enumerate(_rows(path)[1:], start=2):
        if not any(row):
            continue
        try:
            names[int(row[columns[0]])] = row[columns[1]].strip()
        except (ValueError, IndexError) as error:
            raise ReadError(f"Line {line} of '{path}' does not hold a whole number and a name.") from error
    return names


def segment_metadata(names: Mapping[int, str]) -> dict[str, str]:
    """The header fields in which a .seg.nrrd file keeps label names."""
    fields = {}
    for index, (number, name) in enumerate(sorted(names.items())):
        fields[f"Segment{index}_LabelValue"] = str(number)
        fields[f"Segment{index}_Name"] = name
    return fields


def _ct_to_label(labels: Grid, ct: Grid) -> np.ndarray:
    """[4, 4] voxel indices of the CT to those of the labels."""
    return _inverse(labels.ijk_to_ras) @ ct.ijk_to_ras


def _is_same_grid(labels: Grid, ct: Grid) -> bool:
    return labels.array.shape == ct.array.shape and _is_identity(_ct_to_label(labels, ct), ct.array.shape)


def _inverse(affine: np.ndarray) -> np.ndarray:
    try:
        return np.linalg.inv(affine)
    except np.linalg.LinAlgError as error:
        raise VolumeError("The grid of the labelmap is singular; its header is damaged.") from error


def _corners(shape: tuple[int, ...]) -> np.ndarray:
    """[4, 8] homogeneous (i, j, k) of the corner voxels."""
    return np.array(np.meshgrid(*[[0, length - 1] for length in reversed(shape)], [1])).reshape(4, -1)


def _is_identity(ct_to_label: np.ndarray, shape: tuple[int, ...]) -> bool:
    corners = _corners(shape)
    return bool(np.abs(ct_to_label @ corners - corners).max() < _SAME_GRID)


def _round(coordinates: np.ndarray) -> np.ndarray:
    # Half-way points go down whatever the last bits say, so that a finer labelmap is sampled without a moire.
    return np.floor(coordinates + (0.5 - 1e-4))


def _nearest_in_slice(labels: np.ndarray, ct_to_label: np.ndarray, k: int, shape: tuple[int, int]) -> np.ndarray:
    j, i = np.mgrid[: shape[0], : shape[1]]
    at = [_round(row[0] * i + row[1] * j + row[2] * k + row[3]) for row in ct_to_label[:3]]
    inside = np.ones(shape, bool)
    for coordinate, length in zip(at, reversed(labels.shape), strict=True):
        inside &= (coordinate >= 0) & (coordinate < length)
    result = np.zeros(shape, labels.dtype)
    index = tuple(coordinate[inside].astype(np.int64) for coordinate in reversed(at))
    result[inside] = labels[index]
    return result


def _check_overlap(path: Path | str, labels: Grid, ct: Grid) -> None:
    flat = np.flatnonzero(labels.array != 0)  # quicker than of the numbers themselves
    if len(flat) == 0:
        return
    flat = flat[:: max(1, len(flat) // 200_000)]  # as many tell the share well enough
    voxels = np.stack(np.unravel_index(flat, labels.array.shape), axis=-1)
    label_to_ct = _inverse(ct.ijk_to_ras) @ labels.ijk_to_ras
    at = _round(voxels[:, ::-1] @ label_to_ct[:3, :3].T + label_to_ct[:3, 3])
    inside = ((at >= 0) & (at < ct.array.shape[::-1])).all(axis=1)
    if not inside.any():
        raise VolumeError(
            f"None of the labels in '{path}' lies inside the CT; are they the labels of another patient or scan?"
        )
    if (outside := 1 - float(inside.mean())) > _MOST_OUTSIDE:
        warnings.warn(f"{outside:.0%} of the labelled voxels of '{path}' lie outside the CT.", DiffDRRWarning, 2)


def _rows(path: Path, most: int | None = None) -> list[list[str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            return list(islice(csv.reader(stream), most))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise ReadError(f"'{path}' cannot be read as a CSV file: {reason}.") from error


def _columns(path: Path) -> tuple[int, int] | None:
    """The places of the number and the name column in the header of a CSV file, or None."""
    header = [cell.strip().lower().replace("_", "").replace(" ", "") for row in _rows(path, 1) for cell in row]
    number = next((header.index(column) for column in _NUMBER_COLUMNS if column in header), None)
    name = next((header.index(column) for column in _NAME_COLUMNS if column in header), None)
    return None if number is None or name is None else (number, name)


def _has_names(path: Path) -> bool:
    try:
        return _columns(path) is not None
    except ReadError as error:  # a CSV that nobody asked for need not be readable
        _logger.debug("%s", error)
        return False
