"""Our registrations from many starts, as rows of the report."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median

import torch
from tqdm import tqdm

from DiffDRRCore import DiffDRRError, Pose, RegistrationResult, Renderer, register
from DiffDRRCore.evaluation.measures import components
from DiffDRRCore.similarity import GradientNCC
from Testing.protocol.real import WRIST_OPTIONS, Scout, Wrist, crop_wrist
from Testing.protocol.simulated import Case, errors, moved_by

SUCCESS = 2.0  # mm of mTRE
SIMULATED_HEADER = [
    *("CT", "start mTRE, median mm", "in plane < 1 mm", "all < 2 mm", "end mTRE, median (worst) mm"),
    *("in plane, worst mm", "time, median s", "evaluations, median"),
]
WRIST_HEADER = [
    *("frame", "views", "mTRE < 1 mm", "mTRE < 0.5 mm", "mTRE, median (worst) mm"),
    *("in plane, median (worst) mm", "depth, median mm", "time, median s"),
]


@dataclass
class Runs:
    """What many registrations of one case gave: errors in mm, seconds, evaluations."""

    before: list[float] = field(default_factory=list)
    total: list[float] = field(default_factory=list)
    plane: list[float] = field(default_factory=list)
    depth: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    evaluations: list[int] = field(default_factory=list)

    def within(self, limit: float, of: str = "total") -> str:
        """'successes/starts'."""
        values = getattr(self, of)
        return f"{sum(value < limit for value in values)}/{len(self.seconds)}"


def simulated_runs(case: Case, starts: list[Pose]) -> Runs:
    """Our default registration from each start."""
    runs = Runs()
    for start in tqdm(starts, desc=case.name, leave=False):
        result, seconds = timed(lambda start=start: register(case.volume, case.xray, start))
        after = errors(case, result.poses[0])
        runs.before.append(errors(case, start)["mtre_mm"])
        runs.total.append(after["mtre_mm"])
        runs.plane.append(after["mtre_in_plane_mm"])
        runs.seconds.append(seconds)
        runs.evaluations.append(len(result.history))
    return runs


def simulated_row(name: str, runs: Runs) -> list[str]:
    """Cells under SIMULATED_HEADER."""
    return [
        *(name, f"{median(runs.before):.1f}", runs.within(1, "plane"), runs.within(SUCCESS)),
        *(f"{median(runs.total):.3f} ({max(runs.total):.3f})", f"{max(runs.plane):.3f}"),
        *(f"{median(runs.seconds):.2f}", f"{median(runs.evaluations):.0f}"),
    ]


def wrist_runs(case: Wrist, views: tuple[int, ...], count: int) -> Runs:
    """The real wrist from 10 degrees and 10 mm off; a start that raises counts as a failure."""
    runs = Runs()
    part = Wrist(case.volume, [case.xrays[v] for v in views], [case.truth[v] for v in views], case.targets)
    for seed in tqdm(range(count), desc=f"wrist {views}", leave=False):
        motion = moved_by(case.volume.center, degrees=10.0, millimetres=10.0, seed=seed)
        result, seconds = timed(lambda motion=motion: _register_wrist(part, motion))
        runs.seconds.append(seconds)
        if result is None:
            continue
        split = components(result.poses[0], part.truth[0], part.targets)
        runs.total.append(float(split.total))
        runs.plane.append(float(split.in_plane))
        runs.depth.append(float(split.depth))
    return runs


def _register_wrist(case: Wrist, motion: Pose) -> RegistrationResult | None:
    starts = [motion @ truth for truth in case.truth]
    try:
        return register(case.volume, crop_wrist(case, starts), starts, **WRIST_OPTIONS)
    except DiffDRRError as error:
        tqdm.write(f"wrist: {error}")
        return None


def wrist_row(frame: int, views: tuple[int, ...], runs: Runs) -> list[str]:
    """Cells under WRIST_HEADER."""
    names = " + ".join(str(view + 1) for view in views)
    if not runs.total:
        return [str(frame), names, *[f"0/{len(runs.seconds)}"] * 2, *["-"] * 3, f"{median(runs.seconds):.1f}"]
    return [
        *(str(frame), names, runs.within(1), runs.within(0.5)),
        *(f"{median(values):.2f} ({max(values):.2f})" for values in (runs.total, runs.plane)),
        *(f"{median(runs.depth):.2f}", f"{median(runs.seconds):.1f}"),
    ]


def skull_line(scout: Scout) -> str:
    """The skull phantom's real scout against its CT, at the headers' geometry, with no fitting."""
    with torch.no_grad():
        image = Renderer(scout.volume).trace(scout.source, scout.target)[0]
    scores = [
        float(GradientNCC(sigma=sigma)(image[None, None], scout.image[None, None], scout.inside[None, None]))
        for sigma in (0.0, 1.0, 2.0)
    ]
    return "Gradient NCC after smoothing with sigma 0, 1, 2 px: " + ", ".join(f"{score:.3f}" for score in scores) + "."


def timed(call: Callable) -> tuple:
    """(what it returns, seconds)."""
    began = time.perf_counter()
    return call(), time.perf_counter() - began
