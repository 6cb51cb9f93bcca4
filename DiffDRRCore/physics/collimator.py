"""Collimation: blades, round apertures and polygons between source and patient, as a factor on the beam.

Lengths are at the detector. An edge is a ramp as wide as the penumbra of the focal spot, and at least as wide as a
pixel, whose area it then cuts; so the field is differentiable in the image it multiplies.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from DiffDRRCore.errors import PhysicsError
from DiffDRRCore.geometry.tensors import as_tensor


@dataclass(frozen=True)
class Collimator:
    """What part of the detector the beam reaches. All parts given apply together.

    blades:        (top, bottom, left, right): how much each side of the image is covered, >= 0
    radius:        of a round aperture; None for none
    center:        (x, y) of the round aperture from the image's centre, x to the right, y down
    polygon:       [n, 2] corners (x, y) from the image's centre, in order, convex or not; None for none
    unit:          "mm" at the detector, or "px" for all of the above
    penumbra:      mm at the detector over which an edge fades (`penumbra_width`); 0 is a sharp edge
    transmission:  what the blades let through, 0 to below 1; lead of 2 mm lets through less than 1e-3 up to 100 kVp

    Raises PhysicsError for values out of these ranges.
    """

    blades: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    radius: float | None = None
    center: tuple[float, float] = (0.0, 0.0)
    polygon: Sequence[tuple[float, float]] | None = None
    unit: str = "mm"
    penumbra: float = 0.0
    transmission: float = 0.0

    def __post_init__(self):
        if len(self.blades) != 4 or not all(math.isfinite(b) and b >= 0 for b in self.blades):
            raise PhysicsError(
                f"Blades are how far each side (top, bottom, left, right) is covered, 0 or more, got {self.blades}."
            )
        if self.radius is not None and not (math.isfinite(self.radius) and self.radius > 0):
            raise PhysicsError(f"The radius of the aperture must be positive, got {self.radius}.")
        if self.polygon is not None:
            _check_polygon(as_tensor(self.polygon))
        if self.unit not in ("mm", "px"):
            raise PhysicsError(f'Collimation is in "mm" at the detector or in "px", not {self.unit!r}.')
        if not (math.isfinite(self.penumbra) and self.penumbra >= 0):
            raise PhysicsError(f"The penumbra is 0 mm or more wide, got {self.penumbra}.")
        if not 0 <= self.transmission < 1:
            raise PhysicsError(f"Blades let through a fraction from 0 to below 1, got {self.transmission}.")

    def field(
        self,
        height: int,
        width: int,
        pixel_spacing: tuple[float, float],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """The factor on the beam in each pixel, [height, width], from `transmission` to 1.

        Args:
            pixel_spacing: (row_mm, col_mm) at the detector.

        Raises PhysicsError for an empty image, and where nothing of it stays in the field.
        """
        row, column = (float(step) for step in pixel_spacing)
        if height < 1 or width < 1 or not (row > 0 and column > 0):
            raise PhysicsError(f"An image has pixels of positive size, got {height} x {width} of {row} x {column} mm.")
        y = (torch.arange(height, dtype=torch.float64) - (height - 1) / 2) * row
        x = (torch.arange(width, dtype=torch.float64) - (width - 1) / 2) * column
        units = (1.0, 1.0) if self.unit == "mm" else (column, row)
        open_part = self._blades(x, y, (row, column), units)
        ramp = max(self.penumbra, math.sqrt(row * column))
        if self.radius is not None:
            open_part = open_part * _ramp(self._aperture_depth(x, y, units), ramp)
        if self.polygon is not None:
            corners = as_tensor(self.polygon).to(y) * torch.tensor(units).to(y)
            open_part = open_part * _ramp(_polygon_depth(x, y, corners), ramp)
        if not bool((open_part >= 0.5).any()):
            raise PhysicsError("The collimator leaves nothing of the image: open the blades or move the aperture.")
        return (self.transmission + (1 - self.transmission) * open_part).to(device, dtype)

    def _blades(self, x: Tensor, y: Tensor, spacing: tuple[float, float], units: tuple[float, float]) -> Tensor:
        """The open part behind the blades, exactly separable, as for a rectangular focal spot."""
        top, bottom, left, right = self.blades
        down = _between(y, spacing[0], top * units[1], bottom * units[1], self.penumbra)
        across = _between(x, spacing[1], left * units[0], right * units[0], self.penumbra)
        return down[:, None] * across

    def _aperture_depth(self, x: Tensor, y: Tensor, units: tuple[float, float]) -> Tensor:
        """How far inside the aperture each pixel lies; a circle in pixels that are not square is an ellipse in mm."""
        dx, dy = x / units[0] - self.center[0], y / units[1] - self.center[1]
        return (self.radius - torch.hypot(dx, dy[:, None])) * math.sqrt(units[0] * units[1])


def penumbra_width(focal_spot: float, source_to_detector: float, source_to_blades: float) -> float:
    """The width in mm at the detector over which the shadow of a blade fades: a (SDD - SBD) / SBD.

    focal_spot: its width a in mm. The distances of detector and blades from the source, SDD and SBD, are in mm.
    Raises PhysicsError where the blades do not lie between source and detector.
    """
    if not (math.isfinite(focal_spot) and focal_spot >= 0):
        raise PhysicsError(f"A focal spot is 0 mm or more wide, got {focal_spot}.")
    if not 0 < source_to_blades < source_to_detector < math.inf:
        raise PhysicsError(
            f"The blades lie between source and detector, got {source_to_blades} mm of {source_to_detector} mm."
        )
    return focal_spot * (source_to_detector - source_to_blades) / source_to_blades


def _between(place: Tensor, step: float, before: float, after: float, penumbra: float) -> Tensor:
    """The open part of each pixel between two straight edges; an edge at the image's own border is not there."""
    ramp, half = max(penumbra, step), (len(place) * step) / 2
    lower = _ramp(place - (before - half), ramp) if before > 0 else torch.ones_like(place)
    upper = _ramp(half - after - place, ramp) if after > 0 else torch.ones_like(place)
    # Two edges within one ramp: the focal spot sees the slit between them, which is the overlap of the two parts.
    return (lower + upper - 1).clamp(min=0)


