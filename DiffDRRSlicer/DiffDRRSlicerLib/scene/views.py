"""Pointing Slicer's views along a C-arm. Nothing here changes a pose.

The X-ray view is a slice view in the X-ray plane, through the anatomy, where a parallel view agrees with the X-ray. The
C-arm view is a 3D view from the source; in it perspective is the X-ray's own.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import vtk

from DiffDRRSlicerLib.scene import nodes
from DiffDRRSlicerLib.scene.carm import CArmNode, pixels_to_detector
from DiffDRRSlicerLib.scene.errors import SceneError
from DiffDRRSlicerLib.scene.projections import companions

SIDES = ("radiological", "source")
_AIMED = "DiffDRR.Aimed"  # what the X-ray view was last aimed at: C-arm, side, mm of the image's width on its plane
_FROM, _AWAY = (-1.0, 0.45, 0.55), 2.5  # where the free view is seen from: RAS, and source-to-detector distances
_Event, _Key = vtk.vtkCommand, vtk.vtkEvent
# what Slicer's camera widget does with the mouse, as its constructor sets it: (event, modifiers, action)
_DRAGS = (
    (_Event.LeftButtonPressEvent, _Key.NoModifier, "Rotate"),
    (_Event.LeftButtonPressEvent, _Key.AltModifier, "Rotate"),
    (_Event.LeftButtonPressEvent, _Key.ShiftModifier, "Translate"),
    (_Event.LeftButtonPressEvent, _Key.AltModifier + _Key.ShiftModifier, "Translate"),
    (_Event.MiddleButtonPressEvent, _Key.NoModifier, "Translate"),
    (_Event.MiddleButtonPressEvent, _Key.AltModifier, "Translate"),
    (_Event.LeftButtonPressEvent, _Key.ShiftModifier + _Key.ControlModifier, "Scale"),
    (_Event.RightButtonPressEvent, _Key.NoModifier, "Scale"),
    (_Event.RightButtonPressEvent, _Key.AltModifier, "Scale"),
    (_Event.LeftButtonPressEvent, _Key.ControlModifier, "Spin"),
)
_OTHER_GESTURES = (
    (_Event.MouseWheelForwardEvent, _Key.NoModifier, "CameraWheelZoomIn"),
    (_Event.MouseWheelBackwardEvent, _Key.NoModifier, "CameraWheelZoomOut"),
    (_Event.MouseWheelForwardEvent, _Key.ControlModifier, "CameraWheelZoomIn"),
    (_Event.MouseWheelBackwardEvent, _Key.ControlModifier, "CameraWheelZoomOut"),
    (_Event.StartPanEvent, _Key.AnyModifier, "TouchGestureStart"),
    (_Event.StartPinchEvent, _Key.AnyModifier, "TouchGestureStart"),
    (_Event.StartRotateEvent, _Key.AnyModifier, "TouchGestureStart"),
)


def aim_xray_view(slice_node, carm: CArmNode, side: str = "radiological", keep_zoom: bool = False) -> None:
    """Lay a slice view in the C-arm's X-ray plane, the image upright.

    Args:
        side: "radiological" looks from the detector to the source, "source" the other way; left and right swap.
        keep_zoom: the image keeps its place and size in the view, where the view shows this C-arm already; else the
            whole image fits the view.

    Raises SceneError for another side.
    """
    if side not in SIDES:
        raise SceneError(f"The X-ray is seen from one of {', '.join(SIDES)}, not from '{side}'.")
    image = _image_frame(carm)
    normal = image.beam if side == "radiological" else -image.beam
    before = nodes.read_json(slice_node, _AIMED) or [None, None, 0.0]
    batch = slice_node.StartModify()
    _set_slice(slice_node, normal, np.cross(image.up, normal), image.center)
    if keep_zoom and before[0] == carm.node.GetID() and before[2] > 0:
        _scale_zoom(slice_node, image.width / before[2], before[1] != side)
    else:
        _fit(slice_node, image.width, image.height)
    nodes.write_json(slice_node, _AIMED, [carm.node.GetID(), side, image.width])
    slice_node.EndModify(batch)


def aim_carm_view(camera_node, carm: CArmNode, point) -> None:
    """Look from the source at the detector: its height fills the view, and the picture is the X-ray's, seen from there.

    The focal point lies on the central ray at the depth of `point` ([3] world mm), so that handles there follow the
    mouse. An off-centre principal point is a shear of the vtkCamera: the node keeps it while it lives but does not save
    it, so that the view is to be aimed again after a scene is loaded.
    """
    pose, camera = carm.pose.matrix.numpy(), carm.camera
    detector = pixels_to_detector(camera)
    middle = nodes.transformed(detector, [(camera.width - 1) / 2, (camera.height - 1) / 2, 0])
    down = detector[:3, 1]
    half = camera.height / 2 * np.linalg.norm(down)
    source = pose[:3, 3] + (pose[:3, :3] @ (middle * [1, 1, 0]) if camera.parallel else 0)
    depth = (pose[:3, :3].T @ (np.asarray(point, dtype=float) - pose[:3, 3]))[2]
    depth = float(np.clip(depth, 0.01 * middle[2], None))
    batch = camera_node.StartModify()
    camera_node.SetPosition(source)
    camera_node.SetFocalPoint(source + depth * pose[:3, 2])
    camera_node.SetViewUp(-pose[:3, :3] @ down / np.linalg.norm(down))
    camera_node.SetParallelProjection(int(camera.parallel))
    camera_node.SetParallelScale(half)
    camera_node.SetViewAngle(np.degrees(2 * np.arctan(half / middle[2])))
    _shear(camera_node.GetCamera(), middle * (0 if camera.parallel else 1 / middle[2]), down / np.linalg.norm(down))
    camera_node.EndModify(batch)
    camera_node.ResetClippingRange()


def aim_free_view(camera_node, carm: CArmNode) -> None:
    """Look at source, patient and detector from the patient's left, front and head, anterior upwards as on a table."""
    length = float(carm.camera.source_to_detector)
    pose = carm.pose.matrix.numpy()
    middle = pose[:3, 3] + pose[:3, 2] * length / 2
    batch = camera_node.StartModify()
    camera_node.SetFocalPoint(middle)
    camera_node.SetPosition(middle + np.array(_FROM) / np.linalg.norm(_FROM) * _AWAY * length)
    camera_node.SetViewUp(0.0, 1.0, 0.0)
    camera_node.EndModify(batch)
    camera_node.ResetClippingRange()


