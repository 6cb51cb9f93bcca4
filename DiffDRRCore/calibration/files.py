"""A calibration in JSON: camera and distortion, which belong together, and how they were found.

    {"units": "mm", "kind": "calibration", "camera": {...}, "distortion": {...} or null, "values": {...},
     "deviations": {...}, "undetermined": [...], "rms": 0.21, "noise": 0.15, "views": [{"view": "a.dcm", "used": 31,
     "left_out": 1, "rms": 0.2, "largest": 0.5, "pose": 4 x 4 camera_to_world}, ...]}

The camera is as in `imaging.camera_file`; only the first four keys are needed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from DiffDRRCore.calibration.distortion import Distortion, RadialDistortion
from DiffDRRCore.calibration.grid import GridDistortion
from DiffDRRCore.calibration.result import CalibrationResult
from DiffDRRCore.errors import DiffDRRError, ReadError
from DiffDRRCore.files import finite, replacing
from DiffDRRCore.geometry import Camera
from DiffDRRCore.imaging.camera_file import camera_from_dict, camera_to_dict, check_units
from DiffDRRCore.values import Key, choice, number, read_values, section, several, whole

_PAIR = several(number(), count=2)
_RADIAL = {
    "model": Key(choice("radial")),
    **{name: Key(number(), 0.0) for name in ("k1", "k2", "p1", "p2")},
    "center": Key(_PAIR),
    "scale": Key(_PAIR),
}
_GRID = {
    "model": Key(choice("grid")),
    "height": Key(whole(1)),
    "width": Key(whole(1)),
    "cells": Key(several(whole(1), count=2)),
    "coefficients": Key(several(several(_PAIR))),
}


class Calibrated(NamedTuple):
    """A camera and the distortion of its images, or None."""

    camera: Camera
    distortion: Distortion | None


def distortion_from_dict(content: Any, where: str = "distortion") -> Distortion | None:
    """The distortion of plain values, None for None. Raises ReadError; `where` begins its message."""
    if content is None:
        return None
    try:
        model = choice("radial", "grid")(f"{where}: model", content.get("model") if isinstance(content, dict) else None)
        if model == "radial":
            value = section(where, content, _RADIAL)
            return RadialDistortion([value[k] for k in ("k1", "k2", "p1", "p2")], value["center"], value["scale"])
        value = section(where, content, _GRID)
        return GridDistortion(value["height"], value["width"], value["cells"], value["coefficients"])
    except DiffDRRError as error:
        raise ReadError(str(error)) from error


def read_calibrated(path: str | Path) -> Calibrated:
    """Camera and distortion of a calibration file.

    Raises ReadError: not such a file, damaged, numbers in another unit, a distortion of another image size.
    """
    path, where = Path(path), f"Calibration '{path}'"
    content = read_values(path)
    if not isinstance(content, dict) or content.get("kind") != "calibration":
        raise ReadError(f"'{path}' is no calibration file: `calibrate` writes them (a plain camera has no distortion).")
    if content.get("units") != "mm" or "camera" not in content:
        raise ReadError(f"{where} lacks its camera, or is not in mm.")
    camera = camera_from_dict(content["camera"], where)
    check_units(camera, where)
    distortion = distortion_from_dict(content.get("distortion"), f"{where}: distortion")
    if isinstance(distortion, GridDistortion) and (distortion.height, distortion.width) != (
        camera.height,
        camera.width,
    ):
        raise ReadError(
            f"{where}: the distortion is of {distortion.height} x {distortion.width} pixels but the camera of "
            f"{camera.height} x {camera.width}."
        )
    return Calibrated(camera, distortion)


def write_result(path: str | Path, result: CalibrationResult) -> None:
    """Write all of a result but the single residuals."""
    views = [row | {"pose": pose.matrix.tolist()} for row, pose in zip(result.per_view(), result.poses, strict=True)]
    content = {
        "units": "mm",
        "kind": "calibration",
        "camera": camera_to_dict(result.camera),
        "distortion": None if result.distortion is None else result.distortion.to_dict(),
        "values": result.values,
        "deviations": result.deviations,
        "undetermined": result.undetermined,
        "rms": result.rms,
        "noise": result.noise,
        "views": views,
    }
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(finite(content), indent=1, allow_nan=False) + "\n", encoding="utf-8")
