"""Follow a CT, or bones in it, through a run of X-rays of one or several views.

Each view is a run: one file with many frames (DICOM, NIfTI, TIFF), or a folder of images with numbers in their names,
by which the frames of several folders belong together; a view may lack some. Cameras come from the DICOM header, from
--camera (a JSON camera, or a calibration of the biplane field: MayaCam 2.0, .txt), or from the JSON beside the images.

The start of the first frame is said as for `register`; where a DICOM header gives each frame angles of its own, the
C-arm turns by them. Or by --keyframes, a table (.csv) or .tra file of motions that
take the bodies from the CT (RAS, mm) to the room that the cameras' poses are in (with MayaCam files: the calibration's
world), as a person has set them in some frames: they are refined, and the frames in between start on the way.

Written to the output folder: tracking.json (everything), motions.csv and motions.tra (mm; with --smooth: smoothed), in
which frames that were lost are interpolated; the lost ones are printed, with the reason.

Example:
  python -m DiffDRRCore track ct.nii.gz ap.dcm --init header --sod 700 --output tracking
  python -m DiffDRRCore track knee.nii.gz cam1 cam2 --camera cam1.txt --camera cam2.txt --source-to-detector 1800
      --labelmap bones.nrrd --body femur=1 --body tibia=2,3 --keyframes keys.csv --margin 30 --smooth --output tracking
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from DiffDRRCore.cli import arguments, output, parts, register, starts
from DiffDRRCore.errors import DiffDRRError
from DiffDRRCore.files import check_folder

if TYPE_CHECKING:
    from DiffDRRCore import Pose, XRay


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `track`."""
    arguments.add_volume(parser)
    parser.add_argument(
        "runs", type=Path, nargs="+", metavar="run", help="run of a view: a file of many frames, or a folder of images"
    )
    parser.add_argument(
        "--camera", type=Path, action="append", help="camera, once per run: JSON, or MayaCam 2.0 (.txt)"
    )
    parser.add_argument(
        "--source-to-detector",
        type=float,
        metavar="MM",
        help="of MayaCam cameras, which do not say it; any plane behind the patient has the same rays",
    )
    parser.add_argument("--frames", metavar="FIRST:LAST[:STEP]", help="numbers, the last included; default: all")
    starts.add_arguments(parser)
    register.add_preparation(parser)
    _add_bodies(parser)
    _add_tracking(parser)
    parser.add_argument("--output", "-o", type=Path, required=True, help="folder for the results")
    arguments.add_json(parser)


