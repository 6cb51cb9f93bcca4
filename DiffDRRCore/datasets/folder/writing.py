"""One subject of any dataset, written as a folder that `Folder` reads back."""

from __future__ import annotations

import json
import re
import shutil
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.uid import generate_uid
from torch import Tensor

from DiffDRRCore.datasets.dataset import Subject, View
from DiffDRRCore.datasets.folder.manifest import MANIFEST
from DiffDRRCore.datasets.points import write_image_points, write_points
from DiffDRRCore.errors import DiffDRRError
from DiffDRRCore.files import check_folder, replacing
from DiffDRRCore.geometry import Pose
from DiffDRRCore.imaging.camera_file import write_camera
from DiffDRRCore.imaging.image_files import WRITABLE
from DiffDRRCore.imaging.xray import XRay
from DiffDRRCore.imaging.xray_dicom_writing import write_xray_dicom
from DiffDRRCore.imaging.xray_writing import write_array

FORMATS = ("png", "dicom", "nii.gz", "nrrd", "tif")
_SUFFIXES = {"dicom": ".dcm"}
_LARGEST_PNG = 65535


def write_subject(
    subject: Subject,
    folder: str | Path,
    xray_format: str = "png",
    xrays: Iterable[int | str] | None = None,
    ct_format: str = "nii.gz",
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write one subject to a new folder; returns the path of its dataset.json.

    ct.nii.gz, labels.nrrd (with names), landmarks.mrk.json, and for each X-ray in xrays/ the image, its JSON camera
    with the reference pose, landmarks (.points.csv) and segmentation (.segmentation.png). dataset.json names them all,
    with reference, header and body poses and groups. Geometry and pixels are exact, but for two: NIfTI keeps the CT's
    grid as float32 (about 1e-5 mm; ct_format "nrrd" keeps it exactly), and DICOM X-rays hold whole numbers.

    Args:
        folder: need not be there; if it is, it must be empty.
        xray_format: "png" (16 bit for whole numbers 0..65535; an X-ray of other numbers is written as .tif in float32,
            since PNG cannot hold it), "dicom" (`imaging.xray_dicom_writing`; what it cannot hold exactly is in the JSON
            beside, which `Folder` follows), "nii.gz", "nrrd" or "tif".
        xrays: names or places from 0; default: all.
        ct_format: "nii.gz", "nii", "nrrd" or "mha".
        progress: called with (X-rays written, X-rays in all).

    Raises DiffDRRError: the folder is not empty or cannot be written to, an unknown format, an X-ray that is not there;
    then nothing is left behind.
    """
    folder = Path(folder)
    names = list(subject.view_names) if xrays is None else [subject.views.name(key) for key in xrays]
    _check(folder, xray_format, ct_format)
    temporary = folder.absolute().parent / f".{uuid.uuid4().hex[:12]}-{folder.name}"
    try:
        temporary.mkdir(parents=True)
        content = _write(subject, temporary, names, xray_format, ct_format, progress)
        with replacing(temporary / MANIFEST) as file:
            file.write_text(json.dumps({"subjects": [content]}, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        if folder.exists():
            folder.rmdir()
        temporary.rename(folder)
    except OSError as error:
        raise DiffDRRError(f"Cannot write the folder '{folder}': {error.strerror or error}.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder / MANIFEST


def _check(folder: Path, xray_format: str, ct_format: str) -> None:
    """Before anything is read or written."""
    if xray_format not in FORMATS:
        raise DiffDRRError(f"X-rays are written as {', '.join(FORMATS)}, not {xray_format!r}.")
    if f".{ct_format}" not in WRITABLE:
        raise DiffDRRError(f"A CT is written as {', '.join(suffix[1:] for suffix in WRITABLE)}, not {ct_format!r}.")
    check_folder(folder)
    if folder.exists() and any(folder.iterdir()):
        raise DiffDRRError(f"The folder '{folder}' is not empty; give a new one.")


def _write(
    subject: Subject,
    folder: Path,
    names: list[str],
    xray_format: str,
    ct_format: str,
    progress: Callable[[int, int], None] | None,
) -> dict[str, Any]:
    """Write everything but dataset.json; returns its subject."""
    volume, content = subject.volume, {"name": subject.name, "ct": f"ct.{ct_format}"}
    if volume.labels is not None:
        content["labels"] = "labels.nrrd"
    volume.write(folder / content["ct"], folder / "labels.nrrd" if volume.labels is not None else None)
    if subject.landmarks:
        content["landmarks"] = "landmarks.mrk.json"
        write_points(folder / "landmarks.mrk.json", subject.landmarks)
    (folder / "xrays").mkdir()
    content["xrays"], study = [], generate_uid()
    for done, (name, stem) in enumerate(zip(names, _stems(names), strict=True), start=1):
        dicom = {"isocenter": volume.center, "patient": subject.name, "study": study}
        content["xrays"].append(_write_view(folder, subject.views[name], stem, xray_format, dicom))
        if progress is not None:
            progress(done, len(names))
    groups = [[name for name in group if name in names] for group in subject.groups]
    if groups := [group for group in groups if len(group) > 1]:
        content["groups"] = groups
    return content


def _write_view(folder: Path, view: View, stem: str, xray_format: str, dicom: dict[str, Any]) -> dict[str, Any]:
    """The files of one X-ray; returns its entry."""
    place, xray = folder / "xrays", view.xray
    file = place / f"{stem}{_suffix(xray.image, xray_format)}"
    if file.suffix == ".dcm":
        meta = dict(xray.meta)
        pose = xray.pose if view.header_pose is None else view.header_pose
        write_xray_dicom(file, xray, pose, **dicom)
        write_camera(place / f"{stem}.json", xray.camera, xray.pose, meta.pop("intensity", None), meta)
    else:
        XRay(xray.image.detach(), xray.camera, xray.pose, xray.meta).write(file)
    content = {
        "name": view.name,
        "file": f"xrays/{file.name}",
        "camera": f"xrays/{stem}.json",
        "pose": _numbers(xray.pose),
        "header_pose": _numbers(view.header_pose),
    }
    if view.landmarks:
        content["landmarks"] = f"xrays/{stem}.points.csv"
        write_image_points(folder / content["landmarks"], view.landmarks)
    if view.segmentation is not None:
        content["segmentation"] = f"xrays/{stem}.segmentation.png"
        _write_segmentation(folder / content["segmentation"], view.segmentation)
    if view.body_poses:
        content["body_poses"] = {name: _numbers(pose) for name, pose in view.body_poses.items()}
    return content


def _suffix(image: Tensor, xray_format: str) -> str:
    if xray_format != "png":
        return _SUFFIXES.get(xray_format, f".{xray_format}")
    fits = bool((image == image.round()).all()) and float(image.min()) >= 0 and float(image.max()) <= _LARGEST_PNG
    return ".png" if fits else ".tif"


def _write_segmentation(path: Path, segmentation: Tensor) -> None:
    array = segmentation.cpu().numpy()
    if array.min() < 0:
        raise DiffDRRError(f"Cannot write '{path.name}': a segmentation has no numbers below 0.")
    write_array(path, array.astype(np.uint8 if array.max() < 256 else np.uint16))


def _numbers(pose: Pose | None) -> list[list[float]] | None:
    return None if pose is None else pose.matrix.detach().double().tolist()


def _stems(names: list[str]) -> list[str]:
    """File names for the names of X-rays, unique on systems that ignore case too."""
    stems: list[str] = []
    for name in names:
        base = stem = re.sub(r"[^\w-]+", "_", name).strip("_") or "xray"
        count = 1
        while stem.lower() in (other.lower() for other in stems):
            count += 1
            stem = f"{base}_{count}"
        stems.append(stem)
    return stems
