"""How a simulated X-ray is taken, as its spectrum, exposure, detector and effects."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from DiffDRRCore import Camera, CArm
from DiffDRRCore.errors import PhysicsError
from DiffDRRCore.physics import (
    Detector,
    Effects,
    Exposure,
    Grid,
    Heel,
    Scatter,
    SimulatedImage,
    Simulator,
    Spectrum,
    material,
)
from DiffDRRCore.physics.devices import Device, device
from DiffDRRCore.physics.spectra import ANODE_ANGLE
from DiffDRRSlicerLib.scene.errors import SceneError

__all__ = ["OPEN_FIELD", "Settings", "counts_of", "device", "seen_by"]

OPEN_FIELD = 50_000.0  # counts of a noisy image where nothing is in the way, of 65535
_CSI = 0.6  # mm of scintillator
_HALF_MTF = 1.3  # 1/mm, where the MTF of such a flat panel is a half
_BITS = 16
_HALF_A_COUNT = 0.5


@dataclass(frozen=True)
class Settings:
    """How a simulated X-ray is taken.

    kvp:           tube voltage, 40 to 150 kV (tungsten anode)
    aluminium, copper: filters, mm, the tube's own included
    kerma:         air kerma at the detector in the open field, uGy; None is the image without noise, relative to the
                   open field
    photons:       in place of `kerma`: mean number that reach a pixel with nothing in the way
    focal_spot:    mm, full width at half maximum; 0 is a point
    detector_blur: whether light spreads in the scintillator as in a flat panel (half of the contrast left at 1.3/mm)
    scatter:       whether there is scattered radiation;  grid: whether an anti-scatter grid holds it back
    heel:          whether the beam is weaker towards the anode, which is at the image's lower edge
    logarithm:     whether the image is ln(open field / signal), the line integral, as devices show it; else the signal
    decomposition: of the HU to materials, "continuous" or "thresholds"
    integrator:    through the voxels, as of `DiffDRRCore.Renderer`
    spectrum:      a `DiffDRRCore.physics.Spectrum` of one's own, in place of the tube's

    Values out of range raise PhysicsError when the image is made.
    """

    kvp: float = 90.0
    aluminium: float = 3.0
    copper: float = 0.0
    kerma: float | None = 5.0
    photons: float | None = None
    focal_spot: float = 0.6
    detector_blur: bool = True
    scatter: bool = False
    grid: bool = False
    heel: bool = False
    logarithm: bool = True
    decomposition: str = "continuous"
    integrator: str = "trilinear"
    spectrum: Spectrum | None = None

    @classmethod
    def of(cls, **values) -> Settings:
        """Settings by name. Raises SceneError for a name that there is not."""
        names = [one.name for one in fields(cls)]
        wrong = [name for name in values if name not in names]
        if wrong:
            raise SceneError(f"A simulated X-ray has no setting '{wrong[0]}'; there are: {', '.join(names)}.")
        return cls(**values)

    @property
    def filters(self) -> dict[str, float]:
        """mm of each filter that there is."""
        return {name: mm for name, mm in (("Al", self.aluminium), ("Cu", self.copper)) if mm}

    def beam(self, device: Device | None = None) -> Spectrum:
        """What comes from the tube. Raises PhysicsError where it, or the `device`, cannot."""
        if self.spectrum is not None:
            return self.spectrum
        if device is not None and device.kvp is not None and not device.kvp[0] <= self.kvp <= device.kvp[1]:
            raise PhysicsError(
                f"{device.name}: a tube voltage of {self.kvp:g} kV is out of reach, it must be {device.kvp[0]:g} to "
                f"{device.kvp[1]:g} kV."
            )
        return Spectrum.tungsten(self.kvp, self.filters, self._anode(device))

    @property
    def plain(self) -> dict[str, float | bool | str | None]:
        """The values, for records; without a spectrum of one's own."""
        return {one.name: getattr(self, one.name) for one in fields(self) if one.name != "spectrum"}

    @property
    def exposure(self) -> Exposure | None:
        """Dose and noise; None without noise."""
        if self.photons is not None:
            return Exposure(photons=self.photons)
        return None if self.kerma is None else Exposure(kerma=self.kerma)

    @property
    def detector(self) -> Detector:
        """A flat panel with a scintillator of CsI."""
        bits = None if self.exposure is None else _BITS
        return Detector.scintillating(material("CsI").mass_attenuation, _CSI, bits=bits)

    def pixels(self, image: SimulatedImage) -> tuple[Tensor, dict[str, Any]]:
        """What the scene shows [H, W], and its meta; a pixel without a count has half a one before the logarithm."""
        meta = {**image.xray.meta, "simulated": True, "settings": self.plain, "logarithmic": self.logarithm}
        if not self.logarithm:
            return image.counts, meta
        least = _HALF_A_COUNT if self.exposure is not None else _HALF_A_COUNT / OPEN_FIELD
        return torch.log(image.i0 / image.counts.double().clamp(min=least)).float(), {
            **meta,
            "intensity": "attenuation",
        }

    def effects(self, device: Device | None = None) -> Effects:
        """All else."""
        scatter = None
        if self.scatter:
            kvp = self.kvp if self.spectrum is None else self.spectrum.kvp or self.kvp
            scatter = Scatter(kvp, grid=Grid() if self.grid else None)
        return Effects(
            focal_spot_mm=self.focal_spot,
            detector_mtf=_HALF_MTF if self.detector_blur else None,
            scatter=scatter,
            heel=Heel(self._anode(device), filtration=self.filters) if self.heel else None,
            collimator=None if device is None else device.collimator(),
        )

    def applied(self, base: Simulator, objects, camera: Camera, device: Device | None) -> Simulator:
        """A simulator like `base` with these settings; its gain gives OPEN_FIELD counts in the open field."""
        changed = base.changed(
            spectrum=self.beam(device),
            detector=replace(self.detector, bits=None),
            objects=objects,
            exposure=self.exposure,
            effects=self.effects(device),
        )
        if self.exposure is None:
            return changed
        return changed.changed(detector=replace(self.detector, gain=OPEN_FIELD / changed.i0(camera)))

    @staticmethod
    def _anode(device: Device | None) -> float:
        return ANODE_ANGLE if device is None or device.anode_angle is None else device.anode_angle


def counts_of(image: Tensor, meta: Mapping[str, Any]) -> tuple[Tensor, dict[str, Any]]:
    """The inverse of `Settings.pixels`: the signal [H, W], whole numbers where it had them; others as they are."""
    if not meta.get("simulated") or not meta.get("logarithmic"):
        return image, dict(meta)
    signal = meta["i0"] * torch.exp(-image.double())
    whole = meta.get("unit") == "counts"
    return (signal.round() if whole else signal).float(), {**meta, "intensity": "transmission", "logarithmic": False}


def seen_by(device: Device, arm: CArm, view_from: str, size: int) -> tuple[Camera, CArm]:
    """The device's camera, of at most `size` pixels on the longest side, and it at the angles and isocentre of `arm`.

    Raises PhysicsError where the device cannot reach those angles.
    """
    binning = max(1, math.ceil(max(device.height, device.width) / size))
    camera = device.camera(binning, view_from)
    return camera, device.carm(arm.isocenter, float(arm.primary), float(arm.secondary), float(arm.roll))
