"""A C-arm in the scene: one linear transform node, with its camera in attributes and its images below it.

    C-arm  (vtkMRMLLinearTransformNode, camera_to_world: origin at the source, z towards the detector)
    |-- frustum and detector   (models, camera coordinates)
    '-- X-ray plane            (transform: shrinks the detector towards the source, on to the plane of the anatomy)
        |-- X-ray, DRR, overlay                 (volumes, on the detector)
        '-- landmarks, projected fiducials      (markups, on the detector)

A slice view is parallel, an X-ray is not. Only in one plane do both agree, so the images are shown in the plane through
the anatomy's pivot, parallel to the detector and shrunk by its distance from the source. That is a transform of its
own: the images keep the detector's true geometry, and nothing but this one matrix changes when the C-arm comes nearer.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from DiffDRRCore import Camera, CArm, Pose
from DiffDRRCore.errors import GeometryError
from DiffDRRCore.imaging.camera_file import camera_from_dict, camera_to_dict
from DiffDRRSlicerLib.names import MARK
from DiffDRRSlicerLib.scene import nodes
from DiffDRRSlicerLib.scene.errors import SceneError

CAMERA, META = "DiffDRR.Camera", "DiffDRR.Meta"  # attributes, JSON
_DISTANCE = "DiffDRR.SourceToIsocenter"
_START = "DiffDRR.Start"  # camera_to_world and source-to-isocentre distance when it was made
_ROLE = "DiffDRR."
_NEAREST = 0.01  # of the source-to-detector distance: where the plane of the images stops before the source
_DEPTH_DIGITS = 6  # of the plane's depth in mm: rounding errors should not move it, which redraws all below it


class CArmNode:
    """What a C-arm's transform node means. Nothing is kept here: make one whenever you have the node.

    Args:
        node: a vtkMRMLLinearTransformNode made by `create`.

    Raises SceneError for another node.
    """

    def __init__(self, node):
        if node is None or node.GetAttribute(MARK) is None:
            name = "Nothing" if node is None else f"'{node.GetName()}'"
            raise SceneError(f"{name} is not a C-arm; add an X-ray or a C-arm first, and choose that.")
        self.node = node

    @classmethod
    def create(cls, scene, camera: Camera, pose: Pose, source_to_isocenter: float | None = None, name: str = "C-arm"):
        """A new C-arm. `source_to_isocenter` in mm; None is three quarters of the source-to-detector distance."""
        node = nodes.add_node(scene, "vtkMRMLLinearTransformNode", name)
        node.SetAttribute(MARK, "1")
        carm = cls(node)
        carm.camera = camera
        carm.pose = pose
        carm.source_to_isocenter = source_to_isocenter or 0.75 * float(camera.source_to_detector)
        carm.set_depth(carm.source_to_isocenter)
        nodes.write_json(node, _START, [pose.matrix.tolist(), carm.source_to_isocenter])
        return carm

    @classmethod
    def all(cls, scene) -> Iterator[CArmNode]:
        """All C-arms of a scene, in its order."""
        for index in range(scene.GetNumberOfNodesByClass("vtkMRMLLinearTransformNode")):
            node = scene.GetNthNodeByClass(index, "vtkMRMLLinearTransformNode")
            if node.GetAttribute(MARK) is not None:
                yield cls(node)

    def __eq__(self, other) -> bool:
        return isinstance(other, CArmNode) and other.node is self.node

    def __hash__(self) -> int:
        return hash(self.node)

    @property
    def scene(self):
        """The scene of the node."""
        return self.node.GetScene()

    @property
    def name(self) -> str:
        """The node's name."""
        return self.node.GetName()

    @property
    def camera(self) -> Camera:
        """The camera, float64. Images already there are not changed by a new one: `place_image` them again."""
        return _read_camera(self.node.GetAttribute(CAMERA) or "null", self.name)

    @camera.setter
    def camera(self, camera: Camera) -> None:
        if camera.K.ndim != 2:
            raise SceneError("A C-arm has one camera, not a batch.")
        nodes.write_json(self.node, CAMERA, camera_to_dict(camera))

    @property
    def to_world(self) -> nodes.Matrix:
        """camera_to_world [4, 4]. Raises SceneError where transforms above it are not rigid."""
        matrix = nodes.transform_to_world(self.node)
        if not nodes.is_rigid(matrix):
            raise SceneError(f"'{self.name}' is scaled, sheared or mirrored by a transform; a C-arm can only be moved.")
        return matrix

    @property
    def pose(self) -> Pose:
        """camera_to_world, float64. Raises SceneError as `to_world`."""
        return Pose(torch.from_numpy(self.to_world))

    @pose.setter
    def pose(self, pose: Pose) -> None:
        matrix = pose.matrix.detach().cpu().double().reshape(4, 4).numpy()
        nodes.set_transform_to_world(self.node, matrix)

    @property
    def source_to_isocenter(self) -> float:
        """mm along the central ray."""
        return float(nodes.read_json(self.node, _DISTANCE))

    @source_to_isocenter.setter
    def source_to_isocenter(self, distance: float) -> None:
        if not 0 < distance < float("inf"):
            raise GeometryError(f"The source-to-isocentre distance must be positive (mm), got {distance:g}.")
        nodes.write_json(self.node, _DISTANCE, float(distance))

    @property
    def arm(self) -> CArm:
        """The C-arm as isocentre (world mm), angles (degrees) and distances (mm)."""
        return CArm(self.camera.source_to_detector, **self._placement())

    def move_arm(self, **changes: Any) -> None:
        """Change `primary`, `secondary`, `roll` (degrees), `isocenter` (world mm) or `source_to_isocenter` (mm)."""
        arm = CArm(self.camera.source_to_detector, **{**self._placement(), **changes})
        self.source_to_isocenter = float(arm.source_to_isocenter)
        self.pose = arm.pose

    def _placement(self) -> dict[str, Any]:
        """What a `CArm` takes beside its source-to-detector distance."""
        pose, distance = self.pose, self.source_to_isocenter
        isocenter = pose.translation + distance * pose.rotation[:, 2]
        return {"source_to_isocenter": distance, "isocenter": isocenter, **CArm.angles_from(pose)._asdict()}

    def reset(self) -> None:
        """Go back to where the C-arm stood when it was made."""
        matrix, distance = nodes.read_json(self.node, _START)
        self.source_to_isocenter = distance
        self.pose = Pose(matrix)

    @property
    def meta(self) -> dict[str, Any]:
        """What the X-ray's file said: intensity, logarithmic, missing values and the like."""
        return nodes.read_json(self.node, META, {})

    @meta.setter
    def meta(self, meta: dict[str, Any]) -> None:
        nodes.write_json(self.node, META, meta)

    def refer(self, role: str, node) -> None:
        """Remember a node of this C-arm: "plane", "xray", "drr", "overlay", "frustum", "detector", "landmarks", ..."""
        self.node.SetNodeReferenceID(_ROLE + role, None if node is None else node.GetID())

    def referred(self, role: str):
        """The node of that role, or None."""
        return self.node.GetNodeReference(_ROLE + role)

    @property
    def plane(self):
        """The transform node that the images are below; made anew, at the isocentre, where somebody deleted it."""
        plane = self.referred("plane")
        if plane is None:
            name = f"{self.name} plane"
            plane = nodes.add_node(self.scene, "vtkMRMLLinearTransformNode", name, self.node, selectable=False)
            self.refer("plane", plane)
            self.set_depth(self.source_to_isocenter)
            for node in _on_plane(self):  # they lost their place with the old one
                node.SetAndObserveTransformNodeID(plane.GetID())
        return plane

    def below(self, role: str, class_name: str, name: str, on_plane: bool = True):
        """The node of that role, made where there is none: below the X-ray plane, or below the C-arm itself."""
        node = self.referred(role)
        if node is None:
            parent = self.plane if on_plane else self.node
            node = nodes.add_node(self.scene, class_name, f"{self.name} {name}", parent)
            self.refer(role, node)
        return node

    def place_image(self, volume, image, camera: Camera | None = None) -> None:
        """Show an image [H, W] on the detector: write it to a volume node, and put that below the X-ray plane.

        `camera` is the image's own where it is not this one's size (`camera.resized`).
        """
        camera = camera or self.camera
        if tuple(image.shape) != (camera.height, camera.width):
            raise SceneError(
                f"The image has {image.shape[0]} x {image.shape[1]} pixels but its camera "
                f"{camera.height} x {camera.width}; correct the camera's size."
            )
        nodes.set_image(volume, image, pixels_to_detector(camera))
        plane = self.plane.GetID()
        if volume.GetTransformNodeID() != plane:
            volume.SetAndObserveTransformNodeID(plane)

    def set_depth(self, depth: float) -> None:
        """Show the images at so many mm from the source, where a slice view agrees with the X-ray."""
        camera = self.camera
        distance = float(camera.source_to_detector)
        depth = max(round(depth, _DEPTH_DIGITS), _NEAREST * distance)
        matrix = np.eye(4)
        if camera.parallel:
            matrix[2, 3] = depth - distance
        else:
            matrix[:3, :3] *= depth / distance
        nodes.set_transform_to_parent(self.plane, matrix)

    def look_at(self, point) -> None:
        """Show the images in the plane through a world point (mm), as far as it lies in front of the source."""
        self.set_depth(float(nodes.transformed(np.linalg.inv(self.to_world), point)[2]))

    @property
    def depth(self) -> float:
        """mm from the source to the plane of the images."""
        plane = nodes.transform_to_parent(self.plane)
        distance = float(self.camera.source_to_detector)
        return distance + plane[2, 3] if self.camera.parallel else distance * plane[2, 2]


