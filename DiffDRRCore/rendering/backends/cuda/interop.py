"""Torch's tensors, memory and streams, as Warp takes them."""

from __future__ import annotations

import functools
import logging

import torch
import warp as wp
from torch import Tensor

_BLOCK = 64  # small, as the kernels take many registers and an image has few rays
_log = logging.getLogger(__name__)


@functools.cache
def initialize() -> None:
    """Find Warp's devices, without its banner. Makes no CUDA context."""
    wp.config.log_level = max(wp.config.log_level, wp.LOG_WARNING)
    wp.init()


@functools.cache
def start() -> None:
    """Before the first kernel: say in our log why it may take a while."""
    initialize()
    _log.info("The cuda backend compiles its kernels at their first use on a machine, which takes some seconds.")


def why_not() -> str | None:
    """Why Warp cannot use torch's current GPU, in one sentence; None where it can."""
    initialize()
    if not wp.is_cuda_available():
        have, need = (
            ".".join(map(str, v or "?")) for v in (wp.get_cuda_driver_version(), wp.get_cuda_toolkit_version())
        )
        return f"The GPU's driver supports CUDA {have}, but this warp-lang was made for CUDA {need}; update the driver."
    major, minor = torch.cuda.get_device_capability()
    oldest = min(wp.get_cuda_supported_archs())
    if 10 * major + minor < oldest:
        return (
            f"The GPU's compute capability is {major}.{minor}, but this warp-lang needs {oldest // 10}.{oldest % 10}."
        )
    return None


def launch(kernel, dim: tuple[int, ...], arguments: tuple, device: torch.device) -> None:
    """Start a kernel on torch's current stream of a device."""
    if device.type == "cuda":
        stream = wp.stream_from_torch(device)
        wp.launch(kernel, dim=dim, inputs=arguments, stream=stream, block_dim=_BLOCK)
    else:
        wp.launch(kernel, dim=dim, inputs=arguments, device="cpu")


def array(x: Tensor | None, dtype=None):
    """A view of a tensor for a kernel's argument, without a copy where it is contiguous."""
    if x is None:
        return None
    return wp.from_torch(x.detach().contiguous(), dtype=dtype, requires_grad=False, return_ctype=True)
