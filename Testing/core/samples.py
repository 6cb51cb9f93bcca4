"""Random geometry for property tests, and differences to hold gradients against. Nothing here calls what it tests."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from torch import Tensor

from DiffDRRCore import Camera, Pose

seeds = st.integers(0, 2**32 - 1)


def rotation(rng: np.random.Generator) -> np.ndarray:
    """A uniformly random rotation [3, 3]."""
    return Rotation.random(rng=rng).as_matrix()


def rigid(rng: np.random.Generator, spread: float = 300.0) -> np.ndarray:
    """A random rigid matrix [4, 4] with a translation of about `spread` mm."""
    matrix = np.eye(4)
    matrix[:3, :3] = rotation(rng)
    matrix[:3, 3] = rng.normal(0, spread, 3)
    return matrix


def looking_at(rng: np.random.Generator, target, distance: float) -> Pose:
    """A camera pose of random orientation whose z axis passes `target` (world mm) at `distance` mm."""
    matrix = np.eye(4)
    matrix[:3, :3] = rotation(rng)
    matrix[:3, 3] = np.asarray(target) - distance * matrix[:3, 2]
    return Pose(matrix)


def camera(rng: np.random.Generator, view_from: str, height: int = 30, width: int = 40) -> Camera:
    """A camera with non-square pixels and an off-centre principal point."""
    return Camera(
        height,
        width,
        pixel_spacing=rng.uniform(0.3, 3.0, 2),
        source_to_detector=rng.uniform(600, 1400),
        principal_point=(np.array([width, height]) / 2 + rng.uniform(-10, 10, 2)),
        view_from=view_from,
    )


def oblique_grid(rng: np.random.Generator, shape, shear: float = 0.2, spacing=(0.7, 2.5)) -> np.ndarray:
    """ijk_to_ras of a rotated, anisotropic, sheared grid of `shape` [K, J, I] about the origin, of either hand."""
    affine = np.eye(4)
    scale = np.diag(rng.uniform(*spacing, 3) * rng.choice([-1, 1], 3))
    upper = np.eye(3) + shear * np.triu(rng.uniform(-1, 1, (3, 3)), 1)
    affine[:3, :3] = rotation(rng) @ upper @ scale
    affine[:3, 3] = rng.normal(0, 20, 3) - affine[:3, :3] @ ((np.array(shape[::-1]) - 1) / 2)
    return affine


def differences(function: Callable[[Tensor], Tensor], at: Tensor, step: float = 1e-6) -> Tensor:
    """Central differences [*output, *input] of a function of a float64 tensor."""
    columns = []
    for index in range(at.numel()):
        offset = torch.zeros(at.numel(), dtype=at.dtype)
        offset[index] = step
        offset = offset.reshape(at.shape)
        with torch.no_grad():
            columns.append((function(at + offset) - function(at - offset)) / (2 * step))
    return torch.stack(columns, dim=-1).reshape(*columns[0].shape, *at.shape)


def jacobian(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """The same by autograd."""
    return torch.autograd.functional.jacobian(function, at.detach())
