"""Views by calibrated cameras, frame by frame, as videoradiography takes them; see `DiffDRRCore.datasets.folder`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from DiffDRRCore import values
from DiffDRRCore.datasets.folder.names import stem
from DiffDRRCore.errors import MissingGeometryError, ReadError
from DiffDRRCore.geometry import Camera, Pose
from DiffDRRCore.geometry.converters import lps_to_ras
from DiffDRRCore.geometry.tensors import homogeneous
from DiffDRRCore.imaging.calibration_file import Calibration, nearest_rotation, read_calibrated_camera, read_calibration
from DiffDRRCore.imaging.camera_file import INTENSITIES
from DiffDRRCore.values import Key


def _poses(where: str, content: Any) -> dict[int, tuple[tuple[float, ...], ...]]:
    """{frame: 4 x 4} of {"frame": 4 x 4, or {"rotation": 3 x 3, "translation": 3}}; rotations made exact."""
    result = {}
    for key, value in values.each(values.anything)(where, content).items():
        place = f"{where}, frame {key}"
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


_INTENSITY = Key(values.choice(*INTENSITIES), None)
_CAMERA = {
    "calibration": Key(values.text),
    "images": Key(values.text),
    "source_to_detector": Key(values.anything, None),
    "pixel_spacing": Key(values.anything, None),
    "intensity": _INTENSITY,
}
BIPLANE = {
    "cameras": Key(values.each(values.of(_CAMERA), least=1)),
    "frames": Key(values.several(values.whole(), least=0), None),
    "ct_to_calibration": Key(_poses, {}),
    "ct_frame": Key(values.choice("LPS", "RAS"), "LPS"),
    "intensity": _INTENSITY,
    "undistorted": Key(values.flag, None),
}


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
        camera, to_calibration = read_calibrated_camera(self.calibration, size, **self.scale)
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


def biplane_views(item: dict[str, Any], base: Path, where: str) -> list[list[dict[str, Any]]]:
    """For each frame, the keywords of `ViewFiles` of each camera; `item` is checked as `BIPLANE`. Raises ReadError."""
    cameras = item["cameras"]
    places = {name: f"{where}, camera {name}" for name in cameras}
    images = {name: _numbered(camera["images"], base, places[name]) for name, camera in cameras.items()}
    files = tuple(base / camera["calibration"] for camera in cameras.values())
    scales = {name: _scale(camera, places[name]) for name, camera in cameras.items()}
    meta = {} if item["undistorted"] is None else {"undistorted": item["undistorted"]}

    def view(name: str, frame: int) -> dict[str, Any]:
        file, pose = base / cameras[name]["calibration"], item["ct_to_calibration"].get(frame)
        return {
            "name": f"{name}-{frame:04d}",
            "image": images[name][frame],
            "camera": CalibratedCamera(file, files, scales[name], pose, item["ct_frame"]),
            "intensity": cameras[name]["intensity"] or item["intensity"],
            "meta": {**meta, "camera_name": name, "frame_number": frame},
        }

    return [[view(name, frame) for name in cameras] for frame in _frames(item["frames"], images, where)]


def _numbered(pattern: str, base: Path, where: str) -> dict[int, Path]:
    """The images of a folder, or of a pattern such as "cam1/*.tif", by the last number in their names."""
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


def _frames(chosen: list[int] | None, images: dict[str, dict[int, Path]], where: str) -> list[int]:
    """The frames asked for, or those that all cameras have."""
    if chosen is None:
        common = set.intersection(*(set(found) for found in images.values()))
        if not common:
            raise ReadError(f"{where}: no frame has an image of every camera.")
        return sorted(common)
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
