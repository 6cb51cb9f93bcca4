"""What realism costs: `python -m Testing.benchmarks.simulate` (--write puts the tables into RESULTS.md).

512 x 512 images of the chest CT, polychromatic, with noise, in turns with plain DRRs of the same size and the same
integrator. The goal: at most 3 times as long, with three materials. Ratios are of the fastest of each: whatever else a
machine does makes images slower, never faster.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

import torch

from DiffDRRCore import CArm, Renderer, Volume
from DiffDRRCore.datasets.shapes import Cylinder
from DiffDRRCore.physics import BeamObject, Collimator, Effects, Exposure, Grid, Heel, Scatter, Simulator, Spectrum
from DiffDRRCore.physics import material as named
from Testing.benchmarks import simulate_checks
from Testing.benchmarks.report import Target, machine, table, targets_table, write_section
from Testing.benchmarks.timing import Times, interleave, seconds_of, use_threads

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "chest_ct"
SIDES = {"AP": (180.0, 0.0), "lateral": (90.0, 0.0)}
SIZE, FIELD = 512, 400.0  # pixels, mm
GOAL = 3.0
CONTRAST, THRESHOLDS = "water, bone, contrast agent in the aorta", "air, soft tissue, bone (thresholds)"
EVERYTHING = "the same with focal spot, detector MTF, scatter and grid, heel, solid angle, collimator"
SCREWS = "the same with eight screws"


def chest() -> Volume:
    """The CT with its structures."""
    return Volume.read(DATA / "cxr.nii.gz", DATA / "mask.nii.gz", label_names=DATA / "structures.csv")


def simulators(volume: Volume, integrator: str, exposure: Exposure) -> dict[str, Simulator]:
    """What is timed, by name."""
    spectrum, options = Spectrum.tungsten(90, {"Al": 4.0}), {"integrator": integrator, "exposure": exposure}
    aorta = {"aorta": named("blood").with_iodine(15)}
    contrast = Simulator(volume, spectrum, materials=aorta, **options)
    effects = Effects(
        focal_spot_mm=0.6,
        detector_mtf=1.2,
        scatter=Scatter(90, grid=Grid()),
        heel=Heel(),
        solid_angle=True,
        collimator=Collimator(radius=180.0),
    )
    return {
        "water, bone": Simulator(volume, spectrum, **options),
        CONTRAST: contrast,
        THRESHOLDS: Simulator(volume, spectrum, decomposition="thresholds", **options),
        EVERYTHING: contrast.changed(effects=effects),
        SCREWS: contrast.changed(objects=screws(volume)),
    }


def screws(volume: Volume) -> list[BeamObject]:
    """Titanium, 6 mm thick and 45 mm long, in two rows about the middle of the CT."""
    middle = volume.center
    places = [(x, -40.0, 30.0 * z) for x in (-15.0, 15.0) for z in range(4)]
    return [
        BeamObject(
            Cylinder((middle + middle.new_tensor(place)).tolist(), (0.2, 1.0, 0.0), 3.0, 45.0), "Ti", name=str(n)
        )
        for n, place in enumerate(places)
    ]


def measure(volume: Volume, integrator: str, rounds: int) -> dict[str, dict[str, Times]]:
    """{side: {what: times}}; each call has its own angle."""
    plain, made = Renderer(volume, integrator), simulators(volume, integrator, Exposure(kerma=2.0))
    return {side: interleave(calls(volume, plain, made, *angles), rounds, 60.0, side) for side, angles in SIDES.items()}


def calls(volume, plain: Renderer, made: dict[str, Simulator], primary: float, secondary: float) -> dict:
    """{what: a call that gives its seconds}."""
    turns = dict.fromkeys(["plain DRR", *made], 0)

    def timed(what: str, image: Callable) -> Callable[[], float]:
        def call() -> float:
            turns[what] += 1
            arm = CArm(1020.0, 720.0, volume.center, primary + 0.7 * turns[what], secondary + 0.3 * turns[what])
            camera = arm.camera(SIZE, SIZE, (FIELD / SIZE, FIELD / SIZE))
            with torch.no_grad():
                return seconds_of(lambda: image(camera, arm.pose))

        return call

    drawn = {what: timed(what, lambda *view, one=one: one(*view, seed=1)) for what, one in made.items()}
    return {"plain DRR": timed("plain DRR", plain), **drawn}


def lines(results: dict[str, dict[str, dict[str, Times]]]) -> list[str]:
    """Markdown of {integrator: {side: {what: times}}}."""
    targets = [
        Target(f"{integrator}, {side}, {what}", _ratio(times[what], times["plain DRR"]), GOAL, 2.0, "x", False)
        for integrator, sides in results.items()
        for side, times in sides.items()
        for what in (CONTRAST, THRESHOLDS, SCREWS)
    ]  # fmt: skip
    written = targets_table(targets)
    for integrator, sides in results.items():
        rows = [
            [side, what, one.text(), f"{_ratio(one, times['plain DRR']):.2f} x"]
            for side, times in sides.items()
            for what, one in times.items()
        ]
        written += [f"## {integrator.capitalize()}", ""]
        written += table(["view", "image", "median (min) [ms]", "fastest over the fastest plain DRR"], rows)
    return written


def _ratio(slower: Times, faster: Times) -> float | None:
    return slower.min / faster.min if slower.seconds and faster.seconds else None


def main() -> None:
    """Measure, print, and write where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="default: 9")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="default: all cores")
    parser.add_argument("--write", action="store_true", help="put the tables into RESULTS.md")
    parser.add_argument("--integrators", nargs="*", default=["trilinear", "siddon"])
    options = parser.parse_args()
    use_threads(options.threads)
    volume = chest()
    results = {integrator: measure(volume, integrator, options.rounds) for integrator in options.integrators}
    load = os.getloadavg()[2] if hasattr(os, "getloadavg") else float("nan")
    explained = [
        "`python -m Testing.benchmarks.simulate --write`. Chest CT 512 x 512 x 133, images of 512 x 512, 90 kVp,",
        "energy-integrating detector, quantum noise at 2 uGy. All in turns; each image has a view of its own.",
        f"Load of the machine (processes that run, over the last 15 minutes): {load:.1f} at the end.",
        "",
    ]
    text = [*machine(options.threads), *explained, *lines(results), *simulate_checks.lines()]
    print("\n".join(text))
    if options.write:
        write_section("Simulation", text)


if __name__ == "__main__":
    main()
