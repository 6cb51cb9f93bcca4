"""How source, volumes and objects lie to each other."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from DiffDRRCore.errors import DiffDRRWarning, PhysicsError
from DiffDRRCore.geometry import Camera, Pose
from DiffDRRCore.geometry.tensors import transform_points
from DiffDRRCore.imaging.volume import Volume
from DiffDRRCore.physics.decomposition import Composition
from DiffDRRCore.physics.simulation.objects import BeamObject
from DiffDRRCore.physics.solids.mesh import Mesh

_TISSUE = 0.5  # g/cm3: soft tissue and bone are above, air, clothes and lung below
_WIDEST_GAP = 1500.0  # mm, as `Scatter` takes it
_SHORTEST = 200.0  # mm from source to detector


def check_source(compositions: Sequence[Composition], camera: Camera, pose: Pose) -> None:
    """Raises PhysicsError where the source is in a voxel of the patient's tissue. Parallel beams have no source."""
    if camera.parallel:
        return
    point = pose.translation.detach().reshape(1, 3).double().cpu()
    for composition in compositions:
        to_voxels = torch.linalg.inv(composition.ijk_to_ras.detach().cpu())
        i, j, k = (int(x) for x in transform_points(to_voxels, point)[0].round())
        size = composition.densities[0].shape
        inside = 0 <= k < size[0] and 0 <= j < size[1] and 0 <= i < size[2]
        if inside and float(sum(density[k, j, i] for density in composition.densities)) > _TISSUE:
            place = ", ".join(f"{x:.0f}" for x in point[0].tolist())
            raise PhysicsError(
                f"The X-ray source at ({place}) mm is inside the patient: move it out (is the pose camera_to_world, "
                "in RAS mm?)."
            )


def check_distance(camera: Camera) -> None:
    """Warns of a detector so near to the source that it looks like a mistake of units."""
    distance = float(camera.source_to_detector.detach())
    if distance < _SHORTEST:
        warnings.warn(
            f"The detector is {distance:g} mm from the source: lengths are in mm, were these cm?",
            DiffDRRWarning,
            stacklevel=3,
        )


def magnification(volumes: Sequence[Volume], objects: Sequence[BeamObject], camera: Camera, pose: Pose) -> float:
    """That of the middle of the volumes, or of the objects where there are none; 1 at least."""
    if camera.parallel:
        return 1.0
    centers = [volume.center.detach().cpu() for volume in volumes] or [_center(one, pose) for one in objects]
    middle = torch.stack(centers).mean(dim=0)[None]
    depth = float(transform_points(pose.inverse().matrix.detach().reshape(4, 4).double().cpu(), middle)[0, 2])
    distance = float(camera.source_to_detector.detach())
    return distance / depth if 0 < depth < distance else 1.0


def air_gap(camera: Camera, pose: Pose, volume: Volume) -> float:
    """mm from where the ray through the middle of a volume leaves its box to the detector; 0 to 1500."""
    axes = volume.ijk_to_ras[:3, :3].detach().cpu().double()
    matrix = pose.matrix.detach().cpu().double().reshape(4, 4)
    turn = matrix[:3, :3]
    center = turn.T @ (volume.center.detach().cpu().double() - matrix[:3, 3])
    beam = turn[:, 2] if camera.parallel else turn @ (center / center.norm())
    reach = torch.linalg.solve(axes, beam).abs().clamp(min=1e-12)  # voxels along each axis per mm of the ray
    half = (torch.tensor(volume.shape[::-1]) / 2 / reach).min()
    gap = camera.source_to_detector.detach().cpu().double() - center[2] - half * (turn[:, 2] @ beam)
    return float(gap.clamp(0.0, _WIDEST_GAP))


def _center(one: BeamObject, pose: Pose) -> Tensor:
    if isinstance(one.placed, Mesh):
        return torch.stack(one.placed.bounds).mean(dim=0).cpu()
    center = torch.tensor([list(getattr(one.solid, "center", (0.0, 0.0, 0.0)))], dtype=torch.float64)
    return center[0] if one.pose is None else one.pose.detach().to(torch.float64).transform(center)[0]
