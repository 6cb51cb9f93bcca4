"""A table of poses (.csv): one row for each body and frame, to read in a spreadsheet and back without loss.

Columns: body, frame, then the first three rows of the matrix: r11 r12 r13 x_mm r21 r22 r23 y_mm r31 r32 r33 z_mm. The
twelve cells of a frame without a pose are empty.
"""

from __future__ import annotations

import csv
from io import StringIO
from pathlib import Path

import torch
from torch import Tensor

from DiffDRRCore.errors import DiffDRRError, GeometryError, ReadError
from DiffDRRCore.files import read_text, replacing
from DiffDRRCore.geometry.motion_files.motion import WHAT, WITHOUT, Motion, number
from DiffDRRCore.geometry.tensors import homogeneous

_NUMBERS = ("r11", "r12", "r13", "x_mm", "r21", "r22", "r23", "y_mm", "r31", "r32", "r33", "z_mm")
COLUMNS = ("body", "frame", *_NUMBERS)


def write_table(path: str | Path, motions: dict[str, Motion]) -> None:
    """Write motions; `read_table` gives them back exactly.

    Raises DiffDRRError where there is no frame, a body has no name, or the file cannot be written.
    """
    path = Path(path)
    if not any(motion.frames for motion in motions.values()):
        raise DiffDRRError(f"There is no frame to write to '{path}'.")
    if bad := [name for name in motions if name != name.strip() or not name.isprintable() or not name]:
        raise DiffDRRError(f"The body {bad[0]!r} cannot be written: its name is empty or has blanks about it.")
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for name, motion in motions.items():
            for frame, matrix in zip(motion.frames, motion.matrices, strict=True):
                writer.writerow([name, frame, *_cells(matrix)])


def read_table(path: str | Path) -> dict[str, Motion]:
    """{body: motion} of a table; its rows and columns may be in any order.

    Raises ReadError, with the line, for a missing or unknown column, a body and frame that stand there twice, or a pose
    that is not rigid or not complete.
    """
    path = Path(path)
    reader = csv.DictReader(StringIO(read_text(path, WHAT), newline=""), restkey="more", skipinitialspace=True)
    _check_columns(path, reader.fieldnames or ())
    poses: dict[str, dict[int, Tensor]] = {}
    try:
        for row in reader:
            name, frame, matrix = _row(f"'{path}', line {reader.line_num}", row)
            if frame in poses.setdefault(name, {}):
                raise ReadError(f"'{path}', line {reader.line_num}: frame {frame} of '{name}' is there already.")
            poses[name][frame] = matrix
    except csv.Error as error:
        raise ReadError(f"'{path}', line {reader.line_num}: {error}.") from error
    if not poses:
        raise ReadError(f"'{path}' has no poses.")
    return {name: _motion(by_frame) for name, by_frame in poses.items()}


def is_table(path: str | Path) -> bool:
    """Whether the file begins with titles as `write_table` writes them. Raises ReadError where it cannot be read."""
    first = read_text(path, WHAT).partition("\n")[0]
    return {"body", "frame"} <= {cell.strip().lower() for cell in first.split(",")}


def _check_columns(path: Path, found) -> None:
    if len(found) != len(set(found)) or set(found) != set(COLUMNS):
        missing = [column for column in COLUMNS if column not in found]
        what = f"lacks {', '.join(missing)}" if missing else "has a column too many, or one twice"
        raise ReadError(f"'{path}' {what}: a table of poses has the columns {', '.join(COLUMNS)}.")


def _row(where: str, row: dict) -> tuple[str, int, Tensor]:
    cells = [row[column] for column in _NUMBERS]
    if None in row.values() or "more" in row:
        raise ReadError(f"{where}: expected {len(COLUMNS)} cells.")
    name = row["body"].strip()
    if not name:
        raise ReadError(f"{where}: the body has no name.")
    try:
        frame = int(row["frame"])
        matrix = _matrix(cells) if any(cell.strip() for cell in cells) else WITHOUT
        Motion((frame,), matrix[None])
    except GeometryError as error:
        raise ReadError(f"{where}: {error}") from error
    except ValueError as error:
        raise ReadError(f"{where}: the frame is a whole number, and a pose twelve numbers or nothing.") from error
    return name, frame, matrix


def _matrix(cells: list[str]) -> Tensor:
    top = torch.tensor([float(cell) for cell in cells], dtype=torch.float64).reshape(3, 4)
    if not bool(torch.isfinite(top).all()):
        raise ValueError("not a number")
    return homogeneous(top[:, :3], top[:, 3])


def _cells(matrix: Tensor) -> list[str]:
    if bool(torch.isnan(matrix).any()):
        return [""] * len(_NUMBERS)
    return [number(value) for value in matrix[:3].flatten().tolist()]


def _motion(by_frame: dict[int, Tensor]) -> Motion:
    frames = sorted(by_frame)
    return Motion(tuple(frames), torch.stack([by_frame[frame] for frame in frames]))
