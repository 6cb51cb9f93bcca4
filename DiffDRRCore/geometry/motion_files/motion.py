"""The motion of one body, and what its files have in common."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from DiffDRRCore.errors import GeometryError
from DiffDRRCore.geometry.pose import Pose
from DiffDRRCore.geometry.tensors import as_tensor

WHAT = "file of motion"
WITHOUT = torch.full((4, 4), math.nan, dtype=torch.float64)  # of a frame without a pose


@dataclass(frozen=True, eq=False)
class Motion:
    """Poses of a body in some frames.

    frames    numbers of the frames, ascending
    matrices  [F, 4, 4] float64, rigid, kept as given; all NaN in a frame without a pose

    Raises GeometryError for other numbers.
    """

    frames: tuple[int, ...]
    matrices: Tensor

    def __post_init__(self):
        matrices = as_tensor(self.matrices, torch.float64).detach().cpu()
        frames = tuple(int(frame) for frame in self.frames)
        if matrices.shape != (len(frames), 4, 4):
            raise GeometryError(
                f"{len(frames)} frames have matrices [{len(frames)}, 4, 4], not {list(matrices.shape)}."
            )
        if any(later <= earlier for earlier, later in pairwise(frames)):
            raise GeometryError("The numbers of the frames must be ascending, each once.")
        _check(frames, matrices)
        object.__setattr__(self, "frames", frames)
        object.__setattr__(self, "matrices", matrices)

    @property
    def known(self) -> Tensor:
        """[F] whether the frame has a pose."""
        return ~torch.isnan(self.matrices[:, 0, 0])

    def at(self, frame: int) -> Pose | None:
        """The pose in a frame, None where there is none."""
        if frame not in self.frames:
            return None
        matrix = self.matrices[self.frames.index(frame)]
        return None if bool(torch.isnan(matrix).any()) else Pose(matrix)

    def after(self, before) -> Motion:
        """The same motion of points that the rigid transform `before` [4, 4] comes from: pose @ before."""
        moved = self.matrices @ as_tensor(before, torch.float64).cpu()
        return Motion(self.frames, torch.where(self.known[:, None, None], moved, torch.nan))


def _check(frames: tuple[int, ...], matrices: Tensor) -> None:
    """Raise GeometryError that names the first frame whose matrix is neither rigid nor NaN throughout."""
    given = ~torch.isnan(matrices).all(-1).all(-1)
    try:
        Pose(matrices[given])
    except GeometryError:
        for number in given.nonzero()[:, 0].tolist():
            try:
                Pose(matrices[number])
            except GeometryError as error:
                raise GeometryError(f"Frame {frames[number]}: {error}") from error


def number(value: float) -> str:
    """The shortest text that reads back as the same double."""
    return repr(float(value) + 0.0)
