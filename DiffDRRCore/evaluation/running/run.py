"""Run a protocol: its cases in parallel, each kept as soon as it is finished, from where an earlier run stopped."""

from __future__ import annotations

import json
import platform
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from DiffDRRCore import __version__, parallel
from DiffDRRCore.errors import DiffDRRError, DiffDRRWarning, ReadError
from DiffDRRCore.evaluation.protocol.protocol import Protocol
from DiffDRRCore.evaluation.running.cases import Case, Solve, check_starts, list_cases
from DiffDRRCore.evaluation.running.records import NAME, open_records
from DiffDRRCore.evaluation.running.workers import Job, forget, in_cluster, run_one
from DiffDRRCore.files import check_folder, locked, replacing
from DiffDRRCore.json_lines import JsonLines

PROTOCOL_FILE = "protocol.json"
FORMAT = "DiffDRRSlicer evaluation"
_PACKAGES = ("torch", "numpy", "scipy", "SimpleITK", "numba", "warp-lang")
Progress = Callable[[int, int, "dict[str, Any] | None"], None]


def run(
    protocol: Protocol,
    folder: str | Path,
    workers: int | None = None,
    threads: int = 1,
    scheduler: str | None = None,
    progress: Progress | None = None,
    solve: Solve | None = None,
    retry_failed: bool = False,
    device: str = "cpu",
) -> list[dict[str, Any]]:
    """Run all cases that `folder` does not hold yet; returns the records of all, in the order of the cases.

    A script calls it under `if __name__ == "__main__":`, because worker processes import the script again.

    Args:
        folder: gets protocol.json and cases.jsonl; a run of the same protocol goes on there. "runs" in protocol.json
            lists when and with what cases were run, and "run" of a record is the place in that list, from 0.
        workers: processes; None is cores / threads, 0 is this process itself.
        threads: of each worker. The numbers are the same for any number of workers, not for any number of threads.
        scheduler: address of a Dask scheduler whose workers do the work in place of own processes.
        progress: called as progress(finished, all, record), with None as the record before the first.
        solve: in place of `register` (see `cases`); worker processes must be able to import it.
        retry_failed: run cases again that failed in an earlier run.
        device: "cpu" or "cuda"; workers are spread over the GPUs.

    Raises:
        DiffDRRError: the folder holds another protocol's run, another process is running it, or it cannot be written
            to; no case can have a start of the protocol's kind; the disk is full; a worker died.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, with the number of finished cases. They are kept in any case.
    """
    parallel.check_numbers(workers, threads)
    folder, dataset = Path(folder), protocol.open_dataset()
    cases = list_cases(protocol, dataset)
    check_folder(folder)
    if not (folder / NAME).exists():
        check_starts(protocol, dataset, cases)
    with parallel.terminable(), locked(folder):
        runs = _claim(folder, protocol)
        with open_records(folder) as records, _told_when_interrupted(records, len(cases), folder):
            if retry_failed:
                records.keep(lambda record: record["failure"] is None)
            done = {record["case"] for record in records.done}
            left = [case for case in cases if case.name not in done]
            if left:
                runs = _with_this(runs, threads, device, folder)
            _write_protocol(folder, protocol, runs)
            finished = outcomes(Job(protocol, solve, threads, device), left, workers, scheduler)
            _keep(finished, records, len(runs) - 1, len(left), len(cases), progress or _silent)
            return _in_order(records.done, cases)


def _keep(
    finished: Iterator[dict], records: JsonLines, run_number: int, left: int, count: int, progress: Progress
) -> None:
    """Write the records of the cases that are left, of `count` in all, as they come."""
    progress(count - left, count, None)
    with closing(finished):
        for number, record in enumerate(finished, start=count - left + 1):
            records.append({**record, "run": run_number})
            progress(number, count, record)


def _silent(finished: int, count: int, record: dict[str, Any] | None) -> None:
    """No progress."""


@contextmanager
def _told_when_interrupted(records: JsonLines, count: int, folder: Path) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        message = f"interrupted: {len(records.done)} of {count} cases are finished and kept in '{folder}'"
        raise KeyboardInterrupt(f"{message}; the same command goes on from there") from None


def outcomes(
    job: Job, cases: Sequence[Case], workers: int | None = None, scheduler: str | None = None
) -> Iterator[dict[str, Any]]:
    """Records of cases as they are finished, in any order; nothing is written. Arguments and errors as `run`."""
    if scheduler is not None and cases:
        yield from in_cluster(job, cases, scheduler)
    else:
        yield from parallel.outcomes(run_one, job, cases, workers, job.threads, job.device, forget=forget)


def read_run(folder: str | Path) -> dict[str, Any]:
    """The protocol.json of a run's folder. Raises ReadError where it is none."""
    path = Path(folder) / PROTOCOL_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ReadError(f"'{folder}' holds no evaluation: cannot read {PROTOCOL_FILE}: {error.strerror}.") from error
    except ValueError as error:
        raise ReadError(f"'{path}' is damaged: {error}.") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ReadError(f"'{path}' is not the protocol of an evaluation's run.")
    return content


def _claim(folder: Path, protocol: Protocol) -> list[dict[str, Any]]:
    """The runs that the folder has seen. Raises DiffDRRError where it belongs to another protocol."""
    if not (folder / PROTOCOL_FILE).exists():
        if (folder / NAME).exists() and (folder / NAME).stat().st_size:
            raise DiffDRRError(f"'{folder}' holds cases of an unknown protocol: choose another folder.")
        return []
    before = read_run(folder)
    if before.get("fingerprint") != protocol.fingerprint:
        raise DiffDRRError(f"'{folder}' holds the run of another protocol: choose another folder.")
    return before.get("runs", [])


def _with_this(runs: list[dict], threads: int, device: str, folder: Path) -> list[dict[str, Any]]:
    """The runs and this one; a DiffDRRWarning where they differ, since cases of one table should be made alike."""
    this = {"date": _now(), "versions": _versions(), "machine": _machine(), "threads": threads, "device": device}
    if any(run.get(name) != this[name] for run in runs for name in ("versions", "threads", "device")):
        warnings.warn(
            f"The cases in '{folder}' were run with other versions, threads or another device than now.",
            DiffDRRWarning,
            stacklevel=3,
        )
    return [*runs, this]


def _write_protocol(folder: Path, protocol: Protocol, runs: list[dict[str, Any]]) -> None:
    content = {"format": FORMAT, "fingerprint": protocol.fingerprint, **protocol.to_dict(), "runs": runs}
    with replacing(folder / PROTOCOL_FILE) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _in_order(records: list[dict[str, Any]], cases: Sequence[Case]) -> list[dict[str, Any]]:
    place = {case.name: number for number, case in enumerate(cases)}
    return sorted(records, key=lambda record: place.get(record["case"], len(place)))


def _versions() -> dict[str, str]:
    found = {"DiffDRRCore": __version__, "Python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _machine() -> dict[str, Any]:
    return {"system": platform.platform(), "processor": platform.machine(), "cores": parallel.cores()}


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
