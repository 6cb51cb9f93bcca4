"""Where a C-arm can stand, for a search that has no start."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from DiffDRRCore.errors import RegistrationError

_ANGLES = {"primary": 360.0, "secondary": 90.0, "roll": 360.0}  # largest sizes
_ROLL_STEP = 7.0  # degrees: one and a half pixels at the rim of a small X-ray
_DISTANCE_STEP = 0.1  # of the distance, likewise
_SOD = (0.6, 0.9)  # of the distance from source to detector


@dataclass(frozen=True)
class SearchRanges:
    """Ranges of the first view's C-arm, each (least, largest).

    Attributes:
        primary, secondary, roll: DICOM's positioner angles (`CArm`) in degrees.
        sod: mm from source to isocentre; None is 0.6 to 0.9 of the distance from source to detector.
        isocenter: mm by which the isocentre may lie off `about`, along each axis, either way: one number, or three.
        about: world mm; None is the CT's centre.

    Raises RegistrationError for a range that is reversed, not finite, or not possible.
    """

    primary: Sequence[float] = (-90.0, 90.0)
    secondary: Sequence[float] = (-40.0, 40.0)
    roll: Sequence[float] = (-20.0, 20.0)
    sod: Sequence[float] | None = None
    isocenter: float | Sequence[float] = 50.0
    about: Sequence[float] | None = None

    def __post_init__(self):
        for name, largest in _ANGLES.items():
            low, high = _pair(name, getattr(self, name), "degrees")
            if low < -largest or high > largest:
                raise RegistrationError(
                    f"The range of {name} must lie within {-largest:g} to {largest:g} degrees, got {low:g} to {high:g}."
                )
            if high - low > 360:
                raise RegistrationError(f"The range of {name} is more than a full turn: {low:g} to {high:g} degrees.")
            object.__setattr__(self, name, (low, high))
        if self.sod is not None:
            object.__setattr__(self, "sod", _pair("sod", self.sod, "mm"))
            if not self.sod[0] > 0:
                raise RegistrationError(f"The range of sod must be above 0 mm, got {self.sod[0]:g} to {self.sod[1]:g}.")
        object.__setattr__(self, "isocenter", self._half_sizes())
        if self.about is not None:
            object.__setattr__(self, "about", tuple(_numbers("about", self.about, 3, "three finite numbers (RAS mm)")))

    def _half_sizes(self) -> tuple[float, ...]:
        wanted = "one number of 0 or more, or three (mm either way)"
        given = self.isocenter if hasattr(self.isocenter, "__len__") else (self.isocenter,) * 3
        sizes = _numbers("isocenter", given, 3, wanted)
        if min(sizes) < 0:
            raise RegistrationError(f"isocenter is {wanted}, got {self.isocenter}.")
        return tuple(sizes)

    def distances(self, source_to_detector: float) -> tuple[float, float]:
        """(least, largest) mm from the source to `about`. Raises RegistrationError where none is left."""
        low, high = self.sod or tuple(share * source_to_detector for share in _SOD)
        if low >= source_to_detector:
            raise RegistrationError(
                f"The range of sod begins at {low:g} mm, beyond the detector at {source_to_detector:g} mm: "
                "give smaller distances."
            )
        off = max(self.isocenter)
        return max(low - off, 0.25 * low), min(high + off, source_to_detector)

    def pivot(self, centre: Tensor) -> Tensor:
        """[3] `about`, or the CT's centre."""
        return centre if self.about is None else torch.tensor(self.about, dtype=torch.float64)

    def template_grid(self, least_distance: float, largest_distance: float) -> Tensor:
        """[T, 2] roll (degrees) and distance (mm) over the ranges."""
        logarithms = _evenly(math.log(least_distance), math.log(largest_distance), math.log1p(_DISTANCE_STEP))
        return torch.cartesian_prod(_evenly(*self.roll, _ROLL_STEP), logarithms.exp())

    @property
    def off_axis(self) -> float:
        """mm by which `about` may lie off the central ray: the two largest half sizes of the isocentre's box."""
        return math.hypot(*sorted(self.isocenter)[1:])

    def directions(self, count: int, least_distance: float, seed: int) -> Tensor:
        """[about `count`, 2] angles (degrees) from which the source sees `about`, evenly over the sphere.

        They reach beyond the ranges by as much as an isocentre off `about` turns them.
        """
        beyond = math.degrees(math.atan(max(self.isocenter) / least_distance))
        low, high = max(self.secondary[0] - beyond, -90.0), min(self.secondary[1] + beyond, 90.0)
        wide = min(self.primary[1] - self.primary[0] + 2 * beyond, 360.0)
        first = (self.primary[0] + self.primary[1] - wide) / 2
        height = math.degrees(math.sin(math.radians(high)) - math.sin(math.radians(low)))
        step = max(math.sqrt(wide * height / count), wide / count, 1e-6)
        rows = max(1, round((high - low) / step))
        generator = torch.Generator().manual_seed(seed)
        found = []
        for row in range(rows):
            secondary = low + (high - low) * (row + 0.5) / rows
            places = max(1, round(wide * math.cos(math.radians(secondary)) / step))
            offset = 0.25 + 0.5 * float(torch.rand((), generator=generator))
            found += [(first + wide * (place + offset) / places, secondary) for place in range(places)]
        return torch.tensor(found, dtype=torch.float64)


def _evenly(low: float, high: float, step: float) -> Tensor:
    """Middles of equal parts of a range, each at most `step` long."""
    count = max(1, math.ceil((high - low) / step - 1e-9))
    return low + (high - low) * (torch.arange(count, dtype=torch.float64) + 0.5) / count


def _pair(name: str, values, unit: str) -> tuple[float, float]:
    low, high = _numbers(name, values, 2, f"two finite numbers ({unit}), the least and the largest")
    if low > high:
        raise RegistrationError(f"The range of {name} is reversed: {low:g} is more than {high:g} {unit}.")
    return low, high


def _numbers(name: str, values, count: int, wanted: str) -> list[float]:
    try:
        numbers = [float(value) for value in values]
    except (TypeError, ValueError):
        numbers = []
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise RegistrationError(f"{name} is {wanted}, got {values!r}.")
    return numbers
