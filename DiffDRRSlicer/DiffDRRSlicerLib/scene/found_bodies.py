"""How sure the last registration was of each bone, kept with it as long as it stays where it was found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from DiffDRRCore import Pose, RegistrationResult
from DiffDRRCore.registration import FoundBody
from DiffDRRSlicerLib.scene import nodes
from DiffDRRSlicerLib.scene.anatomy import Anatomy
from DiffDRRSlicerLib.scene.bodies import BodyNode
from DiffDRRSlicerLib.scene.body_groups import Group
from DiffDRRSlicerLib.scene.carm import CArmNode

FOUND = "DiffDRR.Found"  # attribute of a bone, and of a CT as one: covariance and pivot of the last registration
_SEEN = "DiffDRR.seenBy"  # role of the C-arms that saw it
_STILL = 1e-6  # mm and direction cosines


def keep_covariances(
    result: RegistrationResult, groups: Sequence[Group], anatomy: Anatomy, carms: Sequence[CArmNode] = ()
) -> None:
    """Keep with each bone that was not held, or the CT as one, how sure the registration was, for the map of errors.

    `carms`: those that saw it, from where they stand now; when one of them sees it otherwise it is not true any more.
    """
    for bone in BodyNode.of(anatomy):
        _keep(bone.node, None)
    _keep(anatomy.ct, None if groups else _kept(result.bodies[0]), carms)
    for found, group in zip(result.bodies, groups, strict=False):
        for bone in () if group.body.locked else group.members:
            _keep(bone.node, _kept(found), carms)


def _keep(node, kept: dict[str, Any] | None, carms: Sequence[CArmNode] = ()) -> None:
    node.RemoveNodeReferenceIDs(_SEEN)
    if kept is not None:
        kept["seen_from"] = [_seen_from(node, carm).tolist() for carm in carms]
        for carm in carms:
            node.AddNodeReferenceID(_SEEN, carm.node.GetID())
    nodes.write_json(node, FOUND, kept)


def _kept(found: FoundBody) -> dict[str, Any]:
    return {"covariance_rad_mm": found.covariance.tolist(), "about_mm": found.about.tolist()}


def _seen_from(node, carm: CArmNode) -> nodes.Matrix:
    """[4, 4] from the camera to the coordinates of a bone, or to those that a CT is stored in."""
    linear = node.IsA("vtkMRMLTransformNode")
    above = nodes.transform_to_world(node) if linear else nodes.parent_to_world(node)
    return np.linalg.inv(above) @ carm.to_world


def found_of(node) -> FoundBody | None:
    """What `keep_covariances` kept with a bone's transform or a CT; its motion is not known here any more."""
    kept = nodes.read_json(node, FOUND)
    if kept is None:
        return None
    numbers = (torch.tensor(kept[name], dtype=torch.float64) for name in ("covariance_rad_mm", "about_mm"))
    return FoundBody(node.GetName(), Pose.identity(), *numbers)


def is_found(node) -> bool:
    """Whether a registration found a bone, or the CT as one, and the C-arms still stand to it as they did then."""
    kept = nodes.read_json(node, FOUND)
    if kept is None or len(kept.get("seen_from", ())) != node.GetNumberOfNodeReferences(_SEEN):
        return False
    for number, before in enumerate(kept.get("seen_from", ())):
        carm = node.GetNthNodeReference(_SEEN, number)
        if carm is None or not np.allclose(_seen_from(node, CArmNode(carm)), before, rtol=0, atol=_STILL):
            return False
    return True
