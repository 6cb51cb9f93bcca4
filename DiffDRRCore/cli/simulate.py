"""Simulate realistic X-rays of a CT: one image, a sweep of the C-arm, or a training set.

The image holds counts of the detector, absolute, never stretched: air is bright, and the JSON beside it has i0, the
counts of the open beam, so that ln(i0 / image) are line integrals. .dcm is a DICOM XA image (DX for radiography
devices), .png and .dcm hold whole numbers; .tif, .nii.gz, .nrrd and .mha hold the counts as they are.

  one image      --output x.dcm
  a sweep        --sweep START STOP COUNT (degrees): one DICOM run, whose JSON has the pose of each frame, or numbered
                 files, a JSON each
  training set   --count N --ranges ranges.json --output FOLDER: each image with its own angles, dose and so on; the
                 same command goes on where an earlier one stopped, and images.jsonl has all parameters of each image

Ranges have the names and units of the arguments (mm, degrees, kVp, uGy), for example
  {"primary": [-45, 45], "shift_s": {"normal": [0, 20]}, "kvp": {"choice": [60, 70, 80]},
   "dose": {"log_uniform": [0.02, 2]}, "bone_contrast": [0.8, 1.2]}

Examples:
  python -m DiffDRRCore simulate ct.nii.gz --device-preset cios --binning 4 --primary -30 --kvp 70 \\
      --filter Al=2.5 Cu=0.1 --dose 0.5 --focal-spot 0.6 --blur 1.8 --scatter --output x.dcm
  python -m DiffDRRCore simulate ct.nii.gz --device-preset cios --binning 4 --count 5000 --ranges ranges.yaml \\
      --output set
"""

from __future__ import annotations

import argparse
import math
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from DiffDRRCore.cli import arguments, output, simulation
from DiffDRRCore.cli import simulation_arguments as own
from DiffDRRCore.errors import DiffDRRError, DiffDRRWarning

if TYPE_CHECKING:
    from DiffDRRCore.physics.devices import Device
    from DiffDRRCore.physics.simulation.setup import Setup
    from DiffDRRCore.physics.simulation.simulator import SimulatedImage

