"""ITK transform files (.tfm, .txt, .h5) of linear transforms, as 3D Slicer reads and writes them.

Slicer stores a linear transform node as ITK's resampling transform: it takes points *from* the parent frame, in LPS. So
the file holds F inverse(to_parent) F with F = diag(-1, -1, 1, 1) (vtkMRMLTransformStorageNode::ReadFromTransformFile,
vtkITKTransformConverter::SetVTKLinearTransformFromITK, Slicer 5.12).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from torch import Tensor

from DiffDRRCore.errors import DiffDRRError, GeometryError, ReadError
from DiffDRRCore.files import replacing
from DiffDRRCore.geometry.converters.lps import lps_transform_to_ras
from DiffDRRCore.geometry.tensors import as_tensor

SUFFIXES = (".tfm", ".txt", ".h5")


def write_itk_transform(path: str | Path, to_parent) -> None:
    """Write a file that Slicer loads as a linear transform node with `to_parent` as its MatrixTransformToParent.

    Args:
        path: ends in .tfm or .txt (text) or .h5 (HDF5).
        to_parent: [4, 4], RAS mm, affine and invertible (a camera's pose: camera_to_world).

    Raises:
        GeometryError: the matrix is not affine or not invertible.
        DiffDRRError: the file's name or folder cannot be written to.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise DiffDRRError(f"An ITK transform's file name ends in {', '.join(SUFFIXES)}, not '{path.name}'.")
    from_parent = lps_transform_to_ras(torch.linalg.inv(_checked(to_parent))).numpy()
    transform = sitk.AffineTransform(3)
    transform.SetMatrix(from_parent[:3, :3].ravel().tolist())
    transform.SetTranslation(from_parent[:3, 3].tolist())
    with replacing(path) as temporary:
        try:
            sitk.WriteTransform(transform, str(temporary))
        except RuntimeError as error:
            raise DiffDRRError(f"Cannot write the transform '{path}': {_reason(error)}") from error


def read_itk_transform(path: str | Path) -> Tensor:
    """to_parent [4, 4], RAS mm, float64, of a linear ITK transform file: what Slicer shows for it.

    Any linear type is read: rigid, affine, translation, a composite of them. Raises ReadError where the file is
    missing, is not a transform, or holds a deformation, a 2D or a singular transform.
    """
    path = Path(path)
    if not path.is_file():
        raise ReadError(f"There is no transform file '{path}'.")
    try:
        transform = sitk.ReadTransform(str(path))
    except RuntimeError as error:
        raise ReadError(f"Cannot read '{path}' as an ITK transform: {_reason(error)}") from error
    if transform.GetDimension() != 3 or not transform.IsLinear():
        raise ReadError(f"'{path}' holds a {transform.GetName()}; only linear 3D transforms can be used here.")
    from_parent = lps_transform_to_ras(_matrix(transform))
    try:
        return torch.linalg.inv(_checked(from_parent))
    except GeometryError as error:
        raise ReadError(f"'{path}' holds an unusable transform. {error}") from error


def _matrix(transform: sitk.Transform, reach: float = 1024.0) -> Tensor:
    """[4, 4] of a linear transform: where it takes the origin, and the difference along each axis."""
    columns = []
    for axis in np.eye(3) * reach:
        ahead, behind = (np.array(transform.TransformPoint((sign * axis).tolist())) for sign in (1, -1))
        columns.append((ahead - behind) / (2 * reach))
    matrix = np.eye(4)
    matrix[:3, :3] = np.stack(columns, axis=1)
    matrix[:3, 3] = transform.TransformPoint((0.0, 0.0, 0.0))
    return torch.from_numpy(matrix)


def _checked(matrix) -> Tensor:
    matrix = as_tensor(matrix, torch.float64).detach().cpu()
    if matrix.shape != (4, 4):
        raise GeometryError(f"A transform file holds one 4 x 4 matrix, got shape {list(matrix.shape)}.")
    if not bool(torch.isfinite(matrix).all()):
        raise GeometryError("The transform has entries that are not finite numbers.")
    if matrix[3].tolist() != [0.0, 0.0, 0.0, 1.0]:
        raise GeometryError("The last row of a transform must be 0 0 0 1.")
    if float(torch.linalg.cond(matrix[:3, :3])) > 1e12:
        raise GeometryError("The transform is singular: it flattens space and cannot be inverted.")
    return matrix


def _reason(error: Exception) -> str:
    """The last line of an ITK exception: the others name source files."""
    return str(error).strip().splitlines()[-1].strip()
