"""Where the X-ray field ends: blades and round apertures.

The shielded area is dark, touches the image's edge and lies outside a convex field (a circle, a rectangle of blades,
straight or turned, or one cut by the other). So the field is found as the convex hull of the large bright regions:
metal inside it, across its border or from side to side does not break it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from DiffDRRCore.errors import XRayError

_DARK = 0.15  # of the way from the darkest border pixels to the bright level: scatter behind the blades lies below
_PART = 0.05  # of the largest bright region: a region of that size is part of the field, cut off by metal


class Crop(NamedTuple):
    """Rows and columns to remove at each side."""

    top: int
    bottom: int
    left: int
    right: int


def collimation_mask(image: Tensor) -> Tensor:
    """The exposed field of an image [H, W] in which shielded pixels are dark (transmission): bool [H, W].

    All True where nothing is found to be shielded, a constant image included. Raises XRayError for another shape.
    """
    if image.dim() != 2 or image.numel() == 0:
        raise XRayError(f"Collimation is sought in one image [H, W], got shape {list(image.shape)}.")
    pixels = ndimage.median_filter(image.detach().cpu().to(torch.float32).numpy(), 3, mode="nearest")
    field = _large_regions(pixels > _threshold(pixels))
    exposed = field if field is None else _convex(field)
    if exposed is None:
        exposed = np.ones(pixels.shape, dtype=bool)
    return torch.from_numpy(exposed).to(image.device)


def find_collimation(image: Tensor, fit: str = "inscribed") -> Crop:
    """How many pixels to remove (top, bottom, left, right) so that a rectangle of the exposed field stays.

    Args:
        image: [H, W], shielded pixels dark.
        fit: "inscribed", the largest upright rectangle inside the field (a round field gives its square; turned blades
            leave no dark corner); or "bounding", the smallest one around it.
    """
    mask = collimation_mask(image).cpu().numpy()
    rows, first, last = _extents(mask)
    if fit == "bounding":
        top, bottom, left, right = rows[0], rows[-1], first.min(), last.max()
    elif fit == "inscribed":
        top, bottom, left, right = _largest_rectangle(rows, first, last)
    else:
        raise XRayError(f'fit is "inscribed" or "bounding", not {fit!r}.')
    height, width = mask.shape
    return Crop(int(top), int(height - 1 - bottom), int(left), int(width - 1 - right))


def _threshold(pixels: np.ndarray) -> float:
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    dark, bright = np.percentile(border, 1), np.percentile(pixels, 95)
    return dark + _DARK * (bright - dark)


def _large_regions(bright: np.ndarray) -> np.ndarray | None:
    labels, count = ndimage.label(bright)
    if count == 0:
        return None
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return (sizes >= _PART * sizes.max())[labels]


def _extents(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(rows with any True, first column, last column) of a mask."""
    rows = np.flatnonzero(mask.any(axis=1)).astype(np.int32)
    first = mask[rows].argmax(axis=1).astype(np.int32)
    last = mask.shape[1] - 1 - mask[rows, ::-1].argmax(axis=1).astype(np.int32)
    return rows, first, last


def _convex(mask: np.ndarray) -> np.ndarray:
    """The pixels whose centres lie in the convex hull of a mask."""
    rows, first, last = _extents(mask)
    every = np.arange(rows[0], rows[-1] + 1)
    left = _lower_hull(rows, first, every)
    right = -_lower_hull(rows, -last, every)
    columns = np.arange(mask.shape[1])
    hull = np.zeros_like(mask)
    hull[every] = (columns >= left[:, None] - 1e-9) & (columns <= right[:, None] + 1e-9)
    return hull


def _lower_hull(x: np.ndarray, y: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Lower convex hull of points with rising x, evaluated at `at` (Andrew's monotone chain)."""
    hull: list[tuple[float, float]] = []
    for point in zip(x.tolist(), y.tolist(), strict=True):
        while len(hull) > 1 and _turn(hull[-2], hull[-1], point) <= 0:
            hull.pop()
        hull.append(point)
    return np.interp(at, *np.array(hull, dtype=float).T)


def _turn(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> float:
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])


def _largest_rectangle(rows: np.ndarray, first: np.ndarray, last: np.ndarray) -> tuple[int, int, int, int]:
    """(top, bottom, left, right), inclusive, of the largest upright rectangle in a convex region.

    In a convex region a rectangle is inside if its top and bottom rows are: all pairs of rows are tried at once.
    """
    left = np.maximum.outer(first, first)
    right = np.minimum.outer(last, last)
    heights = rows[None, :] - rows[:, None] + 1
    areas = np.where(heights > 0, heights * np.maximum(right - left + 1, 0), 0)
    i, j = np.unravel_index(areas.argmax(), areas.shape)
    return rows[i], rows[j], left[i, j], right[i, j]
