"""The backends: each gives the same integrals.

"torch" is the readable reference, on any device; "cpu" (numba) and "cuda" (NVIDIA Warp) are fused kernels. One that is
asked for and not there falls back to torch with one log line.
"""

from __future__ import annotations

import logging
from functools import lru_cache
from importlib.util import find_spec
from typing import NamedTuple

import torch

from DiffDRRCore.errors import RenderError
from DiffDRRCore.rendering.field import Tracer

BACKENDS = ("auto", "torch", "cpu", "cuda")
INTEGRATORS = ("trilinear", "siddon")

INSTALL = "pip install 'DiffDRRCore[fast]'"

_log = logging.getLogger(__name__)


class Choice(NamedTuple):
    """A backend, and in one sentence why it was chosen."""

    name: str
    reason: str


def choose_backend(name: str, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Choice:
    """The backend that will run for a volume on this device and of this type. Raises RenderError on an unknown name."""
    if name not in BACKENDS:
        raise RenderError(f"Unknown backend {name!r}; choose from {', '.join(BACKENDS)}.")
    if name == "torch":
        return Choice("torch", "It was asked for.")
    wanted = name if name != "auto" else str(device) if str(device) in ("cpu", "cuda") else "torch"
    if wanted == "torch":
        return Choice("torch", f"There are no fused kernels for the device {str(device)!r}.")
    obstacle = why_not(wanted, str(device), dtype)
    if obstacle is None:
        return Choice(wanted, "It was asked for." if name == wanted else f"The volume is on the {wanted} device.")
    if name != "auto":
        _log.warning("The fused %s backend cannot run: %s Rendering with the torch backend.", name, obstacle)
    return Choice("torch", obstacle)


def why_not(name: str, device: str, dtype: torch.dtype = torch.float32) -> str | None:
    """Why the fused backend of that name cannot render such a volume, in one sentence; None where it can."""
    if device != name:
        return f"The volume is on the {device} device; move it with volume.to({name!r})."
    if dtype == torch.float64:
        return "The volume has 64 bit, the fused kernels compute in 32: convert it with volume.to(dtype=torch.float32)."
    if name == "cpu":
        return _numba_obstacle()
    from DiffDRRCore.rendering.backends.cuda import available

    found, reason = available()
    return None if found else reason


@lru_cache
def _numba_obstacle() -> str | None:
    """A package that is there need not load: numba is particular about NumPy's version."""
    if find_spec("numba") is None:
        return f"numba is not installed: {INSTALL}."
    try:
        import numba  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        return f"numba cannot be loaded: {error}"
    return None


def make_tracer(backend: str, integrator: str, step: float, max_memory: int) -> Tracer:
    """The tracer of a backend. Raises RenderError on an unknown integrator or a step that is not positive."""
    if not step > 0:
        raise RenderError(f"The step along a ray must be positive (mm), got {step}.")
    if integrator not in INTEGRATORS:
        raise RenderError(f"Unknown integrator {integrator!r}; choose from {', '.join(INTEGRATORS)}.")
    if backend == "torch":
        from DiffDRRCore.rendering.backends.reference.tracer import TorchTracer

        return TorchTracer.make(integrator, step, max_memory)
    from DiffDRRCore.rendering.backends.fused.tracer import FusedTracer

    return FusedTracer(_kernels(backend), integrator, step)


def _kernels(backend: str):
    if backend == "cpu":
        from DiffDRRCore.rendering.backends.cpu import KERNELS
    else:
        from DiffDRRCore.rendering.backends.cuda import KERNELS
    return KERNELS
