"""How far a tracking is, for whoever shows it."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from DiffDRRCore.geometry import Pose


class Pass(enum.Enum):
    """What a step of a tracking was part of."""

    KEYFRAME = "keyframe"
    FORWARDS = "forwards"
    BACKWARDS = "backwards"
    AGAIN = "again"
    EVERYWHERE = "everywhere"


@dataclass(frozen=True)
class TrackStep:
    """A frame that has been looked at, as a progress display needs it.

    Attributes:
        frame: its number.  done: frames looked at so far, of `total` with X-rays.
        similarity: NaN where nothing was found.  lost: why it is lost, None where it is not.
        motions: [B, 4, 4] of the bodies.  seconds: since the beginning.
    """

    frame: int
    done: int
    total: int
    during: Pass
    similarity: float
    lost: str | None
    motions: Pose
    seconds: float
