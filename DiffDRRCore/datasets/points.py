"""Named points in files: 3D Slicer's markups, legacy fiducials, and CSV.

3D, in mm: Slicer's .mrk.json (coordinateSystem LPS, which is its default, or RAS; points that are not placed are left
out), .fcsv (its `# CoordinateSystem` line: RAS or 0, which is the default, LPS or 1), and CSV with rows "name, R, A, S"
or "R, A, S"; a heading is allowed, and one that names the columns l, p, s turns them into RAS.

2D, in pixels (u, v) = (column, row): CSV with rows "name, u, v", or JSON {"name": [u, v]}.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from DiffDRRCore.errors import DiffDRRError, ReadError
from DiffDRRCore.files import read_text, replacing

_LPS_TO_RAS = (-1.0, -1.0, 1.0)
_SYSTEMS = {"RAS": False, "0": False, "LPS": True, "1": True}
_FCSV_COLUMNS = "id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID"
_LARGEST_FILE = 1 << 26
_SCHEMA = "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/Resources/Schema/markups-schema-v1.0.3.json#"

Named = tuple[str, list[float]]


def read_points(path: str | Path) -> dict[str, Tensor]:
    """Named points [3] float64 in RAS mm of a .mrk.json, .fcsv or .csv file (see the module's text), in its order.

    Points without a name are called by their place from 1, and a name that comes again gets " (2)" and so on.

    Raises ReadError: no such file, another kind of file, no points in it, numbers that are not finite.
    """
    path = Path(path)
    name = path.name.lower()
    if name.endswith(".json"):
        points = _markups(path, _json(path))
    elif name.endswith(".fcsv"):
        points = _fiducials(path, _text(path))
    elif name.endswith((".csv", ".txt")):
        points = _csv(path, 3, "R, A, S in mm")
    else:
        raise ReadError(f"'{path}' is no file of points: give a .mrk.json, .fcsv or .csv file.")
    return _named(path, points)


def read_image_points(path: str | Path) -> dict[str, Tensor]:
    """Named points [2] float64, (u, v) in pixels, of a .csv or .json file. Raises ReadError as `read_points`."""
    path = Path(path)
    if path.suffix.lower() != ".json":
        return _named(path, _csv(path, 2, "u, v in pixels"))
    return points_from_dict(_json(path), 2, f"'{path}'")


def points_from_dict(content, size: int, where: str) -> dict[str, Tensor]:
    """{name: [size] float64} of {name: list of numbers}. Raises ReadError for anything else."""
    fits = isinstance(content, Mapping) and all(
        isinstance(value, list) and len(value) == size and all(map(_is_finite, value)) for value in content.values()
    )
    if not fits:
        raise ReadError(f"{where}: points are an object of names, each with {size} finite numbers.")
    return {str(name): torch.tensor(value, dtype=torch.float64) for name, value in content.items()}


def write_points(path: str | Path, points: Mapping[str, Tensor]) -> None:
    """Write named points [3], RAS mm: .mrk.json (in LPS, as Slicer writes it) or .csv; `read_points` gives them back.

    Raises DiffDRRError for another suffix, or where the file cannot be written.
    """
    path = Path(path)
    rows = {str(name): [float(x) for x in point] for name, point in points.items()}
    if path.name.lower().endswith(".json"):
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(_to_markups(rows), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    elif path.suffix.lower() == ".csv":
        _write_csv(path, ("name", "r", "a", "s"), rows)
    else:
        raise DiffDRRError(f"Cannot write points to '{path}': use .mrk.json or .csv.")


def write_image_points(path: str | Path, points: Mapping[str, Tensor]) -> None:
    """Write named points [2], (u, v) in pixels, as CSV. Raises DiffDRRError where the file cannot be written."""
    _write_csv(Path(path), ("name", "u", "v"), {name: [float(x) for x in point] for name, point in points.items()})


def _write_csv(path: Path, heading: Iterable[str], rows: Mapping[str, list[float]]) -> None:
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([heading, *([name, *map(repr, row)] for name, row in rows.items())])


def _to_markups(rows: Mapping[str, list[float]]) -> dict:
    points = [
        {
            "id": str(number),
            "label": name,
            "position": [sign * x for sign, x in zip(_LPS_TO_RAS, row, strict=True)],
            "positionStatus": "defined",
        }
        for number, (name, row) in enumerate(rows.items(), start=1)
    ]
    markup = {"type": "Fiducial", "coordinateSystem": "LPS", "coordinateUnits": "mm", "controlPoints": points}
    return {"@schema": _SCHEMA, "markups": [markup]}


def _markups(path: Path, content) -> list[Named]:
    found = []
    try:
        for markup in content["markups"]:
            units = markup.get("coordinateUnits", "mm")
            if units != "mm":
                raise ReadError(f"'{path}' has its points in {units!r}; save them in mm.")
            flips = _flips(path, markup.get("coordinateSystem", "LPS"))
            for point in markup.get("controlPoints", []):
                if point.get("positionStatus", "defined") == "defined":
                    found.append((str(point.get("label") or ""), _ras(point["position"], flips)))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, ReadError):
            raise
        raise ReadError(f"'{path}' is no Slicer markups file, or a damaged one.") from error
    return found


def _fiducials(path: Path, text: str) -> list[Named]:
    flips, columns = False, _FCSV_COLUMNS
    lines = [line.strip() for line in text.splitlines()]
    for line in (line[1:] for line in lines if line.startswith("#")):
        key, _, value = (part.strip() for part in line.partition("="))
        if key.lower() == "coordinatesystem":
            flips = _flips(path, value)
        elif key.lower() == "columns":
            columns = value
    names = [name.strip().lower() for name in columns.split(",")]
    if missing := [name for name in ("x", "y", "z", "label") if name not in names]:
        raise ReadError(f"'{path}' is no .fcsv file of points: it has no column {missing[0]}.")
    rows = csv.reader(line for line in lines if line and not line.startswith("#"))
    try:
        cells = [{name: row[place] for place, name in enumerate(names) if place < len(row)} for row in rows]
        return [(row["label"], _ras([row[axis] for axis in "xyz"], flips)) for row in cells]
    except (KeyError, ValueError, csv.Error) as error:
        raise ReadError(f"'{path}' is a damaged .fcsv file: a row lacks x, y, z or a label.") from error


def _csv(path: Path, size: int, what: str) -> list[Named]:
    try:
        rows = [[cell.strip() for cell in row] for row in csv.reader(_text(path).splitlines())]
    except csv.Error as error:
        raise ReadError(f"'{path}' cannot be read as a CSV file: {error}.") from error
    rows = [row for row in rows if any(row) and not row[0].startswith("#")]
    heading = rows.pop(0) if rows and all(_floats([cell]) is None for cell in rows[0]) else []
    flips = size == 3 and [cell.lower() for cell in heading[-3:]] == ["l", "p", "s"]
    points = []
    for row in rows:
        numbers = _floats(row[-size:])
        if numbers is None or not size <= len(row) <= size + 1:
            raise ReadError(f"'{path}' must have {what} in each row, after a name or without; this is not: {row}.")
        points.append((row[0] if len(row) > size else "", _ras(numbers, flips) if flips else numbers))
    return points


def _flips(path: Path, system) -> bool:
    """Whether coordinates of that system need to be turned into RAS."""
    if str(system).upper() not in _SYSTEMS:
        raise ReadError(f"'{path}' has points in the coordinate system {system!r}; LPS and RAS are known.")
    return _SYSTEMS[str(system).upper()]


def _ras(position, flips: bool) -> list[float]:
    x, y, z = (float(value) for value in position)
    return [0.0 - x, 0.0 - y, z] if flips else [x, y, z]


def _floats(cells: list[str]) -> list[float] | None:
    try:
        return [float(cell) for cell in cells]
    except ValueError:
        return None


def _is_finite(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _named(path: Path, points: list[Named]) -> dict[str, Tensor]:
    if not points:
        raise ReadError(f"'{path}' has no points in it.")
    result: dict[str, Tensor] = {}
    for place, (name, position) in enumerate(points, start=1):
        if not all(map(math.isfinite, position)):
            raise ReadError(f"'{path}': the point {name or place} is not finite.")
        base = unique = name or str(place)
        count = 1
        while unique in result:
            count += 1
            unique = f"{base} ({count})"
        result[unique] = torch.tensor(position, dtype=torch.float64)
    return result


def _json(path: Path):
    text = _text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ReadError(f"'{path}' is not JSON: {error}.") from error


def _text(path: Path) -> str:
    return read_text(path, "file of points", _LARGEST_FILE)
