"""From an absolute X-ray image to something to look at; nothing here goes back into a measurement.

Each step is a function from [..., H, W] to the same; a `Display` is a list of them that ends in 0..1:

    Display.fluoroscopy()(image)                        bone dark, as on a C-arm's monitor
    Display(line_integral(i0), window(2, 4), gamma(0.8))   one's own

All are differentiable in the image, CLAHE and automatic windows with their tables and limits held fixed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from DiffDRRCore.errors import PhysicsError
from DiffDRRCore.geometry.tensors import as_tensor

Step = Callable[[Tensor], Tensor]

_FLOOR = 1e-4  # of I0: line integrals end at ln(10^4) = 9.2
_OPEN_FIELD = 0.999


@dataclass(frozen=True, init=False)
class Display:
    """Steps one after another, the result kept to 0..1.

    Raises PhysicsError for a step that is not a function, and, when called, for values that are not finite.
    """

    steps: tuple[Step, ...]

    def __init__(self, *steps: Step):
        for step in steps:
            if not callable(step):
                raise PhysicsError(f"The steps of a display are functions of an image, not {step!r}.")
        object.__setattr__(self, "steps", steps)

    @classmethod
    def fluoroscopy(cls, i0: float | None = None) -> Display:
        """Logarithm, automatic window, a mild sigmoid, bone dark.

        i0: the open beam in the image's units; None takes the brightest pixels.
        """
        return cls(line_integral(i0), window(), sigmoid(slope=5.0), invert)

    @classmethod
    def radiograph(cls, i0: float | None = None) -> Display:
        """Logarithm, automatic window, local contrast (CLAHE), bone bright."""
        return cls(line_integral(i0), window(), clahe())

    @classmethod
    def deepdrr(cls) -> Display:
        """DeepDRR's default: the negative logarithm stretched from its minimum to its maximum.

        Relative: two images of different exposure or anatomy are not comparable afterwards.
        """
        return cls(line_integral(), min_max)

    def __call__(self, image: Tensor) -> Tensor:
        """[..., H, W] in 0..1, in the image's dtype."""
        image = as_tensor(image)
        if not bool(torch.isfinite(image.detach()).all()):
            raise PhysicsError("The image to display has values that are not finite numbers.")
        for step in self.steps:
            image = step(image)
        return image.clamp(0, 1)


def line_integral(i0: float | None = None) -> Step:
    """ln(I0 / I), the line integral of attenuation; intensities below 1e-4 I0 count as that.

    i0: the open beam in the image's units, > 0; None is the quantile 0.999 of each call's pixels.
    """
    if i0 is not None and not (math.isfinite(i0) and i0 > 0):
        raise PhysicsError(f"The open beam I0 must be a positive number in the image's units, got {i0}.")

    def step(image: Tensor) -> Tensor:
        level = _quantile(image, _OPEN_FIELD) if i0 is None else i0
        if not level > 0:
            raise PhysicsError("The image has no pixel above zero, so it has no logarithm: was there no exposure?")
        return -torch.log((image / level).clamp(min=_FLOOR))

    return step


def window(center: float | None = None, width: float | None = None, quantiles: tuple = (0.005, 0.995)) -> Step:
    """Values from center - width / 2 to center + width / 2 become 0..1, others the nearer end (DICOM's LINEAR_EXACT).

    Without center and width, from one quantile of each call's pixels to the other; an image of one value becomes 0.5.
    Raises PhysicsError for half a window, a width that is not positive, and quantiles that do not rise in 0..1.
    """
    if (center is None) != (width is None):
        raise PhysicsError("A window has both a center and a width; leave out both for an automatic one.")
    if width is not None and not (math.isfinite(center) and math.isfinite(width) and width > 0):
        raise PhysicsError(f"A window has a finite center and a positive width, got {center} and {width}.")
    if not 0 <= quantiles[0] < quantiles[1] <= 1:
        raise PhysicsError(f"An automatic window goes between two rising quantiles in 0..1, got {quantiles}.")

    def step(image: Tensor) -> Tensor:
        if width is not None:
            return ((image - center) / width + 0.5).clamp(0, 1)
        return _stretched(image, *(_quantile(image, q) for q in quantiles)).clamp(0, 1)

    return step


