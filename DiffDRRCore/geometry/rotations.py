"""The rotation parameterizations of `Pose`: numbers to matrix and back, in one table.

| name | numbers | meaning |
|---|---|---|
| axis_angle | 3 | rotation vector, radians |
| euler_angles | 3 | `convention`: an order such as ZXY (intrinsic) or zxy (extrinsic) |
| quaternion | 4 | `convention`: "xyzw" (default; SciPy, ITK, roma) or "wxyz"; any norm but zero |
| quaternion_adjugate | 10 | upper triangle of q q^T, q = (x, y, z, w) (Hanson and Hanson 2022) |
| rotation_6d | 6 | first two columns, orthonormalised (Zhou et al. 2019) |
| rotation_9d | 9 | matrix row by row, projected by SVD (Levinson et al. 2020) |
| rotation_10d | 10 | upper triangle of a symmetric 4x4, q the eigenvector of its least eigenvalue (Peretroukhin 2020) |
| matrix | 3 x 3 | the matrix itself |

Gradients are finite everywhere, at the identity and at 180 degrees too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import roma
import torch
from torch import Tensor

from DiffDRRCore.errors import GeometryError
from DiffDRRCore.geometry.euler import euler_to_matrix, matrix_to_euler
from DiffDRRCore.geometry.se3 import exp_so3, log_so3

_UPPER = torch.triu_indices(4, 4).tolist()


class Parameterization(NamedTuple):
    """Shape of the numbers, and the two maps; each map takes (values, convention)."""

    shape: tuple[int, ...]
    to_matrix: Callable[[Tensor, str | None], Tensor]
    from_matrix: Callable[[Tensor, str | None], Tensor]


def rotation_matrix(values: Tensor, parameterization: str, convention: str | None = None) -> Tensor:
    """Rotation matrices [..., 3, 3] of `values` [..., n]; angles in radians.

    Raises GeometryError on a bad name or shape.
    """
    entry = lookup(parameterization)
    count = len(entry.shape)
    if tuple(values.shape[-count:]) != entry.shape:
        expected = ", ".join(map(str, entry.shape))
        raise GeometryError(f"{parameterization} takes [..., {expected}] numbers, got shape {list(values.shape)}.")
    return entry.to_matrix(values, convention)


def rotation_parameters(rotation: Tensor, parameterization: str, convention: str | None = None) -> Tensor:
    """The inverse of `rotation_matrix`: [..., 3, 3] to [..., n]."""
    return lookup(parameterization).from_matrix(rotation, convention)


def lookup(parameterization: str) -> Parameterization:
    """The table's entry. Raises GeometryError that lists the names where there is none."""
    try:
        return PARAMETERIZATIONS[parameterization]
    except KeyError:
        names = ", ".join([*PARAMETERIZATIONS, "se3_log"])
        raise GeometryError(f"Unknown parameterization {parameterization!r}; choose from {names}.") from None


def _matrix_from_quaternion(values: Tensor, convention: str | None) -> Tensor:
    norm = torch.linalg.vector_norm(values, dim=-1, keepdim=True)
    if bool((norm.detach() == 0).any()):
        raise GeometryError("A quaternion of norm zero is no rotation.")
    return roma.unitquat_to_rotmat(_as_xyzw(values / norm, convention))


def _quaternion_from_matrix(rotation: Tensor, convention: str | None) -> Tensor:
    quaternion = roma.rotmat_to_unitquat(rotation)
    return quaternion.roll(1, -1) if _quaternion_order(convention) == "wxyz" else quaternion


def _as_xyzw(quaternion: Tensor, convention: str | None) -> Tensor:
    return quaternion.roll(-1, -1) if _quaternion_order(convention) == "wxyz" else quaternion


def _quaternion_order(convention: str | None) -> str:
    if convention not in (None, "xyzw", "wxyz"):
        raise GeometryError(f"A quaternion's convention is 'xyzw' or 'wxyz', got {convention!r}.")
    return convention or "xyzw"


