"""A fluoroscopy simulated from the CT in the scene, whose true pose is known."""

from __future__ import annotations

import math

from DiffDRRCore import Camera, Pose
from DiffDRRCore.datasets.simulated import simulated_xray
from DiffDRRSlicerLib.scene import nodes
from DiffDRRSlicerLib.scene.accuracy import CT_TO_WORLD
from DiffDRRSlicerLib.scene.anatomy import Anatomy
from DiffDRRSlicerLib.scene.carm import CArmNode
from DiffDRRSlicerLib.scene.errors import SceneError
from DiffDRRSlicerLib.scene.xrays import add_xray, all_or_nothing

REFERENCE = "DiffDRR.Reference"  # the attribute by which a transform that holds a true pose is known


def simulate_xray(
    scene,
    anatomy: Anatomy,
    camera: Camera,
    pose: Pose,
    photons: float = 10_000,
    seed: int = 0,
    source_to_isocenter: float | None = None,
    name: str = "Simulated X-ray",
) -> CArmNode:
    """A C-arm at `pose` (camera_to_world) with a noisy X-ray of the anatomy as it lies in the world now.

    The true pose is kept in a transform node of role "reference", in world coordinates and not below the C-arm, with
    the place of the CT at that time: moving either away shows how far a registration brings them back.

    Args:
        photons: mean number that reach a pixel with nothing in the way.
        seed: of the Poisson noise.

    Raises SceneError for photons that are not positive; otherwise as `Anatomy`. The scene is then as it was.
    """
    if not 0 < photons < math.inf:
        raise SceneError(f"The number of photons must be positive, got {photons:g}.")
    xray = simulated_xray(anatomy.volume, camera, anatomy.pose_in_volume(pose), photons=photons, seed=seed)
    with all_or_nothing(scene):
        carm = add_xray(scene, xray.image, camera, pose, xray.meta, name, source_to_isocenter)
        carm.refer("reference", add_reference(carm, carm.pose, anatomy.ct, f"{carm.name} true pose"))
    return carm


def add_reference(carm: CArmNode, pose: Pose, ct, name: str):
    """A transform node that keeps a true camera_to_world, in world coordinates, with the place of the CT just now."""
    reference = nodes.add_node(carm.scene, "vtkMRMLLinearTransformNode", name)
    reference.SetAttribute(REFERENCE, "1")
    nodes.set_transform_to_world(reference, pose.matrix.numpy())
    nodes.write_json(reference, CT_TO_WORLD, nodes.parent_to_world(ct).tolist())
    return reference
