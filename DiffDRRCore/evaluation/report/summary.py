"""What the records of a run say: numbers for each method, over all subjects and for each of them.

A record is a dictionary as `cases.jsonl` holds one a line; records of other programs go in the same tables.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from DiffDRRCore.evaluation.statistics import (
    Bound,
    CaptureBin,
    Coverage,
    Share,
    bin_edges,
    capture_bins,
    capture_range,
    coverage,
    quantile,
    success_rate,
    wilson,
)

Record = Mapping[str, Any]

# In the order in which tables show them; others follow under their own names.
MEASURES = {
    "mtre_mm": "mTRE",
    "mtre_in_plane_mm": "mTRE in plane",
    "mtre_depth_mm": "mTRE depth",
    "mrpe_detector_mm": "mRPE at detector",
    "mrpe_object_mm": "mRPE at object",
    "rotation_deg": "rotation",
    "rotation_in_plane_deg": "rotation in plane",
    "rotation_out_of_plane_deg": "rotation out of plane",
    "translation_mm": "translation",
    "translation_in_plane_mm": "translation in plane",
    "translation_depth_mm": "translation depth",
    "double_geodesic_mm": "double geodesic",
    "xvr_mtre_mm": "mTRE as xvr's",
    "diffpose_mtre_mm": "mTRE as DiffPose's",
}

MAIN = ("mtre_mm", "mtre_in_plane_mm", "mtre_depth_mm", "mrpe_object_mm", "rotation_deg", "translation_mm")


@dataclass(frozen=True)
class Criteria:
    """By what a run is judged.

    measure            the error that decides on success, in mm
    thresholds         success is an end error below so many mm
    capture_threshold  the one of them by which the capture range is measured
    capture_edges      of the bins of the start error, mm; None makes even ones
    capture_levels     shares of success that end the capture range
    coverage_levels    probabilities of the ellipsoids that a covariance is judged by
    confidence         of all Wilson intervals
    """

    measure: str = "mtre_mm"
    thresholds: tuple[float, ...] = (1.0, 2.0, 5.0, 10.0)
    capture_threshold: float = 2.0
    capture_edges: tuple[float, ...] | None = None
    capture_levels: tuple[float, ...] = (0.95, 0.5)
    coverage_levels: tuple[float, ...] = (0.5, 0.9, 0.95)
    confidence: float = 0.95

    @classmethod
    def of(cls, protocol: Mapping[str, Any]) -> Criteria:
        """Those of a run's protocol.json: its thresholds, and the bins of its starts where they were drawn in bins.

        The capture range is taken at 2 mm if that is one of the thresholds, else at the middle one of them.
        """
        default, starts = cls(), protocol.get("starts")
        thresholds = tuple(sorted(float(limit) for limit in protocol.get("thresholds_mm") or default.thresholds))
        middle = thresholds[(len(thresholds) - 1) // 2]
        edges = starts.get("bins_mm") if isinstance(starts, Mapping) else None
        return cls(
            thresholds=thresholds,
            capture_threshold=default.capture_threshold if default.capture_threshold in thresholds else middle,
            capture_edges=None if edges is None else tuple(map(float, edges)),
        )


@dataclass(frozen=True)
class Quantiles:
    """Median and 95th percentile of one measure at the start and at the end; NaN where no record has it."""

    start_median: float
    start_p95: float
    end_median: float
    end_p95: float


@dataclass(frozen=True)
class Summary:
    """Numbers of one method; `subject` is None for all subjects together.

    cases, failures  how many there are, and how many of them have no end because they raised an error
    success          {threshold in mm: share}
    quantiles        {measure: Quantiles}; failed cases count as infinite errors
    converged        share of the cases without failure
    seconds, steps   medians over the cases without failure, NaN where unknown
    bins, capture    share of success over the start error, and {level: where it falls below}
    coverage         calibration of the predicted covariance
    """

    method: str
    subject: str | None
    cases: int
    failures: int
    success: dict[float, Share]
    quantiles: dict[str, Quantiles]
    converged: Share
    seconds: float
    steps: float
    bins: list[CaptureBin]
    capture: dict[float, Bound]
    coverage: Coverage


def failed(record: Record) -> bool:
    """Whether the case has no end."""
    return bool(record.get("failure")) or record.get("errors_end") is None


def measures_of(records: Sequence[Record]) -> list[str]:
    """Names of all measures that any record has, in the order of tables."""
    found = {name for record in records for key in ("errors_start", "errors_end") for name in (record.get(key) or {})}
    return [name for name in MEASURES if name in found] + sorted(found - set(MEASURES))


def label(measure: str) -> str:
    """A measure's name and unit for a table's head: "mTRE (mm)"."""
    name, _, unit = measure.rpartition("_")
    return f"{MEASURES.get(measure, name or measure)} ({unit})" if name else measure


def start_errors(records: Sequence[Record], measure: str) -> list[float]:
    """One number a record, mm or degrees; NaN where it has none."""
    return [_number((record.get("errors_start") or {}).get(measure)) for record in records]


def end_errors(records: Sequence[Record], measure: str) -> list[float]:
    """One number a record: infinity for a failed case and for one whose error is not a number."""
    values = [math.inf if failed(record) else _number(record["errors_end"].get(measure)) for record in records]
    return [math.inf if math.isnan(value) else value for value in values]


def groups(records: Sequence[Record]) -> dict[tuple[str, str | None], list[Record]]:
    """{(method, None): its records, (method, subject): those of one subject, ...}, in order of appearance.

    Where a method has one subject only, there is no group for it besides that of all.
    """
    found: dict[tuple[str, str | None], list[Record]] = {}
    methods = dict.fromkeys(method_of(record) for record in records)
    for method in methods:
        own = [record for record in records if method_of(record) == method]
        found[method, None] = own
        subjects = dict.fromkeys(str(record.get("subject", "")) for record in own)
        for subject in subjects if len(subjects) > 1 else ():
            found[method, subject] = [record for record in own if str(record.get("subject", "")) == subject]
    return found


def method_of(record: Record) -> str:
    """Name of the method; "registration" where the record does not say."""
    return str(record.get("method") or "registration")


def summarize(records: Sequence[Record], criteria: Criteria | None = None) -> list[Summary]:
    """A summary for each of `groups(records)`. All methods share the bins of the start error."""
    criteria = criteria or Criteria()
    edges = criteria.capture_edges or bin_edges(start_errors(records, criteria.measure))
    measures = measures_of(records)
    return [
        _summary(method, subject, own, measures, edges, criteria) for (method, subject), own in groups(records).items()
    ]


def _summary(method, subject, records: list[Record], measures: list[str], edges, criteria: Criteria) -> Summary:
    confidence = criteria.confidence
    ended = [record for record in records if not failed(record)]
    end = end_errors(records, criteria.measure)
    start = start_errors(records, criteria.measure)
    bins = capture_bins(start, end, criteria.capture_threshold, edges, confidence)
    return Summary(
        method=method,
        subject=subject,
        cases=len(records),
        failures=len(records) - len(ended),
        success={limit: success_rate(end, limit, confidence) for limit in criteria.thresholds},
        quantiles={measure: _quantiles(records, measure) for measure in measures},
        converged=wilson(sum(bool(record.get("converged")) for record in ended), len(ended), confidence),
        seconds=_median(ended, "seconds"),
        steps=_median(ended, "steps"),
        bins=bins,
        capture={level: capture_range(bins, level) for level in criteria.capture_levels},
        coverage=_coverage(records, criteria),
    )


def _quantiles(records: list[Record], measure: str) -> Quantiles:
    start = [value for value in start_errors(records, measure) if not math.isnan(value)]
    known = any(measure in (record.get("errors_end") or {}) for record in records) or all(map(failed, records))
    end = end_errors(records, measure) if known else []
    return Quantiles(*(quantile(errors, q) for errors in (start, end) for q in (0.5, 0.95)))


def _median(records: list[Record], key: str) -> float:
    values = [value for value in (_number(record.get(key)) for record in records) if not math.isnan(value)]
    return quantile(values, 0.5)


def _coverage(records: list[Record], criteria: Criteria) -> Coverage:
    covariances = [None if failed(record) else record.get("covariance") for record in records]
    deviations = [record.get("deviation") for record in records]
    return coverage(covariances, deviations, criteria.coverage_levels, criteria.confidence)


def _number(value) -> float:
    return math.nan if value is None else float(value)
