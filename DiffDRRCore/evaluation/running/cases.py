"""The cases of an evaluation: each is one subject, one group of views and one start. What a case needs, and its record.

Solving is apart from measuring: any function solve(volume, xrays, starts, options) can be evaluated in place of
`register` (another program's recipe, say) as long as what it returns has `poses`, one camera_to_world per view; a
result that has `seconds` says itself how long it took.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from DiffDRRCore.datasets.dataset import Dataset, Subject
from DiffDRRCore.datasets.simulated import points_in_bone
from DiffDRRCore.errors import DiffDRRError
from DiffDRRCore.evaluation.measures import pose_errors
from DiffDRRCore.evaluation.protocol import starts
from DiffDRRCore.evaluation.protocol.protocol import Protocol
from DiffDRRCore.evaluation.protocol.starts import Situation
from DiffDRRCore.geometry import Camera, Pose
from DiffDRRCore.imaging.camera_file import camera_to_dict
from DiffDRRCore.imaging.preprocessing import preprocess
from DiffDRRCore.imaging.volume import Volume
from DiffDRRCore.imaging.xray import XRay
from DiffDRRCore.registration import register
from DiffDRRCore.registration.masks.region import crop_to_volume

Solve = Callable[[Volume, list[XRay], list[Pose], dict[str, Any]], Any]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Case:
    """Subject and views by name, and the start's number from 0."""

    subject: str
    views: tuple[str, ...]
    start: int

    @property
    def name(self) -> str:
        """<subject>/<view>[+<view>...]/<start>."""
        return f"{self.subject}/{'+'.join(self.views)}/{self.start}"


def list_cases(protocol: Protocol, dataset: Dataset) -> list[Case]:
    """All cases, subject by subject. Raises DiffDRRError for subjects and views that are not there, or none at all."""
    subjects = dataset.subjects
    names = subjects.names if protocol.subjects == "all" else [subjects.name(name) for name in protocol.subjects]
    cases = [
        Case(name, tuple(views), start)
        for name in names
        for views in _groups(protocol, subjects[name])
        for start in range(starts.count(protocol.starts))
    ]
    if not cases:
        raise DiffDRRError("There is nothing to evaluate: the dataset has no such subjects with X-rays.")
    return cases


def _groups(protocol: Protocol, subject: Subject) -> Sequence[tuple[str, ...]]:
    if protocol.views == "groups":
        return subject.groups
    if protocol.views == "single":
        return [(name,) for name in subject.view_names]
    return [tuple(subject.views.name(name) for name in protocol.views)]


def check_starts(protocol: Protocol, dataset: Dataset, cases: Sequence[Case]) -> None:
    """Raise DiffDRRError where the protocol's kind of starts needs what no X-ray of the cases has.

    X-rays are read until one has it; those that cannot be read are left to the run.
    """
    if not starts.needs_annotation(protocol.starts):
        return
    for name, views in dict.fromkeys((case.subject, case.views) for case in cases):
        subject = dataset.subjects[name]
        try:
            if any(starts.is_possible(protocol.starts, subject.views[view], subject) for view in views):
                return
        except DiffDRRError:
            return
    raise DiffDRRError(starts.why_impossible(protocol.starts))


