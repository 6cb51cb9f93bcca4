"""The X-rays of a run, frame by frame, and what is said about single frames."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from numbers import Integral

import torch
from torch import Tensor

from DiffDRRCore.errors import RegistrationError
from DiffDRRCore.geometry import Pose
from DiffDRRCore.imaging.xray import XRay

Row = tuple["XRay | None", ...]


@dataclass(frozen=True)
class Run:
    """X-rays by frame.

    Attributes:
        numbers: of the frames, ascending; they are the time.
        rows: of each frame, an X-ray of each view, or None where there is none.
    """

    numbers: tuple[int, ...]
    rows: tuple[Row, ...]

    @classmethod
    def of(cls, frames: Iterable | Mapping[int, object]) -> Run:
        """Of a list, or of {number: X-rays}. Raises RegistrationError where these are no frames of a run."""
        given = frames if isinstance(frames, Mapping) else dict(enumerate(frames))
        if not all(isinstance(number, Integral) for number in given):
            raise RegistrationError("Frames are called by whole numbers.")
        numbers = tuple(sorted(int(number) for number in given))
        rows = tuple(_row(given[number]) for number in numbers)
        _check(numbers, rows)
        return cls(numbers, rows)

    @property
    def views(self) -> int:
        """How many."""
        return len(self.rows[0])

    def seen(self, frame: int) -> tuple[int, ...]:
        """The views that the frame (by its place) has an X-ray of."""
        return tuple(view for view, xray in enumerate(self.rows[frame]) if xray is not None)

    def xrays(self, frame: int) -> list[XRay]:
        """Those that are there."""
        return [xray for xray in self.rows[frame] if xray is not None]

    @property
    def with_xrays(self) -> list[int]:
        """Places of the frames that have any."""
        return [frame for frame in range(len(self.rows)) if self.seen(frame)]

    def firsts(self) -> list[XRay]:
        """The first X-ray of each view."""
        return [next(row[view] for row in self.rows if row[view] is not None) for view in range(self.views)]


def _row(frame) -> Row:
    row = (frame,) if frame is None or isinstance(frame, XRay) else tuple(frame)
    if not all(xray is None or isinstance(xray, XRay) for xray in row):
        raise RegistrationError("A frame is an XRay, or a list with an XRay or None for each view.")
    return row


def _check(numbers: tuple[int, ...], rows: tuple[Row, ...]) -> None:
    views = max((len(row) for row in rows), default=0)
    if odd := [number for number, row in zip(numbers, rows, strict=True) if len(row) != views]:
        raise RegistrationError(
            f"Frame {odd[0]} has another number of views than the rest, {views}: put None where a view is missing."
        )
    filled = sum(any(xray is not None for xray in row) for row in rows)
    if filled < 2:
        raise RegistrationError(
            f"A sequence has two frames with X-rays or more, this one has {filled}: use register() for a single one."
        )
    if empty := [view + 1 for view in range(views) if all(row[view] is None for row in rows)]:
        raise RegistrationError(f"View {empty[0]} has no X-ray in any frame: leave it out.")


def keyframe_motions(keyframes: Mapping | None, run: Run, names: list[str], start: Tensor) -> dict[int, Tensor]:
    """{place of the frame: motions [B, 4, 4]} of what a person has set; bodies that are not named are at `start`.

    Raises RegistrationError for a frame that is not there or without X-rays, and for a body that is not there.
    """
    found = {}
    for number, said in (keyframes or {}).items():
        if number not in run.numbers:
            raise RegistrationError(f"There is no frame {number} to be a keyframe.")
        place = run.numbers.index(number)
        if not run.seen(place):
            raise RegistrationError(f"Frame {number} has no X-ray, so it cannot be a keyframe.")
        said = dict.fromkeys(names, said) if isinstance(said, Pose) else dict(said)
        if unknown := [name for name in said if name not in names]:
            raise RegistrationError(
                f"Keyframe {number} names the body '{unknown[0]}'; the bodies are {', '.join(names)}."
            )
        motions = start.clone()
        for name, pose in said.items():
            if not isinstance(pose, Pose) or pose.matrix.ndim != 2:
                raise RegistrationError(f"Keyframe {number}: the motion of '{name}' is one Pose [4, 4].")
            motions[names.index(name)] = pose.matrix.detach().double().cpu()
        found[place] = motions
    return dict(sorted(found.items()))


def moving_carms(poses: Mapping, run: Run) -> Tensor:
    """[F, V, 4, 4] camera_to_world of {frame number: a Pose of each view}, or of one pose where there is one view.

    Raises RegistrationError for a frame that lacks them.
    """
    rows = []
    for number in run.numbers:
        given = poses.get(number, ())
        given = [given] if isinstance(given, Pose) and given.matrix.ndim == 2 else list(given)
        if len(given) != run.views or not all(isinstance(pose, Pose) and pose.matrix.ndim == 2 for pose in given):
            raise RegistrationError(f"Frame {number} needs the pose of each of the {run.views} C-arms.")
        rows.append(torch.stack([pose.matrix.detach().double().cpu() for pose in given]))
    return torch.stack(rows)
