"""A file of one JSON object a line, each on the disk before the next counts as done."""

from __future__ import annotations

import errno
import json
import os
import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from DiffDRRCore.errors import DiffDRRError, DiffDRRWarning, ReadError
from DiffDRRCore.files import finite, replacing


def read_lines(path: str | Path, required: Iterable[str] = (), unique: str | None = None) -> list[dict[str, Any]]:
    """The objects of a file, in the order in which they were written; half a last line is left out.

    Args:
        required: keys that every object has.
        unique: of these, one whose value occurs once in the file.

    Raises ReadError where there is no file, or where a line is damaged or stands there twice.
    """
    return _complete(Path(path), frozenset(required), unique)[0]


class JsonLines:
    """A file that grows by whole lines; use it as a context.

    Args:
        path: the file, which need not be there.
        required: keys that every object has.
        what: what a line is called in messages ("case").
        unique: of the required keys, one whose value occurs once in the file.

    Attributes:
        done: the objects that are in the file.

    Half a line at the end (the power went, the disk was full) is cut off, with a DiffDRRWarning. Raises ReadError where
    an earlier line is damaged or stands there twice, DiffDRRError where the file cannot be written. Two processes must
    not write at once: `files.locked` keeps them apart.
    """

    def __init__(self, path: str | Path, required: Iterable[str] = (), what: str = "case", unique: str | None = None):
        self._path, self._what = Path(path), what
        self._size, self.done = 0, []
        if self._path.exists():
            self.done, self._size = _complete(self._path, frozenset(required), unique)
        try:
            self._file = self._path.open("ab", buffering=0)
            if self._file.tell() > self._size:
                message = f"The last line of '{self._path}' was not written to its end: that {what} runs again."
                warnings.warn(message, DiffDRRWarning, stacklevel=2)
                self._cut()
        except OSError as error:
            raise self._failure(error) from error

    def append(self, record: dict[str, Any]) -> None:
        """Write one object and wait until it is on the disk.

        Raises DiffDRRError where that fails; those before stay readable.
        """
        line = json.dumps(finite(record), allow_nan=False).encode() + b"\n"
        try:
            self._write(line)
        except OSError as error:
            with suppress(OSError):  # else half a line stays, which the next run cuts off
                self._cut()
            raise self._failure(error) from error
        self._size += len(line)
        self.done.append(json.loads(line))

    def keep(self, wanted: Callable[[dict[str, Any]], bool]) -> int:
        """Drop the objects for which `wanted` is false; how many there were."""
        kept = [record for record in self.done if wanted(record)]
        dropped = len(self.done) - len(kept)
        if dropped:
            self._file.close()
            with replacing(self._path) as temporary:
                temporary.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
            self.done, self._size = kept, self._path.stat().st_size
            self._file = self._path.open("ab", buffering=0)
        return dropped

    def __enter__(self) -> JsonLines:
        return self

    def __exit__(self, *exception) -> None:
        self._file.close()

    def _write(self, line: bytes) -> None:
        """All of it: a disk that is nearly full takes a part."""
        while line:
            line = line[self._file.write(line) :]
        os.fsync(self._file.fileno())

    def _cut(self) -> None:
        self._file.truncate(self._size)
        os.fsync(self._file.fileno())

    def _failure(self, error: OSError) -> DiffDRRError:
        reason = "the disk is full" if error.errno == errno.ENOSPC else error.strerror or str(error)
        kept = f"the {len(self.done)} finished {self._what}s are kept, and the same run goes on from there"
        return DiffDRRError(f"Cannot write '{self._path}': {reason}; {kept}.")


def _complete(path: Path, required: frozenset[str], unique: str | None) -> tuple[list[dict[str, Any]], int]:
    """The objects of all whole lines, and how many bytes these are."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ReadError(f"Cannot read '{path}': {error.strerror or error}.") from error
    *lines, _ = content.split(b"\n")
    records, size = [], 0
    for number, line in enumerate(lines, start=1):
        record = _record(line, required)
        if record is None and number == len(lines):
            break  # the disk may have kept the end of a line and not its middle
        if record is None:
            raise ReadError(f"Line {number} of '{path}' is damaged: delete it, and what it stood for is made again.")
        records.append(record)
        size += len(line) + 1
    if unique is not None:
        _check_unique(path, [record[unique] for record in records], unique)
    return records, size


def _check_unique(path: Path, values: list[Any], key: str) -> None:
    places: dict[str, int] = {}
    for number, value in enumerate(values, start=1):
        first = places.setdefault(repr(value), number)
        if first != number:
            raise ReadError(
                f"Lines {first} and {number} of '{path}' are both of {key} {value!r}: two runs wrote there at once; "
                "delete one of the lines."
            )


def _record(line: bytes, required: frozenset[str]) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and required <= set(record) else None
