"""A camera that was calibrated, with the distortion of its images, on an X-ray of the scene.

The image as it was recorded is kept beside the one without distortion (role "recorded"), so that nothing is lost and
another calibration starts from it.
"""

from __future__ import annotations

import numpy as np
import torch

from DiffDRRCore import Camera, XRay
from DiffDRRCore.imaging.camera_file import camera_to_dict
from DiffDRRCore.imaging.distortion import Distortion
from DiffDRRCore.imaging.distortion_file import distortion_from_dict
from DiffDRRCore.imaging.xray_reading import UNDISTORTED
from DiffDRRSlicerLib.scene import assumptions as words
from DiffDRRSlicerLib.scene import nodes, sweeps
from DiffDRRSlicerLib.scene.calibration_marks import draw_residuals
from DiffDRRSlicerLib.scene.carm import CArmNode, pixels_to_detector, pixels_to_points, points_to_pixels
from DiffDRRSlicerLib.scene.errors import SceneError
from DiffDRRSlicerLib.scene.frustum import update_frustum
from DiffDRRSlicerLib.scene.xrays import core_xray, move_points, points_on, set_camera, show_grey, xray_volume

_RECORDED = "recorded"


def recorded_xray(carm: CArmNode) -> XRay:
    """The X-ray as it was recorded, with its distortion if it has one. Raises SceneError as `core_xray`."""
    xray, kept = core_xray(carm), carm.referred(_RECORDED)
    if kept is None:
        return xray
    meta = {name: value for name, value in xray.meta.items() if name != UNDISTORTED}
    return XRay(nodes.get_image(kept).astype(np.float32), xray.camera, xray.pose, meta)


def undone_distortion(carm: CArmNode) -> Distortion | None:
    """What the X-ray as recorded has and the one that is shown has not, where both are there."""
    return None if carm.referred(_RECORDED) is None else distortion_from_dict(carm.meta.get(UNDISTORTED))


def apply_camera(carm: CArmNode, camera: Camera, distortion: Distortion | None = None, source: str = "") -> None:
    """Give a C-arm a calibrated camera, and undo the distortion of its X-ray; a C-arm without X-ray gets the camera.

    Points on the X-ray stay on what they mark. `source` is kept as where the camera is from.

    Raises SceneError, with nothing changed, where the camera is for another image size, where a distortion is to be
    undone in a sweep or below a segmentation, and XRayError where it was undone when the image was read.
    """
    if carm.referred("xray") is None:
        set_camera(carm, camera)
        _settle(carm, source)
        return
    image = recorded_xray(carm)
    check_distortion(carm, camera, distortion)
    old = undone_distortion(carm)
    changed = image if distortion is None else image.undistorted(distortion)
    set_camera(carm, camera)
    if distortion is not None or old is not None:
        _show(carm, image, changed)
    _move_points(carm, old, distortion)
    _settle(carm, source, changed.meta)
    update_frustum(carm)


def put_back(carm: CArmNode, camera: Camera, meta: dict) -> None:
    """Give a C-arm the camera that it had, and its X-ray the pixels that it showed, with its `meta` of then."""
    if meta.get(UNDISTORTED) != carm.meta.get(UNDISTORTED) and carm.referred(_RECORDED) is not None:
        apply_camera(carm, camera, distortion_from_dict(meta.get(UNDISTORTED)))
    elif camera_to_dict(camera) != camera_to_dict(carm.camera):
        set_camera(carm, camera)
        update_frustum(carm)
    carm.meta = meta


def check_distortion(carm: CArmNode, camera: Camera, distortion) -> None:
    """Raise SceneError, as `apply_camera`, where it could not; any `distortion` but None asks for one."""
    height, width = nodes.get_image(xray_volume(carm)).shape
    if (height, width) != (camera.height, camera.width):
        raise SceneError(
            f"The calibration is for {camera.height} x {camera.width} pixels, but the X-ray of '{carm.name}' has "
            f"{height} x {width} (height x width); calibrate with images of that size."
        )
    if distortion is None:
        return
    if sweeps.find_sweep(carm) is not None:
        raise SceneError(f"'{carm.name}' is a sweep, whose images cannot be undistorted here; load them one by one.")
    if carm.referred("segmentation") is not None:
        raise SceneError(f"'{carm.name}' has a segmentation, which would stay distorted; delete that first.")


def _show(carm: CArmNode, recorded: XRay, changed: XRay) -> None:
    """Write the new pixels, and keep those recorded in a volume of their own."""
    volume, kept = xray_volume(carm), carm.referred(_RECORDED)
    if kept is None:
        kept = carm.below(_RECORDED, "vtkMRMLScalarVolumeNode", "image as recorded")
        carm.place_image(kept, recorded.image.numpy())
        show_grey(kept, recorded.image.numpy())
    nodes.set_image(volume, changed.image.numpy(), pixels_to_detector(carm.camera))


def _move_points(carm: CArmNode, old: Distortion | None, new: Distortion | None) -> None:
    """Landmarks and beads go where their pixels go."""
    camera = carm.camera

    def change(points: np.ndarray) -> np.ndarray:
        pixels = torch.from_numpy(points_to_pixels(camera, points))
        pixels = pixels if old is None else old.distort(pixels)
        pixels = pixels if new is None else new.undistort(pixels)
        return pixels_to_points(camera, pixels.numpy())

    for markups in points_on(carm) if old is not None or new is not None else ():
        move_points(markups, change)
    draw_residuals(carm)


def _settle(carm: CArmNode, source: str, meta: dict | None = None) -> None:
    words.settle(carm, words.CAMERA)
    kept = {name: value for name, value in carm.meta.items() if name != UNDISTORTED}
    undone = (meta or {}).get(UNDISTORTED)
    more = {} if undone is None else {UNDISTORTED: undone}
    carm.meta = {**kept, **more, **({"camera_source": source} if source else {})}
