"""Move: C-arm and patient by sliders, presets, nudges, handles; undo, redo, named poses."""

from __future__ import annotations

import qt
import slicer

from DiffDRRSlicerLib import scene
from DiffDRRSlicerLib.panel.section import Section, fill

_PRESETS = {
    "apButton": "AP",
    "paButton": "PA",
    "leftLateralButton": "Left lateral",
    "rightLateralButton": "Right lateral",
    "laoButton": "LAO 45",
    "raoButton": "RAO 45",
    "inletButton": "Inlet",
    "outletButton": "Outlet",
}
_ARM = ("primarySlider", "secondarySlider", "rollSlider", "isocenterR", "isocenterA", "isocenterS", "distanceSlider")
_PATIENT = tuple(f"patient{what}{axis}" for what in ("Rotation", "Translation") for axis in "RAS")
# button: (keys, direction on the screen and in depth in steps of mm, turn in steps of degrees)
_NUDGES = {
    "nudgeLeft": ("Alt+Left", {"right": -1}),
    "nudgeRight": ("Alt+Right", {"right": 1}),
    "nudgeUp": ("Alt+Up", {"down": -1}),
    "nudgeDown": ("Alt+Down", {"down": 1}),
    "nudgeNearer": ("Alt+PgUp", {"depth": -1}),
    "nudgeFarther": ("Alt+PgDown", {"depth": 1}),
    "nudgeTurnLeft": ("Alt+Shift+Left", {"turn": -1}),
    "nudgeTurnRight": ("Alt+Shift+Right", {"turn": 1}),
}


