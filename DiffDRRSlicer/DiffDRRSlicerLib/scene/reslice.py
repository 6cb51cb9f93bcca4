"""The CT cut along the X-ray's plane."""

from __future__ import annotations

import numpy as np
import slicer.util
from scipy.ndimage import map_coordinates

from DiffDRRSlicerLib.scene import nodes
from DiffDRRSlicerLib.scene.anatomy import Anatomy
from DiffDRRSlicerLib.scene.carm import CArmNode, pixels_to_detector

_LARGEST = 512  # pixels of the longer side
_AIR = -1000.0


def reslice(anatomy: Anatomy, carm: CArmNode, depth: float | None = None):
    """The CT in the plane parallel to the detector in which the X-ray is shown, as a scalar volume of role "reslice".

    Trilinear, in the CT's units, -1000 outside; it covers the X-ray (at most 512 pixels a side) and hangs below the
    same plane. Made once, rewritten by the next call.

    Args:
        depth: mm from the source, to which the X-ray's plane is moved; None is where it is, through the anatomy.
    """
    if depth is not None:
        carm.set_depth(depth)
    camera = carm.camera
    scale = min(1.0, _LARGEST / max(camera.height, camera.width))
    camera = camera.resized(*(max(1, round(side * scale)) for side in (camera.height, camera.width)))
    to_world = nodes.transform_to_world(carm.plane) @ pixels_to_detector(camera)
    to_voxels = np.linalg.inv(nodes.parent_to_world(anatomy.ct) @ nodes.volume_grid(anatomy.ct)) @ to_world
    rows, columns = np.indices((camera.height, camera.width), dtype=float)
    ijk = nodes.transformed(to_voxels, np.stack([columns, rows, np.zeros_like(rows)], axis=-1))
    voxels = slicer.util.arrayFromVolume(anatomy.ct)
    image = map_coordinates(voxels, ijk[..., ::-1].transpose(2, 0, 1), np.float32, order=1, cval=_AIR)
    volume = carm.below("reslice", "vtkMRMLScalarVolumeNode", "CT slice")
    carm.place_image(volume, image, camera)
    return volume
