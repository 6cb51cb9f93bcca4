"""How a training tells where it is, on standard error: a bar in a terminal, plain lines in a file."""

from __future__ import annotations

import os
import sys
import time

from tqdm import tqdm

from DiffDRRCore.cli.output import EVERY


class TrainingBar:
    """The `progress` of `train`: steps, loss, the last look at the held-out views, and the time left."""

    def __init__(self, quiet: bool):
        self._quiet = quiet or os.environ.get("RANK", "0") != "0"  # torchrun: one process speaks
        self._bar, self._errors, self._told = None, "", 0.0

    def __call__(self, step) -> None:
        """Show one step."""
        if self._quiet:
            return
        if step.validation is not None:
            self._errors = f", held out {step.validation.mm:.1f} mm {step.validation.degrees:.1f} deg"
        if sys.stderr.isatty():
            self._draw(step)
        elif step.validation is not None or step.step == step.steps or time.monotonic() - self._told >= EVERY:
            self._told = time.monotonic()
            left = "" if step.seconds_left is None else f", {_duration(step.seconds_left)} left"
            self._say(f"step {step.step} of {step.steps}, loss {step.loss:.3f}{self._errors}{left}")

    def _draw(self, step) -> None:
        if self._bar is None:
            self._bar = tqdm(
                desc="train", unit=" steps", initial=step.step - 1, total=step.steps, file=sys.stderr, leave=True
            )
        self._bar.set_postfix_str(f"loss {step.loss:.3f}{self._errors}")
        self._bar.update(step.step - self._bar.n)

    @staticmethod
    def _say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    def __enter__(self) -> TrainingBar:
        if not self._quiet:
            self._say("reading the CT")
        return self

    def __exit__(self, *exception) -> None:
        if self._bar is not None:
            self._bar.close()


def _duration(seconds: float) -> str:
    """In the unit that fits: 40 s, 4 min, 1 h 5 min."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
