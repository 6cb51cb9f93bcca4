"""Image distortion: where a pixel of the ideal pinhole image (u, v) is found in the image that the detector gives.

    observed(u, v) = (u, v) + sum_p c_p f_p(u, v)

with fields f_p in pixels that depend on the kind: `RadialDistortion` has four (Brown, Close-range camera calibration,
Photogrammetric Engineering 37, 1971), `GridDistortion` a smooth grid of them. The camera and the distortion belong
together: rays come from the camera's K at the undistorted pixel.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from DiffDRRCore.errors import CalibrationError
from DiffDRRCore.geometry import Camera, as_tensor

_ROUNDS = 50  # of Newton's method, which needs four
_EXACT = 1e-9  # pixels
_PIXELS_AT_ONCE = 1 << 17


class Distortion(ABC):
    """A distortion of an image. Nothing is changed in place.

    Args:
        coefficients: [P], one for each field; 0 is no distortion.

    Raises:
        CalibrationError: numbers that are not finite, or not P of them.
    """

    groups: dict[str, list[int]]
    """The coefficients by the name under which `calibrate` frees them."""

    def __init__(self, coefficients):
        self.coefficients = as_tensor(coefficients, torch.float64).flatten()
        if not bool(torch.isfinite(self.coefficients.detach()).all()):
            raise CalibrationError("The distortion has coefficients that are not finite numbers.")

    @abstractmethod
    def fields(self, uv: Tensor) -> Tensor:
        """The shift [N, 2, P] in pixels that each coefficient brings to the ideal pixels uv [N, 2]."""

    @abstractmethod
    def slopes(self, uv: Tensor) -> Tensor:
        """Derivatives [N, 2, 2, P] of the fields: component, then direction (u, v)."""

    @abstractmethod
    def with_coefficients(self, coefficients) -> Distortion:
        """Of the same kind with other coefficients [P]."""

    @abstractmethod
    def to_dict(self) -> dict:
        """Plain values that `distortion_from_dict` makes the same distortion of."""

    def shift(self, uv: Tensor) -> Tensor:
        """Observed less ideal pixel [N, 2]."""
        return self.fields(uv) @ self.coefficients.to(uv)

    def distort(self, uv) -> Tensor:
        """Observed pixels [..., 2] of ideal ones [..., 2]; differentiable in both pixels and coefficients."""
        uv = as_tensor(uv)
        flat = uv.reshape(-1, 2).to(torch.promote_types(uv.dtype, self.coefficients.dtype))
        return (flat + self.shift(flat)).reshape(uv.shape)

    def jacobian(self, uv) -> Tensor:
        """d observed / d ideal, [..., 2, 2], at ideal pixels [..., 2]."""
        uv = as_tensor(uv, torch.float64)
        slope = self.slopes(uv.reshape(-1, 2)) @ self.coefficients.to(uv)
        return (slope + torch.eye(2).to(slope)).reshape(*uv.shape[:-1], 2, 2)

    def undistort(self, uv) -> Tensor:
        """Ideal pixels [..., 2] of observed ones, by Newton's method to 1e-9 pixels; NaN where there is none.

        The result has no gradient.
        """
        observed = as_tensor(uv, torch.float64).detach()
        target = observed.reshape(-1, 2)
        ideal, left = torch.full_like(target, torch.nan), target.isfinite().all(dim=-1).nonzero()[:, 0]
        guess = target[left]
        with torch.no_grad():
            for _ in range(_ROUNDS):
                miss, slope = target[left] - self.distort(guess), self.jacobian(guess)
                done = (miss.abs() <= _EXACT).all(dim=-1)
                ideal[left[done]] = torch.where(_upright(slope[done])[:, None], guess[done], torch.nan)
                left, guess = left[~done], (guess + _divided(miss, slope))[~done]
                if not len(left):
                    break
        return ideal.reshape(observed.shape)

    def undistorted(self, image, fill: float = 0.0) -> Tensor:
        """The image [H, W] that an ideal detector would give: each ideal pixel takes its observed value (cubic spline).

        `fill` goes where the observed place lies outside of the image. Take attenuation rather than raw intensity for
        images with sharp bright borders. Raises CalibrationError for anything but [H, W].
        """
        from scipy.ndimage import map_coordinates, spline_filter

        image = as_tensor(image)
        if image.ndim != 2 or min(image.shape) < 2:
            raise CalibrationError(f"An image is [H, W] with two or more pixels a side, got {list(image.shape)}.")
        height, width = image.shape
        spline = spline_filter(image.detach().cpu().double().numpy(), mode="mirror")
        result = np.empty(height * width)
        for first in range(0, height * width, _PIXELS_AT_ONCE):
            number = torch.arange(first, min(first + _PIXELS_AT_ONCE, height * width))
            uv = self.distort(torch.stack([number % width, number // width], dim=-1).double()).detach().numpy()
            values = map_coordinates(spline, uv.T[::-1], prefilter=False, mode="mirror")
            inside = ((uv >= -0.5) & (uv <= [width - 0.5, height - 0.5])).all(-1)
            result[first : first + len(uv)] = np.where(inside, values, fill)
        dtype = image.dtype if image.is_floating_point() else torch.float32
        return torch.from_numpy(result).reshape(height, width).to(dtype)

    def largest(self, camera: Camera) -> float:
        """The largest shift in the image, pixels."""
        steps = [torch.linspace(0, size - 1, 33, dtype=torch.float64) for size in (camera.width, camera.height)]
        shift = self.shift(torch.cartesian_prod(*steps)).detach()
        return float(torch.linalg.vector_norm(shift, dim=-1).max())


def unexposed(image: Tensor, intensity: str | None) -> float:
    """The value of an image where no X-rays arrive, as behind a collimator: for what an undistorted image lacks."""
    return float(image.max() if intensity == "attenuation" else image.min())


class RadialDistortion(Distortion):
    """Brown-Conrady with two radial and two tangential coefficients.

    With x = (u - u0) / su, y = (v - v0) / sv and r^2 = x^2 + y^2, in units of (su, sv) pixels:
    dx = x (k1 r^2 + k2 r^4) + 2 p1 x y + p2 (r^2 + 2 x^2), dy = y (k1 r^2 + k2 r^4) + p1 (r^2 + 2 y^2) + 2 p2 x y.
    Pincushion is k1 > 0, barrel k1 < 0.

    Args:
        coefficients: (k1, k2, p1, p2).
        center: (u0, v0) in pixels.
        scale: (su, sv) in pixels. `of_image` takes the image's half diagonal, so that k1 = 0.05 moves the corner by
            5 %; `of_camera` the focal lengths and the principal point, which are OpenCV's coefficients.
    """

    groups: ClassVar = {"distortion": [0, 1], "tangential": [2, 3]}

    def __init__(self, coefficients, center, scale):
        super().__init__(coefficients)
        self.center, self.scale = (as_tensor(pair, torch.float64).detach() for pair in (center, scale))
        if self.coefficients.shape != (4,):
            raise CalibrationError(f"A radial distortion has (k1, k2, p1, p2), got {len(self.coefficients)} numbers.")
        if self.center.shape != (2,) or self.scale.shape != (2,) or not bool((self.scale != 0).all()):
            raise CalibrationError("The centre and the scale of a radial distortion are pairs, the scale not zero.")

    @classmethod
    def of_image(cls, camera: Camera, coefficients=(0.0, 0.0, 0.0, 0.0)) -> RadialDistortion:
        """About the image's centre, in units of its half diagonal."""
        row, column = camera.pixel_spacing.detach().tolist()
        half = math.hypot(camera.height * row, camera.width * column) / 2
        return cls(coefficients, ((camera.width - 1) / 2, (camera.height - 1) / 2), (half / column, half / row))

    @classmethod
    def of_camera(cls, camera: Camera, coefficients=(0.0, 0.0, 0.0, 0.0)) -> RadialDistortion:
        """About the principal point, in units of the focal lengths: OpenCV's (k1, k2, p1, p2)."""
        K = camera.K.detach()
        return cls(coefficients, K[:2, 2], (K[0, 0], K[1, 1]))

    def with_coefficients(self, coefficients) -> RadialDistortion:
        """See `Distortion`."""
        return RadialDistortion(coefficients, self.center, self.scale)

    def fields(self, uv: Tensor) -> Tensor:
        """See `Distortion`."""
        x, y = self._local(uv)
        r2 = x * x + y * y
        du = torch.stack([x * r2, x * r2**2, 2 * x * y, r2 + 2 * x * x], dim=-1)
        dv = torch.stack([y * r2, y * r2**2, r2 + 2 * y * y, 2 * x * y], dim=-1)
        return torch.stack([du, dv], dim=-2) * self.scale.to(uv)[:, None]

    def slopes(self, uv: Tensor) -> Tensor:
        """See `Distortion`."""
        x, y = self._local(uv)
        r2 = x * x + y * y
        xy, x2, y2 = 2 * x * y, 2 * x * x, 2 * y * y
        uu = torch.stack([r2 + x2, r2**2 + 2 * r2 * x2, 2 * y, 6 * x], dim=-1)
        vv = torch.stack([r2 + y2, r2**2 + 2 * r2 * y2, 6 * y, 2 * x], dim=-1)
        across = torch.stack([xy, 2 * r2 * xy, 2 * x, 2 * y], dim=-1)
        su, sv = self.scale.to(uv)
        rows = [torch.stack([uu, across * (su / sv)], dim=-2), torch.stack([across * (sv / su), vv], dim=-2)]
        return torch.stack(rows, dim=-3)

    def _local(self, uv: Tensor) -> tuple[Tensor, Tensor]:
        return ((uv - self.center.to(uv)) / self.scale.to(uv)).unbind(dim=-1)

    def to_dict(self) -> dict:
        """See `Distortion`."""
        names = dict(zip(("k1", "k2", "p1", "p2"), self.coefficients.detach().tolist(), strict=True))
        return {"model": "radial", **names, "center": self.center.tolist(), "scale": self.scale.tolist()}

    def __repr__(self) -> str:
        return f"RadialDistortion({self.coefficients.detach().tolist()}, {self.center.tolist()}, {self.scale.tolist()})"


def _divided(vectors: Tensor, matrices: Tensor) -> Tensor:
    """M^-1 v [N, 2], by Cramer's rule."""
    a, b, c, d = matrices.flatten(1).unbind(dim=-1)
    x, y = vectors.unbind(dim=-1)
    return torch.stack([d * x - b * y, a * y - c * x], dim=-1) / (a * d - b * c)[:, None]


def _upright(slope: Tensor) -> Tensor:
    """Whether a solution lies before any fold: those beyond are mirrored or turned around."""
    return (torch.linalg.det(slope) > 0) & (slope.diagonal(dim1=-2, dim2=-1).sum(dim=-1) > 0)
