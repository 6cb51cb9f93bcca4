"""Go on with a training that was stopped, as if it had not been: from its last checkpoint.

The folder keeps the options, ranges in degrees and mm among them; they stay as they are.

Example:
  python -m DiffDRRCore restart run
"""

from __future__ import annotations

import argparse
from pathlib import Path

from DiffDRRCore.cli import arguments, training
from DiffDRRCore.errors import DiffDRRError
from DiffDRRCore.learning.training.run_files import CHECKPOINT, LOG, MODEL, OPTIONS, STATE

RUN_FILES = (OPTIONS, LOG, STATE, CHECKPOINT, MODEL)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `restart`."""
    parser.add_argument("folder", type=Path, help="of the run: --output of `train`; or a file in it")
    parser.add_argument(
        "--steps",
        type=int,
        help="in all; default: as before. The learning rate's schedule is planned anew for so many: it "
        "goes back up to what it is at this step of the longer one, and falls to zero at the new end",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: as before")
    parser.add_argument("--threads", type=int, help="of the CPU; default: as before")
    arguments.add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Go on, report."""
    folder = run_folder(options.folder)
    changes = {name: getattr(options, name) for name in ("steps", "device", "threads")}
    given = {name: value for name, value in changes.items() if value is not None}
    return training.run(None, folder, options.json, **given)


def run_folder(path: Path) -> Path:
    """The folder of a run, of it or of a file in it. Raises DiffDRRError for what is none."""
    if not path.exists():
        raise DiffDRRError(f"There is no folder '{path}'.")
    folder = path.parent if path.is_file() and path.name in RUN_FILES else path
    if not folder.is_dir() or not (folder / OPTIONS).exists():
        raise DiffDRRError(f"'{path}' is no training: give the folder that `train` wrote (its --output).")
    return folder
