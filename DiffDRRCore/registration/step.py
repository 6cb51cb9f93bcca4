"""What a registration says of itself while it is under way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from DiffDRRCore.geometry import Pose


@dataclass(frozen=True)
class Step:
    """One step of the optimiser, as a progress display needs it: of the best of the candidates that took it together.

    `start` is the number of the best candidate, `candidates` how many are still under way. `bodies` and `carms` are
    where it has them, as `FoundBody.motion` and `RegistrationResult.carms`; `poses` are the views as the first body
    sees them. `levels` grows by one where outlines are asked (`Options.second`): there `cost` is theirs.
    """

    level: int
    levels: int
    start: int
    index: int
    size: tuple[int, int]
    similarity: float
    cost: float
    seconds: float
    poses: Pose
    candidates: int = 1
    bodies: Sequence[Pose] = ()
    carms: Pose | None = None
