"""Networks that find the pose of an X-ray, trained on simulated images of the CT.

    train(TrainingOptions.read("training.yaml"), "run")
    model = PoseModel.read("run/model.safetensors")
    result = register(volume, xray, initial=model)

data        CTs as subjects, and the views that are drawn of them
appearance  what their images look like
network     the network, what it answers, its losses and its file
training    the loop, its options, and the files that it leaves
inference   a trained network at an X-ray

The names below load on first use.
"""

from __future__ import annotations

from DiffDRRCore.lazy import lazy

_HOMES = {
    "data.subjects": ("Subject",),
    "data.views": ("ViewSampler", "Views"),
    "appearance.appearance": ("Appearance",),
    "appearance.augmentation": ("Augmentation",),
    "network.targets": ("Target",),
    "network.pose_net": ("Architecture", "PoseNet"),
    "network.losses": ("LossWeights",),
    "network.model_file": ("read_description", "read_model", "write_model"),
    "training.options": ("TrainingOptions",),
    "training.training": ("Training", "TrainingStep", "train"),
    "training.finetuning": ("finetuning_options",),
    "training.stopping": ("request_stop",),
    "inference.pose_model": ("PoseModel",),
}

__all__, __getattr__, __dir__ = lazy(__name__, _HOMES)
