"""Optimisers of one level. Each is a generator that takes many candidates through it at once, one step at a time;
where a step takes long, the generator yields None in between.

They work on small steps (`Unknowns.moved`: rigid motions about the anatomy's centre), so there is no parameterization
to choose and none to get stuck in. Candidates share renderings and matrix products but nothing else: each has its own
damping, step length and end, and only those under way are computed.
"""

from DiffDRRCore.registration.optimizers.adam import adam
from DiffDRRCore.registration.optimizers.lbfgs import lbfgs
from DiffDRRCore.registration.optimizers.levenberg_marquardt import levenberg_marquardt
from DiffDRRCore.registration.optimizers.progress import Optimizer, Progress, Steps

__all__ = ["Optimizer", "Progress", "Steps", "adam", "lbfgs", "levenberg_marquardt"]
