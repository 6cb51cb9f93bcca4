"""How the X-rays of a training look: the physics of the simulator, drawn anew for each image, a batch at a time.

Ranges, as of `physics.simulation.ranges`, of

    kvp, aluminium, copper   kV, and mm of the filters, the tube's own included
    bone_contrast            factor on what is above 100 HU: denser or thinner bone
    photons                  per pixel in the open field; or dose, uGy at the detector. Without both there is no noise
    electronic               keV per pixel, standard deviation of the read-out's noise
    focal_spot               mm, full width at half maximum
    blur                     mm at the detector, full width at half maximum of its (Gaussian) spread
    scatter                  factor on what `physics.Scatter` has for 200 mm between patient and detector, without grid
    blades                   what each of four blades covers, as a share of the image's side
    aperture                 radius of a round field, as a share of half the image's shorter side

What is left out is off. The detector is one of CsI that integrates the energy. All of it happens in the order of the
`Simulator`, on the device of what it is made from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from DiffDRRCore.errors import LearningError
from DiffDRRCore.imaging.exposure import eroded
from DiffDRRCore.imaging.preprocessing import FLOOR
from DiffDRRCore.learning.appearance.spectra_bank import KVP, SpectraBank
from DiffDRRCore.learning.data.draws import Draws
from DiffDRRCore.learning.data.subjects import materials
from DiffDRRCore.learning.data.views import Views
from DiffDRRCore.physics.decomposition import SOFT_LIMIT_HU
from DiffDRRCore.physics.scatter import Scatter, effective_attenuation, water_thickness
from DiffDRRCore.physics.simulation.ranges import Range, Ranges

DEFAULTS: dict[str, Any] = {
    "kvp": [60, 110],
    "aluminium": [2.5, 5.0],
    "copper": {"choice": [0.0, 0.0, 0.1, 0.3]},
    "bone_contrast": {"log_uniform": [0.7, 2.0]},
    "photons": {"log_uniform": [1e4, 1e6]},
    "focal_spot": [0.3, 1.2],
    "blur": [0.0, 2.0],
    "scatter": [0.0, 1.0],
    "blades": [0.0, 0.2],
    "aperture": [0.8, 1.2],
}
CHANCES = {"scatter": 0.5, "blades": 0.3, "aperture": 0.2}
SPECTRA = 32
_LEAKAGE = 1e-3  # of the blades
_FWHM = math.sqrt(8 * math.log(2))
_LIMITS = {
    "kvp": (40, 150),
    "aluminium": (0, 100),
    "copper": (0, 10),
    "bone_contrast": (0, 10),
    "photons": (1e-9, 1e9),
    "dose": (1e-9, 1e4),
    "electronic": (0, 1e9),
    "focal_spot": (0, 5),
    "blur": (0, 100),
    "scatter": (0, 10),
    "blades": (0, 0.4),
    "aperture": (0.1, 100),
}


class Appeared(NamedTuple):
    """Line integrals as a detector gives them, [B, 1, H, W], and where the beam is, [B, 1, H, W] bool.

    Without the pixels at the edge of what shields the others.
    """

    image: Tensor
    field: Tensor


class Appearance:
    """Makes X-ray images of areal densities.

    Args:
        ranges: of the names above.
        chances: {name: probability} of scatter, blades and aperture; 1 by default.

    Raises LearningError for names and values that cannot be.
    """

    def __init__(self, ranges: Ranges, chances: Mapping[str, float] | None = None):
        self.ranges, self.chances = ranges, {**dict.fromkeys(CHANCES, 1.0), **(chances or {})}
        for name in ranges.of:
            if name not in _LIMITS:
                raise LearningError(f"Appearance has no '{name}'; there are: {', '.join(tuple(_LIMITS))}.")
        for name, chance in self.chances.items():
            if name not in CHANCES or not 0 <= chance <= 1:
                raise LearningError(f"Chances are from 0 to 1, of {', '.join(CHANCES)}; got {name}: {chance}.")
        if "photons" in ranges.of and "dose" in ranges.of:
            raise LearningError("Give the appearance photons or a dose, not both.")
        _check_ends(ranges)
        self._banks: dict[torch.device, SpectraBank] = {}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any] | None = None) -> Appearance:
        """Of plain values: the ranges, and "chances"; None in place of a range switches it off.

        What is left out has its default (DEFAULTS, CHANCES). Raises PhysicsError, LearningError.
        """
        content = dict(content or {})
        chances = {**CHANCES, **(content.pop("chances", None) or {})}
        defaults = dict(DEFAULTS)
        if content.get("dose") is not None:
            del defaults["photons"]
        given = {name: value for name, value in {**defaults, **content}.items() if value is not None}
        return cls(Ranges.from_dict(given, tuple(_LIMITS)), chances)

    @property
    def bank(self) -> SpectraBank:
        """The spectra, on the CPU."""
        return self._bank(torch.device("cpu"))

    def __call__(self, areal: Tensor, views: Views, draws: Draws) -> Appeared:
        """X-rays of areal densities [2, B, H, W] in g/cm2; what is random is that of `draws`."""
        count, bank = areal.shape[1], self._bank(areal.device)
        index = self._indices(draws, count).to(areal.device, non_blocking=True)
        numbers = self._numbers(draws, count, areal)
        if "bone_contrast" in numbers:
            areal = with_bone_contrast(areal, numbers["bone_contrast"])
        mean, spread = primary, _ = bank.transmitted(areal.clamp(min=0), index)
        spacing = views.camera.pixel_spacing.to(areal)
        if "focal_spot" in numbers:
            width = numbers["focal_spot"] * (_magnification(views).to(areal) - 1).clamp(min=0)
            mean, spread = blurred(torch.stack([mean, spread]), width[:, None] / spacing / _FWHM)
        field = self._field(numbers, draws, mean)
        if field is not None:
            mean, spread = mean * field, spread * field
        if "scatter" in numbers:
            scatter = self._scatter(mean, primary, spacing, numbers["scatter"])
            mean, spread = mean + scatter, spread + scatter
        signal = self._noisy(mean, spread, numbers, bank, index, spacing, draws)
        inside = torch.ones_like(mean, dtype=torch.bool) if field is None else eroded(field > 0.5)
        return Appeared(-torch.log(signal.clamp(min=FLOOR))[:, None], inside[:, None])

    def _bank(self, device: torch.device) -> SpectraBank:
        if device not in self._banks:
            cpu = torch.device("cpu")
            if cpu not in self._banks:
                self._banks[cpu] = SpectraBank.drawn(self.ranges.of, SPECTRA, Draws("spectra"))
            self._banks[device] = self._banks[cpu].to(device)
        return self._banks[device]

    def _indices(self, draws: Draws, count: int) -> Tensor:
        most = len(self.bank.variance)
        return (draws.uniform("spectrum", count) * most).long().clamp(max=most - 1)

    def _numbers(self, draws: Draws, count: int, like: Tensor) -> dict[str, Tensor]:
        """[B] of each range, sent to the device together."""
        names = [name for name in self.ranges.of if name not in ("kvp", "aluminium", "copper", "blades")]
        names = [name for name in names if self.chances.get(name, 1) > 0]
        values = []
        for name in names:
            value = draws.of(self.ranges.of[name], count)
            if name in self.chances:
                off = math.inf if name == "aperture" else 0.0
                value = torch.where(draws.happens(f"{name} happens", count, self.chances[name]), value, off)
            values.append(value)
        sent = torch.stack(values).to(like.device, like.dtype, non_blocking=True) if values else []
        return dict(zip(names, sent, strict=True))

    def _field(self, numbers: Mapping[str, Tensor], draws: Draws, like: Tensor) -> Tensor | None:
        """The open field [B, H, W], 1 where nothing is in the way; None where nothing ever is."""
        count, height, width = like.shape
        parts = []
        if "blades" in self.ranges.of and self.chances["blades"] > 0:
            one = self.ranges.of["blades"]
            sides = [draws.of(Range(f"blades {n}", one.kind, one.numbers, one.within), count) for n in range(4)]
            happens = draws.happens("blades happen", count, self.chances["blades"])
            parts.append(blades(torch.stack(sides, dim=-1).where(happens[:, None], 0.0).to(like), height, width))
        if "aperture" in numbers:
            parts.append(aperture(numbers["aperture"] * min(height, width) / 2, height, width))
        return _LEAKAGE + (1 - _LEAKAGE) * math.prod(parts) if parts else None

    def _scatter(self, mean: Tensor, primary: Tensor, spacing: Tensor, factor: Tensor) -> Tensor:
        """Of the model for the middle of the tube voltages; pixels of the first image's size."""
        ends = self.ranges.of["kvp"].ends if "kvp" in self.ranges.of else (KVP,)
        kvp = min(max(sum(ends) / len(ends), 40.0), 150.0)
        thickness = water_thickness(primary, effective_attenuation(kvp))
        return factor[:, None, None] * Scatter(kvp).scattered(mean, thickness, tuple(spacing[0].tolist()))

    def _noisy(self, mean, spread, numbers, bank: SpectraBank, index, spacing: Tensor, draws: Draws) -> Tensor:
        """With quantum noise, the detector's blur and the noise of its read-out."""
        photons = numbers.get("photons")
        if "dose" in numbers:
            photons = numbers["dose"] * bank.per_kerma[index] * spacing.prod(dim=-1)
        signal = mean
        if photons is not None:
            variance = (bank.variance[index] / photons)[:, None, None] * spread
            signal = mean + variance.sqrt() * draws.normal("noise", mean)
        if "blur" in numbers:
            signal = blurred(signal, numbers["blur"][:, None] / spacing / _FWHM)
        if photons is not None and "electronic" in numbers:
            deviation = numbers["electronic"] / (photons * bank.signal[index])
            signal = signal + deviation[:, None, None] * draws.normal("electronic", mean)
        return signal


