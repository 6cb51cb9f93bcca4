"""How far off a registration is to be expected, as colours on the surfaces of the bones."""

from __future__ import annotations

import slicer
import slicer.util
import torch
import vtk
from vtk.util.numpy_support import numpy_to_vtk, vtk_to_numpy

from DiffDRRCore.registration import FoundBody
from DiffDRRSlicerLib.scene.anatomy import Anatomy
from DiffDRRSlicerLib.scene.bodies import BodyNode
from DiffDRRSlicerLib.scene.body_results import in_volume
from DiffDRRSlicerLib.scene.colors import EXPECTED_ERROR, color_table
from DiffDRRSlicerLib.scene.errors import SceneError
from DiffDRRSlicerLib.scene.found_bodies import FOUND, found_of, is_found
from DiffDRRSlicerLib.scene.surfaces import bone_surface, find_bone_surface

ARRAY = "Expected error (mm)"
_OF = "DiffDRR.ErrorsOf"  # attribute of a model: the covariance that its errors are of
_LEGEND = "vtkMRMLColorLegendDisplayNode"
_LEAST = 0.01  # mm, of the colours' range: less is all one colour


def has_errors(anatomy: Anatomy) -> bool:
    """Whether a registration said how sure it is of a bone, or of the CT as one, that has not been moved since."""
    return any(is_found(node) for node in (anatomy.ct, *(body.node for body in BodyNode.of(anatomy))))


def expected_errors(anatomy: Anatomy, points, bone: BodyNode | None = None):
    """[N] mm: the root mean square error to be expected at points, by the covariance of the last registration.

    It says how the C-arms see the bone, or the CT as one, with independent noise and a true geometry.

    Args:
        points: [N, 3] in the coordinates that the CT's node is stored in, where the CT shows them.

    Raises SceneError where nothing was registered yet, or it or a C-arm was moved since.
    """
    return _errors(_found(anatomy, bone), anatomy, points)


def show_error_map(anatomy: Anatomy, structures=None) -> list:
    """Colour the surfaces of the bones, or where the CT was registered as one that of its bone; quick a second time.

    A bone that was moved since is shown in its own colour.

    Point scalars "Expected error (mm)" from 0 to the largest of all; the first surface has a legend.

    Args:
        structures: of the CT's surface, as of `surfaces.bone_surface`.

    Returns the models. Raises SceneError where nothing was registered yet, or all was moved since.
    """
    surfaces = {body: body.surface for body in BodyNode.of(anatomy) if is_found(body.node) and body.surface}
    if not surfaces:
        _found(anatomy, None)
        surfaces = {None: bone_surface(anatomy, structures)}
    hide_error_map(anatomy, but=tuple(surfaces.values()))
    largest = max(_write(model, anatomy, bone) for bone, model in surfaces.items())
    for model in surfaces.values():
        _color(model, max(largest, _LEAST))
    _show_legend(next(iter(surfaces.values())))
    return list(surfaces.values())


def hide_error_map(anatomy: Anatomy, but=()) -> None:
    """Show the surfaces in their own colours again; their scalars stay."""
    models = [find_bone_surface(anatomy), *(body.surface for body in BodyNode.of(anatomy))]
    for model in models:
        if model is None or model in but or model.GetDisplayNode().GetActiveScalarName() != ARRAY:
            continue
        model.GetDisplayNode().SetScalarVisibility(False)
        legend = _legend(model)
        if legend is not None:
            legend.SetVisibility(False)


def _found(anatomy: Anatomy, bone: BodyNode | None) -> FoundBody:
    node = anatomy.ct if bone is None else bone.node
    found, name = found_of(node), node.GetName()
    if found is not None and not is_found(node):
        raise SceneError(f"'{name}' or a C-arm was moved since '{name}' was registered: register it again.")
    if found is None:
        raise SceneError(f"It is not known yet how sure the place of '{name}' is: register it first.")
    return found


def _errors(found: FoundBody, anatomy: Anatomy, points):
    return found.target_error(torch.from_numpy(in_volume(anatomy, points))).numpy()


def _write(model, anatomy: Anatomy, bone: BodyNode | None) -> float:
    """Give a surface its scalars, where it has other ones; the largest of them."""
    mesh, text = model.GetPolyData(), (anatomy.ct if bone is None else bone.node).GetAttribute(FOUND)
    array = mesh.GetPointData().GetArray(ARRAY)
    if array is None or model.GetAttribute(_OF) != text:
        points = vtk_to_numpy(mesh.GetPoints().GetData())
        errors = _errors(_found(anatomy, bone), anatomy, points)
        array = numpy_to_vtk(errors.astype("float32"), deep=True)
        array.SetName(ARRAY)
        mesh.GetPointData().RemoveArray(ARRAY)
        mesh.GetPointData().AddArray(array)
        mesh.Modified()
        model.SetAttribute(_OF, text)
    return float(array.GetRange()[1])


def _color(model, largest: float) -> None:
    display, table = model.GetDisplayNode(), color_table(model.GetScene(), EXPECTED_ERROR)
    shown = display.GetColorNode() is table and display.GetActiveScalarName() == ARRAY
    if shown and display.GetScalarVisibility() and display.GetScalarRange() == (0.0, largest):
        return
    with slicer.util.NodeModify(display):
        display.SetAndObserveColorNodeID(table.GetID())
        display.SetActiveScalar(ARRAY, vtk.vtkAssignAttribute.POINT_DATA)
        display.SetScalarRangeFlag(slicer.vtkMRMLDisplayNode.UseManualScalarRange)
        display.SetScalarRange(0.0, largest)
        display.SetScalarVisibility(True)


def _legend(model):
    return slicer.vtkSlicerColorLogic.GetColorLegendDisplayNode(model)


def _show_legend(model) -> None:
    legend = _legend(model)
    if legend is None and model.GetScene().GetTagByClassName(_LEGEND):  # not without the Colors module
        legend = slicer.vtkSlicerColorLogic.AddDefaultColorLegendDisplayNode(model)
    if legend is not None and not (legend.GetVisibility() and legend.GetTitleText() == ARRAY):
        legend.SetTitleText(ARRAY)
        legend.SetVisibility(True)
