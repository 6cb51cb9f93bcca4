"""cases.jsonl: one JSON object a line, one line a case, each on the disk before the next case counts as done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from DiffDRRCore.json_lines import JsonLines, read_lines

NAME = "cases.jsonl"
_REQUIRED = ("case", "failure")


def read_records(folder: str | Path) -> list[dict[str, Any]]:
    """The cases of a run's folder, in the order in which they were finished; half a last line is left out.

    Raises ReadError where there are none, where a line is damaged, or where a case stands there twice.
    """
    return read_lines(Path(folder) / NAME, _REQUIRED, unique="case")


def open_records(folder: str | Path) -> JsonLines:
    """The file to append to: a context. Raises as `JsonLines`."""
    return JsonLines(Path(folder) / NAME, _REQUIRED, unique="case")