def _ramp(depth: Tensor, width: float) -> Tensor:
    """0 outside, 1 inside, one half on the edge: the part of a uniform focal spot that is seen past a straight edge."""
    return (depth / width + 0.5).clamp(0, 1)


def _polygon_depth(x: Tensor, y: Tensor, corners: Tensor) -> Tensor:
    """The distance [H, W] to the outline, positive inside (even-odd rule)."""
    points = torch.stack([x.expand(len(y), -1), y[:, None].expand(-1, len(x))], dim=-1)
    nearest = torch.full_like(points[..., 0], torch.inf)
    inside = torch.zeros_like(nearest, dtype=torch.bool)
    for a, b in zip(corners, corners.roll(-1, dims=0), strict=True):
        along = ((points - a) @ (b - a) / (b - a).square().sum()).clamp(0, 1)
        nearest = torch.minimum(nearest, torch.linalg.vector_norm(points - a - along[..., None] * (b - a), dim=-1))
        spans = (a[1] > points[..., 1]) != (b[1] > points[..., 1])
        rise = torch.where(b[1] == a[1], 1, b[1] - a[1])
        inside ^= spans & (points[..., 0] < a[0] + (points[..., 1] - a[1]) / rise * (b[0] - a[0]))
    return torch.where(inside, nearest, -nearest)


def _check_polygon(corners: Tensor) -> None:
    if corners.dim() != 2 or corners.shape[1] != 2 or len(corners) < 3 or not bool(torch.isfinite(corners).all()):
        raise PhysicsError(f"A polygon has at least 3 corners (x, y), got shape {list(corners.shape)}.")
    after = corners.roll(-1, dims=0)
    area = (corners[:, 0] * after[:, 1] - corners[:, 1] * after[:, 0]).sum() / 2
    if not bool(area.abs() > 0) or bool((corners == after).all(dim=1).any()):
        raise PhysicsError("The polygon of the collimator has no area, or the same corner twice in a row.")
