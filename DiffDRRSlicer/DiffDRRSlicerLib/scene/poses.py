"""Moving the C-arm: presets, nudges, named poses; and undo, of the patient's place too (see patient.py)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from DiffDRRCore import Camera, Pose
from DiffDRRCore.imaging.camera_file import camera_to_dict
from DiffDRRSlicerLib.scene import nodes
from DiffDRRSlicerLib.scene.anatomy import Anatomy
from DiffDRRSlicerLib.scene.bodies import BodyNode
from DiffDRRSlicerLib.scene.carm import CArmNode
from DiffDRRSlicerLib.scene.errors import SceneError
from DiffDRRSlicerLib.scene.undistortion import put_back
from DiffDRRSlicerLib.scene.views import SIDES

PRESETS = {
    "AP": (180.0, 0.0),
    "PA": (0.0, 0.0),
    "Left lateral": (90.0, 0.0),
    "Right lateral": (-90.0, 0.0),
    "LAO 45": (45.0, 0.0),
    "RAO 45": (-45.0, 0.0),
    "Inlet": (0.0, 40.0),
    "Outlet": (0.0, -40.0),
}
"""Positioner angles (primary + LAO, secondary + CRA) in degrees; named by the beam or by the detector's side."""

_NAMED = "DiffDRR.Poses"


def apply_preset(carm: CArmNode, name: str) -> None:
    """Turn the C-arm about its isocentre to one of `PRESETS`, upright; isocentre and distances stay."""
    if name not in PRESETS:
        raise SceneError(f"There is no view called '{name}'; the views are: {', '.join(PRESETS)}.")
    primary, secondary = PRESETS[name]
    carm.move_arm(primary=primary, secondary=secondary, roll=0.0)


def nudge(
    carm: CArmNode,
    anatomy: Anatomy,
    right: float = 0.0,
    down: float = 0.0,
    depth: float = 0.0,
    turn: float = 0.0,
    side: str = "source",
) -> None:
    """Move the C-arm so that the anatomy's picture moves as asked.

    Args:
        right, down: mm at the anatomy.
        depth: mm away from the source.
        turn: degrees clockwise, about the beam's direction through the anatomy's centre.
        side: where the picture is looked at from, "source" or "radiological" (mirrored): what right and clockwise are.
    """
    if side not in SIDES:
        raise SceneError(f"A picture is seen from the side 'source' or 'radiological', not '{side}'.")
    mirror = 1.0 if side == "source" else -1.0
    pose = carm.pose
    shift = pose.rotation @ torch.tensor([mirror * right, down, depth], dtype=torch.float64)
    axis = pose.rotation[:, 2] * np.deg2rad(mirror * turn)
    motion = rigid_motion(axis.numpy(), shift.numpy(), anatomy.center)
    carm.pose = Pose(torch.from_numpy(np.linalg.inv(motion))) @ pose


def rigid_motion(rotation_vector, shift, center) -> nodes.Matrix:
    """[4, 4] a turn about a point by a rotation vector (rad), then a shift (mm)."""
    twist = np.concatenate([np.asarray(rotation_vector, dtype=float), np.zeros(3)])
    motion = Pose.identity().retract(twist, about=torch.as_tensor(np.asarray(center, dtype=float))).matrix.numpy()
    motion = motion.copy()
    motion[:3, 3] += np.asarray(shift, dtype=float)
    return motion


def named_poses(carm: CArmNode) -> dict[str, Pose]:
    """{name: camera_to_world} of the poses that were saved with this C-arm, in the order of saving."""
    return {name: Pose(entry["camera_to_world"]) for name, entry in _named(carm).items()}


def save_pose(carm: CArmNode, name: str) -> None:
    """Remember where the C-arm stands, in the world: a patient who is moved later is then seen as moved.

    A name that is there already gets the new pose. Kept in the attribute "DiffDRR.Poses" of the node, so that scenes
    save it.
    """
    name = name.strip()
    if not name:
        raise SceneError("Give the pose a name.")
    entry = {"camera_to_world": carm.pose.matrix.tolist(), "source_to_isocenter": carm.source_to_isocenter}
    nodes.write_json(carm.node, _NAMED, {**_named(carm), name: entry})


def apply_pose(carm: CArmNode, name: str) -> None:
    """Go back to a saved pose. Raises SceneError for a name that is not there."""
    entry = _entry(carm, name)
    pose = Pose(entry["camera_to_world"])
    carm.source_to_isocenter = entry["source_to_isocenter"]
    carm.pose = pose


def delete_pose(carm: CArmNode, name: str) -> None:
    """Forget a saved pose. Raises SceneError for a name that is not there."""
    _entry(carm, name)
    left = {key: entry for key, entry in _named(carm).items() if key != name}
    nodes.write_json(carm.node, _NAMED, left or None)


