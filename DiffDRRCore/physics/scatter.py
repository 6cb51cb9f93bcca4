"""Scattered radiation, as a convolution of the primary image with kernels that depend on the thickness of the patient.

Each pencil of the beam that leaves the patient with the primary signal P makes a patch of scatter around itself:

    S(x) = sum over y of P(y) R(t(y)) K(x - y),      K(r) = w M(r; D / 6) + (1 - w) M(r; D)
    M(r; D) = 3 / (2 pi D^2) (1 + r^2 / D^2)^(-5/2)

R is the scatter-to-primary ratio (SPR) of an endless slab of water of thickness t in an endless field. M is what a
point source at the height D above the detector makes that radiates as cos^2, in the spirit of J. A. Sorenson and J.
Floch, "Scatter rejection by air gaps: an empirical model", Med. Phys. 12 (1985); the small part w is scattered forward.
D = width(t) (gap + height(t)). M integrates to 1, and of it a round field of radius a sees 1 - (1 + a^2 / D^2)^(-3/2).

R, w and D are fits to a Monte Carlo simulation of pencil beams in water slabs, which Resources/make_scatter_tables.py
describes and repeats (tungsten tube, 3 mm Al; signal = energy absorbed in 0.25 g/cm2 of CsI). tables/scatter.json has
their numbers and statistical errors: 1.3 % of R at most, 2.2 % at 60 kVp behind 400 mm. The scatter in the centre of
round fields of 100 to 500 mm agrees with the simulation to 0.03 on average and 0.13 at worst for 20 to 300 mm of water,
gaps of 50 to 400 mm and 60 to 140 kVp. Measured behind 300 mm of acrylic in a cone-beam CT: 4.51 (Altunbas et al., Med.
Phys. 43, 2016, doi 10.1118/1.4957763); this model has 4.3 for 333 mm of water, 125 kVp, a field of 400 x 300 mm and a
gap of 200 mm, and 2.5 for a gap of 350 mm.

Limits. Every pencil scatters as if it were in an endless slab of water of its own thickness: near the patient's skin,
at lung borders and beside metal the scatter is wrong by tens of per cent; bone scatters like water of the same
attenuation; with less than 50 mm of air the kernels are too blunt close to the pencil; table, detector cover, blades
and what lies outside the image do not scatter. Right in size and smoothness, which is what training data and tests of
robustness need; no substitute for Monte Carlo where the scatter itself matters.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, pad

from DiffDRRCore.errors import PhysicsError
from DiffDRRCore.geometry.tensors import as_tensor
from DiffDRRCore.physics.elements import TABLES

THICKEST = 600.0  # mm of water; more is taken for a mistake of units

_AXES = {  # of tables/scatter.json; the width is for 100 kVp
    **dict.fromkeys(("thickness_mm", "height_mm", "width_per_mm", "forward"), ("thickness_mm",)),
    **dict.fromkeys(("kvp", "width_by_kvp", "attenuation_per_mm"), ("kvp",)),
    "ratio": ("kvp", "thickness_mm"),
}
_NARROWER = 6  # the kernel of the forward part
_NODES = (50.0, 150.0, 250.0, 400.0)  # mm; kernels in between are mixtures
_STEPS_PER_WIDTH = 18  # of the coarse grid, in the narrowest kernel: 3 in its forward part
_LARGEST_GRID = 112
_SOURCE_BLOCK = 3.0  # mm
_USUAL_GAP = 200.0  # mm
_NARROWEST = 20.0  # mm


@dataclass(frozen=True)
class Grid:
    """An anti-scatter grid: the fractions of primary and scatter that it lets through, 0 < scatter <= primary <= 1.

    The defaults were measured on a radiographic grid of ratio 10 behind 300 mm of acrylic (Altunbas et al., see above);
    grids of higher ratios typically let through about 0.1 of the scatter. Take values measured on one's own grid.
    """

    primary: float = 0.706
    scatter: float = 0.21

    def __post_init__(self):
        if not 0 < self.scatter <= self.primary <= 1:
            raise PhysicsError(f"A grid lets through 0 < scatter <= primary <= 1, got {self.scatter}, {self.primary}.")


@dataclass(frozen=True)
class Scatter:
    """The scatter model of this module.

    kvp:      tube voltage in kV, 40 to 150; the tables cover 60 to 140, their ends are kept beyond. None is that of the
              spectrum of the `Simulator`; used by itself the model needs a number
    air_gap:  mm from where the beam leaves the patient to the detector, 0 to 1500; None is what the `Simulator` finds
              for each view, and 200 mm without one
    grid:     an anti-scatter grid, or None
    ratio:    None for the tables' SPR; or the SPR without grid in the centre of the image where a slab of uniform
              thickness covers it, whatever the thickness: a measured value

    Raises PhysicsError for values out of these ranges; when used, where the kvp is still None.
    """

    kvp: float | None = None
    air_gap: float | None = None
    grid: Grid | None = None
    ratio: float | None = None

    def __post_init__(self):
        if self.kvp is not None:
            _check_kvp(self.kvp)
        if self.air_gap is not None and not 0 <= self.air_gap <= 1500:
            raise PhysicsError(f"The air gap between patient and detector is 0 to 1500 mm, got {self.air_gap} mm.")
        if self.ratio is not None and not (math.isfinite(self.ratio) and self.ratio >= 0):
            raise PhysicsError(f"The scatter-to-primary ratio is 0 or more, got {self.ratio}.")

    def __call__(self, primary: Tensor, thickness: Tensor, pixel_spacing: tuple[float, float]) -> Tensor:
        """Primary and scatter behind the grid, [..., H, W], in units of the primary; arguments as for `scattered`."""
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
        spacing, size = _checked(primary, thickness, pixel_spacing), np.array(primary.shape[-2:])
        _check_thickness(thickness)
        fine = _blocks(size, spacing, _SOURCE_BLOCK)
        more = _blocks(size // fine, fine * spacing, min(self.width(node) for node in _NODES) / _STEPS_PER_WIDTH)
        depth = _averaged(thickness, fine, "replicate")
        ratio = broad_beam_ratio(depth, self._known_kvp) if self.ratio is None else self.ratio
        sources = _averaged(primary, fine, "constant") * ratio * _shares(depth)
        coarse = _averaged(sources, more, "constant")
        step, extent = (fine * more * spacing).tolist(), (size * spacing).tolist()
        kernels = torch.stack([self._kernel(node, step, extent, coarse) for node in _NODES])
        return _interpolated(_convolved(coarse, kernels), fine * more, primary.shape).clamp(min=0)

    def width(self, thickness: float) -> float:
        """The width D in mm of the kernel's main part for a patient of `thickness` mm of water."""
        per_mm = _value("width_per_mm", thickness) * _value("width_by_kvp", self._known_kvp)
        gap = _USUAL_GAP if self.air_gap is None else self.air_gap
        return max(_NARROWEST, per_mm * (gap + _value("height_mm", thickness)))

    def round_field_share(self, thickness: float, radius: float) -> float:
        """What the centre of a round field of `radius` mm at the detector has of the SPR of an endless field."""
        forward, width = _value("forward", thickness), self.width(thickness)
        narrow, wide = (1 - (1 + (radius / d) ** 2) ** -1.5 for d in (width / _NARROWER, width))
        return forward * narrow + (1 - forward) * wide

    @property
    def _known_kvp(self) -> float:
        if self.kvp is None:
            raise PhysicsError("Scatter depends on the tube voltage, which is not known here: give Scatter(kvp=...).")
        return self.kvp

    def _kernel(self, node: float, step: list[float], extent: list[float], like: Tensor) -> Tensor:
        """K times the area of a block at all offsets between blocks of `step` mm of an image, [2 h - 1, 2 w - 1]."""
        shape = like.shape[-2:]
        y, x = (torch.arange(1 - n, n, dtype=torch.float64) * one for n, one in zip(shape, step, strict=True))
        kernel = self._density(node, y, x, max(step)) * (step[0] * step[1])
        if self.ratio is not None:  # what the centre of an image of `extent` mm sees of K is made 1
            (y, dy), (x, dx) = (_from_center(*sizes) for sizes in zip(shape, step, extent, strict=True))
            kernel = kernel / (dy @ self._density(node, y, x, max(step)) @ dx)
        return kernel.to(like)

    def _density(self, node: float, y: Tensor, x: Tensor, least: float) -> Tensor:
        """K [rows, columns] per mm2 at the distances y [rows] and x [columns] in mm, no part narrower than `least`."""
        # Samples of M as far apart as it is wide add up to its integral within 1.4 %, closer ones to much less.
        squared, forward, width = x.square() + y[:, None].square(), _value("forward", node), self.width(node)
        parts = ((forward, max(width / _NARROWER, least)), (1 - forward, max(width, least)))
        return sum(part * 1.5 / (math.pi * d**2) * (1 + squared / d**2).pow(-2.5) for part, d in parts)


