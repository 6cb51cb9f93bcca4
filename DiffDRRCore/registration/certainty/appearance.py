"""How well the rendered image of a finished registration explains an X-ray, in a few numbers; see `doubts`."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from DiffDRRCore.geometry import Pose
from DiffDRRCore.imaging.xray import XRay
from DiffDRRCore.rendering import Renderer
from DiffDRRCore.similarity import ZNCC, GradientNCC
from DiffDRRCore.similarity.robust import outlier_weights

SIDE = 128  # pixels of the images compared
_LOW_WEIGHT = 0.5  # below it a pixel is not explained
_NEGATIVE = -0.3  # correlation
_SMOOTHING = 1 / 16  # of the shorter side, before the signs of two images that lie apart are compared


@dataclass(frozen=True)
class Appearance:
    """How alike an X-ray and the rendered image are, at 128 pixels.

    Attributes:
        grey: their ZNCC.  edges: the normalised correlation of their gradients, which says more of a wrong pose: large
            shadows agree in many poses, outlines only in the right one.
        unexplained: the share of the pixels in which the CT shows, and which count, that differ from the rendered image
            by far more than most (Tukey weight below one half, `robust.outlier_weights`).
        blob: the largest connected part of these, as a share of the same pixels.
        blob_at: its middle (column, row) in pixels of the X-ray, or None where there is none.
    """

    grey: float
    edges: float
    unexplained: float
    blob: float
    blob_at: tuple[float, float] | None


def appearance(renderer: Renderer, xray: XRay, pose: Pose, weight: Tensor | None = None) -> Appearance:
    """Compare an X-ray of attenuation with the CT rendered at `pose`; `weight` [H, W] is what counts, or None.

    Render all of the CT that the X-ray shows; of some labels only, the numbers are lower for reasons of their own.
    """
    every = max(1, round(max(xray.image.shape) / SIDE))
    size = [max(8, n // every) for n in xray.image.shape]
    small = xray.resampled(*size)
    with torch.no_grad():
        image = renderer(small.camera, pose)
    counted = None
    if weight is not None:
        counted = torch.nn.functional.adaptive_avg_pool2d(weight.detach().cpu().double()[None, None], size)
    return compared(image, small.image[None, None], counted, tuple(xray.image.shape))


def compared(image: Tensor, fixed: Tensor, weight: Tensor | None, shape: tuple[int, int]) -> Appearance:
    """The same of a rendered image, an X-ray and its weight [1, 1, H, W]; `shape` is that of the full-size X-ray."""
    image, fixed = (one.detach().cpu().double() for one in (image, fixed))
    counted = None
    if weight is not None:
        counted = weight.detach().cpu().double()
        counted = torch.where(counted > 0.99, counted, 0.0)
    low = outlier_weights(image, fixed, counted, None, "tukey")[0, 0] < _LOW_WEIGHT
    shown = image[0, 0] > 0
    if counted is not None:
        shown &= counted[0, 0] > 0
    share, blob, middle = _blob((low & shown).numpy(), int(shown.sum()))
    scores = [float(measure(image, fixed, counted)) for measure in (ZNCC(), GradientNCC())]
    scale = [shape[n] / fixed.shape[n + 2] for n in (0, 1)]
    at = None if middle is None else ((middle[1] + 0.5) * scale[1] - 0.5, (middle[0] + 0.5) * scale[0] - 0.5)
    return Appearance(*scores, share, blob, at)


def looks_negative(image: Tensor, rendered: Tensor, weight: Tensor | None = None) -> bool:
    """Whether an X-ray [H, W] is bright where the CT's rendered image is dark, as one of transmission would be.

    Both are blurred, so a start some centimetres off does. False where neither sign fits. `weight` [H, W] is what
    counts, or None.
    """
    counted = torch.ones_like(image) if weight is None else weight
    known, *pair = (one.detach().cpu().double().numpy() for one in (counted, image, rendered))
    sigma = _SMOOTHING * min(image.shape)
    share = ndimage.gaussian_filter(known, sigma)
    seen = (known > 0) & (share > 0)
    blurred = [ndimage.gaussian_filter(known * one, sigma)[seen] / share[seen] for one in pair]
    if not seen.any() or min(float(one.std()) for one in blurred) == 0:
        return False
    return bool(np.corrcoef(*blurred)[0, 1] < _NEGATIVE)


def disagreement(found: Pose, other: Pose, points: Tensor) -> tuple[float, float]:
    """(across, along) the beam of a view, root mean square in mm, by which two poses see points [N, 3] (RAS mm) apart.

    A second registration, started where the first one ended, with another measure ("gradient_ncc" after "zncc"), errs
    in other ways: where scatter, metal or contrast agent drew the first one away, the two differ.
    """
    places = [pose.inverse().matrix.reshape(4, 4).double() for pose in (found, other)]
    local = [points.double() @ place[:3, :3].T + place[:3, 3] for place in places]
    apart = local[1] - local[0]
    return math.sqrt(float(apart[:, :2].square().sum(-1).mean())), math.sqrt(float(apart[:, 2].square().mean()))


def _blob(low: np.ndarray, total: int) -> tuple[float, float, tuple[float, float] | None]:
    """(share of all, share of the largest region, its middle (row, column)); thin lines, as of edges, do not count."""
    thick = ndimage.binary_opening(low, np.ones((3, 3), dtype=bool))
    labels, count = ndimage.label(thick, np.ones((3, 3), dtype=bool))
    share = float(low.sum()) / max(total, 1)
    if count == 0:
        return share, 0.0, None
    sizes = np.bincount(labels.ravel())[1:]
    largest = int(sizes.argmax()) + 1
    return share, float(sizes.max()) / max(total, 1), ndimage.center_of_mass(labels == largest)
