"""What the converters share."""

from __future__ import annotations

import torch
from torch import Tensor

from DiffDRRCore.errors import GeometryError
from DiffDRRCore.geometry.camera import Camera


def require_perspective(camera: Camera, what: str) -> None:
    """Raises GeometryError for a parallel-beam camera, which `what` cannot describe."""
    if camera.parallel:
        raise GeometryError(f"{what} describes a point source; this camera has a parallel beam.")


def require_single_without_skew(camera: Camera, package: str) -> None:
    """Raises GeometryError for a batch of cameras, a parallel beam or skew, which `package` cannot describe."""
    require_perspective(camera, package)
    if camera.K.ndim != 2 or camera.source_to_detector.ndim != 0:
        raise GeometryError(f"{package} takes one detector at a time; convert the cameras of a batch one by one.")
    if abs(float(camera.K[0, 1])) > 1e-6 * abs(float(camera.K[0, 0])):
        raise GeometryError(f"{package} has no skew, but K[0, 1] is {float(camera.K[0, 1]):.6g}.")


def proper_camera(K: Tensor, axes: Tensor) -> tuple[Tensor, Tensor]:
    """K [..., 3, 3] and camera axes [..., 3, 3] (columns x, y, z) with a reflection moved from the axes to K[0, 0].

    A left-handed camera sees the same picture as the right-handed one whose x axis and K[0, 0] have the other sign.
    """
    handedness = torch.sign(torch.linalg.det(axes.detach()))
    return mirror_x(K, handedness), mirror_x(axes, handedness)


def mirror_x(matrix: Tensor, side: Tensor) -> Tensor:
    """The first column of [..., 3, 3] times `side` [...], +1 or -1."""
    signs = torch.stack([side, torch.ones_like(side), torch.ones_like(side)], dim=-1)
    return matrix * signs[..., None, :].to(matrix)
