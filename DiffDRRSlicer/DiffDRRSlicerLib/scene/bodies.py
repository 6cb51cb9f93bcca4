"""Bones that move on their own: a linear transform node each, above its surface and its segments.

The transform is the bone's motion: it takes what lies in the CT's coordinates from where the CT shows it to where the
X-rays saw it, and hangs beside the CT, below the same transforms. All that is known of a bone is in its nodes, so that
scenes save it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from DiffDRRCore import Pose
from DiffDRRSlicerLib.names import BODY
from DiffDRRSlicerLib.scene import nodes
from DiffDRRSlicerLib.scene.anatomy import Anatomy
from DiffDRRSlicerLib.scene.errors import SceneError

RESTS = ("stays", "first", "left out")
"""What all that is in no bone does: it stays with the CT, moves with the first bone, or is not rendered."""
COLORS = (
    (0.90, 0.62, 0.00),
    (0.34, 0.71, 0.91),
    (0.00, 0.62, 0.45),
    (0.94, 0.89, 0.26),
    (0.84, 0.37, 0.00),
    (0.80, 0.47, 0.65),
    (0.00, 0.45, 0.70),
)
"""Colours of the first bones, which the colour-blind tell apart (M. Okabe and K. Ito, 2008)."""
_CT, _LABELS = "DiffDRR.ct", "DiffDRR.labels"
_SURFACE, _SEGMENTS = "DiffDRR.surface", "DiffDRR.segments"
_LOCKED, _REST = "DiffDRR.Locked", "DiffDRR.Rest"
_STILL = 1e-9  # mm and direction cosines


class BodyNode:
    """A transform node made by `body_parts.add_body`.

    Raises SceneError for another node.
    """

    def __init__(self, node):
        if node is None or node.GetAttribute(BODY) is None:
            name = "Nothing" if node is None else f"'{node.GetName()}'"
            raise SceneError(f"{name} is not a bone; make one of structures first.")
        self.node = node

    @classmethod
    def create(cls, anatomy: Anatomy, structures: Sequence[str], name: str) -> BodyNode:
        """A new one where the CT shows it, without surface and segments. Raises SceneError as `check_structures`."""
        check_structures(anatomy, structures)
        node = nodes.add_node(
            anatomy.ct.GetScene(), "vtkMRMLLinearTransformNode", name, anatomy.ct.GetParentTransformNode()
        )
        nodes.write_json(node, BODY, list(structures))
        node.SetNodeReferenceID(_CT, anatomy.ct.GetID())
        node.SetNodeReferenceID(_LABELS, anatomy.labels.GetID())
        return cls(node)

    @classmethod
    def all(cls, scene) -> Iterator[BodyNode]:
        """All bones of a scene, in its order."""
        for index in range(scene.GetNumberOfNodesByClass("vtkMRMLLinearTransformNode")):
            node = scene.GetNthNodeByClass(index, "vtkMRMLLinearTransformNode")
            if node.GetAttribute(BODY) is not None:
                yield cls(node)

    @classmethod
    def of(cls, anatomy: Anatomy, any_labels: bool = False) -> list[BodyNode]:
        """The bones of a CT, of the labels in use: other labels have other structures."""
        if anatomy.ct.GetScene() is None or (anatomy.labels is None and not any_labels):
            return []
        return [
            body
            for body in cls.all(anatomy.ct.GetScene())
            if body.node.GetNodeReference(_CT) is anatomy.ct
            and (any_labels or body.node.GetNodeReference(_LABELS) is anatomy.labels)
        ]

    def __eq__(self, other) -> bool:
        return isinstance(other, BodyNode) and other.node is self.node

    def __hash__(self) -> int:
        return hash(self.node)

    @property
    def name(self) -> str:
        """Of the transform node; its surface and segments are called after it."""
        return self.node.GetName()

    @name.setter
    def name(self, name: str) -> None:
        name = name.strip()
        others = [body.name for body in self.all(self.node.GetScene()) if body != self]
        if not name or name in others:
            raise SceneError(f"There is a bone '{name}' already; give this one another name." if name else _NAMELESS)
        self.node.SetName(name)
        for node, kind in ((self.surface, "surface"), (self.segments, "segments")):
            if node is not None:
                node.SetName(f"{name} {kind}")

    @property
    def structures(self) -> list[str]:
        """Names of the structures that it is made of, as `Anatomy.structures` has them."""
        return list(nodes.read_json(self.node, BODY))

    def numbers(self, anatomy: Anatomy) -> tuple[int, ...]:
        """Of its structures. Raises SceneError for one that the labels do not have any more."""
        known = {name: number for number, name in anatomy.structures.items()}
        if missing := [name for name in self.structures if name not in known]:
            raise SceneError(
                f"The bone '{self.name}' is made of '{missing[0]}', which '{anatomy.labels.GetName()}' does not have "
                "(any more): name the structure so again, or remove the bone."
            )
        return tuple(known[name] for name in self.structures)

    @property
    def locked(self) -> bool:
        """Whether a registration leaves it where it is."""
        return self.node.GetAttribute(_LOCKED) == "1"

    @locked.setter
    def locked(self, locked: bool) -> None:
        nodes.write_json(self.node, _LOCKED, 1 if locked else None)

    @property
    def surface(self):
        """Its model node; None where somebody deleted it."""
        return self.node.GetNodeReference(_SURFACE)

    @property
    def segments(self):
        """Its segmentation node, with a copy of its structures; None where somebody deleted it."""
        return self.node.GetNodeReference(_SEGMENTS)

    def refer(self, surface=None, segments=None) -> None:
        """Remember its parts."""
        for role, node in ((_SURFACE, surface), (_SEGMENTS, segments)):
            if node is not None:
                self.node.SetNodeReferenceID(role, node.GetID())

    @property
    def labels(self):
        """The labelmap or segmentation that names its structures."""
        return self.node.GetNodeReference(_LABELS)

    @property
    def anatomy(self) -> Anatomy:
        """The CT that it is a bone of, with the labels that name its structures. SceneError where one was deleted."""
        if self.labels is None:
            raise SceneError(f"The labels that the bone '{self.name}' was made of were deleted; remove the bone.")
        return Anatomy(self.node.GetNodeReference(_CT), self.labels)

    @property
    def color(self) -> tuple[float, float, float]:
        """Red, green, blue of its surface, 0 to 1."""
        display = None if self.surface is None else self.surface.GetDisplayNode()
        return COLORS[0] if display is None else tuple(display.GetColor())

    @color.setter
    def color(self, color: Sequence[float]) -> None:
        if self.surface is not None:
            self.surface.GetDisplayNode().SetColor(*color)
        segmentation = None if self.segments is None else self.segments.GetSegmentation()
        for index in range(0 if segmentation is None else segmentation.GetNumberOfSegments()):
            segmentation.GetNthSegment(index).SetColor(*color)

    @property
    def visible(self) -> bool:
        """Whether its surface or its segments are shown."""
        return any(display.GetVisibility() for display in self._displays())

    @visible.setter
    def visible(self, visible: bool) -> None:
        for display in self._displays():
            display.SetVisibility(visible)

    def _displays(self) -> list:
        parts = (self.surface, self.segments)
        return [node.GetDisplayNode() for node in parts if node is not None and node.GetDisplayNode() is not None]

    def motion(self, anatomy: Anatomy) -> nodes.Matrix:
        """[4, 4] rigid, in the coordinates of `anatomy.volume`: from where the CT shows it to where it is.

        Raises SceneError where a transform scales or shears it.
        """
        ct = anatomy.ct
        matrix = nodes.transform_to_parent(self.node)
        if self.node.GetParentTransformNode() is not ct.GetParentTransformNode() or anatomy.is_scaled:
            to_volume = np.linalg.inv(anatomy.to_world)
            matrix = (
                to_volume @ nodes.transform_to_world(self.node) @ np.linalg.inv(to_volume @ nodes.parent_to_world(ct))
            )
        if not nodes.is_rigid(matrix):
            raise SceneError(
                f"The bone '{self.name}' is scaled, sheared or mirrored by a transform; it can only be moved."
            )
        return matrix

    def move(self, anatomy: Anatomy, motion: Pose) -> None:
        """Write what `motion` reads."""
        matrix = motion.matrix.detach().cpu().double().numpy()
        if self.node.GetParentTransformNode() is anatomy.ct.GetParentTransformNode() and not anatomy.is_scaled:
            nodes.set_transform_to_parent(self.node, matrix)
            return
        to_world = anatomy.to_world @ matrix @ np.linalg.inv(anatomy.to_world)
        nodes.set_transform_to_world(self.node, to_world @ nodes.parent_to_world(anatomy.ct))

    def put_back(self, anatomy: Anatomy) -> None:
        """Move it to where the CT shows it."""
        self.move(anatomy, Pose.identity())

    def pose(self, anatomy: Anatomy) -> Pose:
        """`motion` as a Pose."""
        return Pose(torch.from_numpy(self.motion(anatomy)))

    def is_moved(self, anatomy: Anatomy) -> bool:
        """Whether it is elsewhere than the CT shows it."""
        return not np.allclose(self.motion(anatomy), np.eye(4), rtol=0, atol=_STILL)


_NAMELESS = "Give the bone a name."


def check_structures(anatomy: Anatomy, structures: Sequence[str]) -> None:
    """Raise SceneError where a bone cannot be made of these structures."""
    if anatomy.labels is None:
        raise SceneError("Bones are made of structures: choose a labelmap or a segmentation of the CT first.")
    if not structures:
        raise SceneError("A bone is made of structures: choose at least one.")
    known = anatomy.structures.values()
    for name in structures:
        if name not in known:
            raise SceneError(f"There is no structure '{name}' in the CT; there are: {', '.join(known)}.")
        for body in BodyNode.of(anatomy):
            if name in body.structures:
                raise SceneError(f"'{name}' is in the bone '{body.name}' already; a structure moves with one.")


def free_structures(anatomy: Anatomy) -> list[str]:
    """Names of the structures that are in no bone."""
    taken = {name for body in BodyNode.of(anatomy) for name in body.structures}
    return [name for name in anatomy.structures.values() if name not in taken]


def without_structures(anatomy: Anatomy) -> str:
    """The sentence on the first bone with a structure that the labels lack; nothing where there is none."""
    for body in BodyNode.of(anatomy):
        try:
            body.numbers(anatomy)
        except SceneError as error:
            return str(error)
    return ""


def rest_of(ct) -> str:
    """One of `RESTS`."""
    rest = ct.GetAttribute(_REST)
    return rest if rest in RESTS else RESTS[0]


def set_rest(ct, rest: str) -> None:
    """What all that is in no bone of this CT does. Raises SceneError for another word than `RESTS` has."""
    if rest not in RESTS:
        raise SceneError(f"What is in no bone {', '.join(map(repr, RESTS))}, not {rest!r}.")
    if rest_of(ct) != rest:
        ct.SetAttribute(_REST, rest)
