"""The part of an X-ray that the beam reached, found in line integrals: blades, straight or turned, and round fields.

In line integrals, anatomy can be as bright as lead with scatter behind it, so no grey value encloses the field (as it
does in `imaging.collimation`). What tells blades and round fields is that the image gets brighter outwards at once
along a whole straight line, or a circle about the centre of the image, and stays so (`upright_field`). What neither is
(turned blades, a circle off the centre) is sought by grey value, and kept if its border has that step all along.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn.functional import avg_pool2d, max_pool2d

from DiffDRRCore.imaging.collimation import collimation_mask
from DiffDRRCore.imaging.xray import XRay

_SIDE = 192  # pixels of the image in which edges are looked for
_STEP = 0.06  # of the image's range: what lead adds at its edge
_FIRST, _LAST = 0.4, 0.7  # of an edge that must have it: while other edges may still shorten it, and in the end
_SEEN = 0.2  # of a line or circle must lie in the image
_DEEPEST, _NARROWEST = 0.42, 0.5  # of a side, that a blade covers at most; of half the shorter side, a field's radius
_SIDES = ("top", "bottom", "left", "right", "round")
_SMALLEST = 0.1  # of the image: no field is smaller
_STEPPED = 0.8  # of a field's border within the image
_MARGIN = 2  # pixels of the small image by which a border is stepped over to see its step
_KEPT_OFF = 4  # pixels of the small image: penumbra, glare and the ragged rim of image intensifiers


def exposed_field(xray: XRay, margin: bool = True) -> Tensor:
    """Where the beam reached the detector: bool [H, W] on the CPU, of an X-ray of attenuation; all True where unsure.

    Blades and apertures of any place and angle are found, if the shadow of no part of them is wider than the field.

    Args:
        margin: without the pixels next to the border, which the penumbra and the blur of the detector reach.
    """
    image = xray.image.detach().cpu().float()
    if _was_cropped(xray) or min(image.shape) < 8 * _every(image):
        return torch.ones(image.shape, dtype=torch.bool)
    small = avg_pool2d(image[None, None], _every(image), ceil_mode=True)[0, 0]
    candidates = [_field(small, _edges(small)), *_by_grey_value(small)]
    accepted = [one for one in candidates if _stepped(small, one) >= _STEPPED]
    field = torch.stack(accepted).all(dim=0) if accepted else torch.ones(small.shape, dtype=torch.bool)
    return _enlarged(eroded(field, _KEPT_OFF) if margin else field, image)


def upright_field(xray: XRay) -> Tensor:
    """As `exposed_field`, of blades along the image's sides and round fields about its centre only, with no margin."""
    image = xray.image.detach().cpu().float()
    if _was_cropped(xray) or min(image.shape) < 8 * _every(image):
        return torch.ones(image.shape, dtype=torch.bool)
    small = avg_pool2d(image[None, None], _every(image), ceil_mode=True)[0, 0]
    return _enlarged(_field(small, _edges(small)), image)


def eroded(mask: Tensor, radius: int = 1) -> Tensor:
    """Masks [..., H, W] without the pixels within `radius` of one that is not in it; the image's edge is none."""
    flat = (~mask).reshape(-1, 1, *mask.shape[-2:]).float()
    return (max_pool2d(flat, 2 * radius + 1, stride=1, padding=radius) < 0.5).reshape(mask.shape)


def _was_cropped(xray: XRay) -> bool:
    return bool(xray.meta.get("preprocessing", {}).get("crop"))


def _every(image: Tensor) -> int:
    return max(1, math.ceil(max(image.shape) / _SIDE))


def _enlarged(field: Tensor, image: Tensor) -> Tensor:
    every, (height, width) = _every(image), image.shape
    return field.repeat_interleave(every, 0).repeat_interleave(every, 1)[:height, :width]


def _by_grey_value(image: Tensor) -> list[Tensor]:
    """Fields of `collimation_mask`, in transmission and in line integrals."""
    low, high = torch.quantile(image.flatten(), image.new_tensor([0.01, 0.99])).tolist()
    scale = 4.0 / max(high - low, 1e-9)  # as line integrals of a patient, whatever the gain
    fields = [collimation_mask(torch.exp(-scale * (image - low))), collimation_mask(-image)]
    return [field for field in fields if _SMALLEST < float(field.double().mean()) < 1]