class Loader:
    """What cases need, read once for each subject and once for each group of views; the last of each is kept.

    Args:
        device: of the volume, "cpu" or "cuda".
    """

    def __init__(self, protocol: Protocol, device: str = "cpu"):
        self.protocol, self._device = protocol, device
        self._dataset = protocol.open_dataset()
        self._subject: Subject | None = None
        self._key: tuple | None = None
        self._loaded: tuple | None = None

    def situation(self, case: Case) -> tuple[Volume, list[XRay], Situation]:
        """The CT, the preprocessed X-rays and what starts are made from. Raises DiffDRRError."""
        if self._key != (case.subject, case.views):
            self._key, self._loaded = None, None  # what is no longer needed makes room first
            if self._subject is None or self._subject.name != case.subject:
                self._subject = None
                self._subject = self._dataset.subjects[case.subject]
            self._loaded = self._load(self._subject, case.views)
            self._key = (case.subject, case.views)
        return self._loaded

    def _load(self, subject: Subject, names: tuple[str, ...]) -> tuple[Volume, list[XRay], Situation]:
        views = [subject.views[name] for name in names]
        lacking = [view.name for view in views if view.xray.pose is None]
        if lacking:
            raise DiffDRRError(f"{', '.join(lacking)}: there is no reference pose to compare with.")
        truths = [Pose._rigid(view.xray.pose.matrix.detach().double().cpu()) for view in views]
        targets = _targets(self.protocol, subject)
        xrays = [_prepared(self.protocol, view.xray) for view in views]
        volume = subject.volume.to(self._device)
        situation = Situation(views, truths, volume.center.cpu(), subject.landmarks, targets, volume, xrays)
        return volume, xrays, situation


def _prepared(protocol: Protocol, xray: XRay) -> XRay:
    steps = {name: tuple(x) if isinstance(x, list) else x for name, x in protocol.preprocessing.items()}
    return preprocess(xray, **steps)


def _targets(protocol: Protocol, subject: Subject) -> Tensor:
    if protocol.targets == "landmarks":
        if not subject.landmarks:
            raise DiffDRRError("The subject has no landmarks: measure at targets in bone instead.")
        return torch.stack(list(subject.landmarks.values()))
    points = points_in_bone(subject.volume, **protocol.targets["bone"]).cpu()
    if len(points) == 0:
        threshold = protocol.targets["bone"]["threshold"]
        raise DiffDRRError(f"The CT has nothing above {threshold:g} HU to measure at: choose other targets.")
    return points


def run_case(loader: Loader, case: Case, solve: Solve | None = None) -> dict[str, Any]:
    """Start, solve, measure: the case's record, also of one that fails."""
    protocol = loader.protocol
    known: dict[str, Any] = {}
    began = time.perf_counter()
    try:
        volume, xrays, situation = loader.situation(case)
        known |= {"poses_true": situation.truths, "cameras": [view.xray.camera for view in situation.views]}
        known |= {"targets": situation.targets, "volume_center": situation.center}
        seed = protocol.starts.get("seed")
        random = starts.generator(protocol.seed if seed is None else seed, case.subject, case.views, case.start)
        known["poses_start"] = starts.start_poses(protocol.starts, situation, case.start, random)
        xrays = _cropped(protocol, volume, xrays, known["poses_start"])
        began = time.perf_counter()
        result = (solve or solve_by_registration)(volume, xrays, known["poses_start"], protocol.registration_options)
        known |= {"seconds": getattr(result, "seconds", time.perf_counter() - began), "result": result}
        return record(protocol, case, **known)
    except DiffDRRError as error:
        reason = " ".join(str(error).split())
    except Exception as error:  # one case that fails must not cost the others
        _log.exception("The case %s failed.", case.name)
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
    known |= {"seconds": time.perf_counter() - began, "result": None}
    return record(protocol, case, failure=reason or "It failed.", **known)


def solve_by_registration(volume: Volume, xrays: list[XRay], starts: list[Pose], options: dict[str, Any]):
    """`DiffDRRCore.register`."""
    return register(volume, xrays, starts, **options)


def _cropped(protocol: Protocol, volume: Volume, xrays: list[XRay], poses: list[Pose]) -> list[XRay]:
    margin, labels = protocol.method["crop_margin_mm"], protocol.method["options"].get("labels")
    if margin is None:
        return xrays
    rendered = volume if labels is None else volume.select(labels)
    return [crop_to_volume(xray, rendered, pose, margin) for xray, pose in zip(xrays, poses, strict=True)]


