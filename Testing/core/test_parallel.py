"""Work on many items in this process or in others: the same results, and nothing left behind."""

from __future__ import annotations

import pytest
import torch

from DiffDRRCore import parallel
from DiffDRRCore.errors import DiffDRRError


def powered(job: int, item: int) -> tuple[int, int]:
    """item ** job, and the threads in use."""
    torch.set_num_threads(3)
    return item, item**job


@pytest.mark.parametrize("workers", [0, 2])
def test_the_same_results_anywhere(workers):
    threads = torch.get_num_threads()
    found = dict(parallel.outcomes(powered, 3, range(4), workers))
    assert found == {0: 0, 1: 1, 2: 8, 3: 27}
    assert torch.get_num_threads() == threads


def test_what_was_kept_is_forgotten_also_after_an_error():
    called = []
    threads = torch.get_num_threads()
    with pytest.raises(TypeError):
        list(parallel.outcomes(powered, 2, [1, "a"], 0, forget=lambda: called.append(1)))
    assert called == [1] and torch.get_num_threads() == threads
    begun = parallel.outcomes(powered, 2, [1, 2], 0, forget=lambda: called.append(2))
    next(begun)
    begun.close()
    assert called == [1, 2]


def test_as_many_workers_as_there_are_cores_for_their_threads(monkeypatch):
    asked = []
    monkeypatch.setattr(parallel, "cores", lambda: 8)
    monkeypatch.setattr(parallel, "visible_gpus", lambda: ("7",))
    monkeypatch.setattr(parallel, "in_processes", lambda *arguments: asked.append(arguments) or iter(()))
    for threads, device in ((2, "cpu"), (3, "cuda"), (9, "cpu")):
        assert list(parallel.outcomes(powered, 1, [1], None, threads, device, "images")) == []
    assert [(one[3], one[4], one[5], one[6]) for one in asked] == [
        *[(4, 2, (), "images"), (2, 3, ("7",), "images"), (1, 9, (), "images")]
    ]


def test_nothing_to_do_starts_nothing():
    assert list(parallel.outcomes(powered, 1, [], 2)) == []


@pytest.mark.parametrize("workers, threads", [(-1, 1), (None, 0), (0, -2)])
def test_numbers_that_cannot_be(workers, threads):
    with pytest.raises(DiffDRRError, match="Workers are 0 or more"):
        list(parallel.outcomes(powered, 1, [1], workers, threads))
