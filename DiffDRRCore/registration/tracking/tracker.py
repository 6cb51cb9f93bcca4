"""Bodies through a run of X-rays, frame by frame, each frame by the one registration engine.

Frames that a person has set (keyframes), or the first, are registered with a search around their start. From there the
run is followed: each frame starts where the motion so far leads (`motion_model`), between keyframes on the way to the
next one. A frame is taken for lost where the similarity drops below what is usual, where the bodies jump further than
the stated covariance and the expected motion allow, or where the registration did not converge. It is tried again at
once, with a search around where it should be and around its neighbours; then from the other side; then, if allowed, by
a `GlobalSearch`. Of several answers the most similar counts. What stays lost is interpolated, and marked.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from DiffDRRCore.errors import RegistrationError
from DiffDRRCore.geometry import Pose
from DiffDRRCore.imaging.volume import Volume
from DiffDRRCore.pieces import said
from DiffDRRCore.registration.global_search import GlobalSearch
from DiffDRRCore.registration.problem.bodies import Body
from DiffDRRCore.registration.starts.starts import StartFinder, start_poses
from DiffDRRCore.registration.tracking.course import Course, motions_of, runs
from DiffDRRCore.registration.tracking.fits import Fit, apart, doubt
from DiffDRRCore.registration.tracking.frames import Run, keyframe_motions, moving_carms
from DiffDRRCore.registration.tracking.motion_model import ACCELERATION, six
from DiffDRRCore.registration.tracking.result import TrackingResult
from DiffDRRCore.registration.tracking.single import SingleFrames
from DiffDRRCore.registration.tracking.steps import Pass, TrackStep

_ENOUGH = 3  # trusted frames, before a jump that searching does not explain away is believed
_NOT_REACHED = "not reached: the tracking was stopped"
Answer = tuple["Fit | None", "str | None"]


class Tracking:
    """Follows the CT, or bodies in it, through a run of X-rays.

    Args:
        volume: the CT.
        frames: a list, or {frame number: ...}: for each frame a list with an `XRay` of each view (None where there is
            none), or a single `XRay`, or None. Numbers are the time. Images as for `Registration`.
        initial: how the C-arms stand in the first frame with X-rays, as for `Registration`: a Pose, one per view, None
            for the X-rays' own poses (calibrated cameras), or what finds them (`GlobalSearch`, `PoseModel`) in the
            first frame with all views. They stay there; the bodies move. Or {frame number: poses}, one a view, of each
            frame: C-arms that move as is known, such as a run taken while the C-arm turns.
        bodies: parts of the CT that move each on its own (`Body`), their `motion` where they are in that frame; None is
            the CT as one, called "CT". Limits of a body, and of a free view, are about where it is expected in each
            frame: a body where the motion leads, a C-arm as the nearest frame found it.
        keyframes: {frame number: {body: Pose}, or one Pose for all}: the motions [4, 4], CT to where the X-rays see it
            with the C-arms at `initial`, as a person has set them: starts, which are refined. With keyframes, the first
            frame needs no start.
        acceleration: how much the bodies' speed is expected to change from frame to frame: standard deviations along
            each axis in degrees and in mm.
        margin: mm on the detector around the bodies' shadow to which each X-ray is cut; None leaves them whole.
        last_resort: a `GlobalSearch` for frames that are lost to all else.
        options: of `Registration`. `sizes` are 64, 128 where a frame's start is predicted; `search` is for keyframes
            and lost frames only; `second` is None; `max_seconds` and `max_steps` are of a frame; lists by view have all
            views. Without `tolerance`, a followed frame ends with a Newton step below an eighth of a pixel.

    Raises:
        RegistrationError: less than two frames, no start, unknown options, bodies or keyframes. What the engine does
            not accept of the first frame is raised by the first step.
    """

    def __init__(
        self,
        volume: Volume,
        frames: Iterable | Mapping[int, object],
        initial=None,
        bodies: Sequence[Body] | None = None,
        keyframes: Mapping | None = None,
        acceleration: tuple[float, float] = ACCELERATION,
        margin: float | None = None,
        last_resort: GlobalSearch | None = None,
        **options,
    ):
        if len(acceleration) != 2 or not all(value > 0 for value in acceleration):
            raise RegistrationError(f"acceleration is two positive numbers (degrees, mm), got {acceleration}.")
        self.run = Run.of(frames)
        self.single = SingleFrames(volume, self.run, bodies, margin, options)
        self.course = Course(self.run.numbers, six(acceleration))
        self._volume, self._initial, self._last_resort = volume, initial, last_resort
        self._acceleration = acceleration
        self._keyframes = keyframe_motions(keyframes, self.run, self.single.names, self.single.start)
        if isinstance(initial, Mapping):
            self.single.carms = moving_carms(initial, self.run)
        elif not isinstance(initial, StartFinder):
            self._place(start_poses(volume, self.run.firsts(), initial))
        self._looked_at: set[int] = set()

    def steps(self) -> Generator[TrackStep, None, None]:
        """One frame at a time; stop whenever you like, `result()` has the frames so far."""
        return (step for step in self.work() if step is not None)

    def work(self) -> Generator[TrackStep | None, None, None]:
        """`steps` for event loops: yields None between the pieces of a frame, which take some tens of milliseconds."""
        self._began = time.perf_counter()
        anchors = yield from self._anchored()
        frames = self.run.with_xrays
        for frame in frames:
            if frame > anchors[0] and frame not in anchors:
                yield from self._followed(frame, 1)
        for frame in reversed(frames):
            if frame < anchors[0]:
                yield from self._followed(frame, -1)
        for first, last in pairwise(anchors):
            yield from self._met(first, last)
        yield from self._again(anchors[0])
        if self._last_resort is not None:
            yield from self._everywhere()
        yield from self._reviewed()

    def result(self) -> TrackingResult:
        """What is known so far. Raises RegistrationError before the first frame."""
        if not self.course.trusted:
            raise RegistrationError("The tracking has not found a frame yet; run steps() first.")
        lost = dict(self.course.lost)
        for frame in self.run.with_xrays:
            if frame not in self.course.fits and frame not in lost:
                lost[frame] = _NOT_REACHED
        return TrackingResult.of(self.run, self.single, self.course, lost, list(self._keyframes), self._acceleration)

    def _place(self, poses: Sequence[Pose]) -> None:
        stand = torch.stack([pose.matrix.detach().double().cpu() for pose in poses])
        self.single.carms = stand.repeat(len(self.run.numbers), 1, 1, 1)

    def _carms(self, frame: int) -> Tensor:
        return self.course.carms(frame, self.single.carms, self.single.free)

    def _anchored(self) -> Generator[TrackStep | None, None, list[int]]:
        """The frames that others are followed from, registered with a search; returns their places."""
        anchors = dict(self._keyframes)
        if isinstance(self._initial, StartFinder):
            frame = yield from self._found()
            anchors.setdefault(frame, self.single.start)
        elif not anchors:
            anchors[self.run.with_xrays[0]] = self.single.start
        failures = []
        for frame, motions in sorted(anchors.items()):
            try:
                fit = yield from said(None, self.single.fitting(frame, motions, self._carms(frame), wide=True))
                self.course.put(frame, fit, doubt(fit, [], None))
            except RegistrationError as error:
                failures.append(error)
                self.course.put(frame, None, str(error))
            yield self._step(frame, Pass.KEYFRAME)
        if not self.course.fits:
            raise failures[0]
        if not self.course.trusted:  # all have run into a limit: nothing better is known
            self.course.lost = {frame: why for frame, why in self.course.lost.items() if frame not in self.course.fits}
        return self.course.trusted

    def _found(self) -> Generator[None, None, int]:
        """The C-arms as a search finds them in the first frame with all views; returns its place."""
        whole = [frame for frame in self.run.with_xrays if len(self.run.seen(frame)) == self.run.views]
        if not whole:
            raise RegistrationError("No frame has an X-ray of each view, so the start cannot be searched for.")
        xrays = self.run.xrays(whole[0])
        if isinstance(self._initial, GlobalSearch):
            found = yield from said(None, self._initial.searching(self._volume, xrays))
            self._place(list(found.poses))
        else:
            yield None
            self._place(list(self._initial.starts(self._volume, xrays)))
        return whole[0]

    def _followed(self, frame: int, direction: int) -> Generator[TrackStep | None, None, None]:
        """A frame from where the motion leads."""
        expected = self.course.expected(frame, direction)
        fit, why = yield from self._tried(frame, motions_of(expected, self._about), expected)
        if why is not None:
            fit, why = yield from self._searched(frame, expected, fit, why)
        self.course.put(frame, fit, why)
        yield self._step(frame, Pass.FORWARDS if direction > 0 else Pass.BACKWARDS)

    def _tried(self, frame: int, motions: Tensor, expected, wide: bool = False) -> Generator[None, None, Answer]:
        """What a registration from there finds, and why it is not to be trusted."""
        try:
            fit = yield from said(None, self.single.fitting(frame, motions, self._carms(frame), wide))
        except RegistrationError as error:
            return None, str(error)
        return fit, doubt(fit, self.course.nearest(frame), expected)

    def _searched(self, frame: int, expected, tried: Fit | None, why: str) -> Generator[None, None, Answer]:
        """A doubtful frame again, with a search from where it should be and from its neighbours.

        A jump that is as similar as usual, and that no search explains away, is the body's own.
        """
        starts = [motions_of(expected, self._about)]
        if frame - 1 not in self.course.lost and frame + 1 not in self.course.lost:
            starts += [self.course.fits[side].motions for side in self.course.sides(frame)]
        best, reason = tried, why
        for motions in starts:
            fit, why = yield from self._tried(frame, motions, expected, wide=True)
            if why is None:
                return fit, None
            if fit is not None and (best is None or fit.similarity > best.similarity):
                best, reason = fit, why
        others = self.course.nearest(frame)
        if best is not None and len(others) >= _ENOUGH and doubt(best, others, None) is None:
            return best, None
        return best, reason

    def _met(self, first: int, last: int) -> Generator[TrackStep | None, None, None]:
        """Backwards from a keyframe that the way from the one before does not lead to; the more similar stays."""
        between = [frame for frame in self.run.with_xrays if first < frame < last]
        gone = [frame for frame in self.course.trusted if first <= frame < last]
        expected = self.course.expected(last, 1, gone)
        there = self.course.fits[last]
        if not between or expected is None or doubt(there, [], expected) is None:
            return
        behind = [frame for frame in self.course.trusted if frame >= last]
        for frame in reversed(between):
            expected = self.course.expected(frame, -1, behind)
            fit, why = yield from self._tried(frame, motions_of(expected, self._about), expected)
            known = self.course.fits.get(frame)
            if why is None and known is not None and frame not in self.course.lost and not apart(fit, known):
                break
            if why is None and (known is None or frame in self.course.lost or fit.similarity > known.similarity):
                self.course.put(frame, fit, None)
                behind.append(frame)
            yield self._step(frame, Pass.BACKWARDS)

    def _again(self, first: int) -> Generator[TrackStep | None, None, None]:
        """Lost frames from the other side."""
        for stretch in runs(self.course.lost):
            direction = -1 if stretch[0] > first else 1
            for frame in stretch[::direction]:
                expected = self.course.expected(frame, direction)
                if expected is None:
                    break
                known = self.course.fits.get(frame)
                fit, why = yield from self._tried(frame, motions_of(expected, self._about), expected)
                if why is not None:
                    fit, why = yield from self._searched(frame, expected, fit or known, why)
                if why is None:
                    self.course.put(frame, fit, None)
                yield self._step(frame, Pass.AGAIN)

    def _everywhere(self) -> Generator[TrackStep | None, None, None]:
        """Lost frames by a search over all places of the C-arms; bodies stand to each other as their neighbours do."""
        for frame in sorted(self.course.lost):
            views = self.run.seen(frame)
            if 0 not in views:  # whose ranges are searched
                continue
            carms = [Pose._rigid(self._carms(frame)[view]) for view in views]
            xrays = [self.run.rows[frame][view].with_pose(pose) for view, pose in zip(views, carms, strict=True)]
            try:
                found = yield from said(None, self._last_resort.searching(self._volume, xrays))
            except RegistrationError:
                continue
            bodies = self.course.interpolated(frame)
            moved = carms[0].matrix @ torch.linalg.inv(found.poses[0].matrix) @ torch.linalg.inv(bodies[0])
            fit, why = yield from self._tried(frame, moved @ bodies, None, wide=True)
            if why is None:
                self.course.put(frame, fit, None)
            yield self._step(frame, Pass.EVERYWHERE)

    def _reviewed(self) -> Generator[TrackStep | None, None, None]:
        """Frames that only later ones show to be worse than usual: again, and lost if that does not help."""
        for frame in self.course.trusted:
            why = doubt(self.course.fits[frame], self.course.nearest(frame), None)
            if why is None:
                continue
            fit = self.course.fits[frame]
            self.course.put(frame, fit, why)
            expected = self.course.expected(frame, 1) or self.course.expected(frame, -1)
            if expected is not None:
                fit, why = yield from self._searched(frame, expected, fit, why)
                self.course.put(frame, fit, why)
            yield self._step(frame, Pass.AGAIN)

    @property
    def _about(self) -> Tensor:
        return next(iter(self.course.fits.values())).about

    def _step(self, frame: int, during: Pass) -> TrackStep:
        self._looked_at.add(frame)
        fit, lost = self.course.fits.get(frame), self.course.lost.get(frame)
        motions = self.single.start if not self.course.trusted else self.course.interpolated(frame)
        return TrackStep(
            self.run.numbers[frame],
            len(self._looked_at),
            len(self.run.with_xrays),
            during,
            float("nan") if fit is None else fit.similarity,
            lost,
            Pose._rigid(motions),
            time.perf_counter() - self._began,
        )


def track(
    volume: Volume,
    frames: Iterable | Mapping[int, object],
    initial=None,
    progress: Callable[[TrackStep], None] | None = None,
    **options,
) -> TrackingResult:
    """Run a `Tracking` to its end; arguments and errors as there. `progress` is called after each frame."""
    tracking = Tracking(volume, frames, initial, **options)
    for step in tracking.steps():
        if progress is not None:
            progress(step)
    return tracking.result()
