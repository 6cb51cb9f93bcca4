"""A subject and an X-ray of a dataset in the scene: CT, structures, landmarks, and a C-arm with its reference pose.

    CT, structures, landmarks   in the CT's RAS, below whatever transforms are above the CT already
    C-arm                       at the pose asked for; below its plane the X-ray, its landmarks and its segmentation
    true poses                  transforms of their own: of the subject, and of each structure that lies otherwise

A dataset's poses are relative to the CT; in the scene they are taken to the world by the transforms above the CT as
they are at that time. A further X-ray of a subject goes with the CT that is there.
"""

from __future__ import annotations

import colorsys
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import slicer
import torch

from DiffDRRCore import Camera, CArm, Pose
from DiffDRRCore.datasets.dataset import Subject, View
from DiffDRRSlicerLib.names import of_class
from DiffDRRSlicerLib.scene import nodes
from DiffDRRSlicerLib.scene.accuracy import add_reference
from DiffDRRSlicerLib.scene.anatomy import Anatomy
from DiffDRRSlicerLib.scene.carm import CArmNode, pixels_to_points
from DiffDRRSlicerLib.scene.errors import SceneError
from DiffDRRSlicerLib.scene.landmarks import xray_landmarks
from DiffDRRSlicerLib.scene.xrays import add_xray, all_or_nothing, show_grey

STARTS = ("reference", "header", "center")
"""Where the C-arm begins: at the reference pose, where the image's header says, or behind the CT's centre."""
_PLACES = dict(zip(STARTS, ("the reference pose", "the pose in the header", "the CT's centre"), strict=True))

DATASET = "DiffDRR.Dataset"  # attribute, JSON: [path, subject] that a node was loaded from; a C-arm's: and the X-ray
STRUCTURE = "DiffDRR.Structure"  # attribute of a true pose that holds for this structure alone
_CARM = "DiffDRR.CArm"  # reference from such a pose to its C-arm
_SEGMENTATION = "DiffDRR.XRaySegmentation"  # attribute of a labelmap on an X-ray
_LOOKED_AT = 1_000_000  # voxels, for the window
_TURN = 0.618034  # of the colour circle from one structure to the next: the golden ratio, so that neighbours differ


@dataclass(frozen=True)
class Loaded:
    """The nodes of an X-ray and of its subject; None for what the dataset does not have.

    Attributes:
        carm: transform of the C-arm.  ct: scalar volume.  labels: labelmap volume.  landmarks: fiducials on the CT.
        xray_landmarks: fiducials on the X-ray.  segmentation: labelmap volume on the X-ray.
        reference: transform, the true pose.  bodies: {structure: transform}, its own true pose.
        new: whether the CT was read now, not found in the scene.
    """

    carm: Any
    ct: Any
    labels: Any
    landmarks: Any
    xray_landmarks: Any
    segmentation: Any
    reference: Any
    bodies: dict[str, Any]
    new: bool


def needs_hdf5(path: str | Path) -> bool:
    """Whether the dataset at this path is an HDF5 file, which takes the package h5py to read."""
    from DiffDRRCore.datasets.opening import is_hdf5

    return Path(path).is_file() and is_hdf5(Path(path))


def load_view(scene, subject: Subject, view: int | str, source: str = "", start: str = "reference") -> Loaded:
    """Bring an X-ray of a dataset into the scene, and its subject where that is not there yet.

    The CT of this `source` (the dataset's path) and subject that is in the scene is used as it is, with the labels
    there are; landmarks that were deleted come back. The same X-ray again makes another C-arm.

    Args:
        view: name, or place from 0.
        start: one of `STARTS`.

    Raises ReadError for a view that is not there or cannot be read; SceneError for a start that the dataset does not
    tell, or where a transform above the CT makes it another size. The scene is then as it was.
    """
    seen = subject.views[view]
    begin = _start(seen, start)
    key = [str(source), subject.name]
    with all_or_nothing(scene):
        ct, labels, landmarks, names = _add_patient(scene, subject, key)
        carm = _add_carm(scene, f"{subject.name} {seen.name}", seen, ct, begin)
        nodes.write_json(carm.node, DATASET, [*key, seen.name])
        reference = _add_true_poses(carm, seen, ct)
        points = _add_points(xray_landmarks(carm), _on_detector(carm, seen.landmarks)) if seen.landmarks else None
        segmentation = add_segmentation(carm, seen.segmentation, names, key)
    bodies, new = body_references(carm), names is not None
    return Loaded(carm.node, ct, labels, landmarks, points, segmentation, reference, bodies, new)


