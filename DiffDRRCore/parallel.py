"""The same function on many items, in worker processes that end with their parent and leave Ctrl-C to it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from DiffDRRCore.errors import DiffDRRError

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
_PATIENCE_SECONDS = 2.0
_settings: dict[str, Any] = {}  # of this worker process: its function and job


def outcomes(
    function: Callable[[Any, Any], Any],
    job: Any,
    items: Sequence[Any],
    workers: int | None = None,
    threads: int = 1,
    device: str = "cpu",
    what: str = "cases",
    forget: Callable[[], None] | None = None,
) -> Iterator[Any]:
    """function(job, item) for all items, in worker processes or in this one; results come as they are finished.

    Args:
        function, job, threads, what: as of `in_processes`.
        workers: processes; None is cores / threads, 0 is this process itself.
        device: "cpu" or "cuda"; workers are spread over the GPUs.
        forget: called at the end, where the work is done in this process: what the function kept between items.

    Raises DiffDRRError as `check_numbers` and `in_processes`.
    """
    check_numbers(workers, threads)
    if workers is None:
        workers = max(1, cores() // threads)
    if not items:
        return
    if workers == 0:
        yield from _in_this_process(function, job, items, forget)
        return
    gpus = visible_gpus() if device == "cuda" else ()
    yield from in_processes(function, job, items, workers, threads, gpus, what)


def check_numbers(workers: int | None, threads: int) -> None:
    """Raise DiffDRRError for numbers of workers (None: as many as fit) and threads that cannot be."""
    if threads < 1 or (workers is not None and workers < 0):
        raise DiffDRRError(f"Workers are 0 or more and threads 1 or more, got {workers} and {threads}.")


def _in_this_process(function, job, items: Sequence[Any], forget) -> Iterator[Any]:
    """One after the other; PyTorch's threads are those of before in the end."""
    import torch

    threads = torch.get_num_threads()
    try:
        for item in items:
            yield function(job, item)
    finally:
        torch.set_num_threads(threads)
        if forget is not None:
            forget()


def in_processes(
    function: Callable[[Any, Any], Any],
    job: Any,
    items: Sequence[Any],
    workers: int,
    threads: int = 1,
    gpus: Sequence[str] = (),
    what: str = "cases",
) -> Iterator[Any]:
    """function(job, item) for all items, in so many processes; results come as they are finished.

    Closing the iterator ends the processes.

    Args:
        function: of a module, so that the processes can import it; what it keeps between items is its own affair.
        job: what all items have in common; goes to each process once.
        threads: of each worker's numerical libraries.
        gpus: names of the devices (as in CUDA_VISIBLE_DEVICES) that workers are spread over.
        what: what the items are called in messages.

    Raises DiffDRRError where a process died.
    """
    context = multiprocessing.get_context("spawn")
    others, own, left = set(multiprocessing.active_children()), set(), len(items)
    start = (function, job, tuple(gpus), context.Value("i", 0))
    pool = ProcessPoolExecutor(min(workers, left), context, _begin, start)
    try:
        with _thread_variables(threads), _interrupts_held():
            futures = [pool.submit(_work, item) for item in items]
            own = set(multiprocessing.active_children()) - others
        for future in as_completed(futures):
            left -= 1
            yield future.result()
    except BrokenProcessPool as error:
        raise DiffDRRError(
            f"A worker process died (killed, or out of memory: try fewer workers); finished {what} are kept, and the "
            "same run goes on from there."
        ) from error
    finally:
        _end(own if left else ())
        pool.shutdown(wait=True, cancel_futures=True)


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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


@contextmanager
def terminable() -> Iterator[None]:
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


def _end(processes: Iterable[BaseProcess]) -> None:
    """Also of those that are still loading their libraries, and deaf until then."""
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(_PATIENCE_SECONDS)
        process.kill()


def _begin(function, job, gpus: tuple[str, ...], numbers) -> None:
    """The first thing a worker process does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with suppress(AttributeError):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with numbers.get_lock():
        rank = numbers.value
        numbers.value += 1
    pin_gpu(gpus, rank)
    _settings.update(function=function, job=job)


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def _work(item):
    return _settings["function"](_settings["job"], item)


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
