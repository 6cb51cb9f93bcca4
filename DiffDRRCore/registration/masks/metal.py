"""Metal in X-rays (implants, wires, tools, beads), found without training, and the weights that leave it out.

Metal is denser than anything beside it and ends at once: its outline has a step in line integrals all the way round.
Bone has such steps along parts of its outline only, or smaller ones. So regions above rising levels, of the image
itself and of what it has beyond its wider surroundings (where wires and beads do not drown in thick tissue), count as
metal if most of their outline has the step. Where the CT's rendered image is given, they must moreover be brighter than
the CT explains, which rules out the rim of a skull, or the metal that the CT shows too.
"""

from __future__ import annotations

import math
from collections.abc import Generator

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from scipy import ndimage
from torch import Tensor
from torch.nn.functional import avg_pool2d

from DiffDRRCore.errors import RegistrationError
from DiffDRRCore.imaging.exposure import exposed_field
from DiffDRRCore.imaging.xray import XRay
from DiffDRRCore.pieces import finished, ranges

STEP = (
    0.3  # line integral at an outline: 0.2 mm of steel, 0.7 mm of titanium, or 6 mm of cortical bone, without scatter
)
_STEP_SHARE = 0.07  # the same of the image's range (of a patient about 4.5), where its unit is not known
_SIDE = 512  # pixels of the image that is searched, at most
_NOISE = 0.03  # line integral; noisier images are averaged down while they have _LEAST_SIDE pixels
_LEAST_SIDE = 200
_NOISE_STEPS = 4.0  # deviations that a step must have
_LEVELS = 20
_OUTLINE, _OUTLINE_WITH_CT = 0.85, 0.7  # of an outline that must have the step
_AT_BORDER = 0.5  # of an outline that may lie on the field's border, where no step is seen
_SURROUNDINGS = (1 / 8, 1 / 3)  # of the shorter side: windows of the median that is the wider surroundings
_LARGEST, _LARGEST_LOCAL = 0.25, 0.15  # of the field: of metal in the image itself and against its surroundings
_ROWS = 4  # of a median over a wide window, at a time
_SHORTEST = 6  # pixels of an outline
REACH = 12.0  # mm at the detector by which the CT's rendered image may be off
_UNEXPLAINED = 0.25  # steps beyond the CT
_EIGHT = np.ones((3, 3), dtype=bool)


def metal_mask(
    xray: XRay,
    field: Tensor | None = None,
    rendered: Tensor | None = None,
    reach: float = REACH,
    step: float | None = None,
    margin: int = 2,
) -> Tensor:
    """Where an X-ray of attenuation shows metal: bool [H, W] on the CPU.

    Titanium thinner than a millimetre, and wires and beads smaller than a pixel and a half, are not seen: give the
    X-ray in its full size. Without `rendered`, thick bone seen along its surface (the rim of a skull) may count too.

    Args:
        field: bool [H, W], where the beam was; None finds it (`exposed_field`).
        rendered: [H, W] what the CT alone looks like at a start pose (line integrals of any gain and offset).
        reach: mm on the detector by which that may be displaced.
        step: the line integral that metal adds at its outline; None is 0.3, and where the X-ray does not say that it is
            logarithmic (meta) 0.07 of its range.
        margin: pixels of the image (searched at 512 pixels at most) around it that count as well, for the blur.

    Raises:
        RegistrationError: an X-ray of transmission, or a field or rendered image of another size.
    """
    return finished(finding_metal(xray, field, rendered, reach, step, margin))


def finding_metal(
    xray: XRay,
    field: Tensor | None = None,
    rendered: Tensor | None = None,
    reach: float = REACH,
    step: float | None = None,
    margin: int = 2,
) -> Generator[None, None, Tensor]:
    """`metal_mask` in pieces."""
    if xray.meta.get("intensity") == "transmission":
        raise RegistrationError("Metal is sought in line integrals: convert the X-ray first (imaging.preprocess).")
    field = exposed_field(xray) if field is None else field.detach().cpu() > 0.5
    for what, one in (("field", field), ("rendered image", rendered)):
        if one is not None and one.shape != xray.image.shape:
            raise RegistrationError(f"The {what} has {list(one.shape)} pixels, the X-ray {list(xray.image.shape)}.")
    image = xray.image.detach().cpu().float()
    every = math.ceil(max(image.shape) / _SIDE)
    step = _step(xray, image, field) if step is None else step
    while min(image.shape) >= 2 * _LEAST_SIDE * every and _noise(_pooled(image, every)) > _NOISE / STEP * step:
        every *= 2
        yield
    small, inside = _pooled(image, every), _pooled(field.float(), every) > 0.99
    if not inside.any():
        return torch.zeros(image.shape, dtype=torch.bool)
    explained = None
    if rendered is not None:
        pixels = reach / float(xray.camera.pixel_spacing.detach().min()) / every
        explained = _explained(small, inside, _pooled(rendered.detach().cpu().float(), every), pixels)
    yield
    found = yield from _metal(_filled(small, inside), inside, step, explained)
    found = ndimage.binary_dilation(found, _EIGHT, iterations=margin) if margin else found
    large = torch.from_numpy(found).repeat_interleave(every, 0).repeat_interleave(every, 1)
    return large[: image.shape[0], : image.shape[1]]


def _pooled(image: Tensor, every: int) -> np.ndarray:
    return avg_pool2d(image[None, None], every, ceil_mode=True)[0, 0].numpy()


