"""X-ray spectra: tungsten tubes with filters, tables of one's own, single energies."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from DiffDRRCore.errors import PhysicsError, ReadError
from DiffDRRCore.files import read_text
from DiffDRRCore.geometry.tensors import as_tensor
from DiffDRRCore.physics.elements import HIGHEST, LOWEST
from DiffDRRCore.physics.materials import Material, material
from DiffDRRCore.physics.quadrature import compress
from DiffDRRCore.physics.tube import HIGHEST_ANGLE, LOWEST_ANGLE, emission

FILTRATION: Mapping[str, float] = MappingProxyType({"Al": 2.5})  # mm, the least that IEC 60601-1-3 allows
ANODE_ANGLE = 12.0  # degrees
_WIDEST = 45.0  # degrees off the central ray
_KEV_IN_JOULE = 1.602176634e-16
_DARK = 1e-9  # a filter that leaves less of the air kerma than this is a mistake


@dataclass(frozen=True, eq=False)
class Spectrum:
    """How many photons of which energy come from the source, at 1 m from the focal spot, in vacuum.

    energies: [E] photon energies in keV, ascending, 5 to 160; where they stand for bins, those bins' centres
    photons:  [E] photons per bin (not per keV), mAs and cm2; for spectra of one's own, in the units that they have
    kvp:      peak voltage of the tube in kV, None where it is not known or there is no tube
    filtration: mm of each filter by its `Material`, the tube's own included; None where it is not known
    anode_angle: degrees between the anode's surface and the central ray; None where it is not known

    Energies and photons are float64 on the CPU. The last three say where the beam comes from, which the models of
    scatter and of the heel effect want to know; `tungsten` fills them in, and `filtered` goes on with the filters.
    Raises PhysicsError for other shapes, orders and energies, negative bins, and a spectrum without photons.
    """

    energies: Tensor
    photons: Tensor
    kvp: float | None = None
    filtration: Mapping[Material, float] | None = None
    anode_angle: float | None = None

    def __post_init__(self):
        for name in ("energies", "photons"):
            object.__setattr__(self, name, as_tensor(getattr(self, name)).detach().cpu().double())
        _check(self.energies, self.photons)

    @classmethod
    def tungsten(
        cls, kvp: float, filtration: Mapping[Material | str, float] = FILTRATION, anode_angle: float = ANODE_ANGLE
    ) -> Spectrum:
        """The spectrum of a tube with a tungsten anode, in the central ray.

        Args:
            kvp: peak voltage, 40 to 150 kV.
            filtration: mm of each filter, the tube's own included; {} is what leaves the anode itself.
            anode_angle: degrees between the anode's surface and the central ray, 1 to 36.

        The values are SpekPy's (see `tube`), with bins of 0.5 keV. Raises PhysicsError for what is out of range.
        """
        if not isinstance(filtration, Mapping):
            raise PhysicsError(f'Filtration is mm of each filter, such as {{"Al": 2.5}}, not {filtration!r}.')
        kvp, anode_angle = _number("The tube voltage", kvp, "kVp"), _number("The anode angle", anode_angle, "degrees")
        spectrum = cls(*emission(kvp, anode_angle), kvp, {}, anode_angle)
        for filter_material, mm in filtration.items():
            spectrum = spectrum.filtered(filter_material, mm)
        return spectrum

    @classmethod
    def monochromatic(cls, kev: float, photons: float = 1.0) -> Spectrum:
        """A single photon energy in keV."""
        return cls([kev], [photons])

    @classmethod
    def from_table(cls, energies, photons, kvp: float | None = None) -> Spectrum:
        """A spectrum from photons [E] per bin at energies [E] in keV."""
        return cls(energies, photons, kvp)

    @classmethod
    def read(cls, path: str | Path) -> Spectrum:
        """A spectrum from a text file: two columns, keV and photons per bin, parted by comma, semicolon or space.

        Lines that start with # and a first line of headings are passed over.
        Raises ReadError for a file that is not there or not such a table, PhysicsError as the class.
        """
        rows = _rows(Path(path))
        return cls(*np.asarray(rows, float).T)

    def filtered(self, filter_material: Material | str, mm: float) -> Spectrum:
        """This spectrum behind `mm` of a filter, in mm (Beer-Lambert; photons scattered by the filter are lost)."""
        filter_material = material(filter_material)
        mm = _number(f"The thickness of the {filter_material.name} filter", mm, "mm")
        if not (math.isfinite(mm) and mm >= 0):
            raise PhysicsError(f"The thickness of the {filter_material.name} filter must be 0 mm or more, not {mm:g}.")
        left = torch.exp(-filter_material.linear_attenuation(self.energies) * mm)
        if not (_kerma(self.energies, self.photons * left) > _DARK * self.air_kerma):
            raise PhysicsError(
                f"Behind the {filter_material.name} filter of {mm:g} mm there is nothing left of the beam: thickness "
                "is in mm."
            )
        filtration = self.filtration
        if filtration is not None:
            filtration = {**filtration, filter_material: filtration.get(filter_material, 0.0) + mm}
        return replace(self, photons=self.photons * left, filtration=filtration)

    def rebinned(self, width: float) -> Spectrum:
        """The same photons in bins of `width` keV, each at its photons' mean energy."""
        if not 0 < width < HIGHEST:
            raise PhysicsError(f"The width of bins must be above 0 and below {HIGHEST:g} keV, not {width}.")
        index = torch.unique((self.energies / width).floor().long(), return_inverse=True)[1]
        empty = self.energies.new_zeros(int(index.max()) + 1)
        photons = empty.index_add(0, index, self.photons)
        kept = photons > 0
        energy = empty.index_add(0, index, self.photons * self.energies)[kept] / photons[kept]
        return replace(self, energies=energy, photons=photons[kept])

    def compressed(self, count: int = 16, materials: Iterable[Material | str] = ()) -> Spectrum:
        """A spectrum of about `count` energies with which materials transmit as with this one.

        Gauss quadrature: sums over functions that are smooth in energy hold, so number, mean energy and so on are
        kept. Attenuation jumps at absorption edges; give the `materials` that are to come into the beam (and the
        detector's), and the energies are chosen apart below and above each of their edges. 16 energies in place of
        170 (90 kVp) change the transmission of 40 cm of water, 10 cm of bone, 2 cm of titanium and 0.1 mm of tungsten
        by less than 1e-4 of itself. (Where edges part the range into more pieces than `count`, each has one energy.)
        """
        if count < 1:
            raise PhysicsError(f"A spectrum has at least one energy, not {count}.")
        breaks = [edge for one in materials for edge in material(one).edges]
        energies, photons = compress(self.energies.numpy(), self.photons.numpy(), count, breaks)
        return replace(self, energies=torch.from_numpy(energies), photons=torch.from_numpy(photons))

    @property
    def mean_energy(self) -> float:
        """Mean photon energy in keV."""
        return float((self.energies * self.photons).sum() / self.photons.sum())

    @property
    def air_kerma(self) -> float:
        """Air kerma at 1 m without the air between, in uGy per mAs (for spectra of one's own: per their unit)."""
        return _kerma(self.energies, self.photons)

    @property
    def homogeneity(self) -> float:
        """First over second half-value layer of aluminium, at most 1."""
        return self.half_value_layer(1) / self.half_value_layer(2)

    def half_value_layer(self, number: int = 1, filter_material: Material | str = "Al") -> float:
        """The thickness in mm that halves the air kerma (narrow beam); `number` 2: that halves it once more."""
        if number < 1:
            raise PhysicsError(f"Half-value layers are counted from 1, not {number}.")
        before = self._layer(0.5 ** (number - 1), material(filter_material))
        return self._layer(0.5**number, material(filter_material)) - before

    def _layer(self, share: float, filter_material: Material) -> float:
        """The mm that leave `share` of the air kerma: Newton's method on its logarithm, which is convex."""
        mu = filter_material.linear_attenuation(self.energies)
        kerma = self.energies * self.photons * material("air").mass_energy_absorption(self.energies)
        mm, step = 0.0, math.inf
        while abs(step) > 1e-10 * max(mm, 1e-3):
            left = kerma * torch.exp(-mu * mm)
            step = float(torch.log(left.sum() / kerma.sum() / share) * left.sum() / (mu * left).sum())
            mm += step
        return mm


