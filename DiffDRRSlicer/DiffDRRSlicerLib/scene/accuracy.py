"""How good a registration is: standard deviations along the camera's axes, and errors where the truth is known."""

from __future__ import annotations

import numpy as np
import torch

from DiffDRRCore import Pose, RegistrationResult
from DiffDRRCore.evaluation.measures import pose_errors
from DiffDRRSlicerLib.scene import nodes
from DiffDRRSlicerLib.scene.anatomy import Anatomy
from DiffDRRSlicerLib.scene.carm import CArmNode

PARAMETERS = ("tilt about image x", "tilt about image y", "turn in the image", "right", "down", "depth")
UNITS = ("deg", "deg", "deg", "mm", "mm", "mm")
REFERENCE = "DiffDRR.Reference"  # the attribute by which a transform that holds a true pose is known
CT_TO_WORLD = "DiffDRR.CTToWorld"  # attribute of a reference transform: where the CT was when it was true

_BONE_HU, _POINTS, _VOXELS_LOOKED_AT = 150.0, 200, 1_000_000


def camera_deviations(result: RegistrationResult) -> list[float]:
    """Standard deviations of `PARAMETERS`, of the first view, about the pivot: degrees, then mm.

    They assume independent noise and a true geometry: they show which directions are weak, not the whole error.
    """
    return deviations_along(result.poses[0], result.covariance)


def deviations_along(pose: Pose, covariance: torch.Tensor) -> list[float]:
    """Standard deviations of `PARAMETERS`, degrees and mm, of a covariance [6, 6] of turns (rad) and shifts (mm)."""
    axes = torch.block_diag(pose.rotation, pose.rotation)
    deviations = (axes.T @ covariance.to(axes) @ axes).diagonal().clamp(min=0).sqrt()
    return torch.cat([torch.rad2deg(deviations[:3]), deviations[3:]]).tolist()


def bone_points(anatomy: Anatomy) -> nodes.Matrix:
    """[N, 3] points in bone (above 150 HU) on a coarse grid, in the coordinates of `anatomy.volume`; N <= 200.

    Where there is no bone, the middle of the CT.
    """
    volume = anatomy.volume
    step = max(1, round((volume.source.numel() / _VOXELS_LOOKED_AT) ** (1 / 3)))
    kji = torch.nonzero(volume.source[::step, ::step, ::step] > _BONE_HU) * step
    if len(kji) == 0:
        return volume.center[None].numpy()
    order = torch.randperm(len(kji), generator=torch.Generator().manual_seed(0))[:_POINTS]
    return nodes.transformed(volume.ijk_to_ras.numpy(), kji[order].flip(-1).double().numpy())


def add_reference(carm: CArmNode, pose: Pose, ct, name: str):
    """A transform node that keeps a true camera_to_world, in world coordinates, with the place of the CT just now."""
    reference = nodes.add_node(carm.scene, "vtkMRMLLinearTransformNode", name)
    reference.SetAttribute(REFERENCE, "1")
    nodes.set_transform_to_world(reference, pose.matrix.numpy())
    nodes.write_json(reference, CT_TO_WORLD, nodes.parent_to_world(ct).tolist())
    return reference


def reference_errors(carm: CArmNode, anatomy: Anatomy, reference=None) -> dict[str, float] | None:
    """Errors of the C-arm's present pose against a reference transform, None where there is none.

    The reference is a transform node, camera_to_world; without one it is the C-arm's own, of role "reference". Pose and
    reference are taken with respect to the CT: the reference holds for the CT where its attribute "DiffDRR.CTToWorld"
    ([4, 4], JSON) says it was, else where the CT is without the patient transform. Keys as
    `DiffDRRCore.evaluation.measures.pose_errors`: mtre_mm, mtre_in_plane_mm, ...
    """
    reference = carm.referred("reference") if reference is None else reference
    if reference is None or reference.GetScene() is None:
        return None
    truth = np.linalg.inv(_reference_ct(reference, anatomy)) @ nodes.transform_to_world(reference)
    found = np.linalg.inv(nodes.parent_to_world(anatomy.ct)) @ carm.pose.matrix.numpy()
    if not nodes.is_rigid(truth) or not nodes.is_rigid(found):
        return None
    to_ct = np.linalg.inv(nodes.parent_to_world(anatomy.ct)) @ anatomy.to_world
    targets = nodes.transformed(to_ct, bone_points(anatomy))
    errors = pose_errors(Pose(found), Pose(truth), carm.camera, targets)
    return {name: float(value) for name, value in errors.items()}


def _reference_ct(reference, anatomy: Anatomy) -> nodes.Matrix:
    """[4, 4] from below the transforms of the CT to the world, when the reference was true."""
    from DiffDRRSlicerLib.scene.handles import find_patient_transform

    kept = nodes.read_json(reference, CT_TO_WORLD)
    if kept is not None:
        return np.array(kept, dtype=float)
    now, patient = nodes.parent_to_world(anatomy.ct), find_patient_transform(anatomy)
    return now if patient is None else np.linalg.inv(nodes.transform_to_world(patient)) @ now
