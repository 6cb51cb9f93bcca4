"""Writing X-rays: an image file and its JSON camera."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK
from torch import Tensor

from DiffDRRCore.errors import XRayError
from DiffDRRCore.files import replacing
from DiffDRRCore.geometry.camera import Camera
from DiffDRRCore.geometry.pose import Pose
from DiffDRRCore.imaging.camera_file import write_camera
from DiffDRRCore.imaging.image_files import quiet_itk
from DiffDRRCore.imaging.xray_reading import camera_path_beside

_EXACT = (".nii", ".nii.gz", ".nrrd", ".mha")
_FLOAT32 = (".tif", ".tiff")


def write_image(path: Path, image: Tensor, camera: Camera, pose: Pose | None, meta: dict[str, Any]) -> None:
    """Write `image` [H, W] to `path` and its geometry to `<stem>.json`; see `XRay.write`."""
    write_array(path, _storable(path, image.detach().cpu().numpy()))
    meta = dict(meta)
    write_camera(camera_path_beside(path), camera, pose, meta.pop("intensity", None), meta)


def write_array(path: Path, array: np.ndarray) -> None:
    """Write an array [H, W] in the format of the path's suffix. Raises XRayError where ITK cannot (a full disk)."""
    with replacing(path) as temporary, quiet_itk():
        try:
            SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array), str(temporary))
        except RuntimeError as error:
            raise XRayError(f"Cannot write '{path}': {str(error).strip().splitlines()[-1].strip()}") from error


def _storable(path: Path, array: np.ndarray) -> np.ndarray:
    name = path.name.lower()
    if name.endswith(_EXACT):
        return array if array.dtype in (np.float32, np.float64) else array.astype(np.float32)
    if name.endswith(_FLOAT32):
        return array.astype(np.float32)
    if not name.endswith(".png"):
        raise XRayError(f"Cannot write '{path}': use one of {', '.join((*_EXACT, *_FLOAT32, '.png'))}.")
    whole = np.rint(array)
    if not np.array_equal(whole, array) or array.min() < 0 or array.max() > np.iinfo(np.uint16).max:
        raise XRayError(f"Cannot write '{path}': PNG holds whole numbers 0..65535; use .tif or .nrrd for this image.")
    return whole.astype(np.uint16)
