"""Reading X-ray images: which kind of file it is, which frame, and where its camera comes from."""

from __future__ import annotations

import gzip
import math
import struct
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom.misc
import SimpleITK
import torch
from torch import Tensor

from DiffDRRCore.errors import MissingGeometryError, ReadError
from DiffDRRCore.geometry.camera import Camera
from DiffDRRCore.geometry.pose import Pose
from DiffDRRCore.imaging.camera_file import CameraFile, read_camera
from DiffDRRCore.imaging.distortion import unexposed
from DiffDRRCore.imaging.image_files import check_declared_size, quiet_itk, reading
from DiffDRRCore.imaging.xray_dicom import XRayDicom

UNDISTORTED = "undistorted"  # in meta: the distortion that the image had and has no more
REDUCTIONS = ("mean", "max", "min")
MAX_PIXELS = 10_000 * 10_000  # of one frame: more is a damaged header, not an X-ray detector

_DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
_DOUBLE_SUFFIXES = (".nii.gz",)
_NIFTI_HEADER = 348
_LARGEST_FLOAT = float(np.finfo(np.float32).max)

Parts = tuple[Tensor, Camera, "Pose | None", "dict[str, Any]"]


def read_parts(path: Path, frame: int | str | None, camera: Camera | str | Path | None) -> Parts:
    """(image, camera, pose, meta) of an X-ray file; the arguments and errors are those of `XRay.read`."""
    if path.is_dir():
        raise ReadError(f"'{path}' is a folder; give one X-ray file.")
    if not path.is_file():
        raise ReadError(f"There is no file '{path}'.")
    given = given_camera(camera)
    return read_dicom_parts(XRayDicom(path), frame, given) if is_dicom(path) else _read_image(path, frame, given)


def camera_path_beside(path: Path) -> Path:
    """`<stem>.json` beside an image; the stem of "a.nii.gz" is "a"."""
    for suffix in _DOUBLE_SUFFIXES:
        if path.name.lower().endswith(suffix):
            return path.with_name(path.name[: -len(suffix)] + ".json")
    return path.with_suffix(".json")


def choose_frames(path: Path, frame: int | str | None, count: int) -> tuple[Sequence[int], Callable | None]:
    """(indices of the frames to decode, how to reduce them or None for a single frame)."""
    if count == 1 and frame is None:
        return [0], None
    if frame is None:
        raise ReadError(
            f"'{path}' has {count} frames; choose one of 0 to {count - 1} (on the command line and in Python also "
            '"mean", "max" or "min").'
        )
    if isinstance(frame, str) and frame in REDUCTIONS:
        return range(count), {"mean": np.add, "max": np.maximum, "min": np.minimum}[frame]
    if isinstance(frame, bool) or not isinstance(frame, (int, np.integer)):
        raise ReadError(f'frame is an index from 0, "mean", "max" or "min", not {frame!r}.')
    if not 0 <= frame < count:
        raise ReadError(f"'{path}' has {count} frames, 0..{count - 1}; there is no frame {frame}.")
    return [int(frame)], None


def reduce_frames(frames: Iterable[np.ndarray], combine: Callable | None, count: int) -> np.ndarray:
    """One float64 image of the frames, held one at a time in memory."""
    frames = iter(frames)
    result = next(frames).astype(np.float64)
    for frame in frames:
        combine(result, frame, out=result)
    return result / count if combine is np.add else result


def check_size(path: Path, height: int, width: int) -> None:
    """Raise ReadError for a frame without pixels or larger than any detector, before anything is allocated."""
    if height < 1 or width < 1:
        raise ReadError(f"'{path}' has an empty image of {height} x {width} pixels.")
    if height * width > MAX_PIXELS:
        raise ReadError(
            f"'{path}' claims {height} x {width} pixels, more than any X-ray detector: the file is damaged."
        )


