"""From an X-ray of any size and camera to the pixels that a network was trained on.

Two cameras at the same place see the same rays, whatever their focal lengths, pixels, principal points and sides they
are seen from. Their pixels are related by the homography K K_new^-1 (Hartley and Zisserman, Multiple View Geometry,
8.4.2), here u_old = a u + b v + c, v_old = d v + e, with b = 0 where neither has skew. So the image is resampled to
exactly what the other camera would have shown at the same pose, and the pose found in it is the X-ray's own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from DiffDRRCore.errors import LearningError
from DiffDRRCore.geometry import Camera
from DiffDRRCore.imaging.resampling import axis_weights
from DiffDRRCore.physics.simulation.ranges import Ranges

_LEAST_SKEW = 1e-3  # pixels over the whole image


@dataclass(frozen=True)
class Field:
    """The cameras that a network was trained for.

    Attributes:
        camera: the one that the others vary from.
        zoom: (least, most) factor on its focal lengths in pixels, that is sdd / field over the camera's own.
        shift_u, shift_v: (least, most) mm on its detector by which the principal point moves.
    """

    camera: Camera
    zoom: tuple[float, float] = (1.0, 1.0)
    shift_u: tuple[float, float] = (0.0, 0.0)
    shift_v: tuple[float, float] = (0.0, 0.0)

    @classmethod
    def of(cls, camera: Camera, ranges: Ranges) -> Field:
        """Of the camera and the ranges of the training's views (`data.views`).

        A normal range counts from two standard deviations below its mean to two above.
        """
        base = float(camera.source_to_detector)
        (near, far), (small, large) = _ends(ranges, "sdd", base), _ends(ranges, "field", 1.0)
        zoom = (near / base / large, far / base / small)
        return cls(camera, zoom, _ends(ranges, "offset_u", 0.0), _ends(ranges, "offset_v", 0.0))

    @property
    def degrees(self) -> tuple[float, float]:
        """(least, most) angle of view across the image's width."""
        half = self.camera.width / (2 * abs(float(self.camera.K[0, 0])))
        return tuple(2 * math.degrees(math.atan(half / zoom)) for zoom in self.zoom[::-1])

    def grid(self, camera: Camera) -> Camera:
        """The one of these cameras, seen from the source, whose image an X-ray of `camera` fills best.

        It looks at the X-ray's middle and is no wider than the X-ray, as far as the training's ranges reach.
        Raises LearningError for a parallel beam.
        """
        if camera.parallel or self.camera.parallel:
            raise LearningError("A network needs X-rays of a point source; this camera has a parallel beam.")
        base = self.camera.detached().to("cpu", torch.float64)
        shifts = [self.shift_u, self.shift_v]
        if float(base.K[0, 0]) < 0:
            base, shifts[0] = base.flipped(), tuple(-shift for shift in self.shift_u[::-1])
        wanted = camera.detached().to("cpu", torch.float64)
        wanted = wanted.flipped() if float(wanted.K[0, 0]) < 0 else wanted
        sizes = ((base.width, wanted.width), (base.height, wanted.height))
        zooms = [own / base.K[k, k] / (other / wanted.K[k, k]) for k, (own, other) in enumerate(sizes)]
        zoom = min(max(float(max(zooms)), self.zoom[0]), self.zoom[1])
        K = base.K.clone()
        K[:2, :2] *= zoom
        for k, (own, other) in enumerate(sizes):
            step = float(base.pixel_spacing[1 - k])
            nominal = float(base.K[k, 2]) - (own - 1) / 2
            least, most = (nominal + shift / step for shift in shifts[k])
            aim = float((wanted.K[k, 2] - (other - 1) / 2) / wanted.K[k, k] * base.K[k, k])
            K[k, 2] = (own - 1) / 2 + zoom * min(max(aim, least), most)
        distance = base.source_to_detector
        return Camera.from_intrinsics(K, base.height, base.width, source_to_detector=distance)


def _ends(ranges: Ranges, name: str, default: float) -> tuple[float, float]:
    one = ranges.of.get(name)
    if one is None:
        return default, default
    if one.kind != "normal":
        return one.ends
    mean, deviation = one.numbers
    return max(one.within[0], mean - 2 * deviation), min(one.within[1], mean + 2 * deviation)


def resampled(image: Tensor, camera: Camera, new_camera: Camera) -> tuple[Tensor, Tensor]:
    """An image [..., H, W] of `camera` as `new_camera` would have taken it from the same place, and where it is.

    Averaged over each new pixel's area where pixels become larger, linearly interpolated where they become smaller; in
    other respects as `imaging.resampling.resample`, and with skew.

    Returns:
        image [..., H', W'], and mask [H', W'] bool of the pixels whose centres lie in the old image; the others are 0.

    Raises LearningError for images of another size than the camera's, parallel beams and batches of cameras.
    """
    if tuple(image.shape[-2:]) != (camera.height, camera.width):
        raise LearningError(
            f"The image has {list(image.shape)} pixels but its camera {camera.height} x {camera.width}."
        )
    if camera.parallel or new_camera.parallel or camera.K.dim() != 2 or new_camera.K.dim() != 2:
        raise LearningError("Images are resampled between two single cameras with point sources.")
    old, new = (one.K.detach().to("cpu", torch.float64) for one in (camera, new_camera))
    (a, b, c), (_, d, e) = (old @ torch.linalg.inv(new))[:2].tolist()
    rows = axis_weights(camera.height, new_camera.height, d, e)
    is_skew = abs(b) * new_camera.height > _LEAST_SKEW
    shifts = [c + b * v for v in range(new_camera.height)] if is_skew else [c]
    columns = torch.stack([axis_weights(camera.width, new_camera.width, a, shift) for shift in shifts])
    mask = (rows.sum(-1) > 0)[:, None] & (columns.sum(-1) > 0)
    half = rows.to(image) @ image
    return (columns.to(image) @ half[..., None])[..., 0], mask.to(image.device)
