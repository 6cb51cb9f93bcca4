"""Random numbers that depend on what they are for, and on nothing that was drawn before.

Each has a name and belongs to a key (seed, step, number of the batch in the step, ...). So a training that goes on
after an interruption needs no state of a generator, and another range beside it changes none of the others. Parameters
are drawn on the CPU, the same for every device; only noise is drawn where the images are.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from DiffDRRCore.physics.simulation.ranges import Range


class Draws:
    """The random numbers of a key: whole numbers and words."""

    def __init__(self, *key: int | str):
        self._key = list(key)

    def within(self, *more: int | str) -> Draws:
        """Those of the key with more at its end."""
        return Draws(*self._key, *more)

    def generator(self, name: str, device: torch.device | str = "cpu") -> torch.Generator:
        """A generator on `device` that starts anew each time it is asked for."""
        digest = hashlib.blake2b(json.dumps([*self._key, name]).encode(), digest_size=8).digest()
        return torch.Generator(device).manual_seed(int.from_bytes(digest, "big") >> 1)

    def uniform(self, name: str, shape: int | Sequence[int], low: float = 0.0, high: float = 1.0) -> Tensor:
        """Numbers from `low` to `high`, float64 on the CPU."""
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        return low + (high - low) * torch.rand(shape, dtype=torch.float64, generator=self.generator(name))

    def log_uniform(self, name: str, shape: int | Sequence[int], low: float, high: float) -> Tensor:
        """Numbers whose logarithms are even, float64 on the CPU."""
        return self.uniform(name, shape, math.log(low), math.log(high)).exp()

    def happens(self, name: str, shape: int | Sequence[int], probability: float) -> Tensor:
        """bool on the CPU."""
        return self.uniform(name, shape) < probability

    def normal(self, name: str, like: Tensor) -> Tensor:
        """Standard normal numbers of the shape, type and device of `like`; each device has its own."""
        generator = self.generator(name, like.device)
        return torch.randn(like.shape, dtype=like.dtype, device=like.device, generator=generator)

    def of(self, one: Range, count: int) -> Tensor:
        """[count] numbers of a range, float64 on the CPU; a normal distribution with limits is cut off there."""
        share = self.uniform(one.name, count)
        if one.kind == "choice":
            numbers = torch.tensor(one.numbers, dtype=torch.float64)
            return numbers[(share * len(numbers)).long().clamp(max=len(numbers) - 1)]
        first, second = one.numbers
        if one.kind == "uniform":
            return first + (second - first) * share
        if one.kind == "log_uniform":
            return first * (second / first) ** share
        return _cut_normal(share, first, second, one.within)


def _cut_normal(share: Tensor, mean: float, deviation: float, within: tuple[float, float]) -> Tensor:
    """The quantiles `share` of a normal distribution between two limits."""
    if deviation == 0:
        return torch.full_like(share, mean).clamp(*within)
    low, high = (0.5 * (1 + math.erf((limit - mean) / (deviation * math.sqrt(2)))) for limit in within)
    quantile = (low + (high - low) * share).clamp(1e-15, 1 - 1e-15)
    return (mean + deviation * torch.special.ndtri(quantile)).clamp(*within)