def _stepped(image: Tensor, field: Tensor) -> float:
    """The share of a field's border within the image where it gets brighter outwards; 0 where there is no border."""
    inside, pixels = field.numpy(), image.numpy()
    if inside.all() or not inside.any():
        return 0.0
    low, high = np.percentile(pixels, [1, 99])
    distance = ndimage.distance_transform_edt(inside) - ndimage.distance_transform_edt(~inside)
    inner = (distance > _MARGIN - 0.5) & (distance < _MARGIN + 1.5)
    outer = ndimage.distance_transform_edt(
        ~((distance < 0.5 - _MARGIN) & (distance > -_MARGIN - 1.5)), return_indices=True
    )
    near = outer[0] <= 2 * _MARGIN + 2
    rows, columns = outer[1]
    step = pixels[rows, columns] - pixels
    seen = inner & near
    return float((step[seen] > _STEP * (high - low)).mean()) if seen.sum() >= 8 else 0.0


def _edges(image: Tensor) -> dict[str, int]:
    """{side: how far it reaches in}, the clearest first, and again without those that are none in the end."""
    found: dict[str, int] = {}
    while len(found) < len(_SIDES):
        field = _field(image, found)
        others = {side: _edge(image, field, side) for side in _SIDES if side not in found}
        side = max(others, key=lambda one: others[one][1])
        place, share = others[side]
        if share < _FIRST:
            break
        found[side] = place
    for side in list(found):
        without = {other: place for other, place in found.items() if other != side}
        if _edge(image, _field(image, without), side)[1] < _LAST:
            del found[side]
    return found


def _edge(image: Tensor, field: Tensor, side: str) -> tuple[int, float]:
    """(the first line inside, share of it that has the step), where that share is largest, within a known field.

    Lines are those of `_lines`; those next to the edge, partly covered, are left out of the comparison.
    """
    low, high = torch.quantile(image.flatten(), image.new_tensor([0.01, 0.99])).tolist()
    lines = _lines(image.where(field, torch.nan), side)
    step = lines[:-3] - lines[3:]  # of an edge before line n + 2
    seen = ~step.isnan()
    share = ((step > _STEP * (high - low)) & seen).sum(dim=1) / seen.sum(dim=1).clamp(min=1)
    share = share.where(seen.double().mean(dim=1) > _SEEN, 0.0)
    share = share.where(_bright_outside(lines)[: len(share)], 0.0)
    if side != "round":
        share = share[: int(_DEEPEST * len(lines))]
    sharp = (lines[1:-2] - lines[2:-1]).nan_to_num(0.0).sum(dim=1) / seen.sum(dim=1).clamp(min=1)
    near = share >= share.max() - 0.1
    place = int(sharp[: len(share)].where(near, -torch.inf).argmax())
    return place + 2, float(share.max())


def _bright_outside(lines: Tensor) -> Tensor:
    """[N] bool: whether what lies before line n + 2 is brighter than the usual inside it."""
    outer, inner = lines[:-2].nanquantile(0.3, dim=1), lines.nanmedian(dim=1).values
    worst = outer.nan_to_num(torch.inf).cummin(dim=0).values
    usual = torch.stack([inner[n + 2 :].nanmedian() for n in range(len(lines) - 2)])
    return worst > usual


def _lines(image: Tensor, side: str) -> Tensor:
    """[N, M]: rows or columns from one side inwards, or circles, from the largest, at M angles; NaN outside."""
    if side in ("top", "bottom"):
        return image if side == "top" else image.flip(0)
    if side in ("left", "right"):
        return image.mT if side == "left" else image.flip(1).mT
    height, width = image.shape
    angles = torch.arange(0, 2 * math.pi, 4 / max(height, width))
    radii = torch.arange(_outermost(image), _NARROWEST * min(height, width) / 2, -1.0)[:, None]
    row = ((height - 1) / 2 + radii * angles.sin()).round().long()
    column = ((width - 1) / 2 + radii * angles.cos()).round().long()
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    return image[row.clamp(0, height - 1), column.clamp(0, width - 1)].where(inside, torch.nan)


def _outermost(image: Tensor) -> float:
    """Radius of the circle about the centre that goes through the corners."""
    return math.hypot(*image.shape) / 2


def _field(image: Tensor, edges: dict[str, int]) -> Tensor:
    """bool [H, W]: what is inside the edges."""
    rows, columns = (torch.arange(n) for n in image.shape)
    down = (rows >= edges.get("top", 0)) & (rows < len(rows) - edges.get("bottom", 0))
    across = (columns >= edges.get("left", 0)) & (columns < len(columns) - edges.get("right", 0))
    radius = _outermost(image) - edges.get("round", -1) + 0.5
    distance = torch.hypot(columns - (len(columns) - 1) / 2, (rows - (len(rows) - 1) / 2)[:, None])
    return down[:, None] & across & (distance <= radius)
