"""Where one rendered view fits an X-ray: turns, sizes and shifts in the image without rendering again.

Six numbers say where a C-arm stands about a pivot in the CT: the direction from which the source sees it (two angles),
the distance, the roll, and where the image shows it. Only the direction changes what is seen; the other four turn,
scale and shift the image (up to perspective, which is small at these sizes). So one view of each direction is rendered,
wider than the X-ray, and the X-ray, turned and scaled to a list of templates, is found in it by the correlation
coefficient at every shift, by Fourier transforms (Lewis, Fast normalized cross-correlation, Vision Interface 1995; with
masks, Padfield, IEEE Transactions on Image Processing 21(5), 2012). The masks leave out what an X-ray's weight hides,
and rays that pass by a CT which is smaller than what the X-ray shows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, grid_sample

from DiffDRRCore.geometry import Camera, CArm, Pose
from DiffDRRCore.geometry.tensors import homogeneous
from DiffDRRCore.imaging.volume import Volume
from DiffDRRCore.imaging.xray import XRay

_COUNTED = 0.99  # share of a template's pixel that must lie on what counts of the X-ray
_LEAST_SHARE = 0.5  # of the pixels of the template, or of the view where it has fewer, that must count
_FAST = {2**i * 3**j * 5**k for i in range(12) for j in range(7) for k in range(5)}
_FLAT = 1e-4  # squared contrast, as a part of the squared values, below which a window is as good as empty


@dataclass(frozen=True)
class Canvas:
    """The plane at distance 1 from the source, around the pivot's projection: `size` x `size` pixels of `pitch`."""

    size: int
    pitch: float

    @property
    def coordinates(self) -> Tensor:
        """(x, y) [size, size, 2], zero in the middle."""
        along = (torch.arange(self.size, dtype=torch.float64) - (self.size - 1) / 2) * self.pitch
        y, x = torch.meshgrid(along, along, indexing="ij")
        return torch.stack([x, y], dim=-1)

    def camera(self, source_to_detector: float) -> Camera:
        """The camera whose image it is."""
        middle, focal = (self.size - 1) / 2, 1 / self.pitch
        K = [[focal, 0.0, middle], [0.0, focal, middle], [0.0, 0.0, 1.0]]
        return Camera.from_intrinsics(K, self.size, self.size, source_to_detector=source_to_detector)


@dataclass(frozen=True)
class Templates:
    """An X-ray turned and scaled, each [T] on a canvas.

    Attributes:
        roll: [T] degrees.  distance: [T] mm from the source to the pivot.
        scale: [T] sizes on the X-ray as multiples of those on the canvas.
        middle: (x, y) of the X-ray's centre in the plane at distance 1.
        image, square, weight: conjugated spectra [T, size, size // 2 + 1] of weight * (image - its mean), of weight *
            (image - its mean)^2, and of the weight (0 or 1).
        count: [T] sum of the weight; infinite for templates that are not to be used.
    """

    canvas: Canvas
    roll: Tensor
    distance: Tensor
    scale: Tensor
    middle: Tensor
    image: Tensor
    square: Tensor
    weight: Tensor
    count: Tensor

    def centres(self) -> Tensor:
        """(x, y) [T, size, size, 2] in the X-ray's plane at distance 1 where the pivot shows, for each shift.

        Shifts are in the order of a discrete Fourier transform: 0, 1, ..., -1.
        """
        along = torch.fft.fftfreq(self.canvas.size, dtype=torch.float64) * self.canvas.size * self.canvas.pitch
        down, right = torch.meshgrid(along, along, indexing="ij")
        shift = torch.stack([right, down], dim=-1)
        return self.middle - _turned(shift.expand(len(self.roll), -1, -1, -1), self.roll, self.scale)

    def correlation(self, views: Tensor, covered: Tensor) -> Tensor:
        """Correlation coefficients [B, T, size, size] at all shifts with rendered canvases [B, size, size].

        Only pixels count that do in the template and in `covered` [B, size, size] (0 or 1); where they are less than
        half of the fewer of the two, or where one side has no contrast there, it is -1.
        """
        views = covered * (views - _mean(views, covered))
        seen, squares, mask = (torch.fft.rfft2(image)[:, None] for image in (views, views.square(), covered))
        count = self._sum(mask * self.weight)
        average = count.clamp(min=1)
        here, there = self._sum(mask * self.image), self._sum(seen * self.weight)
        product = self._sum(seen * self.image) - here * there / average
        spread_here = self._sum(mask * self.square) - here.square() / average
        spread_there = self._sum(squares * self.weight) - there.square() / average
        fewer = torch.minimum(self.count, covered.sum(dim=(-2, -1))[:, None])
        enough = (count > _LEAST_SHARE * fewer[..., None, None]) & self.count.isfinite()[:, None, None]
        for spread in (spread_here, spread_there):
            enough = enough & (spread > _FLAT * spread.amax(dim=(1, 2, 3), keepdim=True))
        return torch.where(enough, product / (spread_here * spread_there).clamp(min=1e-30).sqrt(), -1.0)

    def _sum(self, spectrum: Tensor) -> Tensor:
        return torch.fft.irfft2(spectrum, (self.canvas.size, self.canvas.size))


