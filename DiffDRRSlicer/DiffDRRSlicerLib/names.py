"""How nodes of the scene are known, for code that must not load torch."""

from __future__ import annotations

MARK = "DiffDRR.CArm"  # attribute of a C-arm's transform: selectors filter by it
BODY = "DiffDRR.Body"  # attribute of a bone's transform


def choose_first(scene, parameters) -> None:
    """Choose the scene's first C-arm and its first volume of several slices, where none is chosen."""
    if parameters.carm is None:
        transforms = of_class(scene, "vtkMRMLLinearTransformNode")
        parameters.carm = next((node for node in transforms if node.GetAttribute(MARK) is not None), None)
    if parameters.ct is None:
        volumes = of_class(scene, "vtkMRMLScalarVolumeNode")
        parameters.ct = next((node for node in volumes if _has_slices(node)), None)


def of_class(scene, name: str) -> list:
    """Nodes of this very class, in the scene's order."""
    nodes = (scene.GetNthNodeByClass(index, name) for index in range(scene.GetNumberOfNodesByClass(name)))
    return [node for node in nodes if node.GetClassName() == name]


def _has_slices(volume) -> bool:
    return volume.GetImageData() is not None and volume.GetImageData().GetDimensions()[2] > 1
