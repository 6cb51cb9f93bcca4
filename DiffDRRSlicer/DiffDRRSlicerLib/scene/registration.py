"""Registration in the scene, in pieces that a timer can pump: nodes are moved as it goes."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable
from dataclasses import dataclass, replace

import numpy as np

from DiffDRRCore import Pose, Registration, Volume, XRay
from DiffDRRCore.registration import Landmarks
from DiffDRRCore.registration.engine import Step
from DiffDRRSlicerLib.scene.anatomy import Anatomy
from DiffDRRSlicerLib.scene.bodies import BodyNode, rest_of
from DiffDRRSlicerLib.scene.body_groups import TARGETS, groups_of
from DiffDRRSlicerLib.scene.body_results import bone_motions, clear_tables, keep_covariances, view_fits, write_tables
from DiffDRRSlicerLib.scene.carm import CArmNode
from DiffDRRSlicerLib.scene.convergence import ConvergenceCurve
from DiffDRRSlicerLib.scene.errors import SceneError
from DiffDRRSlicerLib.scene.landmarks import paired_points
from DiffDRRSlicerLib.scene.placement import Placement
from DiffDRRSlicerLib.scene.regions import Mask, combined_mask
from DiffDRRSlicerLib.scene.registration_options import preset_options
from DiffDRRSlicerLib.scene.results import Outcome, Row, clear_results_table, write_results_table
from DiffDRRSlicerLib.scene.view_settings import engine_options
from DiffDRRSlicerLib.scene.xrays import prepared_xray, xray_volume

_PREPARED = 0.3  # share of the progress
_MANY = 40.0  # pieces of preparation after which two thirds of its share are done
_STEPS = 8.0  # of a level after which two thirds of its share are done


@dataclass(frozen=True)
class Progress:
    """After each piece of work.

    Attributes:
        fraction: 0 to 1, never falling.  text: what is done, in words.
        level: 1 for the coarsest, 0 before the first.  levels: how many there are, 0 before.
        similarity: of the best pose so far at this level, None before the first step.  seconds: since the beginning.
    """

    fraction: float
    text: str
    level: int = 0
    levels: int = 0
    similarity: float | None = None
    seconds: float = 0.0


class _CancelledError(Exception):
    """Somebody called `cancel`."""


class _GoneError(Exception):
    """A node of the run was deleted, or the scene closed."""


class SceneRegistration:
    """Finds where the C-arms stood with respect to the CT, from where they stand now.

    Drive `steps()`; afterwards `outcome` holds the result. During the run the nodes are at the best pose so far.

    Args:
        anatomy: the CT.
        carms: one `CArmNode` with an X-ray, or several; they are fixed to each other then, and move together, unless
            their `view_settings` say that one is free.
        preset: "fast", "accurate" or "far" (`registration_options.PRESETS`).
        similarity, structures: see `registration_options.preset_options`.
        region: a markup that surrounds the pixels to use (see `regions.region_mask`), one for all, or a list with one
            or None for each C-arm.
        find_collimator: leave out what the collimator hides.
        target: what is moved, the "carm", the "patient", or the "bodies" alone. With bones, C-arm or patient are moved
            to where what stays is seen, and the bones that are free with respect to it (`body_groups.groups_of`).
        landmarks: (CT list, X-ray list), or (CT list, [X-ray list or None of each C-arm]): measured at the end.
        use_landmarks: whether they are a term beside the images too.
        reference: transform node that the pose found is compared with, or a list with one or None for each C-arm; None
            is the C-arm's own, of role "reference", where it has one.
        bodies: bones that move on their own, from where they are; None is all that there are of the CT and its labels,
            an empty list the CT as one. Landmarks go with what stays, or else with the first bone.
        also: nodes that move with the patient, beside the CT, its structures and the list of its landmarks.
        options: others of `DiffDRRCore.registration.Options`.

    Raises SceneError for C-arms, a target or a preset that there are not, DiffDRRError for unknown options.
    """

    def __init__(
        self,
        anatomy: Anatomy,
        carms: CArmNode | Iterable[CArmNode],
        preset: str = "fast",
        similarity=None,
        structures=None,
        region=None,
        find_collimator: bool = True,
        target: str = "carm",
        landmarks=None,
        use_landmarks: bool = True,
        reference=None,
        also=(),
        bodies=None,
        **options,
    ):
        self.anatomy = anatomy
        self.carms = [carms] if isinstance(carms, CArmNode) else list(carms)
        if not self.carms:
            raise SceneError("Choose at least one X-ray to register.")
        if target not in TARGETS:
            raise SceneError(f"What is moved is the 'carm', the 'patient' or the 'bodies', not '{target}'.")
        self.bodies: list[BodyNode] = BodyNode.of(anatomy) if bodies is None else list(bodies)
        if target == "bodies" and not self.bodies:
            raise SceneError("There are no bones to move: make some of the structures, or move the C-arm.")
        self._structures, self._groups = structures, []
        alone = structures or (self.bodies and rest_of(anatomy.ct) == "left out")
        self._options = preset_options(preset, similarity or ("lncc" if alone else None), structures, **options)
        self._regions = self._one_each(region, "region")
        self._find_collimator, self._target, self._also = find_collimator, target, tuple(also)
        self._references = None if reference is None else self._one_each(_listed(reference), "references")
        self._landmarks, self._use_landmarks = None, use_landmarks and landmarks is not None
        if landmarks is not None:
            if landmarks[0] is None:
                raise SceneError("Choose the list of landmarks in the CT first.")
            self._landmarks = (landmarks[0], self._one_each(_listed(landmarks[1]), "landmark lists"))
            self._also += (landmarks[0],)
        self.outcome: Outcome | None = None
        self.curve: ConvergenceCurve | None = None
        self._cancelled = self._started = False
        self._progress = Progress(0.0, "Starting")

    def cancel(self) -> None:
        """Stop at the next step, at the best pose so far; its outcome is still made."""
        self._cancelled = True

    @property
    def ending(self) -> str:
        """How it ended, in a sentence, where it did not end as it should; afterwards."""
        if self.outcome is None:
            return "Cancelled; nothing was moved." if self._cancelled else "Stopped: a node that it needs was deleted."
        return "Cancelled: the best pose so far is kept." if self._cancelled else ""

    def steps(self) -> Generator[Progress, None, None]:
        """The run, a piece of some tens of milliseconds at a time.

        An error leaves all nodes as they were at the start, and is raised. Where a node of the run is deleted or the
        scene closes, it ends without an outcome. Runs once.
        """
        if self._started:
            raise SceneError("A registration runs once; make another one.")
        self._started, self._began = True, time.perf_counter()
        try:
            yield from self._run()
        except (_CancelledError, _GoneError):
            return
        except Exception:
            if self._all_there():
                self._restore()
            raise

    def _run(self) -> Generator[Progress, None, None]:
        self._remember_start()
        registration = yield from self._preparation()
        self.curve = ConvergenceCurve(self.carms[0])
        try:
            for step in registration.work():
                if step is not None:
                    self._take(step)
                yield self._progress
                self._check()
        except _CancelledError:
            if not registration.history:
                raise
        result = yield from self._worked(registration.finishing(), "Estimating the accuracy")
        self._placement.move([body.motion for body in result.bodies], result.carms)
        yield self._say("Comparing with reference and landmarks", 0.99)
        self._check(cancelled=False)
        landmarks = None if self._landmarks is None else list(zip(self.carms, *self._landmark_lists(), strict=True))
        outcome = Outcome.of(result, self.anatomy, self.carms, self._target, landmarks, self._references)
        bones = bone_motions(result, self._groups, self.anatomy)
        options = {**engine_options(self.carms), **self._options}
        fits = view_fits(self.anatomy, self.carms, *self._images, self._structures, options)
        self.outcome = replace(outcome, start=tuple(self._start_rows()), bones=bones, fits=fits)
        write_results_table(self.carms[0], self.outcome)
        write_tables(self.carms[0], bones, fits)
        keep_covariances(result, self._groups, self.anatomy)
        yield self._say("Done", 1.0)

    def _remember_start(self) -> None:
        if self.anatomy.ct.GetScene() is None:
            raise SceneError("The CT was removed from the scene; choose another one.")
        for carm in self.carms:
            xray_volume(carm)
        if self.bodies:
            self._groups = groups_of(self.anatomy, self.bodies, self._target, self._structures)
        self._placement = Placement(self.anatomy, self.carms, self._groups, self._target, self._also)
        for carm in self.carms:
            clear_results_table(carm)
            clear_tables(carm)

    def _preparation(self) -> Generator[Progress, None, Registration]:
        volume, xrays = yield from self._inputs()
        masks = yield from self._masks()
        weights = None if all(mask is None for mask in masks) else masks
        self._images = xrays, masks
        options = {"weights": weights, "landmarks": self._landmark_term(), **engine_options(self.carms)}
        options |= self._options
        if self._groups:
            options |= {"bodies": [group.body for group in self._groups], "labels": None}
        starts = yield from self._begin_at(volume, xrays, masks)
        return (yield from self._worked(Registration.preparing(volume, xrays, starts, **options)))

    def _inputs(self) -> Generator[Progress, None, tuple[Volume, list[XRay]]]:
        """The CT, and the X-rays as line integrals, posed in its coordinates."""
        yield from self._pause("Reading the CT")
        volume = yield from self._worked(self.anatomy.preparing())
        xrays = []
        for carm, start in zip(self.carms, self._placement.starts, strict=True):
            yield from self._pause(f"Preparing {carm.name}")
            xray = prepared_xray(carm)
            xrays.append(XRay(xray.image, xray.camera, start, xray.meta))
        return volume, xrays

    def _masks(self) -> Generator[Progress, None, list[Mask | None]]:
        """[H, W] of each X-ray, the pixels that count; None is all."""
        masks = []
        for carm, region in zip(self.carms, self._regions, strict=True):
            yield from self._pause(f"Looking at the region of {carm.name}")
            masks.append(combined_mask(carm, region, self._find_collimator))
        return masks

    def _begin_at(
        self, volume: Volume, xrays: list[XRay], masks: list[Mask | None]
    ) -> Generator[Progress, None, list[Pose]]:
        """Where the search begins, one pose a view, in the volume's coordinates: where the C-arms stand."""
        yield from ()
        return self._placement.starts

    def _start_rows(self) -> list[Row]:
        """What there is to tell of the start."""
        return []

    def _pause(self, text: str) -> Generator[Progress, None, None]:
        yield self._prepared(text)
        self._check()

    def _worked(self, work: Generator, text: str | None = None) -> Generator[Progress, None, object]:
        """What a generator returns; progress after each of its pieces. `text` says that it is the end of the run."""
        while True:
            try:
                said = next(work)
            except StopIteration as end:
                return end.value
            yield self._prepared(said) if text is None else self._say(text, 0.98)
            self._check(cancelled=text is None)

    def _landmark_lists(self) -> tuple[list, list]:
        ct, lists = self._landmarks
        return [ct] * len(lists), lists

    def _landmark_term(self) -> Landmarks | None:
        """Pairs of all views in the volume's coordinates; a view that lacks a landmark has NaN for it."""
        if not self._use_landmarks:
            return None
        world, clicked = {}, []
        for carm, ct, xray in zip(self.carms, *self._landmark_lists(), strict=True):
            labels, points, pixels = ([], [], []) if xray is None else paired_points(carm, ct, xray)
            world.update(zip(labels, points, strict=True))
            clicked.append(dict(zip(labels, pixels, strict=True)))
        if not world:
            raise SceneError("There are no landmark pairs: give a point the same label in the CT and in the X-ray.")
        points = self._placement.to_world.inverse().transform(np.array(list(world.values())))
        nowhere = np.full(2, np.nan)
        owner = next((group for group in self._groups if group.rest), self._groups[0] if self._groups else None)
        bodies = None if owner is None else [owner.body.name] * len(points)
        seen = [np.array([view.get(label, nowhere) for label in world]) for view in clicked]
        return Landmarks(points, seen, bodies=bodies)

    def _take(self, step: Step) -> None:
        self._placement.move(step.bodies, step.carms)
        self.curve.add(step.seconds, step.similarity, step.level + 1)
        share = (step.level + 1 - np.exp(-(step.index + 1) / _STEPS)) / step.levels
        text = f"Level {step.level + 1} of {step.levels}: {step.size[1]} x {step.size[0]} pixels"
        self._say(text, _PREPARED + (0.97 - _PREPARED) * share, step.level + 1, step.levels, step.similarity)

    def _restore(self) -> None:
        if hasattr(self, "_placement"):
            self._placement.restore()

    def _prepared(self, text: str) -> Progress:
        done = self._progress.fraction + (_PREPARED - self._progress.fraction) / _MANY
        return self._say(text, done)

    def _say(self, text: str, fraction: float, level=None, levels=None, similarity=None) -> Progress:
        now = self._progress
        level, levels = now.level if level is None else level, now.levels if levels is None else levels
        similarity = now.similarity if similarity is None else similarity
        seconds = time.perf_counter() - self._began
        self._progress = Progress(float(max(fraction, now.fraction)), text, level, levels, similarity, seconds)
        return self._progress

    def _check(self, cancelled: bool = True) -> None:
        if not self._all_there():
            raise _GoneError
        if cancelled and self._cancelled:
            raise _CancelledError

    def _all_there(self) -> bool:
        parts = [self.anatomy.ct, *(carm.node for carm in self.carms)]
        parts += [carm.referred("plane") for carm in self.carms] + [carm.referred("xray") for carm in self.carms]
        parts += self._placement.nodes if hasattr(self, "_placement") else []
        scene = self.carms[0].node.GetScene()
        return scene is not None and all(part is not None and part.GetScene() is scene for part in parts)

    def _one_each(self, given, what: str) -> list:
        several = list(given) if isinstance(given, (list, tuple)) else [given] * len(self.carms)
        if len(several) != len(self.carms):
            raise SceneError(f"There are {len(self.carms)} X-rays but {len(several)} entries for the {what}.")
        return several


def _listed(given) -> list:
    return list(given) if isinstance(given, (list, tuple)) else [given]
