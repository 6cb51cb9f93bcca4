"""Checks of what a caller says: kinds, points and sixes of numbers. Each raises RegistrationError with one sentence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

from DiffDRRCore.errors import DiffDRRError, RegistrationError
from DiffDRRCore.geometry import as_tensor


def check_made(name: str, value: Any, kind: type) -> None:
    """It is made by that class of `DiffDRRCore.registration`."""
    if not isinstance(value, kind):
        raise RegistrationError(f"{name} must be made by DiffDRRCore.registration.{kind.__name__}(...), got {value!r}.")


def check_all_made(name: str, values: Any, kind: type, *, or_none: bool = False) -> None:
    """It is a list of such; with `or_none` of None too."""
    if isinstance(values, (str, kind)) or not isinstance(values, Sequence):
        raise RegistrationError(f"{name} is a list of {kind.__name__}, got {values!r}.")
    for value in values:
        if not (or_none and value is None):
            check_made(f"Each of {name}{' that is not None' if or_none else ''}", value, kind)


def check_point(name: str, value: Any) -> None:
    """It is a point: three finite numbers (RAS mm)."""
    try:
        point = as_tensor(value).double()
    except (TypeError, ValueError, RuntimeError, DiffDRRError):
        point = None
    if point is None or point.shape != (3,) or not bool(point.isfinite().all()):
        raise RegistrationError(f"{name} is a point of three numbers (RAS mm), got {value!r}.")


def check_six(name: str, values: Any) -> None:
    """They are six positive numbers or None, or there are none."""
    if values is None:
        return
    is_list = isinstance(values, Sequence) and not isinstance(values, str) and len(values) == 6
    if not is_list or any(value is not None and not (isinstance(value, Real) and value > 0) for value in values):
        raise RegistrationError(
            f"{name} are six positive numbers or None (3 angles in degrees, 3 shifts in mm), got {values!r}."
        )


def check_weight(name: str, value: Any) -> None:
    """It is a number of 0 or more."""
    if not (isinstance(value, Real) and 0 <= value < math.inf):
        raise RegistrationError(f"The weight of {name} must be 0 or more, got {value!r}.")
