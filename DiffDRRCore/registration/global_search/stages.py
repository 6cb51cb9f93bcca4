"""The stages of a global search, each a generator that yields how far it is."""

from __future__ import annotations

import math
import time
from collections.abc import Generator
from dataclasses import dataclass

import torch
from torch import Tensor

from DiffDRRCore.errors import RegistrationError
from DiffDRRCore.geometry import Pose, pixel_rays
from DiffDRRCore.imaging.volume import Volume
from DiffDRRCore.imaging.xray import XRay
from DiffDRRCore.pieces import RAYS, ranges
from DiffDRRCore.registration.global_search.ranges import SearchRanges
from DiffDRRCore.registration.global_search.view_matching import (
    Templates,
    canvas_for,
    crossing,
    make_templates,
    pose_from,
    sharpened,
)
from DiffDRRCore.registration.objective.linearization import Linearization
from DiffDRRCore.registration.objective.pyramid import Level, build_levels
from DiffDRRCore.registration.optimizers.levenberg_marquardt import levenberg_marquardt
from DiffDRRCore.registration.problem.options import Options
from DiffDRRCore.registration.problem.problem import Problem
from DiffDRRCore.registration.problem.unknowns import State
from DiffDRRCore.registration.starts.screening import best_apart, screened
from DiffDRRCore.registration.starts.starts import carried

_PER_VIEW = 3  # best templates of each rendered view
_SCREENED = 256  # poses that are rendered exactly
_DEPTHS = (-0.04, -0.02, 0.0, 0.02, 0.04)  # of the distance: other views see it better than the first
_OPTIMISED = 32
_TRIAL, _STEPS = 5, 30  # steps after which the worse half gives up, and most steps of a level


@dataclass(frozen=True)
class SearchStep:
    """How far a search is: what it does, `done` of `total` of it, the best similarity (0 before any), seconds."""

    doing: str
    done: int
    total: int
    similarity: float
    seconds: float


