"""Long work in pieces: generators that yield between them, so that whoever drives one can see to other things."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import TypeVar

Result = TypeVar("Result")
Word = TypeVar("Word")

RAYS = 2**13
"""Rays that are traced in one piece: some ten to twenty milliseconds on two cores."""


def finished(work: Generator[object, None, Result]) -> Result:
    """What a generator returns, all its pieces done at once."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


def said(word: Word, work: Generator[object, None, Result]) -> Generator[Word, None, Result]:
    """The same work, with that word between its pieces."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value
        yield word


def ranges(count: int, size: int) -> Iterator[tuple[int, int]]:
    """(first, last) of pieces of at most `size` of `count` things."""
    for first in range(0, count, size):
        yield first, min(first + size, count)
