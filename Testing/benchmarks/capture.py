"""The capture range: how far from the truth a registration may start."""

from __future__ import annotations

from collections.abc import Callable

from tqdm import tqdm

from DiffDRRCore import Pose
from Testing.protocol.simulated import Case, errors, random_starts

BIN = 20.0
FARTHEST = 160.0


def starts_at(case: Case, distances: list[float], seed: int = 0) -> list[Pose]:
    """A start for each mTRE (mm): the truth moved as `random_starts` moves it, by more or less of the same motion."""
    return [_start_at(case, distance, seed + number) for number, distance in enumerate(distances)]


def _start_at(case: Case, distance: float, seed: int) -> Pose:
    scale = 1.0
    for _ in range(8):  # the error grows nearly in proportion to the motion
        start = random_starts(case, 1, 5.0 * scale, 10.0 * scale, 30.0 * scale, seed)[0]
        scale *= distance / errors(case, start)["mtre_mm"]
    return start


def shares(case: Case, count: int, succeeds: Callable[[Pose], bool]) -> list[float]:
    """Share of successes of `count` starts in each bin of BIN mm of start mTRE, up to FARTHEST."""
    found = []
    for number in tqdm(range(int(FARTHEST / BIN)), desc="capture range", leave=False):
        distances = [BIN * (number + (k + 0.5) / count) for k in range(count)]
        found.append(sum(map(succeeds, starts_at(case, distances, seed=1000 * number))) / count)
    return found


def half_range(found: list[float]) -> float:
    """Start mTRE (mm) at which the share falls below one half for the first time, interpolated between bin centres.

    FARTHEST where it never does, 0 where the first bin is below already.
    """
    centres = [BIN * (number + 0.5) for number in range(len(found))]
    for number, share in enumerate(found):
        if share < 0.5:
            if number == 0:
                return 0.0
            before = found[number - 1]
            return centres[number - 1] + BIN * (before - 0.5) / (before - share)
    return BIN * len(found)
