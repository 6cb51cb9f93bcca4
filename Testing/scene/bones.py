"""Two lumpy bones in soft matter, in a CT with a labelmap or a segmentation; for the tests of bones."""

from __future__ import annotations

import numpy as np
import slicer

from Testing.scene import kit

SHAPE = (24, 20, 30)
NAMES = {1: "left bone", 2: "right bone"}


def voxels() -> tuple[np.ndarray, np.ndarray]:
    """HU int16 and labels int16, [K, J, I]."""
    k, j, i = np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    lumps = 700 + 500 * np.sin(7 * k + 3 * i) * np.cos(5 * j + 2 * k)
    left = ((i + 0.45) ** 2 / 0.1 + j**2 / 0.35 + k**2 / 0.5) < 1
    right = ((i - 0.45) ** 2 / 0.08 + j**2 / 0.25 + k**2 / 0.6) < 1
    soft = (i**2 + j**2 + k**2) < 1.2
    hu = np.where(left | right, lumps, np.where(soft, 20.0, -1000.0))
    return hu.astype(np.int16), (left + 2 * right).astype(np.int16)


def grid() -> np.ndarray:
    """Oblique, left-handed, about 6 mm."""
    return kit.grid(np.random.default_rng(3), SHAPE, spacing=(5.5, 7.0))


def add_ct(scene, parent=None):
    """The CT's node."""
    return kit.add_volume(scene, voxels()[0], grid(), parent)


def add_labelmap(scene, parent=None):
    """A labelmap node with a colour table that names the bones."""
    node = kit.add_volume(scene, voxels()[1], grid(), parent, "labels", "vtkMRMLLabelMapVolumeNode")
    table = scene.AddNewNodeByClass("vtkMRMLColorTableNode", "names")
    table.SetTypeToUser()
    table.SetNumberOfColors(3)
    for number, name in {0: "background", **NAMES}.items():
        table.SetColor(number, name, 0.2 * number, 0.5, 0.5, 1.0)
    node.CreateDefaultDisplayNodes()
    node.GetDisplayNode().SetAndObserveColorNodeID(table.GetID())
    return node


def add_segmentation(scene, parent=None):
    """A segmentation node of the same."""
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "segmentation")
    node.CreateDefaultDisplayNodes()
    if parent is not None:
        node.SetAndObserveTransformNodeID(parent.GetID())
    for number, name in NAMES.items():
        mask = kit.add_volume(scene, (voxels()[1] == number).astype(np.int16), grid(), parent, name, _LABELMAP)
        slicer.vtkSlicerSegmentationsModuleLogic.ImportLabelmapToSegmentationNode(mask, node)
        scene.RemoveNode(mask)
        node.GetSegmentation().GetNthSegment(number - 1).SetName(name)
    return node


_LABELMAP = "vtkMRMLLabelMapVolumeNode"
