"""A few spectra, drawn once, from which the images of a training take theirs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from DiffDRRCore.learning.data.draws import Draws
from DiffDRRCore.learning.data.subjects import materials
from DiffDRRCore.physics.detector import Detector
from DiffDRRCore.physics.materials import material
from DiffDRRCore.physics.simulation.ranges import Range
from DiffDRRCore.physics.spectra import FILTRATION, Spectrum

KVP, CSI_MM = 80.0, 0.6
_ENERGIES = 12
_CHUNK = 2**21  # exponentials at a time


class SpectraBank(NamedTuple):
    """S spectra on a detector with 0.6 mm of CsI, which integrates the energy; float32.

    coefficients  [S, 2, E] mass attenuation of water and bone in cm2/g, with the sign turned
    weights       [S, E, 2] shares of the energies in the signal and in its variance, each with the sum 1
    variance      [S] of the signal of one photon of the open field, over its squared mean
    signal        [S] keV that a photon of the open field leaves on average
    per_kerma     [S] photons per mm2 and uGy
    """

    coefficients: Tensor
    weights: Tensor
    variance: Tensor
    signal: Tensor
    per_kerma: Tensor

    @classmethod
    def drawn(cls, ranges: Mapping[str, Range], count: int, draws: Draws) -> SpectraBank:
        """Of tubes with kvp (kV), aluminium and copper (mm, all filters together) of these ranges."""
        beam = [name for name in ("kvp", "aluminium", "copper") if name in ranges]
        count = count if any(len(set(ranges[name].numbers)) > 1 for name in beam) else 1
        values = {name: draws.of(ranges[name], count).tolist() for name in beam}
        rows = [_entries(**{name: value[n] for name, value in values.items()}) for n in range(count)]
        return cls(*(torch.stack(column).float() for column in zip(*rows, strict=True)))

    def to(self, device: torch.device) -> SpectraBank:
        """On another device."""
        return SpectraBank(*(part.to(device) for part in self))

    def transmitted(self, areal: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Signal and its variance [B, H, W], each over that of the open field.

        Args:
            areal: [2, B, H, W] in g/cm2.
            index: [B], which spectrum each image has.
        """
        coefficients, weights = self.coefficients[index], self.weights[index]
        flat = areal.flatten(2).permute(1, 2, 0)
        rows = max(1, _CHUNK // (flat.shape[0] * coefficients.shape[-1]))
        parts = [
            torch.bmm(torch.bmm(part, coefficients).clamp_(min=-40).exp_(), weights) for part in flat.split(rows, dim=1)
        ]
        first, second = torch.cat(parts, dim=1).unbind(-1)
        return first.view(areal.shape[1:]), second.view(areal.shape[1:])


def _entries(kvp: float = KVP, aluminium: float | None = None, copper: float = 0.0) -> tuple[Tensor, ...]:
    filtration = {"Al": FILTRATION["Al"] if aluminium is None else aluminium, "Cu": copper}
    full = Spectrum.tungsten(kvp, filtration)
    beam = full.compressed(_ENERGIES, ["CsI"])
    detector = Detector.scintillating(material("CsI").mass_attenuation, CSI_MM)
    share = beam.photons / beam.photons.sum()
    first, second = (share * one for one in detector.weights(beam.energies))
    signal = first.sum()
    coefficients = -torch.stack([one.mass_attenuation(beam.energies) for one in materials()])
    weights = torch.stack([first / signal, second / second.sum()], dim=-1)
    room = _ENERGIES - len(beam.energies)  # of energies without weight, so that all have the same number
    coefficients, weights = (
        torch.nn.functional.pad(coefficients, (0, room)),
        torch.nn.functional.pad(weights, (0, 0, 0, room)),
    )
    return coefficients, weights, second.sum() / signal**2, signal, full.photons.sum() / full.air_kerma / 100
