"""What a tracking found, and how to keep it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from DiffDRRCore.errors import ReadError, RegistrationError
from DiffDRRCore.files import finite, format_of, replacing
from DiffDRRCore.geometry import Pose
from DiffDRRCore.geometry.motion_files import Motion, write_table, write_tra
from DiffDRRCore.registration.result import FoundBody
from DiffDRRCore.registration.tracking.course import Course
from DiffDRRCore.registration.tracking.frames import Run
from DiffDRRCore.registration.tracking.motion_model import believed, centred, six, uncentred
from DiffDRRCore.registration.tracking.smoothing import estimated, smoothed

FORMAT = "DiffDRRSlicer tracking result"
_ARRAYS = {
    "motions": (None, None, 4, 4),
    "unsmoothed": (None, None, 4, 4),
    "covariances_rad_mm": (None, None, 6, 6),
    "about_mm": (None, 3),
    "carms": (None, None, 4, 4),
    "similarity": (None,),
}


@dataclass(frozen=True)
class TrackingResult:
    """The motions of B bodies in F frames of V views, in the room's coordinates (mm): those of the C-arms' poses.

    Attributes:
        frames: their numbers, F of them.  bodies: their names, B of them.
        motions: [F, B, 4, 4] that take each body from where the CT shows it (RAS, mm) to where the X-rays see it.
        unsmoothed: [F, B, 4, 4] the same as the registrations found them; equal unless `smoothed`.
        covariances: [F, B, 6, 6] of xi = (rotation vector in rad, translation in mm), world axes of the CT, about
            `about`; NaN where the motion is interpolated and not smoothed.
        about: [B, 3] the pivots, RAS mm in the CT.
        carms: [F, V, 4, 4] camera_to_world as the C-arms stand in the room.
        similarity: [F] mean over the views; NaN where nothing was found.
        seen: [F, V] bool, whether there is an X-ray.
        interpolated: [F] bool, whether the motion comes from other frames: the frame is lost, or has no X-ray.
        lost: {frame number: why, in words}; frames without an X-ray are not lost.
        keyframes: numbers of those that a person set.
        acceleration: what was expected, or smoothed by: standard deviations in degrees and mm a frame^2.
    """

    frames: tuple[int, ...]
    bodies: tuple[str, ...]
    motions: Pose
    unsmoothed: Pose
    covariances: Tensor
    about: Tensor
    carms: Pose
    similarity: Tensor
    seen: Tensor
    interpolated: Tensor
    lost: dict[int, str] = field(default_factory=dict)
    keyframes: tuple[int, ...] = ()
    acceleration: tuple[float, float] = (1.0, 2.0)
    is_smoothed: bool = False

    @classmethod
    def of(
        cls, run: Run, single, course: Course, lost: Mapping[int, str], keyframes: Sequence[int], acceleration
    ) -> TrackingResult:
        """What a course has come to; `lost` and `keyframes` by place in the run."""
        trusted, count = set(course.trusted), len(run.numbers)
        first = next(iter(course.fits.values()))
        motions = torch.stack([course.interpolated(frame) for frame in range(count)])
        covariances = torch.full((*motions.shape[:2], 6, 6), math.nan, dtype=torch.float64)
        carms = torch.stack([course.carms(frame, single.carms, single.free) for frame in range(count)])
        similarity = torch.full((count,), math.nan, dtype=torch.float64)
        for frame, fit in course.fits.items():
            similarity[frame] = fit.similarity
            if frame in trusted:
                covariances[frame], carms[frame] = fit.covariances, fit.carms
        return cls(
            run.numbers,
            tuple(single.names),
            Pose._rigid(motions),
            Pose._rigid(motions),
            covariances,
            first.about,
            Pose._rigid(carms),
            similarity,
            torch.tensor([[xray is not None for xray in row] for row in run.rows]),
            torch.tensor([frame not in trusted for frame in range(count)]),
            {run.numbers[frame]: why for frame, why in sorted(lost.items())},
            tuple(run.numbers[frame] for frame in keyframes),
            (float(acceleration[0]), float(acceleration[1])),
        )

    @property
    def poses(self) -> Pose:
        """camera_to_world [F, V, 4, 4] of every view, as the first body sees it."""
        return Pose._rigid(self.motions.matrix[:, 0]).inverse()[:, None] @ self.carms

    @property
    def standard_deviations(self) -> Tensor:
        """[F, B, 6] of xi: degrees, then mm."""
        deviations = self.covariances.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()
        return torch.cat([torch.rad2deg(deviations[..., :3]), deviations[..., 3:]], dim=-1)

    def number(self, body: str) -> int:
        """Of a body. Raises RegistrationError where there is none of that name."""
        if body not in self.bodies:
            raise RegistrationError(f"There is no body '{body}'; there are {', '.join(self.bodies)}.")
        return self.bodies.index(body)

    def motion(self, body: str, interpolated: bool = True) -> Motion:
        """The motion of a body; without those that are interpolated, NaN stands there."""
        matrices = self.motions.matrix[:, self.number(body)].clone()
        if not interpolated:
            matrices[self.interpolated] = math.nan
        return Motion(self.frames, matrices)

    def write_motions(self, path: str | Path, interpolated: bool = True) -> Path:
        """Write the motions of all bodies as a table (.csv), or as Autoscoper's .tra, its first row the first frame.

        Args:
            interpolated: whether frames are written whose motion comes from others; else they are empty, or NaN.

        Raises RegistrationError for another suffix, DiffDRRError where the file cannot be written.
        """
        path = Path(path)
        motions = {body: self.motion(body, interpolated) for body in self.bodies}
        if path.suffix.lower() == ".csv":
            write_table(path, motions)
        elif path.suffix.lower() == ".tra":
            write_tra(path, motions, self.frames[0])
        else:
            raise RegistrationError(f"Motions are written as .csv or .tra, not as '{path.suffix}'.")
        return path

    def found(self, frame: int, body: str) -> FoundBody:
        """A body in the frame of that number, with its expected target error."""
        place, number = self.frames.index(frame), self.number(body)
        pose, covariance = Pose._rigid(self.motions.matrix[place, number]), self.covariances[place, number]
        return FoundBody(body, pose, covariance, self.about[number])

    def smoothed(self, acceleration: tuple[float, float] | None = None) -> TrackingResult:
        """With motions smoothed over time by one optimisation for each body (`smoothing`).

        Args:
            acceleration: standard deviations in degrees and mm a frame^2; None estimates them, and how much larger
                the registrations' errors are than their covariances say, from the motions themselves.

        Raises RegistrationError where they are smoothed already, or for other numbers.
        """
        if self.is_smoothed:
            raise RegistrationError("These motions are smoothed already: smooth the result of the tracking itself.")
        known = ~self.interpolated
        motions, covariances, used = [], [], []
        for number, about in enumerate(self.about):
            poses = centred(self.unsmoothed.matrix[:, number], about)
            stated = self.covariances[:, number]
            own, factors = self._smoothness(poses, stated, known, acceleration)
            spread = believed(stated) * factors[:, None] * factors
            poses, spread = smoothed(self.frames, poses, spread, known, own)
            motions.append(uncentred(poses, about))
            covariances.append(spread)
            used.append((math.degrees(float(own[0]) ** 0.5), float(own[3]) ** 0.5))
        return replace(
            self,
            motions=Pose._rigid(torch.stack(motions, dim=1)),
            covariances=torch.stack(covariances, dim=1),
            acceleration=max(used),
            is_smoothed=True,
        )

    def _smoothness(self, poses: Tensor, stated: Tensor, known: Tensor, acceleration) -> tuple[Tensor, Tensor]:
        factors = torch.ones(6, dtype=torch.float64)
        if acceleration is not None:
            if len(acceleration) != 2 or not all(value > 0 for value in acceleration):
                raise RegistrationError(f"acceleration is two positive numbers (degrees, mm), got {acceleration}.")
            return six(acceleration), factors
        return estimated(self.frames, poses, stated, known) or (six(self.acceleration), factors)

    def to_dict(self) -> dict:
        """Plain numbers, lists and strings; None for what is not a finite number."""
        content = {
            "format": FORMAT,
            "version": 1,
            "frame": "mm; motions take RAS of the CT to the room; carms are camera_to_world in the room",
            "frames": list(self.frames),
            "bodies": list(self.bodies),
            "motions": self.motions.matrix.tolist(),
            "unsmoothed": self.unsmoothed.matrix.tolist(),
            "covariances_rad_mm": self.covariances.tolist(),
            "about_mm": self.about.tolist(),
            "carms": self.carms.matrix.tolist(),
            "similarity": self.similarity.tolist(),
            "seen": self.seen.tolist(),
            "interpolated": self.interpolated.tolist(),
            "lost": {str(frame): why for frame, why in self.lost.items()},
            "keyframes": list(self.keyframes),
            "acceleration_deg_mm": list(self.acceleration),
            "smoothed": self.is_smoothed,
        }
        return finite(content)

    def save(self, path: str | Path) -> Path:
        """Write everything as .json. Raises DiffDRRError where that cannot be."""
        path = Path(path)
        if path.suffix != ".json":
            raise RegistrationError(f"A tracking is saved as .json, not as '{path.suffix}'.")
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(self.to_dict(), allow_nan=False), encoding="utf-8")
        return path

    @staticmethod
    def is_saved_at(path: str | Path) -> bool:
        """Whether a JSON file is a saved tracking."""
        return format_of(path) == FORMAT

    @classmethod
    def load(cls, path: str | Path) -> TrackingResult:
        """A result that `save` wrote. Raises ReadError for anything else."""
        if not cls.is_saved_at(path):
            raise ReadError(f"'{path}' is not a tracking result saved as JSON.")
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        try:
            return cls._of_dict(content)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ReadError(f"The tracking result '{path}' is damaged: {error}.") from error

    @classmethod
    def _of_dict(cls, content: dict) -> TrackingResult:
        arrays = {name: _numbers(content, name, shape) for name, shape in _ARRAYS.items()}
        frames, bodies = tuple(map(int, content["frames"])), tuple(map(str, content["bodies"]))
        if arrays["motions"].shape[:2] != (len(frames), len(bodies)) or len(arrays["carms"]) != len(frames):
            raise ValueError("frames and motions differ in number")
        degrees, mm = map(float, content["acceleration_deg_mm"])
        return cls(
            frames,
            bodies,
            Pose(arrays["motions"]),
            Pose(arrays["unsmoothed"]),
            arrays["covariances_rad_mm"],
            arrays["about_mm"],
            Pose(arrays["carms"]),
            arrays["similarity"],
            torch.tensor(content["seen"], dtype=torch.bool),
            torch.tensor(content["interpolated"], dtype=torch.bool),
            {int(frame): str(why) for frame, why in content["lost"].items()},
            tuple(map(int, content["keyframes"])),
            (degrees, mm),
            bool(content["smoothed"]),
        )


def _numbers(content: dict, name: str, shape: tuple[int | None, ...]) -> Tensor:
    """Numbers of that shape (None: any length), NaN where the file has null. Raises ValueError for others."""
    array = np.array(content[name], dtype=float)
    if array.ndim != len(shape) or any(n not in (None, size) for n, size in zip(shape, array.shape, strict=True)):
        raise ValueError(f"{name} has shape {list(array.shape)}")
    return torch.from_numpy(array)
