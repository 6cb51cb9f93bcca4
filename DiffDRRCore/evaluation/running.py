"""Run a protocol: its cases in parallel, each kept as soon as it is finished, from where an earlier run stopped."""

from __future__ import annotations

import json
import os
import platform
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from DiffDRRCore import __version__
from DiffDRRCore.errors import DiffDRRError, DiffDRRWarning, ReadError
from DiffDRRCore.evaluation.cases import Case, Solve, list_cases
from DiffDRRCore.evaluation.protocol import Protocol
from DiffDRRCore.evaluation.records import Records
from DiffDRRCore.evaluation.workers import Job, in_cluster, in_processes, in_this_process
from DiffDRRCore.files import check_folder, replacing

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
        folder: gets protocol.json and cases.jsonl; a run of the same protocol goes on there.
        workers: processes; None is cores / threads, 0 is this process itself.
        threads: of each worker. The numbers are the same for any number of workers, not for any number of threads.
        scheduler: address of a Dask scheduler whose workers do the work in place of own processes.
        progress: called as progress(finished, all, record), with None as the record before the first.
        solve: in place of `register` (see `cases`); worker processes must be able to import it.
        retry_failed: run cases again that failed in an earlier run.
        device: "cpu" or "cuda"; workers are spread over the GPUs.

    Raises:
        DiffDRRError: the folder holds another protocol's run or cannot be written to, the disk is full, a worker died.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, with the number of finished cases. They are kept in any case.
    """
    _check_numbers(workers, threads)
    folder = Path(folder)
    cases = list_cases(protocol, protocol.open_dataset())
    _claim(folder, protocol, {"threads": threads, "device": device})
    with _terminable(), Records(folder) as records:
        if retry_failed:
            records.drop_failed()
        done = {record["case"] for record in records.done}
        left = [case for case in cases if case.name not in done]
        job = Job(protocol, solve, threads, device)
        count = len(cases)
        try:
            if progress is not None:
                progress(count - len(left), count, None)
            with closing(outcomes(job, left, workers, scheduler)) as finished:
                for number, record in enumerate(finished, start=count - len(left) + 1):
                    records.append(record)
                    if progress is not None:
                        progress(number, count, record)
        except KeyboardInterrupt:
            message = f"interrupted: {len(records.done)} of {count} cases are finished and kept in '{folder}'"
            raise KeyboardInterrupt(f"{message}; the same command goes on from there") from None
        return _in_order(records.done, cases)


def outcomes(
    job: Job, cases: Sequence[Case], workers: int | None = None, scheduler: str | None = None
) -> Iterator[dict[str, Any]]:
    """Records of cases as they are finished, in any order; nothing is written. Arguments and errors as `run`."""
    if workers is None:
        workers = max(1, _cores() // job.threads)
    if not cases:
        return
    if scheduler is not None:
        yield from in_cluster(job, cases, scheduler)
    elif workers == 0:
        yield from in_this_process(job, cases)
    else:
        yield from in_processes(job, cases, workers)


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


def _claim(folder: Path, protocol: Protocol, settings: dict[str, Any]) -> None:
    """Write protocol.json, unless the folder belongs to another protocol."""
    check_folder(folder)
    path = folder / PROTOCOL_FILE
    content = {"format": FORMAT, "fingerprint": protocol.fingerprint, **protocol.to_dict()}
    content |= {"versions": _versions(), "machine": _machine(), "run": settings | {"date": _now()}}
    if path.exists():
        before = read_run(folder)
        if before["fingerprint"] != protocol.fingerprint:
            raise DiffDRRError(f"'{folder}' holds the run of another protocol: choose another folder.")
        _warn_of_differences(before, content, folder)
    elif (folder / "cases.jsonl").exists():
        raise DiffDRRError(f"'{folder}' holds cases of an unknown protocol: choose another folder.")
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _warn_of_differences(before: dict, now: dict, folder: Path) -> None:
    """Cases of one table should be made alike."""
    settings = {name: value for name, value in now["run"].items() if name != "date"}
    if before.get("versions") != now["versions"] or any(before["run"].get(k) != x for k, x in settings.items()):
        warnings.warn(
            f"The cases in '{folder}' were run with other versions, threads or another device than now.",
            DiffDRRWarning,
            stacklevel=4,
        )


def _in_order(records: list[dict[str, Any]], cases: Sequence[Case]) -> list[dict[str, Any]]:
    place = {case.name: number for number, case in enumerate(cases)}
    return sorted(records, key=lambda record: place.get(record["case"], len(place)))


def _check_numbers(workers: int | None, threads: int) -> None:
    if threads < 1 or (workers is not None and workers < 0):
        raise DiffDRRError(f"Workers are 0 or more and threads 1 or more, got {workers} and {threads}.")


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does. Only the main thread can say so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)  # None: not set from Python


def _cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _versions() -> dict[str, str]:
    found = {"DiffDRRCore": __version__, "Python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _machine() -> dict[str, Any]:
    return {"system": platform.platform(), "processor": platform.machine(), "cores": _cores()}


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
