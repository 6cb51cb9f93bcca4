"""Ending a training between two steps: Ctrl-C, SIGTERM, or a file in its folder, which works on every system."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from DiffDRRCore.learning.training.run_files import STOP


class Stopper:
    """Whether a training is to end after its step."""

    def __init__(self, folder: Path):
        self._file, self._asked = folder / STOP, False

    @property
    def asked(self) -> bool:
        """Whether somebody asked for it; the file that says so is removed."""
        if self._file.exists():
            self._asked = True
            self.forget()
        return self._asked

    def ask(self) -> None:
        """End after the step."""
        self._asked = True

    def forget(self) -> None:
        """Remove a file that an earlier run was to be stopped by."""
        with suppress(OSError):
            self._file.unlink(missing_ok=True)


def request_stop(folder: str | Path) -> None:
    """Ask the training in `folder` to end after its step, from any process. Raises OSError where that fails."""
    (Path(folder) / STOP).touch()


@contextmanager
def stopping_on_signals(stopper: Stopper) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM ends the training after its step, the second one at once.

    Only the main thread can say so; elsewhere signals are left as they are.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number, frame):
        if stopper._asked:
            raise KeyboardInterrupt
        stopper.ask()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
