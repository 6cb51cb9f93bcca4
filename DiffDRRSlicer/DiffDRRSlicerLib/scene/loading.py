"""X-rays and C-arms into the scene: from files, from volumes and sequences, from numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from DiffDRRCore import Camera, CArm, Pose
from DiffDRRCore.imaging.camera_file import read_camera
from DiffDRRSlicerLib.scene import assumptions as words
from DiffDRRSlicerLib.scene.assumptions import settle
from DiffDRRSlicerLib.scene.carm import CArmNode
from DiffDRRSlicerLib.scene.errors import SceneError
from DiffDRRSlicerLib.scene.loading_nodes import read_node
from DiffDRRSlicerLib.scene.undistortion import apply_camera
from DiffDRRSlicerLib.scene.xray_files import Loaded, moved_to, read_file
from DiffDRRSlicerLib.scene.xrays import add_xray, all_or_nothing, set_camera


def load_xray_file(
    scene, path: str | Path, frame: int | str | None = None, camera: Camera | str | Path | None = None, isocenter=None
) -> CArmNode:
    """A C-arm with the X-ray of a file: DICOM (XA, RF, DX, CR), PNG, TIFF, NIfTI, NRRD or MetaImage.

    Its geometry comes from the header, or from the JSON camera beside the file; what neither says is assumed, and
    listed in carm.meta["missing"].

    Args:
        frame: of a multi-frame file, an index from 0, or "mean", "max" or "min" over all frames.
        camera: a Camera or the path of a JSON camera, in place of what the file says.
        isocenter: [3] world mm, such as the CT's centre: where the C-arm turns about, if the file does not say it.

    Raises SceneError or ReadError with one sentence; the scene is then as it was.
    """
    return _add(scene, read_file(path, frame, camera), isocenter, Path(path).name.split(".")[0] or "X-ray")


def load_xray_volume(
    scene,
    node,
    frame: int | None = None,
    camera: Camera | str | Path | None = None,
    isocenter=None,
    find_file: Callable[[str], str | None] | None = None,
) -> CArmNode:
    """A C-arm with the X-ray of a volume node, of an item of a sequence node, or of a sequence browser's proxy volume.

    The node is left as it is: its place in the scene is not that of the X-ray. Where it was loaded from DICOM (it has
    the attribute "DICOM.instanceUIDs") and `find_file` knows the file, pixels and geometry come from there.

    Args:
        frame: slice of a volume or item of a sequence, from 0; None is the only one, or the one that is shown.
        camera, isocenter: as in `load_xray_file`.
        find_file: SOP instance UID to the path of its file, or None or "".

    Raises SceneError or ReadError with one sentence; the scene is then as it was.
    """
    return _add(scene, read_node(node, frame, camera, find_file), isocenter, node.GetName() or "X-ray")


def add_carm(
    scene, camera: Camera, pose: Pose | CArm, source_to_isocenter: float | None = None, name: str = "C-arm"
) -> CArmNode:
    """A C-arm without an X-ray: where one would stand, for simulation and planning.

    Args:
        pose: camera_to_world, or a CArm by its angles, isocentre and distances.
        source_to_isocenter: mm; None is the CArm's, or three quarters of the source-to-detector distance.

    Raises SceneError where camera and CArm have different source-to-detector distances.
    """
    if isinstance(pose, CArm):
        distances = float(pose.source_to_detector), float(camera.source_to_detector)
        if not np.isclose(*distances, rtol=1e-6):
            raise SceneError(
                f"The C-arm's source-to-detector distance is {distances[0]:g} mm but its camera's {distances[1]:g} mm; "
                "give the same."
            )
        source_to_isocenter = source_to_isocenter or float(pose.source_to_isocenter)
        pose = pose.pose
    with all_or_nothing(scene):
        return CArmNode.create(scene, camera, pose, source_to_isocenter, name)


def load_camera_file(carm: CArmNode, path: str | Path, in_front=None) -> None:
    """Give a C-arm the camera of a JSON file, and its pose, intensity and meta where the file has them.

    A distortion in it is undone in the X-ray, as by `undistortion.apply_camera`.

    `in_front`: [3] world mm, such as the CT's centre. Where the source-to-isocentre distance was assumed and the file
    has a pose, the isocentre comes to this point's depth; without it the distance stays assumed.

    Raises ReadError for a file that is no camera, SceneError where it is for another image size; nothing is changed
    then.
    """
    file = read_camera(path)
    if file.pose is not None:
        _ = carm.pose  # raises where another could not be set
    if file.distortion is None:
        set_camera(carm, file.camera)
        settle(carm, words.CAMERA)
    else:
        apply_camera(carm, file.camera, file.distortion)
    if file.pose is not None:
        carm.pose = file.pose
        settle(carm, (words.PRIMARY, words.SECONDARY, words.PATIENT))
        _place_isocenter(carm, in_front)
    if file.intensity is not None:
        settle(carm, [words.INTENSITY])
    said = {"intensity": file.intensity} if file.intensity is not None else {}
    carm.meta = {**carm.meta, **file.meta, **said, "camera_source": Path(path).name}


def _place_isocenter(carm: CArmNode, point) -> None:
    """Put an isocentre that was assumed at the depth of a world point, where that lies in front of the source."""
    depth = _depth(carm.pose, point)
    if depth is not None and any(entry.startswith(words.ISOCENTER) for entry in carm.meta.get("missing", [])):
        carm.source_to_isocenter = depth
        carm.set_depth(depth)
        settle(carm, [words.ISOCENTER])


def _depth(pose: Pose, point) -> float | None:
    """mm from the source along the central ray; None for no point, or one that is not in front of the source."""
    if point is None:
        return None
    depth = float((pose.inverse().matrix @ pose.matrix.new_tensor([*point, 1.0]))[2])
    return depth if depth > 0 else None


def _add(scene, loaded: Loaded, isocenter, name: str) -> CArmNode:
    xray, missing, distance = loaded.xray, list(loaded.missing), loaded.source_to_isocenter
    pose = xray.pose
    if not loaded.placed:
        pose = pose if isocenter is None else moved_to(pose, isocenter)
        where = "isocentre at the origin" if isocenter is None else "isocentre at the centre of the anatomy"
        missing.append(words.assumed(words.PATIENT, where))
    elif isocenter is not None and distance is None:
        distance = _depth(pose, isocenter)
    return add_xray(scene, xray.image, xray.camera, pose, {**xray.meta, "missing": missing}, name, distance)
