"""Pixels that show more than the CT holds: where the patient goes on beyond the ends of the CT."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate, max_pool2d

from DiffDRRCore.geometry import Camera, Pose, pixel_rays
from DiffDRRCore.imaging.volume import Volume

_SIDE = 128  # pixels of the image in which it is looked for, at most
_CUT = 0.1  # of the densest slice, that a last slice has where the patient goes on beyond it
_SLICES = 16  # that are looked at for the densest one
_LEAST = 0.1  # of the pixels in which the CT shows, that must be left


def within_ends(camera: Camera, pose: Pose, volume: Volume, reach: float = 0.0) -> Tensor:
    """bool [H, W] on the CPU: False where a ray passes beyond an end of the CT that the patient goes on beyond.

    Ends are those of the last axis of the voxel grid, along which scanners move the patient; the patient goes on where
    the last slice is not air. There, what lies in the prism of the CT's sides is not known. All True where the ends are
    air, or where too little would be left.

    Args:
        reach: mm at the detector by which the pose may be off.
    """
    small = max(1, max(camera.height, camera.width) // _SIDE)
    size = (-(-camera.height // small), -(-camera.width // small))
    shown, hit = (one.reshape(1, 1, *size) for one in _inside(camera.detached().resized(*size), pose.detach(), volume))
    pixels = round(reach / (float(camera.pixel_spacing.detach().min()) * small))
    shown = 1 - max_pool2d(1 - shown.float(), 2 * pixels + 1, stride=1, padding=pixels)
    if float((shown * hit).sum()) < _LEAST * float(hit.sum()):
        shown = torch.ones_like(shown)
    return interpolate(shown, (camera.height, camera.width), mode="nearest")[0, 0] > 0.5


def _inside(camera: Camera, pose: Pose, volume: Volume) -> tuple[Tensor, Tensor]:
    """[N] of pixels: whether all that a ray passes is known, and whether it passes the CT."""
    low, high, ends = _prism(volume)
    source, target = (one.double().cpu() for one in pixel_rays(camera, pose))
    inverse = torch.linalg.inv(volume.ijk_to_ras.detach().double().cpu())
    first, last = ((one @ inverse[:3, :3].T + inverse[:3, 3])[0] for one in (source, target))
    way = last - first
    way = torch.where(way.abs() < 1e-9, 1e-9, way)
    sides = torch.stack([(low - first) / way, (high - first) / way])[..., :2]
    entry, leave = sides.amin(0).amax(-1).clamp(min=0), sides.amax(0).amin(-1)
    k = first[:, 2, None] + torch.stack([entry, leave], dim=-1) * way[:, 2, None]
    inside = (k.amin(-1) >= ends[0]) & (k.amax(-1) <= ends[1])
    hit = (entry < leave) & (k.amax(-1) > -0.5) & (k.amin(-1) < volume.shape[0] - 0.5)
    return inside | (entry >= leave), hit


def _prism(volume: Volume) -> tuple[Tensor, Tensor, tuple[float, float]]:
    """The CT's sides (i, j, k) in voxels, and between which k the patient is known: infinite where an end is air."""
    count = volume.shape[0]
    rows = [0, count - 1, *range(0, count, -(-count // _SLICES))]
    known = torch.stack([volume.attenuation_of(slice(row, row + 1)).detach().sum() for row in rows]).double().cpu()
    cut = known[:2] > _CUT * known.max()
    ends = (-0.5 if bool(cut[0]) else -torch.inf, count - 0.5 if bool(cut[1]) else torch.inf)
    high = torch.tensor(volume.shape[::-1], dtype=torch.float64) - 0.5
    return torch.full((3,), -0.5, dtype=torch.float64), high, ends
