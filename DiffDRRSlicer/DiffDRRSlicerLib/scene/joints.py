"""Joints: what is known of how two bones stand to each other, kept in a node of the scene."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from DiffDRRCore.registration import Joint
from DiffDRRSlicerLib.scene import nodes
from DiffDRRSlicerLib.scene.anatomy import Anatomy
from DiffDRRSlicerLib.scene.bodies import BodyNode
from DiffDRRSlicerLib.scene.body_groups import Group
from DiffDRRSlicerLib.scene.bone_landmarks import placed_numbers, points_in_ct
from DiffDRRSlicerLib.scene.errors import SceneError

_JOINT, _CLASS = "DiffDRR.Joint", "vtkMRMLScriptedModuleNode"
_FIRST, _SECOND, _CENTER = "DiffDRR.first", "DiffDRR.second", "DiffDRR.center"
_LIST = "DiffDRR.CenterList"  # attribute: what the centre's list was called when it was set

Six = tuple[float | None, ...]


@dataclass(frozen=True)
class JointSettings:
    """As `DiffDRRCore.registration.Joint` has them.

    Attributes:
        deviations, bounds: six numbers (degrees about, mm along the axes) or None each, or None for none at all.
        axes: [3][3], columns are directions in the CT; None is R, A, S.
        weight: the similarity that one squared deviation costs.
    """

    deviations: Six | None = (None, None, None, 2.0, 2.0, 2.0)
    bounds: Six | None = None
    axes: Sequence[Sequence[float]] | None = None
    weight: float = 1e-3

    def __post_init__(self):
        for name in ("deviations", "bounds"):
            values = getattr(self, name)
            six = None if values is None or not any(values) else tuple(value or None for value in values)
            object.__setattr__(self, name, six)
        self.of("one", "other")  # raises

    def of(self, first: str, second: str, center=None) -> Joint:
        """The engine's joint of bodies of these names; `center`: [3] RAS mm in the CT, or None."""
        axes = None if self.axes is None else torch.tensor(self.axes, dtype=torch.float64)
        return Joint((first, second), center, axes, self.deviations, self.bounds, self.weight)


class JointNode:
    """A joint's node in the scene, made by `add_joint`."""

    def __init__(self, node):
        if node is None or node.GetAttribute(_JOINT) is None:
            raise SceneError("Choose a joint first; make one of two bones.")
        self.node = node

    @classmethod
    def of(cls, anatomy: Anatomy) -> list[JointNode]:
        """The joints between the bones of a CT and its labels, in the scene's order."""
        bones = BodyNode.of(anatomy)
        return [joint for joint in _all(anatomy.ct.GetScene()) if set(joint.nodes) <= {bone.node for bone in bones}]

    @classmethod
    def at(cls, body: BodyNode) -> list[JointNode]:
        """The joints of a bone."""
        return [joint for joint in _all(body.node.GetScene()) if body.node in joint.nodes]

    def __eq__(self, other) -> bool:
        return isinstance(other, JointNode) and other.node is self.node

    def __hash__(self) -> int:
        return hash(self.node)

    @property
    def nodes(self) -> tuple:
        """Transform nodes of the two bones; None for one that was deleted."""
        return self.node.GetNodeReference(_FIRST), self.node.GetNodeReference(_SECOND)

    @property
    def bones(self) -> tuple[BodyNode, BodyNode]:
        """The two."""
        first, second = self.nodes
        return BodyNode(first), BodyNode(second)

    @property
    def name(self) -> str:
        """By its bones as they are called now."""
        return " – ".join(bone.name for bone in self.bones)

    @property
    def settings(self) -> JointSettings:
        """What was set."""
        known = nodes.read_json(self.node, _JOINT)
        return JointSettings(**{name: known[name] for name in asdict(JointSettings()) if name in known})

    def change(self, **changes: Any) -> None:
        """Change fields of `JointSettings`. Raises DiffDRRError for values that make no sense; nothing is changed."""
        unknown = set(changes) - set(asdict(JointSettings()))
        if unknown:
            raise SceneError(f"A joint has no '{min(unknown)}'; there are {', '.join(asdict(JointSettings()))}.")
        nodes.write_json(self.node, _JOINT, asdict(replace(self.settings, **changes)))

    @property
    def center(self):
        """The list of points whose middle is its centre; None is the middle between the bones, unless `lost_center`."""
        return self.node.GetNodeReference(_CENTER)

    @center.setter
    def center(self, markups) -> None:
        self.node.SetNodeReferenceID(_CENTER, None if markups is None else markups.GetID())
        self.node.SetAttribute(_LIST, None if markups is None else markups.GetName() or "")

    @property
    def lost_center(self) -> str | None:
        """The name of the list that was its centre and was deleted; None where there is none, or none was set."""
        return self.node.GetAttribute(_LIST) if self.center is None else None

    def center_in_ct(self, anatomy: Anatomy):
        """[3] in the coordinates of `anatomy.volume` where the CT shows it, or None.

        Raises SceneError where its list has no point, or was deleted.
        """
        markups, lost = self.center, self.lost_center
        if lost is not None:
            raise SceneError(
                f"The joint '{self.name}' had its centre in '{lost}', which was deleted: choose another list of points "
                "for it, or make the joint anew."
            )
        if markups is None:
            return None
        numbers = placed_numbers(markups)
        if not numbers:
            raise SceneError(
                f"The joint '{self.name}' has its centre in '{markups.GetName()}', which has no point yet."
            )
        return tuple(points_in_ct(anatomy, markups, numbers).mean(axis=0).tolist())


