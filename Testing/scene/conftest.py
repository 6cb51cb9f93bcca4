"""A scene of real MRML nodes for each test."""

from __future__ import annotations

import pytest

slicer = pytest.importorskip("slicer", reason="slicer-core is not installed")


def new_scene():
    """A scene with the nodes and conversions of Slicer's modules; keep the logics as long as it."""
    scene = slicer.vtkMRMLScene()
    logics = [
        slicer.vtkMRMLApplicationLogic(),  # adds the selection and interaction nodes that other logics ask for
        slicer.vtkSlicerSequencesLogic(),
        slicer.vtkSlicerSegmentationsModuleLogic(),
        slicer.vtkSlicerMarkupsLogic(),
    ]
    for logic in logics:
        logic.SetMRMLScene(scene)
    return scene, logics


@pytest.fixture
def scene():
    from DiffDRRSlicerLib.scene import anatomy

    scene, logics = new_scene()
    yield scene
    anatomy.forget()
    scene.Clear(True)
    del logics
