"""Interleaved timing: A B C A B C, so that a busy machine is unfair to all alike."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from statistics import median

import torch
from tqdm import tqdm

from Testing.benchmarks.peers.client import PeerError


@dataclass
class Times:
    """Seconds of one contender's rounds; `first` is the call before them, `failure` why there are none."""

    seconds: list[float] = field(default_factory=list)
    first: float | None = None
    failure: str | None = None

    @property
    def median(self) -> float | None:
        """Seconds, or None without rounds."""
        return median(self.seconds) if self.seconds else None

    @property
    def min(self) -> float | None:
        """Seconds, or None without rounds."""
        return min(self.seconds) if self.seconds else None

    def text(self) -> str:
        """'median (min)' in ms, or the failure."""
        return f"{self.median * 1e3:.1f} ({self.min * 1e3:.1f})" if self.seconds else self.failure or "not measured"


def interleave(calls: dict[Hashable, Callable[[], float]], rounds: int, patience: float, what: str) -> dict:
    """Each call once to warm up, then in turns: {key: Times}.

    Args:
        calls: return the seconds they took; a PeerError becomes the row's failure.
        rounds: of a fast call.
        patience: s; a call gets as many rounds as fit, one at least.
        what: shown beside the progress bar.
    """
    times = {key: Times() for key in calls}
    bar = tqdm(total=len(calls) * (rounds + 1), desc=what, leave=False)
    for number in range(rounds + 1):
        for key, call in calls.items():
            bar.update()
            if _has_turn(times[key], number, patience):
                _turn(times[key], call)
    bar.close()
    return times


def _has_turn(times: Times, number: int, patience: float) -> bool:
    if times.failure or number == 0:
        return times.failure is None
    return number <= 1 or number * min([times.first, *times.seconds]) <= patience


def _turn(times: Times, call: Callable[[], float]) -> None:
    try:
        seconds = call()
    except PeerError as error:
        times.failure = str(error)
        return
    if times.first is None:
        times.first = seconds
    else:
        times.seconds.append(seconds)


def use_threads(count: int) -> None:
    """Let torch and numba (unless it is imported already) use `count` threads in this process."""
    torch.set_num_threads(count)
    os.environ["NUMBA_NUM_THREADS"] = str(count)


def seconds_of(call: Callable) -> float:
    """Seconds that `call()` takes."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def ratio(slower: Times, faster: Times) -> float | None:
    """Of the medians; None where one is missing."""
    if not slower.seconds or not faster.seconds:
        return None
    return slower.median / faster.median
