"""Reading the files of a folder's subject."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK
import torch
from torch import Tensor

from DiffDRRCore.datasets.dataset import View, inside
from DiffDRRCore.datasets.folder.biplane import CalibratedCamera
from DiffDRRCore.datasets.folder.manifest import SubjectFiles, ViewFiles
from DiffDRRCore.datasets.points import points_from_dict, read_image_points, read_points
from DiffDRRCore.errors import GeometryError, ReadError
from DiffDRRCore.geometry import Camera, Pose
from DiffDRRCore.geometry.itk_transform import SUFFIXES, read_itk_transform
from DiffDRRCore.imaging.camera_file import CameraFile, camera_from_dict, read_camera
from DiffDRRCore.imaging.image_files import itk_array, quiet_itk, reading
from DiffDRRCore.imaging.volume import Volume
from DiffDRRCore.imaging.volume_reading import read_ct, read_labels
from DiffDRRCore.imaging.xray import XRay
from DiffDRRCore.imaging.xray_reading import camera_path_beside


def read_volume(files: SubjectFiles) -> Volume:
    """The CT with its labels. Raises ReadError or VolumeError as `Volume.read`."""
    if not isinstance(files.labels, dict):
        names = {} if files.labels is None else {"label_names": files.label_names}
        return Volume.read(files.ct, files.labels, series=files.series, **names)
    ct = read_ct(files.ct, files.series)
    labels = np.zeros(ct.array.shape, np.int16)
    for number, path in enumerate(files.labels.values(), start=1):
        labels[read_labels(path, ct)[0] != 0] = number
    return Volume(torch.from_numpy(ct.array), ct.ijk_to_ras, labels, dict(enumerate(files.labels, start=1)))


def read_named_points(source: Path | dict | None, size: int, where: str) -> dict[str, Tensor]:
    """Points [size] by name, of a file or of the manifest itself."""
    if source is None:
        return {}
    if isinstance(source, dict):
        return points_from_dict(source, size, where)
    return read_points(source) if size == 3 else read_image_points(source)


def read_view(files: ViewFiles, ct_center: Callable[[], Tensor]) -> View:
    """One view; `ct_center` gives the middle of the CT [3], RAS mm, if it is needed. Raises ReadError and its kin."""
    where = f"X-ray {files.name}"
    poses = {key: None if value is None else read_pose(value, where) for key, value in files.poses.items()}
    camera, is_reference = _camera(files, ct_center)
    xray = XRay.read(files.image, files.frame, None if camera is None else camera.camera)
    header, reference = xray.pose, None
    if camera is not None and camera.pose is not None:
        reference, header = (camera.pose, header) if is_reference else (None, camera.pose)
    if "pose" in poses:
        header, reference = (header if reference is None else reference), poses["pose"]
    xray = XRay(xray.image, xray.camera, reference, _meta(xray, camera, files))
    return View(
        files.name,
        xray,
        poses.get("header_pose", header),
        inside(read_named_points(files.landmarks, 2, where), (xray.camera.width, xray.camera.height)),
        None if files.segmentation is None else _segmentation(files.segmentation, xray.camera),
        {name: read_pose(value, where) for name, value in files.body_poses.items() if value is not None},
    )


def read_pose(source: Any, where: str) -> Pose:
    """camera_to_world of 4 x 4 numbers, an ITK transform, a JSON camera, or JSON with "pose" or the numbers alone."""
    try:
        if isinstance(source, Path) and source.suffix.lower() in SUFFIXES:
            return Pose(read_itk_transform(source))
        if isinstance(source, Path):
            where, source = f"'{source}'", _json(source)
        matrix = torch.tensor(source["pose"] if isinstance(source, dict) else source, dtype=torch.float64)
        if matrix.shape != (4, 4):
            raise ValueError("not 4 x 4")
        return Pose(matrix)
    except GeometryError as error:
        raise ReadError(f"{where}: {error}") from error
    except (TypeError, ValueError, KeyError) as error:
        if isinstance(error, ReadError):
            raise
        raise ReadError(f"{where}: a pose must be 4 x 4 numbers, or a file that holds one.") from error


def _camera(files: ViewFiles, ct_center: Callable[[], Tensor]) -> tuple[CameraFile | None, bool]:
    """The camera that the dataset gives beside the image, if any, and whether its pose is the reference."""
    source = files.camera
    if isinstance(source, CalibratedCamera):
        known = source.ct_to_calibration is not None
        return CameraFile(*source.read(_size(files.image), None if known else ct_center()), None, {}), known
    if isinstance(source, dict):
        where = f"The camera of X-ray {files.name}"
        pose = None if source.get("pose") is None else read_pose(source["pose"], where)
        camera = camera_from_dict(source, where)
        return CameraFile(camera, pose, source.get("intensity"), source.get("meta", {})), _is_reference(files)
    if source is None and camera_path_beside(files.image).is_file():
        source = camera_path_beside(files.image)
    found = None if source is None else read_camera(source)
    if found is not None and found.distortion is not None:  # landmarks and segmentations would have it, too
        raise ReadError(
            f"The camera of X-ray {files.name} has a distortion: undistort the dataset's images first "
            "(`calibrate --apply`)."
        )
    return found, _is_reference(files)


def _is_reference(files: ViewFiles) -> bool:
    return files.camera_pose == "reference"


def _meta(xray: XRay, camera: CameraFile | None, files: ViewFiles) -> dict[str, Any]:
    meta = {**xray.meta, **(camera.meta if camera else {}), **files.meta}
    intensity = files.intensity or (camera.intensity if camera else None)
    return meta if intensity is None else {**meta, "intensity": intensity}


def _size(path: Path) -> tuple[int, int]:
    """(height, width) of an image, from its header."""
    if not path.is_file():
        raise ReadError(f"There is no file '{path}'.")
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    with quiet_itk(), reading(path):
        reader.ReadImageInformation()
    width, height = reader.GetSize()[:2]
    return height, width


def _segmentation(path: Path, camera: Camera) -> Tensor:
    if not path.is_file():
        raise ReadError(f"There is no file '{path}'.")
    array = itk_array(path)[0]
    array = array[0] if array.ndim == 3 and len(array) == 1 else array
    if array.shape != (camera.height, camera.width):
        shape = " x ".join(map(str, array.shape))
        raise ReadError(f"'{path}' has {shape} pixels, but its X-ray {camera.height} x {camera.width}.")
    if not np.array_equal(array, np.rint(array)) or array.min() < 0 or array.max() > np.iinfo(np.int16).max:
        raise ReadError(f"'{path}' is no segmentation: its pixels must be whole numbers from 0 to 32767.")
    return torch.from_numpy(array.astype(np.int16))


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ReadError(f"Cannot read the pose '{path}': {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        raise ReadError(f"The pose '{path}' is not JSON: {error}.") from error
