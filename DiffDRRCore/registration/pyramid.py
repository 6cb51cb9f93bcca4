"""From full-size X-rays and CT to the levels of a registration, coarse to fine."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from DiffDRRCore.geometry import Pose
from DiffDRRCore.imaging.volume import Volume
from DiffDRRCore.imaging.xray import XRay
from DiffDRRCore.registration.motion import MotionFrame
from DiffDRRCore.registration.objective import Objective, View
from DiffDRRCore.registration.options import Options
from DiffDRRCore.rendering import Renderer
from DiffDRRCore.similarity import similarity


@dataclass(frozen=True)
class Level:
    """One level: its objective, the X-rays' size, and the size of their pixels at the anatomy in mm."""

    objective: Objective
    size: tuple[int, int]
    pixel: float


def build_levels(
    volume: Volume, xrays: list[XRay], starts: list[Pose], frame: MotionFrame, options: Options
) -> list[Level]:
    """The levels, coarse to fine; sizes beyond the X-rays' own are cut to it, and repeated ones are dropped."""
    longest = max(max(xray.camera.height, xray.camera.width) for xray in xrays)
    sizes = list(dict.fromkeys(min(int(size), longest) for size in sorted(options.sizes)))
    measure = similarity(options.similarity)
    return [_level(volume, xrays, starts, frame, options, measure, size / longest) for size in sizes]


def _level(volume, xrays, starts, frame, options: Options, measure, scale: float) -> Level:
    weights = [None] * len(xrays) if options.weights is None else options.weights
    views = [_view(volume, *parts, scale) for parts in zip(xrays, starts, weights, strict=True)]
    pixel = min(_pixel_at_anatomy(view, frame) for view in views)
    factors = [max(1, int(options.voxels_per_pixel * pixel / spacing)) for spacing in volume.spacing.flip(0).tolist()]
    coarse = volume if max(factors) == 1 else volume.coarsened(tuple(factors))
    renderer = Renderer(coarse, options.integrator, step=options.step)
    objective = Objective(renderer, views, measure, frame, options.limits, options.landmarks)
    return Level(objective, tuple(views[0].fixed.shape[-2:]), pixel)


def _view(volume: Volume, xray: XRay, start: Pose, weight: Tensor | None, scale: float) -> View:
    """The X-ray at a level, in the type and on the device of the volume's images.

    What a weight hides stays hidden: it does not leak into the averages of larger pixels.
    """
    xray = xray.with_image(xray.image.to(volume.dtype)).to(volume.device)
    height, width = (max(1, round(side * scale)) for side in xray.image.shape)
    if weight is None:
        small = xray.resampled(height, width)
        return View(small.image[None, None], None, small.camera.detached(), start, xray.camera.detached())
    mask = torch.as_tensor(weight).to(xray.image)
    visible = torch.where(mask > 0, xray.image, 0.0)
    small = xray.with_image(visible * mask).resampled(height, width)
    share = XRay(mask, xray.camera).resampled(height, width).image.clamp(min=0)
    image = torch.where(share > 0, small.image / torch.where(share > 0, share, 1.0), 0.0)
    return View(image[None, None], share[None, None], small.camera.detached(), start, xray.camera.detached())


def _pixel_at_anatomy(view: View, frame: MotionFrame) -> float:
    """Pixel size in mm, demagnified from the detector to the pivot's depth."""
    camera = view.camera
    spacing = float(camera.pixel_spacing.min())
    if camera.parallel:
        return spacing
    depth = float(view.start.inverse().transform(frame.pivot[None])[0, 2])
    return spacing * max(depth, 1.0) / float(camera.source_to_detector)
