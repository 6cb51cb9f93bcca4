"""Keep: files, copies as volumes, the projection matrix."""

from __future__ import annotations

import qt
import slicer

from DiffDRRSlicerLib import scene
from DiffDRRSlicerLib.panel.section import NotReadyError, Section

_LEFT_OUT = " Not the registration's numbers: they are another C-arm's, or C-arm or CT have moved since."


class KeepSection(Section):
    """Where results go."""

    title = "Keep"
    ui_file = "Keep.ui"
    collapsed = True

    def setup(self) -> None:
        self.click("saveButton", self.save, "The results could not be saved.")
        self.click("keepDRRButton", self.keep_drr, "The DRR could not be copied.")
        self.click("resliceButton", self.reslice, "The CT could not be resampled.")
        self.click("copyMatrixButton", self.copy_matrix, "The matrix could not be copied.")

    def save(self) -> None:
        """Write where the C-arm stands, and what the registration found while that is still true."""
        folder = self.ui.outputPath.currentPath
        if not folder:
            raise NotReadyError("Choose a folder first.")
        carm, ct, outcome = self.panel.require_carm(), self.panel.parameters.ct, self.panel.outcome
        holds = outcome is not None and outcome.holds(carm, ct)
        files = self.panel.logic.saveResults(folder, carm.node, ct, outcome if holds else None)
        left_out = "" if holds or outcome is None else _LEFT_OUT
        self.ui.keepNotes.text = f"Saved {', '.join(path.name for path in files)}.{left_out}"

    def keep_drr(self) -> None:
        """A copy of the DRR at rest."""
        self.panel.logic.copyDRR(self.panel.require_carm().node)

    def reslice(self) -> None:
        """The CT in the plane of the X-ray."""
        scene.reslice.reslice(self.panel.require_anatomy(), self.panel.require_carm())

    def copy_matrix(self) -> None:
        """The projection matrix to the clipboard."""
        self.panel.require_carm()
        qt.QApplication.clipboard().setText(self.ui.projectionMatrix.plainText)
        slicer.util.showStatusMessage("Projection matrix copied.", 2000)

    def refresh(self) -> None:
        carm = self.panel.carm
        self.root.enabled = carm is not None
        known = carm is not None and not carm.camera.parallel
        rows = scene.results.projection_matrix(carm.camera, carm.pose).tolist() if known else []
        text = "\n".join(" ".join(f"{value:.9g}" for value in row) for row in rows)
        if self.ui.projectionMatrix.plainText != text:
            self.ui.projectionMatrix.plainText = text
