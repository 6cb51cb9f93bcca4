"""Everything that a training is told, as plain values: a JSON or YAML file, the command line, a run's own record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from DiffDRRCore import values
from DiffDRRCore.errors import LearningError
from DiffDRRCore.learning.network.losses import LossWeights
from DiffDRRCore.learning.network.pose_net import BACKBONES
from DiffDRRCore.learning.training.run_files import FORMAT
from DiffDRRCore.values import Key, read_values

_WARMUP = 50
PRECISIONS = ("float32", "bfloat16")

_POSITIVE, _SHARE = values.number(above=0), values.number(least=0)
_OF_PATIENTS = (
    *("cts", "labelmaps", "label_names", "labels", "warps", "invert_warps", "isocenter", "ct_weights", "around"),
    *("initial", "wandb"),
)
_CHECKS = {
    "cts": values.several(values.text),
    "labelmaps": values.several(values.text, least=0),
    "label_names": values.optional(values.text),
    "labels": values.optional(values.several(values.either(values.text, values.whole()))),
    "warps": values.several(values.text, least=0),
    "invert_warps": values.flag,
    "isocenter": values.optional(values.several(values.number(), count=3)),
    "ct_weights": values.each(_SHARE),
    "crop_mm": values.optional(values.several(_POSITIVE, count=3)),
    "camera": values.anything,
    "views": values.anything,
    "around": values.optional(values.anything),
    "least_covered": _SHARE,
    "appearance": values.anything,
    "augmentation": values.each(_SHARE),
    "backbone": values.choice(*BACKBONES),
    "parameterization": values.text,
    "convention": values.optional(values.text),
    "losses": values.each(_SHARE),
    "steps": values.whole(1),
    "batch": values.whole(1),
    "accumulate": values.whole(1),
    "learning_rate": _POSITIVE,
    "warmup": values.optional(values.whole(0)),
    "clip": _SHARE,
    "ema": values.number(least=0),
    "precision": values.choice(*PRECISIONS),
    "compile": values.flag,
    "validate_every": values.whole(1),
    "validation_views": values.whole(1),
    "patience": values.optional(values.whole(1)),
    "checkpoint_every": values.whole(1),
    "seed": values.whole(0),
    "device": values.text,
    "threads": values.optional(values.whole(1)),
    "initial": values.optional(values.text),
    "tensorboard": values.flag,
    "wandb": values.optional(values.text),
}


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """What is trained, on what, and how long. Lengths in mm, angles in degrees, times in optimiser steps.

    Attributes:
        cts: CT files, DICOM folders, or one folder of CTs.
        labelmaps: files, or one folder; a CT's own is found by its name. label_names: their CSV file.
        labels: structures (numbers or names) for the Dice loss and for what a view must show; None is all of them.
        warps: files of rigid transforms (ITK), or one folder, found by the CT's name: from the patient's points to the
            template's, or, with invert_warps, back. None: each CT is its own template.
        isocenter: RAS mm that the C-arm looks at and the model's frame begins at; None is the CT's centre.
        ct_weights: {CT's name: how often it is taken}, 1 by default.
        crop_mm: size (R, A, S) of random parts of a CT, as scans with a smaller field of view have; None is all of it.
        camera: as in a JSON camera; its height and width are what the network sees.
        views: ranges of the C-arm (`data.views`).  around: camera_to_world [4][4] that they lie about, or None.
        least_covered: share of the pixels that a view must show of the anatomy.
        appearance: ranges of the simulator (`appearance.appearance`).
        augmentation: {name: probability} (`appearance.augmentation`).
        backbone, parameterization, convention: of the network (`network.pose_net`); rotations as of `Pose`.
        losses: {name: weight}; those left out have the weights of `network.losses.LossWeights`. "ncc" and "dice" render
            the CT at each step: on a CPU, ncc 0 saves a tenth to a quarter of its time.
        steps: of the optimiser, each of `accumulate` batches of `batch` views (on each of the processes).
        learning_rate: after `warmup` steps (None: 50, or a tenth of all); it falls to zero by a half cosine.
        clip: largest norm of the gradient; 0 is no limit.  ema: of the weights' moving average, from step to step.
        precision: "float32" or "bfloat16" (autocast).  compile: whether to use torch.compile.
        validate_every, validation_views, patience: steps between, number of views, and validations without progress
            after which training ends; None is never.
        checkpoint_every: steps.
        seed: of everything random.  device: "cpu", "cuda".  threads: None is what there are.
        initial: a model file to start from (fine-tuning).
        tensorboard: whether to write its events.  wandb: a project there, or None.

    Raises LearningError for values that cannot be.
    """

    cts: tuple[str, ...]
    camera: Mapping[str, Any]
    views: Mapping[str, Any]
    around: Any = None
    labelmaps: tuple[str, ...] = ()
    label_names: str | None = None
    labels: tuple[int | str, ...] | None = None
    warps: tuple[str, ...] = ()
    invert_warps: bool = False
    isocenter: tuple[float, float, float] | None = None
    ct_weights: Mapping[str, float] = field(default_factory=dict)
    crop_mm: tuple[float, float, float] | None = None
    least_covered: float = 0.1
    appearance: Mapping[str, Any] = field(default_factory=dict)
    augmentation: Mapping[str, float] = field(default_factory=dict)
    backbone: str = "resnet18"
    parameterization: str = "quaternion_adjugate"
    convention: str | None = None
    losses: Mapping[str, float] = field(default_factory=dict)
    steps: int = 1000
    batch: int = 16
    accumulate: int = 1
    learning_rate: float = 1e-3
    warmup: int | None = None
    clip: float = 1.0
    ema: float = 0.99
    precision: str = "float32"
    compile: bool = False
    validate_every: int = 100
    validation_views: int = 64
    patience: int | None = None
    checkpoint_every: int = 100
    seed: int = 0
    device: str = "cpu"
    threads: int | None = None
    initial: str | None = None
    tensorboard: bool = False
    wandb: str | None = None

    def __post_init__(self):
        known = [one.name for one in fields(LossWeights)]
        for name in self.losses:
            if name not in known:
                raise values.unknown("losses", name, known)
        LossWeights(**self.losses)  # raises for what is wrong
        if self.around is not None and len(self.cts) > 1 and not self.warps:
            raise LearningError("Views about one pose are of one CT; several CTs need warps to a template.")
        if not 0 <= self.ema < 1:
            raise LearningError(f"ema, the weight of the past in the moving average, is from 0 to below 1: {self.ema}.")
        if self.warmup is None:
            object.__setattr__(self, "warmup", min(_WARMUP, self.steps // 10))
        if self.warmup >= self.steps:
            raise LearningError(f"The warm-up takes {self.warmup} steps (warmup) of {self.steps}: it must take fewer.")

    @property
    def weights(self) -> LossWeights:
        """The weight of each loss."""
        return LossWeights(**self.losses)

    @classmethod
    def from_dict(cls, content: Any) -> TrainingOptions:
        """Of plain values. Raises DiffDRRError that names the place of what is wrong."""
        checked = values.section("", content, _keys())
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in checked.items()})

    @classmethod
    def read(cls, path: str | Path) -> TrainingOptions:
        """Of a .json or .yaml file; paths in it are relative to its folder. Raises ReadError, LearningError."""
        content = read_values(path)
        if isinstance(content, dict) and content.get("format") == FORMAT:  # of a run
            content = {name: value for name, value in content.items() if name not in ("format", "version")}
        return cls.from_dict(content).relative_to(Path(path).parent)

    def relative_to(self, folder: Path) -> TrainingOptions:
        """With absolute paths, those of relative ones from `folder`."""

        def whole(name: str) -> str:
            return str((folder / name).resolve())

        several = {name: tuple(map(whole, getattr(self, name))) for name in ("cts", "labelmaps", "warps")}
        single = {name: getattr(self, name) for name in ("label_names", "initial")}
        return replace(self, **several, **{name: path and whole(path) for name, path in single.items()})

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold."""
        return asdict(self)

    def without_patients(self) -> dict[str, Any]:
        """Plain values without files, whose names may tell whose they are: what a model keeps."""
        return {name: value for name, value in self.to_dict().items() if name not in _OF_PATIENTS}

    def changed(self, **changes) -> TrainingOptions:
        """With other values. Raises LearningError for names that there are not."""
        known = [one.name for one in fields(self)]
        for name in changes:
            if name not in known:
                raise values.unknown("training", name, known)
        return replace(self, **changes)


def _keys() -> dict[str, Key]:
    """What each field may hold, and its default."""
    return {one.name: Key(_CHECKS[one.name], _default(one)) for one in fields(TrainingOptions)}


def _default(one: Field) -> Any:
    if one.default_factory is not MISSING:
        return one.default_factory()
    return values.REQUIRED if one.default is MISSING else one.default
