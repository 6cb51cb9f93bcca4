"""Lists of points that belong to a bone: they hang below its transform, so they go where it goes.

A list's own coordinates are then the CT's, where the CT shows the bone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import slicer

from DiffDRRCore.registration import Landmarks
from DiffDRRSlicerLib.names import of_class
from DiffDRRSlicerLib.scene import nodes
from DiffDRRSlicerLib.scene.anatomy import Anatomy
from DiffDRRSlicerLib.scene.bodies import BodyNode
from DiffDRRSlicerLib.scene.body_groups import Group
from DiffDRRSlicerLib.scene.carm import CArmNode
from DiffDRRSlicerLib.scene.errors import SceneError
from DiffDRRSlicerLib.scene.landmarks import paired_points, points_in_world

_CLASS = "vtkMRMLMarkupsFiducialNode"


def attach(markups, body: BodyNode, anatomy: Anatomy) -> None:
    """Have a list of points go with a bone; they are taken to mark the CT where it shows them.

    Raises SceneError for no list, and for one of points on an X-ray.
    """
    if markups is None:
        raise SceneError("Choose a list of points first.")
    above = markups.GetParentTransformNode()
    if any(above is carm.plane or above is carm.node for carm in CArmNode.all(markups.GetScene())):
        raise SceneError(f"'{markups.GetName()}' has points on an X-ray; choose a list of points on the CT.")
    if owner(markups) is None:
        change = np.linalg.solve(nodes.parent_to_world(anatomy.ct), nodes.parent_to_world(markups))
        if not np.allclose(change, np.eye(4), rtol=0, atol=1e-9):
            markups.ApplyTransformMatrix(nodes.to_vtk(change))
    markups.SetAndObserveTransformNodeID(body.node.GetID())


def detach(markups, anatomy: Anatomy) -> None:
    """Have it go with the CT again, at the places that it marks there."""
    if owner(markups) is not None:
        markups.SetAndObserveTransformNodeID(anatomy.ct.GetTransformNodeID())


def owner(markups) -> BodyNode | None:
    """The bone that a list of points belongs to."""
    above = None if markups is None else markups.GetParentTransformNode()
    known = above is not None and any(body.node is above for body in BodyNode.all(markups.GetScene()))
    return BodyNode(above) if known else None


def lists_of(bodies: Sequence[BodyNode]) -> list:
    """The lists of points that belong to these bones, in the scene's order."""
    if not bodies:
        return []
    own = [body.node for body in bodies]
    return [one for one in of_class(bodies[0].node.GetScene(), _CLASS) if one.GetParentTransformNode() in own]


def lists_with(markups, bodies: Sequence[BodyNode]) -> list:
    """A list of points on the CT, or None, and those of the bones."""
    first = [] if markups is None else [markups]
    return [*first, *(one for one in lists_of(bodies) if one is not markups)]


def placed_numbers(markups) -> list[int]:
    """Of the control points whose position is defined."""
    defined = slicer.vtkMRMLMarkupsNode.PositionDefined
    count = markups.GetNumberOfControlPoints()
    return [number for number in range(count) if markups.GetNthControlPointPositionStatus(number) == defined]


def points_in_ct(anatomy: Anatomy, markups, numbers: Sequence[int]) -> nodes.Matrix:
    """[N, 3] control points in the coordinates of `anatomy.volume`, those of a bone where the CT shows it."""
    return _in_ct(anatomy, markups, points_in_world(markups, numbers))


def _in_ct(anatomy: Anatomy, markups, world) -> nodes.Matrix:
    body, to_volume = owner(markups), np.linalg.inv(anatomy.to_world)
    if body is not None:
        to_volume = np.linalg.inv(body.motion(anatomy)) @ to_volume
    return nodes.transformed(to_volume, world)


def landmark_term(
    anatomy: Anatomy, groups: Sequence[Group], carms: Sequence[CArmNode], ct_lists: Sequence, xray_lists: Sequence
) -> Landmarks:
    """Pairs of all views in the volume's coordinates, each with its body; a view that lacks a landmark has NaN for it.

    A list of a bone goes with the bone's group, any other with what is in no bone, or else with the first group.

    Args:
        xray_lists: of each C-arm, or None.

    Raises SceneError where there is no pair, or a label in two lists.
    """
    points, seen, owners = {}, [{} for _ in carms], {}
    for markups in ct_lists:
        name = _group_name(markups, groups)
        for number, (carm, xray) in enumerate(zip(carms, xray_lists, strict=True)):
            labels, world, pixels = ([], np.zeros((0, 3)), []) if xray is None else paired_points(carm, markups, xray)
            points.update(zip(labels, _in_ct(anatomy, markups, world), strict=True))
            seen[number].update(zip(labels, pixels, strict=True))
            owners.update(dict.fromkeys(labels, name))
    if not points:
        raise SceneError("There are no landmark pairs: give a point the same label in the CT and in the X-ray.")
    nowhere = np.full(2, np.nan)
    pixels = [np.array([view.get(label, nowhere) for label in points]) for view in seen]
    return Landmarks(np.array(list(points.values())), pixels, bodies=list(owners.values()) if groups else None)


def check_labels(ct_lists: Sequence) -> None:
    """Raise SceneError for a label that is in two lists: nobody knows which of the two an X-ray's point marks.

    A point without a label is no landmark.
    """
    known: dict[str, str] = {}
    for markups in ct_lists:
        for number in placed_numbers(markups):
            label = markups.GetNthControlPointLabel(number).strip()
            if not label:
                continue
            other = known.setdefault(label, markups.GetID())
            if other != markups.GetID():
                name = markups.GetScene().GetNodeByID(other).GetName()
                raise SceneError(
                    f"The landmark '{label}' is in '{name}' and in '{markups.GetName()}'; give each a name of its own."
                )


def _group_name(markups, groups: Sequence[Group]) -> str | None:
    """Of the body that a list moves with, for the engine; None for the CT as one."""
    if not groups:
        return None
    body = owner(markups)
    own = next((group for group in groups if body in group.members), None) if body is not None else None
    rest = own or next((group for group in groups if group.rest), groups[0])
    return rest.body.name
