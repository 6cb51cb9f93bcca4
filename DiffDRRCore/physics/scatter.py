"""Scattered radiation, as a convolution of the primary image with kernels that depend on the thickness of the patient.

Each pencil of the beam that leaves the patient with the primary signal P makes a patch of scatter around itself:

    S(x) = sum over y of P(y) R(t(y)) K(x - y),      K(r) = w M(r; D / 6) + (1 - w) M(r; D)
    M(r; D) = 3 / (2 pi D^2) (1 + r^2 / D^2)^(-5/2)

R is the scatter-to-primary ratio (SPR) of an endless slab of water of thickness t in an endless field. M is what a
point source at the height D above the detector makes that radiates as cos^2, in the spirit of the effective scatter
source of Sorenson and Floch (Med. Phys. 12 (1985) 308); the small part w is scattered forward. D = width(t) (gap +
height(t)). M integrates to 1, and a round field of radius a sees 1 - (1 + a^2 / D^2)^(-3/2) of it: a gap takes scatter
out of the image.

Where the numbers come from: R, w and D are fits to a Monte Carlo simulation of pencil beams in water slabs (Compton
with the incoherent scattering function, coherent scattering with the form factors of H and O, photoelectric absorption;
cross sections of xraylib 4.3.0; tungsten spectra of SpekPy 2.5.4, 12 degrees, 3 mm Al; signal = energy absorbed in
0.25 g/cm2 of CsI), with statistical errors of R below 1.5 %. The scatter in the centre of round fields of 100 to 500 mm
agrees with the simulation to 0.03 on average and 0.13 at worst for 20 to 300 mm of water, gaps of 50 to 400 mm and 60
to 140 kVp. In round numbers, R at 100 kVp is 1.6, 4.3 and 8.5 for 100, 200 and 300 mm of water; a field of 300 x 300 mm
with a gap of 200 mm has 0.6, 1.6 and 2.8 in its centre. Measured without a grid: 4.51 behind 300 mm of acrylic in
a cone-beam CT (Altunbas et al., Med. Phys. 43 (2016) 3901); this model has 4.3 for 333 mm of water, 125 kVp, a field of
400 x 300 mm and a gap of 200 mm, and 2.5 for one of 350 mm.

Limits. Every pencil scatters as if it were in an endless slab of water of its own thickness: near the patient's skin,
at lung borders and beside metal the scatter is wrong by tens of per cent; bone scatters like water of the same
attenuation; with less than 50 mm of air the kernels are too blunt close to the pencil; scatter from table, detector
cover and blades is absent; nothing outside the image is taken to be irradiated. It has the right size and smoothness
for training data and for tests of robustness. It is no substitute for Monte Carlo where the scatter itself matters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, pad

from DiffDRRCore.errors import PhysicsError
from DiffDRRCore.geometry.tensors import as_tensor

THICKEST = 600.0
"""mm of water; more is taken for a mistake of units."""

_KVP = (60.0, 80.0, 100.0, 120.0, 140.0)
_THICKNESS = (0.0, 20.0, 50.0, 100.0, 150.0, 200.0, 250.0, 300.0, 400.0)  # mm of water
_RATIO = (  # SPR of the endless field, a row for each kVp
    (0.0, 0.248, 0.647, 1.414, 2.355, 3.519, 4.856, 6.453, 10.83),
    (0.0, 0.249, 0.670, 1.529, 2.610, 3.952, 5.590, 7.587, 12.43),
    (0.0, 0.254, 0.697, 1.612, 2.796, 4.323, 6.183, 8.498, 14.59),
    (0.0, 0.259, 0.716, 1.682, 2.975, 4.638, 6.653, 9.289, 16.32),
    (0.0, 0.265, 0.738, 1.753, 3.118, 4.857, 7.159, 10.05, 17.92),
)
_HEIGHT = (5.0, 12.8, 26.5, 48.0, 67.9, 86.3, 104.3, 121.0, 155.0)  # mm above the exit surface
_WIDTH = (1.53, 1.428, 1.271, 1.151, 1.085, 1.039, 1.003, 0.976, 0.927)  # per mm, at 100 kVp
_FORWARD = (0.124, 0.106, 0.079, 0.056, 0.043, 0.034, 0.027, 0.020, 0.011)
_WIDTH_BY_KVP = (0.88, 0.953, 1.0, 1.035, 1.065)
_NARROWER = 6  # the kernel of the forward part
_ATTENUATION = (0.02644, 0.02348, 0.02203, 0.02122, 0.02069)  # 1/mm, secant of -ln T at 200 mm, in the same simulation
_NODES = (50.0, 150.0, 250.0, 400.0)  # mm; kernels in between are mixtures
_STEPS_PER_WIDTH = 18  # of the coarse grid, in the narrowest kernel: 3 in its forward part
_LARGEST_GRID = 112
_SOURCE_BLOCK = 3.0  # mm
_NARROWEST = 20.0  # mm


@dataclass(frozen=True)
class Grid:
    """An anti-scatter grid: the fractions of primary and scatter that it lets through, 0 < scatter <= primary <= 1.

    The defaults were measured on a radiographic grid of ratio 10 at 125 kVp behind 300 mm of acrylic, 0.706 and 0.21
    (Altunbas et al., Med. Phys. 43 (2016) 3901); grids of ratio 12 to 15 reach about 0.1 of the scatter.
    """

    primary: float = 0.706
    scatter: float = 0.21

    def __post_init__(self):
        if not 0 < self.scatter <= self.primary <= 1:
            raise PhysicsError(
                "A grid lets through a part of the primary, and less than that of the scatter (0 to 1), "
                f"got {self.primary} and {self.scatter}."
            )


@dataclass(frozen=True)
class Scatter:
    """The scatter model of this module.

    kvp:      tube voltage in kV, 40 to 150; the tables cover 60 to 140, their ends are kept beyond
    air_gap:  mm from where the beam leaves the patient to the detector, 0 to 1500
    grid:     an anti-scatter grid, or None
    ratio:    None for the tables' SPR; or the SPR without grid in the centre of the image where a slab of uniform
              thickness covers it, whatever the thickness: a measured value

    Raises PhysicsError for values out of these ranges.
    """

    kvp: float = 80.0
    air_gap: float = 200.0
    grid: Grid | None = None
    ratio: float | None = None

    def __post_init__(self):
        _check_kvp(self.kvp)
        if not 0 <= self.air_gap <= 1500:
            raise PhysicsError(f"The air gap between patient and detector is 0 to 1500 mm, got {self.air_gap} mm.")
        if self.ratio is not None and not (math.isfinite(self.ratio) and self.ratio >= 0):
            raise PhysicsError(f"The scatter-to-primary ratio is 0 or more, got {self.ratio}.")

    def __call__(self, primary: Tensor, thickness: Tensor, pixel_spacing: tuple[float, float]) -> Tensor:
        """Primary and scatter together behind the grid, [..., H, W], in the units of the primary.

        The arguments are those of `scattered`.
        """
        scatter = self.scattered(primary, thickness, pixel_spacing)
        return primary + scatter if self.grid is None else self.grid.primary * primary + self.grid.scatter * scatter

    def scattered(self, primary: Tensor, thickness: Tensor, pixel_spacing: tuple[float, float]) -> Tensor:
        """The scatter alone in front of the grid, [..., H, W]; differentiable in primary and thickness.

        What each pencil scatters is computed on blocks of 3 mm, its spread on blocks an eighteenth as wide as the
        narrowest kernel; the result is interpolated, which is right to a few thousandths of the largest scatter.

        Args:
            primary: [..., H, W] >= 0, signal (or photons) of the primary beam, collimation included.
            thickness: [..., H, W] in mm of water (`water_thickness`), 0 to 600.
            pixel_spacing: (row_mm, col_mm) at the detector.

        Raises PhysicsError for negative or missing values, and thicknesses above 600 mm.
        """
        spacing = _checked(primary, thickness, pixel_spacing)
        fine = _blocks(primary.shape[-2:], spacing, _SOURCE_BLOCK)
        coarse_step = min(self.width(node) for node in _NODES) / _STEPS_PER_WIDTH
        more = _blocks(
            [size // n for size, n in zip(primary.shape[-2:], fine, strict=True)],
            [n * size for n, size in zip(fine, spacing, strict=True)],
            coarse_step,
        )
        factors = tuple(a * b for a, b in zip(fine, more, strict=True))
        sources = self._sources(_averaged(primary, fine, "constant"), _averaged(thickness, fine, "replicate"))
        coarse = _averaged(sources, more, "constant")
        step = tuple(factor * size for factor, size in zip(factors, spacing, strict=True))
        extent = tuple(size * one for size, one in zip(primary.shape[-2:], spacing, strict=True))
        kernels = torch.stack([self._kernel(node, coarse.shape[-2:], step, extent, coarse) for node in _NODES])
        return _interpolated(_convolved(coarse, kernels), factors, primary.shape).clamp(min=0)

    def width(self, thickness: float) -> float:
        """The width D in mm of the kernel's main part for a patient of `thickness` mm of water."""
        per_mm = _table(thickness, _THICKNESS, _WIDTH) * _table(self.kvp, _KVP, _WIDTH_BY_KVP)
        return max(_NARROWEST, per_mm * (self.air_gap + _table(thickness, _THICKNESS, _HEIGHT)))

    def round_field_share(self, thickness: float, radius: float) -> float:
        """What the centre of a round field of `radius` mm at the detector has of the SPR of an endless field."""
        forward, width = _table(thickness, _THICKNESS, _FORWARD), self.width(thickness)
        narrow, wide = (1 - (1 + (radius / d) ** 2) ** -1.5 for d in (width / _NARROWER, width))
        return forward * narrow + (1 - forward) * wide

    def _sources(self, primary: Tensor, thickness: Tensor) -> Tensor:
        """What each pencil scatters, shared out to the kernels of the next thicknesses: [n, ..., H, W]."""
        ratio = broad_beam_ratio(thickness, self.kvp) if self.ratio is None else self.ratio
        return primary * ratio * torch.stack(_shares(thickness))

    def _kernel(
        self, node: float, shape, step: tuple[float, float], extent: tuple[float, float], like: Tensor
    ) -> Tensor:
        """K times the area of a block at all offsets between blocks of the image, [2 h - 1, 2 w - 1].

        Where the user gives the ratio, what the centre of an image of `extent` mm sees of K is made 1.
        """
        y, x = (
            torch.arange(1 - count, count, dtype=torch.float64) * one for count, one in zip(shape, step, strict=True)
        )
        kernel = self._density(node, y, x, max(step)) * (step[0] * step[1])
        if self.ratio is not None:
            (y, dy), (x, dx) = (_from_center(*sizes) for sizes in zip(shape, step, extent, strict=True))
            kernel = kernel / (dy @ self._density(node, y, x, max(step)) @ dx)
        return kernel.to(like)

    def _density(self, node: float, y: Tensor, x: Tensor, least: float) -> Tensor:
        """K [rows, columns] per mm2 at the distances y [rows] and x [columns] in mm, no part narrower than `least`.

        Samples of M as far apart as it is wide add up to its integral within 1.4 %, closer ones to much less.
        """
        squared, forward, width = x.square() + y[:, None].square(), _table(node, _THICKNESS, _FORWARD), self.width(node)
        total = torch.zeros_like(squared)
        for part, d in ((forward, max(width / _NARROWER, least)), (1 - forward, max(width, least))):
            total = total + part * 1.5 / (math.pi * d**2) * (1 + squared / d**2).pow(-2.5)
        return total


