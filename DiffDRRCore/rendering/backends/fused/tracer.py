"""The tracer of the fused backends."""

from __future__ import annotations

from collections.abc import Iterator
from weakref import WeakKeyDictionary

from torch import Tensor

from DiffDRRCore.errors import RenderError
from DiffDRRCore.rendering.backends.fused.autograd import trace_rays
from DiffDRRCore.rendering.backends.fused.grid import Kernels
from DiffDRRCore.rendering.backends.fused.ops import Problem, integrals
from DiffDRRCore.rendering.field import Derivatives, Field


class FusedTracer:
    """Hands rays to the kernels of a backend; what these derive from a field is kept for as long as the field is.

    Everything is computed in float32 from rays in float64, and given in the field's type.
    """

    def __init__(self, kernels: Kernels, integrator: str, step: float):
        self._kernels, self._integrator, self._step = kernels, integrator, step
        self._problems: WeakKeyDictionary[Field, Problem] = WeakKeyDictionary()

    @property
    def must_compile(self) -> bool:
        """Whether a kernel is not compiled yet."""
        return self._kernels.must_compile(self._integrator)

    def preparing(self, field: Field) -> Iterator[None]:
        """Make what the kernels derive from a field, in pieces."""
        problem = self._problem(field)
        grid = problem.grid(field.attenuation)
        yield
        yield from problem.kernels.preparing(grid)

    def trace(self, field: Field, s: Tensor, t: Tensor) -> Tensor:
        """Integrals [C, N] of rays s -> t [N, 3] (world mm, float64); autograd reaches s, t and the attenuation."""
        problem = self._problem(field)
        integral = trace_rays(field, s, t, problem.number)
        return integral.to(field.attenuation.dtype)

    def derivatives(self, field: Field, s: Tensor, t: Tensor) -> Derivatives:
        """The same with the derivatives by s and t, in one pass and without a graph."""
        number = self._problem(field).number
        found = integrals(field.attenuation.detach(), s.detach(), t.detach(), number, field.count, True)
        return Derivatives(found[0].to(field.attenuation.dtype), *found[1:])

    def _problem(self, field: Field) -> Problem:
        if field.ras_to_ijk.requires_grad:
            raise RenderError("The fused backends have no gradient by ijk_to_ras; use backend='torch'.")
        problem = self._problems.get(field)
        if problem is None:
            problem = Problem(field, self._integrator, field.samples(self._step), self._kernels)
            self._problems[field] = problem
        return problem
