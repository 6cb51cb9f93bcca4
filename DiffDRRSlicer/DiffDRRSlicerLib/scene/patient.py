"""The patient's place: the transform above the CT, as turns about the anatomy's centre and shifts."""

from __future__ import annotations

import numpy as np
import torch

from DiffDRRCore import Pose
from DiffDRRSlicerLib.scene import nodes
from DiffDRRSlicerLib.scene.anatomy import Anatomy
from DiffDRRSlicerLib.scene.handles import find_patient_transform, patient_transform

_ORDER = "ZYX"


def patient_placement(anatomy: Anatomy) -> tuple[list[float], list[float]]:
    """How the patient transform places the anatomy: turns in degrees about the world's R, A and S axes through the
    anatomy's centre (first R, then A, then S), and the shift of that centre in mm. Zeros where there is no transform.
    """
    transform = find_patient_transform(anatomy)
    if transform is None:
        return [0.0] * 3, [0.0] * 3
    matrix = _motion(transform)
    angles = Pose(torch.from_numpy(matrix)).to_parameters("euler_angles", convention=_ORDER, degrees=True)[0]
    now = anatomy.center
    before = nodes.transformed(np.linalg.inv(matrix), now)
    return angles.tolist()[::-1], (now - before).tolist()


def place_patient(anatomy: Anatomy, rotation, translation, also=()) -> None:
    """Place the anatomy as `patient_placement` says it; `also`: nodes that belong to the patient (`patient_transform`).

    Raises SceneError where the CT cannot be moved.
    """
    transform = patient_transform(anatomy, also)
    before = nodes.transformed(np.linalg.inv(_motion(transform)), anatomy.center)
    angles = torch.tensor([float(angle) for angle in reversed(list(rotation))], dtype=torch.float64)
    turn = Pose.from_parameters(angles, torch.zeros(3), "euler_angles", convention=_ORDER, degrees=True)
    matrix = np.eye(4)
    matrix[:3, :3] = turn.rotation.numpy()
    matrix[:3, 3] = before + np.asarray(translation, dtype=float) - matrix[:3, :3] @ before
    nodes.set_transform_to_world(transform, matrix @ nodes.parent_to_world(transform))


def reset_patient(anatomy: Anatomy) -> None:
    """Put the anatomy back to where it was without the patient transform."""
    transform = find_patient_transform(anatomy)
    if transform is not None:
        nodes.set_transform_to_parent(transform, np.eye(4))


def _motion(transform) -> nodes.Matrix:
    """[4, 4] in world coordinates: from where things would be without the transform to where they are."""
    return nodes.transform_to_world(transform) @ np.linalg.inv(nodes.parent_to_world(transform))
