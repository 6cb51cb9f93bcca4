"""Calibrate: the camera of the C-arm from X-rays of a bead phantom, step by step on a timer."""

from __future__ import annotations

import qt
import slicer

from DiffDRRSlicerLib import scene
from DiffDRRSlicerLib.panel.section import NotReadyError, Section, fill_table

_VALUES = ("", "Value", "±", "Unit")
_RESIDUALS = ("Image", "Beads", "Left out", "rms, px", "Worst, px")
_FREE = {  # parameters: whether it is free, its deviation; and what `scene.calibration` calls it
    "source_to_detector": ("freeDistance", "priorDistance"),
    "principal_point": ("freePoint", "priorPoint"),
    "pixel_size": ("freePixel", "priorPixel"),
    "pixel_ratio": ("freeRatio", "priorRatio"),
}


class CalibrateSection(Section):
    """Phantom, X-rays, what is free; run, cancel; what was found, on the chosen C-arm; apply and save."""

    title = "Calibrate"
    ui_file = "Calibrate.ui"
    collapsed = True

    def setup(self) -> None:
        self.running = None  # the generator that works
        self._chosen = {"calibrateXRaysSelector": set(), "applyToSelector": set()}  # IDs of C-arms
        self._offered, self._shown, self._path = {}, None, None
        self.timer = qt.QTimer()
        self.timer.interval = 0
        self.timer.timeout.connect(self.step)
        self.click("calibrateButton", self.start, "The calibration cannot start.")
        self.click("cancelCalibrationButton", self.cancel, "The calibration cannot be stopped.")
        self.click("applyCalibrationButton", self.use, "The calibration cannot be applied.")
        self.click("saveCalibrationButton", self.save, "The calibration could not be saved.")
        self.ui.phantomPath.connect("currentPathChanged(QString)", self._phantom_chosen)
        for name in self._chosen:
            getattr(self.ui, name).connect("checkedIndexesChanged()", self._chooser(name))
        self.button.connect("contentsCollapsed(bool)", lambda *_: self.panel.changed())

    # calibrating

    def start(self) -> None:
        """Begin; the timer takes one step at a time."""
        if self.running is not None:
            return
        parameters = self.panel.parameters
        carms = self._carms("calibrateXRaysSelector")
        if not carms:
            raise NotReadyError("Choose the X-rays of the phantom first.")
        path = self.ui.phantomPath.currentPath.strip()  # nothing is told of a path that is cleared or leads nowhere
        parameters.phantomFile = self._path = path
        if path and parameters.phantomPoints is not None:
            raise NotReadyError("Choose either a file of the phantom or a list of points, not both.")
        phantom, labels = scene.calibration.phantom_of(path or parameters.phantomPoints, parameters.beadRadius)
        settings = scene.calibration.CalibrationSettings.of(**self.settings())
        self.running = scene.calibration.calibrating(carms, phantom, labels, settings)
        if path:
            self.ui.phantomPath.addCurrentPathToHistory()
        self._show_running(True)
        self.timer.start()

    def settings(self) -> dict:
        """What the widgets say, by the names of `scene.calibration.CalibrationSettings`."""
        parameters = self.panel.parameters
        free = [name for name, (box, _) in _FREE.items() if getattr(parameters, box)]
        priors = {name: getattr(parameters, _FREE[name][1]) for name in free}
        if parameters.distortion.key is not None:
            priors["distortion"] = parameters.priorDistortion
        sizes, cells = (parameters.beadsFrom, parameters.beadsTo), round(parameters.gridCells)
        if any(sizes) and not all(sizes):
            raise NotReadyError("Give both radii of the beads, the least and the largest, or none.")
        return {
            "source_to_detector": parameters.calibrateDistance or None,
            "pixel_size": parameters.calibratePixel or None,
            "free": tuple(free),
            "priors": {name: deviation for name, deviation in priors.items() if deviation},
            "distortion": parameters.distortion.key,
            "cells": (cells, cells),
            "radius_range": sizes if all(sizes) else None,
        }

    def step(self) -> None:
        """Take one step."""
        if self.running is not None:
            self.advance(self.running, "The calibration failed.", "calibrationProgress", "calibrationText", self._ended)

    def _ended(self, found) -> None:
        self._finish("")
        self._found(found)

    def _found(self, calibration) -> None:
        """Show one of the C-arms that were calibrated; the calibration can be applied to them."""
        done = [carm for carm in self._carms("calibrateXRaysSelector") if calibration.has(carm)]
        self._chosen["applyToSelector"] = {carm.node.GetID() for carm in done}
        self._offered.pop("applyToSelector", None)
        if done and self.panel.carm not in done:
            self.panel.parameters.carm = done[0].node
        self._shown = None
        self.panel.changed()

    def cancel(self) -> None:
        """Stop; the scene is as it was."""
        if self.running is not None:
            self.running.close()
            self._finish("Cancelled; nothing was changed.")

    def _finish(self, text: str) -> None:
        self.timer.stop()
        self.running = None
        self.ui.calibrationProgress.value = 0
        self.ui.calibrationText.text = text
        self._show_running(False)
        self.panel.changed()

    def _show_running(self, running: bool) -> None:
        self.ui.cancelCalibrationButton.enabled = running
        for name in ("calibrateButton", "applyCalibrationButton", "saveCalibrationButton"):
            getattr(self.ui, name).enabled = not running
        self.panel.lock(running, self)

    # using it

    def use(self) -> None:
        """Give the calibrated camera to the X-rays that are checked."""
        calibration = scene.calibration_use.calibration_of(self.panel.require_carm())
        carms = self._carms("applyToSelector")
        if not carms:
            raise NotReadyError("Choose the X-rays that get the calibrated camera first.")
        self.panel.remember("calibration")
        with slicer.util.WaitCursor():
            for carm in carms:
                scene.calibration_use.apply_calibration(carm, calibration, self.panel.parameters.calibratePlace)
        self.panel.parameters_changed()
        names = ", ".join(carm.name for carm in carms)
        undone = " and undistorted" if calibration.parts[1] is not None else ""
        self.ui.calibrationText.text = f"Calibrated{undone}: {names}."

    def save(self) -> None:
        """Write the calibration of the chosen C-arm."""
        path = self.ui.calibrationPath.currentPath.strip()
        if not path:
            raise NotReadyError("Choose a file first.")
        file = scene.calibration_use.calibration_of(self.panel.require_carm()).save(path)
        self.ui.calibrationPath.addCurrentPathToHistory()
        self.ui.calibrationText.text = f"Saved {file.name}."

    # the widgets

    def apply(self) -> None:
        """Show the beads of the chosen C-arm in its views."""
        if self.panel.carm is not None:
            views = scene.layout.view_nodes(slicer.mrmlScene)
            shown = self.panel.carm if self.panel.parameters.showBeads else None
            scene.calibration_marks.show_only(
                slicer.mrmlScene, shown, () if views is None else (views.xray, views.carm)
            )

    def refresh(self) -> None:
        carm, parameters = self.panel.carm, self.panel.parameters
        if self._path != parameters.phantomFile:  # of another scene, say; what is being typed stays
            self._path = parameters.phantomFile
            with self.quiet("phantomPath"):
                self.ui.phantomPath.currentPath = self._path
        for box, prior in _FREE.values():
            getattr(self.ui, f"{prior}SpinBox").enabled = getattr(parameters, box)
        self.ui.gridCellsSpinBox.enabled = parameters.distortion.key == "grid"
        self.ui.priorDistortionSpinBox.enabled = parameters.distortion.key is not None
        if self.button.collapsed:
            return
        for name in self._chosen:
            self._offer(name, carm)
        self.ui.phantomPointsSelector.sortFilterProxyModel().hiddenNodeIDs = (
            [] if carm is None else scene.landmarks.xray_list_ids(carm.scene)
        )
        self._show_result(carm)
        idle = not self.panel.running
        known = idle and carm is not None and scene.calibration.Calibration.of(carm) is not None
        self.ui.calibrateButton.enabled = idle and bool(self._chosen["calibrateXRaysSelector"])
        self.ui.applyCalibrationButton.enabled = known and bool(self._chosen["applyToSelector"])
        self.ui.saveCalibrationButton.enabled = known

    def _show_result(self, carm) -> None:
        """The calibration of the chosen C-arm, where it has one."""
        text = None if carm is None else carm.node.GetAttribute(scene.calibration.KEY)
        if self.running is not None or self._shown == (carm, text):
            return
        self._shown = carm, text
        found = None if text is None else scene.calibration.Calibration.of(carm)
        fill_table(self.ui.calibrationTable, _VALUES, [] if found is None else found.values())
        fill_table(self.ui.residualsTable, _RESIDUALS, [] if found is None else found.residuals())
        doubts = () if found is None else found.warnings
        self.ui.calibrationWarnings.text = "\n".join(f"Doubtful: {one}" for one in doubts)
        self.ui.calibrationText.text = "" if found is None else self._told(carm, found)

    @staticmethod
    def _told(carm, found) -> str:
        times = scene.calibration_marks.exaggeration(carm)
        drawn = "" if times is None else f" Residuals are drawn {times:g} times as long."
        return f"{found.told}{drawn}"

    def _offer(self, name: str, carm) -> None:
        """The C-arms that have an X-ray, those chosen checked."""
        carms = [] if carm is None else [one for one in scene.carm.CArmNode.all(carm.scene) if one.referred("xray")]
        offered = [(one.node.GetID(), one.name) for one in carms]
        self._chosen[name] &= {identifier for identifier, _ in offered}
        state = offered, set(self._chosen[name])
        if self._offered.get(name) == state:
            return
        combo = getattr(self.ui, name)
        with self.quiet(name):
            combo.clear()
            combo.addItems([title for _, title in offered])
            for row, (identifier, _) in enumerate(offered):
                state_of = qt.Qt.Checked if identifier in self._chosen[name] else qt.Qt.Unchecked
                combo.setCheckState(combo.model().index(row, 0), state_of)
        self._offered[name] = state

    def _chooser(self, name: str):
        def chosen() -> None:
            offered, _ = self._offered.get(name, ([], set()))
            rows = [index.row() for index in getattr(self.ui, name).checkedIndexes()]
            self._chosen[name] = {offered[row][0] for row in rows if row < len(offered)}
            self._offered[name] = offered, set(self._chosen[name])
            self.panel.changed()

        return chosen

    def _carms(self, name: str) -> list:
        """Those that are checked, in the scene's order."""
        if not self._chosen[name]:
            return []
        return [one for one in scene.carm.CArmNode.all(slicer.mrmlScene) if one.node.GetID() in self._chosen[name]]

    def _phantom_chosen(self, path: str) -> None:
        if self.panel.parameters is not None:
            self.panel.parameters.phantomFile = self._path = path

    def close(self) -> None:
        """The scene goes away, perhaps under a running calibration."""
        if self.running is not None:
            self.running.close()
            self._finish("")
        self._chosen = {name: set() for name in self._chosen}
        self._offered, self._shown, self._path = {}, None, None
        self.ui.calibrationText.text = self.ui.calibrationWarnings.text = ""
