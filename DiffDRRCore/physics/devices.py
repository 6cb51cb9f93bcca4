"""C-arms and radiography units as data: where source, isocentre and detector are, and how far the arm can go.

    device("cios").carm(isocenter, primary=30).pose          refuses angles that the device cannot reach
    device("cios").camera(binning=4)                         384 x 384 pixels of 0.776 mm

The numbers lie in tables/devices.json, each group with its source. A device with `generic` set is no product: its
numbers are round ones of its class. Angles are DICOM's positioner angles (`CArm`) in degrees, + LAO and + CRA; limits
hold for each angle by itself.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cache

import torch

from DiffDRRCore.errors import PhysicsError
from DiffDRRCore.geometry.camera import Camera
from DiffDRRCore.geometry.carm import CArm
from DiffDRRCore.physics.collimator import Collimator
from DiffDRRCore.physics.elements import TABLES

ANGLES = ("primary", "secondary", "roll")
_TOLERANCE = 1e-6
_PAIRS = ("pixel_spacing", "source_to_detector_range", "rest", "primary", "secondary", "roll", "kvp", "focal_spots")

Limits = tuple[float, float]


@dataclass(frozen=True)
class Device:
    """An X-ray device.

    key, name, maker, kind, generic:  what it is; kind is "mobile C-arm", "angiography" or "radiography"
    modality:                         of its DICOM images, "XA" or "DX"
    source_to_detector:               mm; source_to_detector_range: (least, most) where it can be changed
    source_to_isocenter:              mm
    height, width, pixel_spacing:     the detector in pixels, (row_mm, col_mm)
    field_diameter:                   mm on the detector, of a round image intensifier; None for a flat panel
    rest:                             (primary, secondary) where the device stands by default
    primary, secondary, roll:         (least, most) in degrees; None where there is no limit known
    kvp, filtration, anode_angle, focal_spots:  the tube, as far as known: kVp (least, most), mm of each filter,
                                      degrees, mm
    sources:                          where the numbers come from

    Raises PhysicsError for distances and limits that cannot be.
    """

    key: str
    name: str
    maker: str
    kind: str
    generic: bool
    source_to_detector: float
    source_to_isocenter: float
    height: int
    width: int
    pixel_spacing: tuple[float, float]
    modality: str = "XA"
    source_to_detector_range: Limits | None = None
    field_diameter: float | None = None
    rest: tuple[float, float] = (0.0, 0.0)
    primary: Limits | None = None
    secondary: Limits | None = None
    roll: Limits | None = None
    kvp: Limits | None = None
    filtration: Mapping[str, float] = field(default_factory=dict)
    anode_angle: float | None = None
    focal_spots: tuple[float, ...] = ()
    sources: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self):
        if not 0 < self.source_to_isocenter < self.source_to_detector < math.inf:
            raise PhysicsError(
                f"The isocentre of {self.name} must lie between source and detector, got {self.source_to_isocenter} mm "
                f"of {self.source_to_detector} mm."
            )
        for name in (*ANGLES, "source_to_detector_range", "kvp"):
            limits = getattr(self, name)
            if limits is not None and not (len(limits) == 2 and limits[0] <= limits[1]):
                raise PhysicsError(f"The limits of {name} of {self.name} are (least, most), got {limits}.")

    def carm(
        self,
        isocenter=(0.0, 0.0, 0.0),
        primary: float | None = None,
        secondary: float | None = None,
        roll: float = 0.0,
        source_to_detector: float | None = None,
        check: bool = True,
    ) -> CArm:
        """The device's C-arm.

        Args:
            isocenter: [3] RAS mm.
            primary, secondary, roll: degrees; None is where the device stands by default.
            source_to_detector: mm; None is the device's own.
            check: False lets it go where the device cannot; `violations` then tells how far.

        Raises PhysicsError beyond the device's limits.
        """
        primary = self.rest[0] if primary is None else primary
        secondary = self.rest[1] if secondary is None else secondary
        distance = self.source_to_detector if source_to_detector is None else source_to_detector
        arm = CArm(distance, self.source_to_isocenter, isocenter, primary, secondary, roll)
        if check:
            self.check(arm)
        return arm

    def camera(self, binning: int = 1, view_from: str = "source", source_to_detector: float | None = None) -> Camera:
        """The whole detector, with `binning` x `binning` pixels joined in one; rows and columns left over are cut off.

        Raises PhysicsError for a binning that is not a whole number from 1 to the size of the detector.
        """
        if binning != int(binning) or not 1 <= binning <= min(self.height, self.width):
            raise PhysicsError(
                f"Binning joins a whole number of pixels, 1 to {min(self.height, self.width)}, got {binning}."
            )
        binning = int(binning)
        height, width = self.height // binning, self.width // binning
        spacing = tuple(step * binning for step in self.pixel_spacing)
        return Camera(height, width, spacing, source_to_detector or self.source_to_detector, None, view_from)

    def collimator(self) -> Collimator | None:
        """The round field of an image intensifier; None where the whole detector is used."""
        return None if self.field_diameter is None else Collimator(radius=self.field_diameter / 2)

    def violations(self, arm: CArm, kvp: float | None = None) -> list[str]:
        """What the device cannot do of what is asked, a sentence each; empty where it can all of it."""
        found = []
        for name in ANGLES:
            found += _beyond(name, getattr(arm, name), getattr(self, name), " degrees")
        distance = self.source_to_detector_range or (self.source_to_detector,) * 2
        found += _beyond("source-to-detector distance", arm.source_to_detector, distance, " mm")
        found += _beyond(
            "source-to-isocentre distance", arm.source_to_isocenter, (self.source_to_isocenter,) * 2, " mm"
        )
        if kvp is not None:
            found += _beyond("tube voltage", torch.as_tensor(float(kvp)), self.kvp, " kVp")
        return found

    def check(self, arm: CArm, kvp: float | None = None) -> None:
        """Raise PhysicsError with the first of the `violations`."""
        for violation in self.violations(arm, kvp):
            raise PhysicsError(f"{self.name}: {violation}")


def device(key: str) -> Device:
    """A device of the table, by its key. Raises PhysicsError that names all keys for one that is not there."""
    found = _table().get(key)
    if found is None:
        raise PhysicsError(f"There is no device {key!r}; there are: {', '.join(_table())}.")
    return found


def device_names() -> tuple[str, ...]:
    """The keys of all devices."""
    return tuple(_table())


def orbit(
    arm: CArm, start: float, stop: float, count: int, angle: str = "primary", device: Device | None = None
) -> Iterator[CArm]:
    """`count` C-arms with one angle in even steps from `start` to `stop` degrees, both included; the rest as in `arm`.

    angle: "primary" is the orbital motion of a mobile C-arm at the patient's side and the propeller motion of a fixed
        one at the head; "secondary" is the other of the two; "roll" turns the detector.
    device: whose limits are kept.

    Raises PhysicsError for a count below 1, an unknown angle, and beyond the device's limits, before the first C-arm.
    """
    if angle not in ANGLES:
        raise PhysicsError(f"A C-arm moves by one of {', '.join(ANGLES)}, not {angle!r}.")
    ends = [_changed(arm, **{angle: torch.as_tensor(float(value))}) for value in (start, stop)]
    return sweep(*ends, count, device)


def sweep(first: CArm, last: CArm, count: int, device: Device | None = None) -> Iterator[CArm]:
    """`count` C-arms in even steps from one to the other, both included: angles, distances, isocentre and offset.

    Raises PhysicsError for a count below 1 and beyond the device's limits, before the first C-arm.
    """
    if not math.isfinite(count) or count != int(count) or count < 1:
        raise PhysicsError(f"A sweep has a whole number of positions, 1 or more, got {count}.")
    steps = [0.0] if count == 1 else [number / (count - 1) for number in range(int(count))]
    arms = [_between(first, last, share) for share in steps]
    for arm in arms if device is not None else ():
        device.check(arm)
    return iter(arms)


def _between(first: CArm, last: CArm, share: float) -> CArm:
    if share == 1.0:
        return last
    return _changed(first, **{name: torch.lerp(*_alike(first, last, name), share) for name in _parts(first)})


def _alike(first: CArm, last: CArm, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    return getattr(first, name).double(), getattr(last, name).double()


def _parts(arm: CArm) -> dict[str, torch.Tensor]:
    names = ("source_to_detector", "source_to_isocenter", "isocenter", *ANGLES, "detector_offset")
    return {name: getattr(arm, name) for name in names}


def _changed(arm: CArm, **changes) -> CArm:
    return CArm(**{**_parts(arm), **changes})


def _beyond(what: str, value: torch.Tensor, limits: Limits | None, unit: str) -> list[str]:
    if limits is None:
        return []
    values = value.detach().double()
    wrong = (values < limits[0] - _TOLERANCE) | (values > limits[1] + _TOLERANCE)
    if not bool(wrong.any()):
        return []
    first = float(values[wrong][0] if values.dim() else values)
    reach = f"{limits[0]:g}" if limits[0] == limits[1] else f"{limits[0]:g} to {limits[1]:g}"
    return [f"a {what} of {first:g}{unit} is out of reach, it must be {reach}{unit}."]


@cache
def _table() -> dict[str, Device]:
    content = json.loads((TABLES / "devices.json").read_text(encoding="utf-8"))
    return {key: _device(key, entry) for key, entry in content.items()}


def _device(key: str, entry: dict) -> Device:
    entry = {name: tuple(value) if name in _PAIRS else value for name, value in entry.items()}
    known = {one.name for one in fields(Device)}
    assert set(entry) < known, set(entry) - known
    return Device(key=key, **entry)
