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

from DiffDRRCore.errors import GeometryError, ReadError
from DiffDRRCore.files import read_text, replacing
from DiffDRRCore.geometry.camera import Camera
from DiffDRRCore.geometry.converters.opencv import from_opencv, to_opencv
from DiffDRRCore.geometry.pose import Pose

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


def read_calibrated_camera(
    path: str | Path, size: tuple[int, int] | None = None, source_to_detector=None, pixel_spacing=None
) -> tuple[Camera, Pose]:
    """Camera, and camera_to_world in the calibration's world (mm), of a MayaCam 2.0 file.

    Args:
        size: (height, width) of the image; None takes the file's as (width, height), which is XMALab's order.
        source_to_detector, pixel_spacing: mm, one of them, which the file does not say; any detector behind the
            patient has the same rays.

    Raises ReadError as `read_calibration`, and for an image of another size.
    """
    calibration = read_calibration(path)
    size = calibration.size[::-1] if size is None else size
    if sorted(calibration.size) != sorted(size):
        sizes = f"{calibration.size[0]} and {calibration.size[1]}", f"{size[0]} x {size[1]}"
        raise ReadError(f"'{path}' is for images of {sizes[0]} pixels, but the image has {sizes[1]}.")
    scale = {"source_to_detector": source_to_detector, "pixel_spacing": pixel_spacing}
    try:
        return from_opencv(*calibration[1:], *size, **scale)
    except GeometryError as error:
        raise ReadError(f"'{path}': {error}") from error


def write_calibrated_camera(path: str | Path, camera: Camera, pose: Pose) -> None:
    """Write a MayaCam 2.0 file that `read_calibrated_camera` reads back; its size is (width, height), as XMALab's.

    Raises GeometryError for a parallel beam or a batch, DiffDRRError where the file cannot be written.
    """
    if camera.parallel or camera.K.dim() != 2 or pose.matrix.dim() != 2:
        raise GeometryError("A MayaCam 2.0 file holds one camera with a point source, and its pose.")
    K, rotation, translation = (part.detach().double().cpu() for part in to_opencv(camera, pose))
    blocks = {"camera matrix": K.tolist(), "rotation": rotation.tolist(), "translation": translation[:, None].tolist()}
    lines = ["image size", f"{camera.width},{camera.height}", ""]
    for title, rows in blocks.items():
        lines += [title, *(",".join(repr(value + 0.0) for value in row) for row in rows), ""]
    with replacing(path) as temporary:
        temporary.write_text("\n".join(lines), encoding="utf-8", newline="\n")


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
    for line in read_text(path, "MayaCam 2.0 file", _LARGEST_FILE).splitlines():
        numbers = _numbers(line)
        if numbers is None:
            rows = blocks.setdefault(line.strip().lower(), [])
        elif numbers and rows is not None:
            rows.append(numbers)
        elif numbers:
            raise ReadError(f"'{path}' is no MayaCam 2.0 file: it begins with numbers (MayaCam 1.0 is not read).")
    return blocks


def _numbers(line: str) -> list[float] | None:
    """The finite numbers of a row, none of an empty line; None of a title."""
    try:
        numbers = [float(cell) for cell in line.split(",") if cell.strip()]
    except ValueError:
        return None
    return numbers if all(abs(number) < 1e12 for number in numbers) else None
