"""The patient's transform, and handles to drag it by.

The patient transform is what moves the patient in the scene: the outermost transform above the CT, so that all that
lies in the CT's coordinates goes with it, and made when it is first needed.
"""

from __future__ import annotations

import numpy as np

from DiffDRRSlicerLib.scene import nodes
from DiffDRRSlicerLib.scene.bodies import BodyNode
from DiffDRRSlicerLib.scene.carm import MARK, CArmNode
from DiffDRRSlicerLib.scene.errors import SceneError

PATIENT = "DiffDRR.Patient"  # the attribute by which it is known


def find_patient_transform(anatomy):
    """The patient transform above the CT, or None where there is none yet."""
    return next((node for node in _above(anatomy.ct) if node.GetAttribute(PATIENT) is not None), None)


def patient_transform(anatomy, also=()):
    """The patient transform, made at the first use: above everything that is above the CT, and the identity.

    The labels, the bones and the nodes of `also` (landmarks on the CT) are put below it, together with the transforms
    above them.
    Nothing moves in the world by that. Nodes below a C-arm stay there, and a transform that is above CT and C-arm alike
    stays above both.

    Raises SceneError where the CT itself hangs below a C-arm.
    """
    patient = find_patient_transform(anatomy) or _insert(anatomy.ct)
    bones = (body.node for body in BodyNode.of(anatomy, any_labels=True))
    for node in (anatomy.labels, *bones, *also):
        if node is not None:
            _bring(node, patient)
    return patient


def show_handles(transform, view_nodes, center_world) -> None:
    """Show handles that shift and turn a linear transform node, in these views alone (none given: in all).

    `center_world`: [3] mm, where the handles are and what they turn about.
    """
    transform.CreateDefaultDisplayNodes()
    center = nodes.transformed(np.linalg.inv(nodes.transform_to_world(transform)), center_world)
    if not np.allclose(center, transform.GetCenterOfTransformation(), rtol=0, atol=1e-6):
        transform.SetCenterOfTransformation(*center)
    display = transform.GetDisplayNode()
    batch = display.StartModify()
    display.SetViewNodeIDs([view.GetID() for view in view_nodes])
    for place in ("", "Slice"):
        getattr(display, f"SetEditorTranslation{place}Enabled")(True)
        getattr(display, f"SetEditorRotation{place}Enabled")(True)
        getattr(display, f"SetEditorScaling{place}Enabled")(False)
    display.SetEditorVisibility3D(True)
    display.SetEditorSliceIntersectionVisibility(True)
    display.SetEditorVisibility(True)
    display.EndModify(batch)


def hide_handles(transform) -> None:
    """Hide the handles; None, and a transform that never had any, are fine."""
    if transform is not None and transform.GetDisplayNode() is not None:
        transform.GetDisplayNode().SetEditorVisibility(False)


def _above(node) -> list:
    """The transforms above a node, the nearest first."""
    found = []
    while (node := node.GetParentTransformNode()) is not None:
        found.append(node)
    return found


def _top(node):
    """The outermost of a node and the transforms above it, short of those that are above a C-arm too."""
    shared = {above.GetID() for carm in CArmNode.all(node.GetScene()) for above in _above(carm.node)}
    for above in _above(node):
        if above.GetID() in shared:
            break
        node = above
    return node


def _below_carm(node) -> bool:
    return any(above.GetAttribute(MARK) is not None for above in _above(node))


def _insert(ct):
    if _below_carm(ct):
        raise SceneError(f"The CT '{ct.GetName()}' hangs below a C-arm; move it out in the Transforms or Data module.")
    top = _top(ct)
    patient = nodes.add_node(ct.GetScene(), "vtkMRMLLinearTransformNode", "Patient", top.GetParentTransformNode())
    patient.SetAttribute(PATIENT, "1")
    top.SetAndObserveTransformNodeID(patient.GetID())
    return patient


def _bring(node, patient) -> None:
    """Put a node below the patient transform, where it is in the world."""
    if _below_carm(node) or any(above is patient for above in _above(node)):
        return
    top = _top(node)
    change = np.linalg.solve(nodes.transform_to_world(patient), nodes.parent_to_world(top))
    if not np.allclose(change, np.eye(4), rtol=0, atol=1e-9):
        top.ApplyTransformMatrix(nodes.to_vtk(change))
    top.SetAndObserveTransformNodeID(patient.GetID())
