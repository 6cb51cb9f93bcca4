"""How far a run in the scene is, and how it ends early."""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import dataclass

PREPARED = 0.3  # share of the progress
_MANY = 40.0  # pieces of preparation after which two thirds of its share are done


@dataclass(frozen=True)
class Progress:
    """After each piece of work.

    Attributes:
        fraction: 0 to 1, never falling.  text: what is done, in words.
        level: 1 for the coarsest, 0 before the first.  levels: how many there are, 0 before.
        similarity: of the best pose so far at this level, None before the first step.  seconds: since the beginning.
    """

    fraction: float
    text: str
    level: int = 0
    levels: int = 0
    similarity: float | None = None
    seconds: float = 0.0


class CancelledError(Exception):
    """Somebody called `cancel`."""


class GoneError(Exception):
    """A node of the run was deleted, or the scene closed."""


class Run:
    """What tells of its progress; `_all_there` says whether its nodes are."""

    def __init__(self):
        self._cancelled = False
        self._progress, self._began = Progress(0.0, "Starting"), time.perf_counter()

    def _all_there(self) -> bool:
        raise NotImplementedError

    def _pause(self, text: str) -> Generator[Progress, None, None]:
        yield self._prepared(text)
        self._check()

    def _worked(self, work: Generator, text: str | None = None) -> Generator[Progress, None, object]:
        """What a generator returns; progress after each of its pieces. `text` says that it is the end of the run."""
        while True:
            try:
                said = next(work)
            except StopIteration as end:
                return end.value
            yield self._prepared(said) if text is None else self._say(text, 0.98)
            self._check(cancelled=text is None)

    def _prepared(self, text: str) -> Progress:
        done = self._progress.fraction + (PREPARED - self._progress.fraction) / _MANY
        return self._say(text, done)

    def _say(self, text: str, fraction: float, level=None, levels=None, similarity=None) -> Progress:
        now = self._progress
        level, levels = now.level if level is None else level, now.levels if levels is None else levels
        similarity = now.similarity if similarity is None else similarity
        seconds = time.perf_counter() - self._began
        self._progress = Progress(float(max(fraction, now.fraction)), text, level, levels, similarity, seconds)
        return self._progress

    def _check(self, cancelled: bool = True) -> None:
        if not self._all_there():
            raise GoneError
        if cancelled and self._cancelled:
            raise CancelledError
