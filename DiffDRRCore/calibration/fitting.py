"""The least squares of a calibration: priors, robust choice of points, noise, and what the solution says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import least_squares

from DiffDRRCore.calibration.bundle import INTRINSICS, Array, Bundle
from DiffDRRCore.calibration.checks import check_result
from DiffDRRCore.calibration.result import CalibrationResult
from DiffDRRCore.errors import CalibrationError
from DiffDRRCore.geometry import Camera, Pose
from DiffDRRCore.imaging.distortion import Distortion, RadialDistortion
from DiffDRRCore.imaging.distortion_grid import GridDistortion

PRIORS = {
    "source_to_detector": 200.0,
    "principal_point": 0.25,
    "pixel_size": 0.2,
    "pixel_ratio": 0.05,
    "distortion": 0.3,
    "tangential": 0.05,
}
_SHIFT = 0.1  # of the image's diagonal: deviation of a grid's control points
_BENDING = 0.01  # of the diagonal: deviation of their second differences
_GROSS = 0.02  # of the diagonal: what is farther off at the start, and than most, is not fitted at first
_ROUNDS = 8
_MAD_TO_DEVIATION = 1.4826
_LEAST_NOISE = 1e-7  # pixels: what rounding leaves


class _Solution(NamedTuple):
    x: Array
    information: Array  # inverse covariance, priors included
    noise: float
    converged: bool


def fitted(
    points: Array,
    observed: Array,
    camera: Camera,
    distortion: Distortion | None,
    free: Sequence[str],
    poses: Sequence[Pose],
    names: Sequence[str],
    priors: Mapping[str, float] | None = None,
    motions: Sequence[Pose] | None = None,
    cut: float | None = None,
) -> CalibrationResult:
    """What `calibrate` solves once its input is checked: points [N, 3], pixels [V, N, 2], a start of every pose.

    Raises CalibrationError for fewer numbers than unknowns, and where no camera sees the points as they were observed.
    """
    bundle = _bundle(points, observed, camera, distortion, free, poses, motions)
    rows = _prior_rows(bundle, priors or {})
    _check_count(bundle, observed)
    solution, kept = _robust(bundle, observed, rows, cut)
    result = _result(bundle, observed, rows, solution, kept, names)
    check_result(result, points)
    return result


def _bundle(points, observed, camera, distortion, free, poses, motions) -> Bundle:
    world_to_camera = np.stack([pose.inverse().matrix.double().numpy() for pose in poses])
    if "poses" not in free:
        return Bundle(points, camera, distortion, free, world_to_camera, np.eye(4)[None])
    if motions is None:
        return Bundle(points, camera, distortion, free, np.tile(np.eye(4), (len(poses), 1, 1)), world_to_camera)
    to_camera = np.stack([pose.inverse().matrix.detach().cpu().double().numpy() for pose in motions])
    starts = np.linalg.inv(to_camera) @ world_to_camera
    costs = []
    for start in starts:
        uv, _ = Bundle(points, camera, distortion, (), to_camera, start[None]).predict(np.zeros(0))
        costs.append(np.nanmedian(np.linalg.norm(uv - observed, axis=-1)))
    return Bundle(points, camera, distortion, free, to_camera, starts[int(np.argmin(costs))][None])


def _prior_rows(bundle: Bundle, priors: Mapping[str, float]) -> tuple[Array, Array]:
    """(A [R, size], b [R]): the priors' residuals are A x + b, in deviations."""
    height, width = bundle.camera.height, bundle.camera.width
    scales = {"principal_point": width, "pixel_size": bundle.start["pixel_size"]}
    rows = np.zeros((len(bundle.names), bundle.size))
    for k, name in enumerate(bundle.names):
        part = next(part for part, names in INTRINSICS.items() if name in names)
        rows[k, k] = 1 / priors.get(part, PRIORS[part] * scales.get(part, 1.0))
    offsets = np.zeros(len(rows))
    if not len(bundle.coefficients):
        return rows, offsets
    start = bundle.distortion.coefficients.detach().numpy()
    if isinstance(bundle.distortion, GridDistortion):
        diagonal = float(np.hypot(height, width))
        bending = bundle.distortion.differences().numpy() / priors.get("distortion", _BENDING * diagonal)
        on_all = np.concatenate([bending, np.eye(len(start)) / (_SHIFT * diagonal)])
        own, by_start = on_all @ bundle.basis, on_all @ start
    else:
        groups = {index: name for name, indices in bundle.distortion.groups.items() for index in indices}
        parts = [groups[index] for index in bundle.coefficients]
        own, by_start = np.diag([1 / priors.get(part, PRIORS[part]) for part in parts]), np.zeros(len(parts))
    block = np.zeros((len(own), bundle.size))
    block[:, len(bundle.names) : bundle.shared] = own
    return np.concatenate([rows, block]), np.concatenate([offsets, by_start])


