"""cases.jsonl: one JSON object a line, one line a case, each on the disk before the next case counts as done."""

from __future__ import annotations

import errno
import json
import os
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

from DiffDRRCore.errors import DiffDRRError, DiffDRRWarning, ReadError
from DiffDRRCore.files import finite, replacing

NAME = "cases.jsonl"


def read_records(folder: str | Path) -> list[dict[str, Any]]:
    """The cases of a run's folder, in the order in which they were finished; half a last line is left out.

    Raises ReadError where there are none, or where a line is damaged.
    """
    records, _ = _complete(Path(folder) / NAME)
    return records


class Records:
    """The cases that are finished, in a folder that keeps them; use it as a context.

    Half a line at the end (the power went, the disk was full) is cut off, with a DiffDRRWarning. Raises ReadError where
    an earlier line is damaged, DiffDRRError where the file cannot be written.
    """

    def __init__(self, folder: str | Path):
        self._path = Path(folder) / NAME
        self._size, self.done = 0, []
        if self._path.exists():
            self.done, self._size = _complete(self._path)
        try:
            self._file = self._path.open("ab", buffering=0)
            if self._file.tell() > self._size:
                message = f"The last line of '{self._path}' was not written to its end: that case runs again."
                warnings.warn(message, DiffDRRWarning, stacklevel=2)
                self._cut()
        except OSError as error:
            raise self._failure(error) from error

    def append(self, record: dict[str, Any]) -> None:
        """Write one case and wait until it is on the disk.

        Raises DiffDRRError where that fails; the cases before stay readable.
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

    def drop_failed(self) -> int:
        """Forget the cases that failed, so that they run again; how many there were."""
        kept = [record for record in self.done if record["failure"] is None]
        dropped = len(self.done) - len(kept)
        if dropped:
            self._file.close()
            with replacing(self._path) as temporary:
                temporary.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
            self.done, self._size = kept, self._path.stat().st_size
            self._file = self._path.open("ab", buffering=0)
        return dropped

    def __enter__(self) -> Records:
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
        kept = f"the {len(self.done)} finished cases are kept, and the same run goes on from there"
        return DiffDRRError(f"Cannot write '{self._path}': {reason}; {kept}.")


def _complete(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The records of all whole lines, and how many bytes these are."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ReadError(f"Cannot read '{path}': {error.strerror or error}.") from error
    *lines, _ = content.split(b"\n")
    records, size = [], 0
    for number, line in enumerate(lines, start=1):
        record = _record(line)
        if record is None and number == len(lines):
            break  # the disk may have kept the end of a line and not its middle
        if record is None:
            raise ReadError(f"Line {number} of '{path}' is damaged: delete it, and its case runs again.")
        records.append(record)
        size += len(line) + 1
    return records, size


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and {"case", "failure"} <= set(record) else None