def broad_beam_ratio(thickness, kvp: float) -> Tensor:
    """The SPR behind an endless slab of water in an endless field, no grid: [...] for `thickness` [...] in mm.

    From this module's table, linear in between; beyond 400 mm the last slope goes on.
    Raises PhysicsError for a kvp that is not in 40 to 150 and thicknesses that are not in 0 to 600 mm.
    """
    _check_kvp(kvp)
    thickness, tables = as_tensor(thickness), _tables()
    _check_thickness(thickness)
    row = [float(np.interp(kvp, tables["kvp"], column)) for column in zip(*tables["ratio"], strict=True)]
    nodes, values = (torch.tensor(x, dtype=thickness.dtype).to(thickness) for x in (tables["thickness_mm"], row))
    left = torch.searchsorted(nodes, thickness.detach().contiguous()).clamp(1, len(nodes) - 1) - 1
    return torch.lerp(values[left], values[left + 1], (thickness - nodes[left]) / (nodes[left + 1] - nodes[left]))


def effective_attenuation(kvp: float) -> float:
    """The mean attenuation of water in 1/mm of a beam of `kvp` kV (3 mm Al) through 200 mm, on a CsI detector."""
    _check_kvp(kvp)
    return _value("attenuation_per_mm", kvp)


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


@cache
def _tables() -> dict[str, list]:
    """tables/scatter.json. Raises PhysicsError where it is missing or damaged."""
    path = TABLES / "scatter.json"
    try:
        tables = json.loads(path.read_text(encoding="utf-8"))
        for name, axes in _AXES.items():
            values, shape = np.array(tables[name], dtype=float), tuple(len(tables[axis]) for axis in axes)
            rising = axes != (name,) or (np.diff(values) > 0).all()
            if values.shape != shape or not (rising and ((values >= 0) & (values < math.inf)).all()):
                raise ValueError(name)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PhysicsError(f"The scatter model's table {path} is missing or damaged: install DiffDRR again.") from error
    return tables