def canvas_for(camera: Camera, grid: Tensor, reference: float, off_axis: float) -> Canvas:
    """A canvas at distance `reference` that holds all templates of a small X-ray at all shifts, with pixels like its.

    Args:
        grid: [T, 2] roll (degrees) and distance (mm) of the templates.
        off_axis: mm by which the pivot may lie off the central ray.
    """
    middle, half = _extent(camera)
    roll, distance = grid.unbind(-1)
    spans = _turn(roll).abs() @ half
    reach = spans.amax(-1) + off_axis / distance + middle.norm()
    pitch = float(1 / camera.K.diagonal()[:2].abs().max())
    return Canvas(_fast_size(2 * float((reach * distance / reference).max()) / pitch), pitch)


def make_templates(xray: XRay, weight: Tensor | None, canvas: Canvas, grid: Tensor, reference: float) -> Templates:
    """Templates of a small X-ray, for canvases rendered at distance `reference` (mm).

    Args:
        weight: [H, W] of its pixels; those above 0 count. None is all.
        grid: [T, 2] roll (degrees) and distance (mm).
    """
    (roll, distance), (middle, _) = grid.unbind(-1), _extent(xray.camera)
    scale = reference / distance
    image, weight = _sampled(
        xray, weight, middle + _turned(canvas.coordinates.expand(len(grid), -1, -1, -1), roll, scale)
    )
    count = weight.sum(dim=(-2, -1))
    residual = weight * (image - _mean(image, weight))
    spectra = (torch.fft.rfft2(plane).conj() for plane in (residual, residual.square(), weight))
    count = torch.where(count >= _LEAST_SHARE * count.max() / 2, count, math.inf)
    return Templates(canvas, roll, distance, scale, middle, *spectra, count)


def _mean(images: Tensor, weight: Tensor) -> Tensor:
    """[..., 1, 1] of images [..., H, W]."""
    return (weight * images).sum(dim=(-2, -1), keepdim=True) / weight.sum(dim=(-2, -1), keepdim=True).clamp(min=1)


def _sampled(xray: XRay, weight: Tensor | None, at: Tensor) -> tuple[Tensor, Tensor]:
    """Image and weight (0 or 1) [T, size, size] at places (x, y) [T, size, size, 2] of the plane at distance 1."""
    (height, width), K = xray.image.shape, xray.camera.K.double()
    uv = at @ K[:2, :2].T + K[:2, 2]
    place = (2 * uv / torch.tensor([width - 1, height - 1]) - 1).float()
    counted = torch.ones(height, width) if weight is None else (weight > 0).float()
    image = torch.where(counted > 0, xray.image.float(), 0.0)
    planes = torch.stack([image, counted]).expand(len(at), -1, -1, -1)
    image, counted = grid_sample(planes, place, align_corners=True).unbind(1)
    inside = (place.abs() <= 1).all(-1)
    return image, (inside & (counted > _COUNTED)).float()


