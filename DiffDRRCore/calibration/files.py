"""A calibration in JSON: camera and distortion, which belong together, and how they were found.

    {"units": "mm", "kind": "calibration", "camera": {...}, "distortion": {...} or null, "values": {...},
     "deviations": {...}, "undetermined": [...], "rms": 0.21, "noise": 0.15, "views": [{"view": "a.dcm", "used": 31,
     "left_out": 1, "rms": 0.2, "largest": 0.5, "pose": 4 x 4 camera_to_world}, ...]}

The camera is as in `imaging.camera_file`, which reads such a file too; only the first four keys are needed.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from DiffDRRCore.errors import ReadError
from DiffDRRCore.geometry import Camera
from DiffDRRCore.imaging.camera_file import CALIBRATION, calibrated_from_dict
from DiffDRRCore.imaging.distortion import Distortion
from DiffDRRCore.values import read_values


class Calibrated(NamedTuple):
    """A camera and the distortion of its images, or None."""

    camera: Camera
    distortion: Distortion | None


def read_calibrated(path: str | Path) -> Calibrated:
    """Camera and distortion of a calibration file.

    Raises ReadError: not such a file, damaged, numbers in another unit, a distortion of another image size.
    """
    path = Path(path)
    content = read_values(path)
    if not isinstance(content, dict) or content.get("kind") != CALIBRATION:
        raise ReadError(f"'{path}' is no calibration file: `calibrate` writes them (a plain camera has no distortion).")
    return Calibrated(*calibrated_from_dict(content, f"Calibration '{path}'"))
