"""Exponential and logarithm of rigid motions, with finite gradients at and near the identity.

Formulas: Barfoot, State Estimation for Robotics (2017), section 7.1. Each coefficient is a smooth function of the
squared angle, taken from its Taylor series where the closed form would cancel or divide by zero.
"""

from __future__ import annotations

import roma
import torch
from torch import Tensor

from DiffDRRCore.geometry.tensors import homogeneous

_SERIES_BELOW = 0.25  # squared angle; six terms then leave less than 1e-13
_SINC = (1.0, -1 / 6, 1 / 120, -1 / 5040, 1 / 362880, -1 / 39916800)
_COSC = (1 / 2, -1 / 24, 1 / 720, -1 / 40320, 1 / 3628800, -1 / 479001600)
_SINCC = (1 / 6, -1 / 120, 1 / 5040, -1 / 362880, 1 / 39916800, -1 / 6227020800)
_COTC = (1 / 12, 1 / 720, 1 / 30240, 1 / 1209600, 1 / 47900160, 691 / 1307674368000)


def hat(vector: Tensor) -> Tensor:
    """Cross-product matrix [..., 3, 3] of a vector [..., 3]: hat(a) @ b = a x b."""
    x, y, z = vector.unbind(-1)
    zero = torch.zeros_like(x)
    rows = [torch.stack(row, dim=-1) for row in ((zero, -z, y), (z, zero, -x), (-y, x, zero))]
    return torch.stack(rows, dim=-2)


def exp_so3(omega: Tensor) -> Tensor:
    """Rotation matrix [..., 3, 3] of a rotation vector [..., 3] in radians (Rodrigues)."""
    square = (omega * omega).sum(-1)[..., None, None]
    w = hat(omega)
    identity = torch.eye(3, dtype=omega.dtype, device=omega.device)
    return identity + _sinc(square) * w + _cosc(square) * (w @ w)


def log_so3(rotation: Tensor) -> Tensor:
    """Rotation vector [..., 3], angle in [0, pi], of a rotation matrix [..., 3, 3]."""
    return roma.rotmat_to_rotvec(rotation)


def exp_se3(xi: Tensor) -> Tensor:
    """Rigid motion [..., 4, 4] of a twist xi [..., 6] = (rotation vector in radians, translation part in mm)."""
    omega, v = xi[..., :3], xi[..., 3:]
    square = (omega * omega).sum(-1)[..., None, None]
    w = hat(omega)
    identity = torch.eye(3, dtype=xi.dtype, device=xi.device)
    left_jacobian = identity + _cosc(square) * w + _sincc(square) * (w @ w)
    return homogeneous(exp_so3(omega), (left_jacobian @ v[..., None])[..., 0])


def log_se3(matrix: Tensor) -> Tensor:
    """Twist xi [..., 6] of a rigid motion [..., 4, 4]; inverse of `exp_se3` for angles below pi."""
    omega = log_so3(matrix[..., :3, :3])
    square = (omega * omega).sum(-1)[..., None, None]
    w = hat(omega)
    identity = torch.eye(3, dtype=matrix.dtype, device=matrix.device)
    inverse_jacobian = identity - 0.5 * w + _cotc(square) * (w @ w)
    return torch.cat([omega, (inverse_jacobian @ matrix[..., :3, 3:])[..., 0]], dim=-1)


def _smooth(square: Tensor, series: tuple[float, ...], closed_form) -> Tensor:
    small = square < _SERIES_BELOW
    bounded = torch.where(small, square, 0.0)
    total = torch.zeros_like(square)
    for coefficient in reversed(series):
        total = total * bounded + coefficient
    angle = torch.sqrt(torch.where(small, 1.0, square))
    return torch.where(small, total, closed_form(angle))


def _sinc(square: Tensor) -> Tensor:
    return _smooth(square, _SINC, lambda a: torch.sin(a) / a)


def _cosc(square: Tensor) -> Tensor:
    return _smooth(square, _COSC, lambda a: 2 * (torch.sin(a / 2) / a) ** 2)


def _sincc(square: Tensor) -> Tensor:
    return _smooth(square, _SINCC, lambda a: (a - torch.sin(a)) / a**3)


def _cotc(square: Tensor) -> Tensor:
    return _smooth(square, _COTC, lambda a: (1 - 0.5 * a / torch.tan(a / 2)) / a**2)
