"""Views by calibrated cameras, frame by frame, as videoradiography takes them; see `DiffDRRCore.datasets.folder`."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from DiffDRRCore.datasets.folder.keys import check_keys, one_of, stem
from DiffDRRCore.errors import GeometryError, MissingGeometryError, ReadError
from DiffDRRCore.geometry import Camera, Pose
from DiffDRRCore.geometry.converters import from_opencv, lps_to_ras
from DiffDRRCore.geometry.tensors import homogeneous
from DiffDRRCore.imaging.calibration_file import Calibration, nearest_rotation, read_calibration
from DiffDRRCore.imaging.camera_file import INTENSITIES

_SET = ("cameras", "frames", "ct_to_calibration", "ct_frame", "intensity", "undistorted")
_CAMERA = ("calibration", "images", "source_to_detector", "pixel_spacing", "intensity")


@dataclass(frozen=True)
class CalibratedCamera:
    """One camera of a set.

    calibration        its file
    others             the files of all cameras of the set
    scale              source_to_detector or pixel_spacing, as `from_opencv` asks
    ct_to_calibration  where the CT lies, 4 x 4 numbers, from the CT's coordinates to the calibration's; None: unknown
    ct_frame           the CT's coordinates in that: "LPS" or "RAS"
    """

    calibration: Path
    others: tuple[Path, ...]
    scale: dict[str, Any]
    ct_to_calibration: tuple[tuple[float, ...], ...] | None
    ct_frame: str

    def read(self, size: tuple[int, int], ct_center: Tensor | None) -> tuple[Camera, Pose]:
        """Camera and camera_to_world (RAS mm of the CT) for an image of `size` (height, width).

        Where it is not known where the CT lies, its centre (`ct_center`, RAS mm) is put where the central rays of the
        cameras meet, its axes along the calibration's: a start, right in how the cameras lie to each other.
        """
        calibration = read_calibration(self.calibration)
        if sorted(calibration.size) != sorted(size):
            sizes = f"{calibration.size[0]} and {calibration.size[1]}", f"{size[0]} x {size[1]}"
            raise ReadError(f"'{self.calibration}' is for images of {sizes[0]} pixels, but the image has {sizes[1]}.")
        try:
            camera, to_calibration = from_opencv(*calibration[1:], *size, **self.scale)
        except GeometryError as error:
            raise ReadError(f"'{self.calibration}': {error}") from error
        if self.ct_to_calibration is not None:
            placed = torch.tensor(self.ct_to_calibration, dtype=torch.float64)
        else:
            placed = self._at_the_middle(ct_center)
        matrix = Pose(placed).inverse().matrix @ to_calibration.matrix
        return camera, Pose(lps_to_ras(matrix) if self.ct_frame == "LPS" else matrix)

    def _at_the_middle(self, ct_center: Tensor) -> Tensor:
        center = lps_to_ras(ct_center) if self.ct_frame == "LPS" else ct_center
        shift = meeting_point([read_calibration(path) for path in self.others]) - center.to(torch.float64)
        return homogeneous(torch.eye(3, dtype=torch.float64), shift)


def meeting_point(calibrations: list[Calibration]) -> Tensor:
    """[3] mm: the point nearest to all central rays (least squares), or the origin where they are parallel or one."""
    normal, right = torch.zeros(3, 3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    for calibration in calibrations:
        along = calibration.rotation[2]
        across = torch.eye(3, dtype=torch.float64) - torch.outer(along, along)
        normal += across
        right += across @ (-calibration.rotation.T @ calibration.translation)
    if float(torch.linalg.cond(normal)) > 1e4:
        return torch.zeros(3, dtype=torch.float64)
    return torch.linalg.solve(normal, right)


def biplane_views(item: Any, base: Path, where: str) -> list[list[dict[str, Any]]]:
    """For each frame, the keywords of `ViewFiles` of each camera. Raises ReadError as `read_manifest`."""
    check_keys(item, where, _SET, ("cameras",))
    cameras = item["cameras"]
    if not isinstance(cameras, dict) or not cameras:
        raise ReadError(f"{where}: 'cameras' must be an object of cameras by name.")
    for name, camera in cameras.items():
        check_keys(camera, f"{where}, camera {name}", _CAMERA, ("calibration", "images"))
    images = {name: _numbered(camera["images"], base, f"{where}, camera {name}") for name, camera in cameras.items()}
    poses = _poses(item.get("ct_to_calibration"), where)
    ct_frame = one_of(item, "ct_frame", ("LPS", "RAS"), where) or "LPS"
    files = tuple(base / str(camera["calibration"]) for camera in cameras.values())
    meta = {} if item.get("undistorted") is None else {"undistorted": bool(item["undistorted"])}
    calibrated = {
        name: CalibratedCamera(
            base / str(camera["calibration"]), files, _scale(camera, f"{where}, camera {name}"), None, ct_frame
        )
        for name, camera in cameras.items()
    }
    intensities = {
        name: one_of({**item, **camera}, "intensity", INTENSITIES, where) for name, camera in cameras.items()
    }

    def view(name: str, frame: int) -> dict[str, Any]:
        return {
            "name": f"{name}-{frame:04d}",
            "image": images[name][frame],
            "camera": replace(calibrated[name], ct_to_calibration=poses.get(frame)),
            "intensity": intensities[name],
            "meta": {**meta, "camera_name": name, "frame_number": frame},
        }

    return [[view(name, frame) for name in cameras] for frame in _frames(item.get("frames"), images, where)]


def _numbered(pattern: Any, base: Path, where: str) -> dict[int, Path]:
    """The images of a folder, or of a pattern such as "cam1/*.tif", by the last number in their names."""
    if not isinstance(pattern, str) or not pattern:
        raise ReadError(f"{where}: 'images' must be a folder or a pattern such as 'cam1/*.tif'.")
    place = base / pattern
    try:
        names = sorted(place.iterdir()) if place.is_dir() else sorted(place.parent.glob(place.name))
    except OSError as error:
        raise ReadError(f"{where}: cannot list '{place}': {error.strerror or error}.") from error
    found: dict[int, Path] = {}
    for path in names:
        numbers = re.findall(r"\d+", stem(path))
        if path.name.startswith(".") or not path.is_file() or not numbers:
            continue
        number = int(numbers[-1])
        if number in found:
            raise ReadError(f"{where}: '{found[number].name}' and '{path.name}' are both frame {number}.")
        found[number] = path
    if not found:
        raise ReadError(f"{where}: there are no numbered images at '{place}'.")
    return found


def _frames(chosen: Any, images: dict[str, dict[int, Path]], where: str) -> list[int]:
    """The frames asked for, or those that all cameras have."""
    if chosen is None:
        common = set.intersection(*(set(found) for found in images.values()))
        if not common:
            raise ReadError(f"{where}: no frame has an image of every camera.")
        return sorted(common)
    if not isinstance(chosen, list) or not all(isinstance(frame, int) for frame in chosen):
        raise ReadError(f"{where}: 'frames' must be a list of whole numbers.")
    for name, found in images.items():
        if missing := [frame for frame in chosen if frame not in found]:
            raise ReadError(f"{where}: camera {name} has no image of frame {missing[0]}.")
    return chosen


def _scale(camera: dict, where: str) -> dict[str, Any]:
    given = {key: camera[key] for key in ("source_to_detector", "pixel_spacing") if camera.get(key) is not None}
    if len(given) != 1:
        raise MissingGeometryError(
            f"{where}: a calibration file does not say how far the detector is: give source_to_detector (mm; any plane "
            "behind the patient has the same rays) or pixel_spacing ([row, column] mm at the detector), one of them.",
            ("source_to_detector (mm)",),
        )
    return given


def _poses(content: Any, where: str) -> dict[int, tuple[tuple[float, ...], ...]]:
    """{frame: 4 x 4} of {"frame": 4 x 4, or {"rotation": 3 x 3, "translation": 3}}; rotations made exact."""
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ReadError(f"{where}: 'ct_to_calibration' must be an object of transforms by frame number.")
    result = {}
    for key, value in content.items():
        place = f"{where}, ct_to_calibration of frame {key}"
        try:
            rotation, translation = _parts(value)
            frame = int(key)
        except (ValueError, TypeError, KeyError) as error:
            raise ReadError(
                f"{place} must be 4 x 4 numbers, or {{'rotation': 3 x 3, 'translation': 3}}, under the frame's number."
            ) from error
        result[frame] = tuple(map(tuple, homogeneous(nearest_rotation(rotation, place), translation).tolist()))
    return result


def _parts(value: Any) -> tuple[Tensor, Tensor]:
    if isinstance(value, dict):
        rotation, translation = (torch.tensor(value[key], dtype=torch.float64) for key in ("rotation", "translation"))
    else:
        matrix = torch.tensor(value, dtype=torch.float64)
        if matrix.shape != (4, 4) or matrix[3].tolist() != [0, 0, 0, 1]:
            raise ValueError("not a transform")
        rotation, translation = matrix[:3, :3], matrix[:3, 3]
    if rotation.shape != (3, 3) or translation.shape != (3,) or not bool(torch.isfinite(translation).all()):
        raise ValueError("not a transform")
    return rotation, translation