def _add_bodies(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what moves; default: the CT as one")
    parts.add_bodies(group)
    group.add_argument("--keyframes", type=Path, help="motions that a person has set: .csv or .tra (see above)")


def _add_tracking(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("tracking")
    group.add_argument("--similarity", default="zncc", choices=register.MEASURES, help="default: zncc")
    group.add_argument("--sizes", type=int, nargs="+", help="longest image side of each level, pixels")
    group.add_argument("--max-steps", type=int, default=100, help="per level and frame")
    group.add_argument("--robust", choices=("huber", "tukey"), help="weigh down what differs most, such as an implant")
    group.add_argument(
        "--search", type=int, default=128, metavar="N", help="motions to look at for keyframes and lost frames"
    )
    group.add_argument(
        "--acceleration",
        type=float,
        nargs=2,
        default=[1.0, 2.0],
        metavar=("DEG", "MM"),
        help="how much the speed is expected to change from frame to frame (standard deviation); default: 1 2",
    )
    group.add_argument("--smooth", action="store_true", help="smooth the motions over time, as much as they suggest")


def run(options: argparse.Namespace) -> int:
    """Read, track, write, report; 1 where all frames are lost."""
    check_folder(options.output)
    options.xrays = options.runs
    starts.check(options)
    bodies = parts.bodies(options)
    cameras = starts.one_each(options.camera, len(options.runs), "--camera")
    from DiffDRRCore.registration.tracking import Tracking

    arguments.check_device(options)
    volume = arguments.read_volume(options)
    frames = _frames(options, cameras)
    keyframes = _keyframes(options.keyframes, bodies)
    initial = _initial(options, volume, frames, keyframes)
    tracking = Tracking(
        volume.to(options.device), frames, initial, bodies=bodies, keyframes=keyframes, **_keywords(options)
    )
    began = time.perf_counter()
    for _ in output.shown(tracking.steps(), len(frames), "track", "frames", options.json):
        pass
    seconds, result = time.perf_counter() - began, tracking.result()
    result = result.smoothed() if options.smooth else result
    names = ("motions.csv", "motions.tra")
    files = [result.save(options.output / "tracking.json")]
    files += [result.write_motions(options.output / name) for name in names]
    _report(result, seconds, files, options.json)
    return int(bool(result.interpolated.all()))


def _frames(options, cameras: list[Path | None]) -> dict[int, list]:
    """{number: an X-ray of each view, or None}."""
    from DiffDRRCore.imaging.xray_run import frame_numbers, read_run

    wanted = _wanted(options.frames)
    found: dict[int, list] = {}
    for view, (path, camera) in enumerate(zip(options.runs, cameras, strict=True)):
        numbers = [number for number in frame_numbers(path) if wanted is None or number in wanted]
        camera, pose = _calibrated(camera, options)
        for number, xray in read_run(path, numbers, camera):
            xray = arguments.prepared(xray, options)
            row = found.setdefault(number, [None] * len(options.runs))
            row[view] = xray if pose is None else xray.with_pose(pose)
    if not found:
        raise DiffDRRError(f"None of the frames {options.frames} is there.")
    return found


def _calibrated(camera: Path | None, options):
    """(camera, pose) of a MayaCam file; (path, None) of any other."""
    if camera is None or camera.suffix.lower() != ".txt":
        return camera, None
    from DiffDRRCore.imaging.calibration_file import read_calibrated_camera

    if options.source_to_detector is None:
        raise DiffDRRError(f"'{camera}' does not say how far the detector is: give --source-to-detector MM.")
    return read_calibrated_camera(camera, source_to_detector=options.source_to_detector)


def _wanted(text: str | None) -> range | None:
    if text is None:
        return None
    try:
        first, last, *step = (int(part) for part in text.split(":"))
        found = range(first, last + 1, *step)
    except (ValueError, TypeError) as error:
        raise DiffDRRError(f"--frames is FIRST:LAST or FIRST:LAST:STEP, got {text}.") from error
    if len(found) < 2:
        raise DiffDRRError(f"--frames {text} is less than two frames: a sequence has two or more.")
    return found


def _keyframes(path: Path | None, bodies) -> dict | None:
    """{frame: {body: Pose}} of the frames with a motion in the file."""
    if path is None:
        return None
    found: dict[int, dict] = {}
    names = ["CT"] if bodies is None else [body.name for body in bodies]
    for name, motion in arguments.read_motions(path).items():
        for frame in motion.frames:
            if (pose := motion.at(frame)) is not None:
                found.setdefault(frame, {})[names[0] if len(names) == 1 else name] = pose
    return found


def _initial(options, volume, frames: dict, keyframes):
    """How the C-arms stand: their own poses where keyframes say the rest, else as for `register`.

    Where the X-rays' own poses change from frame to frame, as of a C-arm that turns, {number: poses}: changed alike.
    """
    firsts = [
        next(row[view] for _, row in sorted(frames.items()) if row[view] is not None)
        for view in range(len(options.runs))
    ]
    if keyframes is not None and all(xray.pose is not None for xray in firsts):
        poses = [xray.pose for xray in firsts]
    else:
        poses = starts.start_poses(options, volume.to(options.device), firsts)
    moving = [_moving(view, xray, pose, frames) for view, (xray, pose) in enumerate(zip(firsts, poses, strict=True))]
    if not any(moving):
        return poses
    return {
        number: [told[number] if told else pose for told, pose in zip(moving, poses, strict=True)] for number in frames
    }


def _moving(view: int, first: XRay, start: Pose, frames: dict) -> dict[int, Pose]:
    """{number: pose} of a C-arm that stands at `start` in the first X-ray and moves as the X-rays' own poses do.

    Empty where it stays, or not all of them are known. In frames without an X-ray it is where it was last.
    """
    found, last, moves = {}, start, False
    for number, row in sorted(frames.items()):
        if (xray := row[view]) is not None:
            if first.pose is None or xray.pose is None:
                return {}
            moves = moves or not bool(xray.pose.matrix.isclose(first.pose.matrix, rtol=0, atol=1e-4).all())
            last = start @ first.pose.inverse() @ xray.pose
        found[number] = last
    return found if moves else {}


def _keywords(options) -> dict:
    names = ("similarity", "max_steps", "robust", "search", "sizes")
    keywords = {name: getattr(options, name) for name in names}
    keywords |= {"acceleration": tuple(options.acceleration), "margin": options.margin}
    return keywords | {"labels": arguments.chosen_labels(options)}


def _report(result, seconds: float, files: list[Path], as_json: bool) -> None:
    count = len(result.frames)
    lost = {str(frame): why for frame, why in result.lost.items()}
    values = {"frames": count, "lost": lost, "interpolated": int(result.interpolated.sum()), "seconds": seconds}
    values |= {"bodies": list(result.bodies), "smoothed": result.is_smoothed}
    values["similarity"] = [value for value in result.similarity.tolist() if value == value]
    values["files"] = [str(path) for path in files]
    lines = [f"{count} frames, {len(lost)} lost, {seconds:.1f} s"]
    lines += [f"lost: frame {frame}: {why} (interpolated)" for frame, why in lost.items()]
    if values["similarity"]:
        lines.append(f"similarity {min(values['similarity']):.4f} to {max(values['similarity']):.4f}")
    if result.is_smoothed:
        degrees, mm = result.acceleration
        lines.append(f"smoothed; accelerations of {degrees:.3f} degrees and {mm:.3f} mm a frame^2")
    output.report(values, as_json, [*lines, "written: " + ", ".join(str(path) for path in files)])
