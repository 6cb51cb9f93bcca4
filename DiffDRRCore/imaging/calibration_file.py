"""Calibrated cameras as videoradiography keeps them: XMALab's "MayaCam 2.0" text files, which Autoscoper reads too.

Blocks of a title line and comma-separated rows: "image size" (two numbers), "camera matrix" (3 x 3, pixels),
"rotation" (3 x 3) and "translation" (3 numbers, mm), the last two from the calibration's world to the camera: a point
X lands on the pixel (u, v) of w (u, v, 1) = K (R X + t), v downwards, integers at pixel centres. The distance to the
detector is not in the file. Programs disagree on whether the size is (width, height) or (height, width), so it only
serves to check an image. The older MayaCam 1.0 (.csv, five rows of three numbers) is not read.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from DiffDRRCore.errors import ReadError

_SHAPES = {"image size": (1, 2), "camera matrix": (3, 3), "rotation": (3, 3), "translation": (3, 1)}
_LARGEST_FILE = 1 << 16
_ROUNDING = 1e-3  # of the entries of R^T R - I


class Calibration(NamedTuple):
    """K [3, 3] in pixels; rotation [3, 3] and translation [3] (mm), world to camera; float64. `size`: either order."""

    size: tuple[int, int]
    K: Tensor
    rotation: Tensor
    translation: Tensor


def read_calibration(path: str | Path) -> Calibration:
    """Read a MayaCam 2.0 file; its rotation, which is rounded, becomes the nearest exact one.

    Raises ReadError: not such a file, a block that is missing or not of its shape, lens distortion, a mirrored or
    otherwise impossible rotation.
    """
    path = Path(path)
    blocks = _blocks(path)
    if any(title.startswith("dist") and any(map(any, rows)) for title, rows in blocks.items()):
        raise ReadError(f"'{path}' has lens distortion: export undistorted images and their calibration.")
    values = {}
    for title, shape in _SHAPES.items():
        rows = blocks.get(title)
        if rows is None or len(rows) != shape[0] or any(len(row) != shape[1] for row in rows):
            raise ReadError(
                f"'{path}' is no MayaCam 2.0 file: it needs '{title}' with {shape[0]} x {shape[1]} numbers "
                "(XMALab exports it)."
            )
        values[title] = torch.tensor(rows, dtype=torch.float64)
    size = tuple(int(side) for side in values["image size"][0].tolist())
    return Calibration(
        size, values["camera matrix"], nearest_rotation(values["rotation"], f"'{path}'"), values["translation"][:, 0]
    )


def nearest_rotation(matrix: Tensor, where: str) -> Tensor:
    """The rotation [3, 3] nearest to a rounded one (Frobenius norm). Raises ReadError for a matrix that is none."""
    error = (matrix.T @ matrix - torch.eye(3, dtype=matrix.dtype)).abs().max()
    if not float(error) < _ROUNDING or float(torch.linalg.det(matrix)) < 0:
        raise ReadError(f"{where}: the rotation is not one (orthonormal columns, determinant +1).")
    u, _, v = torch.linalg.svd(matrix)
    return u @ v


def _blocks(path: Path) -> dict[str, list[list[float]]]:
    blocks: dict[str, list[list[float]]] = {}
    rows: list[list[float]] | None = None
    for line in _text(path).splitlines():
        numbers = _numbers(line)
        if numbers is None:
            rows = blocks.setdefault(line.strip().lower(), [])
        elif numbers and rows is not None:
            rows.append(numbers)
        elif numbers:
            raise ReadError(f"'{path}' is no MayaCam 2.0 file: it begins with numbers (MayaCam 1.0 is not read).")
    return blocks


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise ReadError(f"'{path}' is no camera calibration: it is larger than 64 KiB.")
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ReadError(f"Cannot read the calibration '{path}': {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise ReadError(f"'{path}' is no MayaCam 2.0 file: it is not text.") from error


def _numbers(line: str) -> list[float] | None:
    """The finite numbers of a row, none of an empty line; None of a title."""
    try:
        numbers = [float(cell) for cell in line.split(",") if cell.strip()]
    except ValueError:
        return None
    return numbers if all(abs(number) < 1e12 for number in numbers) else None
