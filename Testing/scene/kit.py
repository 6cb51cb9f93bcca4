"""Nodes and geometry for the tests of the scene; nothing here calls what is tested."""

from __future__ import annotations

import numpy as np
import slicer
import slicer.util
import vtk

from Testing.core.samples import rigid, rotation

HIDDEN = "vtkMRMLScalarVolumeDisplayNode", "vtkMRMLLabelMapVolumeDisplayNode"


def matrix(array) -> vtk.vtkMatrix4x4:
    result = vtk.vtkMatrix4x4()
    for row in range(4):
        for column in range(4):
            result.SetElement(row, column, float(array[row][column]))
    return result


def add_volume(scene, voxels, ijk_to_ras, parent=None, name="CT", kind="vtkMRMLScalarVolumeNode"):
    node = scene.AddNewNodeByClass(kind, name)
    slicer.util.updateVolumeFromArray(node, np.ascontiguousarray(voxels))
    node.SetIJKToRASMatrix(matrix(ijk_to_ras))
    if parent is not None:
        node.SetAndObserveTransformNodeID(parent.GetID())
    return node


def add_transform(scene, array, parent=None, name="transform"):
    node = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode", name)
    node.SetMatrixTransformToParent(matrix(array))
    if parent is not None:
        node.SetAndObserveTransformNodeID(parent.GetID())
    return node


def add_bend(scene, name="bend"):
    """A thin plate spline that is not linear."""
    spline = vtk.vtkThinPlateSplineTransform()
    spline.SetBasisToR()
    source, target = vtk.vtkPoints(), vtk.vtkPoints()
    for point in ((0, 0, 0), (100, 0, 0), (0, 100, 0), (0, 0, 100), (50, 50, 50)):
        source.InsertNextPoint(point)
        target.InsertNextPoint(point if point != (50, 50, 50) else (60, 50, 50))
    spline.SetSourceLandmarks(source)
    spline.SetTargetLandmarks(target)
    node = scene.AddNewNodeByClass("vtkMRMLTransformNode", name)
    node.SetAndObserveTransformToParent(spline)
    return node


def grid(rng, shape, left_handed=True, spacing=(0.7, 2.5), shear=0.0) -> np.ndarray:
    """An oblique, anisotropic ijk_to_ras of the asked hand, its middle near the origin."""
    affine = np.eye(4)
    axes = rotation(rng) @ (np.eye(3) + shear * np.triu(rng.uniform(-1, 1, (3, 3)), 1))
    scale = rng.uniform(*spacing, 3)
    scale[0] *= -1 if left_handed else 1
    affine[:3, :3] = axes * scale
    affine[:3, 3] = rng.normal(0, 2, 3) - affine[:3, :3] @ ((np.array(shape[::-1]) - 1) / 2)
    return affine


def scaled(rng, spread=3.0) -> np.ndarray:
    """A rigid motion after a different scale along each axis."""
    return rigid(rng, spread) @ np.diag([*rng.uniform(0.8, 1.25, 3), 1.0])


def node_ids(scene) -> set[str]:
    return {scene.GetNthNode(index).GetID() for index in range(scene.GetNumberOfNodes())}


def apply(array, points) -> np.ndarray:
    return np.asarray(points, float) @ np.asarray(array)[:3, :3].T + np.asarray(array)[:3, 3]


def to_world(volume) -> np.ndarray:
    """[4, 4] from voxel index to the world, as MRML itself transforms points."""
    affine = np.eye(4)
    corners = [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]
    ijk_to_ras = vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(ijk_to_ras)
    world = []
    for corner in corners:
        local, point = ijk_to_ras.MultiplyPoint([*corner, 1]), [0.0, 0.0, 0.0]
        volume.TransformPointToWorld(local[:3], point)
        world.append(point)
    world = np.array(world)
    affine[:3, 3] = world[0]
    affine[:3, :3] = (world[1:] - world[0]).T
    return affine
