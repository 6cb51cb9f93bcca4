"""Convert a CT, an X-ray, a pose, a motion or a subject of a dataset into other files.

  convert ct       DICOM folder or image -> .nii.gz, .nrrd, .mha (voxels and grid exactly)
  convert xray     DICOM or image with a JSON camera -> image with a JSON camera (values and geometry exactly)
  convert pose     .json, .tfm, .h5, or .csv (3 x 4 or 4 x 4 numbers, see --from) -> .tfm, .h5, .csv, .json (--camera)
  convert motion   .tra (Autoscoper), or .csv (XMALab's, or a table of bodies and frames) -> .tra, .csv (a table)
  convert dataset  one subject of an HDF5 file or folder -> a new folder: CT, labels, landmarks, X-rays, dataset.json

Poses are camera_to_world in RAS and mm, unless --from or --to says otherwise. Those of a motion take the CT of a body
to the world of its file, which stays as it is; --from and --to say which coordinates of the CT they start from.

Example:
  python -m DiffDRRCore convert pose extrinsics.csv carm.tfm --from lps-world-to-camera
  python -m DiffDRRCore convert motion radius.tra radius.csv --from autoscoper --to ras --ct radius.nii.gz
  python -m DiffDRRCore convert dataset ljubljana.h5 patient1 --subject 0 --format dicom
"""

from __future__ import annotations

import argparse
from pathlib import Path

from DiffDRRCore.cli import arguments, convert_motion, datasets, output
from DiffDRRCore.errors import DiffDRRError, ReadError