def given_camera(camera: Camera | str | Path | None) -> CameraFile | None:
    """What the argument `camera` of `XRay.read` says. Raises ReadError where it is neither a camera nor a path."""
    if camera is None:
        return None
    if isinstance(camera, Camera):
        return CameraFile(camera, None, None, {})
    if isinstance(camera, (str, Path)):
        return read_camera(camera)
    raise ReadError(f"camera is a Camera or the path of a JSON camera, not a {type(camera).__name__}.")


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM by its contents or its name. Raises ReadError where it cannot be opened."""
    try:
        return pydicom.misc.is_dicom(path) or path.suffix.lower() in _DICOM_SUFFIXES
    except OSError as error:
        raise ReadError(f"Cannot read '{path}': {error.strerror or error}.") from error


def read_dicom_parts(file: XRayDicom, frame: int | str | None, given: CameraFile | None) -> Parts:
    """(image, camera, pose, meta) of an opened DICOM X-ray; `given` replaces what its header says of the camera."""
    path = file.path
    check_size(path, file.height, file.width)
    indices, combine = choose_frames(path, frame, file.frames)
    camera, pose, meta = file.geometry(indices, given)
    image = _tensor(path, reduce_frames(map(file.values, indices), combine, file.frames))
    meta = {
        "source": path.name,
        "frame": 0 if frame is None else frame,
        "frames": file.frames,
        **file.meta(),
        **meta,
    }
    return _undistorted(path, image, camera, meta, given), camera, pose, meta


def _read_image(path: Path, frame: int | str | None, given: CameraFile | None) -> Parts:
    reader = _image_reader(path)
    size = reader.GetSize()
    check_size(path, size[1], size[0])
    count = math.prod(size[2:])
    check_declared_size(path, size[0] * size[1] * count)
    _check_complete(path, size[0] * size[1] * count)
    indices, combine = choose_frames(path, frame, count)
    given = given or _camera_beside(path)
    pages = (_page(path, reader, size, index) for index in indices)
    image = _tensor(path, reduce_frames(pages, combine, count))
    meta: dict[str, Any] = {"source": path.name, **given.meta}
    if count > 1:
        meta.update(frame=frame, frames=count)
    if given.intensity is not None:
        meta["intensity"] = given.intensity
    return _undistorted(path, image, given.camera, meta, given), given.camera, given.pose, meta


def _undistorted(path: Path, image: Tensor, camera: Camera, meta: dict[str, Any], given: CameraFile | None) -> Tensor:
    """The image that `camera` describes; `meta` tells of a distortion that was undone."""
    if tuple(image.shape) != (camera.height, camera.width):
        raise ReadError(
            f"'{path}' has {image.shape[0]} x {image.shape[1]} pixels but its camera is for "
            f"{camera.height} x {camera.width}; resize or crop the camera to match."
        )
    if given is None or given.distortion is None:
        return image
    meta[UNDISTORTED] = given.distortion.to_dict()
    return given.distortion.undistorted(image, unexposed(image, meta.get("intensity")))


def _camera_beside(path: Path) -> CameraFile:
    beside = camera_path_beside(path)
    if not beside.is_file():
        missing = ("pixel_spacing (mm)", "source_to_detector (mm)")
        raise MissingGeometryError(
            f"'{path}' tells nothing of the X-ray camera: put a JSON camera beside it as '{beside.name}', "
            f"or give camera= with {' and '.join(missing)}.",
            missing,
        )
    return read_camera(beside)


def _image_reader(path: Path) -> SimpleITK.ImageFileReader:
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    with quiet_itk(), reading(path):
        reader.ReadImageInformation()
    if reader.GetNumberOfComponents() != 1:
        raise ReadError(f"'{path}' is a colour image; an X-ray has one grey value per pixel: convert it to greyscale.")
    dimensions = reader.GetDimension()
    if not 2 <= dimensions <= 4:
        raise ReadError(f"'{path}' has {dimensions} dimensions; an X-ray has two, or three for a run of frames.")
    return reader


def count_pages(path: Path) -> int:
    """How many frames an image file has. Raises ReadError where it is no greyscale image."""
    return math.prod(_image_reader(path).GetSize()[2:])


def _page(path: Path, reader: SimpleITK.ImageFileReader, size: tuple[int, ...], index: int) -> np.ndarray:
    """Frame `index` [H, W] of an image file, and only that one where the format can be read in pieces."""
    start = [int(i) for i in np.unravel_index(index, size[2:], order="F")] if len(size) > 2 else []
    reader.SetExtractIndex([0, 0, *start])
    reader.SetExtractSize([size[0], size[1], *([0] * len(start))])
    with quiet_itk(), reading(path):
        return SimpleITK.GetArrayFromImage(reader.Execute())


def _check_complete(path: Path, pixels: int) -> None:
    """Raise ReadError for a NIfTI file that is cut off, whose missing pixels ITK would read as zeros."""
    name = path.name.lower()
    if not name.endswith((".nii", ".nii.gz")):
        return
    with reading(path), gzip.open(path) if name.endswith(".gz") else path.open("rb") as stream:
        header = stream.read(_NIFTI_HEADER)
        order = "<" if 1 <= struct.unpack_from("<h", header, 40)[0] <= 7 else ">"
        bits, offset = struct.unpack_from(f"{order}h34xf", header, 72)
        left = int(offset) - _NIFTI_HEADER + pixels * bits // 8
        while left > 0 and (chunk := stream.read(min(left, 1 << 20))):
            left -= len(chunk)
        while stream.read(1 << 20):  # to the end, where gzip compares its checksum
            pass
    if left > 0:
        raise ReadError(f"'{path}' is cut off: {left} bytes of its pixels are missing.")


def _tensor(path: Path, array: np.ndarray) -> Tensor:
    if np.iscomplexobj(array) or not np.isfinite(array).all() or np.abs(array).max() > _LARGEST_FLOAT:
        raise ReadError(f"'{path}' has pixels that are NaN, infinite or too large.")
    return torch.from_numpy(array.astype(np.float32))
