"""Keyframes: how C-arms and bones stand in single frames of a run, as a person has put them there.

They are kept on the nodes themselves, so that scenes save them: on a C-arm where it stands to the CT
(camera_to_volume), on a bone its motion from where the CT shows it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from DiffDRRCore import Pose
from DiffDRRSlicerLib.scene import nodes
from DiffDRRSlicerLib.scene.anatomy import Anatomy
from DiffDRRSlicerLib.scene.bodies import BodyNode
from DiffDRRSlicerLib.scene.body_groups import Group
from DiffDRRSlicerLib.scene.handles import find_patient_transform
from DiffDRRSlicerLib.scene.tracking_run import XRayRun

_KEY = "DiffDRR.Keyframes"


def keyframes(run: XRayRun) -> list[int]:
    """Numbers of the frames that have one, ascending."""
    return sorted(int(number) for number in _read(run.carms[0].node))


def set_keyframe(run: XRayRun, anatomy: Anatomy) -> int:
    """Remember where all stands in the frame that is shown; returns its number. Raises SceneError as `CArmNode.pose`
    and `BodyNode.motion`.
    """
    places = {carm.node: anatomy.pose_in_volume(carm.pose).matrix.tolist() for carm in run.carms}
    places |= {body.node: body.motion(anatomy).tolist() for body in BodyNode.of(anatomy)}
    for node, matrix in places.items():
        nodes.write_json(node, _KEY, {**_read(node), str(run.frame): matrix})
    return run.frame


def remove_keyframe(run: XRayRun, anatomy: Anatomy, number: int) -> None:
    """Forget a keyframe; none is fine."""
    for node in _holders(run, anatomy):
        left = {key: matrix for key, matrix in _read(node).items() if key != str(number)}
        nodes.write_json(node, _KEY, left or None)


def show_keyframe(run: XRayRun, anatomy: Anatomy, number: int, target: str = "carm") -> None:
    """Show the frame, and put all to where the keyframe has it.

    `target`: "carm", "patient" or "bodies", what moves as a whole.
    """
    run.show(number)
    there = {carm: _kept(carm.node, number) for carm in run.carms}
    first, patient = run.carms[0], find_patient_transform(anatomy)
    room = Pose.identity()
    if target == "patient" and patient is not None and there[first] is not None:
        change = (first.pose @ there[first].inverse()).matrix.numpy() @ np.linalg.inv(anatomy.to_world)
        nodes.set_transform_to_world(patient, change @ nodes.transform_to_world(patient))
    elif target == "bodies" and there[first] is not None:
        room = anatomy.pose_in_volume(first.pose) @ there[first].inverse()
    else:
        for carm, pose in there.items():
            if pose is not None:
                carm.pose = anatomy.pose_in_world(pose)
    for body in BodyNode.of(anatomy):
        motion = _kept(body.node, number)
        if motion is not None and not body.locked:
            body.move(anatomy, room @ motion)


def engine_keyframes(
    run: XRayRun, groups: Sequence[Group], starts: Mapping[int, Pose], numbers: Sequence[int], whole: str
) -> dict[int, dict[str, Pose]]:
    """{frame: {body: motion}} for `Tracking`, with the first C-arm at `starts` in each frame (camera_to_volume).

    `whole`: name of the CT where there are no groups.
    """
    found = {}
    for number in numbers:
        there = _kept(run.carms[0].node, number)
        room = Pose.identity() if there is None else starts[number] @ there.inverse()
        motions = {group.body.name: room @ _motion(group, number) for group in groups}
        found[number] = motions or {whole: room}
    return found


def _motion(group: Group, number: int) -> Pose:
    kept = _kept(group.members[0].node, number) if group.members else None
    return group.motion if kept is None else kept


def _kept(node, number: int) -> Pose | None:
    matrix = _read(node).get(str(number))
    return None if matrix is None else Pose(np.array(matrix, dtype=float))


def _holders(run: XRayRun, anatomy: Anatomy) -> list:
    return [carm.node for carm in run.carms] + [body.node for body in BodyNode.of(anatomy, any_labels=True)]


def _read(node) -> dict[str, list]:
    return nodes.read_json(node, _KEY, {})
