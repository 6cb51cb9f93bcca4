"""What a finished registration gives reason to doubt, from its images and its numbers."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import torch
from torch import Tensor

from DiffDRRCore.registration.certainty.appearance import Appearance, compared
from DiffDRRCore.registration.certainty.doubts import doubts, of_covariance
from DiffDRRCore.registration.objective.pyramid import Level
from DiffDRRCore.registration.problem.problem import Problem
from DiffDRRCore.registration.problem.unknowns import State
from DiffDRRCore.registration.result import FoundBody
from DiffDRRCore.similarity import similarity


def finding_doubts(
    problem: Problem, first: Level, coarse: State, level: Level, images: Sequence[Tensor], found: dict
) -> Generator[None, None, list[str]]:
    """Sentences (`doubts`), the weightiest first. A generator, as it may render a small image.

    Args:
        first, coarse: the coarsest level, and the answer in its unknowns.
        level, images: the answer's own level, and the image [1, 1, H, W] of each view there.
        found: fields of the `RegistrationResult`.
    """
    appearances = _appearances(problem, level, images) if _shows_everything(problem) else []
    own = None  # where bodies moved together at first, poses nearly as good are to be expected there
    if found["alternatives"] and len(first.parts) == len(level.parts):
        own = float((yield from first.objective.measuring(coarse)))
    return [
        *doubts(
            appearances=appearances,
            similarity=found["similarity"],
            initial_similarity=found["initial_similarity"],
            converged=found["converged"],
            at_bound=found["at_bound"],
            alternatives=found["alternatives"],
            first_level_similarity=own,
        ),
        *_of_bodies(level, found["bodies"]),
    ]


def _of_bodies(level: Level, bodies: Sequence[FoundBody]) -> list[str]:
    """Directions that the images do not determine."""
    motions = [level.objective.unknowns.motions[number] for number in level.owners]
    found = []
    for body, motion in zip(bodies, motions, strict=True):
        name = body.name if len(bodies) > 1 else ""
        found += of_covariance(body.covariance, body.about, _around(motion.pivot, motion.reach), name=name)
    return found


def _shows_everything(problem: Problem) -> bool:
    """Whether the rendered images should look like the X-rays: not where a few structures are compared by patches."""
    options = problem.options
    everything = options.labels is None and (problem.is_whole or any(body.labels is None for body in options.bodies))
    return everything and not getattr(similarity(options.similarity), "local", False)


def _appearances(problem: Problem, level: Level, images: Sequence[Tensor]) -> list[Appearance]:
    return [
        compared(image, view.fixed, view.weight, tuple(xray.image.shape))
        for view, xray, image in zip(level.objective.views, problem.xrays, images, strict=True)
        if view.uv is None
    ]


def _around(pivot: Tensor, reach: float) -> Tensor:
    """[6, 3] points at which an error in mm is told."""
    axes = torch.eye(3, dtype=torch.float64) * reach
    return pivot + torch.cat([axes, -axes])
