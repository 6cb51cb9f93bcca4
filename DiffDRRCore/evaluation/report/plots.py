"""Figures of a run, drawn with matplotlib (optional; the extra `plot`). Each shows numbers that the tables have too."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from DiffDRRCore.errors import DiffDRRError
from DiffDRRCore.evaluation.figures import registration_figure
from DiffDRRCore.evaluation.report.summary import (
    Criteria,
    Record,
    Summary,
    end_errors,
    failed,
    groups,
    label,
    start_errors,
)
from DiffDRRCore.files import replacing
from DiffDRRCore.geometry import Pose
from DiffDRRCore.imaging.volume import Volume
from DiffDRRCore.imaging.xray import XRay

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe and Ito: told apart by everybody
START, END = "#e08214", "#0072b2"
_STYLES = ("-", "--", ":", "-.")
_INK, _FAINT = "#333333", "#dddddd"


def capture_figure(summaries: Sequence[Summary], criteria: Criteria):
    """Share of success over the start error, one line a method, with its Wilson band; a matplotlib Figure."""
    figure, axis = _figure()
    for index, summary in enumerate(s for s in summaries if s.subject is None):
        known = [bin_ for bin_ in summary.bins if bin_.share.total]
        x = [bin_.center for bin_ in known]
        color, style = _look(index)
        axis.fill_between(
            x,
            *([100 * getattr(b.share, side) for b in known] for side in ("low", "high")),
            color=color,
            alpha=0.15,
            lw=0,
        )
        y = [100 * bin_.share.value for bin_ in known]
        axis.plot(x, y, style, color=color, marker="o", markersize=5, label=_literal(summary.method))
    for level in criteria.capture_levels:
        axis.axhline(100 * level, color=_FAINT, lw=1, zorder=0)
    axis.set_xlim(left=0)
    axis.set_xlabel(f"{label(criteria.measure)} at the start")
    axis.set_title(f"Capture range: success at {criteria.capture_threshold:g} mm, with Wilson intervals", loc="left")
    return _percent(figure, axis)


def success_figure(records: Sequence[Record], criteria: Criteria):
    """Share of all cases whose end error is below a threshold, over the threshold; a matplotlib Figure."""
    figure, axis = _figure()
    largest = 1.5 * max(criteria.thresholds)
    methods = {method: own for (method, subject), own in groups(records).items() if subject is None}
    for index, (method, own) in enumerate(methods.items()):
        x, y = success_curve(end_errors(own, criteria.measure))
        color, style = _look(index)
        name = f"{_literal(method)} ({len(own)} cases, {sum(map(failed, own))} failed)"
        axis.plot([*x, largest], 100 * np.array([*y, y[-1]]), style, color=color, drawstyle="steps-post", label=name)
    for threshold in criteria.thresholds:
        axis.axvline(threshold, color=_FAINT, lw=1, zorder=0)
    axis.set_xscale("log")
    axis.set_xlim(min(criteria.thresholds) / 10, largest)
    axis.set_xticks(criteria.thresholds, minor=False)
    axis.xaxis.set_major_formatter("{x:g}")
    axis.set_xlabel(f"threshold of {label(criteria.measure)}")
    axis.set_title("Success over the threshold, of all cases", loc="left")
    return _percent(figure, axis)


def success_curve(errors: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """(thresholds, shares) [M]: just above x[i] the share y[i] of all cases is below; starts at (0, 0)."""
    finite = np.sort([error for error in errors if math.isfinite(error)])
    return np.concatenate([[0.0], finite]), np.arange(len(finite) + 1) / max(len(errors), 1)


def histogram_figure(records: Sequence[Record], measure: str):
    """How often which error occurs at the start and at the end, a row a method; a matplotlib Figure.

    The axis is logarithmic; what is smaller than a thousandth of the largest error is counted in the first bin.
    """
    methods = {method: own for (method, subject), own in groups(records).items() if subject is None}
    figure, axes = _figure(rows=len(methods))
    edges = histogram_edges([*start_errors(records, measure), *end_errors(records, measure)])
    for axis, (method, own) in zip(np.atleast_1d(axes), methods.items(), strict=True):
        for when, errors, color in (
            ("start", start_errors(own, measure), START),
            ("end", end_errors(own, measure), END),
        ):
            finite = np.clip([error for error in errors if math.isfinite(error)], edges[0], edges[-1])
            left_out = len(errors) - len(finite)
            name = when + (f" ({left_out} of {len(errors)} without a number)" if left_out else "")
            axis.hist(finite, bins=edges, color=color, alpha=0.55, edgecolor="white", linewidth=0.5, label=name)
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter("{x:g}")
        axis.set_ylabel("cases")
        axis.set_title(_literal(method), loc="left", fontsize=10)
        axis.yaxis.get_major_locator().set_params(integer=True)
        axis.legend(frameon=False, fontsize=9)
    np.atleast_1d(axes)[-1].set_xlabel(label(measure))
    return figure


def histogram_edges(errors: Sequence[float], count: int = 30) -> np.ndarray:
    """[count + 1] edges, even in the logarithm, from a thousandth of the largest finite error (or the smallest) up."""
    finite = [error for error in errors if math.isfinite(error) and error > 0]
    largest = max(finite, default=1.0) * 1.001
    smallest = max(min(finite, default=1e-3), largest / 1000)
    return np.geomspace(min(smallest, largest / 2), largest, count + 1)


def worst_cases(records: Sequence[Record], measure: str, count: int) -> list[Record]:
    """The `count` records of each method that ended with the largest errors, worst first; none that failed."""
    chosen = []
    for (_, subject), own in groups(records).items():
        if subject is None:
            ended = [record for record in own if not failed(record) and record.get("poses_end")]
            chosen += sorted(ended, key=lambda record: -end_errors([record], measure)[0])[:count]
    return chosen


def draw_case(path: Path, record: Record, volume: Volume, xrays: Sequence[XRay]) -> list[Path]:
    """Contours of start and end on each X-ray of a case: `path` for one view, <stem>-1, <stem>-2 ... for several."""
    names = [path] if len(xrays) == 1 else [path.with_stem(f"{path.stem}-{k + 1}") for k in range(len(xrays))]
    poses = zip(record["poses_start"], record["poses_end"], strict=True)
    return [
        registration_figure(name, volume, xray, Pose(start), Pose(end))
        for name, xray, (start, end) in zip(names, xrays, poses, strict=True)
    ]


def save(figure, path: Path) -> Path:
    """Write the figure (.png, .pdf, .svg). Raises DiffDRRError where it cannot be written."""
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120)
    return Path(path)


def _figure(rows: int = 1):
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise DiffDRRError("Pictures need matplotlib; install it with: pip install matplotlib") from error
    figure = Figure(figsize=(7.2, 3.9 if rows == 1 else 0.6 + 2.2 * rows), layout="constrained", facecolor="white")
    axes = figure.subplots(rows, 1, sharex=True, squeeze=True)
    for axis in np.atleast_1d(axes):
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(colors=_INK)
    return figure, axes


def _percent(figure, axis):
    axis.set_ylim(-2, 102)
    axis.set_ylabel("success (%)")
    handles, _ = axis.get_legend_handles_labels()
    if handles:
        axis.legend(frameon=False, fontsize=9)
    return figure


def _look(index: int) -> tuple[str, str]:
    return COLORS[index % len(COLORS)], _STYLES[index // len(COLORS) % len(_STYLES)]


def _literal(text: str) -> str:
    """A name that matplotlib shows as it is: no formulas, and in the legend too if it begins with an underscore."""
    shown = text.replace("$", r"\$")
    return f" {shown}" if shown.startswith("_") else shown
