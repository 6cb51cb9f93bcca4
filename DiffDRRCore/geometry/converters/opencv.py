"""OpenCV: K [R | t] with world_to_camera, camera x right, y down, z forward, integer pixels at pixel centres.

Frame and pixels are those of our `Camera`; only the direction of the pose differs. Lens distortion has no place in K:
undistort images or points first (`cv2.undistort`).
"""

from __future__ import annotations

from torch import Tensor

from DiffDRRCore.errors import GeometryError
from DiffDRRCore.geometry.camera import Camera
from DiffDRRCore.geometry.converters._common import require_perspective
from DiffDRRCore.geometry.pose import Pose
from DiffDRRCore.geometry.tensors import as_tensor, homogeneous, promote


def from_opencv(K, R, t, height: int, width: int, pixel_spacing=None, source_to_detector=None) -> tuple[Camera, Pose]:
    """Camera and pose of an OpenCV calibration.

    Args:
        K: [..., 3, 3] in pixels. A negative K[0, 0] (an image seen from the detector) is kept.
        R: [..., 3, 3], world RAS to camera (`cv2.Rodrigues(rvec)[0]` of a rotation vector).
        t: [..., 3] or [..., 3, 1] in mm.
        height, width: image size in pixels.
        pixel_spacing, source_to_detector: one of them, as `Camera.from_intrinsics` asks.

    Raises:
        GeometryError: R is not a proper rotation, or K is not usable.
    """
    R, t = promote(as_tensor(R), as_tensor(t))
    if R.shape[-2:] != (3, 3):
        raise GeometryError(f"R is a 3 x 3 matrix (cv2.Rodrigues makes it of rvec), got shape {list(R.shape)}.")
    if t.shape[-1:] == (1,):
        t = t[..., 0]
    if t.shape[-1:] != (3,):
        raise GeometryError(f"t has three numbers, got shape {list(t.shape)}.")
    camera = Camera.from_intrinsics(K, height, width, pixel_spacing, source_to_detector)
    return camera, Pose(homogeneous(R, t)).inverse()


def to_opencv(camera: Camera, pose: Pose) -> tuple[Tensor, Tensor, Tensor]:
    """(K [..., 3, 3] in pixels, R [..., 3, 3] world to camera, t [..., 3] in mm): the inverse of `from_opencv`.

    `cv2.projectPoints` ignores skew, K[0, 1]. Raises GeometryError for a parallel beam, which has no such form.
    """
    require_perspective(camera, "OpenCV's K")
    world_to_camera = pose.inverse()
    return camera.K, world_to_camera.rotation, world_to_camera.translation
