"""Weights that keep a registration to the CT's shadow: for a CT of one bone in an X-ray of everything.

What the X-ray shows beside the bone (other bones, soft tissue) is not in the CT, and a measure of the whole image gains
by blowing the CT up until it covers some of it. Compared around the bone's own shadow alone, it does not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from DiffDRRCore.errors import RegistrationError
from DiffDRRCore.geometry import Pose, pixel_rays, project
from DiffDRRCore.imaging.volume import Volume
from DiffDRRCore.imaging.xray import XRay
from DiffDRRCore.rendering import Renderer

_SIDE = 256  # pixels of the image in which the shadow is measured, at most
_THIN = 0.02  # of the darkest ray: less is no shadow


def shadow_weights(
    xrays: Sequence[XRay], volume: Volume, poses: Sequence[Pose], margin: float = 10.0, ends: float = 4.0
) -> list[Tensor]:
    """Weights [H, W] of each X-ray: 1 in the CT's shadow at its pose (camera_to_world) and around it, else 0.

    Give them to `register` as `weights`, with a `margin` larger than the pose's error; then again, narrower, at the
    pose that it found.

    Args:
        margin: mm on the detector around the shadow.
        ends: mm on the detector around matter in the CT's outermost voxels that does not count: where the CT cuts a
            bone off, its shadow ends and the X-ray's does not. 0 counts all. For a CT whose voxels around the bone are
            air; a whole CT is cut everywhere.

    Raises RegistrationError where nothing of the CT is in an X-ray.
    """
    renderer, cut = Renderer(volume), _cut_off(volume) if ends > 0 else torch.zeros(0, 3, dtype=torch.float64)
    found = [_weight(renderer, xray, pose, cut, margin, ends) for xray, pose in zip(xrays, poses, strict=True)]
    for number, weight in enumerate(found, start=1):
        if not bool(weight.any()):
            raise RegistrationError(f"At its pose the CT casts no shadow in X-ray {number}: move the start closer.")
    return found


def _weight(renderer: Renderer, xray: XRay, pose: Pose, cut: Tensor, margin: float, ends: float) -> Tensor:
    every = math.ceil(max(xray.image.shape) / _SIDE)
    height, width = (math.ceil(size / every) for size in xray.image.shape)
    rows, columns = (every * (torch.arange(size) + 0.5) - 0.5 for size in (height, width))
    v, u = torch.meshgrid(rows.double(), columns.double(), indexing="ij")
    rays = pixel_rays(xray.camera, pose, torch.stack([u, v], dim=-1).reshape(-1, 2), renderer.volume.device)
    with torch.no_grad():
        image = renderer.trace(*rays)[0].cpu().reshape(height, width)
    pixel = (every * xray.camera.pixel_spacing.detach().cpu()).tolist()
    kept = _distance((image > _THIN * image.max()).numpy(), pixel) <= margin
    if len(cut):
        place = torch.floor((project(xray.camera, pose, cut)[0].cpu() + 0.5) / every).long()
        place = place[((place >= 0) & (place < torch.tensor([width, height]))).all(-1)]
        marked = np.zeros((height, width), dtype=bool)
        marked[place[:, 1], place[:, 0]] = True
        kept &= _distance(marked, pixel) > ends
    large = torch.from_numpy(kept).float().repeat_interleave(every, 0).repeat_interleave(every, 1)
    return large[: xray.image.shape[0], : xray.image.shape[1]]


def _distance(marked: NDArray[np.bool_], pixel: Sequence[float]) -> NDArray[np.float64]:
    """mm of each pixel to the nearest one marked, infinite where there is none."""
    return distance_transform_edt(~marked, pixel) if marked.any() else np.full(marked.shape, np.inf)


def _cut_off(volume: Volume) -> Tensor:
    """[N, 3] world mm: centres of outermost voxels that attenuate."""
    matter = volume.attenuation.detach().cpu() > 0
    inner = torch.zeros_like(matter)
    inner[1:-1, 1:-1, 1:-1] = True
    ijk = torch.nonzero(matter & ~inner).flip(-1).double()
    to_world = volume.ijk_to_ras.detach().double().cpu()
    return ijk @ to_world[:3, :3].T + to_world[:3, 3]