def remove_carm(carm: CArmNode) -> None:
    """Remove a C-arm with everything that belongs to it."""
    for node in [*belongings(carm), carm.node]:
        nodes.remove_node(node)


def belongings(carm: CArmNode) -> list:
    """The nodes that are there for this C-arm alone: plane, images, models, points. The true pose stays its own."""
    roles: list[str] = []
    carm.node.GetNodeReferenceRoles(roles)
    roles = [role for role in roles if role.startswith(_ROLE) and role != _ROLE + "reference"]
    found = [
        carm.node.GetNthNodeReference(role, index)
        for role in roles
        for index in range(carm.node.GetNumberOfNodeReferences(role))
    ]
    return [node for node in found if node is not None]


@lru_cache(maxsize=32)
def _read_camera(text: str, owner: str) -> Camera:
    """The camera of an attribute's text, read once: it is asked for at every turn, and no Camera ever changes."""
    return camera_from_dict(nodes.parse_json(text, CAMERA, owner), f"The camera of '{owner}'")


def _on_plane(carm: CArmNode) -> list:
    """What belongs below the X-ray plane and hangs nowhere."""
    apart = [carm.referred(role) for role in ("plane", "frustum", "detector")]
    return [
        node
        for node in belongings(carm)
        if node.IsA("vtkMRMLDisplayableNode") and node.GetParentTransformNode() is None and node not in apart
    ]


