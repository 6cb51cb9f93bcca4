"""Train a network that finds the C-arm's pose in an X-ray, on simulated X-rays of one CT or of many.

Everything can come from one file of options (--options, JSON or YAML; `training.json` of an earlier run is one), and
what is given beside it wins. The output folder holds the network (model.safetensors, the best by held-out views), its
log (log.csv), how it stands (state.json) and what `restart` goes on from. Ctrl-C stops after a step; nothing is lost.

The camera is that of --xray or --camera, or --sdd (source to detector) and --field (the detector's side) in mm. One
number of --sdd is fixed; two are a range, in whose middle a camera of --field has it.

Several GPUs: torchrun --nproc-per-node 4 -m DiffDRRCore train ...

Examples:
  python -m DiffDRRCore train ct.nii.gz --xray ap.dcm --primary -30 30 --secondary -30 30 --roll -10 10 \\
      --shift-r -30 30 --shift-a -30 30 --shift-s -30 30 --sod 650 800 --output run --device cuda
  python -m DiffDRRCore register ct.nii.gz ap.dcm --init model --model run/model.safetensors --output result
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from DiffDRRCore.cli import arguments, training
from DiffDRRCore.errors import DiffDRRError

if TYPE_CHECKING:
    from DiffDRRCore import Camera, Pose

_SIZE = 128
_MERGED = ("views", "losses", "appearance", "augmentation")  # what is given beside a file changes parts of them


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `train`."""
    training.add_cts(parser)
    parser.add_argument(
        "--options", type=Path, metavar="FILE", help="JSON or YAML: everything, by TrainingOptions' names"
    )
    training.add_camera(parser)
    training.add_views(parser)
    training.add_network(parser)
    training.add_learning(parser)
    training.add_output(parser)


def run(options: argparse.Namespace) -> int:
    """Read the options, train, report."""
    _check(options)
    from DiffDRRCore.learning import TrainingOptions

    fields = _from_file(options)
    given = {**training.given_cts(options), **training.given_views(options), **training.given_network(options)}
    given |= {**training.given_learning(options), **_camera(options), **_appearance(options)}
    for name, value in given.items():
        if value is not None:
            fields[name] = {**(fields.get(name) or {}), **value} if name in _MERGED else value
    _check_complete({name for name in _NEEDED if fields.get(name)})
    _check_distances(fields)
    return training.run(TrainingOptions.from_dict(fields).relative_to(Path()), options.output, options.json)


_NEEDED = {
    "cts": "a CT",
    "camera": "a camera (--xray FILE, or --camera FILE, or --sdd and --field in mm)",
    "views": "ranges of views (--sod and --primary, --secondary, ..., or --views FILE)",
}
_MINIMAL = (
    "python -m DiffDRRCore train ct.nii.gz --sdd 1000 --field 300 --sod 650 750 --primary -30 30 --secondary -20 20 "
    "--output run"
)


def _check(options) -> None:
    """What can be told before anything is read. Raises DiffDRRError."""
    training.check(options)
    arguments.refuse_together(options, "camera", ("xray", "field"))
    arguments.refuse_together(options, "xray", ("field",))
    if options.field is not None and len(options.field) > 2:
        raise DiffDRRError("--field is the detector's height and width in mm, or one number for both.")
    for side in options.field or ():
        arguments.check_mm("--field", side, 10.0, 2000.0)
    if options.field is not None and options.range_sdd is None:
        raise DiffDRRError("--field needs --sdd, the distance from source to detector in mm.")
    if options.options is None:
        camera = options.camera or options.xray or options.field
        arm = [name for name in training.VIEW_RANGES if name != "sdd"]  # which may be the camera's
        views = options.views or any(getattr(options, f"range_{name}") for name in arm)
        _check_complete({name for name, one in (("cts", options.cts), ("camera", camera), ("views", views)) if one})
    if options.options is None and options.views is None and not options.around and options.range_sod is None:
        raise DiffDRRError("Training needs --sod, the distance from source to isocentre in mm: one number, or a range.")


def _check_complete(there: set[str]) -> None:
    missing = [text for name, text in _NEEDED.items() if name not in there]
    if missing:
        listed = missing[0] if len(missing) == 1 else f"{', '.join(missing[:-1])} and {missing[-1]}"
        raise DiffDRRError(f"Training lacks {listed}, or a file with --options. The least there is: {_MINIMAL}")


def _check_distances(fields: dict[str, Any]) -> None:
    """The isocentre lies between source and detector, where these are plain numbers."""
    views = fields["views"]
    sod, sdd = (_ends(views.get(name)) for name in ("sod", "sdd"))
    if sod and not fields.get("around"):
        arguments.check_between(sod[0], sdd[-1] if sdd else float(fields["camera"].get("source_to_detector", "inf")))


def _ends(value) -> list[float]:
    numbers = value if isinstance(value, (list, tuple)) else [value]
    return sorted(numbers) if all(isinstance(one, (int, float)) for one in numbers) else []


def _from_file(options) -> dict[str, Any]:
    from DiffDRRCore.learning import TrainingOptions

    return {} if options.options is None else TrainingOptions.read(options.options).to_dict()


def _appearance(options) -> dict[str, Any]:
    from DiffDRRCore.values import read_values

    names = ("appearance", "augmentation")
    return {name: None if getattr(options, name) is None else read_values(getattr(options, name)) for name in names}


def _camera(options) -> dict[str, Any]:
    """The camera at the network's size, and the pose that ranges lie about."""
    from DiffDRRCore.imaging.camera_file import camera_to_dict

    camera, pose = _camera_and_pose(options)
    if camera is None:
        if options.around:
            raise DiffDRRError("--around needs the pose of --xray or of --camera.")
        return {}
    if options.around and pose is None:
        raise DiffDRRError("--around: there is no pose in that file; give the ranges as angles and distances.")
    scale = (options.size or _SIZE) / max(camera.height, camera.width)
    camera = camera.resized(round(camera.height * scale), round(camera.width * scale))
    return {"camera": camera_to_dict(camera), "around": pose.matrix.tolist() if options.around else None}


def _camera_and_pose(options) -> tuple[Camera | None, Pose | None]:
    from DiffDRRCore import Camera
    from DiffDRRCore.imaging.camera_file import read_camera

    if options.camera is not None:
        found = read_camera(options.camera)
        return found.camera, found.pose
    if options.xray is not None:
        xray = arguments.read_xray(options.xray)
        return xray.camera, xray.pose
    if options.field is None:
        return None, None
    height, width = (options.field * 2)[:2]
    size = options.size or _SIZE
    step = max(height, width) / size
    return Camera(
        round(height / step), round(width / step), (step, step), sum(options.range_sdd) / len(options.range_sdd)
    ), None