def body_references(carm: CArmNode) -> dict[str, Any]:
    """{structure: transform node}: true poses of the structures that lie otherwise than in the CT."""
    transforms = of_class(carm.scene, "vtkMRMLLinearTransformNode")
    bodies = [node for node in transforms if node.GetAttribute(STRUCTURE) is not None]
    return {node.GetAttribute(STRUCTURE): node for node in bodies if node.GetNodeReference(_CARM) is carm.node}


def xray_segmentations(scene) -> list:
    """The labelmap nodes of all X-rays, which name no structures of a CT."""
    return [one for one in of_class(scene, "vtkMRMLLabelMapVolumeNode") if one.GetAttribute(_SEGMENTATION)]


def show_outlines(slice_node, composite_node, carm: CArmNode, visible: bool = True) -> None:
    """Outline the structures of a C-arm's segmentation in the X-ray view, or of none; other labelmaps there stay.

    `composite_node` is None as long as the view has not been drawn: nothing happens then.
    """
    if composite_node is None:
        return
    wanted = carm.referred("segmentation") if visible else None
    shown = composite_node.GetLabelVolumeID()
    if wanted is None and shown in [one.GetID() for one in xray_segmentations(carm.scene)]:
        composite_node.SetLabelVolumeID(None)
    elif wanted is not None and shown != wanted.GetID():
        composite_node.SetLabelVolumeID(wanted.GetID())
        slice_node.SetUseLabelOutline(True)


def _start(view: View, start: str) -> Pose | None:
    """camera_to_world in the CT's RAS; None for its centre."""
    if start not in STARTS:
        raise SceneError(f"A C-arm starts at one of {', '.join(STARTS)}, not at '{start}'.")
    poses = {"reference": view.xray.pose, "header": view.header_pose}
    if start in poses and poses[start] is None:
        others = [f"{_PLACES[name]} ('{name}')" for name in STARTS if name == "center" or poses[name] is not None]
        raise SceneError(
            f"The dataset does not have {_PLACES[start]} of X-ray '{view.name}'; start from {' or '.join(others)}."
        )
    return poses.get(start)


def _add_patient(scene, subject: Subject, key: list[str]) -> tuple:
    """(CT, labels or None, landmarks or None, names of the structures where the CT is new, else None)."""
    ct, labels, landmarks = (
        _find(scene, kind, key)
        for kind in ("vtkMRMLScalarVolumeNode", "vtkMRMLLabelMapVolumeNode", "vtkMRMLMarkupsFiducialNode")
    )
    parent = next((node.GetParentTransformNode() for node in (ct, labels, landmarks) if node is not None), None)
    names = None
    if ct is None:
        volume = subject.volume
        names = volume.label_names
        ct = _add_ct(scene, subject.name, key, volume, parent)
        if labels is None and volume.labels is not None:
            labels = _add_labels(scene, f"{subject.name} labels", key, volume, parent)
    if landmarks is None and subject.landmarks:
        landmarks = _add(scene, "vtkMRMLMarkupsFiducialNode", f"{subject.name} landmarks", key, parent)
        landmarks.CreateDefaultDisplayNodes()
        _add_points(landmarks, subject.landmarks)
    return ct, labels, landmarks, names


def _add_ct(scene, name: str, key: list[str], volume, parent):
    """The voxels are copied once, into the node."""
    node = _add(scene, "vtkMRMLScalarVolumeNode", name, key, parent)
    voxels = volume.hu.detach().cpu().float().numpy()
    nodes.set_image(node, voxels, volume.ijk_to_ras.cpu().numpy())
    step = max(1, round((voxels.size / _LOOKED_AT) ** (1 / 3)))
    show_grey(node, voxels[::step, ::step, ::step])
    return node


def _add_labels(scene, name: str, key: list[str], volume, parent):
    node = _add(scene, "vtkMRMLLabelMapVolumeNode", name, key, parent)
    numbers = volume.labels.cpu().numpy()
    nodes.set_image(node, numbers, volume.ijk_to_ras.cpu().numpy())
    _color(node, _color_table(scene, key, volume.label_names, int(numbers.max())))
    return node