def min_max(image: Tensor) -> Tensor:
    """The smallest value becomes 0, the largest 1; an image of one value becomes 0.5. Relative, see `Display.deepdrr`.

    Each [H, W] of a batch is stretched together with the others.
    """
    return _stretched(image, float(image.detach().min()), float(image.detach().max()))


def gamma(exponent: float) -> Step:
    """x^exponent of values 0..1; above 1 darkens. Raises PhysicsError for an exponent that is not positive."""
    if not (math.isfinite(exponent) and exponent > 0):
        raise PhysicsError(f"Gamma must be a positive number, got {exponent}.")

    def step(image: Tensor) -> Tensor:
        lit = image > 0  # the slope at 0 is infinite below exponent 1
        return torch.where(lit, torch.where(lit, image, 1).clamp(max=1).pow(exponent), 0)

    return step


def sigmoid(center: float = 0.5, slope: float = 8.0) -> Step:
    """The S of film: 1 / (1 + exp(-slope (x - center))), stretched so that 0 stays 0 and 1 stays 1 (DICOM SIGMOID).

    Raises PhysicsError for a slope that is not positive (at most 100).
    """
    if not (0 < slope <= 100 and math.isfinite(center)):
        raise PhysicsError(f"A sigmoid has a slope above 0 and up to 100, got {slope}, and a finite center.")

    def curve(x):
        return 1 / (1 + math.exp(-slope * (x - center)))

    low, high = curve(0.0), curve(1.0)

    def step(image: Tensor) -> Tensor:
        return (torch.sigmoid(slope * (image - center)) - low) / (high - low)

    return step


def lookup(table) -> Step:
    """A look-up table [n] for values 0..1, evenly spaced, linear in between. Raises PhysicsError below 2 entries."""
    entries = as_tensor(table).flatten()
    if len(entries) < 2 or not bool(torch.isfinite(entries).all()):
        raise PhysicsError("A look-up table has at least 2 entries, all of them numbers.")

    def step(image: Tensor) -> Tensor:
        values = entries.to(image)
        place = image.clamp(0, 1) * (len(values) - 1)
        left = place.detach().floor().clamp(max=len(values) - 2).long()
        return torch.lerp(values[left], values[left + 1], place - left)

    return step


def invert(image: Tensor) -> Tensor:
    """1 - x: what was bright is dark."""
    return 1 - image


def clahe(tiles: tuple[int, int] = (8, 8), clip: float = 2.0, bins: int = 256) -> Step:
    """Contrast-limited adaptive histogram equalisation of values 0..1.

    K. Zuiderveld, "Contrast limited adaptive histogram equalization", in Graphics Gems IV, 1994.
    Each tile has its own rising map, the cumulated histogram of its pixels after no bin holds more than `clip` times
    the mean bin; what was cut off is spread over the bins that have room, so the slope of a map is `clip` at most. A
    pixel takes the maps of the four nearest tile centres, interpolated. An image of one value stays as it is.

    Args:
        tiles: (rows, columns), at least 1 each.
        clip: the largest gain of contrast, >= 1; 1 leaves the image as it is.
        bins: of the histograms, at least 2.
    """
    rows, columns = (int(n) for n in tiles)
    if rows < 1 or columns < 1 or bins < 2 or not clip >= 1:
        raise PhysicsError(
            f"CLAHE needs at least 1 x 1 tiles, a clip limit of 1 or more and 2 bins, got {tiles}, {clip}, {bins}."
        )

    def step(image: Tensor) -> Tensor:
        values = image.clamp(0, 1)
        flat = values.reshape(-1, *image.shape[-2:])
        if image.shape[-2] < rows or image.shape[-1] < columns:
            raise PhysicsError(f"CLAHE cuts the image into {rows} x {columns} tiles, more than it has pixels.")
        parts = [one if _constant(one) else _equalized(one, (rows, columns), clip, bins) for one in flat]
        return torch.stack(parts).reshape(image.shape)

    return step


