"""Images that contradict each other: each solved by itself, and compared."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np

from DiffDRRCore.calibration.bundle import INTRINSICS, Array
from DiffDRRCore.calibration.fitting import fitted
from DiffDRRCore.calibration.result import CalibrationResult
from DiffDRRCore.errors import CalibrationError, DiffDRRWarning

_SIGNIFICANT = 5.0  # deviations


def warn_contradictions(points: Array, observed: Array, result: CalibrationResult, free: Sequence[str]) -> None:
    """A warning where two images, each solved by itself, have intrinsics that differ by more than their noise."""
    own = [name for name in INTRINSICS if name in free and name != "pixel_size"]
    if len(observed) < 2 or not own:
        return
    singles = []
    for view, (pixels, kept) in enumerate(zip(observed, result.inliers.numpy(), strict=True)):
        if 2 * kept.sum() < 20:
            continue
        pixels, name = np.where(kept[:, None], pixels, np.nan)[None], result.views[view]
        start = points, pixels, result.camera, result.distortion
        try:
            singles.append((name, fitted(*start, (*own, "poses"), [result.poses[view]], [name])))
        except CalibrationError:
            continue
    for name in singles[0][1].names if singles else ():
        _warn_contradiction(name, singles)


def _warn_contradiction(name: str, singles: list[tuple[str, CalibrationResult]]) -> None:
    low, high = (choose(singles, key=lambda one: one[1].values[name]) for choose in (min, max))
    spread = high[1].values[name] - low[1].values[name]
    expected = float(np.hypot(high[1].deviations[name], low[1].deviations[name]))
    if spread > _SIGNIFICANT * expected:
        warnings.warn(
            f"The images contradict each other: {name} is {low[1].values[name]:.5g} by image {low[0]} but "
            f"{high[1].values[name]:.5g} by image {high[0]}, {spread / expected:.0f} deviations apart; calibrate "
            "images of one setting of the C-arm at a time.",
            DiffDRRWarning,
            stacklevel=4,
        )
