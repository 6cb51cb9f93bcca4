"""Landmarks: points on the CT and on the X-ray, paired by name."""

from __future__ import annotations

import slicer

from DiffDRRSlicerLib import scene
from DiffDRRSlicerLib.panel.section import NotReadyError, Section, fill_table

_HEADERS = ("Landmark", "px", "mm, detector", "mm, patient")


class LandmarksSection(Section):
    """Paired lists with their reprojection errors, and the alignment that makes them small."""

    title = "Landmarks"
    ui_file = "Landmarks.ui"
    collapsed = True

    def setup(self) -> None:
        self._observed = None  # (X-ray list, tag)
        self.click("alignButton", self.align, "The landmarks give no pose.")
        self.button.connect("contentsCollapsed(bool)", lambda *_: self.panel.changed())
        for name in ("ctPlaceWidget", "xrayPlaceWidget"):
            getattr(self.ui, name).buttonsVisible = False
            getattr(self.ui, name).placeButton().show()

    def align(self) -> None:
        """Move the C-arm so that the pairs agree."""
        carm, ct_list = self.panel.require_carm(), self.panel.parameters.ctLandmarks
        if ct_list is None:
            raise NotReadyError("Choose the list of points on the CT first.")
        self.panel.remember("landmarks")
        report = scene.landmarks.align(carm, ct_list, scene.landmarks.xray_landmarks(carm))
        self.ui.landmarkNotes.text = report.text

    def close(self) -> None:
        if self._observed is not None:
            markups, tag = self._observed
            markups.RemoveObserver(tag)
            self._observed = None
        for widget in (self.ui.xrayPlaceWidget, self.ui.ctPlaceWidget):
            if widget.placeModeEnabled:  # else the next click would begin a list of Slicer's own
                widget.setPlaceModeEnabled(False)
            widget.setCurrentNode(None)

    def apply(self) -> None:
        """A list for the X-ray's points, once somebody may place some; rays and epipolar lines as chosen."""
        parameters = self.panel.parameters
        if self.panel.carm is not None and (parameters.ctLandmarks is not None or not self.button.collapsed):
            scene.landmarks.xray_landmarks(self.panel.carm)
        shown = {"rays": parameters.showRays, "epipolar": parameters.showEpipolar}
        for carm in scene.carm.CArmNode.all(slicer.mrmlScene) if self.panel.carm is not None else ():
            for kind, visible in shown.items():
                for node, _ in scene.projections.companions(carm, kind):
                    node.GetDisplayNode().SetVisibility(visible)

    def refresh(self) -> None:
        carm, parameters = self.panel.carm, self.panel.parameters
        self.root.enabled = carm is not None and not self.panel.running
        if carm is None:
            return
        self.ui.ctLandmarksSelector.sortFilterProxyModel().hiddenNodeIDs = scene.landmarks.xray_list_ids(carm.scene)
        xray_list = carm.referred("landmarks")
        self._observe(xray_list)
        if self.ui.ctPlaceWidget.currentNode() is not parameters.ctLandmarks:
            self.ui.ctPlaceWidget.setCurrentNode(parameters.ctLandmarks)
        try:
            self._show_pairs(carm, parameters.ctLandmarks, xray_list)
        except ValueError as error:  # names that are there twice: the user is still at it
            self.ui.landmarkNotes.text = str(error)
            self.ui.alignButton.enabled = False

    def _show_pairs(self, carm, ct_list, xray_list) -> None:
        if ct_list is None or xray_list is None:
            fill_table(self.ui.pairsTable, _HEADERS, [])
            self.ui.nextLandmark.text = "no list on the CT yet"
            self.ui.alignButton.enabled = False
            return
        errors = scene.landmarks.reprojection_errors(carm, ct_list, xray_list)
        lines = [(row.label, row.pixels, row.detector_mm, row.anatomy_mm) for row in errors.rows]
        if lines:
            lines.append(("all (rms)", errors.rms_pixels, errors.rms_detector_mm, errors.rms_anatomy_mm))
        rows = [(label, f"{pixels:.1f}", f"{there:.2f}", f"{here:.2f}") for label, pixels, there, here in lines]
        fill_table(self.ui.pairsTable, _HEADERS, rows)
        missing, _ = scene.landmarks.missing_pairs(ct_list, xray_list)
        self.ui.nextLandmark.text = f"next: {missing[0]}" if missing else "all are placed"
        self.ui.alignButton.enabled = len(errors.rows) >= 3

    def _observe(self, xray_list) -> None:
        """Points placed on the X-ray take the names of the CT's points that have no partner yet."""
        if self._observed is not None and self._observed[0] is xray_list:
            return
        self.close()
        if xray_list is None:
            return
        self.ui.xrayPlaceWidget.setCurrentNode(xray_list)
        event = slicer.vtkMRMLMarkupsNode.PointPositionDefinedEvent
        self._observed = xray_list, xray_list.AddObserver(event, self._placed)

    def _placed(self, xray_list, _event) -> None:
        ct_list = self.panel.parameters.ctLandmarks if self.panel.parameters else None
        if ct_list is not None:
            scene.landmarks.name_newest(ct_list, xray_list)
        self.panel.changed()
