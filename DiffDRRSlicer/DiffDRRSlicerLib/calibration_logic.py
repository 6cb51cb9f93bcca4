"""The part of the module's logic that calibrates C-arms by X-rays of a bead phantom."""

from __future__ import annotations

from pathlib import Path

from DiffDRRSlicerLib import scene


class CalibrationLogic:
    """Methods of `DiffDRRSlicerLogic`."""

    def calibrate(self, carms, phantom, beadRadius=1.0, progress=None, **settings):
        """Find the camera of C-arms by their X-rays of a bead phantom: a `scene.calibration.Calibration`.

        The C-arms keep it; their cameras stay as they are until `applyCalibration`. The beads are marked on the X-rays.

        :param carms: a C-arm node or a list of them, each with an X-ray of the phantom, all of one setting.
        :param phantom: file of a phantom (.json, .csv), or a markups node of its beads in mm.
        :param beadRadius: mm, of a markups node's beads.
        :param progress: called with each step (fraction, text); returning False cancels: the result is None then.
        :param settings: of `scene.calibration.CalibrationSettings`: source_to_detector, pixel_size, free, priors,
            distortion, cells, radius_range.
        """
        carms = [scene.carm.CArmNode(one) for one in (carms if isinstance(carms, (list, tuple)) else [carms])]
        options = scene.calibration.CalibrationSettings.of(**settings)
        steps = scene.calibration.calibrating(carms, *scene.calibration.phantom_of(phantom, beadRadius), options)
        while True:
            try:
                step = next(steps)
            except StopIteration as end:
                return end.value
            if progress is not None and progress(step) is False:
                steps.close()
                return None

    def applyCalibration(self, carms, calibration=None, place=False) -> None:
        """Give C-arms a calibrated camera, and undo the distortion of their X-rays; the images recorded are kept.

        :param carms: a C-arm node or a list of them.
        :param calibration: path of a calibration file, or a C-arm node that was calibrated; None: each its own.
        :param place: move those whose own image was calibrated to where they stand about the phantom.
        """
        carms = [scene.carm.CArmNode(one) for one in (carms if isinstance(carms, (list, tuple)) else [carms])]
        of, given = scene.calibration_use, None
        if isinstance(calibration, (str, Path)):
            given = scene.calibration.Calibration.read(calibration)
        elif calibration is not None:
            given = of.calibration_of(scene.carm.CArmNode(calibration))
        for carm, found in [(carm, given or of.calibration_of(carm)) for carm in carms]:
            of.apply_calibration(carm, found, place)

    def saveCalibration(self, path, carm) -> Path:
        """Write a C-arm's calibration to a .json file, which is read wherever a JSON camera is."""
        return scene.calibration_use.calibration_of(scene.carm.CArmNode(carm)).save(path)