def _extent(camera: Camera) -> tuple[Tensor, Tensor]:
    """Centre and half sizes [2] of an image in the plane at distance 1."""
    ends = torch.tensor([[-0.5, -0.5, 1.0], [camera.width - 0.5, camera.height - 0.5, 1.0]], dtype=torch.float64)
    low, high = (ends @ torch.linalg.inv(camera.K.double().cpu()).T)[:, :2]
    return (low + high) / 2, (high - low).abs() / 2


def _fast_size(least: float) -> int:
    """The next product of twos, threes and fives, for which Fourier transforms are quick."""
    size = max(8, math.ceil(least))
    while size not in _FAST:
        size += 1
    return size


def pose_from(direction: Tensor, roll: Tensor, distance: Tensor, centre: Tensor, pivot: Tensor) -> Pose:
    """camera_to_world [..., 4, 4] of a C-arm that shows the pivot at `centre`.

    Args:
        direction: [..., 2] positioner angles (degrees) of an arm whose central ray would pass the pivot.
        roll: [...] degrees.  distance: [...] mm.
        centre: [..., 2] in the plane at distance 1, to which the camera is turned about its source the shortest way.
        pivot: [3] world mm.
    """
    arm = CArm(1.0, distance, pivot, direction[..., 0], direction[..., 1], roll).pose
    turned = arm.rotation @ _shortest(centre).mT
    return Pose._rigid(homogeneous(turned, arm.translation))


def _shortest(centre: Tensor) -> Tensor:
    """The rotations [..., 3, 3] that take the z axis to (x, y, 1) about an axis across both (Rodrigues)."""
    to = torch.cat([centre, torch.ones_like(centre[..., :1])], dim=-1)
    x, y, cosine = (to / to.norm(dim=-1, keepdim=True)).unbind(-1)
    k = 1 / (1 + cosine)
    rows = [1 - k * x * x, -k * x * y, x, -k * x * y, 1 - k * y * y, y, -x, -y, cosine]
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


def _turned(points: Tensor, roll: Tensor, scale: Tensor) -> Tensor:
    """Points [T, H, W, 2] of a canvas as a camera rolled and nearer sees them."""
    return scale[:, None, None, None] * torch.einsum("tij,thwj->thwi", _turn(-roll), points)


def _turn(degrees: Tensor) -> Tensor:
    """Plane rotations [T, 2, 2]."""
    angle = degrees * (math.pi / 180)
    cosine, sine = torch.cos(angle), torch.sin(angle)
    return torch.stack([torch.stack([cosine, -sine], -1), torch.stack([sine, cosine], -1)], -2)


def sharpened(images: Tensor, weight: Tensor, width: int) -> Tensor:
    """Images [B, H, W] less their weighted average over `width` pixels."""
    total, share = (avg_pool2d(planes[:, None], width, 1, width // 2)[:, 0] for planes in (images * weight, weight))
    return images - total / share.clamp(min=1e-6)


def crossing(volume: Volume, source: Tensor, target: Tensor) -> Tensor:
    """Whether segments [..., 3] (world mm) cross the box of the CT's voxel centres: bool [...]."""
    to_ijk = volume.ras_to_ijk.double()
    source, target = (ends.double() @ to_ijk[:3, :3].T + to_ijk[:3, 3] for ends in (source, target))
    last = torch.tensor(volume.shape[::-1], dtype=torch.float64, device=source.device) - 1
    along = target - source
    along = torch.where(along.abs() < 1e-9, 1e-9, along)
    ends = torch.stack([-source / along, (last - source) / along])
    return ends.amin(0).amax(-1).clamp(min=0) < ends.amax(0).amin(-1).clamp(max=1)
