"""Where else a registration could have ended: places of the nodes that it moved, to go to and to come back from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from DiffDRRCore import Pose, RegistrationResult
from DiffDRRSlicerLib.scene import nodes
from DiffDRRSlicerLib.scene.body_groups import Group
from DiffDRRSlicerLib.scene.errors import SceneError
from DiffDRRSlicerLib.scene.placement import Above, Placement, above_of, same_above

_MOST = 8


@dataclass(frozen=True)
class Minimum:
    """A place at which a candidate ended.

    Attributes:
        similarity: of the first level's small images; None for the answer itself, which was found at larger ones.
        turn, shift: degrees, and mm of the body's middle, from the answer, as the C-arms see it.
        places: [4, 4] to parent of each transform node that was moved, by its ID.
        around: what these and the CT hang below, of `Placement.around`.

    Cameras are no part of it: one that the registration found stays on its C-arm.
    """

    similarity: float | None
    turn: float
    shift: float
    places: dict[str, nodes.Matrix]
    around: dict[str, Above] = field(default_factory=dict)

    def apply(self, scene) -> None:
        """Move the nodes there.

        Raises SceneError, with nothing moved, where one of them or the CT was deleted, or what they hang below is
        another or stands elsewhere.
        """
        found = {scene.GetNodeByID(identifier): matrix for identifier, matrix in self.places.items()}
        if None in found:
            raise SceneError("What that answer would move was deleted; register again.")
        for identifier, above in self.around.items():
            node = scene.GetNodeByID(identifier)
            if node is None:
                raise SceneError("The CT of that answer was deleted; register again.")
            if not same_above(above_of(node, self.places), above):
                raise SceneError(
                    f"What '{node.GetName()}' hangs below was moved or changed since, so that answer is not true any "
                    "more; register again."
                )
        for node, matrix in found.items():
            nodes.set_transform_to_parent(node, matrix)


def minima_of(result: RegistrationResult, groups: Sequence[Group], placement: Placement) -> tuple[Minimum, ...]:
    """The answer, and the alternatives to it, best first; nothing where there is none. Nodes are left at the answer.

    An alternative G is a motion of the C-arms as all free bodies see them, or, where these began apart, as the first
    of them does: a body at M before is then at M G^-1, the C-arms where they began.
    """
    if not result.alternatives:
        return ()
    starts = [group.motion for group in groups] or [Pose.identity()]
    free = [number for number, group in enumerate(groups) if not group.body.locked] or [0]
    together = not any(groups[number].body.motion is not None for number in free) if groups else True
    moving, lead = set(free if together else free[:1]), result.bodies[free[0]]
    around = placement.around()
    found = [Minimum(None, 0.0, 0.0, placement.places(), around)]
    for other in result.alternatives[:_MOST]:
        back = Pose(other["motion"]).inverse()
        motions = [start @ back if number in moving else start for number, start in enumerate(starts)]
        placement.move(motions, placement.begun)
        turn, shift = _apart(motions[free[0]], lead.motion, lead.about)
        found.append(Minimum(float(other["similarity"]), turn, shift, placement.places(), around))
    placement.move([body.motion for body in result.bodies], result.carms)
    return tuple(found)


def _apart(one: Pose, other: Pose, about) -> tuple[float, float]:
    change = one @ other.inverse()
    cosine = (float(np.trace(change.rotation.numpy())) - 1) / 2
    moved = one.transform(about[None])[0] - other.transform(about[None])[0]
    return math.degrees(math.acos(min(1.0, max(-1.0, cosine)))), float(moved.norm())
