"""Load: the CT, its structures, and X-rays."""

from __future__ import annotations

import slicer

from DiffDRRSlicerLib import scene
from DiffDRRSlicerLib.panel.section import Section

CARM_ATTRIBUTE = "DiffDRR.CArm"


class LoadSection(Section):
    """Choose the CT and add X-rays."""

    title = "Load"
    ui_file = "Load.ui"

    def setup(self) -> None:
        self.ui.carmSelector.addAttribute("vtkMRMLLinearTransformNode", CARM_ATTRIBUTE)
        self.click("addXRayButton", self.add_xray, "The image cannot be used as an X-ray.")
        self.click("loadXRayButton", self.load_xray, "The X-ray could not be loaded.")
        self.click("simulateButton", self.simulate, "The X-ray could not be simulated.")
        self.click("addCArmButton", self.add_carm, "The C-arm could not be added.")

    def add_xray(self) -> None:
        """A C-arm with a copy of the image chosen from the scene."""
        node = self.ui.xraySelector.currentNode()
        if node is None:
            raise ValueError("Choose an image of the scene first.")
        frame = self.ui.frameSpinBox.value
        frame = None if frame < 0 else frame
        self._added(self.panel.logic.loadXRay(node, frame=frame, ct=self.panel.parameters.ct))

    def load_xray(self) -> None:
        """A C-arm with the image of a file."""
        path = self.ui.xrayPath.currentPath
        if not path:
            raise ValueError("Choose a file first.")
        self._added(self.panel.logic.loadXRay(path, ct=self.panel.parameters.ct))

    def simulate(self) -> None:
        """An X-ray of the CT from where the chosen C-arm stands."""
        parameters = self.panel.parameters
        self._added(self.panel.logic.simulateXRay(parameters.ct, parameters.labels, parameters.carm))

    def add_carm(self) -> None:
        """A C-arm in front of the CT."""
        self._added(self.panel.logic.createCArm(self.panel.parameters.ct))

    def _added(self, node) -> None:
        self.panel.parameters.carm = node
        self.panel.added(scene.carm.CArmNode(node))

    def refresh(self) -> None:
        carm = self.panel.carm
        notes = [] if carm is None else carm.meta.get("missing", [])
        self.ui.loadNotes.text = f"The header did not say: {'; '.join(notes)}." if notes else ""
        self.ui.loadNotes.visible = bool(notes)
        self.ui.simulateButton.enabled = self.ui.addCArmButton.enabled = self.panel.parameters.ct is not None
        if self.ui.carmSelector.mrmlScene() is not slicer.mrmlScene:
            self.ui.carmSelector.setMRMLScene(slicer.mrmlScene)
