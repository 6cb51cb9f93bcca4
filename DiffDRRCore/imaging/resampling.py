"""Resampling of an image from one camera's pixel grid to another's.

Two cameras with the same source and orientation see the same rays, so their pixels are related by the homography
K K_new^-1 (Hartley and Zisserman, Multiple View Geometry, 8.4.2), which is a scale and a shift along each image axis
where neither has skew. Each axis is then a matrix of weights, and the image is resampled as W_v image W_u^T.

Along an axis a new pixel covers `a` old ones. Where a >= 1 its value is the mean over that interval: whole pixels count
1 / a, and a partly covered pixel shares its weight with its inner neighbour such that the centroid of the weights is
the centre of the interval. So blocks of whole pixels are averaged exactly, linear ramps are reproduced exactly, and for
a -> 1 the weights become those of linear interpolation, which is what is used where a < 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from DiffDRRCore.errors import XRayError
from DiffDRRCore.geometry.camera import Camera


def resample(image: Tensor, camera: Camera, new_camera: Camera, fill: float = 0.0) -> Tensor:
    """An image [..., H, W] of `camera` as `new_camera` would have taken it from the same place: [..., H', W'].

    Averaged over each new pixel's area where pixels become larger, linearly interpolated where they become smaller. At
    the image's edge the part inside counts; a new pixel whose centre lies outside the old image is `fill`.
    Differentiable in the image. Raises XRayError for cameras that differ in skew, or where only one is parallel.
    """
    if tuple(image.shape[-2:]) != (camera.height, camera.width):
        raise XRayError(
            f"The image has {image.shape[-2]} x {image.shape[-1]} pixels but its camera "
            f"{camera.height} x {camera.width}."
        )
    scale, shift = _pixel_map(camera, new_camera)
    columns = axis_weights(camera.width, new_camera.width, scale[0], shift[0]).to(image)
    rows = axis_weights(camera.height, new_camera.height, scale[1], shift[1]).to(image)
    resampled = rows @ image @ columns.transpose(-1, -2)
    if fill == 0:
        return resampled
    inside = (rows.sum(-1) > 0)[:, None] & (columns.sum(-1) > 0)
    return torch.where(inside, resampled, torch.full_like(resampled, fill))


def axis_weights(old_size: int, new_size: int, scale: float, shift: float) -> Tensor:
    """Weights [new_size, old_size] (float64) of one axis: new pixel n covers |scale| old ones about scale n + shift.

    Rows sum to 1, or to 0 where the new pixel's centre lies outside the old pixels' area.
    """
    centers = (scale * torch.arange(new_size, dtype=torch.float64) + shift)[:, None]
    offsets = torch.arange(old_size, dtype=torch.float64) - centers
    if abs(scale) < 1:
        weights = (1 - offsets.abs()).clamp(min=0)
    else:
        half = abs(scale) / 2
        weights = _covered(half - offsets) + _covered(half + offsets) - 1
    inside = (centers >= -0.5) & (centers <= old_size - 0.5)
    weights = weights * inside
    return weights / weights.sum(-1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)


def _covered(end: Tensor) -> Tensor:
    """Weight of the pixel [-0.5, 0.5] in an interval from far below to `end`, first moment kept."""
    own = (end + 0.5).clamp(0, 1)
    next_one = (end - 0.5).clamp(0, 1)
    return own * (1 + own) / 2 + next_one * (1 - next_one) / 2


def _pixel_map(camera: Camera, new_camera: Camera) -> tuple[list[float], list[float]]:
    """(scale, shift) for (u, v) with old = scale new + shift."""
    if camera.parallel != new_camera.parallel:
        raise XRayError("A parallel and a perspective camera do not share their rays: no resampling between them.")
    old, new = (one.K.detach().to("cpu", torch.float64) for one in (camera, new_camera))
    if old.dim() != 2 or new.dim() != 2:
        raise XRayError("Resampling is between two single cameras, not batches.")
    homography = old @ torch.linalg.inv(new)
    if abs(float(homography[0, 1])) * new_camera.height > 1e-3:
        raise XRayError("The two cameras differ in skew; resampling between them is not supported.")
    return homography.diagonal()[:2].tolist(), homography[:2, 2].tolist()
