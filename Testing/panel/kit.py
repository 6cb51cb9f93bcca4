"""A phantom patient on the panel, and what a user does with it."""

from __future__ import annotations

import numpy as np
import slicer
import slicer.util
import vtk

from DiffDRRCore.datasets.phantom import phantom


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
    """Choose a phantom and press "Simulate an X-ray"."""
    ct = add_phantom(app.scene, **options)
    panel = widget.panel
    panel.parameters.ct = ct
    panel.parameters.carm = panel.logic.createCArm(ct, size, size, (384 / size, 384 / size))
    settle(app, panel)
    sections(panel)["Load"].ui.simulateButton.click()
    settle(app, panel)
    return ct


def sections(panel):
    """{title: section}."""
    return {section.title: section for section in panel.sections.values()}
