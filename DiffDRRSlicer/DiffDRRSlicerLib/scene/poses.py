"""Moving the C-arm and the patient: presets, nudges, moves in world axes, named poses, undo."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from DiffDRRCore import Pose
from DiffDRRSlicerLib.scene import nodes
from DiffDRRSlicerLib.scene.anatomy import Anatomy
from DiffDRRSlicerLib.scene.carm import CArmNode
from DiffDRRSlicerLib.scene.errors import SceneError

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

SIDES = ("source", "radiological")
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


def move_patient(what, rotation_deg=(0.0, 0.0, 0.0), translation_mm=(0.0, 0.0, 0.0), about=None, also=()) -> None:
    """Move the patient in world axes, from where it is.

    Args:
        what: an `Anatomy`, above which a patient transform is made at the first use, or the transform node itself.
        rotation_deg: degrees about R, then about A, then about S (right-handed).
        translation_mm: mm towards right, anterior, superior.
        about: [3] world mm, what is turned about; None is the anatomy's centre, where it is now.
        also: nodes that belong to the patient (see `handles.patient_transform`).
    """
    from DiffDRRSlicerLib.scene.handles import patient_transform

    is_anatomy = isinstance(what, Anatomy)
    if about is None and not is_anatomy:
        raise SceneError("A transform alone has no centre: give the anatomy, or the point to turn about.")
    transform = patient_transform(what, also) if is_anatomy else what
    center = what.center if about is None else np.asarray(about, dtype=float)
    motion = np.eye(4)
    for axis, angle in zip(np.eye(3), rotation_deg, strict=True):
        motion = rigid_motion(axis * np.deg2rad(angle), np.zeros(3), center) @ motion
    motion[:3, 3] += np.asarray(translation_mm, dtype=float)
    nodes.set_transform_to_world(transform, motion @ nodes.transform_to_world(transform))


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
class _State:
    """Transforms by node ID: matrix to parent, and a C-arm's source-to-isocentre distance (None for the patient)."""

    text: str
    places: dict[str, tuple[nodes.Matrix, float | None]]


class PoseHistory:
    """Undo and redo of all C-arm poses and of the patient's place.

    `push` before something is moved; whoever drags pushes once, at the beginning. C-arms that are deleted meanwhile are
    passed over, and ones that are added stay where they are.

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

    def push(self, text: str) -> None:
        """Remember where everything is, before it is moved; `text` says what is about to happen, for the user."""
        self._before = [*self._before, self._now(text)][-self._most :]
        self._after = []

    def rest(self, text: str) -> None:
        """Call this when nothing moves: what moved since the last time, by whatever means, becomes a step of undo."""
        now = self._now(text)
        moved = _differ(self._rested, now)
        if moved and not (self._before and not _differ(self._before[-1], self._rested)):
            self._before = [*self._before, replace(self._rested, text=text)][-self._most :]
            self._after = []
        self._rested = now

    def undo(self) -> str | None:
        """Put all back to before the last push after which something moved; its text, None where there is nothing."""
        return self._step(self._before, self._after)

    def redo(self) -> str | None:
        """The inverse of `undo`."""
        return self._step(self._after, self._before)

    def clear(self) -> None:
        """Forget all; a scene that closes calls it."""
        self._before, self._after = [], []
        self._rested = self._now("")

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
            places[carm.node.GetID()] = (nodes.transform_to_parent(carm.node), carm.source_to_isocenter)
        patient = self._patient()
        if patient is not None and patient.GetScene() is self._scene:
            places[patient.GetID()] = (nodes.transform_to_parent(patient), None)
        return _State(text, places)

    def _restore(self, state: _State) -> None:
        patient = self._patient()
        if patient is not None and patient.GetID() not in state.places:
            nodes.set_transform_to_parent(patient, np.eye(4))  # it was made by the move that is taken back
        for identifier, (matrix, distance) in state.places.items():
            node = self._scene.GetNodeByID(identifier)
            if node is None or not node.IsA("vtkMRMLLinearTransformNode"):
                continue
            nodes.set_transform_to_parent(node, matrix)
            if distance is not None:
                CArmNode(node).source_to_isocenter = distance


def _differ(a: _State, b: _State) -> bool:
    """Whether a node that is in the scene now (b) was elsewhere."""
    for identifier, (matrix, distance) in b.places.items():
        before, known = a.places.get(identifier, (np.eye(4) if distance is None else matrix, distance))
        if known != distance or not np.array_equal(before, matrix):
            return True
    return False