def record(
    protocol: Protocol,
    case: Case,
    result=None,
    seconds: float | None = None,
    failure: str | None = None,
    poses_start: list[Pose] | None = None,
    poses_true: list[Pose] | None = None,
    cameras: list[Camera] | None = None,
    targets: Tensor | None = None,
    volume_center: Tensor | None = None,
) -> dict[str, Any]:
    """A line of cases.jsonl, of plain values.

    Args:
        result: with `poses` and, where it has them, the other attributes of `RegistrationResult`; None for a failure.
        seconds: of solving alone.
        failure: why there is no result, in a sentence.
        poses_start, poses_true: camera_to_world of each view, where they are known.
        cameras: of the full-size X-rays.  targets: [N, 3] RAS mm.  volume_center: [3] RAS mm.
    """
    measure = partial(
        mean_errors, truths=poses_true, cameras=cameras, targets=targets, extra=protocol.measures, center=volume_center
    )
    poses_end = None if result is None else [Pose._rigid(p.matrix.detach().double().cpu()) for p in result.poses]
    return {
        "case": case.name,
        "subject": case.subject,
        "views": list(case.views),
        "start": case.start,
        "seed": protocol.seed,
        "method": protocol.method["name"],
        "failure": failure,
        "errors_start": measure(poses_start) if poses_start else None,
        "errors_end": measure(poses_end) if poses_end else None,
        "seconds": seconds,
        **_told(result),
        **_uncertainty(result, poses_end, poses_true),
        "poses_start": _matrices(poses_start),
        "poses_end": _matrices(poses_end),
        "poses_true": _matrices(poses_true),
        "camera": camera_to_dict(cameras[0]) if cameras else None,
    }


def _told(result) -> dict[str, Any]:
    """What the solver says of its own work."""
    return {
        "converged": bool(getattr(result, "converged", False)),
        "reason": str(getattr(result, "reason", "")),
        "similarity": _number(getattr(result, "similarity", None)),
        "similarity_start": _number(getattr(result, "initial_similarity", None)),
        "steps": len(getattr(result, "history", ())),
    }


def _uncertainty(result, estimates: list[Pose] | None, truths: list[Pose] | None) -> dict[str, Any]:
    """The covariance that the solver claims, and the true error in its coordinates."""
    about, covariance = getattr(result, "about", None), getattr(result, "covariance", None)
    if about is None or covariance is None:
        return dict.fromkeys(("covariance", "covariance_about", "deviation"))
    return {
        "covariance": covariance.tolist(),
        "covariance_about": about.tolist(),
        "deviation": deviation(estimates[0], truths[0], about).tolist(),
    }


def deviation(estimate: Pose, truth: Pose, about: Tensor) -> Tensor:
    """The true error [6] in the coordinates of `RegistrationResult.covariance`.

    It is the xi = (rotation vector in rad, translation in mm; world axes) with estimate.retract(xi, about) = truth:
    the logarithm of T(-p) truth estimate^-1 T(p) with the pivot p = `about`.
    """
    there = Pose.from_parameters(torch.zeros(3), about.double().cpu(), "axis_angle")
    return (there.inverse() @ truth @ estimate.inverse() @ there).log()


def mean_errors(
    poses: list[Pose], truths: list[Pose], cameras: list[Camera], targets: Tensor, extra=(), center=None
) -> dict[str, float]:
    """`pose_errors`, the mean over the views of each."""
    per_view = [
        pose_errors(pose, truth, camera, targets, extra=extra, volume_center=center)
        for pose, truth, camera in zip(poses, truths, cameras, strict=True)
    ]
    return {name: sum(float(errors[name]) for errors in per_view) / len(per_view) for name in per_view[0]}


def _matrices(poses: list[Pose] | None) -> list | None:
    return None if poses is None else [pose.matrix.tolist() for pose in poses]


def _number(value) -> float | None:
    return None if value is None else float(value)