def lock_rotation(camera_widget, locked: bool = True) -> None:
    """Keep the mouse from turning, moving and zooming a 3D view, or let it again; handles and markups still follow it.

    `camera_widget`: the vtkMRMLCameraWidget of the view's vtkMRMLCameraDisplayableManager.
    """
    widget, no_event = camera_widget, camera_widget.WidgetEventNone
    for event, modifiers, action in _DRAGS:
        state, start, end = (
            getattr(widget, name)
            for name in (f"WidgetState{action}", f"WidgetEvent{action}Start", f"WidgetEvent{action}End")
        )
        start, end = (no_event, no_event) if locked else (start, end)
        widget.SetEventTranslationClickAndDrag(widget.WidgetStateIdle, event, modifiers, state, start, end)
    for event, modifiers, action in _OTHER_GESTURES:
        meaning = no_event if locked else getattr(widget, f"WidgetEvent{action}")
        widget.SetEventTranslation(widget.WidgetStateIdle, event, modifiers, meaning)


def show_layers(composite_node, background, foreground=None, opacity: float = 0.5) -> None:
    """Show volumes in a slice view, None for no volume, and keep Slicer from replacing them by the next one loaded.

    `composite_node` is None as long as the view has not been drawn: nothing happens then.
    """
    if composite_node is None:
        return
    batch = composite_node.StartModify()
    composite_node.SetDoPropagateVolumeSelection(False)
    composite_node.SetBackgroundVolumeID(None if background is None else background.GetID())
    composite_node.SetForegroundVolumeID(None if foreground is None else foreground.GetID())
    composite_node.SetForegroundOpacity(float(opacity))
    composite_node.EndModify(batch)


