"""Shares with their uncertainty, capture range, quantiles, and whether predicted covariances tell the truth.

Errors are plain numbers, one a case. A case that failed has the error infinity, so that it counts as not successful
and moves the quantiles; nothing is left out silently.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from scipy.special import gammaincinv

CONFIDENCE = 0.95
CASES_PER_BIN = 5  # of the start error: fewer say little of the share of success there


class Share(NamedTuple):
    """`count` of `total`, and the Wilson score interval `low` ... `high` of the share behind it.

    `value` is NaN and the interval 0 ... 1 where `total` is 0: nothing is known then.
    """

    count: int
    total: int
    low: float
    high: float

    @property
    def value(self) -> float:
        """count / total."""
        return self.count / self.total if self.total else math.nan


class CaptureBin(NamedTuple):
    """The cases that start with an error in [low, high), mm, and the share of them that succeeded."""

    low: float
    high: float
    share: Share

    @property
    def center(self) -> float:
        """Middle of the bin, mm."""
        return (self.low + self.high) / 2


class Bound(NamedTuple):
    """A number that is known ("="), or only from one side: ">" larger than `value`, "<" smaller. NaN: not known."""

    value: float
    relation: str = "="


class Coverage(NamedTuple):
    """How often the truth lies inside the predicted ellipsoid.

    levels    {p: share of the cases whose true error lies inside the p ellipsoid}; a calibrated covariance has it at p
    used      cases whose covariance could be judged
    unusable  cases whose covariance is not finite or not positive definite
    missing   cases without a covariance or without an end
    """

    levels: dict[float, Share]
    used: int
    unusable: int
    missing: int


def wilson(count: int, total: int, confidence: float = CONFIDENCE) -> Share:
    """The share count / total with its Wilson score interval.

    With z the normal quantile of (1 + confidence) / 2, p the share and n the total, the interval is
    (p + z^2/2n -+ z sqrt(p (1-p) / n + z^2/4n^2)) / (1 + z^2/n).
    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22, 1927.
    Raises ValueError where count is not within 0 ... total.
    """
    if not 0 <= count <= total:
        raise ValueError(f"There cannot be {count} of {total}.")
    if total == 0:
        return Share(0, 0, 0.0, 1.0)
    p, z = count / total, NormalDist().inv_cdf((1 + confidence) / 2)
    middle = p + z * z / (2 * total)
    half = z * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    low = 0.0 if count == 0 else (middle - half) / scale
    high = 1.0 if count == total else (middle + half) / scale
    return Share(int(count), int(total), low, high)


def success_rate(errors: Sequence[float], threshold: float, confidence: float = CONFIDENCE) -> Share:
    """The share of all cases whose error is below `threshold`; NaN and infinity are not."""
    return wilson(sum(error < threshold for error in errors), len(errors), confidence)


def quantile(errors: Sequence[float], q: float) -> float:
    """The q quantile (0 ... 1) of all cases, linear between neighbours; NaN counts as infinity; NaN if there is none.

    With infinity for failed cases the median is the threshold at which half of all cases would succeed.
    """
    if len(errors) == 0:
        return math.nan
    ordered = sorted(math.inf if math.isnan(error) else float(error) for error in errors)
    place = q * (len(ordered) - 1)
    below, part = ordered[math.floor(place)], place - math.floor(place)
    return below if part == 0 or math.isinf(below) else below + part * (ordered[math.floor(place) + 1] - below)


def capture_bins(
    start: Sequence[float],
    end: Sequence[float],
    threshold: float,
    edges: Sequence[float] | None = None,
    confidence: float = CONFIDENCE,
) -> list[CaptureBin]:
    """Share of success (end error below `threshold`) of the cases in each bin of the start error.

    Args:
        start, end: errors in mm, one each a case. A case whose start error is not finite is in no bin.
        edges: rising, mm; `bin_edges(start)` where none are given. Cases beyond them are in no bin.
    """
    pairs = [(s, e) for s, e in zip(start, end, strict=True) if math.isfinite(s)]
    edges = bin_edges([s for s, _ in pairs]) if edges is None else edges
    return [
        CaptureBin(
            float(low), float(high), success_rate([e for s, e in pairs if low <= s < high], threshold, confidence)
        )
        for low, high in pairwise(edges)
    ]


def bin_edges(start: Iterable[float], count: int = 10) -> list[float]:
    """Edges from 0 to beyond the largest finite start error: at most `count` + 1 bins of a width 1, 2 or 5 times 10^k.

    No edges where no start error is finite.
    """
    finite = [s for s in start if math.isfinite(s)]
    if not finite:
        return []
    largest = max(finite) or 1.0
    power = 10.0 ** math.floor(math.log10(largest / count))
    width = next(step * power for step in (1, 2, 5, 10) if step * power * count >= largest * (1 - 1e-12))
    return [width * k for k in range(math.floor(largest / width * (1 + 1e-12)) + 2)]


def capture_range(bins: Sequence[CaptureBin], level: float) -> Bound:
    """The start error (mm) at which the share of success first falls below `level` (such as 0.95).

    Linear between the centres of neighbouring bins of at least `CASES_PER_BIN` cases; others say too little and are
    passed over. ">" the last such centre where the share never falls below, "<" the first where it is below from the
    beginning; NaN where there are none.
    The idea: van de Kraats et al., IEEE Transactions on Medical Imaging 24(9), 2005, at 95 %.
    """
    known = [(bin_.center, bin_.share.value) for bin_ in bins if bin_.share.total >= CASES_PER_BIN]
    if not known:
        return Bound(math.nan)
    if known[0][1] < level:
        return Bound(known[0][0], "<")
    for (x0, y0), (x1, y1) in pairwise(known):
        if y1 < level:
            return Bound(x0 + (y0 - level) / (y0 - y1) * (x1 - x0))
    return Bound(known[-1][0], ">")


def mahalanobis_squared(covariance, deviation) -> float | None:
    """deviation^T covariance^-1 deviation; None where the covariance is not finite or not positive definite."""
    covariance, deviation = np.asarray(covariance, dtype=np.float64), np.asarray(deviation, dtype=np.float64)
    if not (np.isfinite(covariance).all() and np.isfinite(deviation).all()):
        return None
    scale = np.sqrt(np.clip(np.diagonal(covariance), 0, None))  # rad and mm differ a thousandfold
    if not (scale > 0).all():
        return None
    try:
        factor = np.linalg.cholesky((covariance + covariance.T) / 2 / np.outer(scale, scale))
    except np.linalg.LinAlgError:
        return None
    whitened = np.linalg.solve(factor, deviation / scale)
    return float(whitened @ whitened)


def coverage(
    covariances: Sequence, deviations: Sequence, levels: Sequence[float] = (0.5, 0.9, 0.95), confidence=CONFIDENCE
) -> Coverage:
    """Calibration of predicted covariances: how often the true error lies in the p ellipsoid, for each p of `levels`.

    d lies inside where d^T C^-1 d is at most the p quantile of chi-square with as many degrees of freedom as d has
    numbers (6 for a pose), because that is how d^T C^-1 d is distributed for d normal with covariance C.

    Args:
        covariances: [6, 6] each, or None; in the coordinates (rad, mm) of
        deviations: [6] each, or None: the true errors.
    """
    pairs = [(c, d) for c, d in zip(covariances, deviations, strict=True) if c is not None and d is not None]
    squared = [(mahalanobis_squared(c, d), len(d)) for c, d in pairs]
    usable = [(value, size) for value, size in squared if value is not None]
    shares = {
        p: wilson(sum(value <= chi_square_quantile(p, size) for value, size in usable), len(usable), confidence)
        for p in levels
    }
    return Coverage(shares, len(usable), len(pairs) - len(usable), len(covariances) - len(pairs))


def chi_square_quantile(p: float, degrees: int = 6) -> float:
    """The p quantile of the chi-square distribution."""
    return float(2 * gammaincinv(degrees / 2, p))
