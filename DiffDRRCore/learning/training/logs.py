"""What a training says of itself: a table of its steps, its state for whoever watches, TensorBoard and wandb."""

from __future__ import annotations

import csv
import json
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from DiffDRRCore.errors import DiffDRRError, LearningError
from DiffDRRCore.files import finite, replacing
from DiffDRRCore.learning.training.run_files import EVENTS, LOG, STATE

_TRIES, _PAUSE = 4, 0.05  # seconds


class Log:
    """log.csv: a row for each step. What a resumed training makes again is cut off first.

    Args:
        folder: of the run.
        columns: names; the first is "step".
        step: rows of this step and later ones are dropped.

    Raises DiffDRRError where the file cannot be read or written.
    """

    def __init__(self, folder: Path, columns: Sequence[str], step: int = 0):
        self._path, self._columns = folder / LOG, list(columns)
        try:
            rows = [row for row in self._rows() if row["step"].isdigit() and int(row["step"]) <= step] if step else []
            with replacing(self._path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, self._columns, restval="", extrasaction="ignore")
                writer.writeheader()
                writer.writerows(rows)
            self._file = self._path.open("a", newline="", encoding="utf-8")
        except OSError as error:
            raise DiffDRRError(f"Cannot write '{self._path}': {error.strerror or error}.") from error
        self._writer = csv.DictWriter(self._file, self._columns, restval="")

    def _rows(self) -> list[dict[str, str]]:
        return read_log(self._path.parent) if self._path.exists() else []

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row, which others can read at once."""
        shown = {name: f"{value:.6g}" if isinstance(value, float) else value for name, value in row.items()}
        try:
            self._writer.writerow(shown)
            self._file.flush()
        except OSError as error:
            raise DiffDRRError(f"Cannot write '{self._path}': {error.strerror or error}.") from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_log(folder: Path) -> list[dict[str, str]]:
    """The rows of log.csv; half a last one is left out. Raises DiffDRRError where there is none."""
    try:
        with (folder / LOG).open(newline="", encoding="utf-8") as file:
            return [row for row in csv.DictReader(file) if row.get("step") and None not in row.values()]
    except OSError as error:
        raise DiffDRRError(f"Cannot read '{folder / LOG}': {error.strerror or error}.") from error


def write_state(folder: Path, **state) -> None:
    """state.json: how it stands, for whoever watches; with the process and the time."""
    content = finite({**state, "pid": os.getpid(), "updated": time.time()})
    for tries_left in reversed(range(_TRIES)):
        try:
            with replacing(folder / STATE) as temporary:
                temporary.write_text(json.dumps(content, indent=1, allow_nan=False), encoding="utf-8")
            return
        except DiffDRRError:  # on Windows, a file that somebody reads just now cannot be replaced
            if not tries_left:
                raise
            time.sleep(_PAUSE)


def read_state(folder: str | Path) -> dict[str, Any] | None:
    """What state.json says; None where there is none, or where it is replaced just now.

    Raises LearningError where it is damaged.
    """
    path = Path(folder) / STATE
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(state, dict) or "status" not in state:
            raise ValueError("it has no status")
    except (FileNotFoundError, PermissionError):  # the latter on Windows, while it is replaced
        return None
    except (OSError, ValueError) as error:
        raise LearningError(f"'{path}' is damaged: {error}.") from error
    return state


class Events:
    """TensorBoard's events, and a run of wandb, where they are asked for.

    Raises LearningError where the package is missing.
    """

    def __init__(self, folder: Path, tensorboard: bool, wandb: str | None, options: Mapping[str, Any], step: int):
        self._writer, self._run = None, None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise LearningError(
                    "TensorBoard is not installed: pip install tensorboard, or leave it out."
                ) from error
            self._writer = SummaryWriter(folder / EVENTS, purge_step=step + 1)
        if wandb is not None:
            try:
                import wandb as service
            except ImportError as error:
                raise LearningError("wandb is not installed: pip install wandb, or leave it out.") from error
            self._run = service.init(project=wandb, dir=str(folder), config=dict(options), resume="allow")

    def append(self, step: int, row: Mapping[str, float]) -> None:
        """Add the numbers of a step. Raises DiffDRRError where that fails."""
        try:
            if self._writer is not None:
                for name, value in row.items():
                    self._writer.add_scalar(name, value, step)
            if self._run is not None:
                self._run.log(dict(row), step=step)
        except OSError as error:
            raise DiffDRRError(f"Cannot write the events of the training: {error.strerror or error}.") from error

    def close(self) -> None:
        """Write what is left, as far as that works."""
        with suppress(OSError):
            if self._writer is not None:
                self._writer.close()
            if self._run is not None:
                self._run.finish()
