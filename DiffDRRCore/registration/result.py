"""What a registration found, and how to keep it."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from DiffDRRCore.errors import ReadError, RegistrationError
from DiffDRRCore.files import finite, format_of, replacing
from DiffDRRCore.geometry import Camera, Pose, as_tensor
from DiffDRRCore.geometry.itk_transform import SUFFIXES, write_itk_transform
from DiffDRRCore.imaging.camera_file import camera_from_dict, camera_to_dict
from DiffDRRCore.registration.problem.motion import target_covariance

FORMAT = "DiffDRRSlicer registration result"
_TYPES = {
    "similarity": float,
    "initial_similarity": float,
    "converged": bool,
    "reason": str,
    "at_bound": list,
    "history": list,
    "alternatives": list,
    "doubts": list,
}
_LATER = ("alternatives", "doubts")  # which older files lack


@dataclass(frozen=True)
class FoundBody:
    """Where a body is.

    Attributes:
        name: "CT" for all of it as one.
        motion: the rigid motion [4, 4] (world mm) that takes it from where the CT shows it to where the X-rays saw it,
            with the C-arms at `RegistrationResult.carms`.
        covariance: [6, 6] of xi = (rotation vector in rad, translation in mm), world axes, about `about`: how the
            C-arms stand to the body. Zero for a locked one.
        about: [3] the pivot of xi in world mm.
        labels: numbers of its structures in the labelmap; None where it is all of the CT, or where they are not told.
    """

    name: str
    motion: Pose
    covariance: Tensor
    about: Tensor
    labels: tuple[int, ...] | None = None

    @property
    def standard_deviations(self) -> Tensor:
        """[6] of xi: degrees, then mm."""
        deviations = self.covariance.diagonal().clamp(min=0).sqrt()
        return torch.cat([torch.rad2deg(deviations[:3]), deviations[3:]])

    def target_covariance(self, points: Tensor) -> Tensor:
        """[N, 3, 3] in mm^2 of where the C-arms see points [N, 3] of the body (RAS mm in the CT)."""
        return target_covariance(self.covariance, self.about, as_tensor(points))

    def target_error(self, points: Tensor) -> Tensor:
        """[N] mm: the root mean square error to be expected at points [N, 3] of the body (RAS mm in the CT)."""
        return self.target_covariance(points).diagonal(dim1=-2, dim2=-1).sum(-1).clamp(min=0).sqrt()


@dataclass(frozen=True)
class FoundCamera:
    """The camera of a view: the X-ray's own, unless some of its numbers were looked for.

    Attributes:
        camera: of the full-size X-ray, but for distortion.
        changes, deviations: [4] of `lens.NAMES` in mm, and their standard deviations.
    """

    camera: Camera
    changes: Tensor
    deviations: Tensor


@dataclass(frozen=True)
class RegistrationResult:
    """The outcome of a registration, in the patient's own RAS coordinates.

    Attributes:
        poses: camera_to_world of every view [V, 4, 4], as the first body sees it.
        patient_motion: the same answer with the C-arms left where they started: the rigid motion [4, 4] (world mm) that
            takes the anatomy from where the CT shows it to where the X-rays saw it.
        similarity: at the finest level, mean over the views; larger is better.
        converged: whether the finest level ended because steps became small.
        reason: why it ended.
        covariance: [6, 6] of xi = (rotation vector in rad, translation in mm), world axes, about `about`.
        about: [3] the pivot of xi in world mm.
        at_bound: coordinates that ended on a bound; such a result is doubtful.
        history: one entry a step, of the best candidate then: level, size, start (its number; those that a search found
            come after the starts), step, candidates (under way), similarity, cost (where a last level goes by
            outlines, by gradient NCC), seconds, motion (4 x 4).
        alternatives: where else candidates ended at the first level, and where else a `GlobalSearch` did, best first:
            similarity of that level's images, and motion (4 x 4) of the C-arms from their start. One that scores
            nearly as high is a reason to look twice.
        bodies: where each of them is; a single one for the CT as one.
        carms: camera_to_world of every view [V, 4, 4] as the C-arms stand in the room, which bodies move in: where they
            started, but for those that were free to move on their own.
        cameras: of every view.
        doubts: reasons to doubt the result, a sentence each, the weightiest first.
    """

    poses: Pose
    patient_motion: Pose
    similarity: float
    initial_similarity: float
    converged: bool
    reason: str
    covariance: Tensor
    about: Tensor
    at_bound: list[str] = field(default_factory=list)
    history: list[dict] = field(default_factory=list)
    alternatives: list[dict] = field(default_factory=list)
    bodies: list[FoundBody] = field(default_factory=list)
    carms: Pose | None = None
    cameras: list[FoundCamera] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)

    def body(self, name: str) -> FoundBody:
        """The body of that name. Raises RegistrationError where there is none."""
        for body in self.bodies:
            if body.name == name:
                return body
        raise RegistrationError(f"There is no body '{name}'; there are {', '.join(body.name for body in self.bodies)}.")

    def target_error(self, points: Tensor) -> Tensor:
        """[N] mm: the root mean square error to be expected at points [N, 3] (RAS mm in the CT) of the first body."""
        return FoundBody("CT", self.patient_motion, self.covariance, self.about).target_error(points)

    @property
    def standard_deviations(self) -> Tensor:
        """[6] of xi: degrees, then mm."""
        deviations = self.covariance.diagonal().clamp(min=0).sqrt()
        return torch.cat([torch.rad2deg(deviations[:3]), deviations[3:]])

    @staticmethod
    def is_saved_at(path: str | Path) -> bool:
        """Whether a JSON file is a saved result."""
        return format_of(path) == FORMAT

    @classmethod
    def load(cls, path: str | Path) -> RegistrationResult:
        """A result that `save` wrote as .json. Raises ReadError for anything else."""
        if not cls.is_saved_at(path):
            raise ReadError(f"'{path}' is not a registration result saved as JSON.")
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        try:
            return cls(
                poses=Pose(_numbers(content, "poses", (None, 4, 4))),
                patient_motion=Pose(_numbers(content, "patient_motion", (4, 4))),
                covariance=_numbers(content, "covariance_rad_mm", (6, 6)),
                about=_numbers(content, "about_mm", (3,)),
                **{name: _plain_value(content, name) for name in _TYPES},
                **_moving(content),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ReadError(f"The registration result '{path}' is damaged: {error}.") from error

    def to_dict(self) -> dict:
        """Plain numbers, lists and strings, with the units in the names; None for what is not a finite number."""
        content = {
            "format": FORMAT,
            "version": 2,
            "frame": "RAS, mm; poses are camera_to_world (camera: x right, y down, z from source to detector)",
            "poses": self.poses.matrix.tolist(),
            "patient_motion": self.patient_motion.matrix.tolist(),
            "about_mm": self.about.tolist(),
            "covariance_rad_mm": self.covariance.tolist(),
            "standard_deviations_deg_mm": self.standard_deviations.tolist(),
            "bodies": [_body_to_dict(body) for body in self.bodies],
            "carms": None if self.carms is None else self.carms.matrix.tolist(),
            "cameras": [_camera_to_dict(camera) for camera in self.cameras],
            **{name: getattr(self, name) for name in _TYPES},
        }
        return finite(content)

    def save(self, path: str | Path, view: int = 0, what: str = "pose") -> Path:
        """Write to `path`: everything as .json, or one transform that Slicer opens as .tfm, .txt or .h5.

        Args:
            view, what: of a transform file: "pose" is the C-arm pose of that view (`camera_to_world`), "patient_motion"
                the motion of the anatomy. A node that Slicer loads from the file has it as its transform to parent.

        Raises:
            RegistrationError: for another suffix, and DiffDRRError where the file cannot be written.
        """
        path = Path(path)
        if path.suffix == ".json":
            with replacing(path) as temporary:
                temporary.write_text(json.dumps(self.to_dict(), indent=1, allow_nan=False), encoding="utf-8")
        elif path.suffix in SUFFIXES:
            if what not in ("pose", "patient_motion") or not 0 <= view < len(self.poses):
                raise RegistrationError(
                    f"what is 'pose' or 'patient_motion' and view a number below {len(self.poses)}, "
                    f"got {what!r} and {view}."
                )
            pose = self.patient_motion if what == "patient_motion" else self.poses[view]
            write_itk_transform(path, pose.matrix)
        else:
            raise RegistrationError(f"A result is saved as .json, .tfm, .txt or .h5, not as '{path.suffix}'.")
        return path


def _body_to_dict(body: FoundBody) -> dict:
    return {
        "name": body.name,
        "motion": body.motion.matrix.tolist(),
        "covariance_rad_mm": body.covariance.tolist(),
        "about_mm": body.about.tolist(),
        "standard_deviations_deg_mm": body.standard_deviations.tolist(),
        "labels": None if body.labels is None else list(body.labels),
    }


def _camera_to_dict(found: FoundCamera) -> dict:
    numbers = {"changes_mm": found.changes.tolist(), "deviations_mm": found.deviations.tolist()}
    return {"camera": camera_to_dict(found.camera), **numbers}


def _moving(content: dict) -> dict:
    """Bodies, C-arms and cameras, which results of version 1 lack."""
    if content.get("version", 1) < 2:
        return {}
    if content["version"] > 2:
        raise ValueError(f"version {content['version']} is newer than this program")
    bodies = [
        FoundBody(
            str(body["name"]),
            Pose(_numbers(body, "motion", (4, 4))),
            _numbers(body, "covariance_rad_mm", (6, 6)),
            _numbers(body, "about_mm", (3,)),
            None if body.get("labels") is None else tuple(int(label) for label in body["labels"]),
        )
        for body in content["bodies"]
    ]
    cameras = [
        FoundCamera(
            camera_from_dict(dict(found["camera"]), "The camera"),
            _numbers(found, "changes_mm", (4,)),
            _numbers(found, "deviations_mm", (4,)),
        )
        for found in content["cameras"]
    ]
    carms = None if content["carms"] is None else Pose(_numbers(content, "carms", (None, 4, 4)))
    return {"bodies": bodies, "carms": carms, "cameras": cameras}


def _numbers(content: dict, name: str, shape: tuple[int | None, ...]) -> Tensor:
    """Numbers of that shape (None: any length), float64, NaN where the file has null. Raises ValueError for others."""
    array = np.array(content[name], dtype=float)
    if array.ndim != len(shape) or any(n not in (None, size) for n, size in zip(shape, array.shape, strict=True)):
        raise ValueError(f"{name} has shape {list(array.shape)}")
    return torch.from_numpy(array)


def _plain_value(content: dict, name: str):
    """The entry, of its type (null is NaN). Raises ValueError where it is of another."""
    value, kind = content.get(name, []) if name in _LATER else content[name], _TYPES[name]
    if kind is float and value is None:
        return math.nan
    if not isinstance(value, (float, int) if kind is float else kind) or (kind is float and isinstance(value, bool)):
        raise ValueError(f"{name} is {value!r}")
    return value
