"""What a registration found in one frame, and why one may not be trusted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

from DiffDRRCore.registration.tracking.motion_model import Expectation, centred

NEAR = 15  # frames on either side whose similarity a frame's is compared with
_FEWEST = 3  # of them, at least
_SPREADS = 6.0  # robust standard deviations that similarity may drop
_SHARE = 0.5  # of the median's distance from 1 that it may drop at any rate
_LEAST = 0.01  # and at least so much
_SURPRISE = 6.0  # standard deviations


@dataclass(frozen=True, eq=False)
class Fit:
    """One frame.

    Attributes:
        motions: [B, 4, 4] of the bodies, CT to room.  covariances: [B, 6, 6] about `about` [B, 3].
        similarity: mean over the views.  reason: why it ended, where it has not converged; else None.
        carms: [V, 4, 4] of all views.  views: numbers of those that there is an X-ray of.
    """

    motions: Tensor
    covariances: Tensor
    about: Tensor
    similarity: float
    reason: str | None
    carms: Tensor
    views: tuple[int, ...]

    @property
    def centred(self) -> Tensor:
        """[B, 4, 4]: see `motion_model`."""
        return centred(self.motions, self.about)


def doubt(fit: Fit, others: Sequence[Fit], expected: Expectation | None) -> str | None:
    """Why a frame must be taken for lost, in words; None where it need not be.

    Args:
        others: the frames that are trusted, nearest first.
        expected: where the bodies should be; None where any place is right.
    """
    if fit.reason is not None:
        return f"the registration did not converge: {fit.reason}"
    return _dropped(fit, others) or (None if expected is None else _jumped(fit, expected))


def _dropped(fit: Fit, others: Sequence[Fit]) -> str | None:
    """Similarity can only be compared between frames with the same views."""
    if not math.isfinite(fit.similarity):
        return "nothing of the CT is in sight"
    values = [other.similarity for other in others if other.views == fit.views][: 2 * NEAR]
    if len(values) < _FEWEST:
        return None
    middle = median(values)
    spread = 1.4826 * median(abs(value - middle) for value in values)
    allowed = max(_SPREADS * spread, _SHARE * (1 - middle), _LEAST)
    if fit.similarity >= middle - allowed:
        return None
    return f"the similarity drops to {fit.similarity:.3f}, where {middle:.3f} is usual"


def _jumped(fit: Fit, expected: Expectation) -> str | None:
    surprise = expected.surprise(fit.centred, fit.covariances)
    if float(surprise.max()) <= _SURPRISE:
        return None
    body = int(surprise.argmax())
    here, there = expected.pose[body], fit.centred[body]
    shift = float((there[:3, 3] - here[:3, 3]).norm())
    cosine = (float((here[:3, :3].mT @ there[:3, :3]).diagonal().sum()) - 1) / 2
    turn = math.degrees(math.acos(max(-1.0, min(1.0, cosine))))
    return f"it lies {shift:.1f} mm and {turn:.1f} degrees from where the motion leads ({float(surprise.max()):.0f} SD)"


def apart(one: Fit, other: Fit) -> bool:
    """Whether two fits of a frame are different places: by more than 1 mm or 1 degree."""
    change = torch.linalg.inv(one.centred) @ other.centred
    turn = (change[:, :3, :3] - torch.eye(3, dtype=change.dtype)).flatten(1).norm(dim=-1) / math.sqrt(2)
    return bool((change[:, :3, 3].norm(dim=-1) > 1.0).any() or (turn > math.radians(1.0)).any())
