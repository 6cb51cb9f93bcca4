"""Tables of a run: Markdown, HTML and CSV from the same numbers."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from DiffDRRCore.evaluation.report.summary import (
    MAIN,
    Criteria,
    Quantiles,
    Record,
    Summary,
    failed,
    label,
    measures_of,
    method_of,
)
from DiffDRRCore.evaluation.statistics import CASES_PER_BIN, Bound, Share
from DiffDRRCore.files import replacing

_CASE_COLUMNS = ("converged", "reason", "similarity_start", "similarity", "steps", "seconds", "failure")


@dataclass(frozen=True)
class Table:
    """Text in rows and columns; `notes` are the sentences under it."""

    title: str
    header: list[str]
    rows: list[list[str]]
    notes: tuple[str, ...] = ()

    def markdown(self) -> str:
        """The table with its title as a second heading."""
        lines = [[for_markdown(cell) for cell in row] for row in (self.header, ["---"] * len(self.header), *self.rows)]
        body = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
        return "\n\n".join([f"## {for_markdown(self.title)}", body, *map(for_markdown, self.notes)]) + "\n"

    def html(self) -> str:
        """The table as a <section>; every text is escaped."""
        head = "".join(f"<th>{escape(cell)}</th>" for cell in self.header)
        body = "\n".join("<tr>" + "".join(_cell(cell) for cell in row) + "</tr>" for row in self.rows)
        notes = "".join(f"<p class='note'>{escape(note)}</p>" for note in self.notes)
        return (
            f"<section><h2>{escape(self.title)}</h2><div class='wide'><table><thead><tr>{head}</tr></thead>\n"
            f"<tbody>\n{body}\n</tbody></table></div>{notes}</section>"
        )


def success_table(summaries: Sequence[Summary], criteria: Criteria) -> Table:
    """Success rates; one row a method, and one for each of its subjects."""
    measure, percent = label(criteria.measure), f"{100 * criteria.confidence:g} %"
    header = ["method", "subject", "cases", "failed", *(f"success < {limit:g} mm" for limit in criteria.thresholds)]
    rows = [[*_who(s), str(s.cases), str(s.failures), *map(share, s.success.values())] for s in summaries]
    notes = (
        f"Success: {measure} at the end below the threshold, of all cases; a failed case counts as not successful. In "
        f"brackets the {percent} Wilson interval, as if cases were independent: several starts of one X-ray are not.",
    )
    return Table("Success", header, rows, notes)


def effort_table(summaries: Sequence[Summary], criteria: Criteria) -> Table:
    """From how far away, how fast: capture range, time and steps; rows as in `success_table`."""
    header = ["method", "subject", *(f"capture range {100 * level:g} % (mm)" for level in criteria.capture_levels)]
    header += ["converged", "median time (s)", "median steps"]
    rows = [
        [*_who(s), *map(bound, s.capture.values()), share(s.converged), number(s.seconds), number(s.steps)]
        for s in summaries
    ]
    notes = (
        f"Capture range: the {label(criteria.measure)} at the start where the share of success at "
        f"{criteria.capture_threshold:g} mm first falls below so many percent; > or < where that is outside of the "
        f"starts of this run. Only bins of the start error with {CASES_PER_BIN} cases or more count.",
        "Converged, time and steps are those of the cases that did not fail.",
    )
    return Table("Capture range and effort", header, rows, notes)


def error_table(summaries: Sequence[Summary]) -> Table:
    """Median and 95th percentile of every measure over all subjects, at the start and at the end of every method."""
    whole = [s for s in summaries if s.subject is None]
    names = list(dict.fromkeys(name for s in whole for name in s.quantiles))
    header = ["measure", *(f"{s.method}: {when}" for s in whole for when in ("start", "end"))]
    rows = [
        [label(name), *(_two(s.quantiles[name], when) for s in whole for when in ("start", "end"))] for name in names
    ]
    notes = (
        "Median / 95th percentile over all cases. A failed case counts as an infinite error (∞), so the median is the "
        "threshold at which half of all cases would succeed.",
        "mTRE is the mean length of T_estimate x - T_true x over the targets x, with T from the world to the camera. "
        "What xvr and DiffPose call mTRE is something else, and has rows of its own where it was asked for.",
    )
    return Table("Errors", header, rows, notes)


def subject_table(summaries: Sequence[Summary]) -> Table:
    """Median and 95th percentile of the main measures at the end, one row a method and subject."""
    names = [name for name in MAIN if any(name in s.quantiles for s in summaries)]
    rows = [
        [s.method, s.subject, *(_two(s.quantiles[name], "end") for name in names)]
        for s in summaries
        if s.subject is not None
    ]
    notes = ("Median / 95th percentile, as above.",)
    return Table("Errors at the end, by subject", ["method", "subject", *map(label, names)], rows, notes)


def coverage_table(summaries: Sequence[Summary], criteria: Criteria) -> Table:
    """Calibration of the predicted covariance."""
    header = ["method", "subject", *(f"inside {100 * p:g} %" for p in criteria.coverage_levels)]
    header += ["judged", "unusable", "without"]
    rows = [[*_who(s), *map(share, s.coverage.levels.values()), *map(str, s.coverage[1:])] for s in summaries]
    notes = (
        "Share of the true errors inside the ellipsoid that is predicted to hold so many percent of them (chi-square "
        "with 6 degrees of freedom), with its Wilson interval. Less than that: the registration is too sure of itself.",
        "Unusable: covariances that are not finite or not positive definite. Without: cases that failed or have none.",
        "It holds the image's noise alone: what the model leaves out (calibration, beam hardening, averaging over "
        "pixels and voxels) is not predicted.",
        "Starts of the same X-ray share its noise and often end at the same place: where cases are such starts, the "
        "intervals are narrower than they should be.",
    )
    return Table("Predicted covariance", header, rows, notes)


def failure_table(records: Sequence[Record]) -> Table:
    """Every case without an end, and why."""
    rows = [
        [method_of(record), str(record.get("case", "")), str(record.get("failure") or "There is no end pose.")]
        for record in records
        if failed(record)
    ]
    return Table("Failed cases", ["method", "case", "why"], rows)


def write_cases(path: Path, records: Sequence[Record]) -> Path:
    """CSV, one row a case: names, errors at start and end, outcome. Raises DiffDRRError where it cannot be written."""
    measures = measures_of(records)
    header = ["method", "case", "subject", "views", "start", "seed"]
    header += [f"{when}_{name}" for when in ("start", "end") for name in measures] + list(_CASE_COLUMNS)
    return _write_csv(path, header, [_case_row(record, measures) for record in records])


def write_summary(path: Path, summaries: Sequence[Summary]) -> Path:
    """CSV, one row a method and subject; shares from 0 to 1. Raises DiffDRRError where it cannot be written."""
    rows = [_summary_row(summary) for summary in summaries]
    header = list(dict.fromkeys(key for row in rows for key in row))
    return _write_csv(path, header, [[row.get(key, "") for key in header] for row in rows])


def number(value: float) -> str:
    """Three digits that count; ∞ for infinity, – for what is not known."""
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞"
    text = f"{value:.3g}"
    return f"{value:.0f}" if "e+" in text else text


def share(value: Share) -> str:
    """ "83 % (71–91)"; – where there are no cases."""
    if not value.total:
        return "–"
    return f"{100 * value.value:.0f} % ({100 * value.low:.0f}–{100 * value.high:.0f})"


def bound(value: Bound) -> str:
    """ "12.5", "> 38" or "< 2"."""
    return number(value.value) if value.relation == "=" else f"{value.relation} {number(value.value)}"


def _who(s: Summary) -> list[str]:
    return [s.method, s.subject or "all"]


def _two(quantiles: Quantiles, when: str) -> str:
    median, p95 = (getattr(quantiles, f"{when}_{which}") for which in ("median", "p95"))
    return "–" if math.isnan(median) else f"{number(median)} / {number(p95)}"


def _case_row(record: Record, measures: list[str]) -> list:
    names = [
        method_of(record),
        record.get("case"),
        record.get("subject"),
        "+".join(map(str, record.get("views") or [])),
    ]
    names += [record.get("start"), record.get("seed")]
    errors = [(record.get(f"errors_{when}") or {}).get(name) for when in ("start", "end") for name in measures]
    return names + errors + [record.get(key) for key in _CASE_COLUMNS]


def _summary_row(s: Summary) -> dict[str, object]:
    row: dict[str, object] = {
        "method": s.method,
        "subject": s.subject or "all",
        "cases": s.cases,
        "failures": s.failures,
    }
    for limit, rate in s.success.items():
        row |= _share_columns(f"success_{limit:g}_mm", rate)
    for level, value in s.capture.items():
        row[f"capture_range_{100 * level:g}_mm"] = value.value
        row[f"capture_range_{100 * level:g}_relation"] = value.relation
    for name, quantiles in s.quantiles.items():
        row |= {f"{key}_{name}": value for key, value in vars(quantiles).items()}
    row |= _share_columns("converged", s.converged) | {"median_seconds": s.seconds, "median_steps": s.steps}
    for p, rate in s.coverage.levels.items():
        row |= _share_columns(f"inside_{100 * p:g}_percent", rate)
    return row | {f"covariances_{key}": getattr(s.coverage, key) for key in ("used", "unusable", "missing")}


def _share_columns(name: str, value: Share) -> dict[str, float]:
    return {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}


def _write_csv(path: Path, header: list[str], rows: list[list]) -> Path:
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(["" if _unknown(value) else value for value in row] for row in rows)
    return Path(path)


def _unknown(value) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def for_markdown(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    for character in "\\|<>*`[]":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split())


def _cell(text: str) -> str:
    kind = " class='text'" if len(text) > 60 else " class='number'" if text[:1].isdigit() or text[:1] in "–∞<>" else ""
    return f"<td{kind}>{escape(text)}</td>"