def with_bone_contrast(areal: Tensor, factor: Tensor) -> Tensor:
    """Areal densities [2, B, H, W] of a CT whose HU above 100 are stretched by a factor [B].

    Exact where that makes no voxel denser than cortical bone; `Setup.contrasted` is what it does to voxels.
    """
    water, bone = materials()
    displaced = (1 + SOFT_LIMIT_HU / 1000) * water.density / bone.density
    more = (factor - 1).to(areal)[:, None, None] * areal[1]
    return torch.stack([(areal[0] - displaced * more).clamp(min=0), areal[1] + more])


def blurred(images: Tensor, sigma: Tensor) -> Tensor:
    """Images [..., B, H, W] blurred by Gaussians of sigma [B, 2] (rows, columns) in pixels, mirrored at the edges."""
    height, width = images.shape[-2:]
    return _gaussian(sigma[:, 0], height) @ images @ _gaussian(sigma[:, 1], width).mT


def _gaussian(sigma: Tensor, size: int) -> Tensor:
    """[B, size, size], whose rows add up to 1."""
    place = torch.arange(size, dtype=sigma.dtype, device=sigma.device)
    near, mirrored = place[:, None] - place, place[:, None] + place + 1
    precision = 0.5 / sigma.clamp(min=1e-3).square()[:, None, None]
    # Numbers that underflow are slow
    kernel = sum((-precision * one.square()).clamp(min=-40).exp() for one in (near, mirrored, 2 * size - mirrored))
    return kernel / kernel.sum(dim=-1, keepdim=True)


