"""Blur of X-ray images: focal spot, detector, lag of sequences.

A blur is its modulation transfer function: a function of the spatial frequencies along rows and columns of the
detector, in 1/mm, with the value 1 at zero, so that a flat image stays flat. `Blur` applies it exactly in the frequency
domain, up to the Nyquist frequency of the pixels; the image goes on mirrored beyond its edges. The square aperture of
the pixel itself is no part of it: it comes from averaging rays within the pixel (`samples` of the simulator's effects),
or add `aperture_mtf`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from DiffDRRCore.errors import PhysicsError
from DiffDRRCore.geometry.tensors import as_tensor

MTF = Callable[[Tensor, Tensor], Tensor]
"""From frequencies (along rows' direction y, along columns' direction x), 1/mm, to 0..1."""

_LARGEST_WIDTH = 100.0  # mm
_SMALLEST_MARGIN = 16  # pixels mirrored beyond each edge; at least an eighth of the image


@dataclass(frozen=True)
class Blur:
    """The product of transfer functions, applied to images [..., H, W]; differentiable in the image.

    mtfs:           made by the functions below, or any function of frequencies (fy, fx) in 1/mm
    pixel_spacing:  (row_mm, col_mm) at the detector

    The two blurs of an X-ray act at different places: that of the focal spot before the quantum noise, that of the
    detector after it. Raises PhysicsError for a spacing that is not positive.
    """

    mtfs: tuple[MTF, ...]
    pixel_spacing: tuple[float, float]

    def __post_init__(self):
        spacing = tuple(float(step) for step in self.pixel_spacing)
        if len(spacing) != 2 or not all(math.isfinite(step) and step > 0 for step in spacing):
            raise PhysicsError(f"Pixel spacing is two positive numbers of mm, got {self.pixel_spacing}.")
        mtfs = (self.mtfs,) if callable(self.mtfs) else tuple(self.mtfs)
        object.__setattr__(self, "pixel_spacing", spacing)
        object.__setattr__(self, "mtfs", mtfs)

    def __call__(self, image: Tensor) -> Tensor:
        """The blurred image. Raises PhysicsError for values that are not finite, which would spread everywhere."""
        if not self.mtfs:
            return image
        if not bool(torch.isfinite(image.detach()).all()):
            raise PhysicsError("The image to blur has values that are not finite numbers.")
        height, width = image.shape[-2:]
        top, left = _margin(height), _margin(width)
        rows, columns = _fast_size(height + 2 * top), _fast_size(width + 2 * left)
        padded = _mirrored(image, (left, columns - width - left), (top, rows - height - top))
        spectrum = torch.fft.rfft2(padded) * self.transfer(rows, columns, image)
        return torch.fft.irfft2(spectrum, s=(rows, columns))[..., top : top + height, left : left + width]

    def transfer(self, rows: int, columns: int, like: Tensor) -> Tensor:
        """The product of the transfer functions at the frequencies of `torch.fft.rfft2`, [rows, columns // 2 + 1]."""
        device = "cpu" if like.device.type == "mps" else like.device  # which has no float64
        fy = torch.fft.fftfreq(rows, self.pixel_spacing[0], dtype=torch.float64, device=device)[:, None]
        fx = torch.fft.rfftfreq(columns, self.pixel_spacing[1], dtype=torch.float64, device=device)
        product = math.prod(mtf(fy, fx) for mtf in self.mtfs)
        return product.expand(rows, columns // 2 + 1).to(like)


def gaussian_mtf(sigma) -> MTF:
    """exp(-2 pi^2 sigma^2 f^2): a Gaussian spread function of `sigma` mm, one number or (rows, columns), >= 0.

    Tensors keep their gradient. Raises PhysicsError for a negative sigma or one above 100 mm.
    """
    sigma_y, sigma_x = _pair(sigma, "sigma")

    def mtf(fy: Tensor, fx: Tensor) -> Tensor:
        return torch.exp(-2 * math.pi**2 * ((sigma_y * fy).square() + (sigma_x * fx).square()))

    return mtf


def lorentzian_mtf(half_frequency: float) -> MTF:
    """1 / (1 + (f / half_frequency)^2): a simple form that flat panels with CsI are often fitted with.

    half_frequency: 1/mm, where the MTF is 0.5. Typical for 0.6 mm of CsI is about 1.2: measure one's own panel, or use
    `measured_mtf`. Raises PhysicsError unless positive.
    """
    if not (math.isfinite(half_frequency) and half_frequency > 0):
        raise PhysicsError(f"The frequency of half modulation must be positive (1/mm), got {half_frequency}.")

    def mtf(fy: Tensor, fx: Tensor) -> Tensor:
        return 1 / (1 + (fy.square() + fx.square()) / half_frequency**2)

    return mtf


def measured_mtf(frequencies, values) -> MTF:
    """A measured radial MTF: `values` [n] at `frequencies` [n] in 1/mm, linear in between, the last one kept beyond.

    Raises PhysicsError unless the frequencies rise from 0 and the values start at 1 and stay in 0..1.2 (an MTF may
    exceed 1 a little where the detector sharpens).
    """
    frequencies, values = as_tensor(frequencies).double(), as_tensor(values).double()
    if frequencies.dim() != 1 or frequencies.shape != values.shape or len(values) < 2:
        raise PhysicsError("A measured MTF is two lists of one length, of at least 2: frequencies and values.")
    if float(frequencies[0]) != 0 or not bool((frequencies.diff() > 0).all()):
        raise PhysicsError("The frequencies of a measured MTF rise from 0 (1/mm).")
    if abs(float(values[0]) - 1) > 1e-6 or not bool(((values >= 0) & (values <= 1.2)).all()):
        raise PhysicsError("A measured MTF is 1 at frequency 0, and nowhere below 0 or above 1.2.")

    def mtf(fy: Tensor, fx: Tensor) -> Tensor:
        radial = (fy.square() + fx.square()).sqrt()
        x, y = frequencies.to(radial), values.to(radial)
        right = torch.searchsorted(x, radial.contiguous()).clamp(1, len(x) - 1)
        fraction = ((radial - x[right - 1]) / (x[right] - x[right - 1])).clamp(0, 1)
        return torch.lerp(y[right - 1], y[right], fraction)

    return mtf


def aperture_mtf(width) -> MTF:
    """sinc(width f) of a square aperture of `width` mm (one number or rows, columns): a pixel, or a focal spot."""
    rows, columns = _pair(width, "width")

    def mtf(fy: Tensor, fx: Tensor) -> Tensor:
        return torch.sinc(rows * fy) * torch.sinc(columns * fx)

    return mtf


def focal_spot_width(size: float, magnification: float) -> float:
    """The width in mm at the detector of the blur by a focal spot of `size` mm: size * (magnification - 1).

    magnification: source-to-detector over source-to-object distance, >= 1. Raises PhysicsError for values out of range.
    """
    if not (math.isfinite(size) and 0 <= size <= _LARGEST_WIDTH):
        raise PhysicsError(f"A focal spot is 0 to {_LARGEST_WIDTH:g} mm wide, got {size} mm.")
    if not (math.isfinite(magnification) and magnification >= 1):
        raise PhysicsError(
            f"Magnification is source-to-detector over source-to-object distance, so 1 or more, got {magnification}."
        )
    return size * (magnification - 1)


def focal_spot_mtf(size, magnification: float, shape: str = "gaussian") -> MTF:
    """The blur by a focal spot for objects of one magnification; see `focal_spot_width`.

    Args:
        size: mm, one number or (rows, columns).
        shape: "uniform", a square of that width (sinc), or "gaussian", of that full width at half maximum.

    Objects nearer to the source are blurred more than this, nearer to the detector less: take the magnification of the
    anatomy of interest.
    """
    sizes = (size, size) if isinstance(size, (int, float)) else tuple(size)
    widths = [focal_spot_width(float(one), magnification) for one in sizes]
    if shape == "uniform":
        return aperture_mtf(widths)
    if shape == "gaussian":
        return gaussian_mtf([width / math.sqrt(8 * math.log(2)) for width in widths])
    raise PhysicsError(f'A focal spot is "gaussian" or "uniform", not {shape!r}.')


def lagged(
    frames: Tensor, weights: Sequence[float], retentions: Sequence[float], state: Tensor | str = "steady"
) -> tuple[Tensor, Tensor]:
    """A sequence with lag: part of each frame's signal comes from earlier exposures.

    Component n holds the fraction w_n of the signal and keeps the fraction r_n of what it holds from frame to frame:

        s_n <- r_n s_n + (1 - r_n) x,       y = (1 - sum w_n) x + sum w_n s_n

    so after a step from 0 to 1 frame k (from 0) is 1 - sum w_n r_n^(k + 1), and after a step down sum w_n r_n^(k + 1).
    With w = (1,) it is the recursive filter of a fluoroscope. The model is linear, time-invariant and
    multi-exponential. A first-frame lag of 0.02 to 0.05 is typical of flat panels: replace it by one's own measurement.

    Args:
        frames: [T, ..., H, W], with their quantum noise but without that of the read-out, which has no lag.
        weights: w_n, >= 0, together at most 1.
        retentions: r_n, 0 <= r_n < 1.
        state: "steady" (the first frame has been on for ever), "dark" (nothing before it), or the state returned by an
            earlier call, to go on with a sequence.

    Returns:
        frames [T, ..., H, W] and state [n, ..., H, W].

    Raises PhysicsError for values out of these ranges and an empty sequence.
    """
    _check_lag(frames, weights, retentions)
    held = _lag_state(frames, len(weights), state)
    direct = 1 - sum(weights)
    seen = []
    for frame in frames:
        held = [r * s + (1 - r) * frame for r, s in zip(retentions, held, strict=True)]
        seen.append(direct * frame + sum(w * s for w, s in zip(weights, held, strict=True)))
    return torch.stack(seen), torch.stack(held) if held else frames.new_zeros(0, *frames.shape[1:])


def _check_lag(frames: Tensor, weights: Sequence[float], retentions: Sequence[float]) -> None:
    if frames.dim() < 1 or len(frames) == 0:
        raise PhysicsError("Lag needs a sequence of at least one frame.")
    if len(weights) != len(retentions):
        raise PhysicsError(f"Lag has as many retentions as weights, got {len(retentions)} and {len(weights)}.")
    if not (all(w >= 0 for w in weights) and sum(weights) <= 1 + 1e-9):
        raise PhysicsError(f"The weights of lag are 0 or more and together at most 1, got {list(weights)}.")
    if not all(0 <= r < 1 for r in retentions):
        raise PhysicsError(f"What a frame keeps of the last one is a fraction from 0 to below 1: {list(retentions)}.")


def _lag_state(frames: Tensor, components: int, state: Tensor | str) -> list[Tensor]:
    if isinstance(state, str):
        if state not in ("steady", "dark"):
            raise PhysicsError(f'The state before a sequence is "steady", "dark" or a tensor, not {state!r}.')
        return [frames[0] if state == "steady" else torch.zeros_like(frames[0])] * components
    if state.shape != (components, *frames.shape[1:]):
        raise PhysicsError(f"The state of the lag has shape {list(state.shape)}, of another sequence than this one.")
    return list(state)


def _pair(value, name: str) -> tuple[Tensor, Tensor]:
    value = torch.stack(list(map(as_tensor, value))) if isinstance(value, (list, tuple)) else as_tensor(value)
    known = value.detach()
    if value.numel() not in (1, 2) or not bool(((known >= 0) & (known <= _LARGEST_WIDTH)).all()):
        raise PhysicsError(f"{name} is one number or two, of 0 to {_LARGEST_WIDTH:g} mm, got {known.tolist()}.")
    flat = value.reshape(-1)
    return flat[0], flat[-1]


def _margin(size: int) -> int:
    return min(size, max(_SMALLEST_MARGIN, size // 8))


def _fast_size(size: int) -> int:
    """The next even product of 2, 3 and 5, of which Fourier transforms are fast."""
    while True:
        rest = size
        for factor in (2, 3, 5):
            while rest % factor == 0:
                rest //= factor
        if rest == 1 and size % 2 == 0:
            return size
        size += 1


def _mirrored(image: Tensor, sides: tuple[int, int], ends: tuple[int, int]) -> Tensor:
    """[..., H, W] with mirrored margins, the edge pixel repeated."""
    height, width = image.shape[-2:]
    rows = _mirror_index(height, *ends, image.device)
    columns = _mirror_index(width, *sides, image.device)
    return image.index_select(-2, rows).index_select(-1, columns)


def _mirror_index(size: int, before: int, after: int, device: torch.device) -> Tensor:
    place = torch.arange(-before, size + after, device=device) % (2 * size)
    return torch.where(place < size, place, 2 * size - 1 - place)
