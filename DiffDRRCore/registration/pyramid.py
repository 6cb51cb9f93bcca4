"""From full-size X-rays and CT to the levels of a registration, coarse to fine."""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from DiffDRRCore.geometry import Pose
from DiffDRRCore.imaging.volume import Volume
from DiffDRRCore.imaging.xray import XRay
from DiffDRRCore.registration.models import making_renderers
from DiffDRRCore.registration.motion import MotionFrame
from DiffDRRCore.registration.objective import Objective, View
from DiffDRRCore.registration.options import Options
from DiffDRRCore.similarity import similarity

_SIZES = (32, 64, 128)
_LOCAL_SIZES = (96, 128)


@dataclass(frozen=True)
class Level:
    """One level: its objective, the X-rays' size, and the size of their pixels at the anatomy in mm."""

    objective: Objective
    size: tuple[int, int]
    pixel: float


def build_levels(
    volume: Volume, xrays: list[XRay], starts: list[Pose], frame: MotionFrame, options: Options
) -> Generator[None, None, list[Level]]:
    """The levels, coarse to fine; sizes beyond the X-rays' own are cut to it, and repeated ones are dropped.

    A generator, because it takes a while: it returns the levels.
    """
    longest = max(max(xray.camera.height, xray.camera.width) for xray in xrays)
    measure = similarity(options.similarity)
    chosen = (
        options.sizes if options.sizes is not None else (_LOCAL_SIZES if getattr(measure, "local", False) else _SIZES)
    )
    sizes = list(dict.fromkeys(min(int(size), longest) for size in sorted(chosen)))
    weights = [None] * len(xrays) if options.weights is None else options.weights
    parts = list(zip(xrays, starts, weights, strict=True))
    views = []
    for size in sizes:
        views.append([_view(volume, *part, size / longest) for part in parts])
        yield
    if options.pixels is not None:
        views[:-1] = [[_thinned(view, options.pixels, options.seed) for view in level] for level in views[:-1]]
    pixels = [min(_pixel_at_anatomy(view, frame) for view in level) for level in views]
    levels, models = [], (yield from making_renderers(volume, options, pixels))
    for renderer, level, pixel in zip(models, views, pixels, strict=True):
        objective = Objective(renderer, level, measure, frame, options.limits, options.landmarks, options.robust)
        levels.append(Level(objective, (level[0].camera.height, level[0].camera.width), pixel))
    return levels


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


def _thinned(view: View, count: int, seed: int) -> View:
    """At most `count` pixels of the view: one at random in each cell of a grid, so that none is far from the next."""
    height, width = view.camera.height, view.camera.width
    cell = min(math.ceil(math.sqrt(height * width / count)), height, width)
    if cell == 1:
        return view
    generator = torch.Generator().manual_seed(seed)
    rows, columns = (torch.arange(0, side - cell + 1, cell) for side in (height, width))
    corner = torch.cartesian_prod(rows, columns)
    v, u = (corner + torch.randint(cell, corner.shape, generator=generator)).unbind(-1)
    at = (..., v.to(view.fixed.device), u.to(view.fixed.device))
    fixed, weight = (None if image is None else image[at][:, :, None] for image in (view.fixed, view.weight))
    return replace(view, fixed=fixed, weight=weight, uv=torch.stack([u, v], dim=-1).double())


def _pixel_at_anatomy(view: View, frame: MotionFrame) -> float:
    """Pixel size in mm, demagnified from the detector to the pivot's depth."""
    camera = view.camera
    spacing = float(camera.pixel_spacing.min())
    if camera.parallel:
        return spacing
    depth = float(view.start.inverse().transform(frame.pivot[None])[0, 2])
    return spacing * max(depth, 1.0) / float(camera.source_to_detector)
