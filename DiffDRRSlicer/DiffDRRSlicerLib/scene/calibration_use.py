"""Using a calibration: its camera for other X-rays of the same setting, C-arms placed about the phantom."""

from __future__ import annotations

from DiffDRRSlicerLib.scene.calibration import Calibration
from DiffDRRSlicerLib.scene.carm import CArmNode
from DiffDRRSlicerLib.scene.errors import SceneError
from DiffDRRSlicerLib.scene.undistortion import apply_camera


def calibration_of(carm: CArmNode) -> Calibration:
    """The calibration of a C-arm. Raises SceneError where it has none."""
    found = Calibration.of(carm)
    if found is None:
        raise SceneError(f"'{carm.name}' is not calibrated; calibrate it with X-rays of a bead phantom first.")
    return found


def apply_calibration(carm: CArmNode, calibration: Calibration, place: bool = False) -> None:
    """Give a C-arm a calibrated camera, and undo the distortion of its X-ray; it keeps the calibration.

    `place` moves it to where it stands about the phantom, whose frame is the world, if its own image was calibrated.
    Raises SceneError and XRayError as `apply_camera`; nothing is changed then.
    """
    _ = carm.pose  # raises where another could not be set
    apply_camera(carm, *calibration.parts, source="calibration")
    if not calibration.has(carm):
        calibration.keep(carm)
    pose = calibration_of(carm).pose
    if place and pose is not None:
        carm.pose = pose
