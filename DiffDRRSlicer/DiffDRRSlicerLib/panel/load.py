"""Load: the CT, its structures, and X-rays."""

from __future__ import annotations

import slicer

from DiffDRRSlicerLib import scene
from DiffDRRSlicerLib.names import MARK
from DiffDRRSlicerLib.panel.section import NotReadyError, Section
from DiffDRRSlicerLib.panel.simulate import SimulateSection


class LoadSection(Section):
    """Choose the CT and add X-rays."""

    title = "Load"
    ui_file = "Load.ui"

    def setup(self) -> None:
        self.ui.carmSelector.addAttribute("vtkMRMLLinearTransformNode", MARK)
        self.click("addXRayButton", self.add_xray, "The image cannot be used as an X-ray.")
        self.click("loadXRayButton", self.load_xray, "The X-ray could not be loaded.")
        self.click("simulateButton", self.simulate, "The X-ray could not be simulated.")
        self.click("addCArmButton", self.add_carm, "The C-arm could not be added.")

    def add_xray(self) -> None:
        """A C-arm with a copy of the image chosen from the scene."""
        node = self.ui.xraySelector.currentNode()
        if node is None:
            raise NotReadyError("Choose an image of the scene first.")
        self._added(self.panel.logic.loadXRay(node, frame=self._frame(), ct=self.panel.parameters.ct))

    def load_xray(self) -> None:
        """A C-arm with the image of a file."""
        path = self.ui.xrayPath.currentPath
        if not path:
            raise NotReadyError("Choose a file first.")
        self._added(self.panel.logic.loadXRay(path, frame=self._frame(), ct=self.panel.parameters.ct))

    def _frame(self) -> int | None:
        """The frame that was typed."""
        frame = self.ui.frameSpinBox.value
        return None if frame < 0 else frame

    def simulate(self) -> None:
        """An X-ray of the CT from where the chosen C-arm stands, taken as the section Simulate says."""
        parameters, settings = self.panel.parameters, self.panel.sections[SimulateSection].settings()
        self._added(self.panel.logic.simulateXRay(parameters.ct, parameters.labels, parameters.carm, **settings))

    def add_carm(self) -> None:
        """A C-arm whose source is behind the CT."""
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
        if carm is not None:
            hidden = [one.GetID() for one in scene.datasets.xray_segmentations(carm.scene)]
            self.ui.labelsSelector.sortFilterProxyModel().hiddenNodeIDs = hidden
        if self.ui.carmSelector.mrmlScene() is not slicer.mrmlScene:
            self.ui.carmSelector.setMRMLScene(slicer.mrmlScene)
