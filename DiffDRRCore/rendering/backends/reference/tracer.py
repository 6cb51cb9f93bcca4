"""The reference's tracer: integrals of many rays by plain torch, in bounded memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from DiffDRRCore.rendering.backends.reference.siddon import TorchSiddon
from DiffDRRCore.rendering.backends.reference.trilinear import TorchTrilinear
from DiffDRRCore.rendering.field import Derivatives, Field

_GRADIENT_FACTOR = 3  # what autograd keeps of a chunk beside its working memory


@dataclass
class TorchTracer:
    """Integrates chunk by chunk, so that the work stays within `max_memory` bytes; derivatives by autograd."""

    integrator: TorchTrilinear | TorchSiddon
    max_memory: int

    @classmethod
    def make(cls, integrator: str, step: float, max_memory: int) -> TorchTracer:
        """The tracer of the integrator of that name."""
        return cls(TorchSiddon() if integrator == "siddon" else TorchTrilinear(step), max_memory)

    def trace(self, field: Field, s: Tensor, t: Tensor) -> Tensor:
        """Integrals [C, N] of rays s -> t [N, 3] (world mm).

        With gradients on, each chunk is computed again in the backward pass instead of kept.
        """
        differentiable = torch.is_grad_enabled() and any(x.requires_grad for x in (s, t, field.attenuation))
        size = self._chunk_size(field, differentiable)
        pieces = list(zip(s.split(size), t.split(size), strict=True))
        if differentiable and len(pieces) > 1:
            parts = [checkpoint(self.integrator, field, a, b, use_reentrant=False) for a, b in pieces]
        else:
            parts = [self.integrator(field, a, b) for a, b in pieces]
        return torch.cat(parts, dim=-1)

    def derivatives(self, field: Field, s: Tensor, t: Tensor) -> Derivatives:
        """Integrals and their derivatives by s and t, chunk by chunk; nothing of the graph outlives a chunk.

        Rays do not share anything, so one backward pass of the sum gives every ray its own derivatives.
        """
        size = self._chunk_size(field, differentiable=True)
        results = []
        for a, b in zip(s.detach().split(size), t.detach().split(size), strict=True):
            with torch.enable_grad():
                a, b = a.requires_grad_(True), b.requires_grad_(True)
                integral = self.integrator(field, a, b)
                by_source, by_target = torch.autograd.grad(integral.sum(), (a, b))
            results.append((integral.detach(), by_source, by_target))
        integral, by_source, by_target = zip(*results, strict=True)
        return Derivatives(torch.cat(integral, dim=-1), torch.cat(by_source), torch.cat(by_target))

    def _chunk_size(self, field: Field, differentiable: bool) -> int:
        """Rays at a time; a multiple of the thread count."""
        per_ray = self.integrator.bytes_per_ray(field) * (_GRADIENT_FACTOR if differentiable else 1) * field.count
        threads = torch.get_num_threads()
        return max(threads, int(self.max_memory // per_ray) // threads * threads)
