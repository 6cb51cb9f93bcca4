"""Beads in an X-ray image: round blobs by the Laplacian of Gaussians, then the shadow of a ball fitted to each.

The Laplacian of Gaussians, scaled by its variance, has its extrema at blobs (Lindeberg, Feature detection with
automatic scale selection, IJCV 30, 1998); the ratio of the curvatures there tells a blob from an edge. The fit gives
the centre to a few hundredths of a pixel: attenuation along a chord of a ball, a sqrt(1 - d^2 / r^2), with a soft rim,
on a tilted plane. The outline's centre lies R^2 / z^2 f tan(angle) beside the centre's projection (R: radius, z: depth,
angle: off the axis), below 0.01 pixels for beads of a few mm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, gaussian_laplace, maximum_filter
from scipy.optimize import least_squares
from torch import Tensor

from DiffDRRCore.errors import CalibrationError
from DiffDRRCore.geometry import as_tensor
from DiffDRRCore.imaging.camera_file import INTENSITIES
from DiffDRRCore.imaging.xray import XRay

Array = NDArray[np.float64]
_STEP = 1.3  # between scales
_ROUND = 0.4  # least ratio of the two curvatures
_MAD_TO_DEVIATION = 1.4826
_THRESHOLD = 6.0  # deviations of the Laplacian's noise
_STRONGEST = 0.08  # of the strong blobs' contrast: less is texture
_WINDOW = 1.8  # radii
_LEFT = 0.25  # of the contrast: residual of a fit, rms, that is no ball
_OTHER = 0.2  # logarithm of radii: beyond it a fit has its window anew
_STOP = {"xtol": 1e-4, "ftol": 1e-6, "gtol": 1e-8, "max_nfev": 100}
_MOST = 400  # candidates


@dataclass(frozen=True)
class Beads:
    """Beads of an image: centers [N, 2] (u, v), radii [N] and deviations [N] of the centres in pixels, contrast [N] of
    attenuation at the centre; strongest first."""

    centers: Tensor
    radii: Tensor
    contrast: Tensor
    deviations: Tensor

    def __len__(self) -> int:
        return len(self.centers)


def find_beads(image: XRay | Tensor, radius_range: tuple[float, float], intensity: str | None = None) -> Beads:
    """Find beads: small round shadows.

    Args:
        image: an `XRay`, or [H, W].
        radius_range: least and largest radius in pixels; give it some room.
        intensity: "transmission" (beads are dark) or "attenuation" (beads are bright); None is what the X-ray says.
            Positive transmission becomes attenuation by -log.

    Beads that the image's border cuts, edges, and blobs that look like no ball are left out. Finding none is no error.
    Raises CalibrationError for an impossible range of radii, and an image not [H, W] or of unknown intensity.
    """
    low, high = _radii(radius_range)
    attenuation = _attenuation(image, intensity)
    if min(attenuation.shape) < 4 * low:
        raise CalibrationError(f"Beads of {low:g} pixels' radius do not fit an image of {attenuation.shape} pixels.")
    candidates = _candidates(attenuation, low, high)
    fits = [_fitted(attenuation, candidates, number, low, high) for number in range(len(candidates))]
    return _beads(_distinct([fit for fit in fits if fit is not None]))


def _radii(radius_range) -> tuple[float, float]:
    try:
        low, high = (float(value) for value in radius_range)
    except (TypeError, ValueError) as error:
        raise CalibrationError("The radii to look for are two numbers, the least and the largest (pixels).") from error
    if not 0.5 <= low <= high < float("inf"):
        raise CalibrationError(f"Radii to look for go from 0.5 pixels upwards, got {low:g} to {high:g}.")
    return low, high


def _attenuation(image: XRay | Tensor, intensity: str | None) -> Array:
    if isinstance(image, XRay):
        intensity, logarithmic = intensity or image.intensity, bool(image.meta.get("logarithmic"))
        image = image.image
    else:
        logarithmic = False
    if intensity not in INTENSITIES:
        raise CalibrationError(f"Say what is bright in the image: intensity is one of {', '.join(INTENSITIES)}.")
    values = as_tensor(image, torch.float64).detach().cpu().numpy()
    if values.ndim != 2 or not np.isfinite(values).all():
        raise CalibrationError(f"An image is [H, W] finite numbers, got shape {list(values.shape)}.")
    if intensity == "attenuation":
        return values
    if logarithmic or values.min() < 0 or values.max() <= 0:
        return -values
    return -np.log(np.maximum(values, 1e-3 * np.quantile(values, 0.999)))


def _candidates(image: Array, low: float, high: float) -> Array:
    """[C, 3]: (u, v, radius) of round maxima over place and scale, strongest first."""
    count = max(2, int(np.ceil(np.log(high / low) / np.log(_STEP))) + 1)
    sigmas = np.geomspace(low, high, count) / 1.6  # the maximum of a ball's shadow: sigma = r / 1.6
    responses = np.stack([-(sigma**2) * gaussian_laplace(image, sigma, mode="nearest") for sigma in sigmas])
    noise = np.array([_noise(one) for one in responses])
    peaks = responses == maximum_filter(responses, size=(3, 3, 3), mode="nearest")
    scale, v, u = np.nonzero(peaks & (responses > _THRESHOLD * noise[:, None, None]))
    strength = responses[scale, v, u]
    order = np.argsort(-strength, kind="stable")
    if len(order):
        strong = float(np.median(strength[order][:20]))
        order = order[strength[order] > _STRONGEST * strong][:_MOST]
    smooth = [gaussian_filter(image, sigma, mode="nearest") for sigma in sigmas]
    kept = [k for k in order if _is_round(smooth[scale[k]], u[k], v[k], max(1, round(sigmas[scale[k]])))]
    return np.stack([u[kept], v[kept], 1.6 * sigmas[scale[kept]]], axis=-1).astype(float).reshape(-1, 3)


def _noise(response: Array) -> float:
    """Standard deviation of a Laplacian but for the blobs in it, and for flat borders, which have none."""
    values = response[response != 0]
    return _MAD_TO_DEVIATION * float(np.median(np.abs(values))) if len(values) else 0.0


def _is_round(image: Array, u: int, v: int, step: int) -> bool:
    """Whether the image curves alike in all directions."""
    height, width = image.shape
    if not (step <= u < width - step and step <= v < height - step):
        return False
    patch = image[v - step : v + step + 1 : step, u - step : u + step + 1 : step]
    uu, vv = patch[1, 0] + patch[1, 2] - 2 * patch[1, 1], patch[0, 1] + patch[2, 1] - 2 * patch[1, 1]
    uv = (patch[0, 0] + patch[2, 2] - patch[0, 2] - patch[2, 0]) / 4
    weak, strong = np.sort(-np.linalg.eigvalsh([[uu, uv], [uv, vv]]))
    return bool(strong > 0 and weak > _ROUND * strong)


class _Fit(NamedTuple):
    u: float
    v: float
    radius: float
    contrast: float
    deviation: float


def _fitted(image: Array, candidates: Array, number: int, low: float, high: float) -> _Fit | None:
    """The ball of one candidate; None where there is none, or the border cuts it."""
    u, v, radius = candidates[number]
    fit = _fit(image, candidates, number, u, v, radius)
    if fit is not None and abs(np.log(fit.radius / radius)) > _OTHER:  # the window was of another size
        fit = _fit(image, candidates, number, fit.u, fit.v, min(max(fit.radius, low), high))
    if fit is None:
        return None
    return fit if 0.8 * low <= fit.radius <= 1.25 * high and fit.contrast > 0 else None


def _fit(image: Array, candidates: Array, number: int, u: float, v: float, radius: float) -> _Fit | None:
    half = _WINDOW * radius + 2
    height, width = image.shape
    left, right, top, bottom = round(u - half), round(u + half), round(v - half), round(v + half)
    if u - radius < 0.5 or v - radius < 0.5 or u + radius > width - 1.5 or v + radius > height - 1.5:
        return None
    columns = np.arange(max(left, 0), min(right, width - 1) + 1)
    rows = np.arange(max(top, 0), min(bottom, height - 1) + 1)
    x, y = (grid.ravel() for grid in np.meshgrid(columns - u, rows - v))
    near = x * x + y * y <= half * half
    near &= ~_others(candidates, number, u, v, x, y)
    x, y = x[near], y[near]
    values = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].ravel()[near]
    if len(values) < 20:
        return None
    return _solve(values, x, y, u, v, radius)


def _others(candidates: Array, number: int, u: float, v: float, x: Array, y: Array) -> NDArray[np.bool_]:
    """Pixels of the window that belong to another candidate."""
    other = np.delete(candidates, number, axis=0)
    own = candidates[number, 2]
    away = np.hypot(other[:, 0] - u, other[:, 1] - v)
    other = other[(away < 4 * own + other[:, 2]) & (away > 0.7 * own)]
    taken = np.zeros(len(x), dtype=bool)
    for a, b, radius in other:
        squares = (x + u - a) ** 2 + (y + v - b) ** 2
        taken |= (squares < (1.3 * radius + 1) ** 2) & (squares < x * x + y * y)
    return taken


def _solve(values: Array, x: Array, y: Array, u: float, v: float, radius: float) -> _Fit | None:
    """Centre, radius and rim by least squares; contrast and background, which are linear, within."""
    background = np.stack([np.ones_like(x), x / radius, y / radius], axis=-1)
    scale = float(np.ptp(values)) or 1.0

    def linear(p: Array) -> tuple[Array, float]:
        """Residuals, and the contrast: what is linear is solved for each set of the others."""
        ball = _ball(x - p[0], y - p[1], np.exp(np.clip(p[2], -3, 6)), np.exp(np.clip(p[3], -5, 1)))
        matrix = np.concatenate([ball[:, None], background], axis=1)
        square = matrix.T @ matrix
        found = np.linalg.solve(square + 1e-9 * np.trace(square) * np.eye(4), matrix.T @ values)
        return (matrix @ found - values) / scale, float(found[0])

    start = np.array([0.0, 0.0, np.log(radius), np.log(0.2)])
    fit = least_squares(lambda p: linear(p)[0], start, method="lm", x_scale=[0.1, 0.1, 0.1, 1.0], **_STOP)
    contrast = linear(fit.x)[1]
    left = float(np.sqrt(np.mean((fit.fun * scale) ** 2)))
    if not contrast > 0 or left > _LEFT * contrast or np.hypot(fit.x[0], fit.x[1]) > 0.8 * radius:
        return None
    information = fit.jac[:, :2].T @ fit.jac[:, :2] * (scale / max(left, 1e-9 * scale)) ** 2
    deviation = float(np.sqrt(np.trace(np.linalg.pinv(information)) / 2))
    return _Fit(u + fit.x[0], v + fit.x[1], float(np.exp(fit.x[2])), contrast, deviation)


def _ball(x: Array, y: Array, radius: float, rim: float) -> Array:
    """sqrt(1 - d^2 / r^2) with a soft zero: 1 - d^2 / r^2 becomes the mean of itself and its length with the rim."""
    inner = 1 - (x * x + y * y) / radius**2
    return np.sqrt((inner + np.sqrt(inner * inner + rim * rim)) / 2)


def _distinct(fits: list[_Fit]) -> list[_Fit]:
    """Of fits that fell on one bead, the one of the highest contrast."""
    kept: list[_Fit] = []
    for fit in sorted(fits, key=lambda one: -one.contrast * one.radius):
        if all(np.hypot(fit.u - one.u, fit.v - one.v) > max(1.0, 0.5 * max(one.radius, fit.radius)) for one in kept):
            kept.append(fit)
    return kept


def _beads(fits: list[_Fit]) -> Beads:
    table = torch.tensor([list(fit) for fit in fits], dtype=torch.float64).reshape(-1, 5)
    return Beads(table[:, :2], table[:, 2], table[:, 3], table[:, 4])
