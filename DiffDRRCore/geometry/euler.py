"""Euler angles of a rotation matrix, in any of the twelve orders, with finite gradients in gimbal lock too.

`roma` has both conversions, but the gradient of its inverse is NaN in gimbal lock (the identity, for the proper orders
such as ZXZ). The formulas below are the textbook ones (Shoemake, Euler angle conversion, Graphics Gems IV, 1994); the
third angle is read from what the first one leaves, so that the three always compose to the matrix.
"""

from __future__ import annotations

import torch
from torch import Tensor

from DiffDRRCore.errors import GeometryError

_AXES = {"x": 0, "y": 1, "z": 2}
_CROSS = (  # the matrix of the cross product with each axis
    ((0.0, 0.0, 0.0), (0.0, 0.0, -1.0), (0.0, 1.0, 0.0)),
    ((0.0, 0.0, 1.0), (0.0, 0.0, 0.0), (-1.0, 0.0, 0.0)),
    ((0.0, -1.0, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, 0.0)),
)


def check_order(convention: str | None) -> str:
    """The order itself where it is one of XYZ, ZXZ, ... (upper case: intrinsic, lower case: extrinsic axes).

    Raises GeometryError otherwise.
    """
    text = convention or ""
    same_case = text.isupper() or text.islower()
    letters = text.lower()
    if len(text) != 3 or not same_case or not set(letters) <= set("xyz") or letters[1] in (letters[0], letters[2]):
        raise GeometryError(
            f"Euler angles need an order of axes such as 'ZXY' (intrinsic) or 'zxy' (extrinsic), got {convention!r}."
        )
    return text


def euler_to_matrix(angles: Tensor, convention: str) -> Tensor:
    """[..., 3, 3] = R1(a1) R2(a2) R3(a3) for an upper-case order, R3 R2 R1 for a lower-case one. Radians."""
    order = check_order(convention)
    if order.islower():
        return euler_to_matrix(angles.flip(-1), order[::-1].upper())
    cross = angles.new_tensor([_CROSS[_AXES[letter]] for letter in order.lower()])
    sine, cosine = torch.sin(angles)[..., None, None], torch.cos(angles)[..., None, None]
    turns = torch.eye(3).to(angles) + sine * cross + (1 - cosine) * (cross @ cross)  # Rodrigues' formula
    first, middle, last = turns.unbind(-3)
    return first @ middle @ last


def matrix_to_euler(rotation: Tensor, convention: str) -> Tensor:
    """Angles [..., 3] in radians; the middle one in [-pi/2, pi/2] (three axes) or [0, pi] (two axes).

    In gimbal lock the last angle is zero (the first one for an extrinsic order).
    """
    order = check_order(convention)
    if order.islower():
        return matrix_to_euler(rotation, order[::-1].upper()).flip(-1)
    i, j, last = (_AXES[letter] for letter in order.lower())
    k = 3 - i - j
    sign = 1.0 if (j - i) % 3 == 1 else -1.0
    read = _read_two_axes if last == i else _read_three_axes
    first, middle, last_angle = read(rotation, i, j, k, sign)
    return torch.stack([first, middle, last_angle], dim=-1)


def _read_three_axes(r: Tensor, i: int, j: int, k: int, sign: float) -> tuple[Tensor, Tensor, Tensor]:
    cosine = _hypot(r[..., j, k], r[..., k, k])
    middle = _atan2(sign * r[..., i, k], cosine)
    regular = _atan2(-sign * r[..., j, k], r[..., k, k])
    first = _unless_locked(cosine, regular, r, j, k, sign)
    remaining = _row_after(first, r, j, k, sign)
    return first, middle, _atan2(sign * remaining[..., i], remaining[..., j])


def _read_two_axes(r: Tensor, i: int, j: int, k: int, sign: float) -> tuple[Tensor, Tensor, Tensor]:
    sine = _hypot(r[..., j, i], r[..., k, i])
    middle = _atan2(sine, r[..., i, i])
    regular = _atan2(r[..., j, i], -sign * r[..., k, i])
    first = _unless_locked(sine, regular, r, j, k, sign)
    remaining = _row_after(first, r, j, k, sign)
    return first, middle, _atan2(-sign * remaining[..., k], remaining[..., j])


def _unless_locked(radius: Tensor, regular: Tensor, r: Tensor, j: int, k: int, sign: float) -> Tensor:
    locked = radius.detach() < 16 * torch.finfo(r.dtype).eps
    return torch.where(locked, _atan2(sign * r[..., k, j], r[..., j, j]), regular)


def _row_after(first: Tensor, r: Tensor, j: int, k: int, sign: float) -> Tensor:
    """Row j of R_i(-first) @ r: where only the last angle is left."""
    return torch.cos(first)[..., None] * r[..., j, :] + sign * torch.sin(first)[..., None] * r[..., k, :]


def _hypot(a: Tensor, b: Tensor) -> Tensor:
    """hypot with gradient zero, not NaN, at the origin."""
    square = a * a + b * b
    zero = square == 0
    return torch.where(zero, 0.0, torch.sqrt(torch.where(zero, 1.0, square)))


def _atan2(y: Tensor, x: Tensor) -> Tensor:
    """atan2 with gradient zero, not NaN, at the origin."""
    zero = (x == 0) & (y == 0)
    return torch.atan2(torch.where(zero, 0.0, y), torch.where(zero, 1.0, x))
