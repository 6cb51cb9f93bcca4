"""Which DICOM files make up the CT that is asked for."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from pydicom.misc import is_dicom

from DiffDRRCore.errors import ReadError
from DiffDRRCore.imaging.dicom_slices import Header, read_header, slices_of
from DiffDRRCore.imaging.dicom_stack import read_stack
from DiffDRRCore.imaging.image_files import Grid, reading


def read_dicom(path: Path, series: str | None = None, uneven: str = "error") -> Grid:
    """The CT in a DICOM folder, the series that a single-slice file belongs to, or an Enhanced CT file; in HU.

    Folders are not searched below their own level; what is no DICOM CT is left aside, localizers too. `series` is a
    SeriesInstanceUID. Raises ReadError; see `read_stack` for `uneven` and for the warnings.
    """
    headers = _choose(path, _ct_headers(path), series) if path.is_dir() else _series_of_file(path, series)
    slices = [item for header in headers for item in slices_of(header)]
    return read_stack(path, slices, uneven)


def _series_of_file(path: Path, series: str | None) -> list[Header]:
    header = read_header(path)
    if header is None:
        raise ReadError(f"'{path}' is a DICOM file, but not a CT.")
    if header.is_localizer:
        raise ReadError(f"'{path}' is a localizer (scout) of a CT scan, not a slice of it.")
    if series not in (None, header.series):
        raise ReadError(f"'{path}' belongs to the series {header.series}, not to {series}.")
    if header.is_multi_frame:
        return [header]
    return _choose(path.parent, _ct_headers(path.parent), header.series)


def _ct_headers(folder: Path) -> list[Header]:
    """The CT files in a folder, localizers left out. Raises ReadError where there are none."""
    with reading(folder):
        files = sorted(item for item in folder.iterdir() if item.is_file())
        dicom = [item for item in files if is_dicom(item)]
    found = [header for item in dicom if (header := read_header(item)) is not None]
    headers = [header for header in found if not header.is_localizer]
    if headers:
        return headers
    if found:
        raise ReadError(f"'{folder}' holds no CT slices, only {len(found)} localizer (scout) images.")
    if dicom:
        raise ReadError(f"'{folder}' holds no CT: its {len(dicom)} DICOM files are of other kinds.")
    raise ReadError(f"'{folder}' holds no DICOM files{_hint(folder, files)}.")


def _hint(folder: Path, files: list[Path]) -> str:
    subfolders = sorted(item.name for item in folder.iterdir() if item.is_dir())
    if subfolders:
        return f"; give the one of its subfolders that has the slices ({', '.join(subfolders[:5])})"
    return "; to read an image file, give its own path" if files else ": it is empty"


def _choose(folder: Path, headers: list[Header], series: str | None) -> list[Header]:
    by_series = defaultdict(list)
    for header in headers:
        by_series[header.series].append(header)
    if series is None and len(by_series) == 1:
        series = headers[0].series
    if series not in by_series:
        listed = "; ".join(_describe(uid, items) for uid, items in by_series.items())
        problem = f"holds {len(by_series)} CT series" if series is None else f"holds no CT series {series}"
        raise ReadError(f"'{folder}' {problem}; choose one with series=UID, from: {listed}.")
    chosen = by_series[series]
    if len(chosen) > 1 and any(header.is_multi_frame for header in chosen):
        names = ", ".join(f"'{header.path.name}'" for header in chosen[:5])
        raise ReadError(f"The series {series} in '{folder}' has several multi-frame files ({names}); give one of them.")
    return chosen


def _describe(uid: str, headers: list[Header]) -> str:
    count = f"{len(headers)} file" + ("s" if len(headers) > 1 else "")
    return f"{uid} ('{headers[0].description}', {count})"
