"""From a detector image to something a rendered X-ray can be compared with.

Pure functions on tensors [H, W], and `preprocess`, which applies them to an `XRay` in this order; each step is off
unless asked for, except the second:

1. crop             rows and columns of the collimator, given or found (`find_collimation`); the camera follows.
2. line integrals   ln(I0 / I), so that the values mean what the renderer's do (Beer-Lambert). Only where
                    meta["intensity"] is "transmission"; afterwards it is "attenuation".
3. background       the commonest value (open field, or evenly thick soft tissue) becomes zero, less becomes zero too.
4. smoothing        Gaussian, sigma in pixels of the image as it is then.
5. resampling       to another size, area-averaged, camera exact (`resample`).
6. equalisation     of the histogram, to 0..1.

The logarithm comes before everything that averages pixels: the mean of the logarithms is the mean line integral, which
is what a coarse rendering shows. Every function is differentiable in the image except `find_collimation`,
`equalize_histogram` and the estimates of I0 and of the background level.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from DiffDRRCore.errors import XRayError
from DiffDRRCore.geometry.camera import Camera
from DiffDRRCore.imaging.collimation import find_collimation
from DiffDRRCore.imaging.xray import XRay

OPEN_FIELD_QUANTILE = 0.999
FLOOR = 1e-4  # of I0: 6.5 counts of 16 bit; line integrals end at ln(10^4) = 9.2


def preprocess(
    xray: XRay,
    crop: Sequence[int] | str | None = None,
    i0: float | None = None,
    background: bool | float = False,
    smoothing: float = 0.0,
    size: tuple[int, int] | Camera | None = None,
    equalize: str | None = None,
) -> XRay:
    """The steps of the module's text, in its order; what was done is in meta["preprocessing"].

    Args:
        xray: meta["intensity"] must say what is bright; "attenuation" images keep their values in step 2.
        crop: (top, bottom, left, right) pixels, or "find".
        i0: intensity of the unattenuated beam in the image's units (for a logarithmic image: its value there);
            None estimates it (`estimate_i0`).
        background: True subtracts the commonest line integral (`background_level`), a number subtracts that.
        smoothing: sigma in pixels.
        size: (height, width) of the same area, or a `Camera` with the same source and orientation.
        equalize: "hard" (`equalize_histogram`) or "soft" (`soft_equalize_histogram`).

    Raises:
        XRayError: an argument is not one of these, or the image has nothing above zero.
    """
    done: dict[str, object] = {}
    if crop is not None:
        sides = _sides(xray, crop)
        xray, done["crop"] = xray.cropped(*sides), list(sides)
    xray = _to_attenuation(xray, i0, done)
    if background is not False:
        level = background_level(xray.image) if background is True else float(background)
        xray, done["background"] = xray.with_image(remove_background(xray.image, level)), level
    if smoothing:
        xray, done["smoothing"] = xray.with_image(gaussian_smooth(xray.image, smoothing)), smoothing
    if size is not None:
        xray = xray.resampled(size) if isinstance(size, Camera) else xray.resampled(*size)
        done["size"] = list(xray.image.shape)
    if equalize is not None:
        xray, done["equalize"] = xray.with_image(_equalizer(equalize)(xray.image)), equalize
    return xray.with_image(xray.image, preprocessing=done)


def line_integrals(image: Tensor, i0: float | Tensor | None = None, floor: float = FLOOR) -> Tensor:
    """ln(I0 / I) of a transmission image [..., H, W]: the line integral of the attenuation (Beer-Lambert), no unit.

    Intensities below `floor` * I0, zero and negative ones included, count as `floor` * I0, so the largest result is
    ln(1 / floor). Pixels brighter than I0 (noise) give small negative values: clamping them would bias the mean.

    Args:
        i0: intensity of the unattenuated beam, in the image's units; None takes `estimate_i0`.

    Raises:
        XRayError: I0 not positive, no pixel above zero, or more than half of the pixels brighter than a given I0.
    """
    if not 0 < floor < 1:
        raise XRayError(f"floor is a fraction of I0 between 0 and 1, got {floor}.")
    if not bool((image.detach() > 0).any()):
        raise XRayError(
            "The X-ray has no pixel above zero, so it has no logarithm: is it empty, or already in attenuation?"
        )
    level = torch.as_tensor(estimate_i0(image) if i0 is None else i0, dtype=image.dtype, device=image.device)
    if not bool(torch.isfinite(level) & (level > 0)):
        raise XRayError(f"I0 must be a positive number in the image's units, got {float(level)}.")
    brighter = float((image.detach() > level.detach()).to(torch.float64).mean())
    if i0 is not None and brighter > 0.5:
        raise XRayError(
            f"I0 = {float(level):g} is below {100 * brighter:.0f} % of the pixels; give the open field's intensity in "
            "the image's own units."
        )
    return -torch.log((image / level).clamp(min=floor))


def estimate_i0(image: Tensor, quantile: float = OPEN_FIELD_QUANTILE) -> float:
    """The unattenuated intensity of a transmission image: the quantile 0.999 of its pixels.

    So one pixel in a thousand may be brighter (dead pixels, burnt-in text). Where no ray passes outside the patient the
    estimate is too low by a factor, and all line integrals by one constant: similarity measures that ignore an offset
    do not mind.
    """
    return _quantile(image, quantile)


def background_level(image: Tensor, bins: int = 256) -> float:
    """The commonest value of an attenuation image: the middle of the highest of `bins` bins, smoothed by 5.

    Bins go from the smallest value to the quantile 0.999; a constant image gives its value.
    """
    values = image.detach().flatten().to(torch.float64)
    low, high = float(values.min()), _quantile(values, OPEN_FIELD_QUANTILE)
    if not high > low:
        return low
    counts = torch.histc(values, bins, low, high)
    smooth = torch.nn.functional.avg_pool1d(counts[None, None], 5, 1, 2, count_include_pad=False)[0, 0]
    return low + (int(smooth.argmax()) + 0.5) * (high - low) / bins


def remove_background(image: Tensor, level: float) -> Tensor:
    """max(image - level, 0) of an attenuation image: what attenuates no more than the background becomes zero."""
    return (image - level).clamp(min=0)


def gaussian_smooth(image: Tensor, sigma: float | tuple[float, float]) -> Tensor:
    """Gaussian smoothing of an image [..., H, W], sigma in pixels, one or (rows, columns); 0 leaves it as it is.

    The kernel is cut at 4 sigma and sums to 1; beyond the edge the nearest pixel is repeated. Raises XRayError for a
    sigma that is negative or not finite.
    """
    sigmas = (sigma, sigma) if isinstance(sigma, (int, float)) else tuple(sigma)
    if len(sigmas) != 2 or not all(math.isfinite(one) and one >= 0 for one in sigmas):
        raise XRayError(f"sigma is one or two numbers of pixels, 0 or more, got {sigma!r}.")
    smoothed = _smooth_columns(image, float(sigmas[1]))
    return _smooth_columns(smoothed.transpose(-1, -2), float(sigmas[0])).transpose(-1, -2)


def equalize_histogram(image: Tensor) -> Tensor:
    """Each pixel's rank among all, 0..1: (pixels below + half of the equal ones) / pixels. A constant image gives 0.5.

    Depends on the order of the values only, so it has no gradient; see `soft_equalize_histogram`.
    """
    values = image.detach().flatten()
    ordered = values.sort().values
    below, upto = (torch.searchsorted(ordered, values, right=right) for right in (False, True))
    return ((below + upto) / (2 * values.numel())).to(image.dtype).reshape(image.shape)


def soft_equalize_histogram(image: Tensor, bins: int = 64) -> Tensor:
    """As `equalize_histogram`, differentiable: through a piecewise linear cumulative histogram of `bins` nodes.

    Nodes are evenly spaced from the smallest to the largest value; each pixel counts for its two neighbours by
    distance, and is mapped by linear interpolation of the cumulative counts (half of a node's own count included). The
    gradient takes in how each pixel changes the histogram. A constant image gives 0.5 with gradient zero.
    """
    if bins < 2:
        raise XRayError(f"A histogram needs at least 2 bins, got {bins}.")
    values = image.flatten()
    low, high = values.min(), values.max()
    if not bool(high > low):
        return 0 * image + 0.5
    position = (values - low) / (high - low) * (bins - 1)
    node = position.detach().floor().clamp(0, bins - 2).long()
    fraction = position - node
    counts = torch.zeros(bins, dtype=image.dtype, device=image.device)
    counts = counts.scatter_add(0, node, 1 - fraction).scatter_add(0, node + 1, fraction)
    cumulative = (counts.cumsum(0) - counts / 2) / values.numel()
    return torch.lerp(cumulative[node], cumulative[node + 1], fraction).reshape(image.shape)


def _sides(xray: XRay, crop: Sequence[int] | str) -> tuple[int, ...]:
    if crop == "find":
        return tuple(find_collimation(xray.image if xray.intensity == "transmission" else -xray.image))
    if isinstance(crop, str) or len(crop) != 4:
        raise XRayError(f'crop is (top, bottom, left, right) or "find", not {crop!r}.')
    return tuple(crop)


def _to_attenuation(xray: XRay, i0: float | None, done: dict[str, object]) -> XRay:
    if xray.intensity == "attenuation":
        if i0 is not None:
            raise XRayError("I0 is for transmission images, but this one is in attenuation already: leave i0 out.")
        return xray
    level = estimate_i0(xray.image) if i0 is None else i0
    done["i0"] = float(level)
    logarithmic = bool(xray.meta.get("logarithmic"))
    image = level - xray.image if logarithmic else line_integrals(xray.image, level if i0 is not None else None)
    return xray.with_image(image, intensity="attenuation", logarithmic=True)


def _equalizer(kind: str):
    kinds = {"hard": equalize_histogram, "soft": soft_equalize_histogram}
    if kind not in kinds:
        raise XRayError(f'equalize is "hard" or "soft", not {kind!r}.')
    return kinds[kind]


def _quantile(image: Tensor, quantile: float) -> float:
    """By rank, without interpolation (`torch.quantile` has a limit of 16 million values)."""
    values = image.detach().flatten()
    rank = max(1, math.ceil(quantile * values.numel()))
    return float(values.kthvalue(rank).values)


def _smooth_columns(image: Tensor, sigma: float) -> Tensor:
    if sigma == 0:
        return image
    radius = math.ceil(4 * sigma)
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float64)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = (kernel / kernel.sum()).to(image)
    lines = image.reshape(-1, 1, image.shape[-1])
    padded = torch.nn.functional.pad(lines, (radius, radius), mode="replicate")
    return torch.nn.functional.conv1d(padded, kernel[None, None]).reshape(image.shape)
