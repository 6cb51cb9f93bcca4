"""How source, volumes and objects lie to each other."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from DiffDRRCore.errors import DiffDRRWarning, PhysicsError
from DiffDRRCore.geometry import Camera, Pose, pixel_rays
from DiffDRRCore.geometry.tensors import transform_points
from DiffDRRCore.imaging.volume import Volume
from DiffDRRCore.physics.decomposition import Composition
from DiffDRRCore.physics.simulation.objects import BeamObject
from DiffDRRCore.physics.solids.mesh import Mesh

_TISSUE = 0.5  # g/cm3: soft tissue and bone are above, air, clothes and lung below
_POINTS = 9  # along each side of the detector
_MOST_INSIDE = 0.25  # of the detector, before it is an error
_WIDEST_GAP = 1500.0  # mm, as `Scatter` takes it
_SHORTEST = 200.0  # mm from source to detector


def check_placement(compositions: Sequence[Composition], camera: Camera, pose: Pose) -> None:
    """Raises PhysicsError where the source or a quarter of the detector is inside the patient; warns of less than that.

    Of parallel beams, which have no source, the plane where the rays start counts as the detector does. See `inside`.
    """
    if not compositions or pose.matrix.numel() != 16 or camera.K.numel() != 9:
        return  # batches are refused elsewhere
    u, v = (torch.linspace(-0.5, n - 0.5, _POINTS, dtype=torch.float64) for n in (camera.width, camera.height))
    pixels = torch.cartesian_prod(u, v).to(camera.K.device)
    ends = pixel_rays(camera.detached(), pose.detach(), pixels)
    start, end = (torch.stack([inside(one, points[0].cpu()) for one in compositions]).any(dim=0) for points in ends)
    if not camera.parallel and bool(start.all()):
        place = ", ".join(f"{x:.0f}" for x in pose.translation.detach().flatten().tolist())
        raise PhysicsError(
            f"The X-ray source at ({place}) mm is inside the patient: move it out (is the pose camera_to_world, in RAS "
            "mm?)."
        )
    _check_share(start, "plane where the rays start", "in front of", "let them start farther away")
    _check_share(end, "detector", "behind", "move it away from the source, or the patient towards the source")


def _check_share(within: Tensor, what: str, beyond: str, advice: str) -> None:
    share = float(within.double().mean())
    if share >= _MOST_INSIDE:
        raise PhysicsError(
            f"The {what} is inside the patient, and what lies {beyond} it would be missing in the image: {advice} (is "
            "the pose camera_to_world, in RAS mm?)."
        )
    if share > 0:
        text = f"A part of the {what} is inside the patient: what lies {beyond} it is not in the image."
        warnings.warn(text, DiffDRRWarning, stacklevel=4)


def inside(composition: Composition, points: Tensor) -> Tensor:
    """Whether points [N, 3] (RAS mm) are in the patient: boolean [N], on the CPU.

    They are in a voxel of tissue, or have tissue on both sides along two of the grid's three axes: so lungs, mouth and
    gas in the bowel are inside, what is between the legs or under an arm is not.
    """
    to_voxels = torch.linalg.inv(composition.ijk_to_ras.detach().cpu().double())
    voxels = transform_points(to_voxels, points.double()).round().long().flip(-1)  # k, j, i
    size = torch.tensor(composition.densities[0].shape)
    in_grid = ((voxels >= 0) & (voxels < size)).all(dim=-1)
    if not bool(in_grid.any()):
        return in_grid
    k, j, i = voxels[in_grid].to(composition.densities[0].device).T
    along = (
        _sides(_tissue(composition, lambda density: density[k, j]), i),
        _sides(_tissue(composition, lambda density: density.transpose(1, 2)[k, i]), j),
        _sides(_tissue(composition, lambda density: density.permute(1, 2, 0)[j, i]), k),
    )
    tissue, sides = along[0][0], sum(both.int() for _, both in along)
    return in_grid.masked_scatter(in_grid, (tissue | (sides >= 2)).cpu())


def _tissue(composition: Composition, lines: Callable[[Tensor], Tensor]) -> Tensor:
    """Which voxels of the lines [N, n] of the grid are tissue."""
    return sum(lines(density.detach()) for density in composition.densities) > _TISSUE


def _sides(line: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
    """Of lines [N, n] of voxels: whether the ones at the places [N] are set, and whether some on both sides of them."""
    place = torch.arange(line.shape[1], device=line.device)
    before, after = place < at[:, None], place > at[:, None]
    return line.gather(1, at[:, None])[:, 0], (line & before).any(dim=1) & (line & after).any(dim=1)


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
