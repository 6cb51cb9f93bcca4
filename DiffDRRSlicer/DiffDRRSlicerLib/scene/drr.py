"""The simulated X-ray (DRR) of a C-arm, as a volume on its detector."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

from DiffDRRCore import Camera
from DiffDRRSlicerLib.scene import nodes, reassembly
from DiffDRRSlicerLib.scene.anatomy import Anatomy
from DiffDRRSlicerLib.scene.carm import CArmNode
from DiffDRRSlicerLib.scene.colors import apply_colors, auto_window, set_inverted

LARGEST = 512  # longest side in pixels where nobody asks for another


def render_drr(carm: CArmNode, anatomy: Anatomy, structures=None, size: int | None = None, draft: bool = False):
    """Render what the C-arm sees now, and show it on its detector.

    Args:
        structures: names or numbers of the structures to render alone; None renders everything. Bones that were made of
            structures are rendered where they are (`reassembly.pieces`).
        size: longest side in pixels, of the same detector area; None is the image's own, at most 512.
        draft: average voxels that are smaller than a pixel is at the anatomy: softer, and quicker.

    Returns:
        The vtkMRMLScalarVolumeNode of role "drr": float32 line integrals. Its window is found once and is the user's
        afterwards; it is inverted at first where the X-ray shows bone dark.

    Raises SceneError for transforms that are not rigid, and Core's errors for structures that are not there.
    """
    camera = resized_camera(carm.camera, size)
    pose = anatomy.pose_in_volume(carm.pose)
    with torch.no_grad():
        finest = _pixel_at(camera, carm, anatomy) if draft else 0.0
        image = reassembly.rendered(anatomy, camera, pose, structures, finest).float().cpu().numpy()
    volume = carm.below("drr", "vtkMRMLScalarVolumeNode", "DRR")
    carm.place_image(volume, image, camera)
    if volume.GetDisplayNode() is None:
        _show_first(carm, volume)
    apply_colors(volume)
    return volume


def copy_drr(carm: CArmNode):
    """A volume node with the DRR as it is, where it lies in the world, which later moves do not change.

    Raises SceneError where nothing has been rendered yet.
    """
    drr = carm.referred("drr")
    image = nodes.get_image(drr)
    copy = nodes.add_node(carm.scene, "vtkMRMLScalarVolumeNode", f"{drr.GetName()} copy")
    nodes.set_image(copy, image, nodes.volume_grid(drr))
    copy.SetAndObserveTransformNodeID(drr.GetTransformNodeID())
    copy.HardenTransform()
    copy.CreateDefaultDisplayNodes()
    copy.GetDisplayNode().Copy(drr.GetDisplayNode())
    return copy


@lru_cache(maxsize=32)
def resized_camera(camera: Camera, size: int | None = None) -> Camera:
    """The same detector area with `size` pixels on its longest side; None is its own, at most 512.

    Made once for a camera, as every turn of a C-arm asks for it.
    """
    longest, size = max(camera.height, camera.width), longest_side(camera, size)
    if size == longest:
        return camera
    return camera.resized(*(max(1, round(side * size / longest)) for side in (camera.height, camera.width)))


def _pixel_at(camera: Camera, carm: CArmNode, anatomy: Anatomy) -> float:
    """Smaller side in mm of a pixel's shadow at the anatomy's middle; 0 behind the source."""
    spacing = float(camera.pixel_spacing.min())
    if camera.parallel:
        return spacing
    depth = nodes.transformed(np.linalg.inv(carm.to_world), anatomy.center)[2]
    return max(0.0, spacing * depth / float(camera.source_to_detector))


def longest_side(camera: Camera, size: int | None = None) -> int:
    """That of `resized_camera`, in pixels."""
    return min(max(camera.height, camera.width), LARGEST) if size is None else max(1, int(size))


def _show_first(carm: CArmNode, volume) -> None:
    volume.CreateDefaultDisplayNodes()
    display = volume.GetDisplayNode()
    display.AutoWindowLevelOff()
    display.InterpolateOn()
    auto_window(volume)
    if carm.meta.get("intensity") == "transmission":
        set_inverted(volume, True)
