"""What a network is trained on: the CT and its structures as files, the C-arm's ranges, the options of the run."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from DiffDRRCore import CArm, Volume
from DiffDRRCore.files import check_folder, replacing
from DiffDRRCore.imaging.camera_file import camera_to_dict
from DiffDRRCore.imaging.image_files import write_image
from DiffDRRCore.imaging.labelmap import segment_metadata
from DiffDRRCore.learning import Architecture, TrainingOptions
from DiffDRRCore.learning.training.run_files import FORMAT
from DiffDRRCore.parallel import cores
from DiffDRRSlicerLib.scene.anatomy import Anatomy
from DiffDRRSlicerLib.scene.carm import CArmNode
from DiffDRRSlicerLib.scene.errors import SceneError
from DiffDRRSlicerLib.scene.training_run import CT, LABELS, OPTIONS, TrainingRun

_DICE = 0.1  # weight of the structures' overlap
_NEAR = 0.05  # of the source-to-detector distance: nearer to the source or the detector no isocentre lies
_WHOLE = np.iinfo(np.int16)


@dataclass(frozen=True)
class TrainingSettings:
    """How a network is trained for the CT and the C-arm of a scene; what `TrainingOptions` has too, as it is there.

    Attributes:
        primary, secondary, roll: degrees on both sides of where the C-arm stands.
        shift: mm that its isocentre moves to each side, along each of the patient's axes.
        depth: mm that the source comes nearer or goes away.
        steps: of the optimiser, each of `batch` simulated X-rays.
        size: longest side in pixels of the images that the network sees.
        backbone: "resnet18", "resnet34", "efficientnet-b0".
        structures: whether the CT's structures are learned too; `names` are those of them, None is all.
        device: "auto", "cpu", "cuda".
        threads: of the CPU; None leaves a core to Slicer.
        learning_rate, seed: of the optimiser; of all that is random.
    """

    primary: float = 30.0
    secondary: float = 20.0
    roll: float = 10.0
    shift: float = 30.0
    depth: float = 50.0
    steps: int = TrainingOptions.steps
    batch: int = TrainingOptions.batch
    size: int = 128
    backbone: str = TrainingOptions.backbone
    structures: bool = False
    names: tuple[str, ...] | None = None
    device: str = "auto"
    threads: int | None = None
    learning_rate: float = TrainingOptions.learning_rate
    seed: int = TrainingOptions.seed

    @classmethod
    def of(cls, **values) -> TrainingSettings:
        """Settings by name. Raises SceneError for a name that there is not."""
        names = [one.name for one in fields(cls)]
        wrong = [name for name in values if name not in names]
        if wrong:
            raise SceneError(f"A training has no setting '{wrong[0]}'; there are: {', '.join(names)}.")
        return cls(**values)


def views_around(carm: CArmNode, anatomy: Anatomy, settings: TrainingSettings) -> tuple[dict[str, Any], list[float]]:
    """Ranges of the C-arm about where it stands, and the isocentre [3], in the coordinates of `anatomy.volume`.

    Raises SceneError for a parallel beam, and for a range of depth that reaches the source or the detector.
    """
    camera, distance = carm.camera, carm.source_to_isocenter
    if camera.parallel:
        raise SceneError("A network is trained for cone beams; this C-arm's beam is parallel.")
    whole, near = float(camera.source_to_detector), _NEAR * float(camera.source_to_detector)
    if distance - settings.depth < near or distance + settings.depth > whole - near:
        raise SceneError(
            f"The depth can change by {max(0.0, min(distance, whole - distance) - near):.0f} mm at most, else the "
            f"isocentre is at the source or the detector; {settings.depth:g} mm are too many."
        )
    pose = anatomy.pose_in_volume(carm.pose)
    ranges: dict[str, Any] = {
        name: [angle - getattr(settings, name), angle + getattr(settings, name)]
        for name, angle in ((name, float(angle)) for name, angle in CArm.angles_from(pose)._asdict().items())
    }
    ranges |= {f"shift_{axis}": [-settings.shift, settings.shift] for axis in "ras"}
    ranges["sod"] = [distance - settings.depth, distance + settings.depth]
    return ranges, (pose.translation + distance * pose.rotation[:, 2]).tolist()


def training_options(carm: CArmNode, anatomy: Anatomy, settings: TrainingSettings) -> dict[str, Any]:
    """Values of `DiffDRRCore.learning.TrainingOptions`, its files by their names in the run's folder.

    Raises SceneError as `views_around`, DiffDRRError for settings that cannot be.
    """
    ranges, isocenter = views_around(carm, anatomy, settings)
    tenth = settings.steps // 10  # short trainings look at the held-out images ten times, too
    camera, several = carm.camera, settings.structures and anatomy.labels is not None
    scale = settings.size / max(camera.height, camera.width)
    small = camera.resized(max(1, round(camera.height * scale)), max(1, round(camera.width * scale)))
    content = {
        "cts": [CT],
        "camera": camera_to_dict(small),
        "views": ranges,
        "isocenter": isocenter,
        "backbone": settings.backbone,
        "steps": settings.steps,
        "validate_every": max(1, min(TrainingOptions.validate_every, tenth)),
        "checkpoint_every": max(1, min(TrainingOptions.checkpoint_every, tenth)),
        "batch": settings.batch,
        "learning_rate": settings.learning_rate,
        "device": _device(settings.device),
        "threads": _threads() if settings.threads is None else settings.threads,
        "seed": settings.seed,
    }
    if several:
        names = None if settings.names is None else list(settings.names)
        content |= {"labelmaps": [LABELS], "labels": names, "losses": {"dice": _DICE}}
    TrainingOptions.from_dict(content)
    Architecture(settings.backbone, (small.height, small.width))
    return content


def prepare_training(folder: str | Path, carm: CArmNode, anatomy: Anatomy, settings: TrainingSettings) -> TrainingRun:
    """A new folder with the CT, its structures and the options of a training, which needs no scene then.

    The copy of the CT stays there, compressed, until `TrainingRun.clear`: a training that is resumed reads it again.

    Args:
        folder: the run's folder is made in it; where it is one of a run, beside it. Nothing there is overwritten.

    Raises DiffDRRError as `training_options`, and where files cannot be written; no folder is left then.
    """
    options = training_options(carm, anatomy, settings)
    place = new_folder(folder, anatomy.ct.GetName())
    written = []
    try:
        volume = anatomy.volume
        for name, write in _files(volume, settings.structures and anatomy.labels is not None, options).items():
            written.append(place / name)
            write(place / name)
    except BaseException:
        for path in written:
            path.unlink(missing_ok=True)
        place.rmdir()
        raise
    return TrainingRun(place)


def new_folder(folder: str | Path, name: str) -> Path:
    """An empty folder called like the CT, with a number where there is one already. Raises DiffDRRError."""
    parent = Path(folder).absolute()
    parent = parent.parent if TrainingRun(parent).exists else parent
    check_folder(parent)
    name = re.sub(r"[^\w.-]+", " ", name).strip(" .") or "CT"
    for number in itertools.count(1):
        place = parent / (name if number == 1 else f"{name} {number}")
        try:
            place.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise SceneError(f"The folder '{place}' cannot be made: {error.strerror or error}.") from error
        return place
    raise AssertionError


def _files(volume: Volume, structures: bool, options: dict[str, Any]) -> dict[str, Any]:
    """{file name: function that writes it}."""
    grid = volume.ijk_to_ras.numpy()

    def labels(path: Path) -> None:
        write_image(path, volume.labels.numpy(), grid, segment_metadata(volume.label_names))

    content = {"format": FORMAT, "version": 1, **options}
    files = {CT: lambda path: write_image(path, _exact(volume.hu.numpy()), grid)}
    if structures:
        files[LABELS] = labels
    return files | {OPTIONS: lambda path: _write_text(path, json.dumps(content, indent=1, allow_nan=False))}


def _exact(hu: np.ndarray) -> np.ndarray:
    """As 16-bit integers, where that is the same."""
    if hu.min() < _WHOLE.min or hu.max() > _WHOLE.max:
        return hu
    whole = hu.astype(np.int16)
    return whole if np.array_equal(whole, hu) else hu


def _write_text(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def _device(name: str) -> str:
    """ "auto" is the graphics card, where there is one that torch can use."""
    if name != "auto":
        return name
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _threads() -> int:
    """As many as torch would take, but a core is left to Slicer."""
    import torch

    return max(1, min(torch.get_num_threads(), cores() - 1))
