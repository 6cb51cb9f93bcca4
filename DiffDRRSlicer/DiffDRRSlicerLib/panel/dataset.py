"""Dataset: a CT with an X-ray, landmarks and true poses of a published or an own dataset."""

from __future__ import annotations

from contextlib import contextmanager

import qt
import slicer

from DiffDRRSlicerLib import install, scene
from DiffDRRSlicerLib.panel.section import NotReadyError, Section, fill


class DatasetSection(Section):
    """Open a dataset, choose a subject and an X-ray, load them."""

    title = "Dataset"
    ui_file = "Dataset.ui"
    collapsed = True

    def setup(self) -> None:
        self._path, self._dataset = "", None  # what the lists show
        self.click("datasetFolderButton", self.choose_folder, "The folder cannot be chosen.")
        self.click("openDatasetButton", self.open, "The dataset could not be opened.")
        self.click("loadViewButton", self.load, "The X-ray could not be loaded.")
        self.ui.subjectSelector.connect("currentIndexChanged(int)", self._subject_chosen)
        self._show_lists()

    def choose_folder(self) -> None:
        """A dataset that is a folder: the path's own button chooses files only."""
        path = qt.QFileDialog.getExistingDirectory(self.root, "Folder of a dataset", self.ui.datasetPath.currentPath)
        if path:
            self.ui.datasetPath.currentPath = path
            self.open()

    def open(self) -> None:
        """List subjects and X-rays; no image is read."""
        path = self.ui.datasetPath.currentPath.strip()
        if not path:
            raise NotReadyError("Choose a file or a folder first.")
        self._path, self._dataset = path, None
        self._show_lists()
        if scene.datasets.needs_hdf5(path):
            install.install_hdf5()
        with self._busy("Opening the dataset ..."):
            self._dataset = self.panel.logic.openDataset(path)
            self._show_lists()
        self.ui.datasetPath.addCurrentPathToHistory()
        count = len(self._dataset.subject_names)
        self.ui.datasetNotes.text = f"{self._dataset.title}: {count} {'subject' if count == 1 else 'subjects'}."

    def load(self) -> None:
        """Load the chosen X-ray, and its subject where that is not in the scene; all else then works on them."""
        subjects, views = self.ui.subjectSelector, self.ui.viewSelector
        if self._dataset is None or min(subjects.currentIndex, views.currentIndex) < 0:
            raise NotReadyError("Open a dataset first, and choose an X-ray of it.")
        names = (combo.itemText(combo.currentIndex) for combo in (subjects, views))
        start = scene.datasets.STARTS[self.ui.startSelector.currentIndex]
        with self._busy("Reading the images; a large CT takes some seconds ..."):
            loaded = self.panel.logic.loadFromDataset(self._path, *names, start)
        self._choose(loaded)
        self.ui.datasetNotes.text = _told(loaded)

    def _choose(self, loaded) -> None:
        parameters = self.panel.parameters
        parameters.ct, parameters.labels = loaded.ct, loaded.labels
        parameters.ctLandmarks, parameters.carm = loaded.landmarks, loaded.carm
        self.panel.added(scene.carm.CArmNode(loaded.carm))
        if loaded.new and slicer.app.applicationLogic() is not None:  # as Slicer shows what it has loaded itself
            slicer.app.applicationLogic().GetSelectionNode().SetActiveVolumeID(loaded.ct.GetID())
            slicer.app.applicationLogic().PropagateBackgroundVolumeSelection()

    def apply(self) -> None:
        """Outline the X-ray's structures in its view."""
        carm, views = self.panel.carm, scene.layout.view_nodes(slicer.mrmlScene)
        if carm is not None and views is not None:
            composite = scene.layout.composite_node(slicer.mrmlScene, views.xray)
            scene.datasets.show_outlines(views.xray, composite, carm, self.panel.parameters.showSegmentation)

    def refresh(self) -> None:
        carm = self.panel.carm
        self.ui.showSegmentation.enabled = carm is not None and carm.referred("segmentation") is not None

    def _subject_chosen(self, *_) -> None:
        with self.panel.attempt("The X-rays of the subject cannot be listed."):
            self._show_views()

    def _show_lists(self) -> None:
        with self.quiet("subjectSelector"):
            fill(self.ui.subjectSelector, () if self._dataset is None else self._dataset.subject_names)
        self.ui.datasetNotes.text = ""
        self._show_views()

    def _show_views(self) -> None:
        subject = self.ui.subjectSelector.currentIndex
        known = self._dataset is not None and subject >= 0
        self.ui.loadViewButton.enabled = False
        fill(self.ui.viewSelector, self._dataset.subjects[subject].view_names if known else ())
        self.ui.loadViewButton.enabled = self.ui.viewSelector.count > 0

    @contextmanager
    def _busy(self, text: str):
        """Say what is being done, which nothing can disturb."""
        self.ui.datasetNotes.text, self.root.enabled = text, False
        try:
            with slicer.util.WaitCursor():  # draws the text, too
                yield
        finally:
            self.ui.datasetNotes.text, self.root.enabled = "", True


def _told(loaded) -> str:
    """What was loaded, in a sentence."""
    count = 0 if loaded.xray_landmarks is None else loaded.xray_landmarks.GetNumberOfControlPoints()
    parts = [
        "no reference pose" if loaded.reference is None else "",
        f"{count} landmarks" if count else "",
        "segmentation" if loaded.segmentation is not None else "",
        f"own poses of {', '.join(loaded.bodies)}" if loaded.bodies else "",
    ]
    more = ", ".join(part for part in parts if part)
    return f"Loaded '{loaded.carm.GetName()}'{': ' if more else ''}{more}."
