"""Calibration of X-ray cameras: intrinsics and distortion from known points, and from images of a bead phantom.

What images of beads can tell, by 36 beads of a phantom of 120 x 120 x 140 mm and 0.2 pixels of noise (standard
deviations of the distance from source to detector, SDD, and of the principal point):

- One image: SDD to 2 mm and the principal point to 6 pixels, with radial distortion too; a grid has more unknowns than
  the image numbers, and is refused.
- Ten images: SDD to 0.6 mm, the principal point to 2 pixels. With a grid SDD to 0.8 mm, but the principal point only
  to 20 pixels: a smooth shift of the image and a tilt of the detector look like it.
- Any number: only the ratio of SDD and pixel size; and of a grid nothing that camera and poses can explain.

Images of a patient tell SDD, principal point and one radial coefficient, at most
(`DiffDRRCore.registration.FreeCamera`). A grid is not looked for in them: calibrate it with beads, and give the X-rays
straightened (`Distortion.undistorted`).
"""

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
