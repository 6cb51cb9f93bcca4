"""Train a network that there is on another CT: from one of many patients to one for this patient, in minutes.

Camera, views, appearance and network are those of the model; what is given here wins. By default it takes 300 steps
with a learning rate of 0.0003, and looks at the held-out views every 50. A model of many CTs in the frame of a template
needs the patient's --warps to it. Angles are in degrees, lengths in mm.

Example:
  python -m DiffDRRCore finetune pelvis.safetensors ct.nii.gz --output run --steps 300
"""

from __future__ import annotations

import argparse
from pathlib import Path

from DiffDRRCore.cli import training


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `finetune`."""
    parser.add_argument("model", type=Path, help="network of `train` (.safetensors)")
    training.add_cts(parser)
    training.add_views(parser)
    training.add_learning(parser)
    training.add_output(parser)


def run(options: argparse.Namespace) -> int:
    """Take the model's options, train, report."""
    training.check(options)
    training.check_there(options.model)
    from DiffDRRCore.learning import finetuning_options

    given = {**training.given_cts(options), **training.given_views(options), **training.given_learning(options)}
    changes = {name: value for name, value in given.items() if value is not None}
    chosen = finetuning_options(options.model, changes).relative_to(Path())
    return training.run(chosen, options.output, options.json)
