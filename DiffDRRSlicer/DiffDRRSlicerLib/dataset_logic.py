"""The part of the module's logic that opens datasets."""

from __future__ import annotations

from pathlib import Path

import slicer

from DiffDRRSlicerLib import scene


class DatasetLogic:
    """Methods of `DiffDRRSlicerLogic`."""

    def openDataset(self, path, **options):
        """The DiffDRRCore dataset in a file or folder: its `subjects`, each with `volume`, `landmarks` and `views`.

        :param options: of DiffDRRCore.datasets.DeepFluoro, Ljubljana or Folder.
        """
        from DiffDRRCore.datasets.opening import open_dataset

        return open_dataset(path, **options)

    def loadFromDataset(self, path, subject=0, xray=0, start="reference", **options):
        """An X-ray of a dataset with its CT, labels, landmarks, segmentation and true poses, as nodes: `Loaded`.

        A CT of this dataset and subject that is in the scene already is used; poses go with the transforms above it.

        :param subject, xray: names, or places from 0.
        :param start: where the C-arm is put: "reference" pose, image's "header", or "center" of the CT, from behind.
        :param options: as of `openDataset`.
        """
        chosen = self.openDataset(path, **options).subjects[subject]
        return scene.datasets.load_view(slicer.mrmlScene, chosen, xray, Path(path).resolve(), start)
