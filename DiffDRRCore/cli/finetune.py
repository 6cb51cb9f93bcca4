"""Train a network that there is on another CT: from one of many patients to one for this patient, in minutes.

Camera, views, appearance and network are those of the model; what is given here wins. A model of many CTs in the frame
of a template needs the patient's --warp to it.

Example:
  python -m DiffDRRCore finetune pelvis.safetensors ct.nii.gz --output run --steps 300
"""

from __future__ import annotations

import argparse
from pathlib import Path

from DiffDRRCore.cli import training

_DEFAULTS = {"steps": 300, "warmup": 10, "learning_rate": 3e-4, "validate_every": 50, "checkpoint_every": 50}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `finetune`."""
    parser.add_argument("model", type=Path, help="network of `train` (.safetensors)")
    training.add_cts(parser)
    training.add_views(parser)
    training.add_learning(parser)
    training.add_output(parser)
    parser.epilog = "Where left out: " + ", ".join(f"{name} {value:g}" for name, value in _DEFAULTS.items()) + "."


def run(options: argparse.Namespace) -> int:
    """Take the model's options, train, report."""
    from DiffDRRCore.learning.finetuning import finetuning_options

    given = {**training.given_cts(options), **training.given_views(options), **training.given_learning(options)}
    changes = _DEFAULTS | {name: value for name, value in given.items() if value is not None}
    chosen = finetuning_options(options.model, changes).relative_to(Path())
    return training.run(chosen, options.output, options.json)
