"""What a ray passes: attenuation on a grid, and the channels it is split into."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

NEAREST_TIE = 1e-4
"""A point this close (in voxels) to the middle between two voxels counts as nearest to the upper one.

Samples on rays along an axis often lie right in the middle, and rounding would decide.
"""


@dataclass(frozen=True, eq=False)
class Field:
    """Attenuation with its grid, as the backends take it.

    Attributes:
        attenuation: [K, J, I] in 1/mm.
        ras_to_ijk: [4, 4] float64.
        labels: [K, J, I] integers, or None for one channel of everything.
        channels: the label of each channel; empty for one channel of everything.
        soft: whether a label's share of a trilinear sample is that of its neighbours of that label (differentiable in
            the pose), or the whole sample where the nearest voxel has that label.
    """

    attenuation: Tensor
    ras_to_ijk: Tensor
    labels: Tensor | None = None
    channels: tuple[int, ...] = ()
    soft: bool = False

    @property
    def size(self) -> Tensor:
        """(I, J, K) as float64."""
        return torch.tensor(self.attenuation.shape[::-1], dtype=torch.float64, device=self.attenuation.device)

    @property
    def count(self) -> int:
        """Number of channels."""
        return max(1, len(self.channels))

    def samples(self, step: float) -> int:
        """Number of samples on each ray that covers the volume's diagonal, its rim included, at `step` mm."""
        corners = torch.linalg.inv(self.ras_to_ijk)[:3, :3] * (self.size + 1)
        signs = corners.new_tensor([[1.0, 1.0, 1.0], [1.0, 1.0, -1.0], [1.0, -1.0, 1.0], [-1.0, 1.0, 1.0]])
        diagonal = torch.linalg.vector_norm(signs @ corners.T, dim=-1).max()
        return max(1, math.ceil(float(diagonal) / step))

    def of_label(self, label: int) -> Tensor:
        """Attenuation [K, J, I] of the voxels with this label, zero elsewhere."""
        return torch.where(self.labels == label, self.attenuation, 0.0)


class Derivatives(NamedTuple):
    """Integrals [C, N] and the derivatives [N, 3] of their sum over channels by the two ends of each ray, per mm."""

    integral: Tensor
    by_source: Tensor
    by_target: Tensor


class Tracer(Protocol):
    """The one primitive of every backend: line integrals of many rays, with derivatives when asked."""

    def trace(self, field: Field, s: Tensor, t: Tensor) -> Tensor:
        """Integrals [C, N] of rays s -> t [N, 3] (world mm, float64); autograd reaches s, t and the attenuation."""

    def derivatives(self, field: Field, s: Tensor, t: Tensor) -> Derivatives:
        """The same with the derivatives by s and t, in one pass and without a graph."""
