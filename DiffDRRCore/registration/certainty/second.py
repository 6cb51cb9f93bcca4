"""A second opinion: whether outlines put the answer elsewhere than grey values do, and a level that follows them.

Scatter and beam hardening change grey values slowly across an X-ray, and draw an answer by ZNCC away, in depth above
all. Outlines stay where they are. Where the CT and the X-ray differ by noise alone, grey values say more.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace

import torch
from scipy.stats import chi2
from torch import Tensor

from DiffDRRCore.geometry import Pose
from DiffDRRCore.registration.certainty.appearance import disagreement
from DiffDRRCore.registration.certainty.covariance import estimating_covariance
from DiffDRRCore.registration.objective.linearization import Linearization
from DiffDRRCore.registration.objective.objective import Objective
from DiffDRRCore.registration.objective.pyramid import Level
from DiffDRRCore.registration.problem.unknowns import State
from DiffDRRCore.similarity import ZNCC, GradientNCC

_SMALLEST = 96  # pixels of the longer side: coarser images lack edges
_LEAST = 1.0  # mm; grey values and outlines agree within that where noise alone is between CT and X-ray
_CHANCE = 0.999  # of noise making a shorter step


@dataclass
class SecondOpinion:
    """An answer by grey values, and the level that goes on from it by outlines.

    Attributes:
        judge: the level of the first answer, whose similarity the result tells.
        first: the answer there.  level: the same images by gradient NCC.  last: the answer there, once there is one.
    """

    judge: Level
    first: State
    level: Level
    last: State | None = None

    def similarity(self, at: Linearization) -> float:
        """Of a place of the level by outlines, by the judge's measure."""
        return float(self.judge.objective.similarity_of([image for image, _ in at.images])[0])

    def apart(self, owner: int) -> list[tuple[float, float]]:
        """(across, along) in mm of each view, by which it sees a model apart in both answers (`disagreement`)."""
        motion = self.level.objective.unknowns.motions[owner]
        points = around(motion.pivot, motion.reach)
        pairs = (self.level.objective.poses(state, owner).matrix for state in (self.first, self.last))
        return [disagreement(*(Pose._rigid(pose) for pose in pair), points) for pair in zip(*pairs, strict=True)]

    def spread(self) -> Tensor:
        """[P, P] the covariance of xi that two answers of equal standing would have: outlines err as well.

        Half of what they are apart counts as a standard deviation in that direction: on simulated X-rays with scatter
        and beam hardening, what is left of the error is that in the mean.
        """
        unknowns = self.level.objective.unknowns
        q, slope = unknowns.coordinates_and_slope(self.first)
        xi = torch.linalg.solve(slope[0], (unknowns.coordinates(self.last) - q)[0])
        return torch.outer(xi, xi) / 4


def asking_outlines(level: Level, state: State) -> Generator[None, None, SecondOpinion | None]:
    """The second opinion on an answer by ZNCC, where it is another one; a generator, as it renders.

    None by other measures, in coarse images, and on a bound, where an answer is not the images' own.
    """
    own = level.objective
    if not isinstance(own.measure, ZNCC) or max(level.size) < _SMALLEST:
        return None
    if own.unknowns.at_bound(own.unknowns.coordinates(state)[0]):
        return None
    objective = Objective(
        own.models, own.views, GradientNCC(), own.unknowns, own.knowledge, own.robust, keeps_images=True
    )
    other = replace(level, objective=objective)
    return SecondOpinion(level, state, other) if (yield from _moving(other, state)) else None


def _moving(level: Level, state: State) -> Generator[None, None, bool]:
    """Whether a Gauss-Newton step of the level takes the state away by more than noise explains, and 1 mm."""
    objective, unknowns = level.objective, level.objective.unknowns
    at: Linearization = yield from objective.linearizing(state)
    covariance, _ = yield from estimating_covariance(objective, at)
    free = ~unknowns.locked
    hessian, gradient, covariance = at.hessian[0][free][:, free], at.gradient[0][free], covariance[free][:, free]
    step = -torch.linalg.lstsq(hessian, gradient[:, None], driver="gelsd").solution[:, 0]
    xi = torch.zeros(1, unknowns.size, dtype=step.dtype)
    xi[0, free] = step
    if float(unknowns.displacement(state, unknowns.moved(state, xi))) < _LEAST:
        return False
    unlikely = float(step @ torch.linalg.lstsq(covariance, step[:, None], driver="gelsd").solution[:, 0])
    return unlikely > chi2.ppf(_CHANCE, len(step))


def around(pivot: Tensor, reach: float) -> Tensor:
    """[6, 3] points at which an error in mm is told."""
    axes = torch.eye(3, dtype=torch.float64) * reach
    return pivot + torch.cat([axes, -axes])
