"""The bone's surface in 3D, from the CT's values or from structures."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import scipy.ndimage
import slicer.util
import vtk
from vtk.util.numpy_support import numpy_to_vtk

from DiffDRRSlicerLib.scene import nodes
from DiffDRRSlicerLib.scene.anatomy import Anatomy
from DiffDRRSlicerLib.scene.errors import SceneError

_ROLE, _STATE = "DiffDRR.surface", "DiffDRR.SurfaceOf"
_VOXEL = 2.0  # mm: smaller voxels are averaged to about this
_AIR = -1000.0
_BODY, _PART = -300.0, 0.05  # HU above which things touch; share of the largest thing that others must have to be shown
_BONE = (0.95, 0.87, 0.73)
_MOST_TRIANGLES = 600_000


def bone_surface(anatomy: Anatomy, structures=None, threshold: float = 200.0):
    """A model of the bone, below the same transform as the CT; the CT's own node again on the next call.

    Without structures, what lies apart from the body and is much smaller (the table, cables) is left out: it would
    hide the bones from a source below the table.

    Args:
        structures: names or numbers of the structures to show; None takes the CT's values.
        threshold: HU of the surface, without structures.

    Returns:
        vtkMRMLModelNode with normals that point outwards, made anew only where something has changed.

    Raises SceneError where nothing is as dense, or the structures have no voxels in the CT.
    """
    ct = anatomy.ct
    numbers = _numbers(anatomy, structures)
    state = _state(anatomy, numbers, threshold)
    model = ct.GetNodeReference(_ROLE)
    if model is None or nodes.read_json(model, _STATE) != state:
        field = _voxels(anatomy, threshold) if numbers is None else _labelled(anatomy, numbers)
        surface = _surface(field, nodes.volume_grid(ct))
        model = model or _new_model(ct)
        model.SetAndObservePolyData(surface)
        nodes.write_json(model, _STATE, state)
    if model.GetTransformNodeID() != ct.GetTransformNodeID():
        model.SetAndObserveTransformNodeID(ct.GetTransformNodeID())
    return model


def structure_surface(anatomy: Anatomy, structures) -> vtk.vtkPolyData:
    """The surface of some structures (names or numbers), in the coordinates that the CT's node is stored in.

    Raises SceneError as `bone_surface`.
    """
    return _surface(_labelled(anatomy, _numbers(anatomy, structures)), nodes.volume_grid(anatomy.ct))


def find_bone_surface(anatomy: Anatomy):
    """The model that `bone_surface` made, or None."""
    return anatomy.ct.GetNodeReference(_ROLE)


def _numbers(anatomy: Anatomy, structures) -> list[int] | None:
    if not structures:
        return None
    volume = anatomy.volume
    if volume.labels is None:
        raise SceneError("Structures were chosen, but there is no segmentation; choose one, or show all bone.")
    return sorted(volume.label_id(one) if isinstance(one, str) else int(one) for one in structures)


def _state(anatomy: Anatomy, numbers, threshold: float) -> list:
    labels = None if numbers is None else [numbers, int(anatomy.volume.labels.data_ptr())]
    image = anatomy.ct.GetImageData().GetMTime()
    return [image, nodes.volume_grid(anatomy.ct).tolist(), labels or float(threshold)]


class _Field(NamedTuple):
    """[K, J, I], the level of the surface in it, what is outside, and whether the body alone is wanted."""

    values: np.ndarray
    level: float
    outside: float
    body: bool


def _labelled(anatomy: Anatomy, numbers: list[int]) -> _Field:
    values = np.isin(anatomy.volume.labels.cpu().numpy(), numbers).astype(np.float32)
    if not values.any():
        raise SceneError("The chosen structures have no voxels in the CT; choose others.")
    return _Field(values, level=0.5, outside=0.0, body=False)


def _voxels(anatomy: Anatomy, threshold: float) -> _Field:
    values = slicer.util.arrayFromVolume(anatomy.ct)
    if not values.max() > threshold:
        raise SceneError(f"Nothing in '{anatomy.ct.GetName()}' is denser than {threshold:g} HU; lower the threshold.")
    return _Field(values, float(threshold), min(_AIR, threshold - 1.0), body=threshold > _BODY)


def _surface(field: _Field, grid: nodes.Matrix) -> vtk.vtkPolyData:
    values, to_local = _coarse(field.values, grid, field.outside)
    if field.body:
        values = _body(values, field.outside)
    contour = vtk.vtkFlyingEdges3D()
    contour.SetInputData(_image(values))
    contour.SetValue(0, field.level)
    contour.ComputeNormalsOff()
    contour.ComputeGradientsOff()
    contour.ComputeScalarsOff()
    contour.Update()
    if contour.GetOutput().GetNumberOfPoints() == 0:
        raise SceneError("The bone is too thin for a surface; lower the threshold, or choose other structures.")
    return _finish(contour.GetOutput(), to_local)


def _coarse(values: np.ndarray, grid: nodes.Matrix, outside: float) -> tuple[np.ndarray, nodes.Matrix]:
    """Blocks averaged to about 2 mm, with one voxel of `outside` around; and the [4, 4] of the new indices."""
    spacing = np.linalg.norm(grid[:3, :3], axis=0)[::-1]
    factors = [max(1, min(size, round(_VOXEL / step))) for size, step in zip(values.shape, spacing, strict=True)]
    for axis, factor in enumerate(factors):
        if factor > 1:
            values = _averaged(values, axis, factor)
    values = np.pad(values.astype(np.float32, copy=False), 1, constant_values=outside)
    change = np.diag([*factors[::-1], 1.0]).astype(float)
    change[:3, 3] = [(factor - 1) / 2 - factor for factor in factors[::-1]]
    return values, grid @ change


def _averaged(values: np.ndarray, axis: int, factor: int) -> np.ndarray:
    """Means of `factor` neighbours along an axis; an incomplete block at the end is filled with its last voxel."""
    missing = -values.shape[axis] % factor
    if missing:
        last = np.take(values, [-1] * missing, axis=axis)
        values = np.concatenate([values, last], axis=axis)
    slices = [values[(slice(None),) * axis + (slice(first, None, factor),)] for first in range(factor)]
    total = slices[0].astype(np.float32)
    for one in slices[1:]:
        total += one
    total /= factor
    return total


def _body(values: np.ndarray, outside: float) -> np.ndarray:
    """The same with `outside` for things that are not connected to the body, nor nearly as large."""
    things, _ = scipy.ndimage.label(values > _BODY)
    sizes = np.bincount(things.ravel())
    sizes[0] = 0  # what lies between them
    return np.where((sizes < _PART * sizes.max())[things], outside, values)


def _image(values: np.ndarray) -> vtk.vtkImageData:
    image = vtk.vtkImageData()
    image.SetDimensions(*values.shape[::-1])
    image.GetPointData().SetScalars(numpy_to_vtk(np.ascontiguousarray(values).ravel(), deep=True))
    return image


def _finish(surface: vtk.vtkPolyData, to_local: nodes.Matrix) -> vtk.vtkPolyData:
    """Cleaned, smoothed, in mm, with normals outwards: contours of a mirrored grid come inside out."""
    transform = vtk.vtkTransform()
    transform.SetMatrix(nodes.to_vtk(to_local))
    placed = vtk.vtkTransformPolyDataFilter()
    placed.SetInputData(surface)
    placed.SetTransform(transform)
    steps = [placed]
    if np.linalg.det(to_local[:3, :3]) < 0:
        turned = vtk.vtkReverseSense()
        turned.ReverseCellsOn()
        turned.ReverseNormalsOff()
        steps.append(turned)
    if surface.GetNumberOfPolys() > _MOST_TRIANGLES:
        fewer = vtk.vtkDecimatePro()
        fewer.SetTargetReduction(1 - _MOST_TRIANGLES / surface.GetNumberOfPolys())
        fewer.PreserveTopologyOn()
        steps.append(fewer)
    steps += [_smoothing(), _normals()]
    for before, after in pairwise(steps):
        after.SetInputConnection(before.GetOutputPort())
    steps[-1].Update()
    return steps[-1].GetOutput()


def _smoothing() -> vtk.vtkWindowedSincPolyDataFilter:
    smooth = vtk.vtkWindowedSincPolyDataFilter()
    smooth.SetNumberOfIterations(8)
    smooth.SetPassBand(0.1)
    smooth.BoundarySmoothingOff()
    smooth.FeatureEdgeSmoothingOff()
    smooth.NonManifoldSmoothingOn()
    smooth.NormalizeCoordinatesOn()
    return smooth


def _normals() -> vtk.vtkPolyDataNormals:
    normals = vtk.vtkPolyDataNormals()
    normals.SplittingOff()
    normals.ConsistencyOff()
    normals.AutoOrientNormalsOff()
    return normals


def _new_model(ct):
    model = nodes.add_node(ct.GetScene(), "vtkMRMLModelNode", f"{ct.GetName()} bone")
    model.CreateDefaultDisplayNodes()
    display = model.GetDisplayNode()
    with slicer.util.NodeModify(display):
        display.SetColor(*_BONE)
        display.SetVisibility2D(False)
        display.SetScalarVisibility(False)
        display.SetBackfaceCulling(False)
    ct.SetNodeReferenceID(_ROLE, model.GetID())
    return model
