"""From Hounsfield units to linear attenuation and back."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from DiffDRRCore.errors import VolumeError
from DiffDRRCore.geometry.tensors import as_tensor

# Total mass attenuation coefficients (coherent scattering included), cm^2/g, by photon energy in keV. Water is H2O,
# bone ICRU-44 cortical bone (weight fractions H .034 C .155 N .042 O .435 Na .001 Mg .002 P .103 S .003 Ca .225). At
# 30, 40, 50, 60, 80, 100 and 150 keV these are the numbers of Hubbell and Seltzer (NISTIR 5632); the energies between
# are from Elam, Ravel and Sieber (Radiat. Phys. Chem. 63, 2002; xraydb), which agrees in all four digits where both
# have a value. Log-log interpolation between these energies is off by at most 0.7 %.
_ENERGY = (30, 35, 40, 45, 50, 55, 60, 65, 70, 75, 80, 90, 100, 110, 120, 135, 150)
_WATER = (
    *(0.3756, 0.3075, 0.2683, 0.2436, 0.2269, 0.2149, 0.2059, 0.1987, 0.1929),
    *(0.1879, 0.1837, 0.1766, 0.1707, 0.1657, 0.1614, 0.1556, 0.1505),
)
_BONE = (
    *(1.3311, 0.9061, 0.6655, 0.5189, 0.4242, 0.3601, 0.3148, 0.2818, 0.2570),
    *(0.2379, 0.2229, 0.2008, 0.1855, 0.1743, 0.1656, 0.1557, 0.1480),
)
_WATER_DENSITY = 1.00  # g/cm^3
_BONE_DENSITY = 1.92  # g/cm^3, ICRU-44 cortical bone
_CT_ENERGY = 70.0  # keV: about the effective energy of a 120 kVp CT, the energy at which a CT's HU are taken
_AIR_HU = -1000.0
_AIR_RAMP_HU = 100.0


def water_attenuation(energy_kev: float) -> float:
    """Linear attenuation of water in 1/mm at `energy_kev` (30 to 150 keV), log-log interpolated."""
    return _interpolate(energy_kev, _WATER) * _WATER_DENSITY / 10


def bone_attenuation(energy_kev: float) -> float:
    """Linear attenuation of ICRU-44 cortical bone (1.92 g/cm^3) in 1/mm at `energy_kev` (30 to 150 keV)."""
    return _interpolate(energy_kev, _BONE) * _BONE_DENSITY / 10


def _interpolate(energy_kev: float, coefficients: tuple[float, ...]) -> float:
    if not _ENERGY[0] <= energy_kev <= _ENERGY[-1]:
        raise VolumeError(
            f"The effective energy must lie between {_ENERGY[0]} and {_ENERGY[-1]} keV, not {energy_kev} keV."
        )
    return math.exp(np.interp(math.log(energy_kev), np.log(_ENERGY), np.log(coefficients)))


@dataclass(frozen=True)
class AttenuationMap:
    """The map from HU to linear attenuation mu in 1/mm at one effective energy, and back.

    Water and below:  mu = mu_water(E) (1 + HU / 1000), the definition of the HU.
    Above water:      mu = mu_water(E) + bone_contrast * slope * HU,
                      slope = (mu_bone(E) - mu_water(E)) / HU_bone,
    where HU_bone (1558) is what cortical bone has in a CT at 70 keV. So at 70 keV and contrast 1 the map is the
    definition of the HU throughout; at lower energies bone stands out more, at higher ones less. The map is
    continuous, monotone, absolute and differentiable, and has no upper limit: metal stays metal.

    energy_kev:     effective energy of the X-ray beam, 30 to 150 keV
    bone_contrast:  factor on the slope above water, > 0
    air_cut:        HU, >= -1000; mu is 0 at and below it, then rises linearly over 100 HU to the line above. It removes
                    noise, table and clothes; the default leaves the line as it is.

    Raises VolumeError for values out of these ranges.
    """

    energy_kev: float = _CT_ENERGY
    bone_contrast: float = 1.0
    air_cut: float = _AIR_HU

    def __post_init__(self):
        water_attenuation(self.energy_kev)
        if not (math.isfinite(self.bone_contrast) and self.bone_contrast > 0):
            raise VolumeError(f"The bone contrast must be a positive number, not {self.bone_contrast}.")
        if not (math.isfinite(self.air_cut) and self.air_cut >= _AIR_HU):
            raise VolumeError(f"The air cut must be {_AIR_HU:g} HU or more, not {self.air_cut}.")

    @property
    def mu_water(self) -> float:
        """Attenuation of water in 1/mm."""
        return water_attenuation(self.energy_kev)

    @property
    def bone_slope(self) -> float:
        """Rise of mu per HU above water, 1/mm, `bone_contrast` included."""
        bone_hu = 1000 * (bone_attenuation(_CT_ENERGY) / water_attenuation(_CT_ENERGY) - 1)
        return self.bone_contrast * (bone_attenuation(self.energy_kev) - self.mu_water) / bone_hu

    def __call__(self, hu) -> Tensor:
        """Attenuation in 1/mm, >= 0, of HU values of any shape; gradients flow."""
        hu = as_tensor(hu)
        mu = self._line(hu)
        if self.air_cut > _AIR_HU:
            mu = torch.where(hu < self._ramp_end, (hu - self.air_cut) * self._ramp_slope, mu)
        return mu.clamp_min(0)

    def inverse(self, mu) -> Tensor:
        """The HU that have the attenuation `mu` (1/mm, >= 0); of all that have none, `air_cut`."""
        mu = as_tensor(mu)
        excess = (mu - self.mu_water).clamp_min(0)
        hu = (mu - excess) * (1000 / self.mu_water) + _AIR_HU + excess / self.bone_slope
        if self.air_cut > _AIR_HU:
            hu = torch.where(mu < self._ramp_slope * _AIR_RAMP_HU, self.air_cut + mu / self._ramp_slope, hu)
        return hu

    def _line(self, hu: Tensor) -> Tensor:
        # Written around -1000 HU, so that air is exactly 0 in any precision.
        per_hu = self.mu_water / 1000
        return (hu - _AIR_HU) * per_hu + hu.clamp_min(0) * (self.bone_slope - per_hu)

    @property
    def _ramp_end(self) -> float:
        return self.air_cut + _AIR_RAMP_HU

    @property
    def _ramp_slope(self) -> float:
        return float(self._line(torch.tensor(self._ramp_end, dtype=torch.float64))) / _AIR_RAMP_HU