def _add_carm(scene, name: str, view: View, ct, begin: Pose | None) -> CArmNode:
    """A C-arm with the X-ray; its isocentre as far from the source as the CT's centre is."""
    to_world, xray, center = _ct_to_world(ct), view.xray, Anatomy(ct).center
    distance = float(xray.camera.source_to_detector)
    if begin is None:
        pose, depth = CArm(distance, 0.75 * distance, center).pose, 0.75 * distance
    else:
        pose = Pose(torch.from_numpy(to_world)) @ _plain(begin)
        depth = float(nodes.transformed(np.linalg.inv(pose.matrix.numpy()), center)[2])
    return add_xray(scene, xray.image, xray.camera, pose, xray.meta, name, depth if 0 < depth < distance else None)


def _ct_to_world(ct) -> nodes.Matrix:
    matrix = nodes.parent_to_world(ct)
    if not nodes.is_rigid(matrix):
        raise SceneError(
            f"The CT '{ct.GetName()}' is scaled, sheared or mirrored by a transform, and the dataset's poses do not "
            "hold for it; take it out of that transform."
        )
    return matrix


def _add_true_poses(carm: CArmNode, view: View, ct):
    """The reference, or None; and one transform for each body."""
    to_world, reference = Pose(torch.from_numpy(_ct_to_world(ct))), None
    if view.xray.pose is not None:
        reference = add_reference(carm, to_world @ _plain(view.xray.pose), ct, f"{carm.name} true pose")
        carm.refer("reference", reference)
    for structure, pose in view.body_poses.items():
        node = add_reference(carm, to_world @ _plain(pose), ct, f"{carm.name} true pose of {structure}")
        node.SetAttribute(STRUCTURE, structure)
        node.SetNodeReferenceID(_CARM, carm.node.GetID())
    return reference


def _plain(pose: Pose) -> Pose:
    return Pose(pose.matrix.detach().cpu().double())


def _on_detector(carm: CArmNode, landmarks) -> dict[str, np.ndarray]:
    """Pixels by name as points in the coordinates below the X-ray plane."""
    camera: Camera = carm.camera
    return {name: pixels_to_points(camera, uv.detach().cpu().numpy())[0] for name, uv in landmarks.items()}


def _add_points(markups, points):
    with slicer.util.NodeModify(markups):
        for name, point in points.items():
            markups.AddControlPoint(*(float(value) for value in point), name)
    return markups


def add_segmentation(carm: CArmNode, segmentation, names: dict[int, str] | None, key: list[str]):
    """The structures' numbers [H, W] on the X-ray's pixels, as a labelmap volume of role "segmentation"; None without.

    Its colours are those of the CT's labels where both have the `key`: [path, subject] of a dataset.
    """
    if segmentation is None:
        return None
    numbers = segmentation.cpu().numpy().astype(np.int16, copy=False)
    node = carm.below("segmentation", "vtkMRMLLabelMapVolumeNode", "segmentation")
    carm.place_image(node, numbers)
    node.SetAttribute(_SEGMENTATION, "1")
    _color(node, _color_table(carm.scene, key, names or {}, int(numbers.max())))
    return node


def _color_table(scene, key: list[str], names: dict[int, str], highest: int):
    """The subject's table of names and colours; made where there is none that has this many."""
    table, count = _find(scene, "vtkMRMLColorTableNode", key), max([highest, *names]) + 1
    if table is not None and table.GetNumberOfColors() >= count:
        return table
    table = _add(scene, "vtkMRMLColorTableNode", f"{key[1]} structures", key)
    table.SetTypeToUser()
    table.SetNumberOfColors(count)
    table.SetColor(0, "background", 0.0, 0.0, 0.0, 0.0)
    for number in range(1, count):
        color = colorsys.hsv_to_rgb(number * _TURN % 1, 0.6, 1.0)
        table.SetColor(number, names.get(number, str(number)), *color, 1.0)
    return table


def _color(labelmap, table) -> None:
    """A display node with this table from the beginning: the default one looks for a table of Slicer's own."""
    display = slicer.vtkMRMLLabelMapVolumeDisplayNode()
    display.SetAndObserveColorNodeID(table.GetID())
    labelmap.GetScene().AddNode(display)
    labelmap.SetAndObserveDisplayNodeID(display.GetID())


def _add(scene, class_name: str, name: str, key: list[str], parent=None):
    node = nodes.add_node(scene, class_name, name, parent)
    nodes.write_json(node, DATASET, key)
    return node


def _find(scene, class_name: str, key: list[str]):
    """The node of this class that was loaded from there; a volume without voxels is none."""
    text = json.dumps(key)
    for node in of_class(scene, class_name):
        empty = node.IsA("vtkMRMLVolumeNode") and node.GetImageData() is None
        if node.GetAttribute(DATASET) == text and not empty:
            return node
    return None
