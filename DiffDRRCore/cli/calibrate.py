"""Calibrate a C-arm by X-rays of a bead phantom: source-to-detector distance, principal point, pixel size, distortion.

The beads are found in each image and matched with the phantom, whatever its pose. All images are of one setting of the
C-arm. What is not free keeps the value of the camera (--camera, or the images' own); a prior says how far a free value
may be from it. Of SDD and pixel size only the ratio shows in images of points: free one of them.

The phantom is a JSON file {"units": "mm", "beads": [{"position": [x, y, z], "radius": 0.8}, ...]}, or a CSV table of
x, y, z, radius in mm.

Example:
  python -m DiffDRRCore calibrate phantom1.dcm phantom2.dcm phantom3.dcm --phantom beads.json -o calibration.json
  python -m DiffDRRCore calibrate *.dcm --phantom beads.csv --distortion grid -o calibration.json --picture fit.png
  python -m DiffDRRCore calibrate patient.dcm --apply calibration.json --undistorted folder
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

from DiffDRRCore.cli import arguments, output
from DiffDRRCore.errors import DiffDRRError

_FREE = ("source_to_detector", "principal_point", "pixel_size", "pixel_ratio")
_UNITS = {"source_to_detector": "mm", "principal_point_u": "px", "principal_point_v": "px", "pixel_size": "mm"}
_PHANTOM_ONLY = ("free", "prior", "distortion", "cells", "radius", "output", "camera_output", "picture")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `calibrate`."""
    parser.add_argument("images", type=Path, nargs="+", help="X-rays: DICOM, or an image with its JSON camera beside")
    parser.add_argument("--phantom", type=Path, help="bead phantom, .json or .csv (see above)")
    parser.add_argument("--apply", type=Path, help="calibration.json of an earlier run, in place of a phantom")
    parser.add_argument(
        "--camera",
        type=Path,
        help="JSON camera or earlier calibration.json to start from, in place of the images' own; its distortion stays "
        "unless --distortion frees it",
    )
    parser.add_argument("--frame", help="of multi-frame files: a number from 0, mean, max or min")
    parser.add_argument("--intensity", choices=("transmission", "attenuation"), help="where the images do not say")
    parser.add_argument("--radius", type=float, nargs=2, metavar=("LEAST", "LARGEST"), help="of the beads, pixels")
    parser.add_argument("--free", nargs="+", choices=_FREE, help="default: source_to_detector principal_point")
    parser.add_argument(
        "--prior", action="append", metavar="NAME=DEVIATION", help="of a free value, in mm or pixels; once for each"
    )
    parser.add_argument(
        "--distortion",
        choices=("radial", "tangential", "grid"),
        help="also find: k1 and k2; k1, k2, p1 and p2; or a smooth grid (image intensifiers)",
    )
    parser.add_argument("--cells", type=int, nargs=2, metavar=("ROWS", "COLUMNS"), help="of the grid; default: 5 5")
    parser.add_argument("-o", "--output", type=Path, help="calibration (.json): camera, distortion, poses, residuals")
    parser.add_argument("--camera-output", type=Path, help="the camera alone (.json), for undistorted images")
    parser.add_argument("--undistorted", type=Path, metavar="FOLDER", help="write the images without distortion")
    parser.add_argument("--picture", type=Path, help=".png, .pdf or .svg of beads and residuals")
    parser.add_argument("--quiet", action="store_true", help="no lines about each image")
    arguments.add_json(parser)


def run(options: argparse.Namespace) -> None:
    """Read, calibrate or apply, report."""
    _check(options)
    xrays = [_read(path, options) for path in options.images]
    if options.apply is not None:
        _apply(options, xrays)
        return
    from DiffDRRCore.calibration import BeadPhantom, calibrate_images

    phantom = BeadPhantom.read(options.phantom)
    show = (lambda line: None) if options.quiet else (lambda line: tqdm.write(line, file=sys.stderr))
    result, views = calibrate_images(
        phantom, xrays, names=_names(options.images), progress=show, **_settings(options, xrays[0].camera)
    )
    _write(options, result, views)
    values = _values(result)
    output.report(values, options.json, _lines(result, options))


def _check(options) -> None:
    if (options.phantom is None) == (options.apply is None):
        raise DiffDRRError("Give either --phantom FILE, to calibrate, or --apply FILE, to use a calibration.")
    if options.apply is not None:
        for name in _PHANTOM_ONLY:
            if getattr(options, name) is not None:
                raise DiffDRRError(f"--{name.replace('_', '-')} is for calibrating; --apply only takes --undistorted.")
        if options.undistorted is None:
            raise DiffDRRError("--apply needs --undistorted FOLDER, where the images go.")
    if options.cells is not None and options.distortion != "grid":
        raise DiffDRRError("--cells is of --distortion grid.")
    if options.camera_output is not None and options.distortion is not None and options.undistorted is None:
        raise DiffDRRError(
            "--camera-output is the camera of undistorted images: give --undistorted FOLDER as well, or -o alone."
        )


