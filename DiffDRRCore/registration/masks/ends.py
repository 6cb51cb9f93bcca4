"""Pixels that show more than the CT holds: where the patient goes on beyond the ends of the CT."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn.functional import interpolate, max_pool2d

from DiffDRRCore.geometry import Camera, Pose, pixel_rays
from DiffDRRCore.imaging.volume import Volume
from DiffDRRCore.registration.problem.models import state_of

_SIDE = 128  # pixels of the image in which it is looked for, at most
_CUT = 0.1  # of the densest slice, that a last slice has where the patient goes on beyond it
_SLICES = 16  # that are looked at for the densest one
_MATTER = 0.25  # of the mean attenuation of a last slice: what is less dense there is air
_POINTS = 32  # along a ray, at which it is looked whether the patient is there
_LEAST = 0.1  # of the pixels in which the CT shows, that must be left


def within_ends(camera: Camera, pose: Pose, volume: Volume, reach: float = 0.0, given: Tensor | None = None) -> Tensor:
    """bool [H, W] on the CPU: False where a ray passes beyond an end of the CT that the patient goes on beyond.

    Ends are those of the last axis of the voxel grid, along which scanners move the patient; the patient goes on where
    the last slice is not air: as that slice repeated without end. All True where the ends are air, or where too little
    would be left.

    Args:
        reach: mm at the detector by which the pose may be off.
        given: weight [H, W] that pixels have anyway; of those that it leaves, enough must be left.
    """
    small = max(1, max(camera.height, camera.width) // _SIDE)
    size = (-(-camera.height // small), -(-camera.width // small))
    shown, hit = (one.reshape(1, 1, *size) for one in _inside(camera.detached().resized(*size), pose.detach(), volume))
    pixels = round(reach / (float(camera.pixel_spacing.detach().min()) * small))
    shown = 1 - max_pool2d(1 - shown.float(), 2 * pixels + 1, stride=1, padding=pixels)
    shown, hit = (_enlarged(one, camera) for one in (shown, hit.float()))
    if given is not None:
        hit = hit & (given.detach().cpu() > 0)
    if float((shown & hit).sum()) < _LEAST * float(hit.sum()):
        return torch.ones_like(shown)
    return shown


def _enlarged(image: Tensor, camera: Camera) -> Tensor:
    return interpolate(image, (camera.height, camera.width), mode="nearest")[0, 0] > 0.5


def _inside(camera: Camera, pose: Pose, volume: Volume) -> tuple[Tensor, Tensor]:
    """[N] of pixels: whether all that a ray passes is known, and whether it passes the CT."""
    source, target = (one.double().cpu() for one in pixel_rays(camera, pose))
    inverse = torch.linalg.inv(volume.ijk_to_ras.detach().double().cpu())
    first, last = ((one @ inverse[:3, :3].T + inverse[:3, 3])[0] for one in (source, target))
    way = last - first
    way = torch.where(way.abs() < 1e-9, 1e-9, way)
    high = torch.tensor(volume.shape[::-1], dtype=torch.float64) - 0.5
    planes = torch.stack([(-0.5 - first) / way, (high - first) / way])
    enter, leave = planes.amin(0), planes.amax(0)
    entry, exit = enter[:, :2].amax(-1).clamp(min=0), leave[:, :2].amin(-1).clamp(max=1)
    hit = torch.maximum(entry, enter[:, 2]) < torch.minimum(exit, leave[:, 2])
    known = torch.ones_like(hit)
    for matter, bound, up in _cut_ends(volume):
        known &= ~_beyond(first, way, entry, exit, matter, bound, up)
    return known, hit


def _beyond(first: Tensor, way: Tensor, entry: Tensor, exit: Tensor, matter: Tensor, bound: float, up: float) -> Tensor:
    """[N]: whether a ray (voxels `first + t way`, t from `entry` to `exit`) meets the patient beyond an end."""
    crossing = (bound - first[..., 2]) / way[:, 2]
    rising = up * way[:, 2] > 0
    start = torch.where(rising, torch.maximum(entry, crossing), entry)
    stop = torch.where(rising, exit, torch.minimum(exit, crossing))
    met = start < stop
    first, way, start, stop = first.expand_as(way)[met], way[met], start[met], stop[met]
    t = start[:, None] + (stop - start)[:, None] * (torch.arange(_POINTS, dtype=torch.float64) + 0.5) / _POINTS
    i, j = (
        (first[:, None, axis] + t * way[:, None, axis]).round().long().clamp(0, count - 1)
        for axis, count in ((0, matter.shape[1]), (1, matter.shape[0]))
    )
    met[met.clone()] = matter[j, i].any(-1)
    return met


_End = tuple[Tensor, float, float]
_KEPT: WeakKeyDictionary[Volume, tuple[tuple, list[_End]]] = WeakKeyDictionary()  # of volumes that have not changed


def _cut_ends(volume: Volume) -> list[_End]:
    """Of each end that is not air: bool [j, i] where the patient is, its k, and 1 or -1 for the upper or lower one."""
    key = state_of(volume)
    if volume not in _KEPT or _KEPT[volume][0] != key:
        _KEPT[volume] = (key, _found_ends(volume))
    return _KEPT[volume][1]


def _found_ends(volume: Volume) -> list[_End]:
    count = volume.shape[0]
    rows = range(0, count, -(-count // _SLICES))
    densest = max(float(volume.attenuation_of(slice(row, row + 1)).detach().sum()) for row in rows)
    found = []
    for row, bound, up in ((0, -0.5, -1.0), (count - 1, count - 0.5, 1.0)):
        last = volume.attenuation_of(slice(row, row + 1)).detach()[0].double().cpu()
        if float(last.sum()) > _CUT * max(densest, float(last.sum())):
            found.append((last > _MATTER * last[last > 0].mean(), bound, up))
    return found
