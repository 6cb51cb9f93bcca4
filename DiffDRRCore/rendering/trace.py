"""The one primitive of every backend: line integrals of many rays, with derivatives when asked, in bounded memory."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from DiffDRRCore.rendering.field import Field

_GRADIENT_FACTOR = 3  # what autograd keeps of a chunk beside its working memory


class Derivatives(NamedTuple):
    """Integrals [C, N] and the derivatives [N, 3] of their sum over channels by the two ends of each ray, per mm."""

    integral: Tensor
    by_source: Tensor
    by_target: Tensor


def trace(integrator, field: Field, s: Tensor, t: Tensor, max_memory: int) -> Tensor:
    """Integrals [C, N] of rays s -> t [N, 3] (world mm). Chunks keep the work within `max_memory` bytes.

    With gradients on, each chunk is computed again in the backward pass instead of kept.
    """
    differentiable = torch.is_grad_enabled() and any(x.requires_grad for x in (s, t, field.attenuation))
    size = chunk_size(integrator, field, max_memory, differentiable)
    pieces = list(zip(s.split(size), t.split(size), strict=True))
    if differentiable and len(pieces) > 1:
        return torch.cat([checkpoint(integrator, field, a, b, use_reentrant=False) for a, b in pieces], dim=-1)
    return torch.cat([integrator(field, a, b) for a, b in pieces], dim=-1)


def trace_with_derivatives(integrator, field: Field, s: Tensor, t: Tensor, max_memory: int) -> Derivatives:
    """Integrals and their derivatives by s and t, chunk by chunk; nothing of the graph outlives a chunk.

    Rays do not share anything, so one backward pass of the sum gives every ray its own derivatives.
    """
    size = chunk_size(integrator, field, max_memory, differentiable=True)
    results = []
    for a, b in zip(s.detach().split(size), t.detach().split(size), strict=True):
        with torch.enable_grad():
            a, b = a.requires_grad_(True), b.requires_grad_(True)
            integral = integrator(field, a, b)
            by_source, by_target = torch.autograd.grad(integral.sum(), (a, b))
        results.append((integral.detach(), by_source, by_target))
    integral, by_source, by_target = zip(*results, strict=True)
    return Derivatives(torch.cat(integral, dim=-1), torch.cat(by_source), torch.cat(by_target))


def chunk_size(integrator, field: Field, max_memory: int, differentiable: bool) -> int:
    """Rays at a time; a multiple of the thread count."""
    per_ray = integrator.bytes_per_ray(field) * (_GRADIENT_FACTOR if differentiable else 1) * field.count
    threads = torch.get_num_threads()
    return max(threads, int(max_memory // per_ray) // threads * threads)
