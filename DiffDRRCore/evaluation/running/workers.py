"""Cases on several processes, or on a Dask cluster: the same function runs them everywhere.

Each worker keeps what it read for its last case.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from DiffDRRCore import parallel
from DiffDRRCore.errors import DiffDRRError

if TYPE_CHECKING:
    from DiffDRRCore.evaluation.protocol.protocol import Protocol
    from DiffDRRCore.evaluation.running.cases import Case, Solve

_kept = threading.local()  # of this thread: the job and its loader
_pinned = threading.Event()  # this process, a Dask worker, sees one GPU only


@dataclass(frozen=True)
class Job:
    """What all cases have in common.

    threads   of each worker, for PyTorch and for the kernels
    device    "cpu" or "cuda"
    gpus      (address of a Dask worker, name of its device as in CUDA_VISIBLE_DEVICES)
    """

    protocol: Protocol
    solve: Solve | None = None
    threads: int = 1
    device: str = "cpu"
    gpus: tuple[tuple[str, str], ...] = ()


def run_one(job: Job, case: Case) -> dict[str, Any]:
    """One case, in this thread. The numbers depend on nothing that ran before it."""
    import torch

    from DiffDRRCore.evaluation.running.cases import Loader, run_case

    torch.set_num_threads(job.threads)
    if getattr(_kept, "job", None) != job:
        forget()
        _kept.loader = Loader(job.protocol, job.device)
        _kept.job = job
    return run_case(_kept.loader, case, job.solve)


def forget() -> None:
    """Free what this thread keeps for its next case."""
    _kept.job, _kept.loader = None, None


def in_cluster(job: Job, cases: Sequence[Case], address: str) -> Iterator[dict[str, Any]]:
    """On the workers of a Dask scheduler; records come as they are finished. Closing the iterator cancels the rest.

    Raises DiffDRRError where dask.distributed is not installed, the scheduler does not answer or has no workers, or a
    worker is lost over and over.
    """
    with _client(address) as client:
        if not client.nthreads():
            raise DiffDRRError(f"The Dask scheduler at '{address}' has no workers: start some.")
        if job.device == "cuda":
            job = replace(job, gpus=tuple(spread_gpus(client.run(parallel.visible_gpus)).items()))
        shared = client.scatter(job, broadcast=True, hash=False)
        futures = [client.submit(_work_in_cluster, shared, case, pure=False) for case in cases]
        try:
            yield from _finished(client, futures)
        finally:
            with suppress(Exception):  # the scheduler may be gone by now, and nothing is left to do about it
                client.cancel(futures)


def spread_gpus(visible: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """The device of each worker, by its address, out of those that each sees.

    Workers of one machine that see the same devices take them in turn. Where they do not, somebody has shared them out
    already (dask-cuda gives every worker the whole list, each turned so that its own device comes first): then each
    keeps its first.
    """
    hosts: dict[str, list[str]] = {}
    for address in sorted(visible):
        hosts.setdefault(address.rpartition(":")[0], []).append(address)
    chosen = {}
    for there in hosts.values():
        alike = len({tuple(visible[address]) for address in there}) == 1
        for rank, address in enumerate(there):
            if devices := visible[address]:
                chosen[address] = devices[rank % len(devices) if alike else 0]
    return chosen


def _client(address: str):
    try:
        from distributed import Client
    except ImportError as error:
        raise DiffDRRError("--scheduler needs dask.distributed: pip install distributed.") from error
    try:
        return Client(address, timeout=20, set_as_default=False)
    except (OSError, ValueError) as error:
        raise DiffDRRError(f"No Dask scheduler answers at '{address}': {error}.") from error


def _finished(client, futures) -> Iterator[dict[str, Any]]:
    from distributed import KilledWorker, as_completed
    from distributed.client import CancelledError

    try:
        for future in as_completed(futures, loop=client.loop):
            yield future.result()
    except (KilledWorker, CancelledError, OSError) as error:
        raise DiffDRRError(
            f"The Dask cluster lost its workers or its scheduler ({type(error).__name__}); finished cases are kept, "
            "and the same run goes on from there."
        ) from error


def _work_in_cluster(job: Job, case: Case) -> dict[str, Any]:
    from distributed import get_worker

    if job.device == "cuda" and not _pinned.is_set():
        address = get_worker().address
        own = dict(job.gpus).get(address)  # a worker that came later has none
        parallel.pin_gpu(parallel.visible_gpus() if own is None else [own], zlib.crc32(address.encode()))
        _pinned.set()
    return run_one(job, case)
