"""Grids and rays that are hard to get right, for the comparison of a fused backend with the reference."""

from __future__ import annotations

import torch
from torch import Tensor

from DiffDRRCore import Renderer, Volume

SHAPES = [(9, 7, 8), (1, 12, 9), (20, 5, 1), (17, 13, 11), (2, 2, 2), (1, 1, 1), (33, 9, 21)]
LABELS = [(None, "nearest"), ([0, 1, 2, 3], "nearest"), ([1, 1, 9, 3], "soft")]


def random_volume(shape: tuple[int, int, int], seed: int = 0) -> Volume:
    """Float32 noise with holes and four labels, on an oblique, anisotropic, sheared and, often, left-handed grid."""
    generator = torch.Generator().manual_seed(seed)
    voxels = 0.03 * torch.rand(shape, generator=generator) * (torch.rand(shape, generator=generator) > 0.3)
    ijk_to_ras = torch.eye(4, dtype=torch.float64)
    shear = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    ijk_to_ras[:3, :3] = shear + torch.diag(torch.tensor([2.5, -3.0 * (-1) ** seed, 4.0]).double())
    ijk_to_ras[:3, 3] = 10 * torch.randn(3, generator=generator, dtype=torch.float64)
    return Volume.from_attenuation(voxels, ijk_to_ras, torch.randint(0, 4, shape, generator=generator))


def random_rays(volume: Volume, count: int = 300, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Rays through the volume from all sides, from inside it, ending inside it, beside it, and along its axes."""
    generator = torch.Generator().manual_seed(seed)

    def scattered(n: int, radius: float) -> Tensor:
        return volume.center + radius * torch.randn(n, 3, generator=generator, dtype=torch.float64)

    size = float((volume.spacing * torch.tensor(volume.shape[::-1])).norm())
    source, target = scattered(count, 2 * size), scattered(count, 0.2 * size)
    target = target + (target - source)  # beyond the middle
    fifth = count // 5
    source[:fifth] = scattered(fifth, 0.2 * size)
    target[fifth : 2 * fifth] = scattered(fifth, 0.2 * size)
    target[2 * fifth : 3 * fifth] = scattered(fifth, 2 * size)
    axes = volume.ijk_to_ras[:3, :3].T[torch.arange(fifth) % 3]
    source[3 * fifth : 4 * fifth] = scattered(fifth, 0.1 * size) - 50 * axes
    target[3 * fifth : 4 * fifth] = source[3 * fifth : 4 * fifth] + 100 * axes
    return source, target


def corner_rays(volume: Volume) -> tuple[Tensor, Tensor]:
    """Rays through the very corners, edges and faces of voxels, along diagonals and in planes between voxels."""
    points = torch.cartesian_prod(*[torch.tensor([-0.5, 0.0, 0.5, 1.0, 2.5]).double()] * 3)
    directions = torch.tensor([[1, 1, 1], [1, 0, 0], [0, 1, -1], [1, 1, 0], [0, 0, 1], [2, 1, 0]]).double()
    source = (points[:, None] - 40 * directions).reshape(-1, 3)
    target = (points[:, None] + 40 * directions).reshape(-1, 3)
    return tuple(ends @ volume.ijk_to_ras[:3, :3].T + volume.ijk_to_ras[:3, 3] for ends in (source, target))


def traced(volume: Volume, integrator: str, backend: str, rays: tuple[Tensor, Tensor], labels=None, mode="nearest"):
    """Integrals, and the gradients of a weighted sum of them by source, target and voxels; all float64."""
    voxels = volume.attenuation.clone().requires_grad_(True)
    source, target = (ends.clone().requires_grad_(True) for ends in rays)
    renderer = Renderer(Volume.from_attenuation(voxels, volume.ijk_to_ras, volume.labels), integrator, backend=backend)
    assert renderer.backend == backend
    image = renderer.trace(source, target, labels, mode)
    weight = torch.linspace(-1, 1, image.numel(), dtype=image.dtype).reshape(image.shape)
    gradients = torch.autograd.grad((image * weight).sum(), (source, target, voxels))
    return tuple(x.detach().double() for x in (image, *gradients))


def difference(found: Tensor, truth: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return float((found - truth).abs().max() / truth.abs().max().clamp(min=1e-9))
