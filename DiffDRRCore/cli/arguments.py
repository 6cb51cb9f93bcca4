"""Arguments that several commands share, and what they become. Heavy imports wait until a command runs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from DiffDRRCore.errors import DiffDRRError, MissingGeometryError, RenderError

if TYPE_CHECKING:
    from DiffDRRCore import Camera, Pose, Volume, XRay
    from DiffDRRCore.geometry.motion_files import Motion

_CAMERA_NUMBERS = ("height", "width", "pixel_spacing", "sdd")
_ANGLES = ("primary", "secondary", "roll")
_DISTANCE_MM = (100.0, 10000.0)  # from source to isocentre or detector; as imaging.camera_file has it


def add_volume(parser: argparse.ArgumentParser) -> None:
    """CT, labelmap, labels."""
    parser.add_argument("ct", type=Path, help="CT: NIfTI, NRRD, MetaImage, or a DICOM folder")
    parser.add_argument("--series", help="SeriesInstanceUID, where the DICOM folder holds several CTs")
    parser.add_argument("--labelmap", type=Path, help="labelmap of the CT, on any grid")
    parser.add_argument("--label-names", type=Path, help="CSV file with number and name of each label")
    parser.add_argument(
        "--labels", help="structures to use, by number or name, separated by commas; default: everything"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to render; default: cpu")


def add_camera(parser: argparse.ArgumentParser) -> None:
    """A camera and a C-arm pose, from a file or in numbers."""
    group = parser.add_argument_group("camera and pose (a JSON file, or numbers)")
    group.add_argument("--camera", type=Path, help="JSON camera (see the README); may hold the pose too")
    group.add_argument("--height", type=int, help="image rows (pixels)")
    group.add_argument("--width", type=int, help="image columns (pixels)")
    group.add_argument("--pixel-spacing", type=float, nargs=2, metavar=("ROW", "COL"), help="mm, at the detector")
    group.add_argument("--sdd", type=float, help="source-to-detector distance, mm")
    group.add_argument(
        "--view-from", choices=("source", "detector"), help="side the image is seen from; default: source"
    )
    group.add_argument(
        "--pose", type=Path, help="C-arm pose: .json, .tfm, .h5 (camera_to_world), in place of the angles"
    )
    add_carm(group)


def add_carm(group) -> None:
    """C-arm angles."""
    group.add_argument("--sod", type=float, help="source-to-isocentre distance, mm")
    group.add_argument("--primary", type=float, help="positioner primary angle, degrees, + LAO; default: 0")
    group.add_argument("--secondary", type=float, help="positioner secondary angle, degrees, + CRA; default: 0")
    group.add_argument("--roll", type=float, help="rotation about the beam, degrees; default: 0")
    group.add_argument(
        "--isocenter", type=float, nargs=3, metavar=("R", "A", "S"), help="RAS mm; default: the CT's centre"
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """--json."""
    parser.add_argument("--json", action="store_true", help="print one JSON object to standard output, nothing else")


def read_volume(options) -> Volume:
    """The CT with its labels, all of it."""
    from DiffDRRCore import Volume

    names = {} if options.label_names is None else {"label_names": options.label_names}
    return Volume.read(options.ct, options.labelmap, series=options.series, **names)


def check_device(options) -> None:
    """Raises RenderError where there is no device as asked for."""
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        raise RenderError("PyTorch finds no CUDA device here; leave out --device cuda.")


def chosen_labels(options) -> list[int | str] | None:
    """--labels as numbers and names."""
    if options.labels is None:
        return None
    return [number_or_word(part.strip()) for part in options.labels.split(",")]


def number_or_word(text: str | None) -> int | str | None:
    """A whole number where the text is one: a label, a frame."""
    try:
        return text if text is None else int(text)
    except ValueError:
        return text


def refuse_together(options, one: str, others: tuple[str, ...]) -> None:
    """Raise DiffDRRError where `one` is given and so is any of `others`, which it would silently win over."""
    for other in others:
        if getattr(options, one) is not None and getattr(options, other) is not None:
            flags = [f"--{name.replace('_', '-')}" for name in (one, other)]
            raise DiffDRRError(f"{flags[0]} and {flags[1]} contradict each other: give one of them.")


def check_mm(flag: str, value: float, low: float = _DISTANCE_MM[0], high: float = _DISTANCE_MM[1]) -> None:
    """Raise DiffDRRError for a length that looks like another unit than mm."""
    if low <= value <= high:
        return
    units = (("centimetres", 10.0), ("metres", 1000.0))
    guess = next((f"looks like {unit}" for unit, factor in units if low <= value * factor <= high), "cannot be")
    raise DiffDRRError(f"{flag} {value:g} {guess}: give it in millimetres, {low:g} to {high:g}.")


def check_between(sod: float, sdd: float) -> None:
    """Raise DiffDRRError for an isocentre that does not lie between source and detector (mm)."""
    if sod >= sdd:
        raise DiffDRRError(
            f"--sod {sod:g} mm puts the isocentre behind the detector, which is {sdd:g} mm from the source: it lies "
            "between the two."
        )


def check_carm(options) -> None:
    """Raise DiffDRRError for angles that would be ignored because --sod is not there, and one in metres."""
    if options.sod is not None:
        check_mm("--sod", options.sod)
    given = [name for name in _ANGLES if getattr(options, name) is not None]
    if given and options.sod is None:
        raise DiffDRRError(f"--{given[0]} needs --sod, the source-to-isocentre distance in mm.")


def camera_and_pose(options, volume: Volume) -> tuple[Camera, Pose]:
    """The camera and the pose that the arguments say. Raises DiffDRRError that names what is missing."""
    from DiffDRRCore import Camera
    from DiffDRRCore.imaging.camera_file import check_units, read_camera

    refuse_together(options, "camera", (*_CAMERA_NUMBERS, "view_from"))
    refuse_together(options, "pose", ("sod", *_ANGLES, "isocenter"))
    check_carm(options)
    if options.camera is not None:
        from_file = read_camera(options.camera)
        camera, pose = from_file.camera, from_file.pose
    else:
        missing = [name for name in _CAMERA_NUMBERS if getattr(options, name) is None]
        if missing:
            names = ", ".join(f"--{name.replace('_', '-')}" for name in missing)
            raise DiffDRRError(f"The camera is not complete: give --camera FILE, or {names} as well.")
        side = options.view_from or "source"
        camera = Camera(options.height, options.width, options.pixel_spacing, options.sdd, view_from=side)
        check_units(camera, "The command line")
        pose = None
    if options.pose is not None:
        pose = read_pose(options.pose)
    elif options.sod is not None or pose is None:
        pose = carm_pose(options, float(camera.source_to_detector), volume)
    return camera, pose


def carm_pose(options, sdd: float, volume: Volume) -> Pose:
    """The pose of --sod, --primary, --secondary, --roll and --isocenter."""
    from DiffDRRCore import CArm

    if options.sod is None:
        raise DiffDRRError("There is no pose: give --pose FILE, a JSON camera with a pose, or --sod and the angles.")
    check_between(options.sod, sdd)
    isocenter = volume.center if options.isocenter is None else options.isocenter
    return CArm(sdd, options.sod, isocenter, *(getattr(options, name) or 0.0 for name in _ANGLES)).pose


def result_file(path: Path) -> Path:
    """The result.json of a folder that `register` wrote; any other path as it is."""
    if not path.is_dir():
        return path
    if not (path / "result.json").exists():
        raise DiffDRRError(f"There is no result.json in the folder '{path}': give the folder that `register` wrote.")
    return path / "result.json"


def read_pose(path: Path, view: int = 0) -> Pose:
    """A camera_to_world pose from a JSON camera, a saved result (.json) or an ITK transform (.tfm, .txt, .h5)."""
    from DiffDRRCore import Pose
    from DiffDRRCore.geometry.itk_transform import read_itk_transform
    from DiffDRRCore.imaging.camera_file import read_camera
    from DiffDRRCore.registration.result import RegistrationResult

    if path.suffix != ".json":
        return Pose(read_itk_transform(path))
    if RegistrationResult.is_saved_at(path):
        poses = RegistrationResult.load(path).poses
        if not 0 <= view < len(poses):
            raise DiffDRRError(f"'{path}' holds {len(poses)} views, there is no view {view}.")
        return poses[view]
    pose = read_camera(path).pose
    if pose is None:
        raise DiffDRRError(f"'{path}' holds a camera but no pose.")
    return pose


def read_motions(path: Path, bodies: list[str] | None = None, interpolated: bool = True) -> dict[str, Motion]:
    """{body: motion} of a tracking's folder or tracking.json, of a table (.csv) or of a .tra file.

    Args:
        bodies: names of those of a .tra file.  interpolated: of a tracking, whether frames that were lost count.
    """
    from DiffDRRCore.geometry.motion_files import is_table, read_table, read_tra
    from DiffDRRCore.registration.tracking import TrackingResult

    if path.is_dir():
        path = path / "tracking.json"
    if not path.exists():
        raise DiffDRRError(f"There is no file '{path}' of motions.")
    if path.suffix.lower() == ".json":
        result = TrackingResult.load(path)
        return {body: result.motion(body, interpolated) for body in result.bodies}
    return read_table(path) if is_table(path) else read_tra(path, bodies)


def read_xray(path: Path, camera: Camera | Path | None = None, frame: str | None = None) -> XRay:
    """An X-ray as it is in its file, with its geometry."""
    from DiffDRRCore import XRay

    try:
        return XRay.read(path, frame=number_or_word(frame), camera=camera)
    except MissingGeometryError as error:
        lacks = ", ".join(error.missing)
        message = f"'{path}' does not say {lacks}: give --camera FILE.json with the geometry (see the README)."
        raise MissingGeometryError(message, error.missing) from error


def prepared_xray(path: Path, camera: Path | None, options) -> XRay:
    """An X-ray in attenuation, preprocessed as the arguments say."""
    return prepared(read_xray(path, camera, options.frame), options)


def prepared(xray: XRay, options) -> XRay:
    """An X-ray that has been read, in attenuation, preprocessed as the arguments say."""
    from DiffDRRCore.imaging.preprocessing import preprocess

    if options.intensity is not None:
        xray = xray.with_image(xray.image, intensity=options.intensity)
    crop = options.crop if options.crop is None or len(options.crop) > 1 else options.crop[0]
    if isinstance(crop, list):
        try:
            crop = tuple(int(side) for side in crop)
        except ValueError as error:
            raise DiffDRRError(f"--crop takes four whole numbers or 'find', got {' '.join(options.crop)}.") from error
    return preprocess(xray, crop=crop, i0=options.i0, smoothing=options.smoothing)
