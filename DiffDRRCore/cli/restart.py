"""Go on with a training that was stopped, as if it had not been: from its last checkpoint.

The folder keeps the options, ranges in degrees and mm among them; they stay as they are.

Example:
  python -m DiffDRRCore restart run
"""

from __future__ import annotations

import argparse
from pathlib import Path

from DiffDRRCore.cli import arguments, training


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `restart`."""
    parser.add_argument("folder", type=Path, help="of the run")
    parser.add_argument("--steps", type=int, help="in all; default: as before")
    arguments.add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Go on, report."""
    return training.run(None, options.folder, options.json, options.steps)
