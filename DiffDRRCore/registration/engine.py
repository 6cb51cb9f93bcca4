"""2D/3D registration: one loop that a script, a progress bar and a panel all drive."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass

import torch

from DiffDRRCore.errors import DiffDRRWarning, RegistrationError
from DiffDRRCore.geometry import Pose, as_tensor, stack_poses
from DiffDRRCore.imaging.volume import Volume
from DiffDRRCore.imaging.xray import XRay
from DiffDRRCore.registration.motion import MotionFrame
from DiffDRRCore.registration.objective import Linearization
from DiffDRRCore.registration.optimizers import CONVERGED, Steps, adam, levenberg_marquardt
from DiffDRRCore.registration.options import Options
from DiffDRRCore.registration.pyramid import Level, build_levels
from DiffDRRCore.registration.result import RegistrationResult
from DiffDRRCore.similarity import LeastSquaresSimilarity, similarity

TIME_LIMIT = "time limit reached"
STOPPED = "stopped before the end"

_KEPT = 0.3  # share of the starts that goes on to the next level


@dataclass(frozen=True)
class Step:
    """One optimiser step, as a progress display needs it."""

    level: int
    levels: int
    start: int
    index: int
    size: tuple[int, int]
    similarity: float
    cost: float
    seconds: float
    poses: Pose


@dataclass
class _Candidate:
    """A start on its way: its number, where it is, at which level, and why that level ended."""

    number: int
    motion: Pose
    at: Linearization | None = None
    level: Level | None = None
    reason: str = STOPPED


class Registration:
    """Finds the C-arm poses under which the CT looks like the X-rays.

    Several views share one rigid motion: the C-arms are fixed to each other.

    Args:
        volume: the CT.
        xrays: one `XRay` or a list; images of "attenuation" (bone bright, see `DiffDRRCore.imaging.preprocess`).
        initial: start: a Pose, or one per view; a single Pose for several views is the first one's, and the others
            follow by the X-rays' own poses. None takes each X-ray's own pose.
        options: fields of `Options`.

    Raises:
        RegistrationError: no X-ray, no start, unknown or unsuitable options, transmission images, an X-ray without
            contrast, or a start from which no ray meets the CT.
    """

    def __init__(self, volume: Volume, xrays: XRay | Iterable[XRay], initial=None, **options):
        self.options = _options(options)
        self.xrays = _checked_xrays(xrays)
        starts = _start_poses(self.xrays, initial)
        rendered = volume.select(self.options.labels) if self.options.labels is not None else volume
        _check_options(self.options, self.xrays)
        self.frame = MotionFrame(_pivot(volume, self.options), starts[0].rotation)
        self.levels = build_levels(rendered, self.xrays, starts, self.frame, self.options)
        self.levels[0].objective.check_start(Pose.identity())
        self.history: list[dict] = []
        self._reach = 0.25 * float((volume.spacing.cpu() * torch.tensor(volume.shape[::-1])).norm())
        self._best: _Candidate | None = None

    def steps(self) -> Generator[Step, None, None]:
        """One optimiser step at a time; stop whenever you like, `result()` has the best so far."""
        began = time.perf_counter()
        candidates = self._starts()
        for number, level in enumerate(self.levels):
            for candidate in candidates:
                for index, at in self._run(level, number, candidate):
                    if self._best is None or self._best.level is not level or at.cost <= self._best.at.cost:
                        self._best = candidate
                    seconds = time.perf_counter() - began
                    yield self._record(number, candidate, index, seconds)
                    if self.options.max_seconds is not None and seconds > self.options.max_seconds:
                        self._best.reason = TIME_LIMIT
                        return
            candidates = sorted(candidates, key=lambda candidate: candidate.at.cost)
            candidates = candidates[: math.ceil(len(candidates) * _KEPT)]

    def result(self) -> RegistrationResult:
        """The best pose so far. Raises RegistrationError before the first step."""
        if self._best is None:
            raise RegistrationError("The registration has not made a step yet; run steps() first.")
        best, objective = self._best, self._best.level.objective
        return RegistrationResult(
            poses=stack_poses(objective.rigid_poses(best.motion)),
            patient_motion=best.motion.inverse(),
            similarity=best.at.similarity,
            initial_similarity=objective.linearize(Pose.identity()).similarity,
            converged=best.reason == CONVERGED and best.level is self.levels[-1],
            reason=best.reason,
            covariance=objective.covariance(best.at),
            about=self.frame.pivot,
            at_bound=objective.limits.at_bound(self.frame.coordinates(best.motion)),
            history=list(self.history),
        )

    def _run(
        self, level: Level, number: int, candidate: _Candidate
    ) -> Generator[tuple[int, Linearization], None, None]:
        """Take a candidate through a level."""
        steps = self._optimizer(level, number, candidate.motion)
        index = 0
        while True:
            try:
                at = next(steps)
            except StopIteration as end:
                candidate.reason = end.value
                return
            candidate.at, candidate.motion, candidate.level, candidate.reason = at, at.motion, level, STOPPED
            yield index, at
            index += 1

    def _optimizer(self, level: Level, number: int, motion: Pose) -> Steps:
        options, finest = self.options, self.levels[-1]
        last = number == len(self.levels) - 1
        tolerance = options.tolerance if last else max(options.tolerance, 0.05 * level.pixel)
        if options.optimizer == "adam":
            coarser = min(4.0, level.pixel / finest.pixel)
            rate = (options.learning_rate[0] * coarser, options.learning_rate[1] * coarser)
            return adam(level.objective, motion, tolerance, options.max_steps, self._reach, rate)
        return levenberg_marquardt(level.objective, motion, tolerance, options.max_steps, self._reach)

    def _starts(self) -> list[_Candidate]:
        """The initial pose, and as many around it as asked for."""
        generator = torch.Generator().manual_seed(self.options.seed)
        degrees, plane, depth = self.options.start_spread
        spread = torch.tensor([degrees * torch.pi / 180] * 3 + [plane, plane, depth], dtype=torch.float64)
        candidates = [_Candidate(0, Pose.identity())]
        for number in range(1, self.options.starts):
            q = spread * torch.randn(6, generator=generator, dtype=torch.float64)
            candidates.append(_Candidate(number, self.frame.motion(self.options.limits.clamp(q))))
        return candidates

    def _record(self, number: int, candidate: _Candidate, index: int, seconds: float) -> Step:
        at, level = candidate.at, candidate.level
        entry = {"level": number, "size": list(level.size), "start": candidate.number, "step": index}
        entry |= {"similarity": at.similarity, "cost": at.cost, "seconds": round(seconds, 4)}
        self.history.append(entry | {"motion": at.motion.matrix.tolist()})
        poses = stack_poses(level.objective.rigid_poses(at.motion))
        return Step(
            number, len(self.levels), candidate.number, index, level.size, at.similarity, at.cost, seconds, poses
        )


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


def _check_options(options: Options, xrays: list[XRay]) -> None:
    """What only shows once the X-rays are known."""
    if options.optimizer == "levenberg_marquardt" and not isinstance(
        similarity(options.similarity), LeastSquaresSimilarity
    ):
        raise RegistrationError(
            f"The similarity {options.similarity!r} is not a sum of squares, which levenberg_marquardt needs; choose "
            "optimizer='adam' or another similarity."
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


def _start_poses(xrays: list[XRay], initial) -> list[Pose]:
    if isinstance(initial, Pose) and initial.matrix.ndim == 3 and len(initial) == 1:
        initial = initial[0]
    if initial is None or (isinstance(initial, Pose) and initial.matrix.ndim == 2 and len(xrays) > 1):
        own = [xray.pose for xray in xrays]
        lacking = [str(number) for number, pose in enumerate(own, start=1) if pose is None]
        if lacking:
            raise RegistrationError(f"X-ray {', '.join(lacking)} has no pose to start from; give one per view.")
        first = own[0] if initial is None else initial
        poses = [first @ own[0].inverse() @ pose for pose in own]
    else:
        poses = [initial] if isinstance(initial, Pose) and initial.matrix.ndim == 2 else list(initial)
    if not all(isinstance(pose, Pose) and pose.matrix.ndim == 2 for pose in poses):
        raise RegistrationError("The start is one Pose, or one per view.")
    if len(poses) != len(xrays):
        raise RegistrationError(f"There are {len(xrays)} X-rays but {len(poses)} start poses; give one per view.")
    return [Pose._rigid(pose.matrix.detach().double().cpu()) for pose in poses]


def _pivot(volume: Volume, options: Options) -> torch.Tensor:
    return volume.center.cpu() if options.about is None else as_tensor(options.about).double()
