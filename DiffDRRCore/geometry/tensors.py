"""How numbers, lists and arrays become tensors, once for the whole library."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from DiffDRRCore.errors import GeometryError


def as_tensor(value, dtype: torch.dtype | None = None) -> Tensor:
    """A floating-point tensor of `value`.

    Floating tensors and NumPy arrays keep their dtype (and tensors their device and graph); Python numbers, lists and
    integers become float64, because geometry is small and rounding in it is not. `dtype` overrides both. A list of
    tensors is stacked along the first dimension, as NumPy would.
    Raises GeometryError where `value` is not numeric.
    """
    if not isinstance(value, Tensor):
        try:
            value = _stacked(value) if _holds_tensor(value) else torch.from_numpy(_array(value))
        except (TypeError, ValueError, RuntimeError) as error:
            raise GeometryError(f"Expected numbers, got {value!r}.") from error
    if dtype is None:
        dtype = value.dtype if value.is_floating_point() else torch.float64
    return value.to(dtype)


def as_components(value) -> Tensor:
    """[..., n] of n components, each a number or a batch [...]; what holds no tensors is as for `as_tensor`."""
    if isinstance(value, (list, tuple)) and any(isinstance(item, Tensor) for item in value):
        return torch.stack(torch.broadcast_tensors(*promote(*(as_tensor(item) for item in value))), dim=-1)
    return as_tensor(value)


def _holds_tensor(value) -> bool:
    if isinstance(value, (list, tuple)):
        return any(_holds_tensor(item) for item in value)
    return isinstance(value, Tensor)


def _stacked(items) -> Tensor:
    """Lists with tensors in them, nested as NumPy would read them; the tensors keep their graph."""
    return torch.stack(promote(*(as_tensor(item) for item in items)))


def _array(value) -> np.ndarray:
    array = np.array(value)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{array.dtype} is not a type of number")
    keeps_type = isinstance(value, np.ndarray) and array.dtype.kind == "f"
    return array.astype(array.dtype.newbyteorder("=") if keeps_type else float)


def promote(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in their common dtype, on the device of the first that is not on the CPU."""
    dtype = tensors[0].dtype
    for tensor in tensors[1:]:
        dtype = torch.promote_types(dtype, tensor.dtype)
    device = next((tensor.device for tensor in tensors if tensor.device.type != "cpu"), tensors[0].device)
    return tuple(tensor.to(device=device, dtype=dtype) for tensor in tensors)


def homogeneous(rotation: Tensor, translation: Tensor) -> Tensor:
    """[..., 4, 4] from a 3x3 block [..., 3, 3] and a column [..., 3], broadcast over the leading dimensions."""
    batch = torch.broadcast_shapes(rotation.shape[:-2], translation.shape[:-1])
    top = torch.cat([rotation.expand(*batch, 3, 3), translation.expand(*batch, 3)[..., None]], dim=-1)
    bottom = torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=top.dtype, device=top.device).expand(*batch, 1, 4)
    return torch.cat([top, bottom], dim=-2)


def transform_points(matrix: Tensor, points: Tensor) -> Tensor:
    """Apply an affine [..., 4, 4] to points [..., N, 3]. Raises GeometryError for points not of three numbers."""
    if points.shape[-1:] != (3,):
        raise GeometryError(f"Points have three numbers each, got shape {list(points.shape)}.")
    return points @ matrix[..., :3, :3].transpose(-1, -2) + matrix[..., None, :3, 3]
