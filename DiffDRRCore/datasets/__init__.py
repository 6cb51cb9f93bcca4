"""Data to register: published datasets, folders of one's own, and a synthetic CT and shapes with known answers."""

from __future__ import annotations

from DiffDRRCore.datasets.dataset import Dataset, Subject, View
from DiffDRRCore.datasets.deepfluoro import DeepFluoro
from DiffDRRCore.datasets.folder import Folder
from DiffDRRCore.datasets.ljubljana import Ljubljana
from DiffDRRCore.datasets.opening import open_dataset
from DiffDRRCore.datasets.phantom import phantom, phantom_landmarks
from DiffDRRCore.datasets.shapes import Box, Cylinder, Shape, Sphere, voxelize
from DiffDRRCore.datasets.simulated import Simulated

__all__ = [
    "Box",
    "Cylinder",
    "Dataset",
    "DeepFluoro",
    "Folder",
    "Ljubljana",
    "Shape",
    "Simulated",
    "Sphere",
    "Subject",
    "View",
    "open_dataset",
    "phantom",
    "phantom_landmarks",
    "voxelize",
]
