"""Folders without a dataset.json: what their files' names say. The names are described in `datasets.folder`."""

from __future__ import annotations

import re
from pathlib import Path

import pydicom.misc

from DiffDRRCore.datasets.folder.manifest import MANIFEST, SubjectFiles, ViewFiles, read_manifest
from DiffDRRCore.datasets.folder.names import check_unique, stem
from DiffDRRCore.errors import ReadError
from DiffDRRCore.imaging.xray_reading import camera_path_beside

_VOLUMES = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")
_POINTS = (".mrk.json", ".json", ".fcsv", ".csv")
_IMAGES = (".dcm", ".dicom", ".ima", ".png", ".tif", ".tiff", ".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")
_POSES = (".pose.tfm", ".pose.json", ".pose.txt", ".pose.h5")
_SEGMENTATIONS = tuple(f".segmentation{suffix}" for suffix in (".png", ".tif", ".nii.gz", ".nii", ".nrrd", ".mha"))


def find_subjects(folder: Path) -> list[SubjectFiles]:
    """The folder itself, or each of its subfolders that is one or has a dataset.json. Raises ReadError for none."""
    own = subject_in(folder)
    if own is not None:
        return [own]
    subjects: list[SubjectFiles] = []
    for item in _items(folder):
        if item.is_dir() and (item / MANIFEST).is_file():
            subjects += read_manifest(item / MANIFEST)[1]
        elif item.is_dir() and (subject := subject_in(item)) is not None:
            subjects.append(subject)
    if not subjects:
        raise ReadError(
            f"'{folder}' is no dataset: neither it nor a folder in it has a {MANIFEST}, a CT called ct.nii.gz, ct.nrrd "
            "or ct.mha, or a DICOM folder called ct."
        )
    check_unique((subject.name for subject in subjects), "subjects", f"'{folder}'")
    return subjects


def looks_like_dataset(folder: Path) -> bool:
    """Whether `Folder` would find a subject, judged by names alone."""
    try:
        if (folder / MANIFEST).is_file() or _cts(folder):
            return True
        return any(item.is_dir() and ((item / MANIFEST).is_file() or _cts(item)) for item in _items(folder))
    except ReadError:
        return False


def subject_in(folder: Path) -> SubjectFiles | None:
    """What the files of one folder make, or None where it has no CT."""
    cts = _cts(folder)
    if not cts:
        return None
    return SubjectFiles(
        name=folder.absolute().name,
        ct=_only(cts, "CTs"),
        labels=_only(_called(folder, "labels", _VOLUMES), "labelmaps"),
        landmarks=_only(_called(folder, "landmarks", _POINTS), "files of landmarks"),
        views=(views := _views(folder / "xrays")),
        groups=tuple((view.name,) for view in views),
    )


def _cts(folder: Path) -> list[Path]:
    folders = [item for item in _items(folder) if item.is_dir() and item.name.lower() == "ct"]
    return folders + _called(folder, "ct", (*_VOLUMES, ".dcm"))


def _called(folder: Path, name: str, suffixes: tuple[str, ...]) -> list[Path]:
    names = {name + suffix for suffix in suffixes} | {f"{name}.seg.nrrd"}
    return [item for item in _items(folder) if item.is_file() and item.name.lower() in names]


def _only(found: list[Path], what: str) -> Path | None:
    if len(found) > 1:
        names = " and ".join(f"'{path.name}'" for path in found)
        raise ReadError(f"'{found[0].parent}' has two {what}, {names}; keep one, or say in a {MANIFEST} which it is.")
    return found[0] if found else None


def _views(folder: Path) -> tuple[ViewFiles, ...]:
    if not folder.is_dir():
        return ()
    images = [item for item in _items(folder) if item.is_file() and _is_image(item)]
    check_unique(map(stem, images), "X-rays", f"'{folder}'")
    return tuple(_view(image) for image in images)


def _is_image(path: Path) -> bool:
    name = path.name.lower()
    if name.endswith(_SEGMENTATIONS):
        return False
    try:
        return name.endswith(_IMAGES) or (not path.suffix and pydicom.misc.is_dicom(path))
    except OSError as error:
        raise ReadError(f"Cannot read '{path}': {error.strerror or error}.") from error


def _view(image: Path) -> ViewFiles:
    pose = _beside(image, _POSES)
    camera = camera_path_beside(image)
    return ViewFiles(
        name=stem(image),
        image=image,
        camera=camera if camera.is_file() else None,
        poses={} if pose is None else {"pose": pose},
        landmarks=_beside(image, (".points.csv", ".points.json")),
        segmentation=_beside(image, _SEGMENTATIONS),
    )


def _beside(image: Path, suffixes: tuple[str, ...]) -> Path | None:
    places = (image.with_name(stem(image) + suffix) for suffix in suffixes)
    return _only([place for place in places if place.is_file()], "files for one X-ray")


def _items(folder: Path) -> list[Path]:
    """What is in a folder, hidden files aside; 2 before 10."""
    try:
        items = [item for item in folder.iterdir() if not item.name.startswith(".")]
    except OSError as error:
        raise ReadError(f"Cannot list the folder '{folder}': {error.strerror or error}.") from error
    return sorted(
        items,
        key=lambda item: [
            (part.isdigit(), int(part) if part.isdigit() else 0, part) for part in re.split(r"(\d+)", item.name)
        ],
    )
