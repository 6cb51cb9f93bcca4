"""Adam: first-order steps for any measure."""

from __future__ import annotations

import torch
from torch import Tensor

from DiffDRRCore.registration.objective.objective import Objective
from DiffDRRCore.registration.optimizers.progress import SMALLEST_GAIN, Progress, Steps, take
from DiffDRRCore.registration.problem.unknowns import State, Unknowns

_PATIENCE = 8  # steps without gain before the rate is halved
_SMALLEST_RATE = 1 / 64
_BETAS = (0.9, 0.999)


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
        better = best - there.cost > SMALLEST_GAIN * (best - objective.least_cost).abs()
        here = here.replaced(rows, there)
        take(objective, progress, rows, there, better)
        waited[rows] = torch.where(better, 0, waited[rows] + 1)
        stuck = rows[waited[rows] >= _PATIENCE]
        here, waited[stuck], factor[stuck] = here.replaced(stuck, progress.best[stuck]), 0, factor[stuck] / 2
        small = objective.unknowns.displacement(at.state, moved) < tolerance
        progress.finish(rows[small | (factor[rows] < _SMALLEST_RATE)])
        yield progress


def _moved(unknowns: Unknowns, state: State, xi: Tensor) -> State:
    """The states after xi, held within the bounds."""
    return unknowns.within(unknowns.moved(state, xi))
