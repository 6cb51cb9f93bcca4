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
from DiffDRRCore.registration.objective.knowledge import Knowledge
from DiffDRRCore.registration.objective.objective import Objective
from DiffDRRCore.registration.objective.views import Model, View
from DiffDRRCore.registration.problem.lens import Lens
from DiffDRRCore.registration.problem.models import making_renderers
from DiffDRRCore.registration.problem.options import Options
from DiffDRRCore.registration.problem.problem import Part, Problem
from DiffDRRCore.similarity import similarity

_SIZES = (32, 64, 128)
_LOCAL_SIZES = (96, 128)


@dataclass(frozen=True)
class Level:
    """One level: its objective, the X-rays' size, and the size of their pixels at the anatomy in mm.

    `parts` are the objective's models, in order; `owners` has for each body the number of its model.
    """

    objective: Objective
    size: tuple[int, int]
    pixel: float
    parts: list[Part]

    @property
    def lead(self) -> int:
        """The number of the first model that is free; 0 where all are locked."""
        free = [number for number, part in enumerate(self.parts) if not part.body.locked]
        return free[0] if free else 0

    @property
    def owners(self) -> list[int]:
        """For each body the number of its model."""
        pairs = sorted((member, number) for number, part in enumerate(self.parts) for member in part.members)
        return [number for _, number in pairs]


def build_levels(problem: Problem) -> Generator[None, None, list[Level]]:
    """The levels, coarse to fine; sizes beyond the X-rays' own are cut to it, and repeated ones are dropped.

    A generator, because it takes a while: it returns the levels.
    """
    xrays, options = problem.xrays, problem.options
    longest = max(max(xray.camera.height, xray.camera.width) for xray in xrays)
    sizes = list(dict.fromkeys(min(int(size), longest) for size in sorted(_sizes(options))))
    if problem.whole is not None:
        sizes = [sizes[0], *sizes] if len(sizes) == 1 else sizes
    weights = [None] * len(xrays) if options.weights is None else options.weights
    views = []
    for size in sizes:
        parts = zip(xrays, problem.starts, weights, strict=True)
        views.append([_view(problem.volume, *part, size / longest) for part in parts])
        yield
    views[-1] = [_sampled(view, options.samples) for view in views[-1]]
    if options.pixels is not None:
        views[:-1] = [[_thinned(view, options.pixels, options.seed) for view in level] for level in views[:-1]]
    center = problem.volume.center.detach().double().cpu()
    pixels = [min(_pixel_at_anatomy(view, center) for view in level) for level in views]
    rendered = yield from _rendered(problem, pixels)
    finest = {labels: several[-1] for labels, several in rendered.items()}
    levels = []
    for number, (own, pixel) in enumerate(zip(views, pixels, strict=True)):
        renderers = {labels: several[number] for labels, several in rendered.items()}
        levels.append(_level(problem, problem.parts_at(number), own, pixel, renderers, finest))
    levels[-1].objective.keeps_images = True
    return levels


def _sizes(options: Options) -> tuple[int, ...]:
    if options.sizes is not None:
        return options.sizes
    return _LOCAL_SIZES if getattr(similarity(options.similarity), "local", False) else _SIZES


def _rendered(problem: Problem, pixels: list[float]) -> Generator[None, None, dict]:
    """Renderers of each level for each set of labels."""
    found = {}
    for part in [*(problem.whole or ()), *problem.parts]:
        if part.labels not in found:
            found[part.labels] = yield from making_renderers(problem.volume, part.labels, problem.options, pixels)
    return found


def _level(
    problem: Problem, parts: list[Part], views: list[View], pixel: float, renderers: dict, finest: dict
) -> Level:
    """A level of these parts, with the renderers of their labels there and at the finest level."""
    options, unknowns = problem.options, problem.unknowns(parts, [finest[part.labels] for part in parts])
    models = [Model(renderers[part.labels], part.start, number) for number, part in enumerate(parts)]
    views = [_with_unknowns(problem, parts, number, view) for number, view in enumerate(views)]
    knowledge = _knowledge(problem, parts, models, views, unknowns)
    objective = Objective(models, views, similarity(options.similarity), unknowns, knowledge, options.robust)
    return Level(objective, (views[0].camera.height, views[0].camera.width), pixel, parts)


def _with_unknowns(problem: Problem, parts: list[Part], number: int, view: View) -> View:
    camera, weights = problem.camera_of[number], problem.options.view_weights
    return replace(
        view,
        motion=problem.view_motion(parts, number),
        lens=None if camera is None else Lens(view.camera),
        number=camera or 0,
        importance=1.0 if weights is None else float(weights[number]),
    )


def _knowledge(problem: Problem, parts: list[Part], models: list[Model], views: list[View], unknowns) -> Knowledge:
    """Landmarks go with the part that holds their body; joints are between parts, not within one."""
    names = [body.name for body in problem.options.bodies or ()]
    owner = {member: number for number, part in enumerate(parts) for member in part.members}
    joints = []
    for joint in problem.options.joints:
        first, second = (owner[names.index(name)] for name in joint.bodies)
        if first != second:
            joints.append((joint, first, second))
    marks = problem.options.landmarks
    told = [0] * len(marks.points_3d) if marks is not None and marks.bodies is None else None
    if marks is not None and marks.bodies is not None:
        told = [names.index(name) for name in marks.bodies]
    return Knowledge(unknowns, models, views, marks, [owner[body] for body in told or ()], joints)


def _view(volume: Volume, xray: XRay, start: Pose, weight: Tensor | None, scale: float) -> View:
    """The X-ray at a level, in the type and on the device of the volume's images.

    What a weight hides stays hidden: it does not leak into the averages of larger pixels.
    """
    xray = xray.with_image(xray.image.to(volume.dtype)).to(volume.device)
    height, width = (max(1, round(side * scale)) for side in xray.image.shape)
    if weight is None:
        small = xray if (height, width) == tuple(xray.image.shape) else xray.resampled(height, width)
        return View(small.image[None, None], None, small.camera.detached(), start, xray.camera.detached())
    mask = torch.as_tensor(weight).to(xray.image)
    visible = torch.where(mask > 0, xray.image, 0.0)
    small = xray.with_image(visible * mask).resampled(height, width)
    share = XRay(mask, xray.camera).resampled(height, width).image.clamp(min=0)
    image = torch.where(share > 0, small.image / torch.where(share > 0, share, 1.0), 0.0)
    return View(image[None, None], share[None, None], small.camera.detached(), start, xray.camera.detached())


def _sampled(view: View, samples: int) -> View:
    """More rays for each pixel, averaged as the X-ray's pixels were."""
    recorded = (view.camera.height, view.camera.width) == (view.full_camera.height, view.full_camera.width)
    return replace(view, samples=samples, recorded=recorded)


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


def _pixel_at_anatomy(view: View, center: Tensor) -> float:
    """Pixel size in mm, demagnified from the detector to the centre's depth."""
    camera = view.camera
    spacing = float(camera.pixel_spacing.min())
    if camera.parallel:
        return spacing
    depth = float(view.start.inverse().transform(center[None])[0, 2])
    return spacing * max(depth, 1.0) / float(camera.source_to_detector)
