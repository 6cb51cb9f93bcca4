"""Find the C-arm pose under which a CT looks like one X-ray, or several of fixed geometry.

The start is what --init says (or the files that belong to it): a trained network, the header, a fixed pose, landmarks,
an earlier result, or a search over all places that the C-arm can have. Without it, in this order: --initial; --sod and
the angles; the pose in the JSON camera; the header's positioner angles with the isocentre at the CT's centre (or at
--isocenter). Poses are camera_to_world in the CT's RAS (mm).

Written to the output folder: result.json (poses, covariance, history), view<N>.tfm (C-arm pose), patient_motion.tfm and
body_<name>.tfm, which open in 3D Slicer, view<N>_camera.json where cameras were looked for, and, where matplotlib is
installed, view<N>.png.

Example:
  python -m DiffDRRCore register ct.nii.gz ap.dcm lateral.dcm --output result --max-depth 20
  python -m DiffDRRCore register ct.nii.gz ap.dcm --init model --model run/model.safetensors --output result
  python -m DiffDRRCore register ct.nii.gz ap.png --init search --search-primary -90 90 --output result
  python -m DiffDRRCore register ct.nii.gz ap.dcm lat.dcm --labelmap bones.nii.gz --body femur=1 --body tibia=2
      --body other=rest --locked other --output result
"""

from __future__ import annotations

import argparse
import math
import time
from importlib.util import find_spec
from pathlib import Path

from DiffDRRCore.cli import arguments, output, parts, starts
from DiffDRRCore.files import check_folder