def broad_beam_ratio(thickness, kvp: float) -> Tensor:
    """The SPR behind an endless slab of water in an endless field, no grid: [...] for `thickness` [...] in mm.

    From this module's table, linear in between; beyond 400 mm the last slope goes on. See the module's text for the
    source. Raises PhysicsError for a kvp that is not in 40 to 150 and thicknesses that are not in 0 to 600 mm.
    """
    _check_kvp(kvp)
    thickness = _checked_thickness(as_tensor(thickness))
    row = [_table(kvp, _KVP, column) for column in zip(*_RATIO, strict=True)]
    nodes, values = (torch.tensor(x, dtype=thickness.dtype, device=thickness.device) for x in (_THICKNESS, row))
    right = torch.searchsorted(nodes, thickness.detach().contiguous()).clamp(1, len(nodes) - 1)
    slope = (values[right] - values[right - 1]) / (nodes[right] - nodes[right - 1])
    return values[right - 1] + slope * (thickness - nodes[right - 1])


def effective_attenuation(kvp: float) -> float:
    """The mean attenuation of water in 1/mm of a beam of `kvp` kV (3 mm Al) through 200 mm, on a CsI detector."""
    _check_kvp(kvp)
    return _table(kvp, _KVP, _ATTENUATION)


def water_thickness(transmission: Tensor, mu: float) -> Tensor:
    """-ln(T) / mu in mm: how much water attenuates like what is in the beam; 0 to 600 mm, differentiable.

    Args:
        transmission: [...] primary signal over that of the open beam; 0 counts as 600 mm of water, above 1 as none.
        mu: effective attenuation of water in 1/mm (`effective_attenuation`).

    Raises PhysicsError for missing or negative transmissions and a mu that is not one of water in 1/mm.
    """
    if not 0.01 <= mu <= 0.1:
        raise PhysicsError(f"The effective attenuation of water is about 0.02 per mm, got {mu}: is it per cm?")
    if not _within(transmission, math.inf):
        raise PhysicsError("Transmission is 0 or more everywhere; this image has negative or missing values.")
    return -torch.log(transmission.clamp(math.exp(-mu * THICKEST), 1)).div(mu).clamp(max=THICKEST)


