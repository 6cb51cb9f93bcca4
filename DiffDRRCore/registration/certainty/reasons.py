"""What a finished registration gives reason to doubt, from its images and its numbers."""

from __future__ import annotations

from collections.abc import Generator, Sequence

from torch import Tensor
from torch.nn.functional import avg_pool2d

from DiffDRRCore.imaging.exposure import exposed_field
from DiffDRRCore.registration.certainty.appearance import SIDE, Appearance, compared, looks_negative
from DiffDRRCore.registration.certainty.doubts import doubts, of_covariance
from DiffDRRCore.registration.certainty.second import SecondOpinion, around
from DiffDRRCore.registration.objective.pyramid import Level
from DiffDRRCore.registration.problem.problem import Problem
from DiffDRRCore.registration.problem.unknowns import State
from DiffDRRCore.registration.result import FoundBody
from DiffDRRCore.similarity import similarity

_BEYOND = 0.02  # of the pixels
_EXPLAINED = 0.9  # of `Appearance.grey`: an answer that agrees so well is of no negative


def finding_doubts(
    problem: Problem,
    first: Level,
    coarse: State,
    level: Level,
    images: Sequence[Tensor],
    found: dict,
    covariance: Tensor,
    second: SecondOpinion | None,
) -> Generator[None, None, list[str]]:
    """Sentences (`doubts`), the weightiest first. A generator, as it may render a small image.

    Args:
        first, coarse: the coarsest level, and the answer in its unknowns.
        level, images: the answer's own level, and the image [1, 1, H, W] of each view there.
        found: fields of the `RegistrationResult`.
        covariance: [P, P] by the images' noise alone: what outlines say besides is a reason of its own.
        second: what outlines say, where they were asked.
    """
    appearances, negative, collimated = [], [], []
    if shows_everything(problem):
        appearances = yield from _comparing(problem, level, images)
        whole = first if first.objective.views[0].uv is None else level  # not of pixels here and there
        negative = yield from _negative(whole, appearances)
        collimated = yield from _collimated(problem, level, appearances)
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
            disagreements=[] if second is None else second.apart(level.owners[0]),
            negative=negative,
            collimated=collimated,
        ),
        *_of_bodies(level, found["bodies"], covariance),
    ]


def _of_bodies(level: Level, bodies: Sequence[FoundBody], covariance: Tensor) -> list[str]:
    """Directions that the images do not determine."""
    motions, found = level.objective.unknowns.motions, []
    for body, owner in zip(bodies, level.owners, strict=True):
        number = level.objective.models[owner].motion
        own, points = slice(6 * number, 6 * number + 6), around(motions[number].pivot, motions[number].reach)
        found += of_covariance(covariance[own, own], body.about, points, name=body.name if len(bodies) > 1 else "")
    return found


def shows_everything(problem: Problem) -> bool:
    """Whether the rendered images should look like the X-rays: not where a few structures are compared by patches."""
    return problem.everything and not getattr(similarity(problem.options.similarity), "local", False)


def _comparing(problem: Problem, level: Level, images: Sequence[Tensor]) -> Generator[None, None, list[Appearance]]:
    """Of each view, at no more than `SIDE` pixels."""
    found = []
    for view, xray, image in zip(level.objective.views, problem.xrays, images, strict=True):
        every = max(1, round(max(image.shape) / SIDE))
        pair = (_pooled(one, every) for one in (image, view.fixed, view.weight))
        found.append(compared(*pair, tuple(xray.image.shape)))
        yield
    return found


def _pooled(image: Tensor | None, every: int) -> Tensor | None:
    return image if image is None or every == 1 else avg_pool2d(image, every)


def _negative(level: Level, appearances: Sequence[Appearance]) -> Generator[None, None, list[int]]:
    """Numbers of the X-rays that look like a negative from the start, and which the answer does not explain."""
    found, still = [], level.objective.unknowns.start()
    for number, (view, seen) in enumerate(zip(level.objective.views, appearances, strict=True), start=1):
        if seen.grey > _EXPLAINED:
            continue
        image = yield from level.objective.images.rendering(view, still)
        weight = None if view.weight is None else view.weight[0, 0]
        if looks_negative(view.fixed[0, 0], image[0, 0], weight):
            found.append(number)
    return found


def _collimated(problem: Problem, level: Level, appearances: Sequence[Appearance]) -> Generator[None, None, list[int]]:
    """Numbers of the X-rays that the answer does not explain, and of which pixels beyond the beam's edges count."""
    found = []
    views = zip(level.objective.views, problem.xrays, appearances, strict=True)
    for number, (view, xray, seen) in enumerate(views, start=1):
        if seen.grey > _EXPLAINED:
            continue
        small = xray.resampled(*view.fixed.shape[-2:])
        beyond = ~exposed_field(small, margin=False)
        if view.weight is not None:
            beyond &= view.weight[0, 0].cpu() > 0
        yield
        if float(beyond.double().mean()) > _BEYOND:
            found.append(number)
    return found
