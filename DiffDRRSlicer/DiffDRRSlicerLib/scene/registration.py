"""Registration in the scene, in pieces that a timer can pump: nodes are moved as it goes."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from DiffDRRCore import Pose, Registration, RegistrationResult, Volume, XRay
from DiffDRRCore.registration import Landmarks, Step
from DiffDRRSlicerLib.scene.anatomy import Anatomy
from DiffDRRSlicerLib.scene.bodies import BodyNode, rest_of
from DiffDRRSlicerLib.scene.body_groups import TARGETS, groups_of
from DiffDRRSlicerLib.scene.body_results import ViewFit, bone_motions, clear_tables, view_fits, write_tables
from DiffDRRSlicerLib.scene.bone_landmarks import check_labels, landmark_term
from DiffDRRSlicerLib.scene.carm import CArmNode
from DiffDRRSlicerLib.scene.convergence import ConvergenceCurve
from DiffDRRSlicerLib.scene.endings import all_there, ending_of
from DiffDRRSlicerLib.scene.errors import SceneError
from DiffDRRSlicerLib.scene.found_bodies import keep_covariances
from DiffDRRSlicerLib.scene.found_cameras import apply_found, camera_text, check_cameras
from DiffDRRSlicerLib.scene.joints import engine_joints
from DiffDRRSlicerLib.scene.minima import minima_of
from DiffDRRSlicerLib.scene.placement import Placement
from DiffDRRSlicerLib.scene.regions import Mask, combined_mask
from DiffDRRSlicerLib.scene.registration_checks import check_bodies, check_views
from DiffDRRSlicerLib.scene.registration_options import preset_options
from DiffDRRSlicerLib.scene.results import Outcome, Row, clear_results_table, write_results_table
from DiffDRRSlicerLib.scene.run_progress import PREPARED, CancelledError, GoneError, Progress, Run
from DiffDRRSlicerLib.scene.undistortion import put_back
from DiffDRRSlicerLib.scene.view_settings import camera_options, engine_options
from DiffDRRSlicerLib.scene.xrays import prepared_xray, xray_volume

_STEPS = 8.0  # of a level after which two thirds of its share are done


class SceneRegistration(Run):
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
        landmarks: (CT list, X-ray list), or (CT list, [X-ray list or None of each C-arm]): measured at the end. Several
            CT lists may be given as a list; those that belong to a bone (`bone_landmarks`) go with it.
        use_landmarks: whether they are a term beside the images too.
        reference: transform node that the pose found is compared with, or a list with one or None for each C-arm; None
            is the C-arm's own, of role "reference", where it has one.
        bodies: bones that move on their own, from where they are; None is all that there are of the CT and its labels,
            an empty list the CT as one. Other landmarks go with what stays, or else with the first bone. Joints of the
            scene (`joints`) count unless the option `joints` is given.
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
        super().__init__()
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
            lists = _listed(landmarks[0])
            if not lists or None in lists:
                raise SceneError("Choose the list of landmarks in the CT first.")
            self._landmarks = (lists, self._one_each(_listed(landmarks[1]), "landmark lists"))
            self._also += tuple(lists)
        self.outcome: Outcome | None = None
        self.curve: ConvergenceCurve | None = None
        self._started = False

    def cancel(self) -> None:
        """Stop at the next step, at the best pose so far; its outcome is still made."""
        self._cancelled = True

    @property
    def ending(self) -> str:
        """How it ended, in a sentence, where it did not end as it should; afterwards."""
        return ending_of(self.outcome, self._cancelled, "the best pose so far is kept.")

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
        except (CancelledError, GoneError):
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
        except CancelledError:
            if not registration.history:
                raise
        result = yield from self._worked(registration.finishing(), "Estimating the accuracy")
        self._placement.move([body.motion for body in result.bodies], result.carms)
        yield self._say("Comparing with reference and landmarks", 0.99)
        self._check(cancelled=False)
        self._write(result)
        yield self._say("Done", 1.0)

    def _write(self, result: RegistrationResult) -> None:
        """Cameras, the outcome and its tables, from a scene in which everything stands where it was found."""
        for carm, found in zip(self.carms, result.cameras, strict=True):
            apply_found(carm, found)
        landmarks = None if self._landmarks is None else list(zip(self.carms, *self._landmark_lists(), strict=True))
        outcome = Outcome.of(result, self.anatomy, self.carms, self._target, landmarks, self._references)
        self.outcome = replace(
            outcome,
            start=tuple(self._start_rows()),
            bones=bone_motions(result, self._groups, self.anatomy),
            fits=self._fits(result),
            minima=minima_of(result, self._groups, self._placement),
        )
        write_results_table(self.carms[0], self.outcome)
        write_tables(self.carms[0], self.outcome.bones, self.outcome.fits)
        keep_covariances(result, self._groups, self.anatomy, self.carms)

    def _fits(self, result: RegistrationResult) -> tuple[ViewFit, ...]:
        xrays, masks = self._images
        texts = [camera_text(found) for found in result.cameras]
        now = [prepared_xray(c) if text else xray for c, xray, text in zip(self.carms, xrays, texts, strict=True)]
        options = {**engine_options(self.carms), **self._options}
        fits = view_fits(self.anatomy, self.carms, now, masks, self._structures, options)
        return tuple(replace(fit, camera=text) for fit, text in zip(fits, texts, strict=True))

    def _remember_start(self) -> None:
        if self.anatomy.ct.GetScene() is None:
            raise SceneError("The CT was removed from the scene; choose another one.")
        for carm in self.carms:
            xray_volume(carm)
        check_cameras(self.carms)
        self._cameras = [(carm, carm.camera, carm.meta) for carm in self.carms]
        if self.bodies:
            self._groups = groups_of(self.anatomy, self.bodies, self._target, self._structures)
        self._placement = Placement(self.anatomy, self.carms, self._groups, self._target, self._also)
        for carm in self.carms:
            clear_results_table(carm)
            clear_tables(carm)

    def _preparation(self) -> Generator[Progress, None, Registration]:
        volume, xrays = yield from self._inputs()
        check_views(self.carms, xrays, self._groups)
        masks = yield from self._masks()
        self._images = xrays, masks
        starts = yield from self._begin_at(volume, xrays, masks)
        placed = [XRay(xray.image, xray.camera, pose) for xray, pose in zip(xrays, starts, strict=True)]
        check_bodies(self.anatomy, self._groups, placed)
        options = self._engine_options(masks)
        return (yield from self._worked(Registration.preparing(volume, xrays, starts, **options)))

    def _engine_options(self, masks: list[Mask | None]) -> dict[str, Any]:
        """Of `DiffDRRCore.registration.Options`."""
        weights = None if all(mask is None for mask in masks) else masks
        options = {"weights": weights, "landmarks": self._landmark_term()}
        options |= {**engine_options(self.carms), **camera_options(self.carms)}
        if self._groups and "joints" not in self._options:
            options["joints"] = engine_joints(self.anatomy, self._groups)
        options |= self._options
        if self._groups:
            options |= {"bodies": [group.body for group in self._groups], "labels": None}
        return options

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

    def _landmark_lists(self) -> tuple[list, list]:
        ct_lists, lists = self._landmarks
        return [ct_lists] * len(lists), lists

    def _landmark_term(self) -> Landmarks | None:
        if not self._use_landmarks:
            return None
        ct_lists, xray_lists = self._landmarks
        check_labels(ct_lists)
        return landmark_term(self.anatomy, self._groups, self.carms, ct_lists, xray_lists)

    def _take(self, step: Step) -> None:
        self._placement.move(step.bodies, step.carms)
        self.curve.add(step.seconds, step.similarity, step.level + 1)
        share = (step.level + 1 - np.exp(-(step.index + 1) / _STEPS)) / step.levels
        text = f"Level {step.level + 1} of {step.levels}: {step.size[1]} x {step.size[0]} pixels"
        self._say(text, PREPARED + (0.97 - PREPARED) * share, step.level + 1, step.levels, step.similarity)

    def _restore(self) -> None:
        if hasattr(self, "_placement"):
            for carm, camera, meta in self._cameras:
                put_back(carm, camera, meta)
            self._placement.restore()

    def _all_there(self) -> bool:
        return all_there(self.carms, [self.anatomy.ct, *(self._placement.nodes if hasattr(self, "_placement") else [])])

    def _one_each(self, given, what: str) -> list:
        several = list(given) if isinstance(given, (list, tuple)) else [given] * len(self.carms)
        if len(several) != len(self.carms):
            raise SceneError(f"There are {len(self.carms)} X-rays but {len(several)} entries for the {what}.")
        return several


def _listed(given) -> list:
    return list(given) if isinstance(given, (list, tuple)) else [given]