def _symmetric(values: Tensor) -> Tensor:
    """4x4 symmetric matrix [..., 4, 4] of its upper triangle [..., 10], row by row."""
    place = torch.empty(4, 4, dtype=torch.long, device=values.device)
    rows, columns = _UPPER
    order = torch.arange(10, device=values.device)
    place[rows, columns] = order
    place[columns, rows] = order
    return values[..., place]


def _matrix_from_adjugate(values: Tensor, _convention: str | None) -> Tensor:
    """The column of largest diagonal is q up to its length and sign, with no eigensolver."""
    adjugate = _symmetric(values)
    best = adjugate.diagonal(dim1=-2, dim2=-1).argmax(-1)
    column = torch.take_along_dim(adjugate, best[..., None, None], dim=-1)[..., 0]
    return _matrix_from_quaternion(column, None)


def _adjugate_from_matrix(rotation: Tensor, _convention: str | None) -> Tensor:
    quaternion = roma.rotmat_to_unitquat(rotation)
    rows, columns = _UPPER
    return quaternion[..., rows] * quaternion[..., columns]


def _matrix_from_10d(values: Tensor, _convention: str | None) -> Tensor:
    return _matrix_from_quaternion(_smallest_eigenvector(_symmetric(values)), None)


def _10d_from_matrix(rotation: Tensor, convention: str | None) -> Tensor:
    rows, columns = _UPPER
    identity = torch.eye(4, dtype=rotation.dtype, device=rotation.device)[rows, columns]
    return identity - _adjugate_from_matrix(rotation, convention)


def _smallest_eigenvector(matrix: Tensor) -> Tensor:
    """Eigenvector of the smallest eigenvalue, with the derivative (lambda I - A)^+ dA v.

    The derivative that torch gives `eigh` divides by the gaps among all eigenvalues, three of which are equal here.
    """
    with torch.no_grad():
        eigenvalues, eigenvectors = torch.linalg.eigh(matrix)
        vector = eigenvectors[..., 0]
        gap = eigenvalues[..., :1] - eigenvalues
        near_zero = gap.abs() <= 1e-6 * eigenvalues.abs().amax(-1, keepdim=True)
        inverse_gap = torch.where(near_zero, 0.0, 1 / torch.where(near_zero, 1.0, gap))
        pseudo_inverse = (eigenvectors * inverse_gap[..., None, :]) @ eigenvectors.transpose(-1, -2)
    change = (matrix - matrix.detach()) @ vector[..., None]
    return vector + (pseudo_inverse @ change)[..., 0]


def _matrix_from_6d(values: Tensor, _convention: str | None) -> Tensor:
    return roma.special_gramschmidt(values.unflatten(-1, (2, 3)).transpose(-1, -2))


def _6d_from_matrix(rotation: Tensor, _convention: str | None) -> Tensor:
    return rotation[..., :2].transpose(-1, -2).flatten(-2)


PARAMETERIZATIONS: dict[str, Parameterization] = {
    "axis_angle": Parameterization((3,), lambda v, _: exp_so3(v), lambda r, _: log_so3(r)),
    "euler_angles": Parameterization((3,), euler_to_matrix, matrix_to_euler),
    "quaternion": Parameterization((4,), _matrix_from_quaternion, _quaternion_from_matrix),
    "quaternion_adjugate": Parameterization((10,), _matrix_from_adjugate, _adjugate_from_matrix),
    "rotation_6d": Parameterization((6,), _matrix_from_6d, _6d_from_matrix),
    "rotation_9d": Parameterization(
        (9,), lambda v, _: roma.special_procrustes(v.unflatten(-1, (3, 3))), lambda r, _: r.flatten(-2)
    ),
    "rotation_10d": Parameterization((10,), _matrix_from_10d, _10d_from_matrix),
    "matrix": Parameterization((3, 3), lambda v, _: v, lambda r, _: r),
}
