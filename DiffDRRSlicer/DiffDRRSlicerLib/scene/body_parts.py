"""What a bone consists of: the surface of its structures, and a copy of their segments, below its transform.

The labels themselves stay as they are. Segments that a bone has a copy of are hidden, and shown again when it is
removed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import slicer
import slicer.util
import vtk

from DiffDRRSlicerLib.names import of_class
from DiffDRRSlicerLib.scene import nodes
from DiffDRRSlicerLib.scene.anatomy import Anatomy
from DiffDRRSlicerLib.scene.bodies import COLORS, BodyNode, check_structures
from DiffDRRSlicerLib.scene.errors import SceneError
from DiffDRRSlicerLib.scene.surfaces import structure_surface

PART = "DiffDRR.PartOf"  # attribute of surfaces and segments: that they are a bone's
_HIDDEN = "DiffDRR.Hidden"  # attribute of a bone: IDs of the segments that were hidden for it


def add_body(anatomy: Anatomy, structures: Sequence[str], name: str | None = None, color=None) -> BodyNode:
    """Make a bone of structures, where the CT shows it.

    Args:
        structures: names, as `anatomy.structures` has them; none of them in another bone.
        name: of its nodes, made unique; None is the first structure's.
        color: red, green, blue, 0 to 1; None is another one than that of the bones before.

    Raises SceneError where that cannot be; nothing is left in the scene then.
    """
    structures = [structures] if isinstance(structures, str) else list(structures)
    check_structures(anatomy, structures)
    count = len(BodyNode.of(anatomy))
    body = BodyNode.create(anatomy, structures, (name or "").strip() or structures[0])
    try:
        add_parts(body, anatomy)
    except Exception:
        remove_body(body)
        raise
    body.color = color or COLORS[count % len(COLORS)]
    return body


def add_parts(body: BodyNode, anatomy: Anatomy) -> None:
    """Make surface and segments where they are missing."""
    if body.surface is None:
        body.refer(surface=_add_surface(body, anatomy))
    if body.segments is None:
        node = nodes.add_node(body.node.GetScene(), "vtkMRMLSegmentationNode", f"{body.name} segments", body.node)
        body.refer(segments=node)
        node.SetAttribute(PART, body.node.GetID())
        node.CreateDefaultDisplayNodes()
        node.GetDisplayNode().SetVisibility3D(False)  # the surface is there
        node.SetReferenceImageGeometryParameterFromVolumeNode(anatomy.ct)
        if body.labels.IsA("vtkMRMLSegmentationNode"):
            _copy_segments(body, anatomy)
        else:
            _import_labels(body, anatomy)


def remove_body(body: BodyNode) -> None:
    """Remove a bone with its surface, its segments and its joints; points and others below it stay on the CT."""
    show_sources(body)
    parts, above = belongings(body), body.node.GetTransformNodeID()
    for node in parts:
        nodes.remove_node(node)
    scene = body.node.GetScene()
    for index in range(scene.GetNumberOfNodesByClass("vtkMRMLTransformableNode")):
        node = scene.GetNthNodeByClass(index, "vtkMRMLTransformableNode")
        if node.GetTransformNodeID() == body.node.GetID():
            node.SetAndObserveTransformNodeID(above)
    nodes.remove_node(body.node)


def belongings(body: BodyNode) -> list:
    """The nodes that are there for this bone alone."""
    from DiffDRRSlicerLib.scene.joints import JointNode  # which needs the bones' groups, and these the bones

    joints = [joint.node for joint in JointNode.at(body)]
    return [*(node for node in (body.surface, body.segments) if node is not None), *joints]


def show_sources(body: BodyNode) -> None:
    """Show the segments again that were hidden for a bone."""
    labels, hidden = body.labels, nodes.read_json(body.node, _HIDDEN, [])
    display = None if labels is None else labels.GetDisplayNode()
    for identifier in hidden if display is not None else ():
        if labels.GetSegmentation().GetSegment(identifier) is not None:
            display.SetSegmentVisibility(identifier, True)
    nodes.write_json(body.node, _HIDDEN, None)


def _add_surface(body: BodyNode, anatomy: Anatomy):
    surface = structure_surface(anatomy, body.structures)
    model = nodes.add_node(body.node.GetScene(), "vtkMRMLModelNode", f"{body.name} surface", body.node)
    model.SetAttribute(PART, body.node.GetID())
    model.SetAndObservePolyData(surface)
    model.CreateDefaultDisplayNodes()
    display = model.GetDisplayNode()
    with slicer.util.NodeModify(display):
        display.SetVisibility2D(False)  # the segments are there
        display.SetScalarVisibility(False)
        display.SetBackfaceCulling(False)
    return model


def _copy_segments(body: BodyNode, anatomy: Anatomy) -> None:
    source, target = body.labels.GetSegmentation(), body.segments.GetSegmentation()
    target.SetSourceRepresentationName(source.GetSourceRepresentationName())
    display, hidden = body.labels.GetDisplayNode(), []
    for number in body.numbers(anatomy):
        identifier = source.GetNthSegmentID(number - 1)
        if not target.CopySegmentFromSegmentation(source, identifier, False):
            raise SceneError(f"The segment '{source.GetNthSegment(number - 1).GetName()}' cannot be copied.")
        if display is not None and display.GetSegmentVisibility(identifier):
            display.SetSegmentVisibility(identifier, False)
            hidden.append(identifier)
    to_ct = np.linalg.inv(nodes.parent_to_world(anatomy.ct)) @ nodes.parent_to_world(body.labels)
    if not np.allclose(to_ct, np.eye(4), rtol=0, atol=1e-9):
        body.segments.ApplyTransformMatrix(nodes.to_vtk(to_ct))
    nodes.write_json(body.node, _HIDDEN, hidden or None)


def _import_labels(body: BodyNode, anatomy: Anatomy) -> None:
    """A segment of each label, on the CT's grid."""
    labels, segmentation = anatomy.volume.labels.cpu().numpy(), body.segments.GetSegmentation()
    scene = body.node.GetScene()
    for number, name in zip(body.numbers(anatomy), body.structures, strict=True):
        mask = scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", name)
        try:
            nodes.set_image(mask, (labels == number).astype(np.uint8), nodes.volume_grid(anatomy.ct))
            mask.SetAndObserveTransformNodeID(body.node.GetID())
            names = vtk.vtkStringArray()
            names.InsertNextValue(segmentation.AddEmptySegment("", name))
            logic = slicer.vtkSlicerSegmentationsModuleLogic
            if not logic.ImportLabelmapToSegmentationNode(mask, body.segments, names):
                raise SceneError(f"The label '{name}' cannot be made a segment.")
        finally:
            nodes.remove_node(mask)


def center(body: BodyNode, anatomy: Anatomy) -> np.ndarray:
    """[3] world mm, the middle of the box around its surface; of the CT where that was deleted."""
    if body.surface is None or body.surface.GetPolyData() is None:
        return anatomy.center
    bounds = np.reshape(body.surface.GetPolyData().GetBounds(), (3, 2))
    return nodes.transformed(nodes.transform_to_world(body.node), bounds.mean(axis=1))


def show_beside_xray(body: BodyNode, xray_view) -> None:
    """Show the segments in all slice views but the X-ray's, where they would hide the image; None is in all views."""
    display = None if body.segments is None else body.segments.GetDisplayNode()
    if display is None:
        return
    views = [] if not xray_view else of_class(body.node.GetScene(), "vtkMRMLSliceNode")
    wanted = [view.GetID() for view in views if view is not xray_view]
    if list(display.GetViewNodeIDs()) != wanted:
        display.SetViewNodeIDs(wanted)
