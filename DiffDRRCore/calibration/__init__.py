"""Calibration of X-ray cameras: intrinsics and distortion from known points, and from images of a bead phantom."""

from DiffDRRCore.calibration.detection import Beads, find_beads
from DiffDRRCore.calibration.files import Calibrated, read_calibrated
from DiffDRRCore.calibration.images import BeadView, Step, calibrate_images, calibrating_images
from DiffDRRCore.calibration.matching import BeadMatch, match_beads
from DiffDRRCore.calibration.phantom import BeadPhantom
from DiffDRRCore.calibration.result import CalibrationResult
from DiffDRRCore.calibration.solver import calibrate
from DiffDRRCore.imaging.distortion import Distortion, RadialDistortion
from DiffDRRCore.imaging.distortion_file import distortion_from_dict
from DiffDRRCore.imaging.distortion_grid import GridDistortion

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
    "Step",
    "calibrate",
    "calibrate_images",
    "calibrating_images",
    "distortion_from_dict",
    "find_beads",
    "match_beads",
    "read_calibrated",
]