class MoveSection(Section):
    """Everything that moves the C-arm or the patient by hand."""

    title = "Move"
    ui_file = "Move.ui"

    def setup(self) -> None:
        for names, moved in ((_ARM, self._move_arm), (_PATIENT, self._move_patient)):
            for number, name in enumerate(names):
                getattr(self.ui, name).connect("valueChanged(double)", self._slot(moved, number))
        for name, preset in _PRESETS.items():
            self.click(name, lambda preset=preset: self.apply_preset(preset), "The view cannot be set.")
        for name, (_, steps) in _NUDGES.items():
            self.click(name, lambda steps=steps: self.nudge(**steps), "The C-arm cannot be moved.")
        self.click("undoButton", self.panel.undo, "Nothing to undo.")
        self.click("redoButton", self.panel.redo, "Nothing to redo.")
        self.click("resetButton", self.reset, "The pose cannot be reset.")
        self.click("savePoseButton", self.save_pose, "The pose cannot be kept.")
        self.click("goToPoseButton", self.go_to_pose, "The pose cannot be used.")
        self.click("deletePoseButton", self.delete_pose, "The pose cannot be deleted.")
        self._shortcuts = []

    def enter(self) -> None:
        """Install the keys while the module is shown."""
        window = slicer.util.mainWindow()
        if window is None or self._shortcuts:
            return
        keys = {name: key for name, (key, _) in _NUDGES.items()} | {"undoButton": "Alt+Z", "redoButton": "Alt+Shift+Z"}
        for name, key in keys.items():
            shortcut = qt.QShortcut(qt.QKeySequence(key), window)
            shortcut.connect("activated()", getattr(self.ui, name).click)
            self._shortcuts.append(shortcut)

    def exit(self) -> None:
        """Give the keys back."""
        for shortcut in self._shortcuts:
            shortcut.disconnect("activated()")
            shortcut.setParent(None)
        self._shortcuts = []

    def _slot(self, moved, number: int):
        def slot(value: float) -> None:
            with self.panel.attempt("It cannot be moved there."):
                moved(number, value)

        return slot

    def _move_arm(self, number: int, value: float) -> None:
        """Only the slider that moved counts: the others show rounded numbers."""
        carm = self.panel.carm
        if carm is None:
            return
        self.panel.remember("C-arm sliders")
        if 3 <= number < 6:
            isocenter = carm.arm.isocenter.tolist()
            isocenter[number - 3] = value
            carm.move_arm(isocenter=isocenter)
        else:
            names = {0: "primary", 1: "secondary", 2: "roll", 6: "source_to_isocenter"}
            carm.move_arm(**{names[number]: value})

    def _move_patient(self, number: int, value: float) -> None:
        anatomy = self.panel.anatomy
        if anatomy is None:
            return
        self.panel.remember("patient sliders")
        rotation, translation = scene.patient.patient_placement(anatomy)
        (rotation if number < 3 else translation)[number % 3] = value
        scene.patient.place_patient(anatomy, rotation, translation, self.panel.markups())

    def apply_preset(self, name: str) -> None:
        """Turn the C-arm to a named view."""
        carm = self.panel.require_carm()
        self.panel.remember(name)
        scene.poses.apply_preset(carm, name)

    def nudge(self, right: float = 0, down: float = 0, depth: float = 0, turn: float = 0) -> None:
        """Move the anatomy's picture by so many steps, as it is seen in the X-ray view."""
        carm, anatomy = self.panel.require_carm(), self.panel.require_anatomy()
        step, angle = self.ui.nudgeStep.value, self.ui.nudgeAngle.value
        self.panel.remember("nudge")
        side = self.panel.side
        scene.poses.nudge(carm, anatomy, right * step, down * step, depth * step, turn * angle, side=side)

    def reset(self) -> None:
        """Back to where the C-arm stood when it was added, the patient where the CT was loaded."""
        carm = self.panel.require_carm()
        self.panel.remember("reset")
        carm.reset()
        if self.panel.anatomy is not None:
            scene.patient.reset_patient(self.panel.anatomy)

    def save_pose(self) -> None:
        """Keep the pose under the name typed."""
        carm = self.panel.require_carm()
        scene.poses.save_pose(carm, self.ui.poseName.text)

    def go_to_pose(self) -> None:
        """Move the C-arm to the pose chosen."""
        carm = self.panel.require_carm()
        self.panel.remember(self.ui.poseSelector.currentText)
        scene.poses.apply_pose(carm, self.ui.poseSelector.currentText)

    def delete_pose(self) -> None:
        """Forget the pose chosen."""
        scene.poses.delete_pose(self.panel.require_carm(), self.ui.poseSelector.currentText)

    def apply(self) -> None:
        anatomy = self.panel.anatomy
        if anatomy is None:
            return
        if self.panel.parameters.showHandles:
            transform = scene.handles.patient_transform(anatomy, self.panel.markups())
            scene.handles.show_handles(transform, scene.layout.view_nodes(slicer.mrmlScene) or (), anatomy.center)
        elif (transform := scene.handles.find_patient_transform(anatomy)) is not None:
            scene.handles.hide_handles(transform)

    def refresh(self) -> None:
        carm, anatomy = self.panel.carm, self.panel.anatomy
        self.ui.carmGroup.enabled = self.ui.posesGroup.enabled = carm is not None
        self.ui.patientGroup.enabled = anatomy is not None
        self.ui.nudgeGroup.enabled = carm is not None and anatomy is not None
        self.ui.undoButton.enabled, self.ui.redoButton.enabled = self.panel.can_undo, self.panel.can_redo
        self.ui.resetButton.enabled = carm is not None
        with self.quiet(*_ARM, *_PATIENT, "poseSelector"):
            if carm is not None:
                arm = carm.arm
                angles = [float(arm.primary), float(arm.secondary), float(arm.roll)]
                self._show(_ARM, [*angles, *arm.isocenter.tolist(), carm.source_to_isocenter])
                fill(self.ui.poseSelector, scene.poses.named_poses(carm), self.ui.poseSelector.currentText)
            if anatomy is not None:
                rotation, translation = scene.patient.patient_placement(anatomy)
                self._show(_PATIENT, [*rotation, *translation])

    def _show(self, names, values) -> None:
        """Write sliders, widened where a value lies outside their range."""
        for name, value in zip(names, values, strict=True):
            slider = getattr(self.ui, name)
            slider.minimum, slider.maximum = min(slider.minimum, value), max(slider.maximum, value)
            slider.value = value
