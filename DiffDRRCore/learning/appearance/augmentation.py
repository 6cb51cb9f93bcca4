"""What happens to images on their way to a network beside physics, so that it takes what monitors and archives give.

Steps, each with a probability of its own, in this order:

    tools           one to three wires or screws of steel in the beam
    shading         a slope and a bowl over the whole image
    sigmoid, gamma  curves of grey values
    equalization    of the histogram
    clahe           the same by tiles, with limited contrast
    sharpness       less (blur) or more of what is fine
    erasing         up to three rectangles of one value
    inversion       bone bright becomes bone dark

Tools are added to the line integrals; the others act on values stretched to 0..1 over the field.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, pad

from DiffDRRCore.errors import LearningError
from DiffDRRCore.learning.appearance.equalization import equalized
from DiffDRRCore.learning.data.draws import Draws
from DiffDRRCore.learning.data.views import Views

DEFAULTS = {
    "tools": 0.2,
    "shading": 0.3,
    "sigmoid": 0.2,
    "gamma": 0.3,
    "equalization": 0.1,
    "clahe": 0.2,
    "sharpness": 0.3,
    "erasing": 0.2,
    "inversion": 0.1,
}
_MANY = 3
_TILES = 4
_DEVIATIONS = 4.0  # from the mean, where 0..1 ends at the latest

Step = Callable[[Tensor, Tensor, Draws], Tensor]


class Augmentation:
    """Changes images at random. `probabilities`: {name: 0..1}; what is left out is off.

    Raises LearningError for another name, and for what is no probability.
    """

    def __init__(self, probabilities: Mapping[str, float]):
        for name, value in probabilities.items():
            if name not in DEFAULTS or not 0 <= value <= 1:
                raise LearningError(
                    f"Augmentations are {', '.join(DEFAULTS)}, each with a probability from 0 to 1; got {name}: "
                    f"{value}."
                )
        self.probabilities = {name: probabilities.get(name, 0.0) for name in DEFAULTS}

    @classmethod
    def from_dict(cls, content: Mapping[str, float] | None = None) -> Augmentation:
        """Of plain values; what is left out has its default (DEFAULTS)."""
        return cls({**DEFAULTS, **(content or {})})

    def __call__(self, image: Tensor, field: Tensor, views: Views, draws: Draws) -> Tensor:
        """Line integrals [B, 1, H, W] changed; without the tools, their scale is lost: `standardized` gives another.

        Args:
            field: [B, 1, H, W] bool, where the beam is.
            views: for the size of tools.
        """
        flat, field = image[:, 0], field[:, 0]
        chosen = self._chosen("tools", draws, len(flat))
        if len(chosen):
            index = chosen.to(flat.device)
            added = tools(views[chosen], flat.shape[1:], draws.within("tools"), flat)
            flat = flat.index_add(0, index, added)
        if not any(self.probabilities[name] for name in _STEPS):
            return flat[:, None]
        flat = stretched(flat, field)
        for name, step in _STEPS.items():
            chosen = self._chosen(name, draws, len(flat))
            if len(chosen):
                index = chosen.to(flat.device)
                changed = step(flat[index], field[index], draws.within(name))
                flat = flat.index_copy(0, index, changed)
        return flat[:, None]

    def _chosen(self, name: str, draws: Draws, count: int) -> Tensor:
        """The numbers of the images that it happens to, on the CPU."""
        return draws.happens(f"{name} happens", count, self.probabilities[name]).nonzero()[:, 0]


def standardized(image: Tensor, field: Tensor) -> Tensor:
    """Images [B, 1, H, W] with zero mean and unit deviation in the field [B, 1, H, W] (bool), and 0 outside."""
    weight = field.to(image)
    total = weight.sum(dim=(-2, -1), keepdim=True).clamp(min=1)
    mean = (image * weight).sum(dim=(-2, -1), keepdim=True) / total
    centred = (image - mean) * weight
    variance = centred.square().sum(dim=(-2, -1), keepdim=True) / total
    return centred / variance.sqrt().clamp(min=1e-6)


def stretched(image: Tensor, field: Tensor) -> Tensor:
    """Images [B, H, W] from the least to the largest value in the field, or 4 deviations from the mean, to 0..1.

    Outside it they have the field's mean. An image of one value becomes 0.
    """
    weight = field.to(image)
    total = weight.sum(dim=(-2, -1), keepdim=True).clamp(min=1)
    mean = (image * weight).sum(dim=(-2, -1), keepdim=True) / total
    filled = torch.where(field, image, mean)
    deviation = ((filled - mean).square().sum(dim=(-2, -1), keepdim=True) / total).sqrt()
    low = torch.maximum(filled.amin(dim=(-2, -1), keepdim=True), mean - _DEVIATIONS * deviation)
    high = torch.minimum(filled.amax(dim=(-2, -1), keepdim=True), mean + _DEVIATIONS * deviation)
    return ((filled - low) / (high - low).clamp(min=1e-6)).clamp(0, 1)


def tools(views: Views, size: tuple[int, int], draws: Draws, like: Tensor) -> Tensor:
    """Line integrals [B, H, W] of one to three straight cylinders each, near the frame's origin, on `like`'s device.

    K-wires of 1 to 3 mm and screws of 3.5 to 8 mm, with 0.4 to 1 per mm (steel in diagnostic beams).
    """
    count = len(views)
    wire, screw = draws.uniform("wire", (count, _MANY), 1, 3), draws.uniform("screw", (count, _MANY), 3.5, 8)
    width = torch.where(draws.happens("thin", (count, _MANY), 0.7), wire, screw)
    there = torch.arange(_MANY) < draws.uniform("many", (count, 1), 0, _MANY).ceil()
    mu = draws.uniform("mu", (count, 1), 0.4, 1.0) * there
    column, row, angle = (draws.uniform(name, (count, _MANY)) for name in ("column", "row", "angle"))
    half = draws.log_uniform("length", (count, _MANY), 0.1, 2.0) * max(size) / 2
    numbers = torch.stack([width, mu, column * size[1] - 0.5, row * size[0] - 0.5, angle * math.pi, half])
    width, mu, *place = numbers.to(like.device, like.dtype, non_blocking=True)
    depth = views.pose.inverse().translation[:, 2] / views.camera.source_to_detector
    pixel = (views.camera.pixel_spacing.mean(dim=-1) * depth).to(like)[:, None]  # mm at the origin
    lengths = cylinders(width / pixel / 2, *place, size)
    return ((mu * pixel)[..., None, None] * lengths).sum(dim=1)


def cylinders(radius: Tensor, column: Tensor, row: Tensor, angle: Tensor, half: Tensor, size) -> Tensor:
    """Lengths in pixels within cylinders along the image, [..., H, W]; the mean over each pixel, across the axis.

    Args:
        radius, half: [...] in pixels, of the cylinder and half of its length.
        column, row: [...] where its middle is.
        angle: [...] rad, from the columns' direction to the rows'.
        size: (H, W).
    """
    radius, column, row, angle, half = (one[..., None, None] for one in (radius, column, row, angle, half))
    y = torch.arange(size[0], dtype=radius.dtype, device=radius.device)[:, None] - row
    x = torch.arange(size[1], dtype=radius.dtype, device=radius.device) - column
    along, across = x * angle.cos() + y * angle.sin(), y * angle.cos() - x * angle.sin()
    return _chord(across, radius) * (half - along.abs() + 0.5).clamp(0, 1)


def _chord(distance: Tensor, radius: Tensor) -> Tensor:
    """Mean length in pixels within a circular section of the rays of a pixel, whose middle is so far from the axis."""

    def area(end: Tensor) -> Tensor:
        share = (end / radius).clamp(-1, 1)
        return radius.square() * (share * (1 - share.square()).sqrt() + share.asin())

    return area(distance + 0.5) - area(distance - 0.5)


def _of(draws: Draws, name: str, like: Tensor, low: float, high: float, log: bool = False) -> Tensor:
    """[B, 1, 1] random numbers for images [B, H, W]."""
    make = draws.log_uniform if log else draws.uniform
    return make(name, len(like), low, high).to(like.device, like.dtype, non_blocking=True)[:, None, None]


def _shading(image: Tensor, field: Tensor, draws: Draws) -> Tensor:
    y, x = (torch.linspace(-1, 1, n, dtype=image.dtype, device=image.device) for n in image.shape[-2:])
    slope_y, slope_x, bowl = (_of(draws, name, image, -0.2, 0.2) for name in ("y", "x", "bowl"))
    return image + slope_y * y[:, None] + slope_x * x + bowl * (y[:, None].square() + x.square() - 2 / 3)


def _sigmoid(image: Tensor, field: Tensor, draws: Draws) -> Tensor:
    slope, center = _of(draws, "slope", image, 2, 10), _of(draws, "center", image, 0.3, 0.7)
    low, high = torch.sigmoid(-slope * center), torch.sigmoid(slope * (1 - center))
    return (torch.sigmoid(slope * (image - center)) - low) / (high - low)


def _gamma(image: Tensor, field: Tensor, draws: Draws) -> Tensor:
    return image.clamp(1e-6, 1) ** _of(draws, "exponent", image, 0.5, 2.0, log=True)


def _equalization(image: Tensor, field: Tensor, draws: Draws) -> Tensor:
    return equalized(image, field, torch.full((len(image),), 64.0, device=image.device))


def _clahe(image: Tensor, field: Tensor, draws: Draws) -> Tensor:
    return equalized(image, field, _of(draws, "clip", image, 1.2, 6.0, log=True)[:, 0, 0], _TILES)


def _sharpness(image: Tensor, field: Tensor, draws: Draws) -> Tensor:
    smooth = avg_pool2d(pad(image[:, None], (1, 1, 1, 1), mode="replicate"), 3, 1)[:, 0]
    return image + _of(draws, "gain", image, -1.0, 2.0) * (image - smooth)


def _erasing(image: Tensor, field: Tensor, draws: Draws) -> Tensor:
    height, width = image.shape[-2:]
    y, x = (torch.arange(n, dtype=image.dtype, device=image.device) for n in (height, width))
    for n in range(_MANY):
        here = draws.within(n)
        present = _of(here, "present", image, -1 if n else 0, 1) >= 0
        rows, columns = (_of(here, name, image, 0.05, 0.3) * size for name, size in (("h", height), ("w", width)))
        top, left = _of(here, "y", image, 0, 1) * (height - rows), _of(here, "x", image, 0, 1) * (width - columns)
        down = (y[:, None] >= top) & (y[:, None] < top + rows)
        across = (x >= left) & (x < left + columns)
        image = torch.where(down & across & present, _of(here, "value", image, 0, 1), image)
    return image


def _inversion(image: Tensor, field: Tensor, draws: Draws) -> Tensor:
    return 1 - image


_STEPS: dict[str, Step] = {
    "shading": _shading,
    "sigmoid": _sigmoid,
    "gamma": _gamma,
    "equalization": _equalization,
    "clahe": _clahe,
    "sharpness": _sharpness,
    "erasing": _erasing,
    "inversion": _inversion,
}
