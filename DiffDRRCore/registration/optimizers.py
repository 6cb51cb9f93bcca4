"""Optimisers of one level. Each is a generator of linearizations, one per step; it returns why it ended.

They work on small rigid motions about the anatomy's centre (`Pose.retract`), so there is no parameterization to choose
and none to get stuck in.
"""

from __future__ import annotations

from collections.abc import Generator

import torch
from torch import Tensor

from DiffDRRCore.geometry import Pose
from DiffDRRCore.registration.objective import Linearization, Objective

Steps = Generator[Linearization, None, str]

CONVERGED = "converged"
STEP_LIMIT = "step limit reached"

_LONGEST_STRETCH = 8.0  # of a Gauss-Newton step, while steps keep succeeding
_SMALLEST_GAIN = 1e-6  # of the cost in one step
_PATIENCE = 8  # steps of Adam without gain before its rate is halved
_SMALLEST_RATE = 1 / 64


def levenberg_marquardt(objective: Objective, motion: Pose, tolerance: float, max_steps: int, reach: float) -> Steps:
    """Damped Gauss-Newton with Marquardt's scaling (Nocedal and Wright, Numerical Optimization, 2006, section 10.3).

    Coordinates that lie on their bound and would leave it are held while the others step (projected Newton: Bertsekas,
    SIAM Journal on Control and Optimization 20(2), 1982).

    Args:
        tolerance: mm; a step that moves the anatomy by less ends the level.
        reach: mm from the pivot at which rotations are counted as movement.
    """
    here, damping, stretch = objective.linearize(motion), 1e-3, 1.0
    yield here
    for _ in range(max_steps):
        there = objective.linearize(_newton_moved(objective, here, damping, stretch))
        moved = displacement(objective, here.motion, there.motion, reach)
        gain = here.cost - there.cost
        if gain > 0:
            here, damping, stretch = there, max(damping / 10, 1e-9), min(2 * stretch, _LONGEST_STRETCH)
        elif stretch > 1:
            stretch = 1.0
        else:
            damping *= 10
        yield here
        if moved < tolerance or 0 < gain < _SMALLEST_GAIN * (here.cost - objective.least_cost):
            return CONVERGED
    return STEP_LIMIT


def adam(
    objective: Objective, motion: Pose, tolerance: float, max_steps: int, reach: float, rate: tuple[float, float]
) -> Steps:
    """Adam (Kingma and Ba 2015) on the small motion, its rates (rad, mm) halved where the cost stands still."""
    xi = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    scale = torch.tensor([rate[0]] * 3 + [rate[1]] * 3, dtype=torch.float64)
    optimizer = torch.optim.Adam([xi], lr=1.0)
    here = best = objective.linearize(motion)
    waited = 0
    yield best
    for _ in range(max_steps):
        step = _adam_step(optimizer, xi, here.gradient * scale) * scale
        there = objective.linearize(_moved(objective, here.motion, step))
        moved = displacement(objective, here.motion, there.motion, reach)
        gained = best.cost - there.cost > _SMALLEST_GAIN * abs(best.cost - objective.least_cost)
        best, waited = (there, 0) if gained else (best, waited + 1)
        here = there
        yield best
        if waited >= _PATIENCE:
            here, waited = best, 0
            optimizer.param_groups[0]["lr"] /= 2
        if moved < tolerance or optimizer.param_groups[0]["lr"] < _SMALLEST_RATE:
            return CONVERGED
    return STEP_LIMIT


def displacement(objective: Objective, before: Pose, after: Pose, reach: float) -> float:
    """Upper bound in mm on how far a point `reach` mm from the pivot moves between two motions."""
    frame = objective.frame
    change = frame.coordinates(after @ before.inverse())
    return float(change[3:].norm() + change[:3].norm() * reach)


def _newton_moved(objective: Objective, at: Linearization, damping: float, stretch: float) -> Pose:
    """The motion after a damped step; with bounds, the step is taken in q, in which they are given."""
    frame, limits = objective.frame, objective.limits
    if limits.bounds is None:
        return at.motion.retract(stretch * _damped_step(at.hessian, at.gradient, damping), about=frame.pivot)
    q, q_by_xi = objective.coordinates(at.motion)
    xi_by_q = torch.linalg.inv(q_by_xi)
    gradient, hessian = xi_by_q.T @ at.gradient, xi_by_q.T @ at.hessian @ xi_by_q
    free = ~limits.held(q, -gradient)
    step = torch.zeros_like(q)
    if bool(free.any()):
        step[free] = _damped_step(hessian[free][:, free], gradient[free], damping)
    return frame.motion(limits.clamp(q + stretch * step))


def _damped_step(hessian: Tensor, gradient: Tensor, damping: float) -> Tensor:
    diagonal = hessian.diagonal().clamp(min=1e-12 * float(hessian.diagonal().max()) + 1e-300)
    return torch.linalg.solve(hessian + damping * torch.diag(diagonal), -gradient)


def _adam_step(optimizer: torch.optim.Optimizer, xi: Tensor, gradient: Tensor) -> Tensor:
    """Adam's answer to a gradient, as an increment: each step starts from xi = 0 at the new motion."""
    with torch.no_grad():
        xi.zero_()
        xi.grad = gradient
        optimizer.step()
        return xi.clone()


def _moved(objective: Objective, motion: Pose, xi: Tensor) -> Pose:
    """The motion after xi about the pivot, held within the bounds."""
    frame, limits = objective.frame, objective.limits
    moved = motion.retract(xi, about=frame.pivot)
    return moved if limits.bounds is None else frame.motion(limits.clamp(frame.coordinates(moved)))
