"""Typed look-up of DICOM attributes, per frame."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset

from DiffDRRCore.errors import ReadError
from DiffDRRCore.imaging.image_files import reading


class Header:
    """A DICOM header; attributes of enhanced multi-frame objects are found in their functional groups.

    Every look-up is None (or `default`) where the attribute is absent or empty, and raises ReadError where it is not
    what it must be.
    """

    def __init__(self, dataset: Dataset, path: Path, frame: int = 0):
        self.dataset, self.path, self.frame = dataset, path, frame

    def at(self, frame: int) -> Header:
        """The same header as it applies to a frame."""
        return Header(self.dataset, self.path, frame)

    def get(self, keyword: str) -> Any:
        """The raw value: of this frame's functional groups, the shared ones, or the header itself."""
        with reading(self.path):
            for group in self._functional_groups():
                for element in group:
                    if element.VR == "SQ" and element.value and keyword in element.value[0]:
                        return element.value[0].get(keyword)
            return self.dataset.get(keyword)

    def _functional_groups(self) -> Iterator[Dataset]:
        per_frame = self.dataset.get("PerFrameFunctionalGroupsSequence") or []
        if self.frame < len(per_frame):
            yield per_frame[self.frame]
        yield from (self.dataset.get("SharedFunctionalGroupsSequence") or [])[:1]

    def numbers(self, keyword: str) -> list[float] | None:
        """All values as finite floats."""
        value = self.get(keyword)
        if value is None or value == "":
            return None
        try:
            several = [value] if isinstance(value, (str, int, float)) or not hasattr(value, "__len__") else value
            numbers = [float(one) for one in several]
        except (TypeError, ValueError, OverflowError) as error:
            raise ReadError(f"'{self.path}': {keyword} is not a number.") from error
        if not all(math.isfinite(number) for number in numbers):
            raise ReadError(f"'{self.path}': {keyword} is not finite.")
        return numbers or None

    def number(self, keyword: str) -> float | None:
        """The first value."""
        numbers = self.numbers(keyword)
        return numbers[0] if numbers else None

    def positive(self, keyword: str) -> float | None:
        """The first value; zero counts as absent, which is how many devices write what they do not know."""
        return self.number(keyword) or None

    def pair(self, keyword: str) -> tuple[float, float] | None:
        """Two values; a pair of zeros counts as absent."""
        numbers = self.numbers(keyword)
        if not numbers or not any(numbers):
            return None
        if len(numbers) != 2:
            raise ReadError(f"'{self.path}': {keyword} must be two numbers, not {len(numbers)}.")
        return numbers[0], numbers[1]

    def integer(self, keyword: str, default: int | None = None) -> int:
        """A whole number. Raises ReadError where it is absent and there is no default."""
        number = self.number(keyword)
        if number is None:
            if default is None:
                raise ReadError(f"'{self.path}' has no {keyword}, so it is no DICOM image that can be read.")
            return default
        if number != int(number):
            raise ReadError(f"'{self.path}': {keyword} must be a whole number, not {number}.")
        return int(number)

    def text(self, keyword: str) -> str | None:
        """A single string, stripped."""
        value = self.get(keyword)
        return str(value).strip() or None if value is not None else None

    def words(self, keyword: str) -> list[str]:
        """All values as strings."""
        value = self.get(keyword)
        if value is None or isinstance(value, str):
            return [value] if value else []
        return [str(word).strip() for word in value] if hasattr(value, "__iter__") else [str(value)]
