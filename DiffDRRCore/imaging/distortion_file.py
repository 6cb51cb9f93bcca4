"""A distortion as plain values, as camera files and calibration files hold it.

    {"model": "radial", "k1": 0.05, "k2": 0, "p1": 0, "p2": 0, "center": [u0, v0], "scale": [su, sv]}
    {"model": "grid", "height": 1024, "width": 1024, "cells": [5, 5], "coefficients": [rows + 3][columns + 3][2]}

See `RadialDistortion` and `GridDistortion` for what the numbers mean; all are in pixels but k1 ... p2.
"""

from __future__ import annotations

from typing import Any

from DiffDRRCore.errors import DiffDRRError, ReadError
from DiffDRRCore.geometry.camera import Camera
from DiffDRRCore.imaging.distortion import Distortion, RadialDistortion
from DiffDRRCore.imaging.distortion_grid import GridDistortion
from DiffDRRCore.values import Key, choice, number, section, several, whole

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


def distortion_of(camera: Camera, content: Any, where: str) -> Distortion | None:
    """`distortion_from_dict`, of that camera's image. Raises ReadError also for a grid of another size."""
    distortion = distortion_from_dict(content, f"{where}: distortion")
    size = camera.height, camera.width
    if isinstance(distortion, GridDistortion) and (distortion.height, distortion.width) != size:
        raise ReadError(
            f"{where}: the distortion is of {distortion.height} x {distortion.width} pixels but the camera of "
            f"{camera.height} x {camera.width}."
        )
    return distortion
