"""dataset.json: which files make which subject. The keys are described in `DiffDRRCore.datasets.folder`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from DiffDRRCore import values
from DiffDRRCore.datasets.folder.biplane import BIPLANE, CalibratedCamera, biplane_views
from DiffDRRCore.datasets.folder.names import check_unique, stem
from DiffDRRCore.errors import DiffDRRError, ReadError
from DiffDRRCore.imaging.camera_file import INTENSITIES
from DiffDRRCore.values import Key

MANIFEST = "dataset.json"
_LARGEST_FILE = 1 << 28


def _text_or(kind: type) -> values.Check:
    """The path of a file; or a list, or a section, that is checked where it is used."""
    return lambda where, value: value if isinstance(value, kind) else values.text(where, value)


def _xray(where: str, content: Any) -> dict[str, Any]:
    """With "poses": those that are said, null among them, which is not the same as nothing."""
    checked = values.section(where, content, _XRAY)
    return checked | {"poses": {name: checked[name] for name in ("pose", "header_pose") if name in content}}


def _frame(where: str, value: Any) -> int | str:
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise ReadError(f"{where} is a number from 0, 'mean', 'max' or 'min', not {value!r}.")
    return value


def _labels(where: str, value: Any) -> str | dict[str, str]:
    return values.each(values.text, least=1)(where, value) if isinstance(value, dict) else values.text(where, value)


def _label_names(where: str, value: Any) -> str | dict[int, str]:
    if not isinstance(value, dict):
        return values.text(where, value)
    try:
        return {int(number): str(name) for number, name in value.items()}
    except ValueError as error:
        raise ReadError(f"{where} must be a section of numbers and names.") from error


_TEXT = Key(values.optional(values.text), None)
_POINTS = Key(values.optional(_text_or(dict)), None)
_POSE = values.optional(_text_or(list))
_XRAY = {
    "file": Key(values.text),
    "name": _TEXT,
    "frame": Key(values.optional(_frame), None),
    "camera": Key(values.optional(_text_or(dict)), None),
    "camera_pose": Key(values.choice("reference", "start"), "reference"),
    "intensity": Key(values.choice(*INTENSITIES), None),
    "pose": Key(_POSE, None),
    "header_pose": Key(_POSE, None),
    "landmarks": _POINTS,
    "segmentation": _TEXT,
    "body_poses": Key(values.each(_POSE), {}),
}
_SUBJECT = {
    "name": _TEXT,
    "ct": Key(values.text),
    "series": _TEXT,
    "labels": Key(_labels, None),
    "label_names": Key(_label_names, None),
    "landmarks": _POINTS,
    "xrays": Key(values.several(_xray, least=0), []),
    "biplane": Key(values.several(values.of(BIPLANE), least=0), []),
    "groups": Key(values.several(values.several(values.text), least=0), []),
}
_TOP = {"title": _TEXT, "root": Key(values.text, "."), "subjects": Key(values.several(values.of(_SUBJECT)))}


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
    where = f"'{path}'"
    try:
        content = values.section("", _load(path), _TOP)
    except DiffDRRError as error:
        raise ReadError(f"{where}: {error}") from error
    subjects = content["subjects"]
    if len(subjects) == 1:
        subjects[0]["name"] = subjects[0]["name"] or path.absolute().parent.name
    for place, subject in enumerate(subjects):
        if subject["name"] is None:
            raise ReadError(f"{where}: subjects[{place}] lacks 'name'.")
    check_unique((subject["name"] for subject in subjects), "subjects", where)
    base = path.parent / content["root"]
    return content["title"], [_subject(subject, base, f"{where}, subject {subject['name']}") for subject in subjects]


def _load(path: Path) -> Any:
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise DiffDRRError("it is too large to be a dataset.json.")
        return values.parse_json(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DiffDRRError(f"cannot read it: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        raise DiffDRRError(f"it is not JSON: {error}.") from error


def _subject(item: dict[str, Any], base: Path, where: str) -> SubjectFiles:
    """The files of a subject, checked as `_SUBJECT`."""
    views = [_view(xray, base) for xray in item["xrays"]]
    groups = [tuple(group) for group in item["groups"]]
    for place, content in enumerate(item["biplane"]):
        for frame in biplane_views(content, base, f"{where}, biplane[{place}]"):
            views += [ViewFiles(**known) for known in frame]
            groups.append(tuple(known["name"] for known in frame))
    names = [view.name for view in views]
    check_unique(names, "X-rays", where)
    return SubjectFiles(
        item["name"],
        base / item["ct"],
        item["series"],
        _placed(item["labels"], base),
        item["label_names"] if isinstance(item["label_names"], dict) else _placed(item["label_names"], base),
        _points(item, base),
        tuple(views),
        _complete(groups, names, where),
    )


def _view(item: dict[str, Any], base: Path) -> ViewFiles:
    """The files of an X-ray, checked as `_XRAY`."""
    image = base / item["file"]
    return ViewFiles(
        name=item["name"] or stem(image),
        image=image,
        frame=item["frame"],
        camera=item["camera"] if isinstance(item["camera"], dict) else _placed(item["camera"], base),
        camera_pose=item["camera_pose"],
        intensity=item["intensity"],
        poses={name: _placed(pose, base) for name, pose in item["poses"].items()},
        landmarks=_points(item, base),
        segmentation=_placed(item["segmentation"], base),
        body_poses={name: _placed(pose, base) for name, pose in item["body_poses"].items()},
    )


def _points(item: dict[str, Any], base: Path) -> Path | dict | None:
    value = item["landmarks"]
    return value if isinstance(value, dict) else _placed(value, base)


def _placed(value: Any, base: Path) -> Any:
    """Paths for texts, also in a dictionary; the rest as it is."""
    if isinstance(value, dict):
        return {name: _placed(inner, base) for name, inner in value.items()}
    return base / value if isinstance(value, str) else value


def _complete(groups: list[tuple[str, ...]], names: list[str], where: str) -> tuple[tuple[str, ...], ...]:
    """The groups in the order of the views, those that are in none by themselves."""
    grouped = [name for group in groups for name in group]
    if unknown := [name for name in grouped if name not in names]:
        raise ReadError(f"{where}: a group names the X-ray {unknown[0]!r}, which is not there.")
    check_unique(grouped, "places in groups", where)
    groups = groups + [(name,) for name in names if name not in grouped]
    return tuple(sorted(groups, key=lambda group: names.index(group[0])))
