"""What a fused kernel gets, and what it must do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from torch import Tensor

from DiffDRRCore.rendering.field import Field


@dataclass(eq=False)
class Grid:
    """A field ready for the kernels, with what they derive from it once.

    Attributes:
        field: attenuation (detached), grid and channels.
        integrator: "trilinear" or "siddon".
        parts: samples on each ray (trilinear).
        tables: arrays that a backend derives from the field and keeps here, by a name of its own.
    """

    field: Field
    integrator: str
    parts: int
    tables: dict = field(default_factory=dict)


class RayDerivatives(NamedTuple):
    """Integrals [N] of one channel and their derivatives [N, 3] by source and target, world axes, per mm; float32."""

    integral: Tensor
    by_source: Tensor
    by_target: Tensor


class Kernels(Protocol):
    """The fused kernels of a backend. Rays s -> t are [N, 3] float64 in world mm, contiguous, on the grid's device."""

    def must_compile(self, integrator: str) -> bool:
        """Whether kernels of that integrator have to be compiled before the first image."""

    def preparing(self, grid: Grid) -> Iterator[None]:
        """Make the grid's tables, in pieces; what is left is made by the first rays."""

    def integrals(self, grid: Grid, s: Tensor, t: Tensor) -> Tensor:
        """[C, N] float32, one row for each channel of the field."""

    def integrals_with_derivatives(self, grid: Grid, s: Tensor, t: Tensor) -> RayDerivatives:
        """Of a field with one channel of everything."""

    def ray_gradients(self, grid: Grid, s: Tensor, t: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Derivatives [N, 3] by s and t of sum_c weight[c] I[c], weight [C, N] float32."""

    def voxel_gradients(self, grid: Grid, s: Tensor, t: Tensor, weight: Tensor) -> Tensor:
        """The adjoint, [K, J, I] float32: the derivative of sum_c,n weight[c, n] I[c, n] by the attenuation."""
