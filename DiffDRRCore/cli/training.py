"""The arguments that `train`, `finetune` and `restart` share, and what they print."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from DiffDRRCore.cli import arguments, output
from DiffDRRCore.cli.training_progress import TrainingBar
from DiffDRRCore.errors import DiffDRRError
from DiffDRRCore.learning.training.run_files import MODEL

if TYPE_CHECKING:
    from DiffDRRCore.learning import Training, TrainingOptions

# As the library has them, which is not loaded for that.
BACKBONES = ("resnet10", "resnet18", "resnet34", "efficientnet-b0")
PARAMETERIZATIONS = (
    *("axis_angle", "quaternion", "quaternion_adjugate", "rotation_6d", "rotation_9d", "rotation_10d", "matrix"),
    "se3_log",
)
LOSSES = ("seen", "ncc", "geodesic", "dice", "consistency", "likelihood")
VIEW_RANGES = {  # name: (unit, help)
    "primary": ("DEG", "positioner primary angle, + LAO"),
    "secondary": ("DEG", "positioner secondary angle, + CRA"),
    "roll": ("DEG", "rotation about the beam"),
    "shift_r": ("MM", "of the isocentre to the patient's right"),
    "shift_a": ("MM", "of the isocentre to anterior"),
    "shift_s": ("MM", "of the isocentre to superior"),
    "sod": ("MM", "source to isocentre"),
    "sdd": ("MM", "source to detector; default: that of the camera"),
}
_LEARNING = ("steps", "batch", "accumulate", "learning_rate", "warmup", "precision", "compile", "seed", "threads")
_LEARNING += ("validate_every", "validation_views", "patience", "checkpoint_every", "tensorboard", "wandb", "device")


def add_cts(parser: argparse.ArgumentParser) -> None:
    """What is trained on."""
    group = parser.add_argument_group("CTs")
    group.add_argument("cts", nargs="*", metavar="ct", help="CT files or DICOM folders, or one folder of CTs")
    group.add_argument("--labelmaps", nargs="+", metavar="FILE", help="labelmaps or their folder, named as the CTs")
    group.add_argument("--label-names", metavar="FILE", help="CSV file with number and name of each label")
    group.add_argument(
        "--labels", help="structures that views must show and Dice compares; numbers or names, by commas"
    )
    group.add_argument("--warps", nargs="+", metavar="FILE", help="rigid ITK transforms from each CT to a template")
    group.add_argument("--invert-warps", action="store_true", default=None, help="they are from the template to the CT")
    group.add_argument(
        "--isocenter", type=float, nargs=3, metavar=("R", "A", "S"), help="RAS mm; default: each CT's centre"
    )
    group.add_argument("--crop", dest="crop_mm", type=float, nargs=3, metavar=("R", "A", "S"), help="random boxes, mm")


def add_views(parser: argparse.ArgumentParser) -> None:
    """Where the C-arm stands."""
    group = parser.add_argument_group("views (two numbers: evenly between; one: fixed)")
    for name, (unit, text) in VIEW_RANGES.items():
        group.add_argument(
            f"--{name.replace('_', '-')}", dest=f"range_{name}", type=float, nargs="+", metavar=unit, help=text
        )
    group.add_argument("--views", type=Path, metavar="FILE", help="ranges as JSON or YAML, of any distribution")
    group.add_argument(
        "--least-covered",
        type=float,
        metavar="SHARE",
        help="of the pixels that a view must show of the CT; default: 0.1",
    )


def add_camera(parser: argparse.ArgumentParser) -> None:
    """What the images are like."""
    group = parser.add_argument_group("camera and appearance")
    group.add_argument("--camera", type=Path, help="JSON camera; or")
    group.add_argument("--xray", type=Path, help="an X-ray with its geometry (DICOM), whose camera is taken; or")
    group.add_argument(
        "--field",
        type=float,
        nargs="+",
        metavar="MM",
        help="the detector's height and width, or both in one; with --sdd",
    )
    group.add_argument(
        "--around",
        action="store_true",
        help="ranges are about the pose of --xray or --camera (learning/data/views.py)",
    )
    group.add_argument("--size", type=int, help="the longest side of the network's images, pixels; default: 128")
    group.add_argument("--appearance", type=Path, metavar="FILE", help="ranges of the X-ray physics, JSON or YAML")
    group.add_argument("--augmentation", type=Path, metavar="FILE", help="probabilities, JSON or YAML")


def add_network(parser: argparse.ArgumentParser) -> None:
    """The network and its losses."""
    group = parser.add_argument_group("network and losses")
    group.add_argument("--backbone", choices=BACKBONES, help="default: resnet18")
    group.add_argument(
        "--parameterization",
        choices=PARAMETERIZATIONS,
        metavar="NAME",
        help=f"of rotations: {', '.join(PARAMETERIZATIONS)}; default: quaternion_adjugate",
    )
    group.add_argument(
        "--losses",
        nargs="+",
        metavar="NAME=WEIGHT",
        help=f"of {', '.join(LOSSES)}; ncc and dice render the CT at each step: on a CPU, ncc=0 saves a tenth to a "
        "quarter of its time",
    )


def add_learning(parser: argparse.ArgumentParser) -> None:
    """How long and how fast."""
    group = parser.add_argument_group("learning")
    group.add_argument("--steps", type=int, help="of the optimiser; default: 1000")
    group.add_argument("--batch", type=int, help="views in a batch; default: 16")
    group.add_argument("--accumulate", type=int, help="batches in a step; default: 1")
    group.add_argument("--learning-rate", type=float, help="default: 0.001")
    group.add_argument("--warmup", type=int, help="steps; default: 50, or a tenth of all")
    group.add_argument("--precision", choices=("float32", "bfloat16"), help="default: float32")
    group.add_argument("--compile", action="store_true", default=None, help="use torch.compile")
    group.add_argument("--validate-every", type=int, help="steps; default: 100")
    group.add_argument("--validation-views", type=int, help="held out; default: 64")
    group.add_argument("--patience", type=int, help="validations without progress that end it; default: never")
    group.add_argument("--checkpoint-every", type=int, help="steps; default: 100")
    group.add_argument("--seed", type=int, help="of everything random; default: 0")
    group.add_argument("--device", choices=("cpu", "cuda"), help="default: cpu")
    group.add_argument("--threads", type=int, help="of the CPU; default: all")
    group.add_argument("--tensorboard", action="store_true", default=None, help="write TensorBoard's events")
    group.add_argument("--wandb", metavar="PROJECT", help="log to Weights & Biases as well, where it is installed")


def add_output(parser: argparse.ArgumentParser) -> None:
    """Where it goes."""
    parser.add_argument("--output", "-o", type=Path, required=True, help="folder of the run")
    arguments.add_json(parser)


def check(options) -> None:
    """Raise DiffDRRError for what can be told before anything is loaded: counts, units, names, files."""
    for name in VIEW_RANGES:
        numbers, flag = getattr(options, f"range_{name}"), f"--{name.replace('_', '-')}"
        if numbers is None:
            continue
        if len(numbers) > 2:
            raise DiffDRRError(f"{flag} is one number or two, the least and the largest.")
        for value in numbers if name in ("sod", "sdd") else ():
            arguments.check_mm(flag, value)
    for name in ("cts", "labelmaps", "warps"):
        for path in getattr(options, name) or ():
            check_there(path)
    if hasattr(options, "losses"):
        _weights(options.losses)


def check_there(path: str | Path | None) -> None:
    """Raise DiffDRRError where there is nothing of that name."""
    if path is not None and not Path(path).exists():
        raise DiffDRRError(f"There is no file or folder '{path}'.")


def given_cts(options) -> dict[str, Any]:
    """Fields of `TrainingOptions`, of what was given."""
    names = ("labelmaps", "label_names", "warps", "invert_warps", "isocenter", "crop_mm")
    fields = {name: getattr(options, name) for name in names} | {"labels": arguments.chosen_labels(options)}
    return {"cts": options.cts or None, **fields}


def given_learning(options) -> dict[str, Any]:
    """Fields of `TrainingOptions`, of what was given."""
    return {name: getattr(options, name) for name in _LEARNING}


def given_views(options) -> dict[str, Any]:
    """Fields of `TrainingOptions`, of what was given."""
    from DiffDRRCore.values import read_values

    ranges = {} if options.views is None else read_values(options.views)
    for name in VIEW_RANGES:
        numbers = getattr(options, f"range_{name}")
        if numbers is not None:
            ranges[name] = numbers[0] if len(numbers) == 1 else numbers
    return {"views": ranges or None, "least_covered": options.least_covered}


def given_network(options) -> dict[str, Any]:
    """Fields of `TrainingOptions`, of what was given. Raises DiffDRRError for what is no weight."""
    weights = _weights(options.losses)
    return {"backbone": options.backbone, "parameterization": options.parameterization, "losses": weights}


def _weights(losses: list[str] | None) -> dict[str, float] | None:
    if losses is None:
        return None
    weights = {}
    for text in losses:
        name, _, value = text.partition("=")
        if name not in LOSSES:
            raise DiffDRRError(f"There is no loss '{name}'; there are {', '.join(LOSSES)}.")
        try:
            weights[name] = float(value)
        except ValueError as error:
            raise DiffDRRError(f"--losses is NAME=WEIGHT, for example dice=1, not '{text}'.") from error
    return weights


def run(options: TrainingOptions | None, folder: Path, as_json: bool, **changes) -> int:
    """Train, with a progress bar; the exit code: 130 where it was stopped."""
    with TrainingBar(quiet=as_json) as bar:
        from DiffDRRCore.learning import train

        training = train(options, folder, bar, **changes)
    if training.world.is_first:
        _report(training, folder, as_json)
    return 0 if training.finished else 130


def _report(training: Training, folder: Path, as_json: bool) -> None:
    best = training.best
    values = {"folder": str(folder), "finished": training.finished, "step": training.step, "best": best}
    values["model"] = None if best is None else str(folder / MODEL)
    end = "finished" if training.finished else "stopped (restart goes on)"
    text = [f"{end} after {training.step} of {training.options.steps} steps"]
    if best is not None:
        median = f"{best['mm']:.1f} mm ({best['degrees']:.1f} degrees) median"
        text.append(f"held-out views: {median}, 90 % below {best['mm_90']:.1f} mm")
        text.append(f"network: {values['model']}")
    output.report(values, as_json, text)
