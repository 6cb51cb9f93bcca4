"""The JSON camera: the geometry of an X-ray image beside the image.

A JSON object, lengths in mm, pixels as (column u, row v) with integers at pixel centres. Either the physical form

    {"height": 480, "width": 640, "pixel_spacing": [0.3, 0.3], "source_to_detector": 1020.0,
     "principal_point": [319.5, 239.5], "view_from": "detector"}

`pixel_spacing` is [row_mm, col_mm] at the detector, `principal_point` [u0, v0] (default: the image's centre) and
`view_from` "source" (default) or "detector" (radiological display); or a matrix, which carries both of them:

    {"height": 480, "width": 640, "K": [[3400, 0, 319.5], [0, 3400, 239.5], [0, 0, 1]], "source_to_detector": 1020.0}

with "pixel_spacing" in place of "source_to_detector" if only that is known. Optional in both:

    "pose"       4 x 4 camera_to_world, world = RAS mm (rigid, determinant +1)
    "parallel"   true for parallel rays (physical form only)
    "intensity"  "transmission" (large = more X-rays arrived) or "attenuation" (large = more matter)
    "units"      "mm", the only one
    "meta"       an object of anything, kept as it is
    "distortion" of the image that the camera belongs to (see `distortion_file`): `XRay.read` undoes it

A calibration file, as `calibrate` writes it, is read as well: its camera and distortion. Unknown keys are errors, so
that a misspelt one is not overlooked.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import torch

from DiffDRRCore.errors import GeometryError, MissingGeometryError, ReadError
from DiffDRRCore.files import read_text, replacing
from DiffDRRCore.geometry.camera import Camera
from DiffDRRCore.geometry.pose import Pose
from DiffDRRCore.imaging.distortion import Distortion
from DiffDRRCore.imaging.distortion_file import distortion_of

CALIBRATION = "calibration"  # the "kind" of a calibration file
INTENSITIES = ("transmission", "attenuation")
LIMITS_MM = {"source_to_detector": (100.0, 10000.0), "pixel_spacing": (0.005, 20.0)}

_REQUIRED = ("height", "width")
_OPTIONAL = (
    "K",
    "pixel_spacing",
    "source_to_detector",
    "principal_point",
    "view_from",
    "pose",
    "parallel",
    "intensity",
    "units",
    "meta",
)
_LARGEST_FILE = 1 << 20
_LARGEST_SIDE = 1 << 16


class CameraFile(NamedTuple):
    """What a JSON camera holds; `pose`, `intensity` and `distortion` are None where it does not say."""

    camera: Camera
    pose: Pose | None
    intensity: str | None
    meta: dict[str, Any]
    distortion: Distortion | None = None


def read_camera(path: str | Path) -> CameraFile:
    """Read a JSON camera (see the module's text for its keys), or the camera and distortion of a calibration file.

    The poses in a calibration file are those of the phantom's images and are not read. Whoever takes the camera of a
    file with a distortion for an image that is not undistorted has to undo it: `XRay.undistorted`.

    Raises ReadError: not JSON, unknown keys, wrong shapes, numbers that are not finite or that look like another unit,
    a pose that is not rigid, K without focal length; MissingGeometryError: keys that are needed and not there.
    """
    path, where = Path(path), f"Camera file '{path}'"
    content = _load(path)
    if isinstance(content, dict) and content.get("kind") == CALIBRATION:
        camera, distortion = calibrated_from_dict(content, where)
        return CameraFile(camera, None, None, {}, distortion)
    distortion = content.pop("distortion", None) if isinstance(content, dict) else None
    camera = camera_from_dict(content, where)
    try:
        pose = _pose(where, content)
    except GeometryError as error:
        raise ReadError(f"{where}: {error}") from error
    check_units(camera, where)
    distortion = distortion_of(camera, distortion, where)
    return CameraFile(camera, pose, content.get("intensity"), content.get("meta", {}), distortion)


def calibrated_from_dict(content: dict[str, Any], where: str) -> tuple[Camera, Distortion | None]:
    """Camera and distortion of a calibration file's object; `where` begins each message.

    Raises ReadError: no camera, damaged, numbers in another unit, a distortion of another image size.
    """
    if content.get("units") != "mm" or "camera" not in content:
        raise ReadError(f"{where} lacks its camera, or is not in mm.")
    camera = camera_from_dict(content["camera"], where)
    check_units(camera, where)
    return camera, distortion_of(camera, content.get("distortion"), where)


def camera_from_dict(content: Any, where: str) -> Camera:
    """The camera of an object as the module's text describes it, however it was kept; `where` begins each message.

    Raises ReadError and MissingGeometryError as `read_camera`, but takes lengths of any size.
    """
    if not isinstance(content, dict):
        raise ReadError(f"{where} must be one JSON object, not a {type(content).__name__}.")
    _check_keys(where, content)
    height, width = (_integer(where, content, key) for key in _REQUIRED)
    try:
        return _camera(where, content, height, width)
    except GeometryError as error:
        raise ReadError(f"{where}: {error}") from error


def camera_to_dict(camera: Camera) -> dict[str, Any]:
    """What `camera_from_dict` makes the same camera of, to the last bit. Raises GeometryError for a batch."""
    if camera.K.dim() != 2:
        raise GeometryError("A camera file holds one camera and one pose: index the batch first.")
    return {"height": camera.height, "width": camera.width, **_form(camera)}


def write_camera(
    path: str | Path,
    camera: Camera,
    pose: Pose | None = None,
    intensity: str | None = None,
    meta: dict[str, Any] | None = None,
    distortion: Distortion | None = None,
) -> None:
    """Write a JSON camera that `read_camera` reads back with the same numbers (as float64).

    The physical form is written where it gives back K to the last bit, else K (a parallel camera: always the physical
    form, exact to rounding). A `distortion` is that of the recorded image, which reading undoes. Raises GeometryError
    for a batch of cameras or poses, ReadError for meta that JSON cannot hold.
    """
    if pose is not None and pose.matrix.dim() != 2:
        raise GeometryError("A camera file holds one camera and one pose: index the batch first.")
    content: dict[str, Any] = {"units": "mm", **camera_to_dict(camera)}
    optional = {"intensity": intensity, "meta": meta or None}
    content.update({key: value for key, value in optional.items() if value is not None})
    if distortion is not None:
        content["distortion"] = distortion.to_dict()
    if pose is not None:
        content["pose"] = pose.matrix.detach().tolist()
    try:
        text = json.dumps(content, indent=1, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ReadError(
            f"Cannot write '{path}': the X-ray's meta has something that JSON cannot hold ({error})."
        ) from error
    with replacing(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def check_units(camera: Camera, where: str) -> None:
    """Raise ReadError where distances cannot be mm: SDD outside 100..10000 mm or pixels outside 0.005..20 mm."""
    values = {
        "source_to_detector": camera.source_to_detector.detach().reshape(-1).tolist(),
        "pixel_spacing": camera.pixel_spacing.detach().reshape(-1).tolist(),
    }
    for key, (low, high) in LIMITS_MM.items():
        for value in values[key]:
            if not low <= value <= high:
                raise ReadError(
                    f"{where}: {key} = {value:g} mm is outside {low:g}..{high:g} mm, which {_guess(value, low, high)}; "
                    "give it in millimetres."
                )


def _guess(value: float, low: float, high: float) -> str:
    for unit, factor in (("centimetres", 10.0), ("metres", 1000.0), ("micrometres", 0.001)):
        if low <= value * factor <= high:
            return f"looks like {unit}"
    return "is no X-ray camera's"


def _load(path: Path) -> Any:
    text = read_text(path, "camera file", _LARGEST_FILE)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ReadError(f"Camera file '{path}' is not JSON: {error}.") from error


def _check_keys(where: str, content: dict[str, Any]) -> None:
    unknown = [key for key in content if key not in _REQUIRED + _OPTIONAL]
    if unknown:
        known = ", ".join(_REQUIRED + _OPTIONAL)
        raise ReadError(f"{where} has the unknown key {unknown[0]!r}; known are {known}.")
    missing = [key for key in _REQUIRED if key not in content]
    needed = ("pixel_spacing", "source_to_detector")
    absent = [key for key in needed if key not in content]
    if "K" not in content or len(absent) == len(needed):
        missing += [f"{key} (mm)" for key in absent]
    if missing:
        raise MissingGeometryError(f"{where} lacks {', '.join(missing)}.", missing)
    excess = [key for key in ("principal_point", "view_from") if "K" in content and key in content]
    if excess or ("K" in content and not absent):
        excess = excess or list(needed)
        raise ReadError(f"{where} gives K and {' and '.join(excess)}: K says it already, leave one out.")
    _check_choices(where, content)


def _check_choices(where: str, content: dict[str, Any]) -> None:
    choices = {
        "units": ("mm",),
        "intensity": INTENSITIES,
        "view_from": ("source", "detector"),
        "parallel": (True, False),
    }
    for key, allowed in choices.items():
        if key in content and not any(content[key] is value or content[key] == value for value in allowed):
            raise ReadError(f"{where}: {key} is one of {list(allowed)}, not {content[key]!r}.")
    if not isinstance(content.get("meta", {}), dict):
        raise ReadError(f"{where}: meta must be an object.")


def _camera(where: str, content: dict[str, Any], height: int, width: int) -> Camera:
    parallel = bool(content.get("parallel", False))
    if "K" in content:
        K = torch.tensor(_numbers(where, content, "K", (3, 3)), dtype=torch.float64)
        key = "source_to_detector" if "source_to_detector" in content else "pixel_spacing"
        if parallel:
            raise ReadError(f"{where}: give a parallel camera by pixel_spacing, not by K.")
        shape = () if key == "source_to_detector" else (2,)
        return Camera.from_intrinsics(K, height, width, **{key: _numbers(where, content, key, shape)})
    spacing = _numbers(where, content, "pixel_spacing", (2,))
    distance = _numbers(where, content, "source_to_detector", ())
    point = _numbers(where, content, "principal_point", (2,)) if "principal_point" in content else None
    build = Camera.parallel_beam if parallel else Camera
    return build(height, width, spacing, distance, point, content.get("view_from", "source"))


def _pose(where: str, content: dict[str, Any]) -> Pose | None:
    if content.get("pose") is None:
        return None
    return Pose(torch.tensor(_numbers(where, content, "pose", (4, 4)), dtype=torch.float64))


def _form(camera: Camera) -> dict[str, Any]:
    """The keys that say K, SDD and side: the physical form if it is exact."""
    K = camera.K.detach().to("cpu", torch.float64)
    distance = float(camera.source_to_detector.detach())
    spacing = camera.pixel_spacing.detach().to("cpu", torch.float64).tolist()
    physical = {
        "pixel_spacing": spacing,
        "source_to_detector": distance,
        "principal_point": K[:2, 2].tolist(),
        "view_from": camera.view_from,
    }
    if camera.parallel:
        physical["parallel"] = True
    build = Camera.parallel_beam if camera.parallel else Camera
    again = build(camera.height, camera.width, spacing, distance, physical["principal_point"], camera.view_from)
    if torch.equal(again.K.to(torch.float64), K):
        return physical
    if not camera.parallel:
        return {"K": K.tolist(), "source_to_detector": distance}
    if K[0, 1] != 0:
        raise GeometryError("A parallel camera with skew cannot be written to a camera file.")
    return physical


def _integer(where: str, content: dict[str, Any], key: str) -> int:
    value = content[key]
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _LARGEST_SIDE:
        raise ReadError(f"{where}: {key} must be a whole number of pixels, 1 or more, not {value!r}.")
    return value


def _numbers(where: str, content: dict[str, Any], key: str, shape: tuple[int, ...]):
    """The value of `key` as nested lists of floats of that shape."""
    value = content[key]
    if not _has_shape(value, shape):
        wanted = " x ".join(map(str, shape)) + " numbers" if shape else "a number"
        raise ReadError(f"{where}: {key} must be {wanted}, not {str(value)[:80]}.")
    if not _all_finite(value):
        raise ReadError(f"{where}: {key} has a number that is not finite.")
    return value


def _has_shape(value, shape: tuple[int, ...]) -> bool:
    if not shape:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, list) and len(value) == shape[0] and all(_has_shape(item, shape[1:]) for item in value)


def _all_finite(value) -> bool:
    if isinstance(value, list):
        return all(_all_finite(item) for item in value)
    return math.isfinite(value) and abs(value) < 1e300
