"""Work on all cores: kernels that let go of Python's lock, in a pool of Python threads.

As many threads as torch uses, so that one setting (torch.set_num_threads, OMP_NUM_THREADS) rules both. numba's own
parallel loops are not used: their default layer ends the program when two threads enter it at once.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import torch

_PIECES_PER_THREAD = 4  # so that a thread which is done early finds more


def in_parallel(work: Callable[[int, int], None], count: int, grain: int) -> None:
    """Call work(first, last) on pieces of range(count), each a multiple of `grain` long but for the last.

    The pieces have no influence on each other, so neither their number nor their order changes a result.
    """
    threads = torch.get_num_threads()
    grains = -(-count // grain)
    if threads == 1 or grains <= 1:
        work(0, count)
        return
    pieces = min(grains, threads * _PIECES_PER_THREAD)
    bounds = [min(count, grains * piece // pieces * grain) for piece in range(pieces + 1)]
    for future in [_pool(threads, os.getpid()).submit(work, *ends) for ends in itertools.pairwise(bounds)]:
        future.result()


@lru_cache(maxsize=1)
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """A forked process has its parent's pool, but none of its threads: it gets one of its own."""
    return ThreadPoolExecutor(threads, thread_name_prefix="DiffDRR")
