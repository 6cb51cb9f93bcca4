"""Grids, rays and float64 results of the torch backend, for the kernels to be held to.

There need not be a GPU: Warp runs the same kernels on the CPU for tensors that are there.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from DiffDRRCore.rendering.backends.cuda import KERNELS
from DiffDRRCore.rendering.backends.fused.grid import Grid
from DiffDRRCore.rendering.backends.reference.siddon import TorchSiddon
from DiffDRRCore.rendering.backends.reference.trilinear import TorchTrilinear
from DiffDRRCore.rendering.field import Field

SHAPE = (18, 22, 24)
PARTS = 64
"""Divisible by more twos than any size + 1 here: no sample of a ray through opposite faces has an integer coordinate,
where the field's slope jumps, and is anyone's choice."""

CHANNELS = {"plain": ((), False), "nearest": ((5, 1, 2), False), "soft": ((5, 1, 2), True)}
LINEAR = {
    "aligned": [[2.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 2.0]],
    "oblique": [[1.6, -1.2, 0.0], [0.96, 1.28, -1.2], [0.72, 0.96, 1.6]],
    "left-handed": [[-0.8, 0.6, 0.1], [0.6, 0.8, 0.0], [0.0, -0.1, 1.0]],
    "anisotropic": [[0.3, 0.02, 0.5], [0.01, 0.4, -0.3], [0.0, 0.03, 5.0]],
    "sheared": [[1.0, 0.7, -0.4], [0.0, 1.5, 0.9], [0.2, 0.0, 2.0]],
}


class Result(NamedTuple):
    """Integrals [C, N], the gradients of their weighted sum by both ends [N, 3] and by the voxels [K, J, I]."""

    integral: Tensor
    by_s: Tensor
    by_t: Tensor
    by_voxel: Tensor


def field(linear="oblique", shape=SHAPE, channels="plain", seed=0) -> Field:
    """Random attenuation with bricks of air, centred at (3, -5, 7) mm; float64."""
    generator = torch.Generator().manual_seed(seed)
    mu = torch.rand(shape, generator=generator, dtype=torch.float64) * 0.05
    for k, j, i in torch.cartesian_prod(*(torch.arange(-1, n, 8) for n in shape)).tolist():
        if torch.rand((), generator=generator) < 0.5:  # a brick, and the voxels that its last cells take part in
            mu[max(k, 0) : k + 9, max(j, 0) : j + 9, max(i, 0) : i + 9] = 0.0
    labels = torch.tensor([0, 1, 2, 5])[torch.randint(0, 4, shape, generator=generator)]
    ijk_to_ras = torch.eye(4, dtype=torch.float64)
    ijk_to_ras[:3, :3] = torch.tensor(LINEAR[linear], dtype=torch.float64)
    middle = (torch.tensor(shape[::-1], dtype=torch.float64) - 1) / 2
    ijk_to_ras[:3, 3] = torch.tensor([3.0, -5.0, 7.0], dtype=torch.float64) - ijk_to_ras[:3, :3] @ middle
    return Field(mu, torch.linalg.inv(ijk_to_ras), labels if CHANNELS[channels][0] else None, *CHANNELS[channels])


def world(of: Field, points) -> Tensor:
    """World mm [N, 3] of voxel coordinates (i, j, k)."""
    ijk_to_ras = torch.linalg.inv(of.ras_to_ijk)
    return (torch.as_tensor(points, dtype=torch.float64) @ ijk_to_ras[:3, :3].T + ijk_to_ras[:3, 3]).contiguous()


def rays(of: Field, count=60, seed=1) -> tuple[Tensor, Tensor]:
    """Rays at random: through the grid from far and near, with one end in it, with both, and past it."""
    generator = torch.Generator().manual_seed(seed)
    size = of.size
    near = lambda spread: (torch.rand(count, 3, generator=generator, dtype=torch.float64) - 0.5) * spread  # noqa: E731
    inside, through, far = near(0.9), near(1.2), torch.nn.functional.normalize(near(1.0), dim=-1)
    s = torch.cat([through + 60 * far, through + 2 * far, inside, near(0.9), through + 3 * far, near(3.0)])
    t = torch.cat([through - 9 * far, through - 2 * far, inside + 5 * far, inside, through + far, near(3.0)])
    return world(of, (s + 0.5) * size - 0.5), world(of, (t + 0.5) * size - 0.5)


def weights(of: Field, s: Tensor, seed=2) -> Tensor:
    """Random weights [C, N] of either sign, exact in float32."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(of.count, len(s), generator=generator, dtype=torch.float32)


def expected(of: Field, integrator: str, s: Tensor, t: Tensor, weight: Tensor) -> Result:
    """What autograd through the torch backend gives in float64."""
    mu, s, t = (x.clone().requires_grad_(True) for x in (of.attenuation.double(), s, t))
    double = Field(mu, of.ras_to_ijk, of.labels, of.channels, of.soft)
    integral = _tracer(of, integrator)(double, s, t)
    return Result(integral.detach(), *torch.autograd.grad((integral * weight).sum(), (s, t, mu)))


def _tracer(of: Field, integrator: str):
    if integrator == "siddon":
        return TorchSiddon()
    step = of.samples(1e-3) * 1e-3 / (PARTS - 0.5)
    assert of.samples(step) == PARTS
    return TorchTrilinear(step)


def found(of: Field, integrator: str, s: Tensor, t: Tensor, weight: Tensor) -> Result:
    """What the kernels give."""
    at = grid(of, integrator)
    integral = KERNELS.integrals(at, s, t)
    return Result(integral, *KERNELS.ray_gradients(at, s, t, weight), KERNELS.voxel_gradients(at, s, t, weight))


def grid(of: Field, integrator: str) -> Grid:
    """The kernels' argument."""
    return Grid(Field(of.attenuation.float(), of.ras_to_ijk, of.labels, of.channels, of.soft), integrator, PARTS)


def error(got: Tensor, want: Tensor) -> float:
    """Largest difference relative to the largest value wanted."""
    assert got.dtype == torch.float32
    assert got.shape == want.shape
    assert got.isfinite().all()
    return float((got.double() - want).abs().max() / want.abs().max())


def assert_close(got: Result, want: Result) -> None:
    """Integrals to 1e-5 and gradients to 1e-4 relative: ten times better than the backends must agree."""
    errors = [error(a, b) for a, b in zip(got, want, strict=True)]
    assert errors[0] < 1e-5
    assert max(errors) < 1e-4, errors
