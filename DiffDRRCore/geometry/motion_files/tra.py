"""Autoscoper's tracking files (.tra), and XMALab's rigid body transformations, which Maya's tools read.

Text with one row a frame, without the frame's number: the first row is the first radiograph. Each body has 16 numbers,
a 4 x 4 matrix by rows (Autoscoper's default) or by columns (XMALab, Maya), or six: x, y, z in mm, then yaw, pitch and
roll in degrees, the matrix being Rz(yaw) Ry(pitch) Rx(roll). Several bodies stand side by side. A frame that is not
tracked has NaN throughout. Cells are separated by commas or blanks; XMALab may write a line of titles first
(Autoscoper: AutoscoperMainWindow::save_tracking_results and CoordFrame::to_xyzypr).
"""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from DiffDRRCore.errors import DiffDRRError, GeometryError, ReadError
from DiffDRRCore.files import read_text, replacing
from DiffDRRCore.geometry.euler import euler_to_matrix, matrix_to_euler
from DiffDRRCore.geometry.motion_files.motion import WHAT, WITHOUT, Motion, number
from DiffDRRCore.geometry.tensors import homogeneous

_MOST_ROWS = 1_000_000
_LAST_ROW = torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=torch.float64)


class TraLayout(enum.Enum):
    """How a pose stands in its row: a matrix by rows or by columns, or x, y, z, yaw, pitch, roll."""

    ROWS = "rows"
    COLUMNS = "columns"
    XYZYPR = "xyzypr"


def read_tra(
    path: str | Path,
    bodies: Sequence[str] | None = None,
    first_frame: int = 0,
    layout: TraLayout | None = None,
    centimetres: bool = False,
    radians: bool = False,
) -> dict[str, Motion]:
    """{body: motion}, with matrices in mm as they stand in the file.

    Args:
        bodies: names, as many as the file has bodies; None: the file's own name, with -1, -2 ... for several.
        first_frame: number of the first row.
        layout: None finds it from the numbers: matrices have a last row, or a last column, of 0 0 0 1. Where nothing is
            translated, so that both have it, the matrices are taken by rows.
        centimetres, radians: how the file was saved, which the numbers do not tell.

    Raises ReadError, with the line, for what is no such file, a pose that is not rigid or is NaN in part.
    """
    path = Path(path)
    lines, rows = _rows(path)
    layout = _found_layout(path, rows) if layout is None else layout
    size = 6 if layout is TraLayout.XYZYPR else 16
    if rows.shape[1] % size:
        raise ReadError(f"'{path}' has {rows.shape[1]} numbers a row, not {size} for each body.")
    count = rows.shape[1] // size
    names = _names(path, bodies, count)
    if len(rows) * count > _MOST_ROWS:
        raise ReadError(f"'{path}' has more than {_MOST_ROWS} poses.")
    frames = tuple(range(first_frame, first_frame + len(rows)))
    result = {}
    for index, name in enumerate(names):
        cells = rows[:, index * size : (index + 1) * size]
        try:
            result[name] = Motion(frames, _matrices(cells, layout, 10.0 if centimetres else 1.0, radians))
        except GeometryError:
            raise ReadError(_blame(path, lines, cells, layout)) from None
    return result


def write_tra(
    path: str | Path,
    motions: dict[str, Motion],
    first_frame: int = 0,
    layout: TraLayout = TraLayout.ROWS,
) -> None:
    """Write motions side by side in mm and degrees; rows go from `first_frame` to the last frame of all.

    Matrices come back from `read_tra` exactly. Raises DiffDRRError where there is no body, a frame lies before
    `first_frame`, or the file cannot be written.
    """
    path = Path(path)
    frames = [frame for motion in motions.values() for frame in motion.frames]
    if not frames:
        raise DiffDRRError(f"There is no frame to write to '{path}'.")
    if min(frames) < first_frame:
        raise DiffDRRError(f"Frame {min(frames)} lies before the first row of '{path}', which is frame {first_frame}.")
    if max(frames) - first_frame >= _MOST_ROWS:
        raise DiffDRRError(f"'{path}' would have a row for each of more than {_MOST_ROWS} frames.")
    by_frame = [dict(zip(motion.frames, motion.matrices, strict=True)) for motion in motions.values()]
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        for frame in range(first_frame, max(frames) + 1):
            cells = [_cells(poses.get(frame, WITHOUT), layout) for poses in by_frame]
            file.write(",".join(cell for body in cells for cell in body) + "\n")


