"""Fused kernels for NVIDIA GPUs, compiled on the user's machine by Warp (pip package `warp-lang`, no compiler needed).

They work on torch's tensors, memory and current stream, wait for nothing, and are one launch for each call, two where
pieces of rays are added. Nothing of Warp is imported, and no CUDA context made, before the first call. The same kernels
run on tensors of the CPU, slowly and on one thread, which is how they are tested without a GPU.

Notes. The kernels' speed on a GPU is unmeasured. Left out, as images must agree with the reference to 1e-4: the texture
unit, which interpolates with 8 bits of fraction, an error of up to 1/512 of the step between neighbours; and a float16
volume, whose 11 bits are an error of up to 5e-4 of a voxel's attenuation (random, so that a sum over many voxels may
pass; to be tried where memory bandwidth is seen to be the limit).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from DiffDRRCore.rendering.backends.fused.grid import Grid, RayDerivatives


class CudaKernels:
    """The kernels of the cuda backend.

    All take rays as segments s -> t, [N, 3] float64 world mm, contiguous, on the grid's device, and give float32. A ray
    is split into pieces where there are too few rays to fill a GPU; their sums are added in a fixed order, so a call
    gives the same result each time, to the last bit, except `voxel_gradients`. (The last bits of a ray do depend on how
    many rays it is rendered with, as this decides the pieces.)
    """

    def must_compile(self, integrator: str) -> bool:
        """Not known beforehand: Warp says itself what it compiles."""
        return False

    def preparing(self, grid: Grid) -> Iterator[None]:
        """In one piece, by the first rays."""
        yield from ()

    def integrals(self, grid: Grid, s: Tensor, t: Tensor) -> Tensor:
        """Integrals [C, N]."""
        from DiffDRRCore.rendering.backends.cuda import launch

        return launch.integrals(grid, s, t)

    def integrals_with_derivatives(self, grid: Grid, s: Tensor, t: Tensor) -> RayDerivatives:
        """Integrals [N], summed over channels, and their derivatives [N, 3] by s and t, per mm along the world axes."""
        from DiffDRRCore.rendering.backends.cuda import launch
        from DiffDRRCore.rendering.backends.fused.grid import RayDerivatives

        return RayDerivatives(*launch.derivatives(grid, s, t))

    def ray_gradients(self, grid: Grid, s: Tensor, t: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Derivatives [N, 3] by s and t of the sum over channels of weight [C, N] times the integrals."""
        from DiffDRRCore.rendering.backends.cuda import launch

        return launch.derivatives(grid, s, t, weight)[1:]

    def voxel_gradients(self, grid: Grid, s: Tensor, t: Tensor, weight: Tensor) -> Tensor:
        """The adjoint: derivatives [K, J, I], by attenuation, of the sum of weight [C, N] times the integrals.

        Rays add to voxels by float32 atomics. Their order on a GPU differs from run to run, and with it the last bits
        of the result.
        """
        from DiffDRRCore.rendering.backends.cuda import launch

        return launch.adjoint(grid, s, t, weight)


KERNELS = CudaKernels()


def available() -> tuple[bool, str]:
    """Whether the kernels can run on a GPU here, and one sentence that says why not, or on which they run."""
    if not torch.cuda.is_available():
        return False, "PyTorch finds no CUDA device here, or was installed without CUDA."
    if importlib.util.find_spec("warp") is None:
        return False, "The package warp-lang is not installed (pip install 'DiffDRRCore[cuda]')."
    try:
        from DiffDRRCore.rendering.backends.cuda.interop import why_not

        obstacle = why_not()
    except (ImportError, OSError, RuntimeError) as error:
        return False, f"The package warp-lang cannot be loaded: {error}"
    return obstacle is None, obstacle or f"Warp runs on {torch.cuda.get_device_name()}."
