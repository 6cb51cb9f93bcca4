"""Which pixels a triangle may cover: a quick and generous choice, made before the exact test of each ray."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from DiffDRRCore.geometry import Camera

_SLACK = 1e-3  # pixels added around each triangle, far above the rounding of projected corners
_NEAR = 1e-9  # of the source-to-detector distance: triangles are cut here before they are projected
_FAR = 1e6  # pixels from the first one, beyond which a triangle is only boxed
_AT_A_TIME = 2**16


def pixels_around(points: Tensor, camera: Camera) -> Tensor:
    """The pixels (row * width + column, [P] int64, rising) whose rays can meet the convex hull of points [N, 3].

    The points are in mm in the camera frame. The pixels are those of a rectangle of rows and columns; all of the image
    where the hull reaches the plane of the source.
    """
    K = camera.K.detach().to(points).reshape(3, 3)
    depth = torch.ones_like(points[:, 2:]) if camera.parallel else points[:, 2:]
    if not bool((depth > _NEAR * float(camera.source_to_detector.detach())).all()):
        return torch.arange(camera.height * camera.width, device=points.device)
    uv = torch.cat([points[:, :2] / depth, torch.ones_like(depth)], dim=1) @ K[:2].T
    (left, top), (right, bottom) = uv.amin(dim=0), uv.amax(dim=0)
    (first_row, rows), (first, columns) = _whole(top, bottom, camera.height), _whole(left, right, camera.width)
    row, column = (torch.arange(int(count), device=points.device) for count in (rows, columns))
    return ((first_row + row)[:, None] * camera.width + first + column).flatten()


class Candidates(NamedTuple):
    """Pairs of a triangle and a pixel (row * width + column), [P] int64 each."""

    triangle: Tensor
    pixel: Tensor


def candidate_pixels(corners: Tensor, camera: Camera) -> Iterator[Candidates]:
    """All pairs in which the ray of the pixel can meet the triangle, and few others, some 10^4 to 10^5 at a time.

    Args:
        corners: [M, 3, 3] mm in the camera frame. Of a camera that is not parallel, what lies behind the source is
            left out.
    """
    triangle, points, cut = _projected(corners, camera)
    low, high = (points.nan_to_num(x, x, x) for x in (torch.inf, -torch.inf))
    low, high = low.amin(dim=1), high.amax(dim=1)
    top, rows = _whole(low[:, 1], high[:, 1], camera.height)
    left, columns = _whole(low[:, 0], high[:, 0], camera.width)
    rows = torch.where(columns > 0, rows, 0)
    # Long and oblique triangles fill little of their boxes: those are taken row by row.
    boxed = cut | (points[:, :3].abs().amax(dim=(1, 2)) > _FAR)
    for piece in _pieces(rows):
        which, offset = _expanded(rows[piece], piece.start)
        row, begin, width = top[which] + offset, left[which], columns[which]
        by_row = torch.nonzero(~boxed[which])[:, 0]
        outline = points[:, :3].permute(2, 1, 0).index_select(2, which[by_row])
        begin[by_row], width[by_row] = _span(outline, row[by_row], camera.width)
        begin += row * camera.width
        for spans in _pieces(width):
            number, step = _expanded(width[spans], spans.start)
            yield Candidates(triangle[which[number]], begin.index_select(0, number) + step)


def _projected(corners: Tensor, camera: Camera) -> tuple[Tensor, Tensor, Tensor]:
    """The triangles in front of the source [T], points [T, 6, 2] in pixels around each, NaN where missing, and cut [T].

    The first three are the corners, the others the ends of cut edges. cut: whether the triangle reaches behind.
    """
    K = camera.K.detach().to(corners).reshape(3, 3)
    if camera.parallel:
        flat = torch.cat([corners[..., :2], torch.ones_like(corners[..., :1])], dim=-1)
        points = (flat @ K.T)[..., :2]
        kept = torch.arange(len(corners), device=corners.device)
        return kept, torch.cat([points, torch.full_like(points, torch.nan)], dim=1), torch.zeros_like(kept).bool()
    near = _NEAR * float(camera.source_to_detector.detach())
    kept = torch.nonzero((corners[..., 2] > near).any(dim=1))[:, 0]
    corners = corners[kept]
    other = corners.roll(-1, dims=1)
    depth, rise = corners[..., 2:] - near, other[..., 2:] - corners[..., 2:]
    crossing = (depth > 0) != (depth + rise > 0)
    ends = corners - depth / torch.where(crossing, rise, 1) * (other - corners)
    ends[..., 2] = near
    points = torch.cat([corners, ends], dim=1)
    valid = torch.cat([depth > 0, crossing], dim=1)
    flat = points @ K.T / torch.where(valid, points[..., 2:], torch.nan)
    return kept, flat[..., :2], crossing.flatten(1).any(dim=1)


def _span(points: Tensor, row: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """First column and number of columns that triangles [2, 3, N] in pixels cover in a row [N]."""
    u, v = points
    du, dv = u.roll(-1, dims=0) - u, v.roll(-1, dims=0) - v
    low, high = row - _SLACK - v, row + _SLACK - v
    level = dv == 0
    slope = torch.where(level, 1, dv)
    ends = [torch.where(level, x, edge / slope).clamp(0, 1) for edge, x in ((low, 0.0), (high, 1.0))]
    outside = (dv.clamp(min=0) < low) | (dv.clamp(max=0) > high)
    columns = torch.stack([u + end * du for end in ends])
    lowest = columns.masked_fill(outside, torch.inf).amin(dim=(0, 1))
    highest = columns.masked_fill(outside, -torch.inf).amax(dim=(0, 1))
    return _whole(lowest, highest, width)


def _whole(low: Tensor, high: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The first whole number and how many there are between low and high [N], of 0 .. size - 1."""
    first = (low - _SLACK).clamp(0, size).ceil().long()
    last = (high + _SLACK).clamp(-1, size - 1).floor().long()
    return first, (last - first + 1).clamp(min=0)


def _pieces(counts: Tensor) -> Iterator[slice]:
    """Slices of counts [N] that add up to about `_AT_A_TIME` each."""
    begins = (counts.cumsum(dim=0) - counts) // _AT_A_TIME
    lengths = torch.unique_consecutive(begins, return_counts=True)[1].tolist()
    begin = 0
    for length in lengths:
        yield slice(begin, begin + length)
        begin += length


def _expanded(counts: Tensor, first: int) -> tuple[Tensor, Tensor]:
    """counts[n] times first + n for each n, and beside it 0 .. counts[n] - 1."""
    number = torch.repeat_interleave(counts)
    begin = counts.cumsum(dim=0) - counts
    return number + first, torch.arange(len(number), device=counts.device) - begin.index_select(0, number)
