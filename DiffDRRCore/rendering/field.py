"""What a ray passes: attenuation on a grid, and the channels it is split into."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
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

    def of_label(self, label: int) -> Tensor:
        """Attenuation [K, J, I] of the voxels with this label, zero elsewhere."""
        return torch.where(self.labels == label, self.attenuation, 0.0)


Integrator = Callable[[Field, Tensor, Tensor], Tensor]
"""(field, s [N, 3], t [N, 3] in world mm) -> integrals [C, N]."""