def heel_factor(
    kvp: float,
    anode_angle: float,
    off_axis_degrees,
    filtration: Mapping[Material | str, float] = FILTRATION,
) -> Tensor:
    """Air kerma of rays off the central one over that of the central ray, at equal distance (the heel effect).

    Args:
        off_axis_degrees: angle to the central ray in the plane of anode and cathode, -45 to 45, any shape; above 0
            towards the anode, which takes up more of what it emits there. Each takes about 2 ms: for an image, take
            some and interpolate.
        filtration: mm of each filter, flat and across the central ray, so that rays at an angle cross more of it.

    Returns float64 of that shape; 0 where the anode's surface hides the focal spot. Below 1 degree of take-off it is a
    straight line to that, above 36 it stays. The inverse square of the distance and the detector's tilt are not in it.
    """
    off_axis = as_tensor(off_axis_degrees).detach().cpu().double()
    if not bool((off_axis.abs() <= _WIDEST).all()):
        raise PhysicsError(f"Rays are at most {_WIDEST:g} degrees off the central one, here {off_axis.tolist()}.")
    central = Spectrum.tungsten(kvp, filtration, anode_angle).air_kerma
    values = [_off_axis_kerma(kvp, anode_angle, one, filtration) for one in off_axis.flatten().tolist()]
    return (torch.tensor(values, dtype=torch.float64) / central).reshape(off_axis.shape)


