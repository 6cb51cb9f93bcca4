"""Calibration of X-ray cameras: intrinsics and distortion from known points, and from images of a bead phantom."""

from DiffDRRCore.calibration.detection import Beads, find_beads
from DiffDRRCore.calibration.distortion import Distortion, RadialDistortion
from DiffDRRCore.calibration.files import Calibrated, distortion_from_dict, read_calibrated
from DiffDRRCore.calibration.grid import GridDistortion
from DiffDRRCore.calibration.images import BeadView, calibrate_images
from DiffDRRCore.calibration.matching import BeadMatch, match_beads
from DiffDRRCore.calibration.phantom import BeadPhantom
from DiffDRRCore.calibration.result import CalibrationResult
from DiffDRRCore.calibration.solver import calibrate

__all__ = [
    "BeadMatch",
    "BeadPhantom",
    "BeadView",
    "Beads",
    "Calibrated",
    "CalibrationResult",
    "Distortion",
    "GridDistortion",
    "RadialDistortion",
    "calibrate",
    "calibrate_images",
    "distortion_from_dict",
    "find_beads",
    "match_beads",
    "read_calibrated",
]
