"""Bones of the scene as bodies of the registration engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from DiffDRRCore import Pose
from DiffDRRCore.registration import Body
from DiffDRRSlicerLib.scene.anatomy import Anatomy
from DiffDRRSlicerLib.scene.bodies import BodyNode, rest_of
from DiffDRRSlicerLib.scene.errors import SceneError
from DiffDRRSlicerLib.scene.reassembly import rest_numbers

TARGETS = ("carm", "patient", "bodies")
REST = "all else"


@dataclass(frozen=True)
class Group:
    """What moves as one.

    Attributes:
        body: for the engine.  members: bones that are in it.
        rest: whether all that is in no bone is in it.
    """

    body: Body
    members: tuple[BodyNode, ...]
    rest: bool = False

    @property
    def motion(self) -> Pose:
        """Where it starts, from where the CT shows it."""
        return Pose.identity() if self.body.motion is None else self.body.motion

    def moved(self, motion: Pose) -> Group:
        """The same, moved from where it starts."""
        return replace(self, body=replace(self.body, motion=motion @ self.motion))


def groups_of(anatomy: Anatomy, bodies: Sequence[BodyNode], target: str, structures=None) -> list[Group]:
    """The groups of a registration.

    Where the "carm" or the "patient" is moved, the first group is what stays where it is to the CT: what is locked, and
    all else where that stays; without these, the first bone. C-arm or patient are moved to where it is seen, and the
    other bones with respect to it. Where only the "bodies" are moved, those that are free come first, and what is
    locked is so for the engine, too.

    Args:
        structures: names or numbers; of what is in no bone, only these are rendered.

    Raises SceneError where everything is locked, or things that are locked have been moved apart.
    """
    rest = rest_of(anatomy.ct)
    numbers = rest_numbers(anatomy, structures) if rest != "left out" else ()
    single = [_group(anatomy, [body], numbers if rest == "first" and body == bodies[0] else ()) for body in bodies]
    still = [_rest_alone(numbers, bodies)] if rest == "stays" and numbers else []
    locked = [group for group in single if group.members[0].locked]
    free = [group for group in single if not group.members[0].locked]
    if target == "bodies":
        if not free:
            raise SceneError("All bones are locked: unlock one, or let the C-arm or the patient move.")
        return [*free, *(_locked(group) for group in locked + still)]
    held = locked + still or [free.pop(0)]
    return [_joined(held), *free]


def _group(anatomy: Anatomy, members: list[BodyNode], others: Sequence[int]) -> Group:
    (body,) = members
    motion = body.pose(anatomy) if body.is_moved(anatomy) else None
    return Group(Body(body.name, [*body.numbers(anatomy), *others], motion=motion), (body,), bool(others))


def _rest_alone(numbers: Sequence[int], bodies: Sequence[BodyNode]) -> Group:
    name = REST
    while name in [body.name for body in bodies]:
        name += " (CT)"
    return Group(Body(name, list(numbers)), (), True)


def _locked(group: Group) -> Group:
    return replace(group, body=replace(group.body, locked=True))


def _joined(groups: list[Group]) -> Group:
    first = groups[0]
    for other in groups[1:]:
        if not np.allclose(first.motion.matrix, other.motion.matrix, rtol=0, atol=1e-6):
            raise SceneError(
                f"'{first.body.name}' and '{other.body.name}' both stay, but have been moved apart: unlock one, or let "
                "only the bones move."
            )
    labels = [number for group in groups for number in group.body.labels]
    members = tuple(member for group in groups for member in group.members)
    name = first.body.name if len(groups) == 1 else groups[-1].body.name
    return Group(replace(first.body, name=name, labels=labels), members, any(group.rest for group in groups))
