"""dataset.json: which files make which subject. The keys are described in `DiffDRRCore.datasets.folder`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from DiffDRRCore.datasets.folder.biplane import CalibratedCamera, biplane_views
from DiffDRRCore.datasets.folder.keys import check_keys, check_unique, list_of, one_of, path_of, stem, text_of
from DiffDRRCore.errors import ReadError
from DiffDRRCore.imaging.camera_file import INTENSITIES

MANIFEST = "dataset.json"
_LARGEST_FILE = 1 << 28

_TOP = ("title", "root", "subjects")
_SUBJECT = ("name", "ct", "series", "labels", "label_names", "landmarks", "xrays", "biplane", "groups")
_XRAY = (
    "file",
    "name",
    "frame",
    "camera",
    "camera_pose",
    "intensity",
    "pose",
    "header_pose",
    "landmarks",
    "segmentation",
    "body_poses",
)


@dataclass(frozen=True)
class ViewFiles:
    """Where one X-ray and what is known of it lie.

    poses        "pose" and "header_pose", as matrix, file or None, where they are said
    camera_pose  whether the pose in a JSON camera is the "reference" or only a "start"
    """

    name: str
    image: Path
    frame: int | str | None = None
    camera: Path | dict | CalibratedCamera | None = None
    camera_pose: str = "reference"
    intensity: str | None = None
    poses: Mapping[str, Any] = field(default_factory=dict)
    landmarks: Path | dict | None = None
    segmentation: Path | None = None
    body_poses: Mapping[str, Any] = field(default_factory=dict)
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SubjectFiles:
    """Where one subject lies."""

    name: str
    ct: Path
    series: str | None = None
    labels: Path | dict[str, Path] | None = None
    label_names: Path | dict[int, str] | None = None
    landmarks: Path | dict | None = None
    views: tuple[ViewFiles, ...] = ()
    groups: tuple[tuple[str, ...], ...] = ()


def read_manifest(path: Path) -> tuple[str | None, list[SubjectFiles]]:
    """(title, subjects) of a dataset.json. Raises ReadError for anything that is not as the text of `folder` says."""
    content = _load(path)
    where = f"'{path}'"
    check_keys(content, where, _TOP, ("subjects",))
    base = path.parent / text_of(content, "root", where, ".")
    subjects = content["subjects"]
    if not isinstance(subjects, list) or not subjects:
        raise ReadError(f"{where}: 'subjects' must be a list of one subject or more.")
    only = path.absolute().parent.name if len(subjects) == 1 else None
    files = [_subject(item, base, f"{where}, subject {place}", only) for place, item in enumerate(subjects, start=1)]
    check_unique((subject.name for subject in files), "subjects", where)
    return text_of(content, "title", where), files


def _load(path: Path) -> Any:
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise ReadError(f"'{path}' is too large to be a dataset.json.")
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ReadError(f"Cannot read '{path}': {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, ReadError):
            raise
        raise ReadError(f"'{path}' is not JSON: {error}.") from error


def _subject(item: Any, base: Path, where: str, only: str | None) -> SubjectFiles:
    check_keys(item, where, _SUBJECT, ("ct",) if only else ("name", "ct"))
    name = text_of(item, "name", where, only)
    where = f"{where} ({name})"
    xrays, sets = (list_of(item, key, where) for key in ("xrays", "biplane"))
    views = [_view(xray, base, f"{where}, X-ray {place}") for place, xray in enumerate(xrays, start=1)]
    groups = [tuple(group) for group in list_of(item, "groups", where) if _is_names(group, where)]
    for place, content in enumerate(sets, start=1):
        for frame in biplane_views(content, base, f"{where}, biplane {place}"):
            views += [ViewFiles(**values) for values in frame]
            groups.append(tuple(values["name"] for values in frame))
    names = [view.name for view in views]
    check_unique(names, "X-rays", where)
    return SubjectFiles(
        name,
        base / text_of(item, "ct", where),
        text_of(item, "series", where),
        _labels(item, base, where),
        _label_names(item, base, where),
        _points(item, base, where),
        tuple(views),
        _complete(groups, names, where),
    )


def _view(item: Any, base: Path, where: str) -> ViewFiles:
    check_keys(item, where, _XRAY, ("file",))
    image = base / text_of(item, "file", where)
    camera = item.get("camera")
    if not isinstance(camera, dict):
        camera = path_of(item, "camera", base, where)
    segmentation = path_of(item, "segmentation", base, where)
    bodies = item.get("body_poses", {})
    if not isinstance(bodies, dict):
        raise ReadError(f"{where}: 'body_poses' must be an object of poses by the structure's name.")
    return ViewFiles(
        name=text_of(item, "name", where, stem(image)),
        image=image,
        frame=_frame(item, where),
        camera=camera,
        camera_pose=one_of(item, "camera_pose", ("reference", "start"), where) or "reference",
        intensity=one_of(item, "intensity", INTENSITIES, where),
        poses={key: _pose(item, key, base, where) for key in ("pose", "header_pose") if key in item},
        landmarks=_points(item, base, where),
        segmentation=segmentation,
        body_poses={name: _pose(bodies, name, base, where) for name in bodies},
    )


def _frame(item: dict, where: str) -> int | str | None:
    frame = item.get("frame")
    if isinstance(frame, bool) or not isinstance(frame, (int, str, type(None))):
        raise ReadError(f"{where}: 'frame' is a number from 0, 'mean', 'max' or 'min', not {frame!r}.")
    return frame


def _points(item: dict, base: Path, where: str) -> Path | dict | None:
    value = item.get("landmarks")
    return value if isinstance(value, dict) else path_of(item, "landmarks", base, where)


def _pose(item: dict, key: str, base: Path, where: str) -> Any:
    """A matrix as it is, a file as its path."""
    return item[key] if isinstance(item[key], list) else path_of(item, key, base, where)


def _labels(item: dict, base: Path, where: str) -> Path | dict[str, Path] | None:
    value = item.get("labels")
    if not isinstance(value, dict):
        return path_of(item, "labels", base, where)
    if not value:
        raise ReadError(f"{where}: 'labels' names no structure.")
    return {name: path_of(value, name, base, where) or base for name in value}


def _label_names(item: dict, base: Path, where: str) -> Path | dict[int, str] | None:
    value = item.get("label_names")
    if not isinstance(value, dict):
        return path_of(item, "label_names", base, where)
    try:
        return {int(number): str(name) for number, name in value.items()}
    except ValueError as error:
        raise ReadError(f"{where}: 'label_names' must be an object of numbers and names.") from error


def _is_names(group: Any, where: str) -> bool:
    if isinstance(group, list) and group and all(isinstance(name, str) for name in group):
        return True
    raise ReadError(f"{where}: a group is a list of names of X-rays, not {str(group)[:60]!r}.")


def _complete(groups: list[tuple[str, ...]], names: list[str], where: str) -> tuple[tuple[str, ...], ...]:
    """The groups in the order of the views, those that are in none by themselves."""
    grouped = [name for group in groups for name in group]
    if unknown := [name for name in grouped if name not in names]:
        raise ReadError(f"{where}: a group names the X-ray {unknown[0]!r}, which is not there.")
    check_unique(grouped, "places in groups", where)
    groups = groups + [(name,) for name in names if name not in grouped]
    return tuple(sorted(groups, key=lambda group: names.index(group[0])))
