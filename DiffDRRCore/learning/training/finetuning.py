"""Going on from a trained network with another CT."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from DiffDRRCore.errors import LearningError
from DiffDRRCore.learning.network.model_file import read_model
from DiffDRRCore.learning.training.options import TrainingOptions

DEFAULTS = {"steps": 300, "warmup": None, "learning_rate": 3e-4, "validate_every": 50, "checkpoint_every": 50}


def finetuning_options(model: str | Path, changes: Mapping[str, Any]) -> TrainingOptions:
    """The options that a model was trained with, with other CTs, and starting from it.

    Args:
        model: file of the network.
        changes: fields of `TrainingOptions`, the CTs and what belongs to them among them. What is neither here nor in
            DEFAULTS is as in the model's own training.

    Raises LearningError where the file does not tell its options, where there is no CT, and for a model in the frame of
    a template without the patient's warp to it.
    """
    _, description = read_model(model)
    trained = description.get("trained")
    own = trained.get("options") if isinstance(trained, Mapping) else None
    if not isinstance(own, Mapping):
        raise LearningError(f"The network '{model}' does not say how it was trained: train a new one.")
    if not changes.get("cts"):
        raise LearningError("Fine-tuning needs the patient's CT.")
    frame = description.get("frame") or {}
    if frame.get("kind") == "template" and not changes.get("warps"):
        raise LearningError(
            f"The network '{model}' finds poses in the frame of a template: give the rigid transform from this CT to "
            "it (--warps)."
        )
    return TrainingOptions.from_dict({**own, **DEFAULTS, **changes, "initial": str(model)})