def blades(covered: Tensor, height: int, width: int) -> Tensor:
    """The open part [B, H, W] behind blades that cover shares [B, 4] of the sides (top, bottom, left, right).

    An edge is as wide as a pixel.
    """
    y, x = (torch.arange(n, dtype=covered.dtype, device=covered.device) for n in (height, width))
    top, bottom, left, right = covered[..., None].unbind(1)
    down = (y + 1 - top * height).clamp(0, 1) * (height - y - bottom * height).clamp(0, 1)
    across = (x + 1 - left * width).clamp(0, 1) * (width - x - right * width).clamp(0, 1)
    return down[:, :, None] * across[:, None, :]


def aperture(radius: Tensor, height: int, width: int) -> Tensor:
    """The open part [B, H, W] of round fields of so many pixels' radius [B] about the image's centre."""
    y = torch.arange(height, dtype=radius.dtype, device=radius.device) - (height - 1) / 2
    x = torch.arange(width, dtype=radius.dtype, device=radius.device) - (width - 1) / 2
    return (radius[:, None, None] - torch.hypot(x, y[:, None]) + 0.5).clamp(0, 1)


def _magnification(views: Views) -> Tensor:
    """[B] of the frame's origin."""
    return views.camera.source_to_detector / views.pose.inverse().translation[:, 2]


def _check_ends(ranges: Ranges) -> None:
    for name, one in ranges.of.items():
        least, most = _LIMITS[name]
        if not (one.ends[0] >= least and one.ends[-1] <= most):
            raise LearningError(f"The range of {name} must lie within {least:g} and {most:g}, not {list(one.ends)}.")