def _noise(pixels: np.ndarray) -> float:
    """Standard deviation of what a median of 3 x 3 takes away."""
    return 1.4826 * float(np.median(np.abs(pixels - ndimage.median_filter(pixels, 3))))


def _step(xray: XRay, image: Tensor, field: Tensor) -> float:
    if xray.meta.get("logarithmic"):
        return STEP
    low, high = np.percentile(image[field].numpy() if field.any() else image.numpy(), [1, 99])
    return max(_STEP_SHARE * float(high - low), 1e-6)


def _filled(pixels: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """The image less its noise, with each pixel outside the field as the nearest inside."""
    if not inside.all():
        nearest = ndimage.distance_transform_edt(~inside, return_distances=False, return_indices=True)
        pixels = pixels[tuple(nearest)]
    return ndimage.median_filter(pixels, 3)


def _metal(
    pixels: np.ndarray, inside: np.ndarray, step: float, explained: np.ndarray | None
) -> Generator[None, None, np.ndarray]:
    step = max(step, _NOISE_STEPS * _noise(pixels))
    size = (3, 3)
    yield
    sharp = ndimage.grey_dilation(pixels, size) - ndimage.grey_erosion(pixels, size) >= step
    low, high = np.percentile(pixels[inside], [0.1, 99.9])
    matter = pixels[inside & (pixels > low + 0.25 * (high - low))]
    share = _OUTLINE if explained is None else _OUTLINE_WITH_CT
    beyond = None if explained is None else pixels - explained - _UNEXPLAINED * step
    found = np.zeros(pixels.shape, dtype=bool)
    if len(matter):
        lowest = float(np.median(matter))
        found |= yield from _outlined(pixels, sharp, inside, lowest, step, _LARGEST, share, beyond)
    for window in _SURROUNDINGS:
        local = pixels - (yield from _surroundings(pixels, window))
        found |= yield from _outlined(local, sharp, inside, 0.5 * step, step, _LARGEST_LOCAL, share, beyond)
    return found


def _outlined(pixels, sharp, inside, lowest, step, largest, share, beyond) -> Generator[None, None, np.ndarray]:
    """The regions above any of the levels whose outline is sharp, and which are beyond the CT where that is given."""
    highest = max(float(np.percentile(pixels[inside], 99.95)), lowest + step)
    border = inside & ~ndimage.binary_erosion(inside, _EIGHT, border_value=0)
    found = np.zeros(pixels.shape, dtype=bool)
    for level in np.linspace(lowest, highest, _LEVELS):
        yield
        region = (pixels > level) & inside
        labels, count = ndimage.label(region, _EIGHT)
        outline = region & ~ndimage.binary_erosion(region, _EIGHT, border_value=1)
        at_border, free = _per_label(labels, outline & border, count), _per_label(labels, outline & ~border, count)
        kept = _per_label(labels, outline & ~border & sharp, count) >= share * free
        kept &= (free >= _SHORTEST) & (at_border <= _AT_BORDER * (at_border + free))
        area = np.bincount(labels.ravel(), minlength=count + 1)
        kept &= area <= largest * inside.sum()
        if beyond is not None:
            kept &= np.bincount(labels.ravel(), weights=beyond.ravel(), minlength=count + 1) > 0
        kept[0] = False
        found |= kept[labels]
    return found


def _per_label(labels: np.ndarray, where: np.ndarray, count: int) -> np.ndarray:
    return np.bincount(labels[where], minlength=count + 1)


def _surroundings(pixels: np.ndarray, share: float) -> Generator[None, None, np.ndarray]:
    """The median over windows of that share of the shorter side, from an image of 128 pixels."""
    every = math.ceil(max(pixels.shape) / 128)
    small = pixels[every // 2 :: every, every // 2 :: every]
    median = yield from _median(small, max(3, round(share * min(small.shape)) | 1))
    rows, columns = ((np.arange(n) - every // 2) / every for n in pixels.shape)
    return ndimage.map_coordinates(median, np.meshgrid(rows, columns, indexing="ij"), order=1, mode="nearest")


def _median(pixels: np.ndarray, size: int) -> Generator[None, None, np.ndarray]:
    """`ndimage.median_filter` with mode "nearest" and an odd size, some rows at a time."""
    windows = sliding_window_view(np.pad(pixels, size // 2, mode="edge"), (size, size))
    parts = []
    for first, last in ranges(len(pixels), _ROWS):
        several = windows[first:last].reshape(last - first, windows.shape[1], -1)
        parts.append(np.partition(several, several.shape[-1] // 2, axis=-1)[..., several.shape[-1] // 2])
        yield
    return np.concatenate(parts)


def _explained(pixels: np.ndarray, inside: np.ndarray, rendered: np.ndarray, reach: float) -> np.ndarray:
    """The most that the CT may show in each pixel, in the X-ray's units, if its image is displaced by up to `reach`.

    Gain and offset make the quantiles of both images agree, up to the 80 %: metal is in few of the pixels.
    """
    shares = np.linspace(0.05, 0.8, 16)
    theirs, own = (np.quantile(one[inside], shares) for one in (rendered, pixels))
    spread = float(np.var(theirs))
    gain = max(float(np.cov(theirs, own, bias=True)[0, 1]) / spread, 0.0) if spread > 0 else 0.0
    most = ndimage.grey_dilation(rendered, size=(2 * round(reach) + 1,) * 2)
    return own.mean() + gain * (most - theirs.mean())
