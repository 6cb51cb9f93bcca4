"""Optimisers of one level. Each is a generator that takes many candidates through it at once, one step at a time;
where a step takes long, the generator yields None in between.

They work on small rigid motions about the anatomy's centre (`MotionFrame.moved`), so there is no parameterization to
choose and none to get stuck in. Candidates share renderings and matrix products but nothing else: each has its own
damping, step length and end, and only those under way are computed.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass

import torch
from torch import Tensor

from DiffDRRCore.geometry import Pose
from DiffDRRCore.registration.objective import Linearization, Objective

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


def levenberg_marquardt(objective: Objective, motion: Pose, tolerance: float, max_steps: int, reach: float) -> Steps:
    """Damped Gauss-Newton with Marquardt's scaling (Nocedal and Wright, Numerical Optimization, 2006, section 10.3).

    Coordinates that lie on their bound and would leave it are held while the others step (projected Newton: Bertsekas,
    SIAM Journal on Control and Optimization 20(2), 1982).

    Args:
        motion: [B, 4, 4] starts.
        tolerance: mm; a step that moves the anatomy by less ends a candidate.
        reach: mm from the pivot at which rotations are counted as movement.
    """
    progress = Progress.begun((yield from objective.linearizing(motion)))
    stretch = torch.ones(len(motion), dtype=torch.float64)
    damping = 1e-3 * stretch
    yield progress
    for _ in range(max_steps):
        rows = progress.active.nonzero()[:, 0]
        here = progress.best[rows]
        moved, xi = _newton_step(objective, here, damping[rows], stretch[rows])
        short = objective.frame.displacement(here.motion, moved, reach) < tolerance
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


def adam(
    objective: Objective, motion: Pose, tolerance: float, max_steps: int, reach: float, rate: tuple[float, float]
) -> Steps:
    """Adam (Kingma and Ba 2015) on the small motion, its rates (rad, mm) halved where the cost stands still.

    Arguments as for `levenberg_marquardt`.
    """
    here = yield from objective.linearizing(motion)
    progress = Progress.begun(here)
    scale = torch.tensor([rate[0]] * 3 + [rate[1]] * 3, dtype=torch.float64)
    mean, square = torch.zeros_like(here.gradient), torch.zeros_like(here.gradient)
    factor, waited = torch.ones(len(motion), dtype=torch.float64), torch.zeros(len(motion))
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
        moved = _moved(objective, at.motion, -factor[rows][:, None] * direction * scale)
        there = yield from objective.linearizing(moved, at.weights)
        best = progress.best.cost[rows]
        better = best - there.cost > _SMALLEST_GAIN * (best - objective.least_cost).abs()
        here = here.replaced(rows, there)
        take(objective, progress, rows, there, better)
        waited[rows] = torch.where(better, 0, waited[rows] + 1)
        stuck = rows[waited[rows] >= _PATIENCE]
        here, waited[stuck], factor[stuck] = here.replaced(stuck, progress.best[stuck]), 0, factor[stuck] / 2
        small = objective.frame.displacement(at.motion, moved, reach) < tolerance
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
    reach: float,
) -> None:
    """Candidates end whose step was short, or gained next to nothing."""
    short = objective.frame.displacement(here.motion, there.motion, reach) < tolerance
    gained = here.cost - there.cost
    progress.finish(rows[short | better & (gained < _SMALLEST_GAIN * (here.cost - objective.least_cost).abs())])


def _stretched(xi: Tensor, here: Linearization, there: Linearization) -> Tensor:
    """How much further along the step the slope would vanish, were it to change evenly (secant): 1 at a full step."""
    before, after = (xi * here.gradient).sum(-1), (xi * there.gradient).sum(-1)
    return (before / (before - after).clamp(max=-1e-300)).clamp(1.0, _LONGEST_STRETCH)


def _adapt(damping: Tensor, stretch: Tensor, rows: Tensor, better: Tensor, further: Tensor) -> None:
    """Less damping and longer steps after a gain; after a loss first shorter steps, then more damping."""
    d, s = damping[rows], stretch[rows]
    more = torch.where(s > 1, d, (10 * d).clamp(min=_DAMPING_AFTER_LOSS))
    damping[rows] = torch.where(better, (d / 10).clamp(min=1e-9), more)
    stretch[rows] = torch.where(better, (s * further).clamp(1.0, _LONGEST_STRETCH), 1.0)


def _newton_step(objective: Objective, at: Linearization, damping: Tensor, stretch: Tensor) -> tuple[Pose, Tensor]:
    """The motions after a damped step, and the step; with bounds, it is taken in q, in which they are given."""
    frame, limits = objective.frame, objective.limits
    if limits.bounds is None:
        xi = stretch[:, None] * _damped_step(at.hessian, at.gradient, damping)
        return frame.moved(at.motion, xi), xi
    q, q_by_xi = frame.coordinates_and_slope(at.motion)
    xi_by_q = torch.linalg.inv(q_by_xi)
    gradient, hessian = (xi_by_q.mT @ at.gradient[..., None])[..., 0], xi_by_q.mT @ at.hessian @ xi_by_q
    free = (~limits.held(q, -gradient)).double()
    hessian = hessian * free[:, None] * free[..., None] + torch.diag_embed(1 - free)
    target = limits.clamp(q + stretch[:, None] * _damped_step(hessian, gradient * free, damping))
    return frame.motion(target), (xi_by_q @ (target - q)[..., None])[..., 0]


def _damped_step(hessian: Tensor, gradient: Tensor, damping: Tensor) -> Tensor:
    diagonal = hessian.diagonal(dim1=-2, dim2=-1)
    floor = _LEAST_DIAGONAL * diagonal.amax(-1, keepdim=True) + 1e-300
    damped = hessian + torch.diag_embed(damping[:, None] * diagonal.maximum(floor))
    return torch.linalg.solve_ex(damped, -gradient)[0]


def _moved(objective: Objective, motion: Pose, xi: Tensor) -> Pose:
    """The motions after xi about the pivot, held within the bounds."""
    frame, limits = objective.frame, objective.limits
    moved = frame.moved(motion, xi)
    return moved if limits.bounds is None else frame.motion(limits.clamp(frame.coordinates(moved)))
