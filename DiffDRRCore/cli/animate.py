"""Show how a registration went: a film of the CT as it comes to lie on the X-ray, step by step.

Four panels: the X-ray, the rendered CT, their difference (red: more in the X-ray, blue: more in the CT), and the CT's
edges over the X-ray, with the step and its similarity below. Give the X-ray, its camera and its preparation as they
were given to `register`; the poses (camera_to_world, RAS, mm) come from its result.json. MP4 needs ffmpeg (pip install
imageio-ffmpeg).

Example:
  python -m DiffDRRCore animate result ct.nii.gz ap.dcm --output registration.gif
"""

from __future__ import annotations

import argparse
from pathlib import Path

from DiffDRRCore.cli import arguments, output, register


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `animate`."""
    parser.add_argument("result", type=Path, help="folder that `register` wrote, or result.json in it")
    arguments.add_volume(parser)
    parser.add_argument("xray", type=Path, help="X-ray: DICOM, or PNG/TIFF/NIfTI with a JSON camera")
    parser.add_argument("--camera", type=Path, help="JSON camera in place of the header")
    parser.add_argument("--frame", help="of a multi-frame X-ray: an index from 0, or mean, max, min")
    parser.add_argument("--view", type=int, default=0, help="which of the result's views it is, from 0; default: 0")
    register.add_preparation(parser)
    group = parser.add_argument_group("film")
    group.add_argument("--output", "-o", type=Path, required=True, help=".gif or .mp4")
    group.add_argument("--fps", type=float, default=10.0, help="pictures per second; default: 10")
    group.add_argument("--width", type=int, default=960, help="of all four panels together, pixels; default: 960")
    group.add_argument(
        "--every", type=int, metavar="N", help="a picture every N steps; default: so that there are at most 50"
    )
    arguments.add_json(parser)


def run(options: argparse.Namespace) -> None:
    """Read, render, write."""
    from DiffDRRCore.evaluation.animation import check_animation, frames, trajectory, write_animation
    from DiffDRRCore.registration.masks.region import crop_to_volume
    from DiffDRRCore.registration.result import RegistrationResult

    check_animation(options.output, options.fps, options.width)
    arguments.check_device(options)
    result = RegistrationResult.load(arguments.result_file(options.result))
    texts, poses = trajectory(result, options.view, options.every)
    volume = arguments.read_volume(options)
    volume = volume if options.labels is None else volume.select(arguments.chosen_labels(options))
    xray = arguments.prepared_xray(options.xray, options.camera, options)
    if options.margin is not None:
        xray = crop_to_volume(xray, volume, poses[0], options.margin)
    pictures = frames(result, volume.to(options.device), xray, options.view, options.width, options.every)
    shown = output.shown(pictures, len(texts), "animate", "pictures", options.json)
    write_animation(options.output, shown, options.fps)
    values = {"output": str(options.output), "pictures": len(texts), "width": options.width, "fps": options.fps}
    output.report(values, options.json, [f"written: {options.output} ({len(texts)} pictures)"])
