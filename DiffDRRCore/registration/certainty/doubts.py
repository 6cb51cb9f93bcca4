"""Reasons to doubt a finished registration, each a sentence that a person can act on.

The numbers come from `RegistrationResult` and `appearance`; none of them needs the truth. Limits were chosen on
simulated X-rays with metal, hands, tools, contrast agent, cut images and far starts: Testing/benchmarks/robustness.py
says how many wrong answers they find, and how many right ones they call doubtful.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from DiffDRRCore.registration.certainty.appearance import Appearance
from DiffDRRCore.registration.problem.motion import target_covariance

_NEGATIVE = (
    "X-ray {} looks like a negative (bright where the CT lets X-rays through): set meta['intensity'] to "
    "'transmission' and convert it (imaging.preprocess), or invert it."
)

_EDGES = (
    "X-ray {} shows the edges of the beam, and what lies beyond counts: leave it out by weights='auto', or crop the "
    "X-ray."
)


@dataclass(frozen=True)
class DoubtLimits:
    """From where on something is a reason to doubt.

    Attributes:
        edges: of `Appearance.edges`, at least.  grey: of `Appearance.grey`, at least.
        unexplained, blob: of `Appearance`, shares at most.
        poor: similarity, at least.
        gain: that the similarity must have risen by from the start, where the start was not as good already.
        uncertainty: mm, of one standard deviation of a target.
        rival: share of the way from a similarity of 0 to 1 that an alternative may come near to the answer's.
        across, along: mm, of `appearance.disagreement`.
    """

    edges: float = 0.85
    grey: float = 0.9
    unexplained: float = 0.25
    blob: float = 0.1
    poor: float = 0.3
    gain: float = 0.0
    uncertainty: float = 2.0
    rival: float = 0.002
    across: float = 5.0
    along: float = 10.0


def doubts(
    *,
    appearances: Sequence[Appearance] = (),
    similarity: float | None = None,
    initial_similarity: float | None = None,
    converged: bool = True,
    at_bound: Sequence[str] = (),
    alternatives: Sequence[Mapping] = (),
    first_level_similarity: float | None = None,
    covariance: Tensor | None = None,
    about: Tensor | None = None,
    points: Tensor | None = None,
    disagreements: Sequence[tuple[float, float]] = (),
    negative: Sequence[int] = (),
    collimated: Sequence[int] = (),
    limits: DoubtLimits | None = None,
) -> list[str]:
    """The reasons to doubt a registration, the weightiest first; empty where there is none.

    Args:
        appearances: of each view at the pose found (`appearance.appearance`).
        similarity, initial_similarity: of the answer and of the start, the measure's own, at the same image size.
        converged, at_bound: as of `RegistrationResult`.
        alternatives: other optima: "similarity" of each, at the first level.
        first_level_similarity: of the answer at that level, to compare them with; None leaves them out, for
            similarities of different image sizes cannot be compared.
        covariance, about, points: [6, 6] of xi = (rad, mm) about `about` [3], and target points [N, 3] (RAS mm), at
            which it becomes an error in mm.
        disagreements: (across, along) of each view (`appearance.disagreement`).
        negative: numbers, from 1, of the X-rays that `appearance.looks_negative` says are one.
        collimated: of those that count beyond the edges of the beam.
    """
    limits = limits or DoubtLimits()
    found = [_NEGATIVE.format(number) for number in negative] + [_EDGES.format(number) for number in collimated]
    for number, view in enumerate(appearances, start=1):
        found += _of_view(view, "the X-ray" if len(appearances) == 1 else f"X-ray {number}", limits)
    for number, (across, along) in enumerate(disagreements, start=1):
        found += _of_second(across, along, "" if len(disagreements) == 1 else f" in view {number}", limits)
    found += _of_rivals(alternatives, first_level_similarity, limits)
    found += _of_similarity(similarity, initial_similarity, limits)
    if at_bound:
        found.append(f"It ended on a bound of {', '.join(at_bound)}: the optimum may lie beyond; widen the bound.")
    if covariance is not None:
        found += of_covariance(covariance, about, points, limits)
    if not converged:
        found.append("It had not converged when it ended: allow more steps or time, or start closer.")
    return found


def target_deviations(covariance: Tensor, about: Tensor, points: Tensor) -> tuple[float, Tensor]:
    """(largest standard deviation in mm of any of the points [N, 3] in any direction, that direction [3])."""
    variances, axes = torch.linalg.eigh(target_covariance(covariance, about, points))
    worst = int(variances[:, -1].argmax())
    return math.sqrt(max(float(variances[worst, -1]), 0.0)), axes[worst, :, -1]


def _of_view(view: Appearance, name: str, limits: DoubtLimits) -> list[str]:
    found = []
    if view.edges < limits.edges:
        found.append(
            f"The outlines in {name} and in the rendered image agree little (correlation {view.edges:.2f}, of right "
            f"answers above {limits.edges:.2f}): look at the overlay, and start closer."
        )
    if view.grey < limits.grey:
        found.append(
            f"The grey values of {name} and of the rendered image agree little (correlation {view.grey:.2f}, of right "
            f"answers above {limits.grey:.2f})."
        )
    if view.blob > limits.blob and view.blob_at is not None:
        column, row = view.blob_at
        found.append(
            f"Around pixel ({column:.0f}, {row:.0f}), {name} shows something that the CT does not explain "
            f"({view.blob:.0%} of the CT's shadow): mask it by weights, or use robust='tukey'."
        )
    elif view.unexplained > limits.unexplained:
        found.append(f"In {name}, {view.unexplained:.0%} of the CT's shadow does not look like the CT.")
    return found


def _of_second(across: float, along: float, where: str, limits: DoubtLimits) -> list[str]:
    if across <= limits.across and along <= limits.along:
        return []
    return [
        f"By outlines instead of grey values, the answer moved by {across:.1f} mm across and {along:.1f} mm along the "
        f"beam{where}: look at the overlay, and add a view."
    ]


def _of_rivals(alternatives: Sequence[Mapping], own: float | None, limits: DoubtLimits) -> list[str]:
    if own is None:
        return []
    near = [other for other in alternatives if (1 - other["similarity"]) - (1 - own) < limits.rival]
    if not near:
        return []
    best = max(float(other["similarity"]) for other in near)
    plural = "another pose is" if len(near) == 1 else f"{len(near)} other poses are"
    return [f"{plural.capitalize()} nearly as good (similarity {best:.4f}, this one {own:.4f}): compare them."]


def _of_similarity(similarity: float | None, initial: float | None, limits: DoubtLimits) -> list[str]:
    found = []
    if similarity is not None and similarity < limits.poor:
        found.append(f"X-ray and CT hardly look alike (similarity {similarity:.3f}): check the overlay, start closer.")
    if similarity is not None and initial is not None and similarity < initial + limits.gain:
        found.append(f"It is no better than the start (similarity {similarity:.3f} after {initial:.3f}).")
    return found


def of_covariance(
    covariance: Tensor, about: Tensor | None, points: Tensor | None, limits: DoubtLimits | None = None, name: str = ""
) -> list[str]:
    """Whether a direction is not determined, of a body that is named where there are several. Arguments as `doubts`."""
    limits = limits or DoubtLimits()
    if not bool(torch.isfinite(covariance).all()):
        return ["How well the images determine the pose is not known: the covariance is not finite."]
    about = torch.zeros(3) if about is None else about
    size, axis = target_deviations(covariance, about, about[None] if points is None else points)
    if size <= limits.uncertainty:
        return []
    words = _direction(axis)
    where = f" of '{name}'" if name else ""
    return [
        f"The images determine {words}{where} to ±{size:.1f} mm only (one standard deviation): add a view or a bound."
    ]


def _direction(axis: Tensor) -> str:
    names = (("right", "left"), ("back", "front"), ("feet", "head"))
    largest = int(axis.abs().argmax())
    if float(axis.abs()[largest]) > 0.9:
        return f"the {'-'.join(names[largest])} direction"
    return "the direction (R {:.2f}, A {:.2f}, S {:.2f})".format(*axis.tolist())
