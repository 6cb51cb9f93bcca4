"""The objective at many places, and its derivatives there."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from DiffDRRCore.registration.problem.unknowns import State


@dataclass(frozen=True)
class Linearization:
    """The objective at B places, and its derivatives by the xi of `Unknowns.moved` at xi = 0; float64 on the CPU.

    Attributes:
        state: where.  similarity: [B] mean over views.
        cost: [B] what is minimised, prior and landmarks included; infinite where nothing is in sight.
        gradient: [B, P] of the cost.
        hessian: [B, P, P], its Gauss-Newton approximation; None for measures without features.
        variance: [B] of the noise in one residual, which makes a covariance of the Hessian's inverse.
        images: of each view image [B, 1, H, W] and slopes [B, P, H, W], where pixels are weighed by their residuals.
        weights: [B, 1, H, W] of each view's pixels, or None.
    """

    state: State
    similarity: Tensor
    cost: Tensor
    gradient: Tensor
    hessian: Tensor | None
    variance: Tensor
    images: tuple[tuple[Tensor, Tensor], ...] | None = None
    weights: tuple[Tensor, ...] | None = None

    def __len__(self) -> int:
        return len(self.cost)

    def __getitem__(self, rows: Tensor | slice) -> Linearization:
        """Those of some places, still a batch."""
        return Linearization(*(_rows(value, rows) for value in self._values()))

    def replaced(self, rows: Tensor, other: Linearization) -> Linearization:
        """With `rows` taken from `other`, in order."""
        pairs = zip(self._values(), other._values(), strict=True)
        return Linearization(*(_replaced(value, rows, new) for value, new in pairs))

    def joined(self, other: Linearization) -> Linearization:
        """These places, then the other ones."""
        pairs = zip(self._values(), other._values(), strict=True)
        return Linearization(*(_joined(value, new) for value, new in pairs))

    def _values(self) -> list:
        return [getattr(self, field.name) for field in fields(self)]


def _rows(value, rows):
    if isinstance(value, tuple):
        return tuple(_rows(item, rows) for item in value)
    return value if value is None else value[rows]


def _replaced(value, rows: Tensor, new):
    if value is None:
        return None
    if isinstance(value, tuple):
        return tuple(_replaced(item, rows, other) for item, other in zip(value, new, strict=True))
    if isinstance(value, State):
        return value.replaced(rows, new)
    return value.index_copy(0, rows.to(value.device), new)


def _joined(value, other):
    if value is None:
        return None
    if isinstance(value, tuple):
        return tuple(_joined(a, b) for a, b in zip(value, other, strict=True))
    return value.joined(other) if isinstance(value, State) else torch.cat([value, other])
