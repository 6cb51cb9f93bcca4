"""The tracer of the fused backends."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from DiffDRRCore.rendering.backends.fused.grid import Grid, Kernels, plain
from DiffDRRCore.rendering.backends.fused.ops import Problem, trace
from DiffDRRCore.rendering.field import Derivatives, Field


class FusedTracer:
    """Hands rays to the kernels of a backend; what these derive from a field is kept for as long as the field is.

    Everything is computed in float32 from rays in float64, and given in the field's type.
    """

    def __init__(self, kernels: Kernels, integrator: str, step: float):
        self._kernels, self._integrator, self._step = kernels, integrator, step
        self._problems: WeakKeyDictionary[Field, Problem] = WeakKeyDictionary()

    def trace(self, field: Field, s: Tensor, t: Tensor) -> Tensor:
        """Integrals [C, N] of rays s -> t [N, 3] (world mm, float64); autograd reaches s, t and the attenuation."""
        problem = self._problem(field)
        wanted = torch.is_grad_enabled() and (s.requires_grad or t.requires_grad) and not field.channels
        integral = trace(field.attenuation, s.contiguous(), t.contiguous(), problem.number, field.count, wanted)[0]
        return integral.to(field.attenuation.dtype)

    def derivatives(self, field: Field, s: Tensor, t: Tensor) -> Derivatives:
        """The same with the derivatives by s and t, in one pass and without a graph."""
        problem = self._problem(field)
        with torch.no_grad():
            found = trace(field.attenuation, s.contiguous(), t.contiguous(), problem.number, field.count, True)
        return Derivatives(*found)

    def _problem(self, field: Field) -> Problem:
        problem = self._problems.get(field)
        if problem is None:
            bare = Field(plain(field.attenuation), field.ras_to_ijk, field.labels, field.channels, field.soft)
            problem = Problem(Grid(bare, self._integrator, field.samples(self._step)), self._kernels)
            self._problems[field] = problem
        return problem
