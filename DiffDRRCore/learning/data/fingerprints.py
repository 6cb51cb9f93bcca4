"""Which CT a network was trained on: told from another one, and known again in another file.

Files keep the same CT in different ways: NIfTI rounds the grid to float32, converters turn the voxels' axes around. So
the HU are digested in one order of axes, and grids are compared in mm.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from DiffDRRCore.geometry.tensors import as_tensor, transform_points
from DiffDRRCore.imaging.volume import Volume

_SAME_MM = 0.02


def fingerprint(volume: Volume) -> dict[str, Any]:
    """Plain values that `same_ct` compares.

    hu     16 hexadecimal digits of the whole numbers nearest to the HU, in the order of voxels nearest to R, A, S
    shape  voxels along those axes
    grid   [3][4], from their numbers to RAS in mm
    """
    axes, affine = nearest_axes(volume.ijk_to_ras), as_tensor(volume.ijk_to_ras).detach().cpu().double()
    voxel = [axes.index(world) for world in range(3)]  # the axis i, j, k that lies along R, A, S
    turned = [world for world in range(3) if affine[world, voxel[world]] < 0]
    hu = volume.hu.detach().permute([2 - voxel[world] for world in (2, 1, 0)])
    shape = list(hu.shape)[::-1]
    reorder = torch.zeros(4, 4, dtype=torch.float64)
    reorder[3, 3] = 1
    for world in range(3):
        reorder[voxel[world], world] = -1 if world in turned else 1
        reorder[voxel[world], 3] = shape[world] - 1 if world in turned else 0
    grid = (affine @ reorder)[:3]
    return {"hu": _digest(hu, turned), "shape": shape, "grid": [[round(x, 6) for x in row] for row in grid.tolist()]}


def same_ct(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Whether two fingerprints are of one CT: the same HU at places that differ by less than 0.02 mm."""
    if first["hu"] != second["hu"] or list(first["shape"]) != list(second["shape"]):
        return False
    corners = torch.tensor(list(itertools.product(*[(0, count - 1) for count in first["shape"]])), dtype=torch.float64)
    one, other = (transform_points(_affine(each["grid"]), corners) for each in (first, second))
    return float((one - other).norm(dim=-1).max()) < _SAME_MM


def is_fingerprint(content: Any) -> bool:
    """Whether a value has the form of a fingerprint."""
    try:
        return isinstance(content["hu"], str) and len(content["shape"]) == 3 and _affine(content["grid"]) is not None
    except (TypeError, KeyError, ValueError, RuntimeError):
        return False


def nearest_axes(ijk_to_ras: Tensor) -> list[int]:
    """For each voxel axis i, j, k the patient's axis (0 R, 1 A, 2 S) that it is nearest to, each once."""
    axes = as_tensor(ijk_to_ras).detach().cpu().double()[:3, :3]
    cosines, order = (axes / axes.norm(dim=0)).abs(), [0, 0, 0]
    for _ in range(3):
        world, voxel = divmod(int(cosines.argmax()), 3)
        order[voxel] = world
        cosines[world], cosines[:, voxel] = -1, -1
    return order


def _digest(hu: Tensor, turned: list[int]) -> str:
    """Of voxels [S, A, R], after some of the axes R, A, S (0, 1, 2) have been turned around."""
    digest = hashlib.sha256(str(tuple(hu.shape)).encode())
    planes = range(len(hu))
    for place in reversed(planes) if 2 in turned else planes:
        plane = hu[place].cpu().round().clamp(-32768, 32767).to(torch.int16)
        digest.update(plane.flip([1 - world for world in turned if world < 2]).contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _affine(grid) -> Tensor:
    rows = torch.tensor(grid, dtype=torch.float64).reshape(3, 4)
    return torch.cat([rows, rows.new_tensor([[0.0, 0.0, 0.0, 1.0]])])
