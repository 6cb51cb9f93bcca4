"""Work on all cores."""

from __future__ import annotations

import multiprocessing

import numpy as np
import pytest
import torch

from DiffDRRCore.rendering.backends.cpu.threads import in_parallel


def filled(count: int, grain: int) -> np.ndarray:
    """How often each number was worked on."""
    times = np.zeros(count, int)

    def work(first: int, last: int) -> None:
        assert first % grain == 0 and (last % grain == 0 or last == count)
        times[first:last] += 1

    in_parallel(work, count, grain)
    return times


@pytest.mark.parametrize("count, grain", [(0, 16), (1, 16), (16, 16), (17, 16), (1000, 7), (3, 1)])
def test_everything_is_done_once_in_whole_grains(count, grain):
    threads = torch.get_num_threads()
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            assert (filled(count, grain) == 1).all()
    finally:
        torch.set_num_threads(threads)


def test_an_error_in_a_thread_reaches_the_caller():
    def work(first: int, last: int) -> None:
        raise ValueError("in a thread")

    with pytest.raises(ValueError, match="in a thread"):
        in_parallel(work, 100, 1)


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork on this system")
def test_a_forked_process_has_threads_of_its_own():
    """The parent's pool is copied by a fork, its threads are not: to wait for them would be to wait for ever."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert (filled(100, 1) == 1).all()
        context = multiprocessing.get_context("fork")
        child = context.Process(target=filled, args=(100, 1), daemon=True)
        child.start()
        child.join(30)
        assert child.exitcode == 0
    finally:
        torch.set_num_threads(threads)
