"""Train a network that finds the C-arm's pose in an X-ray, on simulated X-rays of one CT or of many.

Everything can come from one file of options (--options, JSON or YAML; `training.json` of an earlier run is one), and
what is given beside it wins. The output folder holds the network (model.safetensors, the best by held-out views), its
log (log.csv), how it stands (state.json) and what `restart` goes on from. Ctrl-C stops after a step; nothing is lost.

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
    from DiffDRRCore.learning.options import TrainingOptions

    fields = _from_file(options)
    given = {**training.given_cts(options), **training.given_views(options), **training.given_network(options)}
    given |= {**training.given_learning(options), **_camera(options), **_appearance(options)}
    fields |= {name: value for name, value in given.items() if value is not None}
    missing = [flag for name, flag in _NEEDED.items() if not fields.get(name)]
    if missing:
        raise DiffDRRError(f"Training needs {', '.join(missing)} (or a file with --options).")
    return training.run(TrainingOptions.from_dict(fields).relative_to(Path()), options.output, options.json)


_NEEDED = {
    "cts": "a CT",
    "camera": "--camera, --xray, or --sdd-mm and --field",
    "views": "ranges of views (--primary ...)",
}


def _from_file(options) -> dict[str, Any]:
    from DiffDRRCore.learning.options import TrainingOptions

    return {} if options.options is None else TrainingOptions.read(options.options).to_dict()


def _appearance(options) -> dict[str, Any]:
    from DiffDRRCore.values import read_values

    names = ("appearance", "augmentation")
    return {name: None if getattr(options, name) is None else read_values(getattr(options, name)) for name in names}


def _camera(options) -> dict[str, Any]:
    """The camera at the network's size, and the pose that ranges lie about."""
    from DiffDRRCore.imaging.camera_file import camera_to_dict

    arguments.refuse_together(options, "camera", ("xray", "camera_sdd", "field"))
    arguments.refuse_together(options, "xray", ("camera_sdd", "field"))
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
    if (options.camera_sdd is None) != (options.field is None):
        raise DiffDRRError("A camera in numbers needs both --sdd-mm and --field.")
    if options.camera_sdd is None:
        return None, None
    if len(options.field) > 2:
        raise DiffDRRError("--field is the detector's height and width in mm, or one number for both.")
    height, width = (options.field * 2)[:2]
    size = options.size or _SIZE
    step = max(height, width) / size
    return Camera(round(height / step), round(width / step), (step, step), options.camera_sdd), None
