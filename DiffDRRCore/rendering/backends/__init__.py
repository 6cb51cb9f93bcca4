"""The backends: each gives the same integrals, and says how much memory a ray takes.

Today there is one, plain torch, on any device that torch has. A fused backend that is asked for and not there falls
back to it with one log line.
"""

from __future__ import annotations

import logging

from DiffDRRCore.errors import RenderError
from DiffDRRCore.rendering.backends.torch_siddon import TorchSiddon
from DiffDRRCore.rendering.backends.torch_trilinear import TorchTrilinear

BACKENDS = ("auto", "torch", "cpu", "cuda")
INTEGRATORS = ("trilinear", "siddon")

_log = logging.getLogger(__name__)


def choose_backend(name: str) -> str:
    """The backend that will run. Raises RenderError on an unknown name."""
    if name not in BACKENDS:
        raise RenderError(f"Unknown backend {name!r}; choose from {', '.join(BACKENDS)}.")
    if name in ("cpu", "cuda"):
        _log.warning("The fused %s backend is not available; rendering with the torch backend.", name)
    return "torch"


def make_integrator(name: str, step: float):
    """The integrator of the torch backend. Raises RenderError on an unknown name or a step that is not positive."""
    if not step > 0:
        raise RenderError(f"The step along a ray must be positive (mm), got {step}.")
    if name == "trilinear":
        return TorchTrilinear(step)
    if name == "siddon":
        return TorchSiddon()
    raise RenderError(f"Unknown integrator {name!r}; choose from {', '.join(INTEGRATORS)}.")