def _rows(path: Path) -> tuple[list[int], Tensor]:
    """(line of each row from 1, [F, C] numbers)."""
    lines, rows = [], []
    text = read_text(path, WHAT).rstrip().splitlines()
    for line, content in enumerate(text, start=1):
        cells = [cell for cell in re.split(r"[,;\s]+", content) if cell]
        numbers = [_number(cell) for cell in cells]
        if line == 1 and cells and all(value is None for value in numbers):
            continue  # titles
        if not numbers or None in numbers or (rows and len(numbers) != len(rows[0])):
            raise ReadError(
                f"'{path}', line {line}: a file of motion has the same count of numbers, or NaN, in each line."
            )
        lines.append(line)
        rows.append(numbers)
    if not rows:
        raise ReadError(f"'{path}' is empty: a file of motion has one line of numbers a frame.")
    return lines, torch.tensor(rows, dtype=torch.float64)


def _number(cell: str) -> float | None:
    try:
        value = float(cell)
    except ValueError:
        return None
    return None if math.isinf(value) else value


def _found_layout(path: Path, rows: Tensor) -> TraLayout:
    width = rows.shape[1]
    if width % 16 == 0:
        blocks = rows.reshape(-1, 4, 4)
        blocks = blocks[~torch.isnan(blocks).any(-1).any(-1)]
        for layout, last in ((TraLayout.ROWS, blocks[:, 3]), (TraLayout.COLUMNS, blocks[:, :, 3])):
            if bool(((last - _LAST_ROW).abs() < 1e-6).all()):
                return layout
    if width % 6 == 0:
        return TraLayout.XYZYPR
    raise ReadError(
        f"'{path}' has {width} numbers a row: a body has 16, a matrix whose last row (or column) is 0 0 0 1, or 6."
    )


def _names(path: Path, bodies: Sequence[str] | None, count: int) -> list[str]:
    if bodies is None:
        return [path.stem] if count == 1 else [f"{path.stem}-{number}" for number in range(1, count + 1)]
    if len(bodies) != count or len(set(bodies)) != count:
        raise ReadError(f"'{path}' has {count} bodies: give {count} different names, not {len(bodies)}.")
    return list(bodies)


def _matrices(cells: Tensor, layout: TraLayout, scale: float, radians: bool) -> Tensor:
    """[F, 4, 4] in mm of the numbers of one body [F, 16] or [F, 6]."""
    if layout is TraLayout.XYZYPR:
        angles = cells[:, 3:] if radians else torch.deg2rad(cells[:, 3:])
        matrices = homogeneous(euler_to_matrix(angles, "ZYX"), cells[:, :3])
        empty = torch.isnan(cells).all(1)
    else:
        matrices = cells.reshape(-1, 4, 4)
        matrices = matrices.clone() if layout is TraLayout.ROWS else matrices.transpose(1, 2).clone()
        empty = torch.isnan(cells).all(1)
    matrices[:, :3, 3] *= scale
    matrices[empty] = torch.nan
    return matrices


def _blame(path: Path, lines: list[int], cells: Tensor, layout: TraLayout) -> str:
    """What is wrong with the first bad pose."""
    for line, row in zip(lines, cells, strict=True):
        try:
            Motion((line,), _matrices(row[None], layout, 1.0, False))
        except GeometryError as error:
            reason = str(error).removeprefix(f"Frame {line}: ")
            return f"'{path}', line {line}: {reason} (A frame without a pose is NaN throughout.)"
    return f"'{path}' has a pose that is not rigid."


def _cells(matrix: Tensor, layout: TraLayout) -> list[str]:
    if bool(torch.isnan(matrix).any()):
        return ["NaN"] * (6 if layout is TraLayout.XYZYPR else 16)
    if layout is TraLayout.XYZYPR:
        angles = torch.rad2deg(matrix_to_euler(matrix[:3, :3], "ZYX"))
        values = torch.cat([matrix[:3, 3], angles])
    else:
        values = (matrix if layout is TraLayout.ROWS else matrix.T).flatten()
    return [number(value) for value in values.tolist()]
