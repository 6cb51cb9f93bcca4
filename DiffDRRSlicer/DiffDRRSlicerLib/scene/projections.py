"""Points of the CT on the X-ray, and points of the X-ray in the room and on another X-ray."""

from __future__ import annotations

import numpy as np
import slicer
import slicer.util

from DiffDRRCore import Camera
from DiffDRRSlicerLib.scene import nodes
from DiffDRRSlicerLib.scene.carm import CArmNode, pixels_to_points
from DiffDRRSlicerLib.scene.frustum import lines_of

_SOURCE = "DiffDRR.source"
_NEAREST = 1e-3  # mm before the source: closer points have no image
_FIDUCIAL_COLOR, _RAY_COLOR, _LINE_COLOR = (1.0, 0.75, 0.1), (0.3, 1.0, 0.4), (0.3, 1.0, 0.4)


def project_fiducials(carm: CArmNode, markups):
    """Show the points of a markups node where the C-arm's X-ray has them.

    Returns:
        The vtkMRMLMarkupsFiducialNode for that list, below the X-ray plane, locked; with the list's own labels. Points
        that are not placed yet, or at or behind the source, are left out. A second call rewrites the same node.

    Raises SceneError where the C-arm's transforms are not rigid.
    """
    local = _in_camera(carm, _points(markups))
    camera = carm.camera
    seen = [index for index, point in local.items() if camera.parallel or point[2] > _NEAREST]
    points = pixels_to_points(camera, _pixels(camera, [local[index] for index in seen]))
    node = _companion(carm, "fiducials", markups, "vtkMRMLMarkupsFiducialNode", "projected", carm.plane)
    _write_points(node, points, [markups.GetNthControlPointLabel(index) for index in seen])
    return node


def show_rays(carm: CArmNode, xray_markups):
    """Show each point of an X-ray as its ray, from the source to the detector; mm, in camera coordinates.

    Returns the model node for that list, below the C-arm, projected in slice views. A second call rewrites it.
    """
    camera = carm.camera
    ends = pixels_to_points(camera, xray_pixels(carm, xray_markups))
    starts = ends * (1.0, 1.0, 0.0) if camera.parallel else np.zeros_like(ends)
    model = _companion(carm, "rays", xray_markups, "vtkMRMLModelNode", "rays", carm.node)
    return _write_segments(model, np.stack([starts, ends], axis=1), _RAY_COLOR)


def show_epipolar_lines(carm_from: CArmNode, xray_markups, carm_to: CArmNode):
    """Show on another X-ray the lines on which the points of this one must lie.

    Returns the model node for that list, below the other C-arm's X-ray plane; lines end at the image's edge, and a
    point whose line misses the image has none. A second call rewrites it.
    """
    uv = xray_pixels(carm_from, xray_markups)
    segments = [clip_to_image(line, carm_to.camera) for line in epipolar_lines(carm_from, uv, carm_to)]
    segments = [pixels_to_points(carm_to.camera, segment) for segment in segments if segment is not None]
    plane = carm_to.plane
    model = _companion(carm_to, "epipolar", xray_markups, "vtkMRMLModelNode", "epipolar lines", plane)
    return _write_segments(model, np.reshape(segments, (-1, 2, 3)), _LINE_COLOR)


def xray_pixels(carm: CArmNode, xray_markups) -> nodes.Matrix:
    """[N, 2] pixels of the placed points of a list, each seen along its ray from the source."""
    points = [
        point for point in _in_camera(carm, _points(xray_markups)).values() if point[2] > 0 or carm.camera.parallel
    ]
    return _pixels(carm.camera, points)


def epipolar_lines(carm_from: CArmNode, uv, carm_to: CArmNode) -> nodes.Matrix:
    """[N, 3] lines (a, b, c), a u + b v + c = 0, in the pixels of one C-arm for the pixels [N, 2] of another."""
    camera = carm_from.camera
    ends = pixels_to_points(camera, uv)
    starts = ends * (1.0, 1.0, 0.0) if camera.parallel else np.zeros_like(ends)
    change = np.linalg.inv(carm_to.to_world) @ carm_from.to_world
    first, second = (_homogeneous(carm_to.camera, nodes.transformed(change, points)) for points in (starts, ends))
    return np.cross(first, second)


