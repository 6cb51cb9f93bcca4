"""Cases on several processes, or on a Dask cluster: the same function runs them everywhere.

Each worker keeps what it read for its last case. A worker whose evaluation has died ends by itself.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from DiffDRRCore.errors import DiffDRRError

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

    from DiffDRRCore.evaluation.cases import Case, Solve
    from DiffDRRCore.evaluation.protocol import Protocol

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
_PATIENCE_SECONDS = 2.0
_kept = threading.local()  # of this thread: the job and its loader
_settings: dict[str, Any] = {}  # of this worker process: its job


@dataclass(frozen=True)
class Job:
    """What all cases have in common.

    threads   of each worker, for PyTorch and for the kernels
    device    "cpu" or "cuda"
    gpus      names of the devices (as in CUDA_VISIBLE_DEVICES) that workers are spread over
    ranks     number of each Dask worker on its machine, by address
    """

    protocol: Protocol
    solve: Solve | None = None
    threads: int = 1
    device: str = "cpu"
    gpus: tuple[str, ...] = ()
    ranks: tuple[tuple[str, int], ...] = ()


def run_one(job: Job, case: Case) -> dict[str, Any]:
    """One case, in this thread. The numbers depend on nothing that ran before it."""
    import torch

    from DiffDRRCore.evaluation.cases import Loader, run_case

    torch.set_num_threads(job.threads)
    if getattr(_kept, "job", None) != job:
        _kept.job, _kept.loader = None, None
        _kept.loader = Loader(job.protocol, job.device)
        _kept.job = job
    return run_case(_kept.loader, case, job.solve)


def in_this_process(job: Job, cases: Sequence[Case]) -> Iterator[dict[str, Any]]:
    """One after the other."""
    import torch

    threads = torch.get_num_threads()
    try:
        for case in cases:
            yield run_one(job, case)
    finally:
        torch.set_num_threads(threads)
        _kept.job, _kept.loader = None, None


def in_processes(job: Job, cases: Sequence[Case], workers: int) -> Iterator[dict[str, Any]]:
    """In so many processes; records come as they are finished. Closing the iterator ends the processes.

    Raises DiffDRRError where a process died.
    """
    context = multiprocessing.get_context("spawn")
    job = replace(job, gpus=visible_gpus() if job.device == "cuda" else ())
    others, own, left = set(multiprocessing.active_children()), set(), len(cases)
    pool = ProcessPoolExecutor(min(workers, left), context, _begin, (job, context.Value("i", 0)))
    try:
        with _thread_variables(job.threads), _interrupts_held():
            futures = [pool.submit(_work, case) for case in cases]
            own = set(multiprocessing.active_children()) - others
        for future in as_completed(futures):
            left -= 1
            yield future.result()
    except BrokenProcessPool as error:
        raise DiffDRRError(
            "A worker process died (killed, or out of memory: try fewer workers); finished cases are kept, and the "
            "same run goes on from there."
        ) from error
    finally:
        _end(own if left else ())
        pool.shutdown(wait=True, cancel_futures=True)


def in_cluster(job: Job, cases: Sequence[Case], address: str) -> Iterator[dict[str, Any]]:
    """On the workers of a Dask scheduler; records come as they are finished. Closing the iterator cancels the rest.

    Raises DiffDRRError where dask.distributed is not installed, the scheduler does not answer or has no workers, or a
    worker is lost over and over.
    """
    try:
        from distributed import Client
        from distributed import as_completed as as_finished
    except ImportError as error:
        raise DiffDRRError("--scheduler needs dask.distributed: pip install distributed.") from error
    try:
        client = Client(address, timeout=20, set_as_default=False)
    except (OSError, ValueError) as error:
        raise DiffDRRError(f"No Dask scheduler answers at '{address}': {error}.") from error
    with client:
        job = replace(job, ranks=_ranks(client))
        if not job.ranks:
            raise DiffDRRError(f"The Dask scheduler at '{address}' has no workers: start some.")
        shared = client.scatter(job, broadcast=True, hash=False)
        futures = [client.submit(_work_in_cluster, shared, case, pure=False) for case in cases]
        try:
            for future in as_finished(futures, loop=client.loop):
                yield _outcome(future)
        finally:
            with suppress(Exception):  # the scheduler may be gone by now, and nothing is left to do about it
                client.cancel(futures)


def visible_gpus() -> tuple[str, ...]:
    """The NVIDIA devices that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return tuple(name.strip() for name in named.split(",") if name.strip())
    import torch

    return tuple(str(number) for number in range(torch.cuda.device_count()))


def pin_gpu(gpus: Sequence[str], rank: int) -> None:
    """Let this process see one of the devices only. Of no effect once CUDA is in use here."""
    if gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[rank % len(gpus)]


def _end(processes: Iterable[BaseProcess]) -> None:
    """Also of those that are still loading their libraries, and deaf until then."""
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(_PATIENCE_SECONDS)
        process.kill()


def _begin(job: Job, numbers) -> None:
    """The first thing a worker process does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with suppress(AttributeError):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with numbers.get_lock():
        rank = numbers.value
        numbers.value += 1
    pin_gpu(job.gpus, rank)
    _settings["job"] = job


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def _work(case: Case) -> dict[str, Any]:
    return run_one(_settings["job"], case)


def _work_in_cluster(job: Job, case: Case) -> dict[str, Any]:
    from distributed import get_worker

    if job.device == "cuda" and "pinned" not in _settings:
        address = get_worker().address
        pin_gpu(visible_gpus(), dict(job.ranks).get(address, zlib.crc32(address.encode())))
        _settings["pinned"] = True
    return run_one(job, case)


def _ranks(client) -> tuple[tuple[str, int], ...]:
    """For each worker its number among those on the same machine."""
    hosts: dict[str, list[str]] = {}
    for address in client.nthreads():
        hosts.setdefault(address.rpartition(":")[0], []).append(address)
    return tuple((address, rank) for there in hosts.values() for rank, address in enumerate(sorted(there)))


def _outcome(future) -> dict[str, Any]:
    from distributed import KilledWorker
    from distributed.client import CancelledError

    try:
        return future.result()
    except (KilledWorker, CancelledError, OSError) as error:
        raise DiffDRRError(
            f"The Dask cluster lost its workers or its scheduler ({type(error).__name__}); finished cases are kept, "
            "and the same run goes on from there."
        ) from error


@contextmanager
def _thread_variables(threads: int) -> Iterator[None]:
    """What libraries read once, when a process loads them: child processes inherit it."""
    before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, str(threads)))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait until the block is left; processes that start in it are deaf to them until `_begin`."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
