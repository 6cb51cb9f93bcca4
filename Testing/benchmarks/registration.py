"""Registration from many starts on the real data: `python -m Testing.benchmarks.registration`.

Simulated X-rays of five real CTs (other integrator at four times the resolution, 10,000 photons, unknown gain and
offset), 20 starts each; the real biplane wrist, 10 starts a frame, two views and one. Results go to RESULTS.md here.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import median

import torch
from tqdm import tqdm

from DiffDRRCore import DiffDRRError, Pose, RegistrationResult, Renderer, Volume, register
from DiffDRRCore.evaluation.measures import components
from DiffDRRCore.similarity import GradientNCC
from Testing.protocol.real import CT_FILES, FRAMES, WRIST_OPTIONS, Wrist, crop_wrist, skull_scout, wrist
from Testing.protocol.simulated import Case, errors, make_case, moved_by, random_starts

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
RESULTS = Path(__file__).with_name("RESULTS.md")


def simulated_table(starts: int) -> list[str]:
    """Success rates, errors and times on the five CTs."""
    lines = [
        "| CT | start mTRE, median mm | in plane < 1 mm | all < 2 mm | end mTRE, median (worst) mm "
        "| in plane, worst mm | time, median s | evaluations, median |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, file in CT_FILES.items():
        case = make_case(name, Volume.read(DATA / file), primary=10.0, secondary=5.0)
        lines.append(_simulated_row(case, starts))
        tqdm.write(lines[-1])
    return lines


def _simulated_row(case: Case, count: int) -> str:
    before, after, seconds, steps = [], [], [], []
    for start in tqdm(random_starts(case, count), desc=case.name):
        result, elapsed = _timed(lambda start=start: register(case.volume, case.xray, start))
        before.append(errors(case, start)["mtre_mm"])
        after.append(errors(case, result.poses[0]))
        seconds.append(elapsed)
        steps.append(len(result.history))
    total, plane = ([error[key] for error in after] for key in ("mtre_mm", "mtre_in_plane_mm"))
    return (
        f"| {case.name} | {median(before):.1f} | {sum(e < 1 for e in plane)}/{count} "
        f"| {sum(e < 2 for e in total)}/{count} | {median(total):.3f} ({max(total):.3f}) | {max(plane):.3f} "
        f"| {median(seconds):.2f} | {median(steps):.0f} |"
    )


def wrist_table(starts: int) -> list[str]:
    """The real wrist: error against the reference registration."""
    lines = [
        "| frame | views | mTRE < 1 mm | mTRE < 0.5 mm | mTRE, median (worst) mm | in plane, median (worst) mm "
        "| depth, median mm | time, median s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for frame in FRAMES:
        case = wrist(DATA, frame)
        for views in ((0, 1), (0,), (1,)):
            lines.append(_wrist_row(case, frame, views, starts))
            tqdm.write(lines[-1])
    return lines


def _wrist_row(case: Wrist, frame: int, views: tuple[int, ...], count: int) -> str:
    found, seconds = [], []
    part = Wrist(case.volume, [case.xrays[v] for v in views], [case.truth[v] for v in views], case.targets)
    for seed in tqdm(range(count), desc=f"wrist {frame} {views}"):
        motion = moved_by(case.volume.center, degrees=10.0, millimetres=10.0, seed=seed)
        try:
            result, elapsed = _timed(lambda motion=motion: _register_wrist(part, motion))
        except DiffDRRError as error:
            tqdm.write(f"start {seed}: {error}")
            continue
        split = components(result.poses[0], part.truth[0], part.targets)
        found.append((float(split.total), float(split.in_plane), float(split.depth)))
        seconds.append(elapsed)
    total, plane, depth = zip(*found, strict=True)
    names = " + ".join(str(view + 1) for view in views)
    return (
        f"| {frame} | {names} | {sum(e < 1 for e in total)}/{count} | {sum(e < 0.5 for e in total)}/{count} "
        f"| {median(total):.2f} ({max(total):.2f}) | {median(plane):.2f} ({max(plane):.2f}) | {median(depth):.2f} "
        f"| {median(seconds):.1f} |"
    )


def _register_wrist(case: Wrist, motion: Pose) -> RegistrationResult:
    starts = [motion @ truth for truth in case.truth]
    return register(case.volume, crop_wrist(case, starts), starts, **WRIST_OPTIONS)


def skull_line() -> str:
    """The skull phantom's real scout against its CT, at the headers' geometry, with no fitting."""
    scout = skull_scout(DATA)
    with torch.no_grad():
        image = Renderer(scout.volume).trace(scout.source, scout.target)[0]
    scores = [
        float(GradientNCC(sigma=sigma)(image[None, None], scout.image[None, None], scout.inside[None, None]))
        for sigma in (0.0, 1.0, 2.0)
    ]
    return "Gradient NCC after smoothing with sigma 0, 1, 2 px: " + ", ".join(f"{score:.3f}" for score in scores) + "."


def machine() -> str:
    """Date, versions, processor."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "numpy", "scipy"))
    return f"{date.today()}, {platform.system()} {platform.machine()}, Python {platform.python_version()}, {packages}, \
{torch.get_num_threads()} threads, torch backend"


def _timed(call: Callable):
    began = time.perf_counter()
    return call(), time.perf_counter() - began


def main() -> None:
    """Run everything, write the results' section."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, default=20, help="per simulated case; default: 20")
    parser.add_argument("--wrist-starts", type=int, default=10, help="per frame and view; default: 10")
    options = parser.parse_args()
    sections = [
        ["# Registration", "", machine(), ""],
        ["## Simulated X-rays of real CTs, 128 x 128", "", *simulated_table(options.starts), ""],
        ["## Real biplane wrist, radius, from 10 degrees and 10 mm", "", *wrist_table(options.wrist_starts), ""],
        ["## Real scout of the skull phantom, geometry from the headers, nothing fitted", "", skull_line(), ""],
    ]
    text = "\n".join(line for section in sections for line in section)
    RESULTS.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