MEASURES = (
    "zncc",
    "lncc",
    "multiscale_ncc",
    "gradient_ncc",
    "gradient_correlation",
    "gradient_orientation",
    "mutual_information",
    "ssd",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `register`."""
    arguments.add_volume(parser)
    parser.add_argument(
        "xrays", type=Path, nargs="+", metavar="xray", help="X-ray: DICOM, or PNG/TIFF/NIfTI with a JSON camera"
    )
    parser.add_argument(
        "--camera", type=Path, action="append", help="JSON camera, once per X-ray, in place of the header"
    )
    parser.add_argument("--frame", help="of multi-frame X-rays: an index from 0, or mean, max, min")
    starts.add_arguments(parser)
    add_preparation(parser)
    add_registration(parser)
    parts.add_arguments(parser)
    parser.add_argument("--output", "-o", type=Path, required=True, help="folder for the results")
    arguments.add_json(parser)


def add_preparation(parser: argparse.ArgumentParser) -> None:
    """Preprocessing of the X-rays."""
    group = parser.add_argument_group("X-ray preparation, in this order: crop, logarithm, smoothing, margin")
    group.add_argument(
        "--crop", nargs="+", help="pixels to cut off: TOP BOTTOM LEFT RIGHT, or 'find' for the collimator"
    )
    group.add_argument("--intensity", choices=("transmission", "attenuation"), help="what is bright: air, or bone")
    group.add_argument("--i0", type=float, help="unattenuated intensity, in the image's units; default: estimated")
    group.add_argument(
        "--margin",
        type=float,
        help="cut the X-ray to the CT's shadow at the start and so many mm around it on the detector (for small CTs)",
    )
    group.add_argument("--smoothing", type=float, default=0.0, help="Gaussian sigma, pixels; default: 0")


def add_registration(parser: argparse.ArgumentParser) -> None:
    """How to register."""
    group = parser.add_argument_group("registration")
    group.add_argument("--similarity", default="zncc", choices=MEASURES, help="default: zncc")
    group.add_argument(
        "--optimizer",
        choices=("auto", "levenberg_marquardt", "lbfgs", "adam"),
        default="auto",
        help="default: levenberg_marquardt where the similarity allows it, else lbfgs",
    )
    group.add_argument(
        "--sizes",
        type=int,
        nargs="+",
        help="longest image side of each level, pixels; default: 32 64 128, or 96 128 for measures of patches or edges",
    )
    group.add_argument("--max-steps", type=int, default=100, help="per level")
    group.add_argument("--max-seconds", type=float, help="for everything; default: no limit")
    group.add_argument("--max-depth", type=float, help="largest change of depth, mm; default: no bound")
    group.add_argument("--starts", type=int, default=1, help="number of starts around the initial pose")
    group.add_argument(
        "--spread",
        type=float,
        nargs=3,
        default=[5.0, 10.0, 30.0],
        metavar=("DEG", "PLANE", "DEPTH"),
        help="standard deviations of the starts: degrees per axis, mm in the image plane, mm in depth",
    )
    group.add_argument(
        "--search",
        type=int,
        default=128,
        metavar="N",
        help="look at up to N motions around the start where the first level's optimum is doubtful; 0 for none",
    )
    group.add_argument("--robust", choices=("huber", "tukey"), help="weigh down what differs most, such as an implant")
    group.add_argument(
        "--grey-values-only",
        action="store_true",
        help="do not go on by outlines where they say otherwise than grey values by more than noise explains",
    )
    group.add_argument(
        "--beyond-ends",
        action="store_true",
        help="count pixels too whose rays pass beyond an end of the CT that the patient goes on beyond",
    )
    group.add_argument("--pixels", type=int, help="compare so many pixels only, at all levels but the last")
    group.add_argument("--seed", type=int, default=0, help="of starts and search; default: 0")


def run(options: argparse.Namespace) -> None:
    """Read, register, write, report."""
    check_folder(options.output)
    starts.check(options)
    from DiffDRRCore import register
    from DiffDRRCore.registration.masks.region import crop_to_volume

    arguments.check_device(options)
    volume = arguments.read_volume(options)
    cameras = starts.one_each(options.camera, len(options.xrays), "--camera")
    xrays = [
        arguments.prepared_xray(path, camera, options) for path, camera in zip(options.xrays, cameras, strict=True)
    ]
    on_device = volume.to(options.device)
    poses = starts.start_poses(options, on_device, xrays)
    if options.margin is not None:
        rendered = volume if options.labels is None else volume.select(arguments.chosen_labels(options))
        xrays = [
            crop_to_volume(xray, rendered, start, options.margin) for xray, start in zip(xrays, poses, strict=True)
        ]
    began = time.perf_counter()
    with output.StepBar(quiet=options.json) as bar:
        result = register(on_device, xrays, poses, progress=bar, **_keywords(options), **parts.keywords(options))
    seconds = time.perf_counter() - began
    files = write_result(options.output, result, volume, xrays, poses)
    report(result, seconds, files, options.json)


def write_result(folder: Path, result, volume, xrays, starts) -> list[Path]:
    """result.json, one transform and one picture per view, the patient's motion."""
    files = [result.save(folder / "result.json"), result.save(folder / "patient_motion.tfm", what="patient_motion")]
    files += [result.save(folder / f"view{number + 1}.tfm", view=number) for number in range(len(xrays))]
    if find_spec("matplotlib") is not None:
        from DiffDRRCore.evaluation.figures import result_figures

        files += result_figures(folder, volume, xrays, starts, result)
    return files + parts.write(folder, result)


def report(result, seconds: float, files: list[Path], as_json: bool) -> None:
    """What came out, with the warnings that a person needs."""
    values = result.to_dict() | {"seconds": seconds, "files": [str(path) for path in files]}
    lines = [
        f"{'converged' if result.converged else f'NOT converged ({result.reason})'}: "
        f"{len(result.history)} steps, {seconds:.1f} s",
        f"similarity {result.initial_similarity:.4f} at the start, {result.similarity:.4f} at the end",
        "standard deviations, by the image alone (smaller is surer):",
        *_deviations(result),
    ]
    lines += parts.lines(result)
    if result.alternatives:
        lines.append("other optima at the coarsest level; look twice where one is nearly as similar:")
        lines += [_alternative(result, other) for other in result.alternatives]
    lines += [f"doubt: {doubt}" for doubt in result.doubts]
    output.report(values, as_json, [*lines, "written: " + ", ".join(str(path) for path in files)])


_AXES = ("left-right (R)", "front-back (A)", "head-foot (S)")


def _deviations(result) -> list[str]:
    """A row for each axis."""
    values = result.standard_deviations.tolist()
    rows = [
        [f"  {axis} axis", f"{turn:.3f} deg", f"{shift:.3f} mm"]
        for axis, turn, shift in zip(_AXES, values[:3], values[3:], strict=True)
    ]
    head, _, *body = output.table(["  ", "turn about", "shift along"], rows)
    return [head, *body]


def _alternative(result, other: dict) -> str:
    """How similar, and how far from the result the anatomy would lie."""
    import torch

    from DiffDRRCore import Pose

    apart = Pose(torch.tensor(other["motion"], dtype=torch.float64)) @ result.patient_motion
    about = result.about.double()
    distance = float((apart.transform(about[None])[0] - about).norm())
    cosine = (float(apart.rotation.diagonal().sum()) - 1) / 2
    angle = math.degrees(math.acos(max(-1.0, min(1.0, cosine))))
    return f"  similarity {other['similarity']:.3f}, {distance:.1f} mm and {angle:.1f} degrees away"


def _keywords(options) -> dict:
    from DiffDRRCore.registration.problem.motion import Limits

    names = ("similarity", "optimizer", "sizes", "max_steps", "max_seconds", "starts", "search", "robust", "pixels")
    keywords = {name: getattr(options, name) for name in (*names, "seed")}
    keywords |= {"labels": arguments.chosen_labels(options), "start_spread": tuple(options.spread)}
    keywords |= {"second": None if options.grey_values_only else "auto", "beyond_ends": options.beyond_ends}
    if options.max_depth is not None:
        keywords["limits"] = Limits(bounds=(None,) * 5 + (options.max_depth,))
    return keywords
