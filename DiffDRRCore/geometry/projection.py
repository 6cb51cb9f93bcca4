"""Between points in the patient and pixels of the image, differentiable in pose, camera and points."""

from __future__ import annotations

import torch
from torch import Tensor

from DiffDRRCore.errors import GeometryError
from DiffDRRCore.geometry.camera import Camera
from DiffDRRCore.geometry.pose import Pose
from DiffDRRCore.geometry.tensors import as_tensor, promote, transform_points


def project(camera: Camera, pose: Pose, points) -> Tensor:
    """Pixels (u, v) [B, N, 2] of world points [N, 3] or [B, N, 3] in mm.

    A point level with the source or behind it has no image: NaN. The result has the dtype of pose and points.
    """
    matrix, points = promote(pose.inverse().matrix, as_tensor(points))
    local = transform_points(_batched(matrix), points)
    xy, depth = local[..., :2], local[..., 2:]
    if camera.parallel:
        plane = torch.cat([xy, torch.ones_like(depth)], dim=-1)
    else:
        visible = depth > 0
        plane = torch.cat([xy / torch.where(visible, depth, 1.0), torch.ones_like(depth)], dim=-1)
    uv = (plane @ camera.K.to(plane).transpose(-1, -2))[..., :2]
    return uv if camera.parallel else torch.where(visible, uv, torch.nan)


def backproject(camera: Camera, pose: Pose, uv) -> tuple[Tensor, Tensor]:
    """The rays of pixels uv [N, 2] or [B, N, 2]: origin [B, N, 3] in world mm, unit direction [B, N, 3]."""
    source, target = pixel_rays(camera, pose, uv)
    direction = target - source
    direction = direction / torch.linalg.vector_norm(direction, dim=-1, keepdim=True)
    return source.expand_as(direction), direction


def pixel_rays(camera: Camera, pose: Pose, uv=None, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """The segments that make pixels, in world mm: source [B, N, 3] ([B, 1, 3] where rays share it), target [B, N, 3].

    The target is the pixel's centre on the detector.

    Args:
        uv: [N, 2] or [B, N, 2] pixels; None is every pixel of the image, row by row (N = H W).
        device: of the result; None is that of the camera.

    Raises GeometryError where uv are not pairs.
    """
    matrix = _batched(pose.matrix)
    uv = pixel_grid(camera, device=device) if uv is None else as_tensor(uv).to(device)
    dtype = torch.promote_types(matrix.dtype, uv.dtype)
    matrix, uv = matrix.to(dtype), uv.to(dtype)
    if uv.shape[-1:] != (2,):
        raise GeometryError(f"Pixels are pairs (u, v), got shape {list(uv.shape)}.")
    K, distance = camera.K.to(matrix), camera.source_to_detector.to(matrix)[..., None, None]
    rotation, origin = matrix[..., :3, :3], matrix[..., None, :3, 3]
    pixels = torch.cat([uv, torch.ones_like(uv[..., :1])], dim=-1)
    if camera.parallel:
        across = torch.cat([rotation[..., :2], torch.zeros_like(rotation[..., :1])], dim=-1) @ torch.linalg.inv(K)
        source = pixels @ across.transpose(-1, -2).to(uv) + origin.to(uv)
        return source, source + (distance * rotation[..., None, :, 2]).to(uv)
    from_pixels = rotation @ torch.linalg.inv(K) * distance
    origin = origin.to(uv)
    return origin, pixels @ from_pixels.transpose(-1, -2).to(uv) + origin


def pixel_grid(camera: Camera, first: int = 0, last: int | None = None, device: torch.device | None = None) -> Tensor:
    """(u, v) [N, 2] of every pixel, row by row, float64; or of those from number `first` to before number `last`."""
    last = camera.height * camera.width if last is None else last
    number = torch.arange(first, last, device=camera.K.device if device is None else device)
    return torch.stack([number % camera.width, number // camera.width], dim=-1).double()


def _batched(matrix: Tensor) -> Tensor:
    return matrix[None] if matrix.ndim == 2 else matrix.flatten(0, -3)
