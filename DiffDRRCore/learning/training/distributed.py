"""One training in several processes, each with a device of its own, as `torchrun` starts them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from DiffDRRCore.errors import LearningError


@dataclass(frozen=True)
class World:
    """The processes of a training: how many, and which of them this one is. The first one writes files."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and says how it goes."""
        return self.rank == 0

    def device(self, name: str) -> torch.device:
        """The device of this process. Raises LearningError where there is none as asked for."""
        device = torch.device(name)
        if device.type == "cuda" and not torch.cuda.is_available():
            raise LearningError("PyTorch finds no CUDA device here: train on the CPU (device 'cpu').")
        if device.type == "cuda" and device.index is None and self.size > 1:
            device = torch.device("cuda", self.local_rank)
        return device

    def shared(self, net: nn.Module, device: torch.device) -> nn.Module:
        """The network with its gradients averaged over the processes."""
        if self.size == 1:
            return net
        devices = [device] if device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(net, device_ids=devices)

    def without_averaging(self, net: nn.Module):
        """A context in which gradients stay with each process: all but the last of accumulated batches."""
        return nullcontext() if self.size == 1 else net.no_sync()

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether the flag is set in one of the processes."""
        if self.size == 1:
            return flag
        told = torch.tensor([float(flag)], device=device)
        torch.distributed.all_reduce(told, op=torch.distributed.ReduceOp.MAX)
        return bool(told.item())

    def average(self, numbers: torch.Tensor) -> torch.Tensor:
        """The mean over the processes."""
        if self.size > 1:
            torch.distributed.all_reduce(numbers)
            numbers = numbers / self.size
        return numbers


@contextmanager
def joined(device: str) -> Iterator[World]:
    """The world that `torchrun` has told this process of; without it, this process alone.

    Raises LearningError where torchrun's variables are no numbers.
    """
    try:
        rank, size, local = (int(os.environ.get(name, value)) for name, value in _VARIABLES.items())
    except ValueError as error:
        raise LearningError("RANK, WORLD_SIZE and LOCAL_RANK must be whole numbers, as torchrun sets them.") from error
    if size == 1:
        yield World()
        return
    if torch.device(device).type == "cuda":
        torch.cuda.set_device(local)
    torch.distributed.init_process_group("nccl" if torch.device(device).type == "cuda" else "gloo")
    try:
        yield World(rank, size, local)
        # The first process still writes when the others are done: whoever leaves early can leave it waiting for ever.
        torch.distributed.barrier()
    finally:
        torch.distributed.destroy_process_group()


_VARIABLES = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
