"""Calibration of an X-ray camera by bundle adjustment: its intrinsics, distortion and poses from known points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from DiffDRRCore.calibration.bundle import INTRINSICS
from DiffDRRCore.calibration.checks import checked, start_poses, warn_undetermined
from DiffDRRCore.calibration.contradictions import warn_contradictions
from DiffDRRCore.calibration.fitting import fitted
from DiffDRRCore.calibration.result import CalibrationResult
from DiffDRRCore.errors import CalibrationError
from DiffDRRCore.geometry import Camera, Pose
from DiffDRRCore.imaging.distortion import Distortion, RadialDistortion

FREE = ("source_to_detector", "principal_point", "poses")
PARTS = (*INTRINSICS, "distortion", "tangential", "poses")


def calibrate(
    points_3d,
    observations: Sequence,
    camera_start: Camera,
    free: Sequence[str] = FREE,
    priors: Mapping[str, float] | None = None,
    poses: Sequence[Pose] | None = None,
    motions: Sequence[Pose] | None = None,
    distortion: Distortion | None = None,
    cut: float | None = 5.0,
    views: Sequence[str] = (),
) -> CalibrationResult:
    """The camera that sees known points where they were observed, by least squares over all images at once.

    Minimises squared pixel residuals over the noise's variance, plus squared offsets from the start over the priors'
    variances (Triggs et al., Bundle adjustment: a modern synthesis, 2000), by Levenberg-Marquardt with exact
    derivatives. The noise is estimated from the residuals, each parameter taken for as much of a degree of freedom as
    the images, not its prior, determine it. SDD and pixel size only act as their ratio: free one of them, or give a
    prior to both.

    Args:
        points_3d: [N, 3] mm, in any frame (the phantom's).
        observations: of each image, [N, 2] pixels (u, v) in the order of the points; NaN where one was not seen.
        camera_start: one camera for all images; its size, side and skew are kept.
        free: of "source_to_detector", "principal_point", "pixel_size", "pixel_ratio" (column over row size),
            "distortion" (k1 and k2, or all of a grid), "tangential" (p1 and p2), "poses".
        priors: standard deviations about the start, by these names: mm, pixels, mm, 1; for k and p 1; for a grid
            pixels, of the second differences of its control points. Default: weak ones (200 mm, a quarter of the
            width, 20 %, 0.05, 0.3, 0.05, 1 % of the diagonal).
        poses: camera_to_world of each image (world: the frame of the points) to start from, or to keep where "poses"
            is not free. None: each is found from the points.
        motions: camera_to_reference of each image where the C-arm's motion is known: then all images share one free
            pose of the points in that reference.
        distortion: to start from, or to keep. None: a radial one about the image's centre where one is free.
        cut: residuals beyond so many robust deviations are left out; None keeps all.
        views: names of the images, for messages.

    Warns (DiffDRRWarning) of each unknown that the images do not determine, and of images that contradict each other.

    Raises:
        CalibrationError: too few points, fewer numbers than unknowns, lists that do not fit each other, unknown names,
            points that no camera sees as they were observed, a phantom in other units than mm.
    """
    free, priors = checked_names(free, priors)
    points, observed = checked(points_3d, observations, camera_start, poses, motions, "poses" in free)
    camera_start = camera_start.detached().to("cpu", torch.float64)
    if distortion is None and {"distortion", "tangential"} & set(free):
        distortion = RadialDistortion.of_image(camera_start)
    names = [str(name) for name in views] or [str(number + 1) for number in range(len(observed))]
    poses = start_poses(points, observed, camera_start, distortion, poses, names)
    result = fitted(points, observed, camera_start, distortion, free, poses, names, priors, motions, cut)
    warn_undetermined(result)
    if motions is None and "poses" in free:
        warn_contradictions(points, observed, result, free)
    return result


def checked_names(free: Sequence[str], priors: Mapping[str, float] | None) -> tuple[tuple[str, ...], dict[str, float]]:
    """`free` and `priors` of `calibrate`. Raises CalibrationError for what means nothing."""
    free = (free,) if isinstance(free, str) else tuple(free)
    priors = dict(priors or {})
    for name in (*free, *priors):
        if name not in PARTS or (name in priors and name == "poses"):
            raise CalibrationError(f"There is nothing called {name!r} to calibrate; known are {', '.join(PARTS)}.")
    for name, deviation in priors.items():
        if not 0 < deviation < float("inf"):
            raise CalibrationError(f"The prior of {name} is a standard deviation above 0, not {deviation}.")
        if name not in free:
            raise CalibrationError(f"There is a prior for {name}, which is not free: free it, or leave the prior out.")
    if not free:
        raise CalibrationError("Nothing is free, so there is nothing to calibrate.")
    return free, priors
