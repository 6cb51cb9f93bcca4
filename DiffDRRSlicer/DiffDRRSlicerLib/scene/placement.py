"""Where a registration finds C-arms, patient and bones, where it puts them, and how it puts them back."""

from __future__ import annotations

from collections.abc import Container, Sequence

import numpy as np
import torch

from DiffDRRCore import Pose
from DiffDRRCore.geometry import stack_poses
from DiffDRRSlicerLib.scene import nodes
from DiffDRRSlicerLib.scene.anatomy import Anatomy
from DiffDRRSlicerLib.scene.body_groups import Group
from DiffDRRSlicerLib.scene.carm import CArmNode
from DiffDRRSlicerLib.scene.handles import patient_transform

Above = tuple[tuple[str, nodes.Matrix | None], ...]
_STILL = 1e-6  # mm and direction cosines


class Placement:
    """The moved nodes of a run, from the moment it is made.

    Args:
        groups: of `body_groups.groups_of`, as the engine has them; none for the CT as one.
        target: "carm", "patient" or "bodies".
        also: nodes that move with the patient.

    Attributes:
        starts: camera_to_volume of each C-arm.  to_world: volume to world. Both as they were.
    """

    def __init__(
        self, anatomy: Anatomy, carms: Sequence[CArmNode], groups: Sequence[Group], target: str, also: Sequence = ()
    ):
        self.to_world = Pose(torch.from_numpy(anatomy.to_world))
        self._anatomy, self._carms, self._groups, self._target = anatomy, carms, groups, target
        self._carm_starts = [carm.pose for carm in carms]
        self.starts = [self.to_world.inverse() @ pose for pose in self._carm_starts]
        self._begun = list(self.starts)
        self._patient = patient_transform(anatomy, also) if target == "patient" else None
        self._patient_start = None if self._patient is None else nodes.transform_to_world(self._patient)
        self._ct_start = nodes.parent_to_world(anatomy.ct)
        bones = [member for group in groups for member in group.members]
        self._bone_starts = [(bone, nodes.transform_to_parent(bone.node)) for bone in bones]

    @property
    def nodes(self) -> list:
        """The transforms that are moved beside the C-arms'."""
        return [bone.node for bone, _ in self._bone_starts] + ([self._patient] if self._patient is not None else [])

    def begin_at(self, poses: Sequence[Pose]) -> None:
        """The engine starts with the C-arms there (camera_to_volume), which another one found."""
        self._begun = list(poses)
        motions = [group.motion for group in self._groups] or [Pose.identity()]
        self.move(motions, self.begun)

    def begin_bodies_at(self, groups: Sequence[Group]) -> None:
        """The engine starts with the bodies of these groups, in the same order, where another one found them."""
        self._groups = list(groups)
        self.move([group.motion for group in groups], self.begun)

    @property
    def begun(self) -> Pose:
        """[V, 4, 4] camera_to_volume of the C-arms with which the engine started."""
        return stack_poses(self._begun)

    def places(self) -> dict[str, nodes.Matrix]:
        """[4, 4] to parent of each transform that may be moved, by node ID, as it is now."""
        moved = [*(carm.node for carm in self._carms), *self.nodes]
        return {node.GetID(): nodes.transform_to_parent(node) for node in moved}

    def around(self) -> dict[str, Above]:
        """What the CT and each transform that may be moved hang below, by node ID, as it is now."""
        moved = self.places()
        return {node.GetID(): above_of(node, moved) for node in (self._anatomy.ct, *map(self._node, moved))}

    def _node(self, identifier: str):
        return self._anatomy.ct.GetScene().GetNodeByID(identifier)

    def move(self, motions: Sequence[Pose], carms: Pose) -> None:
        """Put the nodes to where the engine has its bodies (none: the CT is the only one) and the C-arms [V, 4, 4]."""
        first = next((number for number, pose in enumerate(carms) if _same(pose, self._begun[number])), 0)
        room = self.starts[first] @ self._begun[first].inverse()  # from the engine's to the scene's
        self._move_all([room @ motion for motion in motions], [room @ pose for pose in carms])

    def restore(self) -> None:
        """Put all back."""
        for carm, pose in zip(self._carms, self._carm_starts, strict=True):
            carm.pose = pose
        if self._patient is not None:
            nodes.set_transform_to_world(self._patient, self._patient_start)
        for bone, matrix in self._bone_starts:
            nodes.set_transform_to_parent(bone.node, matrix)

    def _move_all(self, motions: list[Pose], carms: list[Pose]) -> None:
        """Motions and poses in the volume's coordinates, as these were at the start."""
        held = self._groups[0].motion if self._groups else Pose.identity()
        common = motions[0] @ held.inverse()  # of what stays with the CT
        if self._target == "carm":
            carms = [common.inverse() @ pose for pose in carms]
            motions = [common.inverse() @ motion for motion in motions]
        for carm, pose in zip(self._carms, carms, strict=True):
            if not _same(pose, self._seen(carm)):
                carm.pose = self.to_world @ pose
        if self._target == "patient":
            nodes.set_transform_to_world(self._patient, self._in_world(common) @ self._patient_start)
        first = 0 if self._target == "bodies" else 1  # else the first group stays
        for group, motion in list(zip(self._groups, motions, strict=False))[first:]:
            self._move_bones(group, motion)

    def _move_bones(self, group: Group, motion: Pose) -> None:
        for bone in () if group.body.locked else group.members:
            if self._target == "patient":
                nodes.set_transform_to_world(bone.node, self._in_world(motion) @ self._ct_start)
            else:
                bone.move(self._anatomy, motion)

    def _in_world(self, motion: Pose) -> nodes.Matrix:
        return (self.to_world @ motion @ self.to_world.inverse()).matrix.numpy()

    def _seen(self, carm: CArmNode) -> Pose:
        return self.to_world.inverse() @ carm.pose


def above_of(node, but: Container[str]) -> Above:
    """(ID, [4, 4] to parent) of each transform above a node, the nearest first; None in place of those in `but`."""
    found = []
    while (node := node.GetParentTransformNode()) is not None:
        known = node.GetID() not in but
        found.append((node.GetID(), nodes.transform_to_parent(node) if known else None))
    return tuple(found)


def same_above(one: Above, other: Above) -> bool:
    """Whether these are the same transforms, and stand where they did."""
    if [identifier for identifier, _ in one] != [identifier for identifier, _ in other]:
        return False
    pairs = [(a, b) for (_, a), (_, b) in zip(one, other, strict=True) if a is not None]
    return all(np.allclose(a, b, rtol=0, atol=_STILL) for a, b in pairs)


def _same(a: Pose, b: Pose) -> bool:
    return bool(np.allclose(a.matrix, b.matrix, rtol=0, atol=1e-9))
