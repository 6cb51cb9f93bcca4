"""What a CT is made of: HU to the partial densities of a few materials, in g/cm^3.

A partial density is the mass of one material per volume of the voxel; where a voxel is a mixture, several are above
zero. Along a ray they integrate to areal densities (g/cm^2), from which any beam's attenuation follows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from DiffDRRCore.errors import PhysicsError
from DiffDRRCore.imaging.attenuation import bone_attenuation, water_attenuation
from DiffDRRCore.imaging.volume import Volume
from DiffDRRCore.physics.materials import Material, material

METHODS = ("continuous", "thresholds")
SOFT_LIMIT_HU = 100.0  # muscle, organs and blood end below, trabecular bone begins above
_CT_ENERGY = 70.0  # keV, as `AttenuationMap`: the energy at which a CT's HU are taken
_AIR_HU, _BONE_HU = -800.0, 350.0  # DeepDRR's thresholds


@dataclass(frozen=True)
class Composition:
    """Materials, and for each its partial density [K, J, I] in g/cm^3 on the volume's grid."""

    materials: tuple[Material, ...]
    densities: tuple[Tensor, ...]
    ijk_to_ras: Tensor

    def attenuation(self, energy_kev: float) -> Tensor:
        """Linear attenuation [K, J, I] in 1/mm at one photon energy."""
        factors = [float(one.mass_attenuation(energy_kev)) / 10 for one in self.materials]
        return sum(factor * density for factor, density in zip(factors, self.densities, strict=True))


def decompose(
    volume: Volume, method: str = "continuous", labels: Mapping[int | str, Material | str] | None = None
) -> Composition:
    """The composition of a CT.

    Args:
        method: "continuous" (`water_and_bone`) or "thresholds" (`thresholds`, as DeepDRR does it).
        labels: material of labelled structures, by the label's number or name, whatever their HU: a contrast-filled
            vessel, an implant. Such a voxel has that material's own density.

    Raises PhysicsError for an unknown method, VolumeError for a label that the volume does not have.
    """
    if method not in METHODS:
        raise PhysicsError(f"The decomposition is {' or '.join(map(repr, METHODS))}, not {method!r}.")
    parts = (water_and_bone if method == "continuous" else thresholds)(volume.hu)
    for label, chosen in (labels or {}).items():
        parts = _replace(parts, _where(volume, label), material(chosen) if isinstance(chosen, str) else chosen)
    return Composition(tuple(parts), tuple(parts.values()), volume.ijk_to_ras)


def water_and_bone(hu: Tensor, soft_limit: float = SOFT_LIMIT_HU) -> dict[Material, Tensor]:
    """Partial densities of water and of cortical bone; continuous in the HU, so that noise makes no speckle.

    Up to `soft_limit` HU a voxel is water of density 1 + HU / 1000 (lung, fat, organs, muscle). Above, it is a mixture
    by volume of that densest soft tissue and of cortical bone, in the shares that give the voxel's HU at 70 keV; denser
    than cortical bone, it is compressed bone. At 70 keV the attenuation is that of `AttenuationMap` throughout.
    """
    water, bone = material("water"), material("cortical bone")
    mu_water, mu_bone = water_attenuation(_CT_ENERGY), bone_attenuation(_CT_ENERGY)
    hu_bone = 1000 * (mu_bone / mu_water - 1)
    share = ((hu - soft_limit) / (hu_bone - soft_limit)).clamp(min=0)
    soft = (1 + hu.clamp(max=soft_limit) / 1000).clamp(min=0) * (1 - share).clamp(min=0)
    compressed = (1 + hu.clamp(min=hu_bone) / 1000) / (1 + hu_bone / 1000)
    return {water: water.density * soft, bone: bone.density * share.clamp(max=1) * compressed}


def thresholds(hu: Tensor) -> dict[Material, Tensor]:
    """DeepDRR's decomposition: soft tissue above -800 HU, bone above 350 HU, with the densities of Schneider 1996.

    rho = max(min(1.030 + 0.001029 HU, 1.030 + 0.0005886 HU), 0) g/cm^3. The attenuation jumps by half at 350 HU at
    diagnostic energies, which `water_and_bone` does not.
    """
    density = torch.minimum(1.030 + 0.001029 * hu, 1.030 + 0.0005886 * hu).clamp(min=0)
    is_bone = hu > _BONE_HU
    is_soft = (hu > _AIR_HU) & ~is_bone
    return {
        material("air"): torch.where(is_soft | is_bone, 0.0, density),
        material("soft tissue"): torch.where(is_soft, density, 0.0),
        material("cortical bone"): torch.where(is_bone, density, 0.0),
    }


def _where(volume: Volume, label: int | str) -> Tensor:
    if volume.labels is None:
        raise PhysicsError("Materials were given for labels, but the volume has no labelmap.")
    number = volume.label_id(label) if isinstance(label, str) else int(label)
    inside = volume.labels == number
    if not bool(inside.any()):
        raise PhysicsError(f"No voxel has the label {label!r}, which was given a material.")
    return inside


def _replace(parts: dict[Material, Tensor], inside: Tensor, chosen: Material) -> dict[Material, Tensor]:
    emptied = {one: torch.where(inside, 0.0, density) for one, density in parts.items()}
    like = next(iter(parts.values()))
    before = emptied.get(chosen, torch.zeros_like(like))
    return {**emptied, chosen: torch.where(inside, chosen.density, before)}
