"""How a simulated X-ray is taken, and what of it the scene shows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from DiffDRRCore import Camera, CArm
from DiffDRRCore.errors import PhysicsError
from DiffDRRCore.physics import SimulatedImage
from DiffDRRCore.physics.devices import Device, device
from DiffDRRCore.physics.simulation import settings as core
from DiffDRRCore.physics.spectra import ANODE_ANGLE

__all__ = ["Settings", "counts_of", "device", "seen_by"]

_HALF_A_COUNT = 0.5
_LEAST = 1e-5  # of the open field: below what any X-ray detector can tell


@dataclass(frozen=True, kw_only=True)
class Settings(core.Settings):
    """Those of `DiffDRRCore.physics.simulation.settings.Settings`, with its names and defaults, and

    logarithm: whether the scene shows ln(open field / signal), the line integral, as devices do; else the signal

    Values out of range raise PhysicsError when the image is made.
    """

    logarithm: bool = True

    @classmethod
    def kept(cls, content: Mapping[str, Any]) -> Settings:
        """What an X-ray's meta says of them, older scenes included; names that nobody knows are left out.

        Raises PhysicsError for values that cannot be.
        """
        filters = {symbol: content.get(name) for name, symbol in (("aluminium", "Al"), ("copper", "Cu"))}
        old = {"filtration": {symbol: mm for symbol, mm in filters.items() if mm}, "dose": content.get("kerma")}
        names = {one.name for one in fields(cls)}
        known = {name: value for name, value in content.items() if name in names}
        return cls.from_dict({**{name: value for name, value in old.items() if value}, **known})

    def on(self, device: Device | None) -> Settings:
        """The same on a device, with its round field and its anode's angle, as far as they are known.

        Raises PhysicsError for a tube voltage beyond its limits.
        """
        if device is None:
            return self
        if self.has_tube and device.kvp is not None and not device.kvp[0] <= self.kvp <= device.kvp[1]:
            raise PhysicsError(
                f"{device.name}: a tube voltage of {self.kvp:g} kV is out of reach, it must be {device.kvp[0]:g} to "
                f"{device.kvp[1]:g} kV."
            )
        changes: dict[str, Any] = {}
        if device.anode_angle is not None and self.anode_angle == ANODE_ANGLE:
            changes["anode_angle"] = device.anode_angle
        if device.field_diameter is not None:
            changes["aperture"] = min(device.field_diameter / 2, self.aperture or math.inf)
        return self.with_values(changes)

    def pixels(self, image: SimulatedImage) -> tuple[Tensor, dict[str, Any]]:
        """What the scene shows [H, W], and its meta; a pixel without a count has half a one before the logarithm."""
        meta = {**image.xray.meta, "simulated": True, "settings": self.to_dict(), "logarithmic": self.logarithm}
        if not self.logarithm:
            return image.counts, meta
        least = _LEAST * image.i0 if self.bits is None else _HALF_A_COUNT
        integrals = torch.log(image.i0 / image.counts.double().clamp(min=least)).float()
        return integrals, {**meta, "intensity": "attenuation"}


def counts_of(image: Tensor, meta: Mapping[str, Any]) -> tuple[Tensor, dict[str, Any]]:
    """The inverse of `Settings.pixels`: the signal [H, W], whole numbers where it had them; others as they are."""
    if not meta.get("simulated") or not meta.get("logarithmic"):
        return image, dict(meta)
    signal = meta["i0"] * torch.exp(-image.double())
    # scenes from before bit depths could be chosen have 16 wherever there are counts
    whole = meta.get("unit") == "counts" and meta.get("settings", {}).get("bits", 16) is not None
    return (signal.round() if whole else signal).float(), {**meta, "intensity": "transmission", "logarithmic": False}


def seen_by(device: Device, arm: CArm, view_from: str, size: int) -> tuple[Camera, CArm]:
    """The device's camera, of at most `size` pixels on the longest side, and it at the angles and isocentre of `arm`.

    Angles that are read from a pose have the secondary one within 90 degrees. Where the device cannot reach them, and
    the other angles of the pose turn the image less, it is asked for those. Raises PhysicsError beyond its limits.
    """
    binning = max(1, math.ceil(max(device.height, device.width) / size))
    camera = device.camera(binning, view_from)
    read = tuple(float(angle) for angle in (arm.primary, arm.secondary, arm.roll))
    placed, beyond = (device.carm(arm.isocenter, *angles, check=False) for angles in (read, _other_angles(*read)))
    turned_less = abs(float(beyond.roll)) < abs(float(placed.roll))
    chosen = beyond if turned_less and device.violations(placed) and not device.violations(beyond) else placed
    device.check(chosen)
    return camera, chosen


def _other_angles(primary: float, secondary: float, roll: float) -> tuple[float, ...]:
    """Those of the same pose with the secondary angle over the top, from -180 to below 180 degrees."""
    return tuple((angle + 180) % 360 - 180 for angle in (primary + 180, 180 - secondary, roll + 180))
