"""The standard evaluation: `python -m Testing.benchmarks.evaluate`.

Registrations from many starts: simulated X-rays of five real CTs (another integrator at four times the resolution,
10,000 photons a pixel, unknown gain and offset), the capture range on the chest CT, the real biplane wrist; beside them
the recipes of nanodrr and DiffDRR (installed into .cache/peers) from the same starts on the same images; the real scout
of a skull phantom. All of it runs by `DiffDRRCore.evaluation`, so `.cache/evaluation` holds each run with its protocol,
its cases and its report. Writes the section "Evaluation" of RESULTS.md.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from DiffDRRCore.evaluation.protocol import Protocol
from DiffDRRCore.evaluation.report import load_cases, write_report
from DiffDRRCore.evaluation.report.summary import Criteria, Summary, summarize
from DiffDRRCore.evaluation.running import run
from Testing.benchmarks import evaluate_tables, protocols, report
from Testing.benchmarks.peers import environment, recipes
from Testing.benchmarks.timing import use_threads
from Testing.protocol.real import CT_FILES

FOLDER = environment.REPOSITORY / ".cache" / "evaluation"
PEER_SIZE = 48  # pixels: at 128 they take most of an hour for one table


@dataclass(frozen=True)
class Group:
    """Runs that share a table: {row's name: protocol}, and for how many starts the peers join in."""

    title: str
    protocols: dict[str, dict]
    peer_starts: int = 0
    peer_protocol: str = ""


def groups(options: argparse.Namespace) -> list[Group]:
    """What is run."""
    manifest = protocols.write_wrist_manifest(FOLDER)
    starts = protocols.sampled(options.starts)
    wrist = {
        "both views": protocols.wrist(manifest, "groups", options.wrist_starts),
        "one view": protocols.wrist(manifest, "single", options.wrist_starts),
    }
    return [
        Group("Simulated X-rays of real CTs", {name: protocols.simulated(name, starts) for name in CT_FILES}),
        Group(
            f"Chest CT, X-ray of {PEER_SIZE} x {PEER_SIZE}, beside other programs' recipes",
            {"chest": protocols.simulated("chest", protocols.sampled(options.peer_starts), PEER_SIZE)},
            *(options.peer_starts, "chest"),
        ),
        Group(
            "Capture range on the chest CT",
            {"chest": protocols.simulated("chest", protocols.in_bins(options.capture_starts))},
        ),
        Group("Real biplane wrist, radius, from 10 degrees and 10 mm", wrist),
        Group(
            "Real wrist, camera 1 of frame 2, beside other programs' recipes",
            {"one view": protocols.wrist(manifest, ["cam1-0002"], options.peer_starts)},
            *(options.peer_starts, "one view"),
        ),
    ]


def results(group: Group, options: argparse.Namespace) -> list[tuple[str, Summary]]:
    """(row, summary of all its cases), ours and then the peers'."""
    found = []
    for name, content in group.protocols.items():
        folder = FOLDER / _file_name(f"{group.title} {name}")
        records = _run(Protocol.from_dict(content), folder, options.threads)
        write_report(folder, load_cases(folder))
        found.append((name, _summary(records, content)))
    if group.peer_starts and not options.no_peers:
        found += list(_peers(group, options))
    return found


def _peers(group: Group, options: argparse.Namespace) -> Iterator[tuple[str, Summary]]:
    content = group.protocols[group.peer_protocol]
    for name, title in recipes.NAMES.items():
        protocol = Protocol.from_dict({**content, "method": {**content.get("method", {}), "name": title}})
        folder = FOLDER / _file_name(f"{group.title} {name}")
        with (
            tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scene,
            recipes.opened(name, Path(scene), options.threads, PEER_SIZE) as recipe,
        ):
            records = _run(protocol, folder, options.threads, recipe)
        yield title, _summary(records, content)


def _run(protocol: Protocol, folder: Path, threads: int, solve=None) -> list[dict]:
    """In this process, with all cores for each registration."""
    with tqdm(desc=folder.name[:60], leave=False) as bar:

        def progress(done: int, count: int, record: dict | None) -> None:
            bar.total, bar.n = count, done
            bar.refresh()

        return run(protocol, folder, workers=0, threads=threads, progress=progress, solve=solve)


def _summary(records: list[dict], content: dict) -> Summary:
    return summarize(records, Criteria.of(Protocol.from_dict(content).to_dict()))[0]


def _file_name(title: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in title.lower())


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, default=20, help="per simulated case; default: 20")
    parser.add_argument("--wrist-starts", type=int, default=10, help="per frame and choice of views; default: 10")
    parser.add_argument("--capture-starts", type=int, default=10, help="per bin of 20 mm; default: 10")
    parser.add_argument(
        "--peer-starts", type=int, default=2, help="runs of each peer's recipe (minutes each); default: 2"
    )
    parser.add_argument("--no-peers", action="store_true", help="install and run no peers")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of every engine; default: all cores")
    parser.add_argument("--resume", action="store_true", help="go on with the runs of an evaluation that was stopped")
    parser.add_argument("--quick", action="store_true", help="a few starts, no peers; RESULTS.md stays as it is")
    options = parser.parse_args()
    if options.quick:
        options.starts, options.wrist_starts, options.capture_starts, options.peer_starts = 2, 1, 1, 1
        options.no_peers = True
    return options


def main() -> None:
    """Run everything, write the results' section."""
    options = arguments()
    use_threads(options.threads)
    if not options.resume:
        shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True, exist_ok=True)
    if not options.no_peers:
        for name, reason in environment.install(list(recipes.NAMES)).items():
            print(f"{name}: {reason}")
    tables = {group.title: results(group, options) for group in groups(options)}
    body = evaluate_tables.lines(tables)
    text = [*report.machine(options.threads, None if options.no_peers else environment.versions()), *body]
    if not options.quick:
        report.write_section("Evaluation", text)
    print("\n".join(text))


if __name__ == "__main__":
    main()
