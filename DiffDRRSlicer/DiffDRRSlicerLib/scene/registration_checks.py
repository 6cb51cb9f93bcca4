"""What of a scene cannot be registered, by the names that its nodes have, before the work begins."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch

from DiffDRRCore import XRay
from DiffDRRCore.geometry import project
from DiffDRRSlicerLib.scene.anatomy import Anatomy
from DiffDRRSlicerLib.scene.body_groups import Group
from DiffDRRSlicerLib.scene.body_results import surface_points
from DiffDRRSlicerLib.scene.carm import CArmNode
from DiffDRRSlicerLib.scene.errors import SceneError
from DiffDRRSlicerLib.scene.view_settings import view_settings

_SAME = 1e-6  # mm and direction cosines
_WHERE = "(Bones and X-rays)"


def check_views(carms: Sequence[CArmNode], xrays: Sequence[XRay], groups: Sequence[Group] = ()) -> None:
    """Raise SceneError for an X-ray that is there twice, for C-arms that contradict each other, and where all are free.

    `xrays`: of the C-arms, prepared, posed in the CT's coordinates.
    """
    settings = [view_settings(carm) for carm in carms]
    if len(carms) > 1 and all(one.free for one in settings) and not any(group.body.locked for group in groups):
        raise SceneError(f"All C-arms are free, and what they look at too: uncheck Free of one of them {_WHERE}.")
    views = zip(carms, xrays, settings, strict=True)
    for (one, image, own), (other, second, its) in itertools.combinations(views, 2):
        same_size = image.image.shape == second.image.shape
        if one == other or (same_size and torch.equal(image.image, second.image)):
            raise SceneError(f"'{one.name}' and '{other.name}' are the same X-ray: uncheck one of them {_WHERE}.")
        if not (own.free or its.free) and np.allclose(image.pose.matrix, second.pose.matrix, rtol=0, atol=_SAME):
            raise SceneError(
                f"'{one.name}' and '{other.name}' are different X-rays, but their C-arms stand at the same place: move "
                f"one to where it stood, or check Free of it {_WHERE}."
            )


def check_bodies(anatomy: Anatomy, groups: Sequence[Group], xrays: Sequence[XRay]) -> None:
    """Raise SceneError for a bone that none of the X-rays shows where it is now; one that is held may lie outside."""
    for group in groups:
        if group.rest or group.body.locked:
            continue
        if not any(_shows(xray, anatomy, group) for xray in xrays):
            name = group.body.name
            raise SceneError(
                f"'{name}' lies outside of {'the X-ray' if len(xrays) == 1 else 'all X-rays'} where it is now: move it "
                "or the C-arm so that it is seen, or remove the bone."
            )


def _shows(xray: XRay, anatomy: Anatomy, group: Group) -> bool:
    points = torch.from_numpy(np.concatenate([surface_points(bone, anatomy) for bone in group.members]))
    uv = project(xray.camera, xray.pose, group.motion.transform(points))[0]  # NaN behind the source
    size = torch.tensor([xray.camera.width, xray.camera.height]).to(uv)
    return bool(((uv > -0.5) & (uv < size - 0.5)).all(dim=-1).any())
