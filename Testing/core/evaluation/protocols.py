"""A protocol whose cases take tenths of a second, and solvers that worker processes can import."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from DiffDRRCore.errors import RegistrationError
from DiffDRRCore.evaluation.running.records import NAME
from DiffDRRCore.geometry import Pose
from DiffDRRCore.geometry.pose import stack_poses


def small(**changes: Any) -> dict[str, Any]:
    """Two views of a coarse phantom, two starts each."""
    simulated = {"shape": [48, 36, 42], "spacing": 8.0, "views": [{"name": "ap"}, {"name": "lat", "primary": 90}]}
    method = {"options": {"sizes": [16, 32], "max_steps": 15, "search": 0}}
    content = {
        "dataset": {"simulated": {**simulated, "size": 32, "oversampling": 1}},
        "starts": {"kind": "sampled", "count": 2, "degrees": 3},
        "method": method,
    }
    return content | changes


def timeless(records: Iterable[dict]) -> list[dict]:
    """Without what is another in each run."""
    return [{name: value for name, value in record.items() if name not in ("seconds", "run")} for record in records]


def lines_of(folder: Path) -> list[str]:
    """Of cases.jsonl."""
    return (folder / NAME).read_text().splitlines()


@dataclass
class Answer:
    """As little as a solver may give back."""

    poses: Pose
    reason: str = ""


def stay(volume, xrays, starts, options) -> Answer:
    """The start is the answer; the reason tells the threads of the process."""
    variables = [os.environ.get(name, "") for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")]
    return Answer(stack_poses(starts), " ".join([str(torch.get_num_threads()), *variables]))


def stay_slowly(volume, xrays, starts, options) -> Answer:
    """As `stay`, a tenth of a second later."""
    time.sleep(0.1)
    return stay(volume, xrays, starts, options)


def fail_once_each_way(volume, xrays, starts, options) -> Answer:
    """Far starts fail with our own error, near ones with another."""
    if float(starts[0].translation[1]) < -850:
        raise RegistrationError("Nothing  to\nsee.")
    raise ZeroDivisionError("by nothing")


def die_at_the_second_view(volume, xrays, starts, options) -> Answer:
    """A process that is killed."""
    if abs(float(starts[0].translation[0])) > 400:
        time.sleep(0.5)  # until the records of the others are through
        os._exit(1)
    return stay(volume, xrays, starts, options)