def _check_count(bundle: Bundle, observed: Array) -> None:
    numbers = int(np.isfinite(observed).sum())
    if numbers < bundle.size:
        one = len(observed) == 1
        raise CalibrationError(
            f"{len(observed)} image{'' if one else 's'} with {numbers // 2} points in all give{'s' if one else ''} "
            f"{numbers} numbers for {bundle.size} unknowns: add images or points, or free less."
        )


def _robust(bundle: Bundle, observed: Array, rows, cut: float | None) -> tuple[_Solution, Array]:
    """Solve, estimate the noise, leave out what is far off, until nothing changes; the points that were kept."""
    seen = np.isfinite(observed).all(-1)
    noise, x = 0.3, np.zeros(bundle.size)
    far = np.linalg.norm(bundle.predict(x)[0] - observed, axis=-1)
    gross = 4 * np.nanmedian(far, axis=1, keepdims=True) + _GROSS * np.hypot(bundle.camera.height, bundle.camera.width)
    kept = seen if cut is None else seen & (np.nan_to_num(far, nan=np.inf) <= gross)
    for _ in range(_ROUNDS):
        solution = _solved(bundle, observed, kept, rows, noise, x)
        uv, _ = bundle.predict(solution.x)
        misses = np.abs(uv - observed)
        robust = max(_MAD_TO_DEVIATION * float(np.median(misses[kept])), _LEAST_NOISE)
        before, steady = kept, abs(solution.noise - noise) <= 0.05 * noise
        if cut is not None:
            kept = seen & (np.nan_to_num(misses, nan=np.inf).max(-1) <= cut * max(robust, solution.noise * 0.5))
        noise, x = solution.noise, solution.x
        if np.array_equal(kept, before) and (steady or noise <= _LEAST_NOISE):
            break
    return solution, before


def _solved(bundle: Bundle, observed: Array, kept: Array, rows, noise: float, x: Array) -> _Solution:
    prior, offset = rows
    last: dict[bytes, tuple[Array, Array]] = {}

    def both(x: Array) -> tuple[Array, Array]:
        key = x.tobytes()
        if key not in last:
            last.clear()
            uv, jacobian = bundle.predict(x)
            last[key] = (uv[kept] - observed[kept]).ravel() / noise, jacobian[kept].reshape(-1, bundle.size) / noise
        return last[key]

    fit = least_squares(
        lambda x: np.concatenate([both(x)[0], prior @ x + offset]),
        x,
        lambda x: np.concatenate([both(x)[1], prior]),
        method="lm" if 2 * kept.sum() + len(prior) >= bundle.size else "trf",
        x_scale="jac",
        xtol=1e-12,
        ftol=1e-12,
        gtol=1e-12,
        max_nfev=300,
    )
    residual, jacobian = both(fit.x)
    data = jacobian.T @ jacobian
    information = data + prior.T @ prior
    used = float(np.trace(np.linalg.lstsq(information, data, rcond=None)[0]))
    rest = max(residual.size - used, 1.0)
    estimate = max(noise * float(np.sqrt(residual @ residual / rest)), _LEAST_NOISE)
    information = data * (noise / estimate) ** 2 + prior.T @ prior
    return _Solution(fit.x, information, estimate, fit.status > 0)


def _result(bundle: Bundle, observed: Array, rows, solution: _Solution, kept: Array, views) -> CalibrationResult:
    covariance = np.linalg.pinv(_symmetric(solution.information), hermitian=True)
    own = len(bundle.names)
    names, shown = list(bundle.names), list(range(own))
    if isinstance(bundle.distortion, RadialDistortion):
        names += [("k1", "k2", "p1", "p2")[index] for index in bundle.coefficients]
        shown += range(own, bundle.shared)
    deviations = {name: 1 / float(np.linalg.norm(rows[0][:, k])) for name, k in zip(names, shown, strict=True)}
    covariance = covariance[np.ix_(shown, shown)]
    after = np.sqrt(np.diag(covariance))
    loose = [name for name, one in zip(names, after, strict=True) if one > 0.5 * deviations[name]]
    uv, _ = bundle.predict(solution.x)
    return CalibrationResult(
        bundle.camera_of(solution.x),
        bundle.distortion_of(solution.x),
        bundle.poses_of(solution.x),
        torch.from_numpy(uv - observed),
        torch.from_numpy(kept.copy()),
        names,
        covariance,
        deviations,
        solution.noise,
        loose,
        solution.converged,
        list(views),
    )


def _symmetric(matrix: Array) -> Array:
    return (matrix + matrix.T) / 2
