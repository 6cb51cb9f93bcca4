"""Surfaces in VTK's legacy files (vtk.org, "VTK File Formats"): polydata, ASCII and binary, versions 1 to 5.1."""

from __future__ import annotations

import re

import numpy as np

_TYPES = {
    "char": "i1",
    "unsigned_char": "u1",
    "short": "i2",
    "unsigned_short": "u2",
    "int": "i4",
    "unsigned_int": "u4",
    "vtkidtype": "i4",
    "long": "i8",
    "unsigned_long": "u8",
    "vtktypeint64": "i8",
    "float": "f4",
    "double": "f8",
}
_CELLS = ("VERTICES", "LINES", "POLYGONS", "TRIANGLE_STRIPS")
_WORD = re.compile(rb"\s*(\S+)")


class _Tape:
    """The words and numbers of a file, one after the other."""

    def __init__(self, data: bytes, binary: bool):
        self._data, self._binary, self._at = data, binary, 0

    def word(self) -> str:
        """The next word; empty at the end."""
        found = _WORD.match(self._data, self._at)
        if found is None:
            return ""
        self._at = found.end()
        return found[1].decode("latin-1")

    def whole(self) -> int:
        return int(self.word())

    def numbers(self, count: int, kind: str) -> np.ndarray:
        dtype = np.dtype(_TYPES[kind.lower()])
        if self._binary:
            begin = self._data.index(b"\n", self._at) + 1
            self._at = begin + count * dtype.itemsize
            return np.frombuffer(self._data, dtype.newbyteorder(">"), count, begin).astype(dtype)
        words = self._data[self._at :].split(None, count)
        self._at = len(self._data) - (len(words[count]) if len(words) > count else 0)
        if len(words) < count:
            raise ValueError("it ends early")
        return np.array(words[:count], np.float64 if dtype.kind == "f" else np.int64)


def read_vtk(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """(vertices [V, 3] float64, triangles [M, 3] int64) of a polydata file; polygons are cut into fans.

    Raises ValueError, with the end of a sentence about the file, where it is none or is damaged.
    """
    lines = data.split(b"\n", 3)
    if len(lines) < 4 or not lines[0].startswith(b"# vtk DataFile Version"):
        raise ValueError("it is not a legacy VTK file")
    modern = float(lines[0].split()[-1]) >= 5
    tape = _Tape(lines[3], lines[2].strip().upper() == b"BINARY")
    if (tape.word().upper(), tape.word().upper()) != ("DATASET", "POLYDATA"):
        raise ValueError("it holds no surface (POLYDATA)")
    points, triangles = np.zeros((0, 3)), [np.zeros((0, 3), np.int64)]
    while (word := tape.word().upper()) not in ("", "POINT_DATA", "CELL_DATA"):
        if word == "FIELD":
            _skip_field(tape)
        elif word == "POINTS":
            points = tape.numbers(3 * tape.whole(), tape.word()).reshape(-1, 3).astype(np.float64)
        elif word in _CELLS:
            begins, sizes, corners = _cells(tape, modern)
            if word in ("POLYGONS", "TRIANGLE_STRIPS"):
                triangles += _triangles(begins, sizes, corners, strips=word == "TRIANGLE_STRIPS")
    return points, np.concatenate(triangles)


def _skip_field(tape: _Tape) -> None:
    tape.word()
    for _ in range(tape.whole()):
        tape.word()
        tape.numbers(tape.whole() * tape.whole(), tape.word())


def _cells(tape: _Tape, modern: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where the corners of each cell begin, how many there are, and the corners of all."""
    first, second = tape.whole(), tape.whole()
    if not modern:
        numbers = tape.numbers(second, "int").astype(np.int64)
        begins = np.empty(first, np.int64)
        at = 0
        for cell in range(first):
            begins[cell] = at + 1
            at += int(numbers[at]) + 1
        return begins, numbers[begins - 1], numbers
    parts = []
    for name, count in (("OFFSETS", first), ("CONNECTIVITY", second)):
        if tape.word().upper() != name:
            raise ValueError(f"it has no {name.lower()} where they belong")
        parts.append(tape.numbers(count, tape.word()).astype(np.int64))
    return parts[0][:-1], np.diff(parts[0]), parts[1]


def _triangles(begins: np.ndarray, sizes: np.ndarray, corners: np.ndarray, strips: bool) -> list[np.ndarray]:
    """The triangles of polygons or of strips, the first of all, the second of all, ..."""
    result = []
    for k in range(int(sizes.max(initial=0)) - 2):
        at = begins[sizes >= k + 3]
        order = (0, k + 1, k + 2)
        if strips:
            order = (k, k + 1, k + 2) if k % 2 == 0 else (k + 1, k, k + 2)
        result.append(np.stack([corners[at + n] for n in order], axis=1))
    return result
