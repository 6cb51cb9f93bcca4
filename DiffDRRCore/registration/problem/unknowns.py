"""All that a registration looks for, in one list of numbers: rigid motions, and cameras that are not known."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from DiffDRRCore.geometry import Pose
from DiffDRRCore.registration.problem import lens
from DiffDRRCore.registration.problem.bodies import FreeCamera
from DiffDRRCore.registration.problem.motion import COORDINATES, Limits, MotionFrame

# mm at the anatomy that a millimetre makes of: distance, principal point (both ways), displacement of the corner.
_AT_ANATOMY = (0.2, 0.7, 0.7, 0.3)


@dataclass(frozen=True)
class State:
    """Where B candidates are.

    Attributes:
        motions: [B, N, 4, 4] one for each of the unknown motions: from its start.
        cameras: [B, C, 4] one for each of the unknown cameras: `lens.NAMES` in mm.
    """

    motions: Pose
    cameras: Tensor

    @classmethod
    def of(cls, motion: Pose, motions: int = 1, cameras: int = 0) -> State:
        """The first motion [B, 4, 4], all others and the cameras at their start."""
        matrix = torch.eye(4, dtype=torch.float64).repeat(len(motion), motions, 1, 1)
        matrix[:, 0] = motion.matrix
        return cls(Pose._rigid(matrix), torch.zeros(len(motion), cameras, lens.COUNT, dtype=torch.float64))

    @classmethod
    def start(cls, motions: int = 1, cameras: int = 0) -> State:
        """One candidate, where everything starts."""
        return cls.of(Pose._rigid(torch.eye(4, dtype=torch.float64)[None]), motions, cameras)

    def __len__(self) -> int:
        return len(self.cameras)

    def __getitem__(self, rows) -> State:
        """Some of the candidates, still a batch."""
        return State(Pose._rigid(self.motions.matrix[rows]), self.cameras[rows])

    @property
    def first(self) -> Pose:
        """[B, 4, 4]: of the first motion."""
        return self.motion(0)

    def motion(self, number: int) -> Pose:
        """[B, 4, 4]: of one of the unknown motions."""
        return Pose._rigid(self.motions.matrix[:, number])

    def replaced(self, rows: Tensor, other: State) -> State:
        """With `rows` taken from `other`, in order."""
        motions = self.motions.matrix.index_copy(0, rows, other.motions.matrix)
        return State(Pose._rigid(motions), self.cameras.index_copy(0, rows, other.cameras))

    def joined(self, other: State) -> State:
        """These candidates, then the other ones."""
        motions = torch.cat([self.motions.matrix, other.motions.matrix])
        return State(Pose._rigid(motions), torch.cat([self.cameras, other.cameras]))

    def spread(self, wholes: Sequence[int]) -> State:
        """Each motion that several make up, once for each of them: `wholes` are their numbers here."""
        return State(Pose._rigid(self.motions.matrix[:, list(wholes)]), self.cameras)


@dataclass(frozen=True)
class Unknown:
    """One rigid motion, from its start.

    Attributes:
        name: of a body or view, "" where there is but one.
        pivot: [3] world mm.  axes: [3, 3], columns: in which its limits are told.
        reach: mm from the pivot at which rotations are counted as movement.
        locked: whether it stays at its start.
        of_view: whether it is a C-arm's own, not a body's.
    """

    name: str
    pivot: Tensor
    axes: Tensor
    reach: float
    limits: Limits = field(default_factory=Limits)
    locked: bool = False
    of_view: bool = False

    @property
    def frame(self) -> MotionFrame:
        """In which it is written."""
        return MotionFrame(self.pivot, self.axes)


class Unknowns:
    """The chart on which optimisers work: P = 6 N + 4 C numbers.

    Small steps xi [B, P] are those of `MotionFrame.moved`, and mm for cameras. Coordinates q [B, P] are those in which
    limits are told (`MotionFrame.coordinates`). `locked` [P] are those that stay where they are;
    `bounded` says whether any has a bound.
    """

    def __init__(self, motions: Sequence[Unknown], cameras: Sequence[FreeCamera] = ()):
        self.motions, self.cameras = tuple(motions), tuple(cameras)
        self.frame = MotionFrame(torch.stack([m.pivot for m in motions]), torch.stack([m.axes for m in motions]))
        self.reach = torch.tensor([m.reach for m in motions], dtype=torch.float64)
        self._count = len(self.motions)
        infinite = [math.inf] * lens.COUNT * len(self.cameras)
        self._largest = _joined([m.limits.largest for m in motions], infinite)
        self.bounded = bool(torch.isfinite(self._largest).any())
        stiffness = [value for camera in self.cameras for value in camera.stiffness]
        self.stiffness = _joined([m.limits.stiffness for m in motions], stiffness)
        known = [value == 0 for camera in self.cameras for value in camera.deviations]
        self.locked = _joined([torch.full((6,), float(m.locked)) for m in motions], [float(k) for k in known]) > 0

    @property
    def size(self) -> int:
        """P."""
        return len(self.locked)

    @property
    def unit(self) -> Tensor:
        """[P] the change of each coordinate that moves the anatomy by about 1 mm."""
        motions = [torch.tensor([1 / m.reach] * 3 + [1.0] * 3, dtype=torch.float64) for m in self.motions]
        return _joined(motions, [1 / value for value in _AT_ANATOMY] * len(self.cameras))

    def rates(self, turn: float, shift: float) -> Tensor:
        """[P] of rad and mm."""
        motions = [torch.tensor([turn] * 3 + [shift] * 3, dtype=torch.float64)] * self._count
        return _joined(motions, [shift / value for value in _AT_ANATOMY] * len(self.cameras))

    def start(self) -> State:
        """One candidate, where everything starts."""
        return State.start(self._count, len(self.cameras))

    def together(self, motion: Pose) -> State:
        """All free bodies moved alike [B, 4, 4]; the C-arms' own motions and the cameras at their start."""
        state = State.of(motion, self._count, len(self.cameras))
        for number, unknown in enumerate(self.motions):
            if not unknown.of_view:
                state.motions.matrix[:, number] = torch.eye(4).double() if unknown.locked else motion.matrix
        return state

    def within(self, state: State) -> State:
        """The state within the bounds."""
        return self.state(self.clamp(self.coordinates(state))) if self.bounded else state

    def only(self, number: int) -> Unknowns:
        """The same with all motions but one held where they are."""
        other = copy.copy(self)
        other.locked = torch.ones_like(self.locked)
        rows = slice(6 * number, 6 * number + 6)
        other.locked[rows] = self.locked[rows]
        return other

    def coordinates(self, state: State) -> Tensor:
        """q [B, P]: radians and mm."""
        q = self.frame.coordinates(state.motions).flatten(1)
        return torch.cat([q, state.cameras.flatten(1)], dim=1)

    def coordinates_and_slope(self, state: State) -> tuple[Tensor, Tensor]:
        """q [B, P], and its derivatives [B, P, P] by xi."""
        q, blocks = self.frame.coordinates_and_slope(state.motions)
        slope = torch.eye(self.size, dtype=q.dtype).repeat(len(state), 1, 1)
        for number in range(self._count):
            rows = slice(6 * number, 6 * number + 6)
            slope[:, rows, rows] = blocks[:, number]
        return torch.cat([q.flatten(1), state.cameras.flatten(1)], dim=1), slope

    def state(self, q: Tensor) -> State:
        """The inverse of `coordinates`."""
        motions, cameras = self._parts(q)
        return State(self.frame.motion(motions), cameras)

    def moved(self, state: State, xi: Tensor) -> State:
        """After small steps xi [B, P]."""
        motions, cameras = self._parts(xi)
        return State(self.frame.moved(state.motions, motions), state.cameras + cameras)

    def displacement(self, before: State, after: State) -> Tensor:
        """[B] upper bound in mm on how far the anatomy moves in the image between the two, in any of the unknowns."""
        moved = self.frame.displacement(before.motions, after.motions, self.reach)
        if not self.cameras:
            return moved.amax(-1)
        weight = torch.tensor(_AT_ANATOMY, dtype=torch.float64)
        change = ((after.cameras - before.cameras).abs() * weight).sum(-1)
        return torch.cat([moved, change], dim=-1).amax(-1)

    def clamp(self, q: Tensor) -> Tensor:
        """q within the bounds."""
        return torch.minimum(torch.maximum(q, -self._largest), self._largest)

    def held(self, q: Tensor, direction: Tensor) -> Tensor:
        """[B, P] bool: the coordinates that lie on their bound, and that `direction` would take beyond it."""
        return self._reached(q) & (q * direction > 0)

    def at_bound(self, q: Tensor) -> list[str]:
        """The names of the coordinates q [P] that lie on their bound."""
        return [name for name, hit in zip(self.names, self._reached(q).tolist(), strict=True) if hit]

    @property
    def names(self) -> list[str]:
        """P of them."""
        motions = [f"{m.name}: {name}" if m.name else name for m in self.motions for name in COORDINATES]
        several = len(self.cameras) > 1
        for number in range(len(self.cameras)):
            motions += [f"camera {number + 1}: {name}" if several else name for name in lens.NAMES]
        return motions

    def _reached(self, q: Tensor) -> Tensor:
        return q.abs() >= self._largest * (1 - 1e-6)

    def _parts(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """[B, N, 6] and [B, C, 4] of [B, P]."""
        motions, cameras = numbers.split([6 * self._count, lens.COUNT * len(self.cameras)], dim=1)
        return motions.unflatten(1, (self._count, 6)), cameras.unflatten(1, (len(self.cameras), lens.COUNT))


def _joined(motions: Sequence[Tensor], cameras: Sequence[float]) -> Tensor:
    return torch.cat([*(part.double() for part in motions), torch.tensor(list(cameras), dtype=torch.float64)])
