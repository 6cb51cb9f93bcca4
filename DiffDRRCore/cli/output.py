"""What commands print: a table for people, one JSON object for scripts."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterable

from tqdm import tqdm

EVERY = 10.0  # seconds between lines where there is no terminal for a bar


def report(values: dict, as_json: bool, text: Iterable[str] = ()) -> None:
    """Print `values` as JSON, or the lines of `text`."""
    print(json.dumps(_plain(values), indent=1)) if as_json else print("\n".join(text))


def table(head: list[str], rows: list[list]) -> list[str]:
    """Lines of a table with aligned columns; floats with three decimals."""
    cells = [head, *([f"{x:.3f}" if isinstance(x, float) else str(x) for x in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return [lines[0], "  ".join("-" * width for width in widths), *lines[1:]]


def shown(items: Iterable, total: int, what: str, unit: str, quiet: bool) -> Iterable:
    """The items, with a progress bar on standard error as they are taken; without a terminal, a line now and then."""
    if not quiet and not sys.stderr.isatty():
        return _told(items, total, what, unit)
    return tqdm(items, desc=what, unit=f" {unit}", total=total, file=sys.stderr, disable=quiet)


def _told(items: Iterable, total: int, what: str, unit: str) -> Iterable:
    told = time.monotonic()
    for done, item in enumerate(items):
        if time.monotonic() - told >= EVERY:
            told = time.monotonic()
            print(f"{what}: {done} of {total} {unit}", file=sys.stderr, flush=True)
        yield item


class StepBar:
    """A progress bar of a registration on standard error; use it as the `progress` of `register`."""

    def __init__(self, quiet: bool):
        self._bar = tqdm(desc="register", unit=" steps", file=sys.stderr, disable=quiet or None)

    def __call__(self, step) -> None:
        """Show one step."""
        self._bar.set_postfix_str(
            f"level {step.level + 1}/{step.levels} ({step.size[0]} x {step.size[1]}), similarity {step.similarity:.4f}"
        )
        self._bar.update()

    def __enter__(self) -> StepBar:
        return self

    def __exit__(self, *exception) -> None:
        self._bar.close()


class SearchBar:
    """A progress bar of a `GlobalSearch` on standard error."""

    def __init__(self, quiet: bool):
        self._bar = tqdm(desc="search", file=sys.stderr, disable=quiet or None, bar_format="{desc} {percentage:.0f} %")

    def following(self, work):
        """What the search returns, its steps shown as they come."""
        while True:
            try:
                step = next(work)
            except StopIteration as end:
                return end.value
            self._bar.set_description_str(f"{step.doing}, similarity {step.similarity:.3f}", refresh=False)
            self._bar.total, self._bar.n = step.total, step.done
            self._bar.update(0)

    def __enter__(self) -> SearchBar:
        return self

    def __exit__(self, *exception) -> None:
        self._bar.close()


class CountBar:
    """A progress bar of many items on standard error, with the time left: `progress` of evaluations and training sets.

    Args:
        what: the work ("evaluate").  unit: its items ("cases").
    """

    def __init__(self, what: str, unit: str, quiet: bool):
        self._what, self._unit, self._quiet = what, unit, quiet
        self._bar, self._failed = None, 0

    def __call__(self, finished: int, total: int, record: dict | None) -> None:
        """Show one item; what an earlier run finished has no part in the time left."""
        if self._bar is None:
            options = {"initial": finished, "total": total, "file": sys.stderr, "disable": self._quiet or None}
            self._bar = tqdm(desc=self._what, unit=f" {self._unit}", **options)
        if record is None:
            return
        if record["failure"] is not None:
            self._failed += 1
            self._bar.set_postfix_str(f"{self._failed} failed")
        self._bar.update(finished - self._bar.n)

    def __enter__(self) -> CountBar:
        return self

    def __exit__(self, *exception) -> None:
        if self._bar is not None:
            self._bar.close()


def _plain(value):
    """NaN and infinity have no place in JSON: null."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
