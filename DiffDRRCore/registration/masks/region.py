"""Which part of an X-ray to register: a small CT in a large image wants the image cut to it."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from DiffDRRCore.errors import RegistrationError
from DiffDRRCore.geometry import Pose, project
from DiffDRRCore.imaging.volume import Volume
from DiffDRRCore.imaging.xray import XRay


def crop_to_volume(xray: XRay, volume: Volume, pose: Pose, margin: float = 20.0) -> XRay:
    """The X-ray cut to the shadow of the CT's matter at `pose`, and `margin` mm more at each side (on the detector).

    Give a margin that is larger than the error of the pose. Raises RegistrationError where the shadow misses the image.
    """
    return crop_to_points(xray, box_of_matter(volume), pose, margin)


def crop_to_points(xray: XRay, points: Tensor, pose: Pose, margin: float = 20.0) -> XRay:
    """The same for points [N, 3] (world mm) that shall be in the image."""
    uv = project(xray.camera, pose, points)[0].detach()
    columns_and_rows = margin / xray.camera.pixel_spacing.flip(0)
    height, width = xray.image.shape
    last = torch.tensor([width - 1, height - 1], dtype=uv.dtype)
    low = torch.floor(uv.amin(0) - columns_and_rows).clamp(min=0)
    high = torch.ceil(uv.amax(0) + columns_and_rows).minimum(last)
    if not bool((low < high).all()):
        raise RegistrationError("At the start pose the CT's shadow misses the X-ray: move the start closer.")
    (left, top), (right, bottom) = low.int().tolist(), (last - high).int().tolist()
    return xray.cropped(top, bottom, left, right)


def box_of_matter(volume: Volume) -> Tensor:
    """Corners [8, 3] in RAS mm of the grid-aligned box around all voxels that attenuate."""
    filled = torch.nonzero(volume.attenuation > 0).flip(-1).double()
    if len(filled) == 0:
        raise RegistrationError("The CT holds nothing that attenuates X-rays.")
    ends = (filled.amin(0) - 0.5, filled.amax(0) + 0.5)
    ijk = torch.stack([torch.stack([ends[side][axis] for axis, side in enumerate(sides)]) for sides in _CORNERS])
    return ijk @ volume.ijk_to_ras[:3, :3].T + volume.ijk_to_ras[:3, 3]


_CORNERS = tuple(itertools.product((0, 1), repeat=3))
