"""Motions to try around the start, where the optimum that the start leads to may be a wrong one."""

from __future__ import annotations

import math
from collections.abc import Generator

import torch
from torch import Tensor

from DiffDRRCore.geometry import Pose
from DiffDRRCore.pieces import RAYS, ranges
from DiffDRRCore.registration.objective.objective import Objective
from DiffDRRCore.registration.problem.motion import Limits, MotionFrame
from DiffDRRCore.registration.problem.unknowns import State, Unknowns

CHUNK = 32  # motions at a time, after which a search looks whether it may end

_DEGREES = 10.0  # standard deviation of each rotation
_FIELD = 0.1  # of a shift in the image plane, as a part of the image's side at the anatomy
_DEPTH = 3.0  # of the depth, which one view hardly sees, as a multiple of a shift's
_DECISIVE = 0.1  # share of the best tried motion's cost


def motions(frame: MotionFrame, limits: Limits, count: int, field: float, views: int, seed: int) -> Pose:
    """[N, 4, 4] normally distributed motions that cover the space evenly (scrambled Sobol points), within the limits.

    Standard deviations are 10 degrees about each axis, a tenth of `field` (mm, the image's side at the anatomy) across
    the beam, and in depth the same, or three times as much where there is one view alone.
    """
    sobol = torch.quasirandom.SobolEngine(6, scramble=True, seed=seed)
    points = sobol.draw_base2(math.ceil(math.log2(count)), dtype=torch.float64)[:count]
    normal = torch.special.ndtri(points.clamp(1e-6, 1 - 1e-6))
    plane = _FIELD * field
    depth = plane * (_DEPTH if views == 1 else 1.0)
    spread = torch.tensor([math.radians(_DEGREES)] * 3 + [plane, plane, depth], dtype=torch.float64)
    return frame.motion(limits.clamp(spread * normal))


def screened(objective: Objective, candidates: State) -> Generator[None, None, Tensor]:
    """Similarities [N] of states, in pieces, each of as many images as make `RAYS` rays."""
    pixels = sum(view.fixed.numel() for view in objective.views)
    found = []
    for first, last in ranges(len(candidates), max(1, RAYS // pixels)):
        if found:
            yield
        found.append((yield from objective.measuring(candidates[first:last])))
    return torch.cat(found)


def is_decisive(cost: Tensor, tried: Tensor, least: float) -> bool:
    """Whether an optimum leaves a tenth of what the best of the motions tried does: too little for a wrong one."""
    return bool(cost - least < _DECISIVE * (tried.min() - least))


def best_apart(unknowns: Unknowns, candidates: State, costs: Tensor, count: int, distance: float) -> Tensor:
    """Rows of the best `count` states no two of which are within `distance` mm of each other."""
    chosen: list[int] = []
    for row in torch.argsort(costs, stable=True).tolist():
        if bool((unknowns.displacement(candidates[chosen], candidates[row : row + 1]) > distance).all()):
            chosen.append(row)
        if len(chosen) == count:
            break
    return torch.tensor(chosen)
