"""LPS (DICOM, ITK) and RAS (Slicer, NIfTI): the first two axes point the other way.

Both functions undo themselves: the same call turns RAS into LPS.
"""

from __future__ import annotations

import torch
from torch import Tensor

from DiffDRRCore.errors import GeometryError
from DiffDRRCore.geometry.tensors import as_tensor

_SIGNS = (-1.0, -1.0, 1.0, 1.0)


def lps_to_ras(value) -> Tensor:
    """Points [..., 3] in mm, or matrices [..., 4, 4] *into* LPS (ijk_to_lps, camera_to_lps), from LPS to RAS.

    A matrix that takes something else to the world becomes diag(-1, -1, 1, 1) @ M: only its output changes frame. A
    transform from LPS to LPS is another matter: `lps_transform_to_ras`. Three rows of three numbers are three points,
    never a matrix. Raises GeometryError for other shapes.
    """
    value = as_tensor(value)
    signs = torch.tensor(_SIGNS, dtype=value.dtype, device=value.device)
    if value.ndim >= 1 and value.shape[-1] == 3:
        return value * signs[:3]
    if value.shape[-2:] == (4, 4):
        return signs[:, None] * value
    raise GeometryError(f"Expected points [..., 3] or matrices [..., 4, 4], got shape {list(value.shape)}.")


def lps_transform_to_ras(matrix) -> Tensor:
    """A transform [..., 4, 4] from LPS points to LPS points (an ITK transform), as one from RAS to RAS: F M F."""
    matrix = as_tensor(matrix)
    if matrix.shape[-2:] != (4, 4):
        raise GeometryError(f"Expected a 4 x 4 transform, got shape {list(matrix.shape)}.")
    signs = torch.tensor(_SIGNS, dtype=matrix.dtype, device=matrix.device)
    return signs[:, None] * matrix * signs
