"""What varies from image to image of a training set, and the values of image number n.

Ranges are an object of parameters, in JSON or YAML, with the names and units of `Setup`:

    {"primary": [-45, 45],                                      even from -45 to 45 degrees
     "shift_s": {"normal": [0, 20], "within": [-50, 50]},       mean and standard deviation, cut off
     "kvp": {"choice": [60, 70, 80]},
     "dose": {"log_uniform": [0.02, 2]},
     "bone_contrast": 1.1}                                      one value

Angles may go on beyond 180 degrees, and beyond 90 over the head: the pose turns on evenly. A DICOM header says the same
pose by DICOM's angles, primary -180 to 180 and secondary -90 to 90; manifest and JSON keep the ones drawn.

Each parameter of each image has random numbers of its own, that depend on the seed, the image's number and the
parameter's name alone: another range beside it, more images or more workers change none of them.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from DiffDRRCore.errors import PhysicsError
from DiffDRRCore.values import read_values

VARYING = (
    *("primary", "secondary", "roll", "shift_r", "shift_a", "shift_s", "sod"),
    *("kvp", "dose", "photons", "electronic", "swank", "csi_mm", "focal_spot", "blur", "air_gap", "aperture"),
    "bone_contrast",
)
_KINDS = ("uniform", "log_uniform", "normal", "choice")
_TRIES = 1000
_NOISE = "noise"


@dataclass(frozen=True)
class Range:
    """Where a number comes from: kind is "uniform", "log_uniform", "normal" or "choice"; see the module's text.

    Raises PhysicsError for numbers that are no such range; `name` begins the message.
    """

    name: str
    kind: str
    numbers: tuple[float, ...]
    within: tuple[float, float] = (-math.inf, math.inf)

    def __post_init__(self):
        problem = self._problem()
        if problem:
            raise PhysicsError(f"The range of {self.name} {problem}, got {list(self.numbers)}.")

    def _problem(self) -> str | None:
        if not self.numbers or not all(math.isfinite(number) for number in self.numbers):
            return "needs finite numbers"
        if self.kind == "choice":
            return None
        if len(self.numbers) != 2:
            return "has two numbers"
        first, second = self.numbers
        if self.kind == "normal":
            low, high = self.within
            reached = low < high and low <= first + 4 * second and high >= first - 4 * second
            return None if second >= 0 and reached else "is a mean, a deviation of 0 or more, and limits about them"
        if first > second:
            return "goes from the smaller to the larger number"
        return "is logarithmic, so that it must be above 0" if self.kind == "log_uniform" and first <= 0 else None

    @property
    def ends(self) -> tuple[float, ...]:
        """The least and the largest value; those of a normal distribution without limits are infinite."""
        return self.within if self.kind == "normal" else (min(self.numbers), max(self.numbers))

    def draw(self, generator: np.random.Generator) -> float:
        """One value."""
        if self.kind == "choice":
            return float(self.numbers[generator.integers(len(self.numbers))])
        first, second = self.numbers
        if self.kind == "uniform":
            return float(generator.uniform(first, second))
        if self.kind == "log_uniform":
            return float(math.exp(generator.uniform(math.log(first), math.log(second))))
        for _ in range(_TRIES):
            value = float(generator.normal(first, second))
            if self.within[0] <= value <= self.within[1]:
                return value
        return float(np.clip(first, *self.within))


@dataclass(frozen=True)
class Ranges:
    """Ranges by the parameter's name. Raises PhysicsError for a parameter that cannot vary."""

    of: Mapping[str, Range]

    @classmethod
    def from_dict(cls, content: Any, names: Collection[str] = VARYING) -> Ranges:
        """Of an object as the module's text describes it; `names` are those that there are."""
        if not isinstance(content, Mapping):
            raise PhysicsError(f"Ranges are an object of parameters, not a {type(content).__name__}.")
        unknown = [name for name in content if name not in names]
        if unknown:
            raise PhysicsError(f"There is no parameter {unknown[0]!r} to vary; there are: {', '.join(names)}.")
        return cls({name: _range(name, value) for name, value in sorted(content.items())})

    @classmethod
    def read(cls, path: str | Path) -> Ranges:
        """Of a .json or .yaml file. Raises ReadError where it cannot be read."""
        return cls.from_dict(read_values(path))

    def values(self, seed: int, number: int) -> dict[str, float]:
        """The values of image `number`."""
        return {name: one.draw(_generator(seed, number, name)) for name, one in self.of.items()}

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold."""
        return {
            name: {one.kind: list(one.numbers)} | ({"within": list(one.within)} if one.within[1] < math.inf else {})
            for name, one in self.of.items()
        }


def noise_seed(seed: int, number: int) -> int:
    """The seed of the noise of image `number`."""
    return int(_generator(seed, number, _NOISE).integers(2**53))


def _generator(seed: int, number: int, name: str) -> np.random.Generator:
    return np.random.default_rng([seed, number, zlib.crc32(name.encode())])


def _range(name: str, value: Any) -> Range:
    if _is_number(value):
        return Range(name, "choice", (float(value),))
    if isinstance(value, (list, tuple)):
        value = {"uniform": value}
    kinds = [kind for kind in value if kind in _KINDS] if isinstance(value, Mapping) else []
    allowed = {*kinds, "within"} if kinds == ["normal"] else set(kinds)
    if len(kinds) != 1 or set(value) - allowed:
        raise PhysicsError(
            f"The range of {name} is a number, [least, most], or an object with one of {', '.join(_KINDS)} "
            f"(normal: also within), not {value!r}."
        )
    parts = [value[kinds[0]], value.get("within", [-math.inf, math.inf])]
    if not all(isinstance(part, (list, tuple)) and all(map(_is_number, part)) for part in parts) or len(parts[1]) != 2:
        raise PhysicsError(f"The range of {name} is made of lists of numbers, not {value!r}.")
    numbers, within = (tuple(float(number) for number in part) for part in parts)
    return Range(name, kinds[0], numbers, within)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