def _table(at: float, nodes, values) -> float:
    """Linear interpolation, the ends kept beyond."""
    at = min(max(at, nodes[0]), nodes[-1])
    index = next(i for i in range(1, len(nodes)) if at <= nodes[i])
    part = (at - nodes[index - 1]) / (nodes[index] - nodes[index - 1])
    return values[index - 1] + part * (values[index] - values[index - 1])


def _shares(thickness: Tensor) -> list[Tensor]:
    """How much of each kernel a thickness takes: hats over the nodes, which add up to 1."""
    rises = [((thickness - a) / (b - a)).clamp(0, 1) for a, b in pairwise(_NODES)]
    inner = [before - after for before, after in pairwise(rises)]
    return [1 - rises[0], *inner, rises[-1]]


def _from_center(count: int, step: float, extent: float) -> tuple[Tensor, Tensor]:
    """Where `count` blocks of `step` mm from an image's edge lie from its centre, and how many mm of each are in it."""
    first = torch.arange(count, dtype=torch.float64) * step
    inside = (extent - first).clamp(max=step)
    return first + inside / 2 - extent / 2, inside


def _blocks(shape, spacing, size: float) -> tuple[int, int]:
    """How many rows and columns of pixels make a block of up to `size` mm; the image keeps 8 to 112 blocks a side."""
    return tuple(
        max(1, math.ceil(n / _LARGEST_GRID), min(int(size / one), n // 8))
        for n, one in zip(shape, spacing, strict=True)
    )


def _averaged(image: Tensor, factors: tuple[int, int], beyond: str) -> Tensor:
    """[..., H, W] averaged over blocks; the pixels that the last blocks lack are zeros ("constant") or "replicate"d."""
    height, width = image.shape[-2:]
    flat = pad(image.reshape(-1, 1, height, width), (0, -width % factors[1], 0, -height % factors[0]), mode=beyond)
    coarse = avg_pool2d(flat, factors)
    return coarse.reshape(*image.shape[:-2], *coarse.shape[-2:])


def _convolved(parts: Tensor, kernels: Tensor) -> Tensor:
    """The sum of parts [n, ..., h, w] convolved with kernels [n, 2 h - 1, 2 w - 1], zeros outside: [..., h, w]."""
    height, width = parts.shape[-2:]
    size = (2 * height, 2 * width)  # what wraps around ends before the part that is kept
    kernels = kernels.reshape(len(kernels), *(1,) * (parts.dim() - 3), *kernels.shape[-2:])
    spectrum = (torch.fft.rfft2(parts, s=size) * torch.fft.rfft2(kernels, s=size)).sum(dim=0)
    full = torch.fft.irfft2(spectrum, s=size)
    return full[..., height - 1 : 2 * height - 1, width - 1 : 2 * width - 1]


def _interpolated(coarse: Tensor, factors: tuple[int, int], shape: torch.Size) -> Tensor:
    """Bilinear, from the centres of blocks to pixels; the outermost half blocks follow the slope beside them."""
    height, width = shape[-2:]
    grown = _grown(_grown(coarse.reshape(-1, 1, *coarse.shape[-2:])).mT).mT
    fine = interpolate(grown, scale_factor=factors, mode="bilinear", align_corners=False)
    return fine[..., factors[0] : factors[0] + height, factors[1] : factors[1] + width].reshape(shape)


def _grown(image: Tensor) -> Tensor:
    """One more row at top and bottom, extrapolated."""
    if image.shape[-2] == 1:
        return torch.cat([image] * 3, dim=-2)
    first, last = 2 * image[..., :1, :] - image[..., 1:2, :], 2 * image[..., -1:, :] - image[..., -2:-1, :]
    return torch.cat([first, image, last], dim=-2)


def _check_kvp(kvp: float) -> None:
    if not 40 <= kvp <= 150:
        raise PhysicsError(f"The tube voltage is 40 to 150 kV, got {kvp}.")


def _checked(primary: Tensor, thickness: Tensor, pixel_spacing) -> tuple[float, float]:
    spacing = tuple(float(step) for step in pixel_spacing)
    if len(spacing) != 2 or not all(math.isfinite(step) and step > 0 for step in spacing):
        raise PhysicsError(f"Pixel spacing is two positive numbers of mm, got {pixel_spacing}.")
    if primary.dim() < 2 or primary.shape != thickness.shape:
        raise PhysicsError(
            f"Primary and thickness are images of one shape, got {list(primary.shape)} and {list(thickness.shape)}."
        )
    if not _within(primary, math.inf):
        raise PhysicsError("The primary signal is 0 or more everywhere; this image has negative or missing values.")
    _checked_thickness(thickness)
    return spacing


def _within(values: Tensor, most: float) -> bool:
    """Whether all values are finite and from 0 to `most`."""
    low, high = values.detach().aminmax()
    return bool((low >= 0) & (high <= most) & (high < math.inf))


def _checked_thickness(thickness: Tensor) -> Tensor:
    if not _within(thickness, THICKEST):
        low, high = thickness.detach().aminmax()
        raise PhysicsError(
            f"The patient is 0 to {THICKEST:g} mm of water thick everywhere, got {float(low):g} to {float(high):g} mm."
        )
    return thickness
