"""What a CT is made of: HU to the partial densities of a few materials, in g/cm^3.

A partial density is the mass of one material per volume of the voxel; where a voxel is a mixture, several are above
zero. Along a ray they integrate to areal densities (g/cm^2), from which any beam's attenuation follows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from DiffDRRCore.errors import PhysicsError
from DiffDRRCore.geometry.tensors import transform_points
from DiffDRRCore.imaging.volume import Volume
from DiffDRRCore.physics.materials import Material, material

METHODS = ("continuous", "thresholds")
SOFT_LIMIT_HU = 100.0  # muscle, organs and blood end below, trabecular bone begins above
_CT_ENERGY = 70.0  # keV, as `AttenuationMap`: the energy at which a CT's HU are taken
_AIR_HU, _BONE_HU = -800.0, 350.0  # DeepDRR's thresholds
_MATTER = 0.1  # g/cm3, -900 HU: less is air, or the noise of air


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

    def where(self, kept: Tensor) -> Composition:
        """Only what lies in the voxels `kept` [K, J, I]."""
        densities = tuple(torch.where(kept, density, 0.0) for density in self.densities)
        return Composition(self.materials, densities, self.ijk_to_ras)

    @property
    def density(self) -> Tensor:
        """All of them together [K, J, I], g/cm^3."""
        return sum(self.densities)


def decompose(
    volume: Volume, method: str = "continuous", labels: Mapping[int | str, Material | str] | None = None
) -> Composition:
    """The composition of a CT.

    Args:
        method: "continuous" (`water_and_bone`) or "thresholds" (`thresholds`, as DeepDRR does it).
        labels: material of labelled structures, by the label's number or name, whatever their HU: a contrast-filled
            vessel, an implant. Such a voxel has that material's own density.

    Raises PhysicsError for an unknown method or material, and for a label that the volume does not have.
    """
    if method not in METHODS:
        raise PhysicsError(f"The decomposition is {' or '.join(map(repr, METHODS))}, not {method!r}.")
    parts = (water_and_bone if method == "continuous" else thresholds)(volume.hu)
    for label, chosen in (labels or {}).items():
        parts = _replace(parts, _where(volume, label), material(chosen))
    return Composition(tuple(parts), tuple(parts.values()), volume.ijk_to_ras)


def decompose_together(
    volumes: Sequence[Volume], method: str = "continuous", labels: Mapping[int | str, Material | str] | None = None
) -> list[Composition]:
    """The compositions of several CTs in one place, in which no matter lies twice: the later replaces the earlier.

    A volume replaces those before it in the voxels where it has matter (above 0.1 g/cm3, which is -900 HU) or a label
    other than 0: label the cavities that are to displace what is below. Its air, and whatever else is outside, neither
    counts nor displaces. Each grid stays as it is; a voxel of an earlier volume is emptied where its centre falls into
    such a voxel of a later one, so the border between them is right to half a voxel of the earlier.

    Args:
        method, labels: as of `decompose`. A label counts in all volumes that have it; at least one must.
    """
    labels = labels or {}
    for label in labels:
        if volumes and not any(_has(volume, label) for volume in volumes):
            _where(volumes[0], label)  # raises
    parts = [
        decompose(volume, method, {label: one for label, one in labels.items() if _has(volume, label)})
        for volume in volumes
    ]
    masks = [_matter(volume, part) for volume, part in zip(volumes[1:], parts[1:], strict=True)]
    result = []
    for index, part in enumerate(parts):
        kept = masks[index - 1].clone() if index else torch.ones_like(part.densities[0], dtype=torch.bool)
        for later, mask in zip(parts[index + 1 :], masks[index:], strict=True):
            kept &= ~_seen_from(part, later, mask)
        result.append(part if bool(kept.all()) else part.where(kept))
    return result


def water_and_bone(hu: Tensor, soft_limit: float = SOFT_LIMIT_HU) -> dict[Material, Tensor]:
    """Partial densities of water and of cortical bone; continuous in the HU, so that noise makes no speckle.

    Up to `soft_limit` HU a voxel is water of density 1 + HU / 1000 (lung, fat, organs, muscle). Above, it is a mixture
    by volume of that densest soft tissue and of cortical bone, in the shares that give the voxel's HU at 70 keV; denser
    than cortical bone, it is compressed bone. At 70 keV the attenuation is mu_water (1 + HU / 1000) throughout, the
    definition of the HU; so it is that of `AttenuationMap`, up to the digits of the two tables (3e-4).
    """
    water, bone = material("water"), material("cortical bone")
    ratio = float(bone.linear_attenuation(_CT_ENERGY) / water.linear_attenuation(_CT_ENERGY))
    hu_bone = 1000 * (ratio - 1)
    share = ((hu - soft_limit) / (hu_bone - soft_limit)).clamp(min=0)
    # Written around -1000 HU, so that air is exactly 0 in any precision.
    soft = (hu.clamp(max=soft_limit) + 1000).clamp(min=0) * (water.density / 1000) * (1 - share).clamp(min=0)
    compressed = (1000 + hu.clamp(min=hu_bone)) / (1000 + hu_bone)
    return {water: soft, bone: bone.density * share.clamp(max=1) * compressed}


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


def _has(volume: Volume, label: int | str) -> bool:
    if volume.labels is None or (isinstance(label, str) and label not in volume.label_names.values()):
        return False
    return bool((volume.labels == _number(volume, label)).any())


def _matter(volume: Volume, part: Composition) -> Tensor:
    matter = part.density.detach() > _MATTER
    return matter if volume.labels is None else matter | (volume.labels != 0)


def _seen_from(lower: Composition, upper: Composition, mask: Tensor) -> Tensor:
    """The mask of the upper grid at the voxel centres of the lower one, boolean [K, J, I]; nearest voxel."""
    between = torch.linalg.inv(upper.ijk_to_ras) @ lower.ijk_to_ras
    count, rows, columns = lower.densities[0].shape
    j, i = torch.meshgrid(
        *(torch.arange(n, dtype=torch.float64, device=mask.device) for n in (rows, columns)), indexing="ij"
    )
    size = torch.tensor(mask.shape[::-1], device=mask.device)
    slices = []
    for k in range(count):
        index = transform_points(between, torch.stack([i, j, torch.full_like(i, k)], dim=-1).reshape(-1, 3))
        nearest = (index + 0.5).floor().long()
        within = ((nearest >= 0) & (nearest < size)).all(dim=-1)
        x, y, z = nearest.clamp(min=torch.zeros_like(size), max=size - 1).unbind(dim=-1)
        slices.append((within & mask[z, y, x]).reshape(rows, columns))
    return torch.stack(slices)


def _number(volume: Volume, label: int | str) -> int:
    return volume.label_id(label) if isinstance(label, str) else int(label)


def _where(volume: Volume, label: int | str) -> Tensor:
    if volume.labels is None:
        raise PhysicsError("Materials were given for labels, but the volume has no labelmap.")
    inside = volume.labels == _number(volume, label)
    if not bool(inside.any()):
        raise PhysicsError(f"No voxel has the label {label!r}, which was given a material.")
    return inside


def _replace(parts: dict[Material, Tensor], inside: Tensor, chosen: Material) -> dict[Material, Tensor]:
    emptied = {one: torch.where(inside, 0.0, density) for one, density in parts.items()}
    like = next(iter(parts.values()))
    before = emptied.get(chosen, torch.zeros_like(like))
    return {**emptied, chosen: torch.where(inside, chosen.density, before)}