def pixels_to_detector(camera: Camera) -> nodes.Matrix:
    """[4, 4] from (u, v, 0, 1) to camera coordinates in mm, on the detector; the third axis makes it right-handed."""
    distance = float(camera.source_to_detector)
    inverse = np.linalg.inv(camera.K.detach().cpu().double().numpy())
    flat = (inverse if camera.parallel else distance * inverse)[:2]
    matrix = np.eye(4)
    matrix[:2, :2], matrix[:3, 3] = flat[:, :2], (*flat[:, 2], distance)
    matrix[2, 2] = np.sign(matrix[0, 0])
    return matrix


def pixels_to_points(camera: Camera, uv) -> nodes.Matrix:
    """Pixels [N, 2] as points on the detector [N, 3], in the coordinates that markups below the plane are stored in."""
    uv = np.asarray(uv, dtype=float).reshape(-1, 2)
    return nodes.transformed(pixels_to_detector(camera), np.column_stack([uv, np.zeros(len(uv))]))


def points_to_pixels(camera: Camera, points) -> nodes.Matrix:
    """Points below the X-ray plane [N, 3] as pixels [N, 2]; a point off the detector is seen along its ray."""
    points = np.asarray(points, dtype=float).reshape(-1, 3)
    K = camera.K.detach().cpu().double().numpy()
    local = np.column_stack([points[:, :2], np.ones(len(points))]) if camera.parallel else points / points[:, 2:]
    return (local @ K.T)[:, :2]
