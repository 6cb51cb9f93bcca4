"""Models of the scene in the beam: implants, wires, screws and tools, each of a material.

What a model is made of, whether it is in the beam and which others it displaces is kept on the model itself; what
structures are made of is kept on the node of the labels. So both go with the scene.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import vtk
from vtk.util.numpy_support import vtk_to_numpy

from DiffDRRCore.physics import BeamObject, Mesh, material, material_names
from DiffDRRSlicerLib.names import of_class
from DiffDRRSlicerLib.scene import nodes
from DiffDRRSlicerLib.scene.carm import CArmNode, belongings
from DiffDRRSlicerLib.scene.errors import SceneError

METALS = ("titanium", "Ti6Al4V", "stainless steel 316L", "cobalt chrome", "nitinol", "tungsten", "PMMA", "PEEK")
"""Materials of implants and tools, the commonest first; `DiffDRRCore.physics.material_names` has all."""
PRIORITIES = range(1, 100)
_OURS = "DiffDRR."
_MATERIAL, _ENABLED, _PRIORITY = "DiffDRR.Material", "DiffDRR.InBeam", "DiffDRR.Priority"  # attributes of a model
_OF_IMPLANTS = {_MATERIAL, _ENABLED, _PRIORITY}
_MATERIALS = "DiffDRR.Materials"  # attribute of labels, JSON: {structure: material}


def material_choices() -> list[str]:
    """All materials, those of implants and tools first."""
    return [*METALS, *(name for name in material_names() if name not in METALS)]


def set_implant(model, material_name: str | None, enabled: bool = True, priority: int | None = None) -> None:
    """Say what a model is made of and whether X-rays show it; None forgets it.

    Args:
        priority: where models overlap, the higher one is there, 1 to 99; None leaves it as it is, at first 1.

    Raises PhysicsError for no material, SceneError for another priority.
    """
    if material_name is None:
        for name in _OF_IMPLANTS:
            model.RemoveAttribute(name)
        return
    name = material(material_name).name
    if priority is not None and priority not in PRIORITIES:
        raise SceneError(f"The priority of '{model.GetName()}' is a whole number from 1 to 99, not {priority!r}.")
    model.SetAttribute(_MATERIAL, name)
    model.SetAttribute(_ENABLED, "1" if enabled else "0")
    if priority is not None:
        model.SetAttribute(_PRIORITY, str(int(priority)))


def implant_priority(model) -> int:
    """What was said, else 1; of equal ones the model that comes later in the scene is there."""
    text = model.GetAttribute(_PRIORITY) or ""
    return int(text) if text.isdecimal() and int(text) in PRIORITIES else 1


def implant_material(model) -> str:
    """What a model is made of: what was said, else titanium."""
    return model.GetAttribute(_MATERIAL) or METALS[0]


def is_enabled(model) -> bool:
    """Whether X-rays show it."""
    return model.GetAttribute(_ENABLED) == "1"


def implants(scene) -> dict[Any, str]:
    """{model node: material} of those that are in the beam."""
    return {model: implant_material(model) for model in models(scene) if is_enabled(model)}


def models(scene) -> list:
    """The scene's models that may be implants: not the planes of slice views, nor what this module draws itself."""
    found = of_class(scene, "vtkMRMLModelNode")
    drawn = _drawn(scene)
    return [
        model
        for model in found
        if not model.GetHideFromEditors()
        and model.GetID() not in drawn
        and not {name for name in model.GetAttributeNames() if name.startswith(_OURS)} - _OF_IMPLANTS
    ]


def set_structure_material(labels, structure: str, material_name: str | None) -> None:
    """Say what a labelled structure is made of, whatever its HU; None is what the CT says."""
    kept = structure_materials(labels)
    kept.pop(structure, None)
    if material_name is not None:
        kept[structure] = material(material_name).name
    nodes.write_json(labels, _MATERIALS, kept or None)


def structure_materials(labels) -> dict[str, str]:
    """{structure: material} as said by `set_structure_material`."""
    return {} if labels is None else dict(nodes.read_json(labels, _MATERIALS, {}))


def beam_objects(chosen: Mapping[Any, str], from_world=None) -> list[BeamObject]:
    """Models as objects in the beam, exact to each triangle, with their priorities.

    Args:
        chosen: {model node: material}.
        from_world: [4, 4] from the world to the coordinates of the result; None is the world.

    Raises SceneError for another node, or one that was removed or has no surface; PhysicsError for an unknown material
    and for a surface that is open or inside out.
    """
    matrix = np.eye(4) if from_world is None else np.asarray(from_world)
    names = _names(chosen)
    return [
        BeamObject(_mesh(model, name, matrix), chosen_material, priority=implant_priority(model), name=name)
        for (model, chosen_material), name in zip(chosen.items(), names, strict=True)
    ]


def _drawn(scene) -> set[str]:
    """IDs of what the C-arms draw."""
    return {node.GetID() for carm in CArmNode.all(scene) for node in belongings(carm)}


def _names(chosen) -> list[str]:
    """Of the nodes, each of its own."""
    names: list[str] = []
    for model in chosen:
        name, number = model.GetName() or "model", 1
        while name in names:
            number += 1
            name = f"{model.GetName()} {number}"
        names.append(name)
    return names


def _mesh(model, name: str, from_world: nodes.Matrix) -> Mesh:
    surface = model.GetPolyData() if model is not None and model.IsA("vtkMRMLModelNode") else None
    if surface is None or model.GetScene() is None or surface.GetNumberOfPoints() == 0:
        raise SceneError(f"'{name}' has no surface that X-rays could show; choose another model, or switch it off.")
    local, triangles = _triangles(surface)
    vertices = nodes.transformed(from_world, _in_world(model, local))
    if len(triangles) and _volume(local, triangles) * _volume(vertices, triangles) < 0:
        triangles = triangles[:, ::-1]  # a transform that mirrors turns them inside out
    return Mesh(vertices, np.ascontiguousarray(triangles), name)


def _triangles(surface) -> tuple[np.ndarray, np.ndarray]:
    """(points [V, 3], triangles [M, 3]) of polydata."""
    cut = vtk.vtkTriangleFilter()
    cut.SetInputData(surface)
    cut.PassLinesOff()
    cut.PassVertsOff()
    cut.Update()
    output = cut.GetOutput()
    cells = output.GetPolys()
    corners = vtk_to_numpy(cells.GetConnectivityArray()) if cells.GetNumberOfCells() else np.zeros(0)
    return vtk_to_numpy(output.GetPoints().GetData()).astype(float), corners.astype(np.int64).reshape(-1, 3)


def _in_world(model, points: np.ndarray) -> np.ndarray:
    """Through all transforms above the model, bent ones too."""
    parent = model.GetParentTransformNode()
    if parent is None:
        return points
    if parent.IsTransformToWorldLinear():
        return nodes.transformed(nodes.parent_to_world(model), points)
    above = vtk.vtkGeneralTransform()
    parent.GetTransformToWorld(above)
    return np.array([above.TransformPoint(point) for point in points])


def _volume(vertices: np.ndarray, triangles: np.ndarray) -> float:
    a, b, c = np.moveaxis((vertices - vertices.mean(axis=0))[triangles], 1, 0)
    return float((a * np.cross(b, c)).sum())
