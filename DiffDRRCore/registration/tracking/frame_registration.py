"""The engine's registration of one frame of many: no more of its result than a run needs, and quicker at its end."""

from __future__ import annotations

from collections.abc import Generator

from DiffDRRCore.registration.engine import Registration
from DiffDRRCore.registration.objective.objective import Objective
from DiffDRRCore.registration.optimizers import Steps, levenberg_marquardt
from DiffDRRCore.registration.problem.unknowns import State

_TRUSTED = 1 / 8  # of a pixel at the anatomy: what a Newton step of that length leaves is some hundredths of one


class FrameRegistration(Registration):
    """A `Registration` of a frame.

    Attributes:
        trusts_last_step: whether it ends with a Newton step of less than an eighth of a pixel, rather than with an
            image there that confirms it. Of optimisers and measures that have no such steps, it says nothing.
    """

    trusts_last_step = False

    def finding(self) -> Generator[None, None, dict]:
        """Fields of a `RegistrationResult`: no alternatives, no doubts, no history. In pieces."""
        found, _, _ = yield from self._finding()
        return found

    def _optimizer(self, number: int, objective: Objective, states: State) -> Steps:
        level = self.levels[number]
        if not self.trusts_last_step or level is not self.levels[-1] or self._method != "levenberg_marquardt":
            return super()._optimizer(number, objective, states)
        return levenberg_marquardt(
            objective, states, self.options.tolerance, self.options.max_steps, _TRUSTED * level.pixel
        )
