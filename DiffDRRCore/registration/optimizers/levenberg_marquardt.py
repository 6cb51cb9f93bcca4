"""Damped Gauss-Newton: the optimiser for measures whose residuals and slopes are known."""

from __future__ import annotations

import torch
from torch import Tensor

from DiffDRRCore.registration.objective.linearization import Linearization
from DiffDRRCore.registration.objective.objective import Objective
from DiffDRRCore.registration.optimizers.progress import SMALLEST_GAIN, Progress, Steps, take
from DiffDRRCore.registration.problem.unknowns import State

_LEAST_DIAGONAL = 1e-8  # of the largest: what less than that determines (depth in a parallel beam) is rounding
_LONGEST_STRETCH = 8.0  # of a Gauss-Newton step, while steps keep succeeding
_DAMPING, _LEAST_DAMPING = 1e-3, 1e-9  # at first, and at least
_DAMPING_AFTER_LOSS = 1e-2  # at least


def levenberg_marquardt(
    objective: Objective, state: State, tolerance: float, max_steps: int, trusted: float = 0.0
) -> Steps:
    """Damped Gauss-Newton with Marquardt's scaling (Nocedal and Wright, Numerical Optimization, 2006, section 10.3).

    Coordinates that lie on their bound and would leave it are held while the others step (projected Newton: Bertsekas,
    SIAM Journal on Control and Optimization 20(2), 1982).

    Args:
        state: [B] starts.
        tolerance: mm; a step that moves the anatomy by less ends a candidate.
        trusted: mm; a candidate whose next step is shorter ends where it leads without another rendering, unless the
            images foretold there lead on (`Objective.foretelling`). For objectives that keep their images.
    """
    progress = Progress.begun((yield from objective.linearizing(state)))
    stretch = torch.ones(len(state), dtype=torch.float64)
    damping = (_LEAST_DAMPING if trusted else _DAMPING) * stretch
    yield progress
    for _ in range(max_steps):
        rows = progress.active.nonzero()[:, 0]
        here = progress.best[rows]
        moved, xi = _newton_step(objective, here, damping[rows], stretch[rows])
        length = objective.unknowns.displacement(here.state, moved)
        near = (length < trusted) & (damping[rows] <= _DAMPING)
        if bool(near.any()):
            there = yield from objective.foretelling(here[near], moved[near], xi[near])
            near[near.clone()] = ended = _ends(objective, there, tolerance) & (there.cost < here.cost[near])
            take(objective, progress, rows[near], there[ended], ended[ended])
        short = near | (length < tolerance)
        if bool(short.any()):
            progress.finish(rows[short])
            rows, here, moved, xi = rows[~short], here[~short], moved[~short], xi[~short]
        if len(rows) == 0:
            return
        there = yield from objective.linearizing(moved, here.weights)
        better = there.cost < here.cost
        flat = (here.cost - there.cost).abs() < SMALLEST_GAIN * (here.cost - objective.least_cost)
        progress.finish(rows[flat & (better | (stretch[rows] == 1))])
        _adapt(damping, stretch, rows, better, _stretched(xi, here, there))
        take(objective, progress, rows, there, better)
        yield progress


def _ends(objective: Objective, at: Linearization, tolerance: float) -> Tensor:
    """[B] whether no more than a short step leads on; from where a step was cut at a bound, more does."""
    free = torch.zeros(len(at), dtype=torch.float64)
    moved, _ = _newton_step(objective, at, free + _LEAST_DAMPING, free + 1)
    return objective.unknowns.displacement(at.state, moved) < tolerance


def _stretched(xi: Tensor, here: Linearization, there: Linearization) -> Tensor:
    """How much further along the step the slope would vanish, were it to change evenly (secant): 1 at a full step."""
    before, after = (xi * here.gradient).sum(-1), (xi * there.gradient).sum(-1)
    return (before / (before - after).clamp(max=-1e-300)).clamp(0.0, _LONGEST_STRETCH)


def _adapt(damping: Tensor, stretch: Tensor, rows: Tensor, better: Tensor, further: Tensor) -> None:
    """Less damping and longer steps after a gain; after a loss first shorter steps, then more damping."""
    d, s = damping[rows], stretch[rows]
    more = torch.where(s > 1, d, (10 * d).clamp(min=_DAMPING_AFTER_LOSS))
    damping[rows] = torch.where(better, (d / 10).clamp(min=_LEAST_DAMPING), more)
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
