"""The X-ray in a volume or sequence node, or in the DICOM file that the node was loaded from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pydicom
import slicer.util

from DiffDRRCore import XRay
from DiffDRRCore.imaging.image_files import reading
from DiffDRRCore.imaging.xray_reading import given_camera
from DiffDRRSlicerLib.scene import assumptions as words
from DiffDRRSlicerLib.scene.assumptions import assumed
from DiffDRRSlicerLib.scene.errors import SceneError
from DiffDRRSlicerLib.scene.xray_files import Loaded, completed, default_camera, read_dicom

_UIDS = "DICOM.instanceUIDs"


class _Frame(NamedTuple):
    """One image of a node: its volume, the slice in that, and which of how many images it is."""

    volume: object
    slice: int
    index: int
    count: int


def read_node(node, frame: int | None, camera, find_file: Callable[[str], str | None] | None) -> Loaded:
    """The X-ray of a volume, sequence or proxy node. Raises SceneError, ReadError as `load_xray_volume`."""
    chosen = _frame(node, frame)
    uid = _instance(chosen)
    path = find_file(uid) if uid and find_file else None
    if not path or not Path(path).is_file():
        return _from_pixels(chosen, camera, was_dicom=bool(uid))
    return read_dicom(Path(path), _frame_of_file(chosen, path), camera)


def frame_count(node) -> int:
    """How many images a volume, sequence or proxy node holds to choose from. Raises SceneError as `read_node`."""
    sequence, _ = _sequence(node)
    if sequence is not None:
        return sequence.GetNumberOfDataNodes()
    return _pixels(node).shape[0]


def _frame(node, frame: int | None) -> _Frame:
    sequence, shown = _sequence(node)
    count = frame_count(node)
    name, item = node.GetName(), "frame" if sequence is not None else "slice"
    if count == 0:
        raise SceneError(f"The sequence '{name}' is empty; choose another one.")
    if frame is None:
        frame = 0 if count == 1 else shown
    if frame is None:
        raise SceneError(f"'{name}' has {count} {item}s; choose one of 0 to {count - 1}.")
    if isinstance(frame, bool) or not isinstance(frame, (int, np.integer)) or not 0 <= frame < count:
        raise SceneError(f"'{name}' has {count} {item}s, 0 to {count - 1}; there is no {item} {frame}.")
    if sequence is None:
        return _Frame(node, int(frame), int(frame), count)
    volume = sequence.GetNthDataNode(int(frame))
    slices = _pixels(volume).shape[0]
    if slices != 1:
        raise SceneError(f"Frame {frame} of '{name}' has {slices} slices; an X-ray has one.")
    return _Frame(volume, 0, int(frame), count)


def _sequence(node):
    """(sequence node or None, the item that its browser shows or None) of a sequence or proxy node."""
    if node is None:
        raise SceneError("Choose an X-ray first: a volume, or a sequence of volumes.")
    is_sequence = node.IsA("vtkMRMLSequenceNode")
    for browser in _browsers(node.GetScene()):
        sequence = node if is_sequence else browser.GetSequenceNode(node)
        if sequence is not None and browser.IsSynchronizedSequenceNode(sequence, True):
            return sequence, browser.GetSelectedItemNumber()
    return (node if is_sequence else None), None


def _browsers(scene):
    count = 0 if scene is None else scene.GetNumberOfNodesByClass("vtkMRMLSequenceBrowserNode")
    return [scene.GetNthNodeByClass(index, "vtkMRMLSequenceBrowserNode") for index in range(count)]


def _pixels(volume) -> np.ndarray:
    """[K, H, W], not a copy. Raises SceneError for a node that is no X-ray."""
    name = "Nothing" if volume is None else f"'{volume.GetName()}'"
    if volume is None or not volume.IsA("vtkMRMLVolumeNode") or volume.IsA("vtkMRMLLabelMapVolumeNode"):
        raise SceneError(f"{name} is not an X-ray; choose a grey volume, or a sequence of them.")
    image = volume.GetImageData()
    if image is None or image.GetNumberOfPoints() == 0:
        raise SceneError(f"{name} has no pixels; load it again, or choose another volume.")
    if image.GetNumberOfScalarComponents() != 1:
        raise SceneError(f"{name} has colours; an X-ray has one grey value per pixel: convert it to greyscale.")
    return slicer.util.arrayFromVolume(volume)


def _instance(chosen: _Frame) -> str | None:
    """The SOP instance UID of the image, where the node remembers it."""
    uids = (chosen.volume.GetAttribute(_UIDS) or "").split()
    if len(uids) > 1 and len(uids) == chosen.count:
        return uids[chosen.index]
    return uids[0] if len(uids) == 1 else None


def _frame_of_file(chosen: _Frame, path) -> int | None:
    """Which frame of its file an image is: a run is one file, or each of its images is a file."""
    path = Path(path)
    with reading(path):
        count = int(pydicom.dcmread(path, specific_tags=["NumberOfFrames"]).get("NumberOfFrames") or 1)
    if count == 1:
        return None
    if count != chosen.count:
        raise SceneError(
            f"'{chosen.volume.GetName()}' has {chosen.count} images but its DICOM file {count} frames, so it is not "
            "known which is which; load the file itself as X-ray and choose a frame."
        )
    return chosen.index


def _from_pixels(chosen: _Frame, camera, was_dicom: bool) -> Loaded:
    pixels = np.array(_pixels(chosen.volume)[chosen.slice], dtype=np.float32)
    given = given_camera(camera)
    missing = [assumed(words.HEADER, "the file is not in the database, none")] if was_dicom else []
    if given is None:
        column, row, _ = chosen.volume.GetSpacing()
        default, assumptions = default_camera(*pixels.shape, (row, column))
        return completed(XRay(pixels, default, None, _meta(chosen)), missing + assumptions)
    if pixels.shape != (given.camera.height, given.camera.width):
        raise SceneError(
            f"'{chosen.volume.GetName()}' has {pixels.shape[0]} x {pixels.shape[1]} pixels but its camera is for "
            f"{given.camera.height} x {given.camera.width}; give a camera of that size."
        )
    said = {**given.meta, **({"intensity": given.intensity} if given.intensity else {})}
    xray = XRay(pixels, given.camera, given.pose, {**_meta(chosen), **said})
    return completed(xray if given.distortion is None else xray.undistorted(given.distortion), [])


def _meta(chosen: _Frame) -> dict:
    return {"source": chosen.volume.GetName(), "frame": chosen.index, "frames": chosen.count}
