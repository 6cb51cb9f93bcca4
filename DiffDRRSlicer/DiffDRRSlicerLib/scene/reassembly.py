"""The anatomy as its bones stand: which structures are where, and what a camera sees of them together."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from DiffDRRCore import Camera, Pose
from DiffDRRSlicerLib.scene.anatomy import Anatomy
from DiffDRRSlicerLib.scene.bodies import BodyNode, rest_of


class Piece(NamedTuple):
    """Structures that stand as the CT shows them to each other.

    numbers: of the labelmap, None for everything.  motion: [4, 4] to where they are, in the coordinates of
    `Anatomy.volume`; None is where the CT shows them.
    """

    numbers: tuple[int, ...] | None
    motion: Pose | None


def rest_numbers(anatomy: Anatomy, structures=None) -> tuple[int, ...]:
    """Of all that is in no bone, 0 (what has no label) too; `structures`: names or numbers, of which alone they are."""
    volume = anatomy.volume
    taken = {number for body in BodyNode.of(anatomy) for number in body.numbers(anatomy)}
    chosen = [volume.label_id(one) if isinstance(one, str) else int(one) for one in structures or ()]
    return tuple(sorted((set(chosen) or anatomy.present_labels) - taken))


def pieces(anatomy: Anatomy, structures=None) -> list[Piece]:
    """What is to be rendered, and where it is.

    Bones are always there; of what is in no bone, only `structures` (names or numbers; None is all). Raises SceneError
    for a bone of structures that are not there any more, or under a transform that is not rigid.
    """
    bodies = BodyNode.of(anatomy)
    rest = rest_of(anatomy.ct)
    if not bodies or (rest != "left out" and not structures and not any(body.is_moved(anatomy) for body in bodies)):
        return [Piece(tuple(structures) if structures else None, None)]
    places: dict[bytes | None, tuple[list[int], Pose | None]] = {}
    for body in bodies:
        pose = body.pose(anatomy) if body.is_moved(anatomy) else None
        places.setdefault(_key(pose), ([], pose))[0].extend(body.numbers(anatomy))
    if rest != "left out":
        pose = bodies[0].pose(anatomy) if rest == "first" and bodies[0].is_moved(anatomy) else None
        places.setdefault(_key(pose), ([], pose))[0].extend(rest_numbers(anatomy, structures))
    return [Piece(tuple(sorted(numbers)), pose) for numbers, pose in places.values() if numbers]


def rendered(anatomy: Anatomy, camera: Camera, pose: Pose, structures=None, finest: float = 0.0) -> Tensor:
    """[H, W] line integrals of all pieces together: attenuations add up. `pose` in the coordinates of the volume."""
    total = torch.zeros(())
    for piece in pieces(anatomy, structures):
        seen = pose if piece.motion is None else piece.motion.inverse() @ pose
        total = total + anatomy.renderer(piece.numbers, finest=finest)(camera, seen)[0, 0]
    return total


def state(anatomy: Anatomy) -> tuple:
    """Equal for two calls only where `pieces` would be the same for the same structures and volume; quick."""
    bodies = BodyNode.of(anatomy)
    return rest_of(anatomy.ct), *((tuple(body.structures), body.motion(anatomy).tobytes()) for body in bodies)


def _key(pose: Pose | None) -> bytes | None:
    return None if pose is None else pose.matrix.numpy().tobytes()
