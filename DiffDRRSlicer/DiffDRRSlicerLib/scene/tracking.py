"""Tracking in the scene, in pieces that a timer can pump: bones, CT or C-arm followed through a run of X-rays."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator

import numpy as np

from DiffDRRCore import Pose, Volume, XRay
from DiffDRRCore.geometry import stack_poses
from DiffDRRCore.registration.tracking import Tracking, TrackingResult, TrackStep
from DiffDRRSlicerLib.scene import nodes
from DiffDRRSlicerLib.scene import tracking_course as courses
from DiffDRRSlicerLib.scene.anatomy import Anatomy
from DiffDRRSlicerLib.scene.bodies import BodyNode, rest_of
from DiffDRRSlicerLib.scene.body_groups import TARGETS, groups_of
from DiffDRRSlicerLib.scene.carm import CArmNode
from DiffDRRSlicerLib.scene.endings import all_there, ending_of
from DiffDRRSlicerLib.scene.errors import SceneError
from DiffDRRSlicerLib.scene.handles import find_patient_transform
from DiffDRRSlicerLib.scene.joints import engine_joints
from DiffDRRSlicerLib.scene.placement import Placement
from DiffDRRSlicerLib.scene.regions import combined_mask
from DiffDRRSlicerLib.scene.registration import Progress
from DiffDRRSlicerLib.scene.registration_options import preset_options
from DiffDRRSlicerLib.scene.tracking_keys import engine_keyframes, keyframes
from DiffDRRSlicerLib.scene.tracking_results import keep_result
from DiffDRRSlicerLib.scene.tracking_run import XRayRun, require_run
from DiffDRRSlicerLib.scene.view_settings import engine_options

_PREPARED, _TRACKED = 0.1, 0.95  # shares of the progress
_WHOLE = "CT"  # what `Tracking` calls the CT as one


class SceneTracking:
    """Follows the CT, or bones in it, through the frames of a run.

    Drive `steps()`; afterwards `outcome` is the `TrackingResult`, and the browser of the run moves what was found over
    the frames (`tracking_course`). During the run the nodes are where the last frame has them. It begins at the
    keyframes, and without any where all stands now, in the frame that is shown. Cameras count as known: what
    `view_settings` says that is to be found of them, only a registration looks for.

    Args:
        anatomy: the CT.
        carms: one `CArmNode` whose X-ray is a run, or several whose runs one browser plays.
        first, last, step: frames that are registered, both included; those between two are interpolated. None is the
            first or the last of the run. Keyframes in the range always are.
        preset, similarity, structures: as of `SceneRegistration`; without a preset's sizes, which are of one image.
        region, find_collimator: the pixels that count, of the frame that is shown; as of `SceneRegistration`.
        target: what moves as a whole, the "carm", the "patient", or the "bodies" alone. A C-arm that moves with the
            frames (a sweep) is known by that: patient and bones are found beside its motion, or its motion is refined.
        smooth: whether the smoothed motions are played; both are kept.
        also: nodes that move with the patient.
        bodies: bones that move on their own; None is all that there are, an empty list the CT as one. Joints of the
            scene (`joints`) count unless the option `joints` is given.
        options: others of `Tracking` and of `DiffDRRCore.registration.Options`.

    Raises SceneError for no run, one frame, a range or a target that there is not.
    """

    def __init__(
        self,
        anatomy: Anatomy,
        carms: CArmNode | Iterable[CArmNode],
        first: int | None = None,
        last: int | None = None,
        step: int = 1,
        preset: str = "fast",
        similarity=None,
        structures=None,
        region=None,
        find_collimator: bool = True,
        target: str = "carm",
        smooth: bool = True,
        also=(),
        bodies=None,
        **options,
    ):
        self.anatomy = anatomy
        self.carms = [carms] if isinstance(carms, CArmNode) else list(carms)
        self.run = require_run(self.carms)
        if target not in TARGETS:
            raise SceneError(f"What is moved is the 'carm', the 'patient' or the 'bodies', not '{target}'.")
        self.bodies: list[BodyNode] = BodyNode.of(anatomy) if bodies is None else list(bodies)
        if target == "bodies" and not self.bodies:
            raise SceneError("There are no bones to move: make some of the structures, or move the C-arm.")
        self._numbers = frame_range(self.run, first, last, step)
        self._target, self._smooth, self._structures = target, smooth, structures
        self._also, self._find_collimator = tuple(also), find_collimator
        self._regions = list(region) if isinstance(region, (list, tuple)) else [region] * len(self.carms)
        alone = structures or (self.bodies and rest_of(anatomy.ct) == "left out")
        self._options = preset_options(preset, similarity or ("lncc" if alone else None), structures, **options)
        if preset != "accurate" and "sizes" not in options:
            del self._options["sizes"]
        self.outcome: TrackingResult | None = None
        self._cancelled = self._started = False
        self._fraction, self._text = 0.0, "Starting"

    def cancel(self) -> None:
        """Stop at the next step; what was found so far is kept."""
        self._cancelled = True

    @property
    def ending(self) -> str:
        """How it ended, in a sentence, where it did not end as it should; afterwards."""
        return ending_of(self.outcome, self._cancelled, "the frames so far are kept.")

    def steps(self) -> Generator[Progress, None, None]:
        """The run, a piece of some tens of milliseconds at a time; runs once.

        An error leaves all nodes as they were, and is raised. Where a node of the run is deleted, it ends without an
        outcome.
        """
        if self._started:
            raise SceneError("A tracking runs once; make another one.")
        self._started = True
        self._check_locked()
        self._shown = self.run.frame
        groups = groups_of(self.anatomy, self.bodies, self._target, self._structures) if self.bodies else []
        self._groups = groups
        self._placement = Placement(self.anatomy, self.carms, groups, self._target, self._also)
        self._known = self._standing()
        try:
            yield from self._run()
        except Exception:
            if self._all_there():
                self._put_back()
            raise

    def _run(self) -> Generator[Progress, None, None]:
        tracking = yield from self._preparation()
        if tracking is None:
            return
        for step in tracking.work():
            if step is not None:
                self._take(step)
                yield self._say(_told(step), _PREPARED + (_TRACKED - _PREPARED) * step.done / step.total)
            else:
                yield self._say(None)
            if not self._all_there():
                return
            if self._cancelled:
                break
        yield self._say("Writing the motions", _TRACKED)
        if self._all_there():
            if tracking.course.trusted:
                self._write(tracking.result())
            else:
                self._put_back()
        yield self._say("Done", 1.0)

    def _preparation(self) -> Generator[Progress, None, Tracking | None]:
        """None where it was cancelled, or a node is gone."""
        yield self._say("Reading the CT")
        work: Generator[str, None, Volume] = self.anatomy.preparing()
        while True:
            try:
                yield self._say(next(work))
            except StopIteration as end:
                volume = end.value
                break
        keys = self._keys()
        wanted = sorted({*self._numbers, *keys})
        frames: dict[int, list[XRay | None]] = {}
        for number in range(wanted[0], wanted[-1] + 1):
            seen = number in wanted
            frames[number] = [self.run.xray(carm, number) if seen else None for carm in self.carms]
            yield self._say(f"Reading frame {number}", _PREPARED * len(frames) / (wanted[-1] - wanted[0] + 1))
            if self._cancelled or not self._all_there():
                return None
        masks = [combined_mask(*one, self._find_collimator) for one in zip(self.carms, self._regions, strict=True)]
        options = {**engine_options(self.carms), **self._options}
        if any(mask is not None for mask in masks):
            options.setdefault("weights", masks)
        if self._groups:
            options.setdefault("joints", engine_joints(self.anatomy, self._groups))
            options |= {"bodies": [group.body for group in self._groups], "labels": None}
        firsts = {number: poses[0] for number, poses in enumerate(self._known)}
        found = engine_keyframes(self.run, self._groups, firsts, keys, _WHOLE)
        starts = {number: self._known[number] for number in frames}
        return Tracking(volume, frames, starts, keyframes=found or None, **options)

    def _standing(self) -> list[list[Pose]]:
        """[frame][C-arm] camera_to_volume of the whole run, before anything is tracked.

        A C-arm stands where it is now, unless something moves it with the frames: then as that does, from now on.
        """
        places = [[start] * len(self.run) for start in self._placement.starts]
        for view, carm in enumerate(self.carms):
            carrier = courses.carrier_of(carm.node, self.run)
            if carrier is not None:
                below = np.linalg.solve(nodes.transform_to_world(carrier), carm.to_world)
                moved = (Pose(self.run.to_world(carrier, number) @ below) for number in range(len(self.run)))
                places[view] = [self._placement.to_world.inverse() @ pose for pose in moved]
        return [list(row) for row in zip(*places, strict=True)]

    def _keys(self) -> list[int]:
        """Keyframes in the range; where there are none, the frame that is shown stands for one."""
        inside = range(self._numbers[0], self._numbers[-1] + 1)
        known = [number for number in keyframes(self.run) if number in inside]
        return known or [number for number in (self._shown,) if number in inside]

    def _check_locked(self) -> None:
        played = courses.moved_nodes(self.run)
        for body in self.bodies:
            if body.locked and body.node in played:
                raise SceneError(
                    f"'{body.name}' is locked, but moves with the frames as it was tracked before: unlock it, so that "
                    "it is tracked again."
                )

    def _take(self, step: TrackStep) -> None:
        self.run.show(step.frame)
        self._placement.move(list(step.motions), stack_poses(self._known[step.frame]))

    def _write(self, result: TrackingResult) -> None:
        """Courses of both variants, and the result itself; those of an earlier tracking go."""
        self._put_back()
        moving = self._moving()
        courses.remove_courses(self.run, moving)
        variants = {courses.UNSMOOTHED: result, courses.SMOOTHED: result.smoothed()}
        places = {
            kind: courses.recorded(self.run, moving, [self._put(one, number) for number in range(len(self.run))])
            for kind, one in variants.items()
        }
        self._put_back()
        shown = courses.SMOOTHED if self._smooth else courses.UNSMOOTHED
        courses.write_courses(self.run, moving, places, shown)
        keep_result(self.run, result)
        self.outcome = variants[shown]

    def _put(self, result: TrackingResult, number: int):
        """What puts all nodes to a frame; one outside of the range is as the nearest."""
        place = min(range(len(result.frames)), key=lambda one: abs(result.frames[one] - number))
        before, now = stack_poses(self._known[result.frames[place]]), stack_poses(self._known[number])
        carms = result.carms[place] @ before.inverse() @ now

        def put() -> None:
            seen = stack_poses([self._placement.to_world.inverse() @ carm.pose for carm in self.carms])
            self._placement.move(list(result.motions[place]), carms if self._carms_move else seen)

        return put

    @property
    def _carms_move(self) -> bool:
        return self._target == "carm" or "free_views" in engine_options(self.carms)

    def _moving(self) -> list:
        """The transforms that may move with the frames."""
        free = self._groups if self._target == "bodies" else self._groups[1:]
        bones = [one.node for group in free if not group.body.locked for one in group.members]
        carms = [carm.node for carm in self.carms] if self._carms_move else []
        patient = [find_patient_transform(self.anatomy)] if self._target == "patient" else []
        return [*patient, *carms, *bones]

    def _put_back(self) -> None:
        self.run.show(self._shown)
        self._placement.restore()

    def _all_there(self) -> bool:
        return all_there(self.carms, [self.run.browser, self.anatomy.ct, *self._placement.nodes])

    def _say(self, text: str | None, fraction: float = 0.0) -> Progress:
        self._fraction = max(self._fraction, fraction)
        self._text = text or self._text
        return Progress(self._fraction, self._text)


def frame_range(run: XRayRun, first: int | None, last: int | None, step: int) -> range:
    """Numbers of the frames. Raises SceneError where there are less than two, or some that the run does not have."""
    end = len(run) - 1
    first, last = 0 if first is None else int(first), end if last is None else int(last)
    if not (0 <= first <= end and 0 <= last <= end) or step < 1:
        raise SceneError(f"The run has the frames 0 to {end}; frames {first} to {last} cannot be tracked.")
    numbers = range(first, last + 1, int(step))
    if len(numbers) < 2:
        raise SceneError("A tracking needs two frames or more; register a single one in Register.")
    return numbers


def tracked(steps: Iterator[Progress], tracking: SceneTracking, progress=None) -> TrackingResult | None:
    """Drive it to its end; where `progress` returns False it is cancelled."""
    for step in steps:
        if progress is not None and progress(step) is False:
            tracking.cancel()
    return tracking.outcome


def _told(step: TrackStep) -> str:
    text = f"Frame {step.frame}: {step.done} of {step.total}"
    return text if step.lost is None else f"{text}, lost: {step.lost}"
