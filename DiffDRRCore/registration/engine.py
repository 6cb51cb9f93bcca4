"""2D/3D registration: one loop that a script, a progress bar and a panel all drive."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from DiffDRRCore.errors import RegistrationError
from DiffDRRCore.geometry import Pose
from DiffDRRCore.imaging.volume import Volume
from DiffDRRCore.imaging.xray import XRay
from DiffDRRCore.pieces import finished, ranges, said
from DiffDRRCore.registration.certainty.covariance import estimating_covariance
from DiffDRRCore.registration.certainty.reasons import finding_doubts, shows_everything
from DiffDRRCore.registration.certainty.second import SecondOpinion, asking_outlines
from DiffDRRCore.registration.global_search import GlobalSearch
from DiffDRRCore.registration.masks.automatic import differ, told_weights, without_ends
from DiffDRRCore.registration.objective.linearization import Linearization
from DiffDRRCore.registration.objective.objective import Objective
from DiffDRRCore.registration.objective.pyramid import Level, build_levels
from DiffDRRCore.registration.optimizers import Progress, Steps, adam, lbfgs, levenberg_marquardt
from DiffDRRCore.registration.outcome import finding_alternatives, outcome, places
from DiffDRRCore.registration.problem.checks import check_options, check_views, checked_options, checked_xrays, method
from DiffDRRCore.registration.problem.motion import MotionFrame
from DiffDRRCore.registration.problem.problem import Problem
from DiffDRRCore.registration.problem.unknowns import State
from DiffDRRCore.registration.result import RegistrationResult
from DiffDRRCore.registration.starts import screening
from DiffDRRCore.registration.starts.starts import StartFinder, start_poses
from DiffDRRCore.registration.step import Step

CONVERGED = "converged"
STEP_LIMIT = "step limit reached"
TIME_LIMIT = "time limit reached"
STOPPED = "stopped before the end"

_KEPT = 0.3  # share of the starts that goes on to the next level
_SEARCHED = 8  # of the motions tried in a search are optimised
_TRIAL = 8  # steps after which the worse half of the candidates gives up
_LATER_TRIAL = 3  # at all levels but the first, where candidates start next to their optima


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
            method `starts(volume, xrays)`: a trained `DiffDRRCore.learning.PoseModel`, or a `GlobalSearch`.
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
        self.options = checked_options(options)
        self.xrays = checked_xrays(xrays)
        if isinstance(initial, StartFinder):
            yield "Looking for the start"
        self._found: list[dict] = []
        if isinstance(initial, GlobalSearch):
            found = yield from said("Looking for the start", initial.searching(volume, self.xrays))
            initial, self._found = found.poses, found.alternatives
        starts = start_poses(volume, self.xrays, initial)
        check_options(self.options, self.xrays)
        looking = "Looking at what the X-rays show"
        self._told = yield from said(looking, told_weights(self.xrays, volume, starts, self.options))
        self.problem = Problem.of(volume, self.xrays, starts, self.options)
        check_views(self.xrays, starts, self.options)
        self._weigh((yield from said(looking, self._weights(starts))))
        self.levels = yield from self._building()
        yield from said("Looking at the start", self.levels[0].objective.check_start())
        self._method = method(self.options)
        self.history: list[dict] = []
        self._best: _Best | None = None
        self._active, self._survivors, self._optima = 0, None, None
        self._second: SecondOpinion | None = None
        self._looked_again = False

    def steps(self) -> Generator[Step, None, None]:
        """One optimiser step of all candidates at a time; stop whenever you like, `result()` has the best so far."""
        return (step for step in self.work() if step is not None)

    def work(self) -> Generator[Step | None, None, None]:
        """`steps` for event loops: yields None between the pieces of a step, which take some tens of milliseconds."""
        began = time.perf_counter()
        states = self._together(self._starts())
        for number in itertools.count():
            if number == len(self.levels) and not (yield from said(None, self._outlines_differ())):
                return
            if number == 1 and self._second is None:
                yield from said(None, self._look_again())
            for is_step in self._level(number, self._onto(number, states)):
                if not is_step:
                    yield None
                    continue
                yield (step := self._record(began))
                if self.options.max_seconds is not None and step.seconds > self.options.max_seconds:
                    self._best.reason = TIME_LIMIT
                    return
            states = self._survivors

    def _weights(self, poses: Sequence[Pose]) -> Generator[None, None, list[Tensor | None]]:
        """Of the X-rays, seen from those poses."""
        if self.options.beyond_ends or not (self.problem.everything and self.problem.is_whole):
            return self._told
        return (yield from without_ends(self.xrays, self.problem.volume, poses, self._told))

    def _weigh(self, weights: list[Tensor | None]) -> None:
        self.options = replace(self.options, weights=weights)
        self.problem = replace(self.problem, options=self.options)

    def _building(self, first: int = 0) -> Generator[str, None, list[Level]]:
        """The levels from that number on, ready to render."""
        levels = yield from said("Preparing the CT", build_levels(self.problem))
        for number, level in enumerate(levels[first:], start=first + 1):
            level.objective.check_contrast()
            for model in level.objective.models:
                if model.renderer.must_compile:
                    yield "Compiling for this processor: some seconds, once"
                yield from said(f"Preparing level {number} of {len(levels)}", model.renderer.preparing())
        return levels[first:]

    def _look_again(self) -> Generator[None, None, None]:
        """Weights of the levels to come: the start, which those of the first are of, may have been far off."""
        first = self.levels[0]
        poses = first.objective.poses(self._best.at.state, first.owners[0])
        weights = yield from self._weights(poses)
        if differ(weights, self.options.weights):
            self._looked_again = True
            self._weigh(weights)
            self.levels[1:] = yield from self._building(1)

    def _outlines_differ(self) -> Generator[None, None, bool]:
        """Whether one more level goes on by outlines, from the answer by grey values alone."""
        wanted = self.options.second is not None and shows_everything(self.problem) and self._second is None
        if not wanted or self._method != "levenberg_marquardt":
            return False
        self._second = yield from asking_outlines(self.levels[-1], self._best.at.state)
        if self._second is None:
            return False
        self._survivors = self._second.first
        self.levels.append(self._second.level)
        return True

    def result(self) -> RegistrationResult:
        """The best pose so far. Raises RegistrationError before the first step."""
        return finished(self.finishing())

    def finishing(self, compare: bool = True) -> Generator[None, None, RegistrationResult]:
        """`result` in pieces; without `compare`, the start's similarity is not measured (NaN)."""
        if self._best is None:
            raise RegistrationError("The registration has not made a step yet; run steps() first.")
        found, noise, images = yield from self._finding()
        judge = self._judge.objective
        found["initial_similarity"] = (
            float((yield from judge.measuring(judge.unknowns.start()))) if compare else math.nan
        )
        first, coarse = self.levels[0], self._at_first()
        found["alternatives"] = yield from finding_alternatives(first, coarse, self._optima, self._found)
        doubts = yield from finding_doubts(
            self.problem, first, coarse, self._best.level, images, found, noise, self._second
        )
        return RegistrationResult(**found, history=list(self.history), doubts=doubts)

    def _finding(self) -> Generator[None, None, tuple[dict, Tensor, list[Tensor]]]:
        """Fields of the result, the covariance [P, P] by noise alone, and the images at the answer."""
        best, second = self._best, self._second
        noise, images = yield from estimating_covariance(best.level.objective, best.at)
        covariance = noise
        if second is not None:
            second.last = best.at.state
            covariance = noise + second.spread()
        same = best.level is self._judge and not self.options.robust
        score = best.at.similarity if same else (yield from self._judge.objective.measuring(best.at.state))
        found = {
            **outcome(self.problem, best.level, best.at.state, covariance),
            "similarity": float(score),
            "converged": best.reason == CONVERGED and best.level is self.levels[-1],
            "reason": best.reason,
        }
        return found, noise, images

    @property
    def _judge(self) -> Level:
        """The level whose images and measure the similarity of the answer is told in."""
        return self._best.level if self._second is None else self._second.judge

    def _at_first(self) -> State:
        """The best state as the first level's images know it.

        Where bodies moved together then, or other pixels counted, it is the first level's own best.
        """
        if len(self._best.level.parts) == len(self.levels[0].parts) and not self._looked_again:
            return self._best.at.state
        best = int(self._optima.cost.argmin())
        return self._optima.state[best : best + 1]

    def _together(self, motions: Pose) -> State:
        """All free bodies moved alike at the first level, within their bounds."""
        unknowns = self.levels[0].objective.unknowns
        return unknowns.within(unknowns.together(motions))

    def _onto(self, number: int, states: State) -> State:
        """States of the level before, in the unknowns of this one: what moved together goes on alone."""
        if number == 0 or len(self.levels[number].parts) == len(self.levels[number - 1].parts):
            return states
        before = self.levels[number - 1]
        views = range(len(before.parts), len(before.objective.unknowns.motions))
        return self.levels[number].objective.unknowns.within(states.spread([*before.owners, *views]))

    def _optimizer(self, number: int, objective: Objective, states: State) -> Steps:
        level = self.levels[number]
        options, finest = self.options, self.levels[-1]
        last = number == len(self.levels) - 1
        tolerance = options.tolerance if last else max(options.tolerance, 0.05 * level.pixel)
        arguments = (objective, states, tolerance, options.max_steps)
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
        around = self._frame.motion(self.options.limits.clamp(q))
        return Pose._rigid(torch.cat([torch.eye(4, dtype=torch.float64)[None], around.matrix]))

    @property
    def _frame(self) -> MotionFrame:
        """Of the first level's first body: what a motion of everything is told in."""
        return self.levels[0].objective.unknowns.motions[0].frame

    def _level(self, number: int, states: State) -> Iterator[bool]:
        """Take candidates through a level; at the first, others are looked for where theirs is no clear optimum.

        Here and below, True is yielded after each step, and False between the pieces of one.
        """
        level, candidates = self.levels[number], torch.arange(len(states))
        if self.options.one_by_one and level.parts is self.problem.parts:
            states = yield from self._one_by_one(number, states, candidates)
        progress = yield from self._optimized(number, level.objective, states, candidates)
        if number == 0:
            progress = yield from self._joined_by_search(progress)
            self._optima = progress.best
        self._best.reason = CONVERGED if self._best.converged else STEP_LIMIT
        count = math.ceil(len(progress.best) * _KEPT)
        best = progress.best
        rows = screening.best_apart(level.objective.unknowns, best.state, best.cost, count, level.pixel)
        self._survivors = best.state[rows]

    def _one_by_one(self, number: int, states: State, candidates: Tensor) -> Generator[bool, None, State]:
        """Each free body with the others held where they are."""
        level = self.levels[number]
        for motion, part in enumerate(level.parts):
            if not part.body.locked:
                objective = level.objective.only(motion)
                states = (yield from self._optimized(number, objective, states, candidates)).best.state
        return states

    def _joined_by_search(self, progress: Progress) -> Generator[bool, None, Progress]:
        """The candidates, and those that a search found."""
        found = yield from self._searched(progress)
        if len(found) == 0:
            return progress
        objective = self.levels[0].objective
        others = yield from self._optimized(0, objective, found, torch.arange(len(found)) + len(progress.best))
        return progress.joined(others)

    def _optimized(
        self, number: int, objective: Objective, states: State, candidates: Tensor
    ) -> Generator[bool, None, Progress]:
        """Every few steps the worse half gives up, down to as many as go on to the next level (successive halving)."""
        trial = _TRIAL if number == 0 else _LATER_TRIAL
        index = -1
        for found in self._optimizer(number, objective, states):
            if found is None:
                yield False
                continue
            progress, index = found, index + 1
            if index > 0 and index % trial == 0:
                kept = max(math.ceil(len(states) * _KEPT), math.ceil(len(states) / 2 ** (index // trial)))
                progress.active[_order(progress)[kept:]] = False
            self._note(number, progress, candidates)
            yield True
        self._note(number, progress, candidates)
        return progress

    def _searched(self, progress: Progress) -> Generator[bool, None, State]:
        """The best of many states around the start, spread apart; none where the optimum found is clearly better."""
        level, options = self.levels[0], self.options
        if options.search == 0:
            return progress.best.state[:0]
        field, objective = level.pixel * max(level.size), level.objective
        views = len(self.xrays)
        motions = screening.motions(self._frame, options.limits, options.search, field, views, options.seed)
        tried, costs = self._together(motions), torch.zeros(0, dtype=torch.float64)
        for first, last in ranges(len(tried), screening.CHUNK):
            similarities = yield from said(False, screening.screened(objective, tried[first:last]))
            costs = torch.cat([costs, 1 - similarities + objective.knowledge_cost(tried[first:last])])
            yield True
            if screening.is_decisive(progress.best.cost.min(), costs, objective.least_cost):
                return tried[:0]
        return tried[screening.best_apart(objective.unknowns, tried, costs, _SEARCHED, 4 * level.pixel)]

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
        second = self._second if self._second is not None and level is self._second.level else None
        similarity = float(at.similarity) if second is None else second.similarity(at)
        entry |= {"candidates": self._active, "similarity": similarity, "cost": float(at.cost)}
        self.history.append(
            entry | {"seconds": round(seconds, 4), "motion": at.state.motions.matrix[0, level.lead].tolist()}
        )
        return Step(
            number,
            len(self.levels),
            best.number,
            index,
            level.size,
            similarity,
            float(at.cost),
            seconds,
            level.objective.poses(at.state, level.owners[0]),
            self._active,
            *places(self.problem, level, at.state),
        )


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