def _names(paths: list[Path]) -> list[str]:
    names = [path.name for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def _read(path: Path, options):
    """The image as it was recorded."""
    if options.apply is not None:
        xray = arguments.read_xray(path, _calibrated(options).camera, options.frame)
    elif options.camera is not None:
        start = _start(options)
        xray = arguments.read_xray(path, start.camera, options.frame)
        xray = xray if start.intensity is None else xray.with_image(xray.image, intensity=start.intensity)
    else:
        xray = arguments.read_xray(path, None, options.frame)
    if "undistorted" in xray.meta:
        raise DiffDRRError(
            f"The camera beside '{path}' has a distortion already: give --camera with it, to start from the recorded "
            "image."
        )
    return xray if options.intensity is None else xray.with_image(xray.image, intensity=options.intensity)


def _start(options):
    """What --camera says: a camera to start from, and perhaps a distortion."""
    from DiffDRRCore.imaging.camera_file import read_camera

    return read_camera(options.camera)


def _calibrated(options):
    from DiffDRRCore.calibration import read_calibrated

    return read_calibrated(options.apply)


def _settings(options, camera) -> dict:
    """Keywords of `calibrate_images`."""
    from DiffDRRCore.calibration import GridDistortion, RadialDistortion

    free, distortion = list(options.free or _FREE[:2]), None
    if options.distortion == "grid":
        distortion = GridDistortion.of_image(camera, tuple(options.cells or (5, 5)))
    elif options.distortion is not None:
        distortion = RadialDistortion.of_image(camera)
    if options.camera is not None and (known := _start(options).distortion) is not None:
        distortion = _known_distortion(options, known, distortion)
    free += {None: [], "tangential": ["distortion", "tangential"]}.get(options.distortion, ["distortion"])
    radius = None if options.radius is None else tuple(options.radius)
    priors = dict(_prior(text) for text in options.prior or ())
    return {"free": (*free, "poses"), "distortion": distortion, "radius_range": radius, "priors": priors}


def _known_distortion(options, known, wanted):
    """That of --camera: kept, or, with --distortion of its kind, where that starts."""
    if wanted is not None and type(wanted) is not type(known):
        raise DiffDRRError(f"The distortion in '{options.camera}' is of another kind than --distortion says.")
    if options.cells is not None and tuple(options.cells) != known.cells:
        raise DiffDRRError(f"The distortion in '{options.camera}' has other --cells: {known.cells}.")
    return known


def _prior(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        return name.strip(), float(value)
    except ValueError as error:
        raise DiffDRRError(f"A prior is NAME=DEVIATION, as in source_to_detector=5, not '{text}'.") from error


def _write(options, result, views) -> None:
    if options.output is not None:
        result.save(options.output)
    if options.camera_output is not None:
        from DiffDRRCore.imaging.camera_file import write_camera

        write_camera(options.camera_output, result.camera)
    if options.picture is not None:
        from DiffDRRCore.calibration.figure import calibration_figure

        calibration_figure(options.picture, result, views)
    if options.undistorted is not None:
        for view, pose in zip(views, result.poses, strict=True):
            _write_undistorted(options.undistorted, view.name, view.xray, result.camera, result.distortion, pose)


def _apply(options, xrays) -> None:
    camera, distortion = _calibrated(options)
    paths = [
        _write_undistorted(options.undistorted, name, xray, camera, distortion, xray.pose)
        for name, xray in zip(_names(options.images), xrays, strict=True)
    ]
    output.report({"written": [str(path) for path in paths]}, options.json, [f"written: {path}" for path in paths])


def _write_undistorted(folder: Path, name: str, xray, camera, distortion, pose) -> Path:
    from DiffDRRCore import XRay

    xray = xray if distortion is None else xray.undistorted(distortion, camera)
    path = folder / f"{Path(name).name.split('.')[0]}.nii.gz"
    if path.exists():
        raise DiffDRRError(f"'{path}' is there already: give another folder, or images of different names.")
    XRay(xray.image, camera, pose, xray.meta).write(path)
    return path


def _values(result) -> dict:
    return {
        "values": result.values,
        "deviations": result.deviations,
        "undetermined": result.undetermined,
        "rms": result.rms,
        "noise": result.noise,
        "views": result.per_view(),
        "distortion": None if result.distortion is None else result.distortion.to_dict(),
    }


def _lines(result, options) -> list[str]:
    """Two tables: what was found, and the residuals of each image."""
    found = [
        [name, f"{value:.5g}", f"{result.deviations[name]:.2g}", _UNITS.get(name, "")]
        for name, value in result.values.items()
    ]
    rows = [[row["view"], row["used"], row["left_out"], row["rms"], row["largest"]] for row in result.per_view()]
    lines = output.table(["value", "found", "deviation", "unit"], found) if found else []
    if result.distortion is not None:
        lines += [f"distortion: up to {result.distortion.largest(result.camera):.3g} pixels in the image"]
    lines += ["", *output.table(["image", "beads", "left out", "rms (px)", "largest (px)"], rows)]
    lines += [f"all: {result.rms:.3f} pixels rms, noise {result.noise:.3f} pixels"]
    return lines + [f"written: {path}" for path in (options.output, options.camera_output, options.picture) if path]
