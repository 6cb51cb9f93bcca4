"""Runs of X-ray images: a file with many frames (DICOM, NIfTI, TIFF, ...), or a folder of numbered images."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterable
from pathlib import Path

from DiffDRRCore.errors import ReadError
from DiffDRRCore.geometry.camera import Camera
from DiffDRRCore.imaging.xray import XRay
from DiffDRRCore.imaging.xray_dicom import XRayDicom
from DiffDRRCore.imaging.xray_reading import count_pages, given_camera, is_dicom, read_dicom_parts

_BESIDE = (".json", ".csv", ".txt", ".xml", ".md")  # what lies beside images


def frame_numbers(path: str | Path) -> list[int]:
    """Numbers of the frames that there are: from 0 in one file, the last number in the names of a folder's images.

    Raises ReadError where there are none, or two files of a folder have the same number.
    """
    path = Path(path)
    if path.is_dir():
        return sorted(_numbered(path))
    if not path.is_file():
        raise ReadError(f"There is no file '{path}'.")
    return list(range(XRayDicom(path).frames if is_dicom(path) else count_pages(path)))


def read_run(
    path: str | Path, frames: Iterable[int] | None = None, camera: Camera | str | Path | None = None
) -> Generator[tuple[int, XRay], None, None]:
    """(number, X-ray) of the frames of a run, one after the other.

    Args:
        frames: their numbers; None is all.  camera: as for `XRay.read`, of all of them.

    Raises ReadError as `XRay.read` and `frame_numbers`, and for a frame that is not there.
    """
    path = Path(path)
    there = frame_numbers(path)
    wanted = there if frames is None else list(frames)
    if missing := sorted(set(wanted) - set(there)):
        raise ReadError(f"'{path}' has no frame {missing[0]}; it has {there[0]} to {there[-1]}.")
    if path.is_dir():
        files = _numbered(path)
        for number in wanted:
            yield number, XRay.read(files[number], camera=camera)
    elif is_dicom(path):
        file, given = XRayDicom(path), given_camera(camera)
        for number in wanted:
            yield number, XRay(*read_dicom_parts(file, number, given))
    else:
        for number in wanted:
            yield number, XRay.read(path, frame=number if len(there) > 1 else None, camera=camera)


def _numbered(folder: Path) -> dict[int, Path]:
    try:
        names = sorted(place for place in folder.iterdir() if place.is_file())
    except OSError as error:
        raise ReadError(f"Cannot list the folder '{folder}': {error.strerror or error}.") from error
    found: dict[int, Path] = {}
    for path in names:
        stem = path.name.lower().removesuffix(".gz").rpartition(".")[0] or path.name
        numbers = re.findall(r"\d+", stem)
        if path.name.startswith(".") or path.suffix.lower() in _BESIDE or not numbers:
            continue
        if int(numbers[-1]) in found:
            first = found[int(numbers[-1])].name
            raise ReadError(f"In '{folder}', '{first}' and '{path.name}' are both frame {int(numbers[-1])}.")
        found[int(numbers[-1])] = path
    if not found:
        raise ReadError(f"There are no numbered images in the folder '{folder}'.")
    return found