def show_points_in(view_nodes, carm: CArmNode) -> None:
    """Draw the points on a C-arm's X-ray in these views alone: in a CT slice they would look like points of the CT."""
    ids = [view.GetID() for view in view_nodes]
    lists = [carm.referred("landmarks"), *(node for node, _ in companions(carm, "fiducials"))]
    for display in (markups.GetDisplayNode() for markups in lists if markups is not None):
        if display is not None and list(display.GetViewNodeIDs()) != ids:
            display.SetViewNodeIDs(ids)


def angle_text(carm: CArmNode) -> str:
    """The C-arm's clinical angles, e.g. "LAO 20.0°  CRA 30.0°"; roll only where there is some."""
    arm = carm.arm
    primary, secondary, roll = (round(float(angle), 1) for angle in (arm.primary, arm.secondary, arm.roll))
    sides = "RAO" if primary < 0 else "LAO", "CAU" if secondary < 0 else "CRA"
    text = f"{sides[0]} {abs(primary):.1f}°  {sides[1]} {abs(secondary):.1f}°"
    return text if roll == 0 else f"{text}  roll {roll:.1f}°"


class AngleText:
    """The angles in the upper right corner of a view."""

    def __init__(self, renderer):
        self.renderer = renderer
        self.actor = _add_text(renderer)

    def show(self, carm: CArmNode) -> None:
        """Write the angles of a C-arm, None for nothing; the view is drawn by whoever draws it."""
        self.actor.SetInput("" if carm is None else angle_text(carm))

    def remove(self) -> None:
        """Take the text out of the view."""
        self.renderer.RemoveViewProp(self.actor)


class _ImageFrame(NamedTuple):
    """The image on its plane in the world: middle, unit vectors upwards and along the beam, width and height in mm."""

    center: nodes.Matrix
    up: nodes.Matrix
    beam: nodes.Matrix
    width: float
    height: float


def _image_frame(carm: CArmNode) -> _ImageFrame:
    camera = carm.camera
    matrix = nodes.transform_to_world(carm.plane) @ pixels_to_detector(camera)
    center = nodes.transformed(matrix, [(camera.width - 1) / 2, (camera.height - 1) / 2, 0])
    column, row = np.linalg.norm(matrix[:3, :2], axis=0)
    beam = carm.pose.matrix.numpy()[:3, 2]
    return _ImageFrame(center, -matrix[:3, 1] / row, beam, camera.width * column, camera.height * row)


def _set_slice(slice_node, normal, right, center) -> None:
    """As SetSliceToRASByNTP(normal, right, center), with no event where the view is there already."""
    wanted = np.eye(4)
    wanted[:3] = np.column_stack([right, np.cross(normal, right), normal, center])
    if not np.allclose(nodes.from_vtk(slice_node.GetSliceToRAS()), wanted, rtol=0, atol=1e-9):
        slice_node.SetSliceToRASByNTP(*normal, *right, *center, 0)


def _fit(slice_node, width: float, height: float) -> None:
    columns, rows, _ = (max(size, 1) for size in slice_node.GetDimensions())
    pixel = max(width / columns, height / rows)
    slice_node.SetXYZOrigin(0, 0, 0)
    slice_node.SetFieldOfView(pixel * columns, pixel * rows, slice_node.GetFieldOfView()[2])


def _scale_zoom(slice_node, factor: float, mirrored: bool) -> None:
    x, y, z = slice_node.GetXYZOrigin()
    width, height, depth = slice_node.GetFieldOfView()
    slice_node.SetXYZOrigin(-x * factor if mirrored else x * factor, y * factor, z)
    slice_node.SetFieldOfView(width * factor, height * factor, depth)


def _shear(camera: vtk.vtkCamera, offset, down) -> None:
    """Move the picture so that the detector's middle, at `offset` per mm of depth, is in the middle of the view."""
    right = np.cross(down, [0, 0, 1])
    camera.SetViewShear(-offset @ right, offset @ down, 0.0)


def _add_text(renderer) -> vtk.vtkTextActor:
    actor = vtk.vtkTextActor()
    actor.SetPickable(False)
    text = actor.GetTextProperty()
    text.SetFontSize(14)
    text.SetShadow(True)
    text.SetJustificationToRight()
    text.SetVerticalJustificationToTop()
    actor.GetPositionCoordinate().SetCoordinateSystemToNormalizedViewport()
    actor.SetPosition(0.98, 0.97)
    renderer.AddViewProp(actor)
    return actor