# The options that each kind takes; others would be ignored in silence.
_OPTIONS = {
    "ct": {
        "series": "--series",
        "resample_uneven": "--resample-uneven",
        "labelmap": "--labelmap",
        "labelmap_output": "--labelmap-output",
    },
    "xray": {"frame": "--frame", "camera": "--camera"},
    "pose": {"view": "--view", "camera": "--camera", "source": "--from", "target": "--to"},
    "motion": convert_motion.OPTIONS,
    "dataset": {"subject": "--subject", "xrays": "--xrays", "format": "--format", "prepared": "--prepared"},
}
RESAMPLE_HELP = "interpolate slices that lack or lie at uneven distances on to even ones; default: an error names them"
CONVENTIONS = ("ras-camera-to-world", "ras-world-to-camera", "lps-camera-to-world", "lps-world-to-camera")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `convert`."""
    parser.add_argument("kind", choices=tuple(_OPTIONS))
    parser.add_argument("input", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--view", type=int, help="pose: view of a registration result with several, from 0; default: 0")
    parser.add_argument("--series", help="ct: SeriesInstanceUID, where the DICOM folder holds several")
    parser.add_argument("--resample-uneven", action="store_const", const=True, help=f"ct: {RESAMPLE_HELP}")
    parser.add_argument("--labelmap", type=Path, help="ct: labelmap to bring to the CT's grid")
    parser.add_argument("--labelmap-output", type=Path, help="ct: where to write it")
    parser.add_argument("--frame", help="xray: an index from 0, or mean, max, min")
    parser.add_argument(
        "--camera", type=Path, help="xray, pose: JSON camera in place of the header, or for a .json pose"
    )
    parser.add_argument(
        "--from",
        dest="source",
        choices=CONVENTIONS + convert_motion.COORDINATES,
        help=f"pose: what a .csv input holds (OpenCV's extrinsics are world-to-camera); default: {CONVENTIONS[0]}; "
        "motion: coordinates of the CT that the input's poses start from",
    )
    parser.add_argument(
        "--to",
        dest="target",
        choices=CONVENTIONS + convert_motion.COORDINATES,
        help=f"pose: what a .csv output holds; default: {CONVENTIONS[0]}; motion: as --from, of the output",
    )
    parser.add_argument("--subject", help="dataset: name of the subject, or its place from 0")
    parser.add_argument(
        "--xrays", help="dataset: FIRST:LAST (places from 0, the last included), or names with commas; default: all"
    )
    parser.add_argument(
        "--format",
        choices=("png", "dicom", "nii.gz", "nrrd", "tif"),
        help="dataset: of the X-rays; png (the default) writes those that are not whole numbers as tif",
    )
    parser.add_argument(
        "--prepared",
        action="store_const",
        const=True,
        help="dataset: X-rays as a registration takes them (DeepFluoro, Ljubljana: cropped, in attenuation); "
        "default: pixels as they are in the file",
    )
    convert_motion.add_arguments(parser)
    arguments.add_json(parser)


def run(options: argparse.Namespace) -> None:
    """Convert, report."""
    _refuse_unused(options)
    kinds = {
        "ct": _ct,
        "xray": _xray,
        "pose": _pose,
        "motion": convert_motion.convert_motion,
        "dataset": datasets.export,
    }
    values = kinds[options.kind](options)
    values = values or {"output": str(options.output)}
    output.report(values, options.json, [f"written: {values['output']}"])


def _refuse_unused(options) -> None:
    flags = {name: flag for names in _OPTIONS.values() for name, flag in names.items()}
    used = set(_OPTIONS[options.kind])
    known = {"pose": CONVENTIONS, "motion": convert_motion.COORDINATES}.get(options.kind, ())
    for flag, value in (("--from", options.source), ("--to", options.target)):
        if known and value is not None and value not in known:
            raise DiffDRRError(f"{flag} of a {options.kind} is one of {', '.join(known)}, not {value}.")
    if options.kind == "motion":
        used -= convert_motion.unused(options)
    if options.kind == "pose":
        files = {"source": options.input, "target": options.output}
        used -= {name for name, path in files.items() if path.suffix != ".csv"}
        used -= {"view"} if options.input.suffix != ".json" else set()
        used -= {"camera"} if options.output.suffix != ".json" else set()
    for name, flag in flags.items():
        if name not in used and getattr(options, name) is not None:
            raise DiffDRRError(f"{flag} has no meaning for this conversion: leave it out (see convert --help).")


def _ct(options) -> None:
    if (options.labelmap is None) != (options.labelmap_output is None):
        raise DiffDRRError("--labelmap and --labelmap-output go together.")
    files = (options.input, options.output, options.series, options.labelmap, options.labelmap_output)
    convert_ct(*files, bool(options.resample_uneven))


def convert_ct(
    source: Path,
    target: Path,
    series: str | None,
    labelmap: Path | None = None,
    labelmap_target: Path | None = None,
    resample_uneven: bool = False,
) -> None:
    """Read a CT, and its labelmap, and write them. Raises DiffDRRError, for names of files before anything is done."""
    from DiffDRRCore import Volume
    from DiffDRRCore.imaging.image_files import WRITABLE

    for path in filter(None, (target, labelmap_target)):
        if not path.name.lower().endswith(WRITABLE):
            raise DiffDRRError(f"Cannot write '{path}': the file name must end in one of {', '.join(WRITABLE)}.")
    uneven = "resample" if resample_uneven else "error"
    Volume.read(source, labelmap, series=series, uneven=uneven).write(target, labelmap_target)


def _xray(options) -> None:
    arguments.read_xray(options.input, options.camera, options.frame).write(options.output)


def _pose(options) -> None:
    from DiffDRRCore.geometry.itk_transform import write_itk_transform
    from DiffDRRCore.imaging.camera_file import read_camera, write_camera

    pose = (
        _read_matrix(options.input, options.source or CONVENTIONS[0])
        if options.input.suffix == ".csv"
        else arguments.read_pose(options.input, options.view or 0)
    )
    if options.output.suffix == ".csv":
        _write_matrix(options.output, pose, options.target or CONVENTIONS[0])
    elif options.output.suffix == ".json":
        if options.camera is None:
            raise DiffDRRError("A pose is written as .json together with its camera: give --camera FILE.json.")
        given = read_camera(options.camera)
        write_camera(options.output, given.camera, pose, distortion=given.distortion)
    else:
        write_itk_transform(options.output, pose.matrix)


def _read_matrix(path: Path, convention: str):
    import numpy as np

    from DiffDRRCore import Pose
    from DiffDRRCore.geometry.converters import lps_to_ras

    try:
        rows = [line.replace(",", " ").split() for line in path.read_text(encoding="utf-8-sig").splitlines()]
        numbers = [[float(cell) for cell in row] for row in rows if row]
    except OSError as error:
        raise ReadError(f"Cannot read '{path}': {error.strerror or error}.") from error
    except ValueError as error:
        raise ReadError(f"'{path}' is not a matrix of numbers: {error}.") from error
    if len(numbers) not in (3, 4) or any(len(row) != 4 for row in numbers):
        raise ReadError(f"'{path}' must hold 3 or 4 rows of 4 numbers, separated by commas or blanks.")
    matrix = np.vstack([numbers, [[0.0, 0.0, 0.0, 1.0]]])[:4]
    pose = Pose(matrix) if convention.endswith("camera-to-world") else Pose(matrix).inverse()
    return Pose(lps_to_ras(pose.matrix)) if convention.startswith("lps") else pose


def _write_matrix(path: Path, pose, convention: str) -> None:
    import numpy as np

    from DiffDRRCore import Pose
    from DiffDRRCore.files import replacing
    from DiffDRRCore.geometry.converters import lps_to_ras

    pose = Pose(lps_to_ras(pose.matrix)) if convention.startswith("lps") else pose
    pose = pose if convention.endswith("camera-to-world") else pose.inverse()
    with replacing(path) as temporary:
        np.savetxt(temporary, pose.matrix.numpy() + 0.0, delimiter=",", fmt="%.17g")