def to_uint8(image: Tensor) -> Tensor:
    """0..1 as whole numbers 0..255, torch.uint8, rounded; what is outside takes the nearer end."""
    return (image.detach().clamp(0, 1) * 255).round().to(torch.uint8)


def to_uint16(image: Tensor) -> Tensor:
    """0..1 as whole numbers 0..65535, torch.uint16, rounded; what is outside takes the nearer end."""
    return (image.detach().clamp(0, 1).float() * 65535).round().to(torch.int32).to(torch.uint16)


def _stretched(image: Tensor, low: float, high: float) -> Tensor:
    return (image - low) / (high - low) if high > low else 0 * image + 0.5


def _quantile(image: Tensor, quantile: float) -> float:
    """By rank, without interpolation (`torch.quantile` has a limit of 16 million values)."""
    values = image.detach().flatten()
    return float(values.kthvalue(max(1, math.ceil(quantile * values.numel()))).values)


def _constant(image: Tensor) -> bool:
    return bool(image.detach().min() == image.detach().max())


def _equalized(image: Tensor, tiles: tuple[int, int], clip: float, bins: int) -> Tensor:
    """One image [H, W] of 0..1."""
    maps = _tile_maps(image.detach(), tiles, clip, bins)
    place = image * bins
    left = place.detach().floor().clamp(max=bins - 1).long()
    (upper, lower, down), (near, far, across) = (
        _neighbours(size, count, image) for size, count in zip(image.shape, tiles, strict=True)
    )

    def mapped(row: Tensor, column: Tensor) -> Tensor:
        start = (row[:, None] * tiles[1] + column) * (bins + 1) + left
        return torch.lerp(maps.flatten()[start], maps.flatten()[start + 1], place - left)

    top = torch.lerp(mapped(upper, near), mapped(upper, far), across)
    bottom = torch.lerp(mapped(lower, near), mapped(lower, far), across)
    return torch.lerp(top, bottom, down[:, None])


def _tile_maps(image: Tensor, tiles: tuple[int, int], clip: float, bins: int) -> Tensor:
    """[tiles, bins + 1]: the value of each bin edge, from 0 to 1."""
    row, column = (
        torch.arange(size, device=image.device) * count // size for size, count in zip(image.shape, tiles, strict=True)
    )
    level = (image * bins).long().clamp(max=bins - 1)
    place = (row[:, None] * tiles[1] + column) * bins + level
    counts = torch.bincount(place.flatten(), minlength=tiles[0] * tiles[1] * bins).view(-1, bins)
    limited = _limited(counts.to(image.dtype) / counts.sum(dim=1, keepdim=True), clip / bins)
    return torch.nn.functional.pad(limited.cumsum(dim=1), (1, 0)).clamp(max=1)


def _limited(histogram: Tensor, limit: float) -> Tensor:
    """Histograms [n, bins] of sum 1 with no bin above the limit: all bins raised by one amount, then cut."""
    low, high = torch.zeros_like(histogram[:, :1]), torch.full_like(histogram[:, :1], min(limit, 1.0))
    for _ in range(30):
        middle = (low + high) / 2
        short = (histogram + middle).clamp(max=limit).sum(dim=1, keepdim=True) < 1
        low, high = torch.where(short, middle, low), torch.where(short, high, middle)
    return (histogram + high).clamp(max=limit)


def _neighbours(size: int, count: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For each of `size` pixels the tile before and after it, and how far it is on the way, 0..1."""
    place = (torch.arange(size, dtype=like.dtype, device=like.device) + 0.5) * (count / size) - 0.5
    first = place.floor().clamp(0, count - 1)
    second = (first + 1).clamp(max=count - 1)
    return first.long(), second.long(), (place - first).clamp(0, 1)
