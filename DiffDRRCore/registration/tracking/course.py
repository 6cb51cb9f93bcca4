"""What is known of the frames of a run so far, and where that lets the bodies be expected."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from torch import Tensor

from DiffDRRCore.registration.tracking.fits import Fit
from DiffDRRCore.registration.tracking.motion_model import Expectation, between, difference, inverse, uncentred

_REMEMBERED = 6  # frames that an expectation begins with


class Course:
    """Fits by frame (its place in the run), and why some of them are lost.

    Args:
        numbers: of the frames.  acceleration: [6] variances of (rad, mm) a frame^2.
    """

    def __init__(self, numbers: tuple[int, ...], acceleration: Tensor):
        self.numbers, self.acceleration = numbers, acceleration
        self.fits: dict[int, Fit] = {}
        self.lost: dict[int, str] = {}
        self._kept: tuple[list[Fit], Expectation] | None = None

    def put(self, frame: int, fit: Fit | None, why: str | None) -> None:
        """What came of a frame: a fit that is trusted, or why it is lost."""
        self.lost.pop(frame, None)
        if fit is not None:
            self.fits[frame] = fit
        if why is not None:
            self.lost[frame] = why

    @property
    def trusted(self) -> list[int]:
        """Frames whose fit counts, ascending."""
        return sorted(frame for frame in self.fits if frame not in self.lost)

    def nearest(self, frame: int) -> list[Fit]:
        """Trusted fits of other frames, nearest first."""
        others = [other for other in self.trusted if other != frame]
        return [self.fits[other] for other in sorted(others, key=lambda other: abs(other - frame))]

    def carms(self, frame: int, told: Tensor, free: Iterable[int]) -> Tensor:
        """[V, 4, 4] where the C-arms should stand: those that are free as far off as in the nearest frame they show.

        Args:
            told: [F, V, 4, 4] where they are said to stand.  free: numbers of the views whose C-arm may move.
        """
        carms = told[frame].clone()
        others = sorted((other for other in self.trusted if other != frame), key=lambda other: abs(other - frame))
        for view in free:
            seen = next((other for other in others if view in self.fits[other].views), None)
            if seen is not None:
                carms[view] = self.fits[seen].carms[view] @ inverse(told[seen, view]) @ carms[view]
        return carms

    def sides(self, frame: int) -> list[int]:
        """The trusted frames before and after, as far as there are."""
        trusted = self.trusted
        before = [other for other in trusted if other < frame][-1:]
        return before + [other for other in trusted if other > frame][:1]

    def expected(self, frame: int, direction: int, among: Iterable[int] | None = None) -> Expectation | None:
        """Where the bodies should be in a frame, by those that were gone through before it; None where none was.

        Args:
            direction: 1 goes forwards, -1 backwards.
            among: frames that may count; None is all.
        """
        frames = self.trusted if among is None else sorted(among)
        behind = sorted((other for other in frames if (frame - other) * direction > 0), key=lambda o: o * direction)
        if not behind:
            return None
        ahead = [other for other in frames if (other - frame) * direction > 0]
        known = self._known(tuple(behind), min(ahead, key=lambda o: o * direction) if ahead else None)
        return known.later(self._time(behind[-1], frame), self.acceleration)

    def _known(self, behind: tuple[int, ...], ahead: int | None) -> Expectation:
        """At the last of these frames, gone through one after the other; what was known at the one before is kept."""
        fits = [self.fits[frame] for frame in behind]
        if self._kept is not None and self._kept[0] == fits[:-1]:
            known, rest = self._kept[1], behind[-2:]
        else:
            rest = behind[-_REMEMBERED:]
            twist = None if ahead is None else self._twist(rest[0], ahead)
            known = Expectation.first(self.fits[rest[0]].centred, self.fits[rest[0]].covariances, twist)
        for last, following in pairwise(rest):
            fit = self.fits[following]
            known = known.later(self._time(last, following), self.acceleration).seen(fit.centred, fit.covariances)
        self._kept = (fits, known)
        return known

    def interpolated(self, frame: int) -> Tensor:
        """[B, 4, 4] on the screw motion between the trusted frames on both sides; at an end, as the nearest.

        Of a frame that is trusted itself, what was found there.
        """
        if frame in self.fits and frame not in self.lost:
            return self.fits[frame].motions
        sides = self.sides(frame)
        first = self.fits[sides[0]]
        if len(sides) == 1:
            return first.motions
        share = self._time(sides[0], frame) / self._time(*sides)
        return uncentred(between(first.centred, self.fits[sides[1]].centred, share), first.about)

    def _twist(self, one: int, other: int) -> Tensor:
        """[B, 6] a frame, on the way from one frame to another."""
        return difference(self.fits[one].centred, self.fits[other].centred) / self._time(one, other)

    def _time(self, one: int, other: int) -> float:
        return float(abs(self.numbers[other] - self.numbers[one]))


def runs(frames: Iterable[int]) -> list[list[int]]:
    """Frames in stretches of neighbours."""
    found: list[list[int]] = []
    for frame in sorted(frames):
        if found and frame == found[-1][-1] + 1:
            found[-1].append(frame)
        else:
            found.append([frame])
    return found


def motions_of(expected: Expectation, about: Tensor) -> Tensor:
    """[B, 4, 4] where bodies with these pivots [B, 3] are expected."""
    return uncentred(expected.pose, about)
