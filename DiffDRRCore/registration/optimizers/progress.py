"""Where candidates are under way, and what all optimisers do alike."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass

import torch
from torch import Tensor

from DiffDRRCore.registration.objective.linearization import Linearization
from DiffDRRCore.registration.objective.objective import Objective

SMALLEST_GAIN = 1e-6  # of the cost in one step


@dataclass
class Progress:
    """Where B candidates are: what an optimiser hands out after each step.

    Attributes:
        best: the best place of each candidate so far.
        active: [B] bool, under way; whoever drives the optimiser may take some out.
        converged: [B] bool.
    """

    best: Linearization
    active: Tensor
    converged: Tensor

    @classmethod
    def begun(cls, best: Linearization) -> Progress:
        """All of them under way."""
        nothing = torch.zeros(len(best), dtype=torch.bool)
        return cls(best, ~nothing, nothing)

    def joined(self, other: Progress) -> Progress:
        """These candidates, then the other ones."""
        flags = [torch.cat([getattr(self, name), getattr(other, name)]) for name in ("active", "converged")]
        return Progress(self.best.joined(other.best), *flags)

    def finish(self, rows: Tensor) -> None:
        """Candidates that have converged."""
        self.converged[rows] = True
        self.active[rows] = False


Steps = Generator[Progress | None, None, None]  # Progress after each step, None between the pieces of one
Optimizer = Callable[..., Steps]


def take(objective: Objective, progress: Progress, rows: Tensor, there: Linearization, better: Tensor) -> None:
    """Candidates `rows` go where it was better; where residuals weigh the pixels, they do so anew from there on."""
    if bool(better.any()):
        progress.best = progress.best.replaced(rows[better], objective.reweighted(there[better]))


def end(
    objective: Objective,
    progress: Progress,
    rows: Tensor,
    here: Linearization,
    there: Linearization,
    better: Tensor,
    tolerance: float,
) -> None:
    """Candidates end whose step was short, or gained next to nothing."""
    short = objective.unknowns.displacement(here.state, there.state) < tolerance
    gained = here.cost - there.cost
    progress.finish(rows[short | better & (gained < SMALLEST_GAIN * (here.cost - objective.least_cost).abs())])