def _off_axis_kerma(kvp: float, anode_angle: float, off_axis: float, filtration: Mapping) -> float:
    take_off = anode_angle - off_axis
    longer = 1 / math.cos(math.radians(off_axis))
    filtration = {one: mm * longer for one, mm in filtration.items()}
    in_table = min(max(take_off, LOWEST_ANGLE), HIGHEST_ANGLE)
    shown = min(max(take_off / LOWEST_ANGLE, 0.0), 1.0)
    return shown * Spectrum.tungsten(kvp, filtration, in_table).air_kerma


def _number(what: str, value, unit: str) -> float:
    if not isinstance(value, (str, bytes)):
        with suppress(TypeError, ValueError):
            return float(value)
    raise PhysicsError(f"{what} is a number of {unit}, not {value!r}.")


def _kerma(energies: Tensor, photons: Tensor) -> float:
    """uGy of photons per cm2: keV/g in J/kg."""
    per_gram = (energies * photons * material("air").mass_energy_absorption(energies)).sum()
    return float(per_gram) * _KEV_IN_JOULE * 1000 * 1e6


def _check(energies: Tensor, photons: Tensor) -> None:
    if energies.ndim != 1 or energies.shape != photons.shape or not len(energies):
        raise PhysicsError(
            f"A spectrum has as many energies as photon numbers, [E] each, not {list(energies.shape)} and "
            f"{list(photons.shape)}."
        )
    if not (bool((energies >= LOWEST).all()) and bool((energies <= HIGHEST).all())):
        hint = " (electronvolts? divide by 1000)" if float(energies.max()) > 1000 else ""
        raise PhysicsError(
            f"The energies of a spectrum must lie between {LOWEST:g} and {HIGHEST:g} keV, not {float(energies[0]):g} "
            f"to {float(energies[-1]):g}{hint}."
        )
    if not bool((energies.diff() > 0).all()):
        raise PhysicsError("The energies of a spectrum must ascend, each once.")
    wrong = ~((photons >= 0) & photons.isfinite())
    if bool(wrong.any()):
        at = int(wrong.nonzero()[0])
        raise PhysicsError(
            f"A spectrum cannot have {float(photons[at]):g} photons, as it has at {float(energies[at]):g} keV: set "
            "such bins to 0."
        )
    if not float(photons.sum()) > 0:
        raise PhysicsError("A spectrum needs photons at one energy at least, this one has none.")


def _rows(path: Path) -> list[list[float]]:
    numbered = enumerate(read_text(path, "table of a spectrum").splitlines(), 1)
    lines = [(number, line) for number, line in numbered if line.strip() and not line.lstrip().startswith("#")]
    rows: list[list[float]] = []
    for number, line in lines:
        try:
            energy, photons = (float(word) for word in re.split(r"[,;\s]+", line.strip())[:2])
            rows.append([energy, photons])
        except ValueError as error:
            if number > lines[0][0]:
                raise ReadError(f"Line {number} of {path} must be two numbers, keV and photons: {line!r}.") from error
    if not rows:
        raise ReadError(f"{path} has no lines of two numbers, keV and photons.")
    return rows
