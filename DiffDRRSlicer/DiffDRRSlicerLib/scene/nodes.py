"""Conveniences over MRML nodes: matrices, references, values in attributes, images."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import slicer.util
import vtk
from numpy.typing import NDArray

from DiffDRRSlicerLib.scene.errors import SceneError

Matrix = NDArray[np.float64]
_RIGID = 1e-4  # largest deviation of R^T R from the identity
_IDENTITY = np.eye(3)


def to_vtk(matrix) -> vtk.vtkMatrix4x4:
    """A vtkMatrix4x4 of a [4, 4] array."""
    result = vtk.vtkMatrix4x4()
    result.DeepCopy(np.asarray(matrix, dtype=float).ravel().tolist())
    return result


def from_vtk(matrix: vtk.vtkMatrix4x4) -> Matrix:
    """[4, 4] of a vtkMatrix4x4."""
    array = np.empty((4, 4))
    matrix.DeepCopy(array.ravel(), matrix)  # GetData() gives numbers from VTK 9.2 on only
    return array


def parent_to_world(node) -> Matrix:
    """[4, 4] from the coordinates that a node is stored in to the world, by all transforms above it.

    Raises SceneError where one of them is not linear.
    """
    parent = node.GetParentTransformNode()
    if parent is None:
        return np.eye(4)
    matrix = vtk.vtkMatrix4x4()
    if not parent.IsTransformToWorldLinear() or not parent.GetMatrixTransformToWorld(matrix):
        raise SceneError(
            f"The transform '{parent.GetName()}' above '{node.GetName()}' is not linear; harden it on the node, or "
            "move the node out of it."
        )
    return from_vtk(matrix)


def transform_to_world(transform) -> Matrix:
    """[4, 4] from below a linear transform node to the world. Raises SceneError as `parent_to_world`."""
    return parent_to_world(transform) @ transform_to_parent(transform)


def transform_to_parent(transform) -> Matrix:
    """[4, 4] of a linear transform node alone."""
    matrix = vtk.vtkMatrix4x4()
    transform.GetMatrixTransformToParent(matrix)
    return from_vtk(matrix)


def set_transform_to_world(transform, matrix) -> None:
    """Make a linear transform node take what is below it to the world by `matrix`; no event where it does already."""
    local = np.linalg.solve(parent_to_world(transform), np.asarray(matrix, dtype=float))
    set_transform_to_parent(transform, local)


def set_transform_to_parent(transform, matrix) -> None:
    """Write a transform node's matrix; no event where it is that already."""
    if not np.array_equal(transform_to_parent(transform), matrix):
        transform.SetMatrixTransformToParent(to_vtk(matrix))


def is_rigid(matrix: Matrix) -> bool:
    """Whether it is a rotation and a translation, without reflection or scale."""
    rotation = matrix[:3, :3]
    return bool(np.abs(rotation.T @ rotation - _IDENTITY).max() < _RIGID and np.linalg.det(rotation) > 0)


def transformed(matrix: Matrix, points) -> Matrix:
    """[..., 3] points taken by an affine [4, 4]."""
    return np.asarray(points, dtype=float) @ matrix[:3, :3].T + matrix[:3, 3]


def add_node(scene, class_name: str, name: str, parent=None, selectable: bool = True):
    """A new node with a unique name, below the transform node `parent`.

    `selectable` False keeps it out of selectors and the Data module: a helper that the user does not choose.
    """
    node = scene.AddNewNodeByClass(class_name, scene.GenerateUniqueName(name))
    if parent is not None:
        node.SetAndObserveTransformNodeID(parent.GetID())
    if not selectable:
        node.SetHideFromEditors(True)
    return node


def remove_node(node) -> None:
    """Remove a node and its display and storage nodes from its scene; None and removed nodes are fine."""
    scene = None if node is None else node.GetScene()
    if scene is None:
        return
    count = node.GetNumberOfDisplayNodes() if node.IsA("vtkMRMLDisplayableNode") else 0
    displays = [node.GetNthDisplayNode(index) for index in range(count)]
    scene.RemoveNode(node)  # first: Slicer's views of segmentations do not survive one that has lost its display
    for display in displays:
        if display is not None and display.GetScene() is scene:
            scene.RemoveNode(display)


def read_json(node, key: str, default: Any = None) -> Any:
    """The value that `write_json` put into a node's attribute; `default` where there is none.

    Raises SceneError where somebody else wrote there.
    """
    text = node.GetAttribute(key)
    return parse_json(text, key, node.GetName()) if text else default


def parse_json(text: str, key: str, owner: str) -> Any:
    """The value of an attribute's text. Raises SceneError, with the attribute's name and its node's, for another."""
    try:
        return json.loads(text)
    except ValueError as error:
        raise SceneError(f"The attribute '{key}' of '{owner}' is damaged: {error}.") from error


def write_json(node, key: str, value: Any) -> None:
    """Keep a plain value in a node's attribute, which scenes save; None removes it. Raises SceneError for another."""
    try:
        text = None if value is None else json.dumps(value)
    except (TypeError, ValueError) as error:
        raise SceneError(f"'{node.GetName()}' cannot keep '{key}', which is no plain value: {error}.") from error
    if node.GetAttribute(key) != text:
        if text is None:
            node.RemoveAttribute(key)
        else:
            node.SetAttribute(key, text)


def volume_grid(volume) -> Matrix:
    """[4, 4] from voxel index to the coordinates that a volume node is stored in."""
    matrix = vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(matrix)
    return from_vtk(matrix)


def set_image(volume, image, ijk_to_local) -> None:
    """Write an image [H, W] or a volume [K, J, I] and its [4, 4] grid to a scalar volume node, in one event."""
    image = np.ascontiguousarray(image)
    with slicer.util.NodeModify(volume):
        volume.SetIJKToRASMatrix(to_vtk(ijk_to_local))
        slicer.util.updateVolumeFromArray(volume, image if image.ndim == 3 else image[None])


def get_image(volume) -> NDArray:
    """A copy of a volume node's first slice [H, W]. Raises SceneError where it has no voxels."""
    if volume is None or volume.GetImageData() is None or volume.GetImageData().GetNumberOfPoints() == 0:
        raise SceneError(f"'{'nothing' if volume is None else volume.GetName()}' has no image yet; load it first.")
    return np.array(slicer.util.arrayFromVolume(volume)[0])