def clip_to_image(line, camera: Camera) -> nodes.Matrix | None:
    """The two pixels [2, 2] at which a line enters and leaves the image, outer edges of its pixels; None beside it."""
    a, b, c = line
    size = a * a + b * b
    if not size > 1e-24 * max(1.0, c * c):
        return None
    base, direction = -c * np.array([a, b]) / size, np.array([-b, a]) / np.sqrt(size)
    low, high = np.full(2, -0.5), np.array([camera.width, camera.height]) - 0.5
    first, last = -np.inf, np.inf
    for axis in range(2):
        if abs(direction[axis]) < 1e-12:
            if not low[axis] <= base[axis] <= high[axis]:
                return None
            continue
        near, far = sorted((edge - base[axis]) / direction[axis] for edge in (low[axis], high[axis]))
        first, last = max(first, near), min(last, far)
    return np.stack([base + first * direction, base + last * direction]) if first < last else None


def companions(carm: CArmNode, kind: str) -> list[tuple]:
    """(node, list) of a kind: "fiducials", "rays" or "epipolar"; the list is None where it was deleted."""
    role = f"DiffDRR.{kind}"
    found = [carm.node.GetNthNodeReference(role, index) for index in range(carm.node.GetNumberOfNodeReferences(role))]
    return [(node, node.GetNodeReference(_SOURCE)) for node in found if node is not None]


def _companion(carm: CArmNode, kind: str, source, class_name: str, name: str, parent):
    """The node of a kind that goes with a list of markups, made where there is none."""
    for node, known in companions(carm, kind):
        if known is source:
            return node
    node = nodes.add_node(carm.scene, class_name, f"{source.GetName()} {name} ({carm.name})", parent, selectable=False)
    node.SetNodeReferenceID(_SOURCE, source.GetID())
    carm.node.AddNodeReferenceID(f"DiffDRR.{kind}", node.GetID())
    return node


def _points(markups) -> dict[int, np.ndarray]:
    """{index: world mm} of the points that are placed."""
    defined = slicer.vtkMRMLMarkupsNode.PositionDefined
    found = {}
    for index in range(markups.GetNumberOfControlPoints()):
        if markups.GetNthControlPointPositionStatus(index) == defined:
            found[index] = np.array(markups.GetNthControlPointPositionWorld(index))
    return found


def _in_camera(carm: CArmNode, points: dict[int, np.ndarray]) -> dict[int, np.ndarray]:
    local = nodes.transformed(np.linalg.inv(carm.to_world), np.reshape(list(points.values()), (-1, 3)))
    return dict(zip(points, local, strict=True))


def _homogeneous(camera: Camera, points) -> nodes.Matrix:
    """[N, 3] homogeneous pixels of points in camera coordinates."""
    points = np.reshape(points, (-1, 3))
    if camera.parallel:
        points = np.column_stack([points[:, :2], np.ones(len(points))])
    return points @ camera.K.numpy().T


def _pixels(camera: Camera, points) -> nodes.Matrix:
    homogeneous = _homogeneous(camera, points)
    return homogeneous[:, :2] / homogeneous[:, 2:]


def _write_points(node, points, labels: list[str]) -> None:
    if node.GetDisplayNode() is None or node.GetSelectable():  # Slicer gives new lists a display node itself
        _show_points(node)
    with slicer.util.NodeModify(node):
        if node.GetNumberOfControlPoints() != len(points):
            node.SetLocked(False)
            node.RemoveAllControlPoints()
            for _ in labels:
                node.AddControlPoint(0.0, 0.0, 0.0)
        for index, (point, label) in enumerate(zip(points, labels, strict=True)):
            if node.GetNthControlPointPosition(index) != tuple(point):
                node.SetNthControlPointPosition(index, *point)
            if node.GetNthControlPointLabel(index) != label:
                node.SetNthControlPointLabel(index, label)
        node.SetLocked(True)


def _show_points(node) -> None:
    if node.GetDisplayNode() is None:
        node.CreateDefaultDisplayNodes()
    node.SetSelectable(False)
    display = node.GetDisplayNode()
    with slicer.util.NodeModify(display):
        display.SetGlyphTypeFromString("CrossDot2D")
        display.SetGlyphScale(3.0)
        display.SetTextScale(3.5)
        display.SetColor(*_FIDUCIAL_COLOR)
        display.SetSelectedColor(*_FIDUCIAL_COLOR)
        display.SetPointLabelsVisibility(True)
        display.SetPropertiesLabelVisibility(False)


def _write_segments(model, segments, color):
    """Lines [N, 2, 3] into a model node."""
    if model.GetDisplayNode() is None:
        model.CreateDefaultDisplayNodes()
        display = model.GetDisplayNode()
        with slicer.util.NodeModify(display):
            display.SetColor(*color)
            display.SetLineWidth(2)
            display.SetLighting(False)
            display.SetVisibility2D(True)
            display.SetSliceDisplayModeToProjection()
            display.SetSliceIntersectionThickness(2)
    model.SetAndObservePolyData(lines_of(segments, [(2 * one, 2 * one + 1) for one in range(len(segments))]))
    return model