_OF_SETS = ("ranges", "workers", "threads", "format")
_OVER_HEAD = 90.0  # degrees: DICOM's secondary angles go no further, and say the same by another primary angle
_LONG_SUFFIX = ".nii.gz"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `simulate`."""
    arguments.add_volume(parser)
    arguments.add_camera(parser)
    for add in (own.add_device, own.add_beam, own.add_dose, own.add_detector, own.add_effects, own.add_contents):
        add(parser)
    parser.add_argument("--seed", type=int, help="of everything random; default: 0 for a training set, else drawn")
    parser.add_argument(
        "--sweep",
        nargs=3,
        type=float,
        metavar=("START", "STOP", "COUNT"),
        help="an image at each of COUNT angles, degrees",
    )
    parser.add_argument(
        "--sweep-angle", choices=("primary", "secondary", "roll"), default="primary", help="default: primary"
    )
    group = parser.add_argument_group("a training set")
    group.add_argument("--count", type=int, help="number of images")
    group.add_argument("--ranges", type=Path, help=".json or .yaml file of what varies")
    group.add_argument(
        "--workers", type=int, help="processes; default: as many as there are cores; 0: none but this one"
    )
    group.add_argument("--threads", type=int, help="of each process; default: 1")
    group.add_argument("--format", help="of the images: png (default), tif, nii.gz, nrrd, mha, dcm")
    parser.add_argument("--masks", nargs="?", const="", metavar="FOLDER", help="write masks and depth maps too")
    parser.add_argument("--output", "-o", type=Path, required=True, help="image file; a folder for a training set")
    arguments.add_json(parser)


def run(options: argparse.Namespace) -> None:
    """One image, a sweep, or a training set."""
    arguments.check_device(options)
    if options.count is not None:
        arguments.refuse_together(options, "count", ("sweep", "lag"))
        _run_set(options)
        return
    for name in _OF_SETS:
        if getattr(options, name) is not None:
            raise DiffDRRError(f"--{name} is for a training set: give --count as well.")
    from DiffDRRCore.physics.simulation.writing import check_suffix

    if options.lag and options.sweep is None:
        raise DiffDRRError("--lag is what one frame keeps of the last: give --sweep as well.")
    suffix = _suffix(options.output)
    setup = simulation.read_setup(options, suffix)
    check_suffix(suffix, setup)
    _run_images(options, setup)


def _suffix(path: Path) -> str:
    name = path.name.lower()
    return (
        _LONG_SUFFIX if name.endswith(_LONG_SUFFIX) else {".tiff": ".tif"}.get(path.suffix.lower(), path.suffix.lower())
    )


def _run_images(options, setup: Setup) -> None:
    import torch

    from DiffDRRCore.physics.simulation.setup import check_hit
    from DiffDRRCore.physics.simulation.simulator import simulate_sequence
    from DiffDRRCore.physics.simulation.writing import seen_landmarks

    volume = setup.volume()
    poses = _poses(options, setup, volume)
    simulator = setup.simulator(volume)
    began = time.perf_counter()
    with torch.no_grad():
        images = simulate_sequence(simulator, setup.camera_model(), poses, options.seed)
    seconds = time.perf_counter() - began
    for image in images:
        check_hit(image)
    _warn_of_unseen(images)
    files = _write(options, setup, images, setup.center(volume))
    values = {
        "output": [str(path) for path in files] if len(files) > 1 else str(files[0]),
        "seconds": round(seconds, 2),
    }
    values |= {"seed": images[0].xray.meta["seed"], "i0": images[0].i0}
    pixels = torch.stack([image.counts for image in images])
    values |= {"minimum": float(pixels.min()), "maximum": float(pixels.max()), "mean": float(pixels.mean())}
    landmarks = [seen_landmarks(image) for image in images if image.landmarks]
    values |= {"landmarks": landmarks if len(images) > 1 else landmarks[0]} if landmarks else {}
    text = [f"{name:9} {_short(value)}" for name, value in values.items() if name not in ("landmarks", "output")]
    output.report(values, options.json, [_written(files, len(images)), *text, *_of_landmarks(landmarks)])


def _short(value) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _written(files: list[Path], images: int) -> str:
    """The image and what lies beside it."""
    stem = files[0].name[: -len(_LONG_SUFFIX)] if files[0].name.lower().endswith(_LONG_SUFFIX) else files[0].stem
    holds = "camera and true pose" if len(files) == images else f"camera and true poses of the {images} frames"
    more = f", and {len(files) - 1} more with theirs" if len(files) > 1 else ""
    return f"written: {files[0]}, {stem}.json ({holds}){more}"


def _of_landmarks(images: list[dict]) -> list[str]:
    """A line each."""
    lines = []
    for number, landmarks in enumerate(images):
        frame = f" {number}" if len(images) > 1 else ""
        for name, one in landmarks.items():
            place = "no pixel" if one["pixel"] is None else "({:.2f}, {:.2f})".format(*one["pixel"])
            lines.append(f"landmark{frame} {name}: {place}{'' if one['visible'] else ', not in the image'}")
    return lines


def _poses(options, setup: Setup, volume) -> list:
    if options.sweep is None:
        return [setup.camera_pose(volume)]
    from DiffDRRCore.physics.devices import device, orbit

    if setup.pose is not None:
        raise DiffDRRError("--sweep moves a C-arm: give --sod and angles, or a device, in place of a pose.")
    limits = None if options.device_preset is None or options.ignore_limits else device(options.device_preset)
    return [arm.pose for arm in orbit(setup.arm(volume), *options.sweep, options.sweep_angle, limits)]


def _warn_of_unseen(images: list[SimulatedImage]) -> None:
    """An implant that is not in the picture is most often one in other coordinates."""
    for name in images[0].objects:
        if not any(bool(image.objects[name].any()) for image in images):
            warnings.warn(
                f"No ray meets the implant '{name}': are its file (LPS, or SPACE=RAS in it) and --implant-pose right?",
                DiffDRRWarning,
                stacklevel=2,
            )


def _write(options, setup: Setup, images: list[SimulatedImage], isocenter) -> list[Path]:
    from DiffDRRCore.physics.simulation.writing import write_image, write_run, write_truth

    suffix, path = _suffix(options.output), options.output
    stem = path.name[: -len(suffix)] if path.name.lower().endswith(suffix) else path.stem
    stems = [stem] if len(images) == 1 else [f"{stem}_{number:04d}" for number in range(len(images))]
    files = [path] if len(images) == 1 else [path.with_name(one + path.name[len(stem) :]) for one in stems]
    if suffix == ".dcm" and len(images) > 1 and setup.modality == "XA" and not _turns_the_image(options):
        write_run(path, images, setup, isocenter)
        files = [path]
    else:
        for file, image in zip(files, images, strict=True):
            write_image(file, image, setup, isocenter)
    if options.masks is not None:
        folder = Path(options.masks) if options.masks else path.with_name(f"{stem}_masks")
        for one, image in zip(stems, images, strict=True):
            write_truth(folder if len(images) == 1 else folder / one, image)
    return files


def _turns_the_image(options) -> bool:
    """Whether the detector turns about the beam, which a DICOM run has no tag for: by roll, or over the head."""
    if options.sweep_angle == "roll":
        return True
    return options.sweep_angle == "secondary" and max(map(abs, options.sweep[:2])) > _OVER_HEAD


def _run_set(options) -> None:
    from DiffDRRCore.physics.simulation.ranges import Ranges
    from DiffDRRCore.physics.simulation.training_set import MANIFEST, generate

    suffix = f".{(options.format or 'png').lower().lstrip('.')}"
    ranges = Ranges.from_dict({}) if options.ranges is None else Ranges.read(options.ranges)
    setup = simulation.read_setup(options, suffix)
    if setup.pose is not None and ranges.of.keys() & {"primary", "secondary", "roll", "sod"}:
        raise DiffDRRError("Angles vary for a C-arm: give --sod and angles, or a device, in place of a pose.")
    _check_ranges(options, ranges)
    with output.CountBar("simulate", "images", quiet=options.json) as bar:
        lines = generate(
            setup,
            ranges,
            options.count,
            options.output,
            seed=options.seed or 0,
            suffix=suffix,
            masks=options.masks is not None,
            workers=options.workers,
            threads=1 if options.threads is None else options.threads,
            progress=bar,
        )
    failed = [line for line in lines if line["failure"] is not None]
    if len(failed) == len(lines):
        raise DiffDRRError(f"Not one of the {len(lines)} images could be made; the first: {failed[0]['failure']}")
    values = {"folder": str(options.output), "manifest": str(options.output / MANIFEST)}
    values |= {"images": len(lines) - len(failed), "failed": len(failed)}
    text = [f"{values['images']} images, {len(failed)} failed, in {options.output}"]
    text += [f"first failure: image {failed[0]['number']}: {failed[0]['failure']}"] if failed else []
    output.report(values, options.json, text)


def _check_ranges(options, ranges) -> None:
    """What a device cannot do must not be drawn: the ends of ranges."""
    from DiffDRRCore.physics.devices import device

    if options.device_preset is None or options.ignore_limits:
        return
    one = device(options.device_preset)
    if "sod" in ranges.of:
        raise DiffDRRError(f"{one.name} has its isocentre at {one.source_to_isocenter:g} mm: leave sod out of ranges.")
    for name in ("primary", "secondary", "roll"):
        for value in _ends(one, ranges, name):
            one.check(one.carm(check=False, **{name: value}))
    for value in _ends(one, ranges, "kvp"):
        one.check(one.carm(), value)


def _ends(one: Device, ranges, name: str) -> tuple[float, ...]:
    """Of a range, where the device has limits. Raises DiffDRRError for one that has no ends."""
    limits = getattr(one, name)
    if limits is None or name not in ranges.of:
        return ()
    ends = ranges.of[name].ends
    if not all(map(math.isfinite, ends)):
        raise DiffDRRError(
            f"The range of {name} is a normal distribution that has no ends, but {one.name} goes from {limits[0]:g} to "
            f'{limits[1]:g}: give `within`, for example "within": [{limits[0]:g}, {limits[1]:g}].'
        )
    return ends
