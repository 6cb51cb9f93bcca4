"""Datasets on the command line: what is in one, and one subject of it as a folder."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from DiffDRRCore.cli import arguments, output
from DiffDRRCore.errors import DiffDRRError, ReadError

if TYPE_CHECKING:
    from DiffDRRCore.datasets import Dataset, Subject

_LARGEST_TRANSFORM = 1 << 20
_MOST_NAMES = 12
# Options with which datasets give voxels and pixels as they are in the file.
_AS_IN_FILE = {"DeepFluoro": {"i0": None, "crop": 0}, "Ljubljana": {"subtracted": False}}


def is_dataset(path: Path) -> bool:
    """Whether `open_dataset` is what reads a path: told by what is in it, where the name leaves it open."""
    from DiffDRRCore.datasets.opening import is_hdf5

    if path.is_dir():
        from DiffDRRCore.datasets.folder import looks_like_dataset

        return looks_like_dataset(path)
    if path.suffix.lower() == ".json":
        return _has_subjects(path)
    if not path.is_file() or not is_hdf5(path):
        if path.is_file() and path.suffix.lower() in (".h5", ".hdf5"):
            raise ReadError(f"'{path}' is not an HDF5 file, or its download is not complete.")
        return False
    return not _is_transform(path)


def describe(path: Path, subject: int | str | None = None) -> tuple[dict, list[str]]:
    """(values, lines for people) of a dataset, or of one of its subjects."""
    dataset = _as_in_file(path)
    if subject is not None:
        return _describe_subject(dataset, dataset.subjects[_key(dataset.subject_names, subject)])
    return _describe_dataset(dataset)


def export(options) -> dict:
    """`convert dataset`: write one subject; returns what to report."""
    from DiffDRRCore.datasets import open_dataset
    from DiffDRRCore.datasets.folder import write_subject

    dataset = open_dataset(options.input) if options.prepared else _as_in_file(options.input)
    subject = dataset.subjects[_chosen(dataset, options.subject)]
    names = chosen_names(subject.view_names, options.xrays)
    with tqdm(total=len(names), desc="convert", unit=" X-rays", file=sys.stderr, disable=options.json or None) as bar:
        manifest = write_subject(
            subject, options.output, options.format or "png", names, progress=lambda done, _: bar.update(done - bar.n)
        )
    return {"output": str(manifest), "subject": subject.name, "xrays": names}


def _as_in_file(path: Path) -> Dataset:
    from DiffDRRCore.datasets import open_dataset

    dataset = open_dataset(path)
    options = _AS_IN_FILE.get(type(dataset).__name__)
    return open_dataset(path, **options) if options else dataset


def chosen_names(names: tuple[str, ...], text: str | None) -> list[str]:
    """The X-rays that --xrays names: all, FIRST:LAST (places from 0, the last included), or names and places.

    Raises DiffDRRError for one that is not there.
    """
    if text is None:
        return list(names)
    first, colon, last = text.partition(":")
    if colon and text not in names:
        try:
            low, high = int(first or 0), int(last or len(names) - 1)
        except ValueError as error:
            raise DiffDRRError(f"--xrays is FIRST:LAST in whole numbers, or names; not {text!r}.") from error
        if not 0 <= low <= high < len(names):
            raise DiffDRRError(f"--xrays {text}: there are X-rays 0 to {len(names) - 1}.")
        return list(names[low : high + 1])
    return [_name(names, part.strip(), "X-ray") for part in text.split(",")]


def _describe_dataset(dataset: Dataset) -> tuple[dict, list[str]]:
    rows = []
    for subject in tqdm(dataset.subjects, desc="info", unit=" subjects", file=sys.stderr, leave=False, disable=None):
        rows.append({"name": subject.name, "xrays": len(subject.view_names), "groups": len(subject.groups)})
    values = {"kind": "dataset", "title": dataset.title, "subjects": rows}
    table = output.table(
        ["subject", "X-rays", "taken at once"], [[row["name"], row["xrays"], _groups(row)] for row in rows]
    )
    return values, [f"dataset: {dataset.title}, {len(rows)} subjects", "", *table]


def _groups(row: dict) -> str:
    return "one by one" if row["groups"] == row["xrays"] else f"in {row['groups']} groups"


def _describe_subject(dataset: Dataset, subject: Subject) -> tuple[dict, list[str]]:
    volume = subject.volume
    values = {
        "kind": "subject",
        "dataset": dataset.title,
        "name": subject.name,
        "size (i, j, k)": list(volume.shape[::-1]),
        "spacing (mm)": [round(x, 6) for x in volume.spacing.tolist()],
        "centre (RAS, mm)": [round(x, 3) for x in volume.center.tolist()],
        "labels": {number: volume.label_names.get(number, "") for number in sorted(volume.present_labels - {0})},
        "landmarks (RAS, mm)": {name: point.tolist() for name, point in subject.landmarks.items()},
        "X-rays": list(subject.view_names),
        "groups": [list(group) for group in subject.groups if len(group) > 1],
    }
    if subject.view_names:
        values |= _describe_view(subject)
    shown = {
        "labels": [f"{number} {name}".strip() for number, name in values["labels"].items()],
        "landmarks (RAS, mm)": [
            f"{name} ({', '.join(f'{x:.1f}' for x in point)})" for name, point in values["landmarks (RAS, mm)"].items()
        ],
        "X-rays": values["X-rays"],
        "groups": [" + ".join(group) for group in values["groups"]],
    }
    texts = {name: _few(shown[name]) if name in shown else value for name, value in values.items()}
    return values, [f"{name:26} {value}" for name, value in texts.items()]


def _describe_view(subject: Subject) -> dict:
    """Of the first X-ray, which is like the others."""
    try:
        view = subject.views[0]
    except DiffDRRError as error:  # what else there is can still be told
        return {"first X-ray": f"cannot be read: {error}"}
    camera = view.xray.camera
    return {
        "first X-ray": view.name,
        "image (rows, columns)": [camera.height, camera.width],
        "source_to_detector (mm)": round(float(camera.source_to_detector), 6),
        "pixel_spacing (mm)": [round(x, 6) for x in camera.pixel_spacing.tolist()],
        "view_from": camera.view_from,
        "intensity": view.xray.meta.get("intensity", "unknown"),
        "reference pose": view.xray.pose is not None,
        "header pose": view.header_pose is not None,
        "landmarks in image": len(view.landmarks),
        "segmentation": view.segmentation is not None,
    }


def _few(items: list[str]) -> str:
    more = f", ... ({len(items)} in all)" if len(items) > _MOST_NAMES else ""
    return ", ".join(items[:_MOST_NAMES]) + more or "none"


def _chosen(dataset: Dataset, text: str | None) -> str:
    names = dataset.subject_names
    if text is None and len(names) > 1:
        raise DiffDRRError(f"Choose a subject by --subject; there are: {_few(list(names))}.")
    return names[0] if text is None else _key(names, text)


def _key(names: tuple[str, ...], text: int | str) -> int | str:
    """A name, or else a place from 0."""
    return text if text in names else arguments.number_or_word(str(text))


def _name(names: tuple[str, ...], text: str, what: str) -> str:
    from DiffDRRCore.datasets.dataset import Lazy

    return Lazy(names, lambda name: name, what)[_key(names, text)]


def _has_subjects(path: Path) -> bool:
    import json

    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):  # whoever reads it as something else will say what is wrong
        return False
    return isinstance(content, dict) and "subjects" in content


def _is_transform(path: Path) -> bool:
    """Whether an HDF5 file is an ITK transform: a small one with that group's name in it."""
    return path.stat().st_size < _LARGEST_TRANSFORM and b"TransformGroup" in path.read_bytes()
