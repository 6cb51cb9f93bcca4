"""2D/3D registration: one loop that a script, a progress bar and a panel all drive."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from DiffDRRCore.errors import DiffDRRWarning, RegistrationError
from DiffDRRCore.geometry import Pose, as_tensor
from DiffDRRCore.imaging.volume import Volume
from DiffDRRCore.imaging.xray import XRay
from DiffDRRCore.registration import search
from DiffDRRCore.registration.global_search import GlobalSearch
from DiffDRRCore.registration.lbfgs import lbfgs
from DiffDRRCore.registration.motion import MotionFrame
from DiffDRRCore.registration.objective import Linearization
from DiffDRRCore.registration.optimizers import Progress, Steps, adam, levenberg_marquardt
from DiffDRRCore.registration.options import Options
from DiffDRRCore.registration.pieces import finished, ranges, said
from DiffDRRCore.registration.pyramid import Level, build_levels
from DiffDRRCore.registration.result import RegistrationResult
from DiffDRRCore.registration.search import best_apart, is_decisive, screened
from DiffDRRCore.registration.starts import StartFinder, start_poses
from DiffDRRCore.similarity import LeastSquaresSimilarity, similarity

CONVERGED = "converged"
STEP_LIMIT = "step limit reached"
TIME_LIMIT = "time limit reached"
STOPPED = "stopped before the end"

_KEPT = 0.3  # share of the starts that goes on to the next level
_SEARCHED = 8  # of the motions tried in a search are optimised
_TRIAL = 8  # steps after which the worse half of the candidates gives up
_LATER_TRIAL = 3  # at all levels but the first, where candidates start next to their optima


@dataclass(frozen=True)
class Step:
    """One step of the optimiser, as a progress display needs it: of the best of the candidates that took it together.

    `start` is the number of the best candidate, `candidates` how many are still under way.
    """

    level: int
    levels: int
    start: int
    index: int
    size: tuple[int, int]
    similarity: float
    cost: float
    seconds: float
    poses: Pose
    candidates: int = 1


@dataclass
class _Best:
    """The best candidate so far: its number, where it is, at which level, and why that level ended."""

    number: int
    at: Linearization
    level: Level
    converged: bool
    reason: str = STOPPED


class Registration:
    """Finds the C-arm poses under which the CT looks like the X-rays.

    Several views share one rigid motion: the C-arms are fixed to each other.

    Args:
        volume: the CT.
        xrays: one `XRay` or a list; images of "attenuation" (bone bright, see `DiffDRRCore.imaging.preprocess`).
        initial: start: a Pose, or one per view; a single Pose for several views is the first one's, and the others
            follow by the X-rays' own poses. None takes each X-ray's own pose. Or what finds the start itself, by a
            method `starts(volume, xrays)`: a trained `DiffDRRCore.learning.inference.PoseModel`, or a `GlobalSearch`.
        options: fields of `Options`.

    Raises:
        RegistrationError: no X-ray, no start, unknown or unsuitable options, transmission images, an X-ray without
            contrast, or a start from which no ray meets the CT.
    """

    def __init__(self, volume: Volume, xrays: XRay | Iterable[XRay], initial=None, **options):
        finished(self._prepare(volume, xrays, initial, options))

    @classmethod
    def preparing(
        cls, volume: Volume, xrays: XRay | Iterable[XRay], initial=None, **options
    ) -> Generator[str, None, Registration]:
        """The constructor in pieces: yields what it does next in words, returns the registration.

        For event loops: one piece takes some tens of milliseconds. What cannot be cut is the compilation of kernels at
        their first use on a machine; the words say so before.
        """
        registration = cls.__new__(cls)
        yield from registration._prepare(volume, xrays, initial, options)
        return registration

    def _prepare(self, volume: Volume, xrays, initial, options: dict) -> Generator[str, None, None]:
        if torch.is_inference_mode_enabled():
            raise RegistrationError("A registration differentiates: run it outside torch.inference_mode().")
        self.options = _options(options)
        self.xrays = _checked_xrays(xrays)
        if isinstance(initial, StartFinder):
            yield "Looking for the start"
        self._found: list[dict] = []
        if isinstance(initial, GlobalSearch):
            found = yield from said("Looking for the start", initial.searching(volume, self.xrays))
            initial, self._found = found.poses, found.alternatives
        starts = start_poses(volume, self.xrays, initial)
        _check_options(self.options, self.xrays)
        self.frame = MotionFrame(_pivot(volume, self.options), starts[0].rotation)
        self.levels = yield from said(
            "Preparing the CT", build_levels(volume, self.xrays, starts, self.frame, self.options)
        )
        for number, level in enumerate(self.levels, start=1):
            level.objective.check_contrast()
            if level.objective.renderer.must_compile:
                yield "Compiling for this processor: some seconds, once"
            yield from said(f"Preparing level {number} of {len(self.levels)}", level.objective.renderer.preparing())
        yield from said("Looking at the start", self.levels[0].objective.check_start())
        self._method = _method(self.options)
        self.history: list[dict] = []
        self._reach = 0.25 * float((volume.spacing.cpu() * torch.tensor(volume.shape[::-1])).norm())
        self._best: _Best | None = None
        self._active, self._survivors, self._optima = 0, None, None

    def steps(self) -> Generator[Step, None, None]:
        """One optimiser step of all candidates at a time; stop whenever you like, `result()` has the best so far."""
        return (step for step in self.work() if step is not None)

    def work(self) -> Generator[Step | None, None, None]:
        """`steps` for event loops: yields None between the pieces of a step, which take some tens of milliseconds."""
        began = time.perf_counter()
        motions = self._starts()
        for number in range(len(self.levels)):
            for is_step in self._level(number, motions):
                if not is_step:
                    yield None
                    continue
                yield (step := self._record(began))
                if self.options.max_seconds is not None and step.seconds > self.options.max_seconds:
                    self._best.reason = TIME_LIMIT
                    return
            motions = self._survivors

    def result(self) -> RegistrationResult:
        """The best pose so far. Raises RegistrationError before the first step."""
        return finished(self.finishing())

    def finishing(self) -> Generator[None, None, RegistrationResult]:
        """`result` in pieces."""
        if self._best is None:
            raise RegistrationError("The registration has not made a step yet; run steps() first.")
        best, objective = self._best, self._best.level.objective
        motion = best.at.motion[0]
        initial_similarity = float((yield from objective.measuring(_still())))
        score = (yield from objective.measuring(best.at.motion)) if self.options.robust else best.at.similarity
        covariance = yield from objective.estimating_covariance(best.at)
        return RegistrationResult(
            poses=objective.poses(motion),
            patient_motion=motion.inverse(),
            similarity=float(score),
            initial_similarity=initial_similarity,
            converged=best.reason == CONVERGED and best.level is self.levels[-1],
            reason=best.reason,
            covariance=covariance[0],
            about=self.frame.pivot,
            at_bound=objective.limits.at_bound(self.frame.coordinates(motion)),
            history=list(self.history),
            alternatives=sorted([*self._alternatives(motion), *self._found], key=lambda other: -other["similarity"]),
        )

    def _alternatives(self, found: Pose) -> list[dict]:
        """The first level's optima that are not the one found."""
        if self._optima is None:
            return []
        optima, distance = self._optima, 2 * self.levels[0].pixel
        rows = best_apart(self.frame, optima.motion, optima.cost, len(optima), self._reach, distance)
        apart = self.frame.displacement(optima.motion[rows], found, self._reach) > distance
        return [
            {"similarity": float(optima.similarity[row]), "motion": optima.motion.matrix[row].tolist()}
            for row in rows[apart].tolist()
        ]

    def _optimizer(self, number: int, motions: Pose) -> Steps:
        level = self.levels[number]
        options, finest = self.options, self.levels[-1]
        last = number == len(self.levels) - 1
        tolerance = options.tolerance if last else max(options.tolerance, 0.05 * level.pixel)
        arguments = (level.objective, motions, tolerance, options.max_steps, self._reach)
        if self._method == "adam":
            coarser = min(4.0, level.pixel / finest.pixel)
            return adam(*arguments, (options.learning_rate[0] * coarser, options.learning_rate[1] * coarser))
        return lbfgs(*arguments, level.pixel) if self._method == "lbfgs" else levenberg_marquardt(*arguments)

    def _starts(self) -> Pose:
        """Motions [N, 4, 4]: the initial pose, and as many around it as asked for."""
        generator = torch.Generator().manual_seed(self.options.seed)
        degrees, plane, depth = self.options.start_spread
        spread = torch.tensor([degrees * torch.pi / 180] * 3 + [plane, plane, depth], dtype=torch.float64)
        q = spread * torch.randn(self.options.starts - 1, 6, generator=generator, dtype=torch.float64)
        around = self.frame.motion(self.options.limits.clamp(q))
        return Pose._rigid(torch.cat([_still().matrix, around.matrix]))

    def _level(self, number: int, motions: Pose) -> Iterator[bool]:
        """Take candidates through a level; at the first, others are looked for where theirs is no clear optimum.

        Here and below, True is yielded after each step, and False between the pieces of one.
        """
        level, candidates = self.levels[number], torch.arange(len(motions))
        progress = yield from self._optimized(number, motions, candidates)
        if number == 0:
            progress = yield from self._joined_by_search(progress)
            self._optima = progress.best
        self._best.reason = CONVERGED if self._best.converged else STEP_LIMIT
        count = math.ceil(len(progress.best) * _KEPT)
        rows = best_apart(self.frame, progress.best.motion, progress.best.cost, count, self._reach, level.pixel)
        self._survivors = progress.best.motion[rows]

    def _joined_by_search(self, progress: Progress) -> Generator[bool, None, Progress]:
        """The candidates, and those that a search found."""
        found = yield from self._searched(progress)
        if len(found) == 0:
            return progress
        others = yield from self._optimized(0, found, torch.arange(len(found)) + len(progress.best))
        return progress.joined(others)

    def _optimized(self, number: int, motions: Pose, candidates: Tensor) -> Generator[bool, None, Progress]:
        """Every few steps the worse half gives up, down to as many as go on to the next level (successive halving)."""
        trial = _TRIAL if number == 0 else _LATER_TRIAL
        index = -1
        for found in self._optimizer(number, motions):
            if found is None:
                yield False
                continue
            progress, index = found, index + 1
            if index > 0 and index % trial == 0:
                kept = max(math.ceil(len(motions) * _KEPT), math.ceil(len(motions) / 2 ** (index // trial)))
                progress.active[_order(progress)[kept:]] = False
            self._note(number, progress, candidates)
            yield True
        self._note(number, progress, candidates)
        return progress

    def _searched(self, progress: Progress) -> Generator[bool, None, Pose]:
        """The best of many motions around the start, spread apart; none where the optimum found is clearly better."""
        level, options = self.levels[0], self.options
        if options.search == 0:
            return progress.best.motion[:0]
        field = level.pixel * max(level.size)
        tried = search.motions(self.frame, options.limits, options.search, field, len(self.xrays), options.seed)
        costs = torch.zeros(0, dtype=torch.float64)
        for first, last in ranges(len(tried), search.CHUNK):
            similarities = yield from said(False, screened(level.objective, tried[first:last]))
            costs = torch.cat([costs, 1 - similarities + level.objective.knowledge_cost(tried[first:last])])
            yield True
            if is_decisive(progress.best.cost.min(), costs, level.objective.least_cost):
                return tried[:0]
        return tried[best_apart(self.frame, tried, costs, _SEARCHED, self._reach, 4 * level.pixel)]

    def _note(self, number: int, progress: Progress, candidates: Tensor) -> None:
        """Keep the best candidate, of the finest level so far."""
        level, row = self.levels[number], int(_order(progress)[0])
        self._active = int(progress.active.sum())
        number = int(candidates[row])
        known = self._best if self._best is not None and self._best.level is level else None
        # Robust weights follow the residuals, so the cost of the same candidate may rise although it got better.
        if known is None or number == known.number or progress.best.cost[row] <= known.at.cost:
            self._best = _Best(number, progress.best[row : row + 1], level, bool(progress.converged[row]))

    def _record(self, began: float) -> Step:
        best, seconds = self._best, time.perf_counter() - began
        at, level, number = best.at, best.level, self.levels.index(best.level)
        index = sum(entry["level"] == number for entry in self.history)
        entry = {"level": number, "size": list(level.size), "start": best.number, "step": index}
        entry |= {"candidates": self._active, "similarity": float(at.similarity), "cost": float(at.cost)}
        self.history.append(entry | {"seconds": round(seconds, 4), "motion": at.motion.matrix[0].tolist()})
        return Step(
            number,
            len(self.levels),
            best.number,
            index,
            level.size,
            float(at.similarity),
            float(at.cost),
            seconds,
            level.objective.poses(at.motion),
            self._active,
        )


def _still() -> Pose:
    """The motion [1, 4, 4] that changes nothing."""
    return Pose._rigid(torch.eye(4, dtype=torch.float64)[None])


def _order(progress: Progress) -> Tensor:
    """Candidates, best first."""
    return torch.argsort(progress.best.cost, stable=True)


def register(
    volume: Volume,
    xrays: XRay | Iterable[XRay],
    initial=None,
    progress: Callable[[Step], None] | None = None,
    **options,
) -> RegistrationResult:
    """Run a `Registration` to its end; arguments and errors as there. `progress` is called after each step."""
    registration = Registration(volume, xrays, initial, **options)
    for step in registration.steps():
        if progress is not None:
            progress(step)
    return registration.result()


def _options(options: dict) -> Options:
    unknown = [name for name in options if name not in Options.__dataclass_fields__]
    if unknown:
        names = ", ".join(Options.__dataclass_fields__)
        raise RegistrationError(f"Unknown option {', '.join(unknown)}; the options are: {names}.")
    return Options(**options)


def _method(options: Options) -> str:
    """The optimiser, "auto" resolved. Raises RegistrationError where the measure is not one for it."""
    least_squares = isinstance(similarity(options.similarity), LeastSquaresSimilarity)
    if options.optimizer == "auto":
        return "levenberg_marquardt" if least_squares else "lbfgs"
    if options.optimizer == "levenberg_marquardt" and not least_squares:
        raise RegistrationError(
            f"The similarity {options.similarity!r} is not a sum of squares, which levenberg_marquardt needs; choose "
            "optimizer='auto', 'lbfgs', 'adam' or another similarity."
        )
    return options.optimizer


def _check_options(options: Options, xrays: list[XRay]) -> None:
    """What only shows once the X-rays are known."""
    _method(options)
    if options.pixels is not None and not getattr(similarity(options.similarity), "pointwise", False):
        raise RegistrationError(
            f"The similarity {options.similarity!r} compares neighbouring pixels, so it cannot do with some of them: "
            "leave out 'pixels', or choose 'zncc' or 'ssd'."
        )
    if options.labels is not None and options.similarity == "zncc":
        warnings.warn(
            "Only some structures are rendered, but the X-ray shows the rest too: 'zncc' is easily misled by that, "
            "similarity='lncc' or 'gradient_ncc' is not.",
            DiffDRRWarning,
            stacklevel=4,
        )
    if options.landmarks is not None and len(options.landmarks.points_2d) != len(xrays):
        raise RegistrationError(
            f"There are {len(xrays)} X-rays but landmarks for {len(options.landmarks.points_2d)}; "
            "give points_2d for each."
        )
    if options.weights is not None:
        _check_weights(options.weights, xrays)


def _check_weights(weights, xrays: list[XRay]) -> None:
    if len(weights) != len(xrays):
        raise RegistrationError(f"There are {len(xrays)} X-rays but {len(weights)} weights; give one per view.")
    for number, (weight, xray) in enumerate(zip(weights, xrays, strict=True), start=1):
        if weight is None:
            continue
        weight = as_tensor(weight)
        if weight.shape != xray.image.shape or not bool((weight >= 0).all()) or not bool((weight > 0).any()):
            raise RegistrationError(
                f"The weight of X-ray {number} must have its {xray.image.shape[0]} x {xray.image.shape[1]} pixels, "
                "none below 0 and some above."
            )


def _checked_xrays(xrays) -> list[XRay]:
    xrays = [xrays] if isinstance(xrays, XRay) else list(xrays)
    if not xrays:
        raise RegistrationError("There is no X-ray to register to.")
    for number, xray in enumerate(xrays, start=1):
        if xray.meta.get("intensity") == "transmission":
            raise RegistrationError(
                f"X-ray {number} holds transmitted intensities (air bright); convert it to line integrals first: "
                "DiffDRRCore.imaging.preprocessing.preprocess(xray)."
            )
        if float(xray.image.max()) == float(xray.image.min()):
            raise RegistrationError(f"X-ray {number} has no contrast: all its pixels are equal.")
    return xrays


def _pivot(volume: Volume, options: Options) -> torch.Tensor:
    return volume.center.cpu() if options.about is None else as_tensor(options.about).double()
