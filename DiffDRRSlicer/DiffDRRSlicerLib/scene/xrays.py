"""An X-ray in the scene, and back from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import slicer.util

from DiffDRRCore import Camera, Pose, XRay
from DiffDRRCore.imaging import preprocess
from DiffDRRSlicerLib.scene import assumptions as words
from DiffDRRSlicerLib.scene import nodes
from DiffDRRSlicerLib.scene.calibration_marks import BEADS
from DiffDRRSlicerLib.scene.carm import CArmNode, pixels_to_detector, pixels_to_points, points_to_pixels
from DiffDRRSlicerLib.scene.errors import SceneError

IMAGES = ("xray", "drr", "overlay", "segmentation")  # the roles of a C-arm whose nodes are images on its plane
_DARK, _BRIGHT = 1, 99  # per cent of the pixels


def add_xray(
    scene,
    image,
    camera: Camera,
    pose: Pose,
    meta: dict[str, Any] | None = None,
    name: str = "X-ray",
    source_to_isocenter: float | None = None,
) -> CArmNode:
    """A new C-arm called `name` with an image on its plane (a scalar volume of role "xray").

    Args:
        image: [H, W] of the camera's size, float32 in the scene.
        pose: camera_to_world.
        meta: kept with the C-arm; plain values that JSON can hold, as `XRay.meta`.
        source_to_isocenter: mm; None is three quarters of the source-to-detector distance.

    Raises XRayError for an image that does not fit the camera or is not finite; the scene is then as it was.
    """
    xray = XRay(image, camera, pose, meta)
    pixels = xray.image.detach().cpu().float().numpy()
    with all_or_nothing(scene):
        carm = CArmNode.create(scene, camera, pose, source_to_isocenter, name)
        carm.meta = xray.meta
        volume = carm.below("xray", "vtkMRMLScalarVolumeNode", "image")
        carm.place_image(volume, pixels)
        show_grey(volume, pixels)
    return carm


@contextmanager
def all_or_nothing(scene) -> Iterator[None]:
    """Remove the nodes that were added inside where something went wrong."""
    before = {scene.GetNthNode(index).GetID() for index in range(scene.GetNumberOfNodes())}
    try:
        yield
    except Exception:
        after = [scene.GetNthNode(index) for index in range(scene.GetNumberOfNodes())]
        for node in after:
            if node.GetID() not in before:
                scene.RemoveNode(node)
        raise


def core_xray(carm: CArmNode) -> XRay:
    """The X-ray's own pixels (float32) with its camera, world pose and meta, for `DiffDRRCore`.

    Raises SceneError where the C-arm has no X-ray, or transforms above it are not rigid.
    """
    image = nodes.get_image(xray_volume(carm)).astype(np.float32)
    return XRay(image, carm.camera, carm.pose, carm.meta)


def prepared_xray(carm: CArmNode) -> XRay:
    """The X-ray as line integrals ("attenuation"), which a DRR can be compared with; by meta["intensity"].

    Raises SceneError as `core_xray`, XRayError where nothing says what is bright.
    """
    return preprocess(core_xray(carm))


def xray_volume(carm: CArmNode):
    """The X-ray's volume node. Raises SceneError where it was deleted or there never was one."""
    volume = carm.referred("xray")
    if volume is None:
        raise SceneError(f"The C-arm '{carm.name}' has no X-ray; load one.")
    return volume


def set_camera(carm: CArmNode, camera: Camera) -> None:
    """Give a C-arm another camera; its images are placed anew, with the same pixels in the same depth.

    Points on the X-ray stay on their pixels. An image of another size than the X-ray's (a quick DRR) covers the same
    detector. Raises SceneError where the camera's size is not that of the X-ray; nothing is changed then.
    """
    volume, depth = carm.referred("xray"), carm.depth
    size = None if volume is None or volume.GetImageData() is None else _size(volume)
    if size not in (None, (camera.height, camera.width)):
        raise SceneError(
            f"The camera is for {camera.height} x {camera.width} pixels, but the X-ray of '{carm.name}' has "
            f"{size[0]} x {size[1]} (height x width); give a camera of that size."
        )
    old = carm.camera
    _settle_changed(carm, old, camera)
    carm.set_depth(depth)
    for markups in points_on(carm):
        move_points(markups, lambda points: pixels_to_points(camera, points_to_pixels(old, points)))
    for role in IMAGES:
        volume = carm.referred(role)
        if volume is not None and volume.GetImageData() is not None and all(_size(volume)):
            volume.SetIJKToRASMatrix(nodes.to_vtk(pixels_to_detector(camera.resized(*_size(volume)))))


def points_on(carm: CArmNode) -> list:
    """The C-arm's lists of points below its X-ray plane: landmarks, and beads with where they are expected."""
    lists = [carm.referred(role) for role in ("landmarks", *BEADS)]
    return [markups for markups in lists if markups is not None and markups.GetParentTransformNode() is carm.plane]


def move_points(markups, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Put control points to where `change` takes them, [N, 3] as they are stored; those that it loses stay."""
    count = markups.GetNumberOfControlPoints()
    if count == 0:
        return
    points = np.array([markups.GetNthControlPointPosition(number) for number in range(count)])
    for number, point in enumerate(change(points)):
        if np.isfinite(point).all() and not np.array_equal(point, points[number]):
            markups.SetNthControlPointPosition(number, *point)


def _settle_changed(carm: CArmNode, old: Camera, new: Camera) -> None:
    """Set the camera; what somebody gave another value is no assumption any more."""
    carm.camera = new
    changed = {
        words.DISTANCE: float(old.source_to_detector) != float(new.source_to_detector),
        words.SPACING: not np.allclose(old.pixel_spacing, new.pixel_spacing, rtol=1e-9, atol=0),
        words.POINT: not np.allclose(old.principal_point, new.principal_point, rtol=0, atol=1e-9),
        words.SIDE: old.view_from != new.view_from,
    }
    words.settle(carm, [word for word, is_new in changed.items() if is_new])


def show_grey(volume, image: np.ndarray) -> None:
    """Show a scalar volume in grey, smooth, its window from the 1st to the 99th percentile of `image`."""
    if volume.GetDisplayNode() is None:
        volume.CreateDefaultDisplayNodes()
    display = volume.GetDisplayNode()
    low, high = np.percentile(image, (_DARK, _BRIGHT))
    if not high > low:
        low, high = float(image.min()), float(image.max())
    with slicer.util.NodeModify(display):
        display.AutoWindowLevelOff()
        display.SetWindowLevelMinMax(float(low), float(high) if high > low else float(low) + 1.0)
        display.InterpolateOn()


def _size(volume) -> tuple[int, int]:
    """(height, width) in pixels."""
    width, height, _ = volume.GetImageData().GetDimensions()
    return height, width
