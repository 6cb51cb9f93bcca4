"""CT slices stacked into one grid: order, spacing, gaps and gantry tilt."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np

from DiffDRRCore.errors import DiffDRRWarning, ReadError
from DiffDRRCore.imaging.dicom_slices import Slice, load_hu
from DiffDRRCore.imaging.image_files import LPS_TO_RAS, Grid

# Slices may be this far (mm) from the place that even spacing gives them: what rounded header numbers can amount to,
# and less than matters to a projection.
_TOLERANCE = 0.05
_SAME_PLACE = 0.01  # mm
_SAME_DIRECTION = 1e-4
_LEAST_TILT = 0.1  # degrees worth a warning


def read_stack(where: Path, slices: list[Slice], uneven: str = "error") -> Grid:
    """One volume of parallel slices in any order, sorted along the normal; HU, float32.

    The slice axis of the grid is the mean step from slice to slice as it is, so a tilted gantry gives an exactly
    sheared grid, and a DiffDRRWarning. Slices at uneven distances, or missing ones, raise ReadError, or are
    interpolated linearly on to even distances where `uneven` is "resample".
    """
    _check_alike(where, slices)
    normal = np.cross(*slices[0].axes.T)
    slices = sorted(slices, key=lambda item: float(item.position @ normal))
    positions = np.array([item.position for item in slices])
    depths = positions @ normal
    _check_places(where, slices, positions, depths)
    is_even = _is_even(depths)
    if not is_even and uneven != "resample":
        raise ReadError(_describe_gaps(where, depths))
    hu = load_hu(slices)
    _warn_of_tilt(where, positions[-1] - positions[0], normal)
    _warn_of_rescaling(where, slices)
    hu = hu if is_even else _resample(hu, depths)
    return Grid(hu, _ijk_to_ras(slices[0], (positions[-1] - positions[0]) / (len(hu) - 1)))


def _check_alike(where: Path, slices: list[Slice]) -> None:
    if len(slices) < 2:
        raise ReadError(f"'{where}' holds a single CT slice; a volume needs more.")
    first = slices[0]
    for item in slices[1:]:
        same_plane = np.abs(item.axes - first.axes).max() <= _SAME_DIRECTION
        if item.size != first.size or not same_plane or not np.allclose(item.spacing, first.spacing, rtol=1e-4):
            raise ReadError(
                f"'{where}' mixes slices of different size, pixel spacing or orientation "
                f"('{first.path.name}' and '{item.path.name}'); keep those of one scan."
            )


def _check_places(where: Path, slices: list[Slice], positions: np.ndarray, depths: np.ndarray) -> None:
    double = np.flatnonzero(np.diff(depths) < _SAME_PLACE)
    if len(double):
        one, other = slices[double[0]], slices[double[0] + 1]
        raise ReadError(
            f"'{where}' has more than one slice at the same place, {len(double)} times ('{one.path.name}' and "
            f"'{other.path.name}' at {depths[double[0]]:.2f} mm), as copies or several phases do; keep one of each."
        )
    share = (depths - depths[0]) / (depths[-1] - depths[0])
    line = positions[0] + share[:, None] * (positions[-1] - positions[0])
    if (offset := float(np.linalg.norm(positions - line, axis=1).max())) > _TOLERANCE:
        raise ReadError(
            f"The slices of '{where}' are shifted sideways against each other by {offset:.2f} mm, not along one "
            "straight line; are they of one scan?"
        )


def _is_even(depths: np.ndarray) -> bool:
    return bool(np.abs(depths - np.linspace(depths[0], depths[-1], len(depths))).max() <= _TOLERANCE)


def _describe_gaps(where: Path, depths: np.ndarray) -> str:
    gaps = np.diff(depths)
    usual = float(np.median(gaps))
    steps = gaps / usual
    odd = np.flatnonzero(np.abs(gaps - usual) > _TOLERANCE)
    places = ", ".join(f"{depths[n]:.2f} and {depths[n + 1]:.2f}" for n in odd[:5])
    places += f" and {len(odd) - 5} more" if len(odd) > 5 else ""
    remedy = "or have it interpolated: `dcm2nii --resample-uneven` (in Python: uneven='resample')"
    missing = int(np.rint(steps - 1).sum())
    if missing > 0 and steps.min() > 0.5 and np.abs(steps - np.rint(steps)).max() * usual <= _TOLERANCE:
        return (
            f"'{where}' lacks {missing} slices: they are {usual:.4g} mm apart, but none lies "
            f"between {places} mm along the slice normal; add them, {remedy}."
        )
    return (
        f"The slices of '{where}' are unevenly spaced, {gaps.min():.4g} to {gaps.max():.4g} mm apart (mostly "
        f"{usual:.4g} mm, but not between {places or 'the first and the last'} mm along the slice normal); give an "
        f"evenly spaced series, {remedy}."
    )


def _warn_of_tilt(where: Path, span: np.ndarray, normal: np.ndarray) -> None:
    along = float(span @ normal)
    angle = float(np.degrees(np.arctan2(np.linalg.norm(span - along * normal), along)))
    if angle > _LEAST_TILT:
        warnings.warn(
            f"The gantry was tilted by {angle:.1f} degrees for '{where}': its slices are sheared against each other, "
            "and so is the grid of this volume, exactly.",
            DiffDRRWarning,
            stacklevel=2,
        )


def _warn_of_rescaling(where: Path, slices: list[Slice]) -> None:
    count = sum(item.intercept is None for item in slices)
    if count:
        warnings.warn(
            f"{count} of the {len(slices)} slices of '{where}' have no rescale intercept; it is taken as 0, their "
            "values as HU.",
            DiffDRRWarning,
            stacklevel=2,
        )


def _resample(hu: np.ndarray, depths: np.ndarray) -> np.ndarray:
    """Linear interpolation on to even distances from the first slice to the last.

    The distance is the lower quartile of those there are: a denser part keeps its resolution, and one stray pair of
    slices close together does not multiply the volume.
    """
    distance = float(np.quantile(np.diff(depths), 0.25, method="lower"))
    count = int(np.ceil((depths[-1] - depths[0]) / distance - 1e-3)) + 1
    place = np.interp(np.linspace(depths[0], depths[-1], count), depths, np.arange(len(depths)))
    below = np.minimum(place.astype(int), len(depths) - 2)
    weight = (place - below).astype(np.float32)
    result = np.empty((count, *hu.shape[1:]), np.float32)
    for n in range(count):
        result[n] = hu[below[n]] * (1 - weight[n]) + hu[below[n] + 1] * weight[n]
    return result


def _ijk_to_ras(first: Slice, step: np.ndarray) -> np.ndarray:
    """DICOM PS3.3 C.7.6.2.1.1 with `step` from slice to slice: i runs along the row, j down the column."""
    affine = np.eye(4)
    affine[:3, 0] = first.axes[:, 0] * first.spacing[1]
    affine[:3, 1] = first.axes[:, 1] * first.spacing[0]
    affine[:3, 2] = step
    affine[:3, 3] = first.position
    return LPS_TO_RAS @ affine
