"""Materials and how much they attenuate X-rays, from 5 to 160 keV."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache

import numpy as np
import torch
from torch import Tensor

from DiffDRRCore.errors import PhysicsError
from DiffDRRCore.geometry.tensors import as_tensor
from DiffDRRCore.physics.elements import (
    HIGHEST,
    LOWEST,
    PARTS,
    TABLES,
    atomic_number,
    cross_section,
    edges,
    energy_transfer,
    mass_fractions,
)

_DENSEST = 30.0  # g/cm3; osmium has 22.6
_ROUNDING = 5e-3  # by which published mass fractions may miss 1
_CONTRAST = re.compile(r"(?P<of>.+?) with (?P<amount>\d+(\.\d+)?) mg/ml iodine")


@dataclass(frozen=True)
class Material:
    """What a thing is made of.

    name:      as shown to people
    density:   g/cm3
    fractions: share of the mass by element symbol; they add up to 1 (published tables' rounding is evened out)

    Energies are photon energies in keV, a number or a tensor of any shape; results are float64 of that shape.
    Raises PhysicsError for densities and fractions that cannot be and unknown elements; its methods, for energies
    outside 5 to 160 keV.
    """

    name: str
    density: float
    fractions: Mapping[str, float] = field(hash=False)

    def __post_init__(self):
        if not 0 < self.density < _DENSEST:
            raise PhysicsError(
                f"The density of {self.name} must be above 0 and below {_DENSEST:g} g/cm3, not {self.density}."
            )
        total = sum(self.fractions.values())
        if not abs(total - 1) <= _ROUNDING or min(self.fractions.values()) < 0:
            shown = ", ".join(f"{symbol} {share:g}" for symbol, share in self.fractions.items()) or "none"
            raise PhysicsError(f"The mass fractions of {self.name} must be 0 or more and add up to 1, not {shown}.")
        for symbol in self.fractions:
            atomic_number(symbol)
        object.__setattr__(self, "fractions", {symbol: share / total for symbol, share in self.fractions.items()})

    @classmethod
    def from_formula(cls, formula: str, density: float, name: str | None = None) -> Material:
        """A compound by a formula without brackets, such as "Al2O3", and its density in g/cm3."""
        return cls(name or formula, density, mass_fractions(formula))

    @classmethod
    def mixture(
        cls, parts: Mapping[Material | str, float], name: str | None = None, density: float | None = None
    ) -> Material:
        """A mixture by the share of the mass of each part; the shares add up to 1.

        density: g/cm3; by default volumes add up, as in 1 / sum(share / density).
        """
        mixed = {material(part): share for part, share in parts.items()}
        fractions: dict[str, float] = {}
        for part, share in mixed.items():
            for symbol, fraction in part.fractions.items():
                fractions[symbol] = fractions.get(symbol, 0.0) + share * fraction
        name = name or " + ".join(f"{share:g} {part.name}" for part, share in mixed.items())
        if density is None:
            volume = sum(share / part.density for part, share in mixed.items())
            density = 1 / volume if volume else math.nan
        return cls(name, density, fractions)

    def with_iodine(self, mg_per_ml: float) -> Material:
        """This material with `mg_per_ml` milligrams of iodine in each millilitre (cm3); its own volume is unchanged.

        Contrast agents hold 150 to 400 mg/ml, and a vessel filled with one about that, diluted by blood.
        """
        if not 0 <= mg_per_ml <= 1000:
            raise PhysicsError(f"The iodine must be 0 to 1000 mg/ml, not {mg_per_ml}; for g/ml multiply by 1000.")
        density = self.density + mg_per_ml / 1000
        shares = {self: self.density / density, material("iodine"): mg_per_ml / 1000 / density}
        return Material.mixture(shares, f"{self.name} with {mg_per_ml:g} mg/ml iodine", density)

    def with_density(self, density: float) -> Material:
        """The same composition at another density in g/cm3."""
        return Material(self.name, density, self.fractions)

    def mass_attenuation(self, energies, parts: tuple[str, ...] = PARTS) -> Tensor:
        """Mass attenuation coefficient in cm2/g; by default with coherent scattering, as in NIST's tables.

        parts: of "photo", "coherent" and "incoherent", those that count.
        """
        if not parts or not set(parts) <= set(PARTS):
            raise PhysicsError(f"The parts of an attenuation are {', '.join(map(repr, PARTS))}, not {parts!r}.")
        return self._summed(energies, lambda symbol, kev: sum(cross_section(symbol, kev, part) for part in parts))

    def linear_attenuation(self, energies) -> Tensor:
        """Linear attenuation coefficient in 1/mm (not 1/cm), at this material's density."""
        return self.mass_attenuation(energies) * (self.density / 10)

    def mass_energy_absorption(self, energies) -> Tensor:
        """Mass energy-absorption coefficient in cm2/g: what turns energy fluence into kerma and dose.

        Photoelectric absorption less K and L fluorescence, plus the recoil of incoherent scattering. Bremsstrahlung of
        the electrons (below 0.1 % for light elements) is not taken off. Within 0.4 % of NIST's values for air, water,
        bone, Al and Cu; heavy elements just above their edges within 10 %.
        """
        return self._summed(energies, energy_transfer)

    @property
    def edges(self) -> tuple[float, ...]:
        """Absorption edges from 5 to 160 keV, ascending."""
        return tuple(sorted(edge for symbol, share in self.fractions.items() if share > 0 for edge in edges(symbol)))

    def _summed(self, energies, coefficient: Callable[[str, np.ndarray], np.ndarray]) -> Tensor:
        energies = as_tensor(energies)
        kev = energies.detach().cpu().double().numpy()
        if not np.all((kev >= LOWEST) & (kev <= HIGHEST)):
            wrong = float(kev[~((kev >= LOWEST) & (kev <= HIGHEST))].flat[0])
            raise PhysicsError(f"Photon energies must lie between {LOWEST:g} and {HIGHEST:g} keV, not {wrong:g} keV.")
        total = sum(share * coefficient(symbol, kev) for symbol, share in self.fractions.items())
        return torch.from_numpy(np.asarray(total)).to(energies.device)


def material(name: str | Material) -> Material:
    """A material by its name ("cortical bone", "Al", "steel"; see `material_names`); a Material is returned as it is.

    "blood with 15 mg/ml iodine" is `material("blood").with_iodine(15)`, and so on for any material and amount.
    Compositions and densities are those of ICRU Report 44 for tissues, and of NIST and ASTM for others;
    tables/materials.json says which. Raises PhysicsError for an unknown name, with the nearest ones.
    """
    if isinstance(name, Material):
        return name
    if (contrast := _CONTRAST.fullmatch(str(name).strip())) is not None:
        return material(contrast["of"]).with_iodine(float(contrast["amount"]))
    found = _by_name().get(_plain(str(name)))
    if found is None:
        near = get_close_matches(_plain(str(name)), list(_by_name()), n=3, cutoff=0.5) or ["water", "cortical bone"]
        hint = ", ".join(repr(_by_name()[one].name) for one in near)
        raise PhysicsError(
            f"There is no material {name!r}: take one such as {hint}, or make one with Material(name, density, "
            "fractions)."
        )
    return found


def material_names() -> tuple[str, ...]:
    """The names that `material` knows, without their aliases, and three of blood with contrast agent."""
    contrast = (f"blood with {amount} mg/ml iodine" for amount in (5, 15, 50))
    return (*dict.fromkeys(one.name for one in _by_name().values()), *contrast)


@cache
def _by_name() -> dict[str, Material]:
    """The materials by plain name and alias."""
    table = json.loads((TABLES / "materials.json").read_text(encoding="utf-8"))
    found: dict[str, Material] = {}
    for name, entry in table.items():
        fractions = entry["fractions"] if "fractions" in entry else mass_fractions(entry["formula"])
        made = Material(name, entry["density"], fractions)
        found |= {_plain(one): made for one in (name, *entry.get("aliases", ()))}
    return found


def _plain(name: str) -> str:
    return " ".join(name.lower().replace("_", " ").replace("-", " ").split())
