"""Optimisers of one level. Each is a generator that takes many candidates through it at once, one step at a time;
where a step takes long, the generator yields None in between.

They work on small steps (`Unknowns.moved`: rigid motions about the anatomy's centre), so there is no parameterization
to choose and none to get stuck in. Candidates share renderings and matrix products but nothing else: each has its own
damping, step length and end, and only those under way are computed.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass

import torch
from torch import Tensor

from DiffDRRCore.registration.linearization import Linearization
from DiffDRRCore.registration.objective import Objective
from DiffDRRCore.registration.unknowns import State, Unknowns

_LEAST_DIAGONAL = 1e-8  # of the largest: what less than that determines (depth in a parallel beam) is rounding
_LONGEST_STRETCH = 8.0  # of a Gauss-Newton step, while steps keep succeeding
_DAMPING_AFTER_LOSS = 1e-2  # at least
_SMALLEST_GAIN = 1e-6  # of the cost in one step
_PATIENCE = 8  # steps of Adam without gain before its rate is halved
_SMALLEST_RATE = 1 / 64
_BETAS = (0.9, 0.999)  # of Adam


@dataclass
class Progress:
    """Where B candidates are: what an optimiser hands out after each step.

    Attributes:
        best: the best place of each candidate so far.
        active: [B] bool, under way; whoever drives the optimiser may take some out.
        converged: [B] bool.
    """

    best: Linearization
    active: Tensor
    converged: Tensor

    @classmethod
    def begun(cls, best: Linearization) -> Progress:
        """All of them under way."""
        nothing = torch.zeros(len(best), dtype=torch.bool)
        return cls(best, ~nothing, nothing)

    def joined(self, other: Progress) -> Progress:
        """These candidates, then the other ones."""
        flags = [torch.cat([getattr(self, name), getattr(other, name)]) for name in ("active", "converged")]
        return Progress(self.best.joined(other.best), *flags)

    def finish(self, rows: Tensor) -> None:
        """Candidates that have converged."""
        self.converged[rows] = True
        self.active[rows] = False


Steps = Generator[Progress | None, None, None]  # Progress after each step, None between the pieces of one
Optimizer = Callable[..., Steps]


def levenberg_marquardt(objective: Objective, state: State, tolerance: float, max_steps: int) -> Steps:
    """Damped Gauss-Newton with Marquardt's scaling (Nocedal and Wright, Numerical Optimization, 2006, section 10.3).

    Coordinates that lie on their bound and would leave it are held while the others step (projected Newton: Bertsekas,
    SIAM Journal on Control and Optimization 20(2), 1982).

    Args:
        state: [B] starts.
        tolerance: mm; a step that moves the anatomy by less ends a candidate.
    """
    progress = Progress.begun((yield from objective.linearizing(state)))
    stretch = torch.ones(len(state), dtype=torch.float64)
    damping = 1e-3 * stretch
    yield progress
    for _ in range(max_steps):
        rows = progress.active.nonzero()[:, 0]
        here = progress.best[rows]
        moved, xi = _newton_step(objective, here, damping[rows], stretch[rows])
        short = objective.unknowns.displacement(here.state, moved) < tolerance
        if bool(short.any()):
            progress.finish(rows[short])
            rows, here, moved, xi = rows[~short], here[~short], moved[~short], xi[~short]
        if len(rows) == 0:
            return
        there = yield from objective.linearizing(moved, here.weights)
        better = there.cost < here.cost
        flat = (here.cost - there.cost).abs() < _SMALLEST_GAIN * (here.cost - objective.least_cost)
        progress.finish(rows[flat & (better | (stretch[rows] == 1))])
        _adapt(damping, stretch, rows, better, _stretched(xi, here, there))
        take(objective, progress, rows, there, better)
        yield progress


def adam(objective: Objective, state: State, tolerance: float, max_steps: int, rate: tuple[float, float]) -> Steps:
    """Adam (Kingma and Ba 2015) on the small steps, its rates (rad, mm) halved where the cost stands still.

    Arguments as for `levenberg_marquardt`.
    """
    here = yield from objective.linearizing(state)
    progress = Progress.begun(here)
    scale = objective.unknowns.rates(*rate)
    mean, square = torch.zeros_like(here.gradient), torch.zeros_like(here.gradient)
    factor, waited = torch.ones(len(state), dtype=torch.float64), torch.zeros(len(state))
    yield progress
    for number in range(1, max_steps + 1):
        rows = progress.active.nonzero()[:, 0]
        if len(rows) == 0:
            return
        at = here[rows]
        slope = at.gradient * scale
        mean[rows] = _BETAS[0] * mean[rows] + (1 - _BETAS[0]) * slope
        square[rows] = _BETAS[1] * square[rows] + (1 - _BETAS[1]) * slope.square()
        direction = (
            mean[rows] / (1 - _BETAS[0] ** number) / (square[rows] / (1 - _BETAS[1] ** number)).sqrt().add(1e-12)
        )
        moved = _moved(objective.unknowns, at.state, -factor[rows][:, None] * direction * scale)
        there = yield from objective.linearizing(moved, at.weights)
        best = progress.best.cost[rows]
        better = best - there.cost > _SMALLEST_GAIN * (best - objective.least_cost).abs()
        here = here.replaced(rows, there)
        take(objective, progress, rows, there, better)
        waited[rows] = torch.where(better, 0, waited[rows] + 1)
        stuck = rows[waited[rows] >= _PATIENCE]
        here, waited[stuck], factor[stuck] = here.replaced(stuck, progress.best[stuck]), 0, factor[stuck] / 2
        small = objective.unknowns.displacement(at.state, moved) < tolerance
        progress.finish(rows[small | (factor[rows] < _SMALLEST_RATE)])
        yield progress


def take(objective: Objective, progress: Progress, rows: Tensor, there: Linearization, better: Tensor) -> None:
    """Candidates `rows` go where it was better; where residuals weigh the pixels, they do so anew from there on."""
    if bool(better.any()):
        progress.best = progress.best.replaced(rows[better], objective.reweighted(there[better]))


def end(
    objective: Objective,
    progress: Progress,
    rows: Tensor,
    here: Linearization,
    there: Linearization,
    better: Tensor,
    tolerance: float,
) -> None:
    """Candidates end whose step was short, or gained next to nothing."""
    short = objective.unknowns.displacement(here.state, there.state) < tolerance
    gained = here.cost - there.cost
    progress.finish(rows[short | better & (gained < _SMALLEST_GAIN * (here.cost - objective.least_cost).abs())])


def _stretched(xi: Tensor, here: Linearization, there: Linearization) -> Tensor:
    """How much further along the step the slope would vanish, were it to change evenly (secant): 1 at a full step."""
    before, after = (xi * here.gradient).sum(-1), (xi * there.gradient).sum(-1)
    return (before / (before - after).clamp(max=-1e-300)).clamp(0.0, _LONGEST_STRETCH)


def _adapt(damping: Tensor, stretch: Tensor, rows: Tensor, better: Tensor, further: Tensor) -> None:
    """Less damping and longer steps after a gain; after a loss first shorter steps, then more damping."""
    d, s = damping[rows], stretch[rows]
    more = torch.where(s > 1, d, (10 * d).clamp(min=_DAMPING_AFTER_LOSS))
    damping[rows] = torch.where(better, (d / 10).clamp(min=1e-9), more)
    stretch[rows] = torch.where(better, (s * further).clamp(1.0, _LONGEST_STRETCH), 1.0)


def _newton_step(objective: Objective, at: Linearization, damping: Tensor, stretch: Tensor) -> tuple[State, Tensor]:
    """The states after a damped step, and the step; with bounds, it is taken in q, in which they are given."""
    unknowns = objective.unknowns
    if not unknowns.bounded:
        xi = stretch[:, None] * _damped_step(at.hessian, at.gradient, damping)
        return unknowns.moved(at.state, xi), xi
    q, q_by_xi = unknowns.coordinates_and_slope(at.state)
    xi_by_q = torch.linalg.inv(q_by_xi)
    gradient, hessian = (xi_by_q.mT @ at.gradient[..., None])[..., 0], xi_by_q.mT @ at.hessian @ xi_by_q
    free = (~unknowns.held(q, -gradient)).double()
    hessian = hessian * free[:, None] * free[..., None] + torch.diag_embed(1 - free)
    target = unknowns.clamp(q + stretch[:, None] * _damped_step(hessian, gradient * free, damping))
    return unknowns.state(target), (xi_by_q @ (target - q)[..., None])[..., 0]


def _damped_step(hessian: Tensor, gradient: Tensor, damping: Tensor) -> Tensor:
    diagonal = hessian.diagonal(dim1=-2, dim2=-1)
    floor = _LEAST_DIAGONAL * diagonal.amax(-1, keepdim=True) + 1e-300
    damped = hessian + torch.diag_embed(damping[:, None] * diagonal.maximum(floor))
    return torch.linalg.solve_ex(damped, -gradient)[0]


def _moved(unknowns: Unknowns, state: State, xi: Tensor) -> State:
    """The states after xi, held within the bounds."""
    return unknowns.within(unknowns.moved(state, xi))
