"""L-BFGS: for measures that have a gradient but no Gauss-Newton Hessian."""

from __future__ import annotations

import torch
from torch import Tensor

from DiffDRRCore.registration.objective.linearization import Linearization
from DiffDRRCore.registration.objective.objective import Objective
from DiffDRRCore.registration.optimizers.progress import Progress, Steps, end, take
from DiffDRRCore.registration.problem.unknowns import State

_MEMORY = 6  # pairs of step and change of gradient
_SUFFICIENT = 1e-4  # share of the gain that the slope promises (Armijo)
_LONGEST = 8.0  # of a step, in strides


def lbfgs(objective: Objective, state: State, tolerance: float, max_steps: int, stride: float) -> Steps:
    """L-BFGS (Nocedal and Wright, Numerical Optimization, 2006, section 7.2) with a backtracking line search, on q.

    One rendering a step: a trial that does not gain enough is a step too. Coordinates on their bound that would leave
    it are held.

    Args:
        state, tolerance: as for `levenberg_marquardt`.
        stride: mm, length of the first step, and an eighth of the longest.
    """
    progress = Progress.begun((yield from objective.linearizing(state)))
    unknowns, unit = objective.unknowns, objective.unknowns.unit
    memory = _Memory(len(state), unknowns.size)
    share = torch.ones(len(state), dtype=torch.float64)
    yield progress
    for _ in range(max_steps):
        rows = progress.active.nonzero()[:, 0]
        if len(rows) == 0:
            return
        here = progress.best[rows]
        q, slope = _slope(objective, here, unit)
        direction = memory.direction(rows, slope, stride)
        target = unknowns.clamp(q + share[rows][:, None] * direction * unit)
        there = yield from objective.linearizing(unknowns.state(target), here.weights)
        step = (target - q) / unit
        promised = (slope * step).sum(-1)
        better = here.cost - there.cost > -_SUFFICIENT * promised
        share[rows] = torch.where(better, 1.0, share[rows] * _shortened(promised, there.cost - here.cost))
        memory.add(rows[better], step[better], (_slope(objective, there, unit)[1] - slope)[better])
        take(objective, progress, rows, there, better)
        end(objective, progress, rows, here, there, better, tolerance)
        yield progress


def _slope(objective: Objective, at: Linearization, unit: Tensor) -> tuple[Tensor, Tensor]:
    """q [B, P] and the gradient by q / unit, zero for coordinates that are held on their bound."""
    q, q_by_xi = objective.unknowns.coordinates_and_slope(at.state)
    gradient = torch.linalg.solve(q_by_xi.mT, at.gradient)
    return q, torch.where(objective.unknowns.held(q, -gradient), 0.0, gradient * unit)


def _shortened(promised: Tensor, loss: Tensor) -> Tensor:
    """Where the parabola through value, slope and the failed value has its least value, in [0.1, 0.5] of the step."""
    return (-promised / (2 * (loss - promised))).nan_to_num(nan=0.1).clamp(0.1, 0.5)


class _Memory:
    """The last pairs of step s and change of gradient y of each candidate; pairs without curvature are left out."""

    def __init__(self, count: int, size: int):
        self.s = torch.zeros(_MEMORY, count, size, dtype=torch.float64)
        self.y = torch.zeros_like(self.s)

    def add(self, rows: Tensor, s: Tensor, y: Tensor) -> None:
        curved = (s * y).sum(-1) > 1e-10 * s.norm(dim=-1) * y.norm(dim=-1)
        rows, s, y = rows[curved], s[curved], y[curved]
        self.s[:, rows] = torch.cat([self.s[1:, rows], s[None]])
        self.y[:, rows] = torch.cat([self.y[1:, rows], y[None]])

    def direction(self, rows: Tensor, gradient: Tensor, stride: float) -> Tensor:
        """-H gradient by the two loops, no longer than `_LONGEST` strides; one stride downhill without pairs."""
        s, y = self.s[:, rows], self.y[:, rows]
        curvature = (s * y).sum(-1)
        rho = torch.where(curvature > 0, 1 / curvature, 0.0)[..., None]
        d, along = -gradient, []
        for n in reversed(range(_MEMORY)):
            along.append(rho[n] * (s[n] * d).sum(-1, keepdim=True))
            d = d - along[-1] * y[n]
        first = stride / gradient.norm(dim=-1, keepdim=True).clamp(min=1e-300)
        last = curvature[-1][:, None] / y[-1].square().sum(-1, keepdim=True)
        d = d * torch.where(curvature[-1][:, None] > 0, last, first)
        for n in range(_MEMORY):
            d = d + s[n] * (along[_MEMORY - 1 - n] - rho[n] * (y[n] * d).sum(-1, keepdim=True))
        d = torch.where(gradient == 0, 0.0, d)  # held on a bound
        d = torch.where((d * gradient).sum(-1, keepdim=True) < 0, d, -gradient * first)
        return d * (_LONGEST * stride / d.norm(dim=-1, keepdim=True).clamp(min=1e-300)).clamp(max=1)