def _value(name: str, at: float) -> float:
    """An entry of the tables at a thickness in mm or a tube voltage in kV: linear in between, the ends kept beyond."""
    return float(np.interp(at, _tables()[_AXES[name][0]], _tables()[name]))


def _shares(thickness: Tensor) -> Tensor:
    """How much of the kernel of each of _NODES a thickness takes, [n, ...]: hats over the nodes, which add up to 1."""
    rises = [((thickness - a) / (b - a)).clamp(0, 1) for a, b in pairwise(_NODES)]
    return torch.stack([before - after for before, after in pairwise([1, *rises, 0])])


def _from_center(count: int, step: float, extent: float) -> tuple[Tensor, Tensor]:
    """Where `count` blocks of `step` mm from an image's edge lie from its centre, and how many mm of each are in it."""
    first = torch.arange(count, dtype=torch.float64) * step
    inside = (extent - first).clamp(max=step)
    return first + inside / 2 - extent / 2, inside


def _blocks(size: np.ndarray, spacing: np.ndarray, block: float) -> np.ndarray:
    """How many rows and columns of pixels make a block of up to `block` mm; the image keeps 8 to 112 blocks a side."""
    wanted, least = np.minimum(block / spacing, size // 8), np.ceil(size / _LARGEST_GRID)
    return np.maximum(wanted, least).astype(int)


def _averaged(image: Tensor, factors: np.ndarray, beyond: str) -> Tensor:
    """[..., H, W] averaged over blocks; the pixels that the last blocks lack are zeros ("constant") or "replicate"d."""
    (height, width), (rows, columns) = image.shape[-2:], factors.tolist()
    flat = pad(image.reshape(-1, 1, height, width), (0, -width % columns, 0, -height % rows), mode=beyond)
    coarse = avg_pool2d(flat, (rows, columns))
    return coarse.reshape(*image.shape[:-2], *coarse.shape[-2:])


def _convolved(parts: Tensor, kernels: Tensor) -> Tensor:
    """The sum of parts [n, ..., h, w] convolved with kernels [n, 2 h - 1, 2 w - 1], zeros outside: [..., h, w]."""
    height, width = parts.shape[-2:]
    size = (2 * height, 2 * width)  # what wraps around ends before the part that is kept
    kernels = kernels.reshape(len(kernels), *(1,) * (parts.dim() - 3), *kernels.shape[-2:])
    spectrum = (torch.fft.rfft2(parts, s=size) * torch.fft.rfft2(kernels, s=size)).sum(dim=0)
    full = torch.fft.irfft2(spectrum, s=size)
    return full[..., height - 1 : 2 * height - 1, width - 1 : 2 * width - 1]


def _interpolated(coarse: Tensor, factors: np.ndarray, shape: torch.Size) -> Tensor:
    """Bilinear, from the centres of blocks to pixels; the outermost half blocks follow the slope beside them."""
    (height, width), (rows, columns) = shape[-2:], factors.tolist()
    grown = _grown(_grown(coarse.reshape(-1, 1, *coarse.shape[-2:])).mT).mT
    fine = interpolate(grown, scale_factor=(rows, columns), mode="bilinear", align_corners=False)
    return fine[..., rows : rows + height, columns : columns + width].reshape(shape)


def _grown(image: Tensor) -> Tensor:
    """One more row at top and bottom, extrapolated."""
    if image.shape[-2] == 1:
        return torch.cat([image] * 3, dim=-2)
    first, last = 2 * image[..., :1, :] - image[..., 1:2, :], 2 * image[..., -1:, :] - image[..., -2:-1, :]
    return torch.cat([first, image, last], dim=-2)


def _check_kvp(kvp: float) -> None:
    if not 40 <= kvp <= 150:
        raise PhysicsError(f"The tube voltage is 40 to 150 kV, got {kvp}.")


def _checked(primary: Tensor, thickness: Tensor, pixel_spacing) -> np.ndarray:
    """The spacing, where all is well."""
    spacing = np.array([float(step) for step in pixel_spacing])
    if spacing.shape != (2,) or not ((spacing > 0) & (spacing < math.inf)).all():
        raise PhysicsError(f"Pixel spacing is two positive numbers of mm, got {pixel_spacing}.")
    if primary.dim() < 2 or primary.shape != thickness.shape:
        raise PhysicsError(f"Primary and thickness have one shape, not {[*primary.shape]} and {[*thickness.shape]}.")
    if not _within(primary, math.inf):
        raise PhysicsError("The primary signal is 0 or more everywhere; this image has negative or missing values.")
    return spacing


def _within(values: Tensor, most: float) -> bool:
    """Whether all values are finite and from 0 to `most`."""
    low, high = values.detach().aminmax()
    return bool((low >= 0) & (high <= most) & (high < math.inf))


def _check_thickness(thickness: Tensor) -> None:
    if not _within(thickness, THICKEST):
        low, high = (float(one) for one in thickness.detach().aminmax())
        raise PhysicsError(f"The patient is 0 to {THICKEST:g} mm of water thick, got {low:g} to {high:g} mm.")
