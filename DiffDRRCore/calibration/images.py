"""From images of a bead phantom to a camera: find, match, solve, and once more with what was learned."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Generator, Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

from DiffDRRCore.calibration.detection import Beads, find_beads
from DiffDRRCore.calibration.matching import MOST_TRIALS, matching_beads
from DiffDRRCore.calibration.phantom import BeadPhantom
from DiffDRRCore.calibration.result import CalibrationResult
from DiffDRRCore.calibration.solver import FREE, calibrate, checked_names
from DiffDRRCore.errors import CalibrationError, DiffDRRWarning
from DiffDRRCore.geometry import Camera, project
from DiffDRRCore.imaging.distortion import Distortion
from DiffDRRCore.imaging.xray import XRay

_ROOM = 1.5  # of the radii that the camera lets expect
_NEAR = 6.0  # deviations, from where the calibrated camera expects a bead
_AT_LEAST = 1.0  # pixels


class BeadView(NamedTuple):
    """An image, the beads found in it, and their pixels [N, 2] in the order of the phantom (NaN: none)."""

    name: str
    xray: XRay
    beads: Beads
    observed: np.ndarray


def calibrate_images(
    phantom: BeadPhantom,
    xrays: Sequence[XRay],
    camera: Camera | None = None,
    free: Sequence[str] = FREE,
    radius_range: tuple[float, float] | None = None,
    distortion: Distortion | None = None,
    names: Sequence[str] = (),
    progress: Callable[[str], None] = lambda line: None,
    **options,
) -> tuple[CalibrationResult, list[BeadView]]:
    """Calibrate a camera by images of a bead phantom, with no start of its poses.

    Args:
        xrays: with intensity; each with the camera to start from.
        camera: to start from, in place of that of the X-rays.
        free, distortion, options: as of `calibrate`.
        radius_range: of the beads in pixels; None is what the phantom and the camera let expect.
        names: of the images, for messages.
        progress: called with one line about each image.

    An image in which the phantom is not found is left out with a warning.

    Raises CalibrationError where it is found in none, where cameras differ or an image is there twice, and as
    `calibrate`. `calibrating_images` does the same in steps.
    """
    steps = calibrating_images(phantom, xrays, camera, free, radius_range, distortion, names, **options)
    while True:
        try:
            step = next(steps)
        except StopIteration as end:
            return end.value
        if step.image_done:
            progress(step.text)


class Step(NamedTuple):
    """How far a calibration is: 0 to 1, in words, and whether the text is the last one about an image."""

    fraction: float
    text: str
    image_done: bool = False


def calibrating_images(
    phantom: BeadPhantom,
    xrays: Sequence[XRay],
    camera: Camera | None = None,
    free: Sequence[str] = FREE,
    radius_range: tuple[float, float] | None = None,
    distortion: Distortion | None = None,
    names: Sequence[str] = (),
    **options,
) -> Generator[Step, None, tuple[CalibrationResult, list[BeadView]]]:
    """As `calibrate_images`, whose value it returns, a step at a time (a second or less for a usual image)."""
    checked_names(free, options.get("priors"))
    camera = _common_camera(xrays, camera)
    names = list(names) or [str(number) for number in range(1, len(xrays) + 1)]
    _check_different(xrays, names)
    radii = radius_range or _expected_radii(phantom, camera)
    views, poses, reasons = [], [], []
    for number, (name, xray) in enumerate(zip(names, xrays, strict=True)):
        done = number / (len(xrays) + 1)
        try:
            yield Step(done, f"{name}: looking for beads")
            beads = find_beads(xray, radii)
            match = yield from _matched(phantom, beads, camera, distortion, name, done, len(xrays))
        except CalibrationError as error:
            reasons.append(error)
            _warn_left_out(name, error)
            continue
        text = f"{name}: {len(beads)} blobs, {match.count} of {len(phantom)} beads"
        yield Step((number + 1) / (len(xrays) + 1), text, True)
        views.append(BeadView(name, xray, beads, match.observed.numpy()))
        poses.append(match.pose)
    if not views:
        raise CalibrationError(f"The phantom was found in none of the images: {reasons[0]}") from reasons[0]
    yield Step(len(xrays) / (len(xrays) + 1), "Solving")
    return _solved(phantom, views, camera, poses, free=free, distortion=distortion, **options)


def _matched(phantom, beads: Beads, camera, distortion, name: str, done: float, count: int) -> Generator:
    steps = matching_beads(phantom, beads, camera, distortion)
    while True:
        try:
            tried = next(steps)
        except StopIteration as end:
            return end.value
        fraction = done + (0.3 + 0.7 * tried / MOST_TRIALS) / (count + 1)
        yield Step(fraction, f"{name}: which of the {len(beads)} blobs is which bead")


def _solved(phantom, views: list[BeadView], camera, poses, **options) -> tuple[CalibrationResult, list[BeadView]]:
    """Solve, match again by what was found, and solve again."""
    solve = {"views": [view.name for view in views], **options}
    kept = None if options.get("motions") is not None else poses
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DiffDRRWarning)  # the second solution says it again
        first = calibrate(phantom.positions, [view.observed for view in views], camera, poses=kept, **solve)
    views = [_matched_again(phantom, view, first, number) for number, view in enumerate(views)]
    result = calibrate(phantom.positions, [view.observed for view in views], camera, poses=kept, **solve)
    return result, views


def _check_different(xrays: Sequence[XRay], names: Sequence[str]) -> None:
    """An image that is there twice says nothing new, but would make the result look surer than it is."""
    for (one, first), (other, second) in itertools.combinations(zip(names, xrays, strict=True), 2):
        if first.image.shape == second.image.shape and bool((first.image == second.image).all()):
            raise CalibrationError(
                f"The images {one} and {other} are the same: leave one out, and take each image from another direction."
            )


def _common_camera(xrays: Sequence[XRay], camera: Camera | None) -> Camera:
    if not xrays:
        raise CalibrationError("There is no image to calibrate from.")
    first = xrays[0].camera if camera is None else camera
    for number, xray in enumerate(xrays, start=1):
        other = xray.camera
        if (other.height, other.width) != (first.height, first.width):
            raise CalibrationError(
                f"Image {number} has {other.height} x {other.width} pixels, but the calibration is of "
                f"{first.height} x {first.width}: calibrate images of one size at a time."
            )
        if camera is None and not _alike(other, first):
            raise CalibrationError(
                f"The cameras of image 1 and image {number} contradict each other ({first!r}, {other!r}): calibrate "
                "images of one setting of the C-arm at a time, or say which camera to start from."
            )
    return first


def _alike(one: Camera, other: Camera) -> bool:
    near = np.allclose(one.K.numpy(), other.K.numpy(), rtol=1e-3, atol=0.5)
    return near and abs(float(one.source_to_detector / other.source_to_detector) - 1) < 1e-3


def _expected_radii(phantom: BeadPhantom, camera: Camera) -> tuple[float, float]:
    """Pixels, at magnifications of 1.05 to 2.5."""
    spacing = float(camera.pixel_spacing.mean())
    low, high = float(phantom.radii.min()) * 1.05 / spacing, float(phantom.radii.max()) * 2.5 / spacing
    return max(low / _ROOM, 0.8), high * 1.1


def _matched_again(phantom: BeadPhantom, view: BeadView, result: CalibrationResult, number: int) -> BeadView:
    """With the beads that the calibrated camera finds beside those matched before."""
    expected = project(result.camera, result.poses[number], phantom.positions)[0]
    if result.distortion is not None:
        expected = result.distortion.distort(expected)
    centers = view.beads.centers.numpy()
    away = np.linalg.norm(expected.numpy()[:, None] - centers[None], axis=-1)
    limit = max(_NEAR * result.noise, _AT_LEAST)
    rows, columns = linear_sum_assignment(np.minimum(np.nan_to_num(away, nan=1e6), 10 * limit))
    good = away[rows, columns] <= limit
    observed = np.full((len(phantom), 2), np.nan)
    observed[rows[good]] = centers[columns[good]]
    return view._replace(observed=observed) if good.sum() >= 6 else view


def _warn_left_out(name: str, error: CalibrationError) -> None:
    warnings.warn(f"Image {name} is left out. {error}", DiffDRRWarning, stacklevel=3)
