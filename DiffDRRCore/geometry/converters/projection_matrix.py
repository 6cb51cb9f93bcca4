"""3 x 4 projection matrices: w (u, v, 1) = P (x, y, z, 1), as calibrations and reconstruction programs write them.

Hartley and Zisserman, Multiple View Geometry, 2nd edition, section 6.2.4: P = lambda K R [I | -source].
"""

from __future__ import annotations

import torch
from torch import Tensor

from DiffDRRCore.errors import GeometryError
from DiffDRRCore.geometry.camera import Camera
from DiffDRRCore.geometry.converters._common import proper_camera
from DiffDRRCore.geometry.pose import Pose
from DiffDRRCore.geometry.tensors import as_tensor, homogeneous, promote

_SINGULAR = 1e-10  # |det| over the product of the rows' lengths, which is at most 1 (Hadamard)


def from_projection_matrix(
    P, height: int, width: int, pixel_spacing=None, source_to_detector=None, in_front=(0.0, 0.0, 0.0)
) -> tuple[Camera, Pose]:
    """Camera and pose of P [..., 3, 4], world RAS mm to pixels (integers at pixel centres), in float64.

    P is known up to a factor, negative ones included, so it does not say on which side of the source the detector is:
    `in_front` (a world point in mm, [3] or [..., 3]) settles that, being where the patient is. Then K[1, 1] > 0, and
    the sign of K[0, 0] tells the side the image is seen from. Skew is kept.

    Args:
        height, width: image size in pixels.
        pixel_spacing, source_to_detector: one of them, as `Camera.from_intrinsics` asks.

    Raises:
        GeometryError: P is not finite or singular (a parallel beam's P is), or `in_front` lies level with the source.
    """
    P, in_front = as_tensor(P, torch.float64), as_tensor(in_front, torch.float64)
    _check(P.detach())
    M = P[..., :3]
    source = -torch.linalg.solve(M, P[..., 3:])[..., 0]
    depth = (M[..., 2, :] * (in_front - source)).sum(-1)
    if bool((depth.detach().abs() <= 1e-9 * torch.linalg.vector_norm(M[..., 2, :], dim=-1)).any()):
        raise GeometryError(
            "The point in_front lies in the plane of the source, so it cannot tell where the detector is; give a point "
            "inside the patient."
        )
    K, world_to_camera = _rq(M * torch.sign(depth)[..., None, None])
    K, axes = proper_camera(K / K[..., 2:, 2:], world_to_camera.transpose(-1, -2))
    return Camera.from_intrinsics(K, height, width, pixel_spacing, source_to_detector), Pose(homogeneous(axes, source))


def to_projection_matrix(camera: Camera, pose: Pose) -> Tensor:
    """P [..., 3, 4] = K [R | t], world RAS mm to pixels; P times a point is (w u, w v, w) with w its depth in mm.

    Of a parallel-beam camera: the affine P whose last row is (0, 0, 0, 1).
    """
    K, matrix = promote(camera.K, pose.inverse().matrix)
    return K @ (matrix[..., (0, 1, 3), :] if camera.parallel else matrix[..., :3, :])


def _check(P: Tensor) -> None:
    if P.shape[-2:] != (3, 4):
        raise GeometryError(f"A projection matrix is 3 x 4 (or a batch of them), got shape {list(P.shape)}.")
    if not bool(torch.isfinite(P).all()):
        raise GeometryError("The projection matrix has entries that are not finite numbers.")
    lengths = torch.linalg.vector_norm(P[..., :3], dim=-1)
    unit = P[..., :3] / torch.where(lengths > 0, lengths, 1.0)[..., None]
    if bool(((lengths == 0).any(-1) | (torch.linalg.det(unit).abs() < _SINGULAR)).any()):
        raise GeometryError(
            "The projection matrix is singular: its left 3 x 3 block cannot be inverted, so there is no source point "
            "(for a parallel beam use Camera.parallel_beam)."
        )


def _rq(M: Tensor) -> tuple[Tensor, Tensor]:
    """M = K Q: K upper triangular with a positive diagonal, Q orthogonal with determinant sign(det M)."""
    orthogonal, triangular = torch.linalg.qr(M.flip(-2).transpose(-1, -2))
    K = triangular.transpose(-1, -2).flip(-1, -2)
    signs = torch.sign(K.detach().diagonal(dim1=-2, dim2=-1))
    return torch.triu(K * signs[..., None, :]), orthogonal.transpose(-1, -2).flip(-2) * signs[..., :, None]