def _named(carm: CArmNode) -> dict[str, dict]:
    return nodes.read_json(carm.node, _NAMED, {})


def _entry(carm: CArmNode, name: str) -> dict:
    saved = _named(carm)
    if name not in saved:
        known = ", ".join(saved) or "none"
        raise SceneError(f"'{carm.name}' has no saved pose '{name}'; saved poses: {known}.")
    return saved[name]


@dataclass(frozen=True)
class _Place:
    """Of a transform node: its matrix to parent; of a C-arm also its distance, its camera and what is known of both."""

    matrix: nodes.Matrix
    distance: float | None = None
    camera: Camera | None = None
    meta: dict = field(default_factory=dict)

    @classmethod
    def of(cls, carm: CArmNode) -> _Place:
        return cls(nodes.transform_to_parent(carm.node), carm.source_to_isocenter, carm.camera, carm.meta)

    def restore(self, carm: CArmNode) -> None:
        put_back(carm, self.camera, self.meta)
        nodes.set_transform_to_parent(carm.node, self.matrix)
        carm.source_to_isocenter = self.distance

    def same(self, other: _Place) -> bool:
        known = (self.distance, self.meta) == (other.distance, other.meta)
        return known and np.array_equal(self.matrix, other.matrix) and _same_camera(self.camera, other.camera)


def _same_camera(a: Camera | None, b: Camera | None) -> bool:
    return a is b or (a is not None and b is not None and camera_to_dict(a) == camera_to_dict(b))


@dataclass(frozen=True)
class _State:
    """Places by node ID."""

    text: str
    places: dict[str, _Place]


class PoseHistory:
    """Undo and redo of all C-arm poses and cameras, and of the places of patient and bones.

    Call `rest` whenever nothing moves any more. C-arms that are deleted meanwhile are passed over, and ones that are
    added stay where they are.

    Args:
        patient: gives the patient transform node, or None as long as there is none.
        most: steps that are kept.
    """

    def __init__(self, scene, patient: Callable[[], object] = lambda: None, most: int = 100):
        self._scene, self._patient, self._most = scene, patient, most
        self._before: list[_State] = []
        self._after: list[_State] = []
        self._rested = self._now("")

    @property
    def undo_text(self) -> str | None:
        """What `undo` would take back, None for nothing."""
        return self._before[-1].text if self._before else None

    @property
    def redo_text(self) -> str | None:
        """What `redo` would do again, None for nothing."""
        return self._after[-1].text if self._after else None

    def rest(self, text: str) -> None:
        """What moved since the last time, by whatever means, becomes a step of undo; `text` says what it was."""
        now = self._now(text)
        if _differ(self._rested, now):
            self._before = [*self._before, replace(self._rested, text=text)][-self._most :]
            self._after = []
        self._rested = now

    def forget(self) -> None:
        """No step can be taken back any more: nodes hang elsewhere than before."""
        self._before, self._after = [], []
        self._rested = self._now("")

    def undo(self) -> str | None:
        """Put all back to before the last step; its text, None where there is nothing."""
        return self._step(self._before, self._after)

    def redo(self) -> str | None:
        """The inverse of `undo`."""
        return self._step(self._after, self._before)

    def _step(self, source: list[_State], target: list[_State]) -> str | None:
        while source:
            state = source.pop()
            now = self._now(state.text)
            if _differ(state, now):
                target.append(now)
                self._restore(state)
                self._rested = self._now("")
                return state.text
        return None

    def _now(self, text: str) -> _State:
        places = {}
        for carm in CArmNode.all(self._scene):
            places[carm.node.GetID()] = _Place.of(carm)
        for body in BodyNode.all(self._scene):
            places[body.node.GetID()] = _Place(nodes.transform_to_parent(body.node))
        patient = self._patient()
        if patient is not None and patient.GetScene() is self._scene:
            places[patient.GetID()] = _Place(nodes.transform_to_parent(patient))
        return _State(text, places)

    def _restore(self, state: _State) -> None:
        patient = self._patient()
        if patient is not None and patient.GetID() not in state.places:
            nodes.set_transform_to_parent(patient, np.eye(4))  # it was made by the move that is taken back
        for identifier, place in state.places.items():
            node = self._scene.GetNodeByID(identifier)
            if node is None or not node.IsA("vtkMRMLLinearTransformNode"):
                continue
            if place.camera is None:
                nodes.set_transform_to_parent(node, place.matrix)
            else:
                place.restore(CArmNode(node))


def _differ(a: _State, b: _State) -> bool:
    """Whether a node that is in the scene now (b) was another; a patient transform was the identity before it was."""
    for identifier, place in b.places.items():
        unknown = _Place(np.eye(4)) if place.camera is None else place
        if not place.same(a.places.get(identifier, unknown)):
            return True
    return False