class Stages:
    """What one search knows; the stages are run in their order.

    Args:
        options: of the levels; the first of its sizes is the first stage's.
        count, keep, seed: as for `GlobalSearch`.
    """

    def __init__(
        self,
        limits: SearchRanges,
        options: Options,
        count: int,
        keep: int,
        seed: int,
        volume: Volume,
        xrays: list[XRay],
    ):
        self._limits, self._options, self._keep, self._volume, self._xrays = limits, options, keep, volume, xrays
        self._pivot = limits.pivot(volume.center.detach().double().cpu())
        low, high = limits.distances(float(xrays[0].camera.source_to_detector))
        self._low, self._high, self._middle = low, high, math.sqrt(low * high)
        self.directions = limits.directions(count, low, seed)
        self.tried, self.seconds = 0, {}
        self._best, self._began = 0.0, time.perf_counter()

    def preparing(self) -> Generator[SearchStep, None, None]:
        """X-rays and CT at all sizes, from an arm in the middle of the ranges."""
        middle = self._poses(self.directions.mean(0, keepdim=True))[0]
        starts = [middle] if len(self._xrays) == 1 else carried(middle, [xray.pose for xray in self._xrays])
        self._first = middle
        levels = build_levels(Problem.of(self._volume, self._xrays, starts, self._options))
        self._levels: list[Level] = yield from self._telling("Preparing the CT", 0, 1, levels)
        for level in self._levels:
            level.objective.check_contrast()
            for _ in level.objective.renderer.preparing():
                yield self._step("Preparing the CT", 0, 1)
        self._exact = self._levels[1:] or self._levels
        self._unknowns = self._levels[0].objective.unknowns

    def matching(self) -> Generator[SearchStep, None, None]:
        """The poses at which the first X-ray fits best into the views rendered."""
        templates = self._templates()
        batch, seen, matches = max(1, RAYS // templates.canvas.size**2), False, []
        for first, last in ranges(len(self.directions), batch):
            views, covered = self._rendered(templates, self.directions[first:last])
            seen = seen or float(views.max()) > float(views.min())
            matches.append(self._matched(templates, views, covered, first))
            self._best = max(self._best, float(matches[-1][0].max()))
            yield self._step("Looking from all sides", last, len(self.directions))
        if not seen or self._best <= 0:
            raise RegistrationError(
                "From none of the directions searched does the CT look like the X-ray: check that the ranges hold the "
                "C-arm's place (RAS, mm), and that bone is bright in the X-ray."
            )
        self._candidates = self._placed(templates, matches)
        self._clock("match")

    def screening(self) -> Generator[SearchStep, None, None]:
        """Similarities of the best matches, rendered exactly for all X-rays."""
        poses = self._candidates if len(self._xrays) == 1 else self._in_depth(self._candidates)
        self._states, found = State.of(poses @ self._first.inverse()), []
        for first, last in ranges(len(poses), 32):
            work = screened(self._exact[0].objective, self._states[first:last])
            found.append((yield from self._telling("Comparing the best", first, len(poses), work)))
        self._costs = 1 - torch.cat(found)
        self._best = float(1 - self._costs.min())
        self._clock("screen")

    def optimising(self) -> Generator[SearchStep, None, None]:
        """The best of those through the levels."""
        count, apart = _OPTIMISED, 2.0
        for number, level in enumerate(self._exact, start=1):
            rows = best_apart(self._unknowns, self._states, self._costs, count, apart * level.pixel)
            doing = f"Optimising, level {number} of {len(self._exact)}"
            best = yield from self._optimised(doing, level, self._states[rows])
            self._states, self._costs, count, apart = best.state, best.cost, self._keep, 1.0
        self._found = best
        self._clock("optimise")

    def outcome(self) -> tuple[Pose, list[dict]]:
        """Poses [V, 4, 4] of the best optimum; of all that are left, best first, similarity and motion from there."""
        found, level = self._found, self._levels[-1]
        rows = best_apart(self._unknowns, found.state, found.cost, self._keep, 2 * level.pixel)
        rows = rows[torch.isfinite(found.cost[rows])]
        if len(rows) == 0:
            raise RegistrationError("None of the poses searched shows the CT: widen the ranges.")
        best, motions = int(rows[0]), found.state.first
        back = motions[best].inverse()
        optima = [
            {"similarity": float(found.similarity[row]), "motion": (motions[row] @ back).matrix.tolist()}
            for row in rows.tolist()
        ]
        return level.objective.poses(found.state[best : best + 1]), optima

    def _poses(self, directions: Tensor) -> Pose:
        """Arms whose central ray passes the pivot, at the middle distance."""
        nothing = torch.zeros(len(directions), dtype=torch.float64)
        centre = torch.zeros(len(directions), 2, dtype=torch.float64)
        return pose_from(directions, nothing, nothing + self._middle, centre, self._pivot)

    def _templates(self) -> Templates:
        """The first X-ray turned and scaled, and the shifts that leave the pivot near enough to the central ray."""
        level = self._levels[0]
        view = level.objective.views[0]
        self._width = 2 * (max(level.size) // 4) + 1
        weight = torch.ones_like(view.fixed) if view.weight is None else (view.weight > 0).to(view.fixed)
        fixed, weight = (image[0].float().cpu() for image in (view.fixed, weight))
        small = XRay(sharpened(fixed, weight, self._width)[0], view.camera.to("cpu"))
        grid = self._limits.template_grid(self._low, self._high)
        canvas = canvas_for(small.camera, grid, self._middle, self._limits.off_axis)
        templates = make_templates(small, weight[0], canvas, grid, self._middle)
        self._centres = templates.centres()
        largest = self._limits.off_axis / templates.distance + canvas.pitch * templates.scale
        self._allowed = self._centres.norm(dim=-1) <= largest[:, None, None]
        return templates

    def _rendered(self, templates: Templates, directions: Tensor) -> tuple[Tensor, Tensor]:
        """Canvases [B, size, size], and which of their rays cross the CT (0 or 1)."""
        renderer, size = self._levels[0].objective.renderer, templates.canvas.size
        camera = templates.canvas.camera(float(self._xrays[0].camera.source_to_detector))
        with torch.no_grad():
            rays = pixel_rays(camera, self._poses(directions), None, renderer.volume.device)
            planes = renderer.trace(*rays)[0], crossing(renderer.volume, *rays)
            views, covered = (plane.unflatten(-1, (size, size)).float().cpu() for plane in planes)
            return views, covered

    def _matched(self, templates: Templates, views: Tensor, covered: Tensor, first: int) -> tuple[Tensor, ...]:
        """Score, direction, template and shift of the best templates of each view."""
        scores = templates.correlation(sharpened(views, covered, self._width), covered)
        scores = torch.where(self._allowed, scores, -1.0)
        self.tried += len(views) * int(self._allowed.sum())
        values, shifts = scores.flatten(2).max(dim=-1)
        values, numbers = values.topk(min(_PER_VIEW, values.shape[1]), dim=1)
        direction = torch.arange(first, first + len(views))[:, None].expand_as(numbers)
        return tuple(part.flatten() for part in (values, direction, numbers, shifts.gather(1, numbers)))

    def _placed(self, templates: Templates, matches: list[tuple[Tensor, ...]]) -> Pose:
        """The best of all matches as poses of the first view."""
        values, direction, number, shift = (torch.cat(part) for part in zip(*matches, strict=True))
        rows = values.argsort(descending=True, stable=True)[:_SCREENED]
        number, centre = number[rows], self._centres.flatten(1, 2)[number[rows], shift[rows]]
        where = (templates.roll[number], templates.distance[number], centre, self._pivot)
        return pose_from(self.directions[direction[rows]], *where)

    def _in_depth(self, poses: Pose) -> Pose:
        """The same nearer to the pivot and farther."""
        shifts = torch.tensor(_DEPTHS, dtype=torch.float64)[:, None]
        matrix = poses.matrix.repeat_interleave(len(shifts), dim=0)
        away = poses.translation - self._pivot
        matrix[:, :3, 3] += (shifts * away[:, None]).flatten(0, 1)
        return Pose._rigid(matrix)

    def _optimised(self, doing: str, level: Level, states: State) -> Generator[SearchStep, None, Linearization]:
        """Every few steps the worse half gives up, down to as many as are kept."""
        done, tolerance = 0, 0.05 * level.pixel
        for found in levenberg_marquardt(level.objective, states, tolerance, _STEPS):
            if found is not None:
                progress, done = found, done + 1
                self._best = float(1 - progress.best.cost.min())
                if done % _TRIAL == 0:
                    kept = max(self._keep, math.ceil(len(states) / 2 ** (done // _TRIAL)))
                    progress.active[torch.argsort(progress.best.cost, stable=True)[kept:]] = False
            yield self._step(doing, min(done, _STEPS), _STEPS)
        return progress.best

    def _telling(self, doing: str, done: int, total: int, work: Generator):
        """The same work, with how far it is between its pieces and after them."""
        while True:
            yield self._step(doing, done, total)
            try:
                next(work)
            except StopIteration as end:
                return end.value

    def _step(self, doing: str, done: int, total: int) -> SearchStep:
        return SearchStep(doing, done, total, self._best, time.perf_counter() - self._began)

    def _clock(self, name: str) -> None:
        self.seconds[name] = time.perf_counter() - self._began - sum(self.seconds.values())
