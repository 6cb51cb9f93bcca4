"""Keep: files, copies as volumes, the projection matrix."""

from __future__ import annotations

import qt
import slicer

from DiffDRRSlicerLib import scene
from DiffDRRSlicerLib.panel.section import Section


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
        """Write the files."""
        folder = self.ui.outputPath.currentPath
        if not folder:
            raise ValueError("Choose a folder first.")
        parameters = self.panel.parameters
        files = self.panel.logic.saveResults(folder, parameters.carm, parameters.ct, self.panel.outcome)
        self.ui.keepNotes.text = f"Saved {', '.join(path.name for path in files)}."

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
