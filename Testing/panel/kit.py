"""A phantom patient on the panel, and what a user does with it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import slicer
import slicer.util
import vtk

from DiffDRRCore.datasets.phantom import phantom
from Testing.scene.kit import add_volume


def add_phantom(scene, name="CT", spacing=8.0, shape=(48, 36, 42), labels=False):
    """The phantom's CT as a volume node, and its labels as a labelmap node where asked for."""
    volume = phantom(shape=shape, spacing=spacing)
    ct = _add(scene, "vtkMRMLScalarVolumeNode", name, volume.hu.numpy().astype(np.int16), volume)
    if not labels:
        return ct
    node = _add(scene, "vtkMRMLLabelMapVolumeNode", f"{name} labels", volume.labels.numpy().astype(np.int16), volume)
    return ct, node


def _add(scene, class_name, name, voxels, volume):
    node = scene.AddNewNodeByClass(class_name, name)
    slicer.util.updateVolumeFromArray(node, voxels)
    matrix = vtk.vtkMatrix4x4()
    matrix.DeepCopy(volume.ijk_to_ras.numpy().ravel().tolist())
    node.SetIJKToRASMatrix(matrix)
    return node


def settle(app, panel, seconds=10.0):
    """Let the panel's timer run until the picture is sharp and the widgets show it."""
    panel.tick()
    app.wait_until(lambda: panel.at_rest, seconds)


def simulated(app, widget, size=96, **options):
    """Choose a phantom, with its labels where asked for, and press "Simulate an X-ray"."""
    added = add_phantom(app.scene, **options)
    ct, labels = added if isinstance(added, tuple) else (added, None)
    panel = widget.panel
    panel.parameters.ct, panel.parameters.labels = ct, labels
    panel.parameters.carm = panel.logic.createCArm(ct, size, size, (384 / size, 384 / size))
    settle(app, panel)
    sections(panel)["Load"].ui.simulateButton.click()
    settle(app, panel)
    return ct


def sections(panel):
    """{title: section}."""
    return {section.title: section for section in panel.sections.values()}


def open_all(panel):
    """Open every section and group, as a user does before clicking in it."""
    for section in panel.sections.values():
        section.button.collapsed = False
        for name, child in vars(section.ui).items():
            if name.endswith("Group"):
                child.collapsed = False


SMALL = {"shape": (24, 18, 21), "spacing": 16.0, "size": 64}


def picture(panel):
    """The DRR's pixels, a copy."""
    return np.array(slicer.util.arrayFromVolume(panel.carm.referred("drr"))[0])


def registered(app, panel, seconds=120):
    """Press Register and wait for its end."""
    register = sections(panel)["Register"]
    register.ui.registerButton.click()
    app.wait_until(lambda: register.running is None, seconds)
    settle(app, panel)


def node_count(scene):
    """{class: number of nodes}."""
    return Counter(scene.GetNthNode(index).GetClassName() for index in range(scene.GetNumberOfNodes()))


def save_scene(scene, folder) -> Path:
    """Save as Slicer does for a .mrb file; returns the scene's file."""
    Path(folder).mkdir()
    assert scene.SaveSceneToSlicerDataBundleDirectory(str(folder), None)
    return next(Path(folder).glob("*.mrml"))


def load_scene(scene, path) -> None:
    """Close the scene and load another one, as Slicer does with "File > Load"."""
    scene.SetURL(str(path))
    assert scene.Connect()
    slicer.app.processEvents()


def reload(app, widget):
    """Press "Reload" of the developer's section; returns the new widget."""
    widget.onReload()
    new = getattr(slicer.modules, f"{widget.moduleName}Widget")
    app._widgets[app._widgets.index(widget)] = new
    return new


def choose_structures(panel, names):
    """Check boxes of the structures' selector."""
    import qt

    combo = sections(panel)["Register"].ui.structuresSelector
    offered = [combo.itemText(index) for index in range(combo.count)]
    for row, name in enumerate(offered):
        combo.setCheckState(combo.model().index(row, 0), qt.Qt.Checked if name in names else qt.Qt.Unchecked)
    return offered


def add_blocks(scene, grid, shape=(24, 18, 21)):
    """A segmentation of two blocks on the grid of a CT."""
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode", "segmentation")
    node.CreateDefaultDisplayNodes()
    masks = np.zeros((2, *shape), np.int16)
    masks[0, 6:12, 4:14, 5:10], masks[1, 12:18, 4:14, 11:16] = 1, 1
    for mask, name in zip(masks, ("left", "right"), strict=True):
        labels = add_volume(scene, mask, grid, name=name, kind="vtkMRMLLabelMapVolumeNode")
        slicer.vtkSlicerSegmentationsModuleLogic.ImportLabelmapToSegmentationNode(labels, node)
        scene.RemoveNode(labels)
    for index, name in enumerate(("left", "right")):
        node.GetSegmentation().GetNthSegment(index).SetName(name)
    return node, masks


def draw_region(app, panel, kind):
    """A region around the X-ray's pixels 20 to 40 (u) and 15 to 45 (v), as if drawn in its view. Returns the markup."""
    from DiffDRRSlicerLib.scene import carm as carms
    from DiffDRRSlicerLib.scene import nodes

    markup = sections(panel)["Register"].ui.regionSelector.addNode(kind)
    corners = carms.pixels_to_points(panel.carm.camera, [(19.5, 14.5), (40.5, 14.5), (40.5, 45.5), (19.5, 45.5)])
    world = nodes.transformed(nodes.transform_to_world(panel.carm.plane), corners)
    if kind == "vtkMRMLMarkupsROINode":
        markup.SetXYZ(*corners.mean(axis=0))  # it hangs below the X-ray's plane from the beginning
        markup.SetSize(*np.add(np.ptp(corners, axis=0), (0, 0, 10)))
    else:
        markup.SetCurveTypeToLinear()
        for point in world:
            markup.AddControlPointWorld(*point)
    settle(app, panel)
    return markup
