"""What can be wrong with a calibration: its input, and its result."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import torch

from DiffDRRCore.calibration.bundle import Array
from DiffDRRCore.calibration.result import CalibrationResult
from DiffDRRCore.errors import CalibrationError, DiffDRRWarning, RegistrationError
from DiffDRRCore.geometry import Camera, Pose, as_tensor
from DiffDRRCore.imaging.distortion import Distortion

_LEAST_POINTS = 4
_ENOUGH = 12  # points for a start
_TOLERANCES = (5.0, 20.0)  # mm on the detector, of the start's camera and distortion
_LARGEST_RMS = 0.01  # of the image's diagonal
_CLOSEST = 0.15  # of the SDD


def checked(points_3d, observations, camera: Camera, poses, motions, poses_free: bool) -> tuple[Array, Array]:
    """Points [N, 3] and pixels [V, N, 2] as arrays. Raises CalibrationError for what does not fit."""
    points = as_tensor(points_3d, torch.float64).detach().cpu().numpy()
    if points.ndim != 2 or points.shape[1] != 3 or not np.isfinite(points).all():
        raise CalibrationError(f"The known points are [N, 3] finite numbers in mm, got shape {list(points.shape)}.")
    if camera.parallel or camera.K.ndim != 2:
        raise CalibrationError("Calibrate one camera with a point source at a time, not a batch and no parallel beam.")
    observed = [as_tensor(one, torch.float64).detach().cpu().numpy() for one in observations]
    if not observed:
        raise CalibrationError("There is no image to calibrate from.")
    for number, one in enumerate(observed, start=1):
        if one.shape != (len(points), 2):
            raise CalibrationError(
                f"Image {number} has observations of shape {list(one.shape)}, but there are {len(points)} points: give "
                "[N, 2] pixels in the order of the points, NaN where one was not seen."
            )
        _check_seen(points[np.isfinite(one).all(-1)], number)
    for name, given in (("poses", poses), ("motions", motions)):
        if given is not None and len(given) != len(observed):
            raise CalibrationError(f"There are {len(observed)} images but {len(given)} {name}: give one for each.")
    if not poses_free and (poses is None or motions is not None):
        raise CalibrationError("Poses that are not free must be given as `poses`, and without `motions`.")
    return points, np.where(np.isfinite(observed).all(-1, keepdims=True), np.stack(observed), np.nan)


def _check_seen(points: Array, number: int) -> None:
    if len(np.unique(points, axis=0)) < _LEAST_POINTS:
        raise CalibrationError(
            f"Image {number} shows {len(points)} of the points, but four are the least that give its pose: leave the "
            "image out, or find more points in it."
        )


def start_poses(
    points: Array,
    observed: Array,
    camera: Camera,
    distortion: Distortion | None,
    poses: Sequence[Pose] | None,
    names: Sequence[str],
) -> list[Pose]:
    """A camera_to_world for each image: those given, or found from the points."""
    if poses is not None:
        return [pose.detach().to("cpu", torch.float64) for pose in poses]
    found = []
    for name, pixels in zip(names, observed, strict=True):
        pixels = pixels if distortion is None else distortion.undistort(pixels).numpy()
        found.append(_start_pose(points, pixels, camera, name))
    return found


def _start_pose(points: Array, pixels: Array, camera: Camera, name: str) -> Pose:
    """From a dozen of the points, or, where those do not agree, from all of them."""
    from DiffDRRCore.registration.landmarks import pose_from_landmarks

    seen = np.flatnonzero(np.isfinite(pixels).all(-1))
    some = np.random.default_rng(0).permutation(seen)[:_ENOUGH]
    best, reason = None, None
    for chosen in (some, seen) if len(seen) > _ENOUGH else (seen,):
        for tolerance in _TOLERANCES:
            threshold = tolerance / float(camera.pixel_spacing.max())
            try:
                best = pose_from_landmarks(points[chosen], pixels[chosen], camera, inlier_threshold=threshold)
            except RegistrationError as error:
                reason = error
                continue
            if int(best.inliers.sum()) >= 0.7 * len(chosen):
                return best.pose
    if best is None:
        raise CalibrationError(f"Image {name}: {reason}") from reason
    return best.pose


def check_result(result: CalibrationResult, points: Array) -> None:
    """Raise CalibrationError where the solution cannot be a camera of these points."""
    diagonal = float(np.hypot(result.camera.height, result.camera.width))
    if not result.rms <= _LARGEST_RMS * diagonal:
        worst = max(result.per_view(), key=lambda row: row["rms"])
        raise CalibrationError(
            f"No camera sees the points where they were observed: {result.rms:.3g} pixels rms are left, most in image "
            f"{worst['view']} ({worst['rms']:.3g}); check that all images are of one camera, the order of the points, "
            "known motions, and free the distortion."
        )
    share = float(result.inliers.sum()) / float(result.errors.isfinite().sum())
    if share < 0.5:
        raise CalibrationError(
            f"Only {share:.0%} of the observations agree on one camera: check the order of the points, that all images "
            "are of one camera, and free the distortion."
        )
    distance = float(result.camera.source_to_detector)
    depths = [float((pose.inverse().transform(points))[:, 2].mean()) for pose in result.poses]
    if min(depths) < _CLOSEST * distance:
        raise CalibrationError(
            f"The points would lie {min(depths):.3g} mm from the source (SDD {distance:.4g} mm): are they in another "
            "unit? Give them in millimetres."
        )
    if max(depths) > distance:
        raise CalibrationError(
            f"The points would lie behind the detector ({max(depths):.4g} mm from the source, SDD {distance:.4g} mm): "
            "check their unit (mm), the pixel size and the SDD that the camera starts from."
        )


def warn_undetermined(result: CalibrationResult) -> None:
    """One warning that names what rests on its prior."""
    if not result.undetermined:
        return
    says = ", ".join(
        f"{name} (deviation {result.deviations[name]:.3g} after, {result.prior_deviations[name]:.3g} before)"
        for name in result.undetermined
    )
    warnings.warn(
        f"The images do not determine {says}: add images from other directions or of a deeper phantom, fix it, or give "
        "it a prior that you trust (SDD and pixel size only act as their ratio).",
        DiffDRRWarning,
        stacklevel=3,
    )
