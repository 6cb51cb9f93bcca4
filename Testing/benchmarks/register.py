"""Registration from many starts: `python -m Testing.benchmarks.register`.

Simulated X-rays of five real CTs (other integrator at four times the resolution, 10,000 photons, unknown gain and
offset), 20 starts each; the recipes of nanodrr and DiffDRR (installed into .cache/peers) from the same starts on the
same image; the capture range on the chest CT; the real biplane wrist; the real scout of a skull phantom. Writes the
section "Registration" of RESULTS.md.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from statistics import median

from tqdm import tqdm

from DiffDRRCore import Pose, Renderer, Volume, register
from Testing.benchmarks import capture, register_peers, report
from Testing.benchmarks.peers import environment
from Testing.benchmarks.register_rows import (
    SIMULATED_HEADER,
    SUCCESS,
    WRIST_HEADER,
    Runs,
    simulated_row,
    simulated_runs,
    skull_line,
    wrist_row,
    wrist_runs,
)
from Testing.benchmarks.timing import use_threads
from Testing.protocol.real import CT_FILES, FRAMES, skull_scout, wrist
from Testing.protocol.simulated import Case, errors, make_case, random_starts

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
BOTH_VIEWS = (0, 1)


def simulated(starts: int) -> dict[str, Runs]:
    """Of each CT."""
    found = {}
    for name in CT_FILES:
        case = load(name)
        found[name] = simulated_runs(case, random_starts(case, starts))
        tqdm.write(" | ".join(simulated_row(name, found[name])))
    return found


def load(name: str) -> Case:
    """A CT with its simulated X-ray, 128 x 128."""
    return make_case(name, Volume.read(DATA / CT_FILES[name]), primary=10.0, secondary=5.0)


def captured(case: Case, count: int) -> list[float]:
    """Share of successes in each bin of start errors."""

    def succeeds(start: Pose) -> bool:
        return errors(case, register(case.volume, case.xray, start).poses[0])["mtre_mm"] < SUCCESS

    return capture.shares(case, count, succeeds)


def wrists(count: int) -> dict[tuple, Runs]:
    """Of each frame with both views, and with either alone."""
    found = {}
    for frame in FRAMES:
        case = wrist(DATA, frame)
        for views in (BOTH_VIEWS, (0,), (1,)):
            found[frame, views] = wrist_runs(case, views, count)
            tqdm.write(" | ".join(wrist_row(frame, views, found[frame, views])))
    return found


def targets(simulations: dict, peers: dict, shares: list[float], real: dict) -> list[report.Target]:
    """The issue's table as far as registration goes."""
    chest = simulations["chest"]
    known = [runs.seconds for runs in peers.values() if runs.seconds]
    faster = min(known) / median(chest.seconds) if known else None
    both = [real[frame, BOTH_VIEWS] for frame in FRAMES if (frame, BOTH_VIEWS) in real]
    success = ", ".join(runs.within(0.5) for runs in both)
    slowest = max((median(runs.seconds) for runs in both), default=None)
    return [
        report.Target(
            f"chest, {len(chest.seconds)} starts ({chest.within(SUCCESS)} below 2 mm), 128 x 128: median time",
            median(chest.seconds),
            *(0.4, 0.1, "s"),
            higher_is_better=False,
        ),
        report.Target("the same against the faster of DiffDRR's and nanodrr's recipes", faster, 300, 2000),
        report.Target(
            f"real wrist, both views ({success} below 0.5 mm in frames 2 and 99): median time of the slower frame",
            slowest,
            *(3, 0.5, "s"),
            higher_is_better=False,
        ),
        report.Target(
            "capture range on the chest CT: half of all starts succeed at",
            capture.half_range(shares) if shares else None,
            *(40, 100, "mm"),
        ),
    ]


def capture_table(shares: list[float], count: int) -> list[str]:
    """Lines of Markdown."""
    header = ["start mTRE, mm", *(f"{capture.BIN * k:.0f}-{capture.BIN * (k + 1):.0f}" for k in range(len(shares)))]
    return report.table(header, [[f"end mTRE < 2 mm, of {count}", *(f"{share:.0%}" for share in shares)]])


def run(options: argparse.Namespace) -> list[str]:
    """Measure everything; the report's lines."""
    simulations = simulated(options.starts)
    chest = load("chest")
    peers = {}
    if not options.no_peers:
        peers = register_peers.peer_runs(
            chest, random_starts(chest, options.starts), options.peer_starts, options.threads
        )
    shares = captured(chest, options.capture_starts) if options.capture_starts else []
    real = wrists(options.wrist_starts) if options.wrist_starts else {}
    sections = {
        "Targets": report.targets_table(targets(simulations, peers, shares, real)),
        "Simulated X-rays of real CTs, 128 x 128": report.table(
            SIMULATED_HEADER, [simulated_row(*item) for item in simulations.items()]
        ),
        "The peers' recipes on the chest CT, the same starts and image": report.table(
            register_peers.HEADER,
            [register_peers.row(name, found, simulations["chest"]) for name, found in peers.items()],
        ),
        "Capture range on the chest CT": capture_table(shares, options.capture_starts),
        "Real biplane wrist, radius, from 10 degrees and 10 mm": report.table(
            WRIST_HEADER, [wrist_row(*key, found) for key, found in real.items()]
        ),
        "Real scout of the skull phantom, geometry from the headers, nothing fitted": [
            skull_line(skull_scout(DATA)),
            "",
        ],
    }
    backend = f"Backend: {Renderer(chest.volume).backend}."
    return [backend, "", *(line for title, body in sections.items() for line in (f"## {title}", "", *body))]


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, default=20, help="per simulated case; default: 20")
    parser.add_argument("--wrist-starts", type=int, default=10, help="per frame and choice of views; default: 10")
    parser.add_argument("--capture-starts", type=int, default=10, help="per bin of 20 mm; default: 10")
    parser.add_argument(
        "--peer-starts",
        type=int,
        default=3,
        help="whole runs of each peer's recipe (minutes each); 0 times ten steps only; default: 3",
    )
    parser.add_argument("--no-peers", action="store_true", help="install and run no peers")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of every engine; default: all cores")
    parser.add_argument(
        "--quick", action="store_true", help="a few starts of each: prints, but does not touch RESULTS.md"
    )
    options = parser.parse_args()
    if options.quick:
        options.starts, options.wrist_starts, options.capture_starts, options.peer_starts = 2, 1, 1, 0
    return options


def main() -> None:
    """Run everything, write the results' section."""
    options = arguments()
    use_threads(options.threads)
    body = run(options)
    text = [*report.machine(options.threads, None if options.no_peers else environment.versions()), *body]
    if not options.quick:
        report.write_section("Registration", text)
    print("\n".join(text))


if __name__ == "__main__":
    main()