def add_joint(anatomy: Anatomy, first: BodyNode, second: BodyNode, center=None, **settings: Any) -> JointNode:
    """A joint of two bones.

    Args:
        center: list of points whose middle is its centre, or None.  settings: fields of `JointSettings`.

    Raises DiffDRRError where the two are one or have a joint already, or for settings that make no sense.
    """
    if first == second:
        raise SceneError("A joint is between two bones: choose another one.")
    if any({first.node, second.node} == set(joint.nodes) for joint in JointNode.of(anatomy)):
        raise SceneError(f"'{first.name}' and '{second.name}' have a joint already: change that one.")
    values = asdict(JointSettings(**settings))
    node = nodes.add_node(anatomy.ct.GetScene(), _CLASS, f"{first.name} joint", selectable=False)
    node.SetNodeReferenceID(_FIRST, first.node.GetID())
    node.SetNodeReferenceID(_SECOND, second.node.GetID())
    nodes.write_json(node, _JOINT, values)
    joint = JointNode(node)
    joint.center = center
    return joint


def engine_joints(anatomy: Anatomy, groups: Sequence[Group]) -> list[Joint]:
    """Those between different groups of a registration, by the names that its bodies have.

    Raises SceneError for a centre without a point, or one that was deleted.
    """
    names = {bone.node.GetID(): group.body.name for group in groups for bone in group.members}
    found = []
    for joint in JointNode.of(anatomy):
        first, second = (names.get(node.GetID()) for node in joint.nodes)
        if first is not None and second is not None and first != second:
            found.append(joint.settings.of(first, second, joint.center_in_ct(anatomy)))
    return found


def six(degrees: Sequence[float], mm: Sequence[float]) -> Six | None:
    """Six numbers of one or three degrees and one or three mm; 0 is none."""
    both = [tuple(part) * 3 if len(part) == 1 else tuple(part) for part in (degrees, mm)]
    values = tuple(value or None for value in (*both[0], *both[1]))
    return values if any(values) else None


def _all(scene) -> Iterator[JointNode]:
    for index in range(scene.GetNumberOfNodesByClass(_CLASS)):
        node = scene.GetNthNodeByClass(index, _CLASS)
        if node.GetAttribute(_JOINT) is not None:
            yield JointNode(node)
