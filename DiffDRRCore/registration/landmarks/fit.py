"""The pose from landmarks: points known in the patient and clicked in the X-ray (perspective-n-point)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation
from torch import Tensor

from DiffDRRCore.errors import RegistrationError
from DiffDRRCore.geometry import Camera, Pose, as_tensor, project
from DiffDRRCore.registration.landmarks.p3p import Array, solve_p3p

_MAX_TRIPLES = 2000
_REFINED = 5  # best hypotheses that are refined before one is chosen: flat sets of points have two nearly equal poses
_MAX_ROUNDS = 10
_DETECTOR_TOLERANCE = 5.0  # mm: a landmark seen or clicked 3 mm off in the patient, magnified


@dataclass(frozen=True)
class LandmarkFit:
    """Result of `pose_from_landmarks`.

    Attributes:
        pose: camera_to_world [4, 4], float64.
        inliers: [N] bool, the landmarks that the pose was fitted to.
        errors: [N] pixels, distance of each projected landmark from where it was clicked (infinite behind the source).
        rms: root mean square of the inliers' errors, pixels.
    """

    pose: Pose
    inliers: Tensor
    errors: Tensor
    rms: float


def pose_from_landmarks(
    points_3d,
    points_2d,
    camera: Camera,
    prior: Pose | None = None,
    inlier_threshold: float | None = None,
    seed: int = 0,
) -> LandmarkFit:
    """The camera pose that sees landmarks where they were clicked, wrong clicks left out.

    Every triple of landmarks (a seeded random choice of them beyond 2000) proposes its poses; the proposals with the
    smallest truncated squared error (MSAC: Torr and Zisserman 2000) are refined on their inliers by least squares, and
    the best one wins. At least four landmarks must agree. Three landmarks allow up to four poses: the one that moves
    them least with respect to the camera of `prior` is taken, and nothing tells whether a click was wrong.

    Args:
        points_3d: [N, 3], RAS mm.
        points_2d: [N, 2], pixels (u, v), in the same order.
        camera: a single one; a negative K[0, 0] and skew are fine.
        prior: a rough camera pose, needed for three landmarks and used for them only.
        inlier_threshold: pixels; None is 5 mm on the detector.
        seed: of the random choice of triples.

    Raises:
        RegistrationError: fewer than four landmarks (three with a prior), lists of different length, numbers that are
            not finite, landmarks on one line, no pose on which four landmarks agree, a parallel beam.
    """
    world, clicked = _checked(points_3d, points_2d, prior)
    intrinsics = _intrinsics(camera)
    threshold = _default_threshold(camera) if inlier_threshold is None else float(inlier_threshold)
    if not threshold > 0:
        raise RegistrationError(f"The inlier threshold must be positive (pixels), got {inlier_threshold}.")
    proposals = _proposals(world, clicked, intrinsics, seed)
    if len(world) == 3:
        best = proposals[_nearest(proposals, world, prior)]
        best = _refined(best, world, clicked, intrinsics)
        return _fit(best, np.ones(3, dtype=bool), world, clicked, intrinsics)
    squares = _squared_errors(proposals, world, clicked, intrinsics)
    order = np.argsort(np.minimum(squares, threshold**2).sum(-1), kind="stable")[:_REFINED]
    fits = [_consensus(proposals[k], squares[k] <= threshold**2, world, clicked, intrinsics, threshold) for k in order]
    fits = [fit for fit in fits if fit is not None]
    if not fits:
        raise RegistrationError(
            f"No four landmarks agree on a pose within {threshold:.3g} pixels; check the pairs and the camera, "
            "or raise the inlier threshold."
        )
    return min(fits, key=lambda fit: float(fit.errors.clamp(max=threshold).square().sum()))


def landmark_residuals(camera: Camera, pose: Pose, points_3d, points_2d) -> Tensor:
    """Projected minus clicked, pixels [..., 2 N]: u and v of each landmark in turn. The batch is that of the pose.

    Differentiable in pose, camera and points (autograd, torch.func); NaN for a landmark behind the source.
    """
    projected = project(camera, pose, points_3d)
    residuals = projected - as_tensor(points_2d).to(projected)
    return residuals.reshape(*pose.matrix.shape[:-2], -1)


def _checked(points_3d, points_2d, prior: Pose | None) -> tuple[Array, Array]:
    world = as_tensor(points_3d, torch.float64).detach().cpu().numpy()
    clicked = as_tensor(points_2d, torch.float64).detach().cpu().numpy()
    if world.ndim != 2 or world.shape[1] != 3 or clicked.ndim != 2 or clicked.shape[1] != 2:
        raise RegistrationError(
            f"Landmarks are [N, 3] points and [N, 2] pixels, got {list(world.shape)} and {list(clicked.shape)}."
        )
    if len(world) != len(clicked):
        raise RegistrationError(
            f"{len(world)} landmarks in 3D but {len(clicked)} in the image; pair each with its own."
        )
    if not (np.isfinite(world).all() and np.isfinite(clicked).all()):
        raise RegistrationError("A landmark has a coordinate that is not a finite number; place it or leave it out.")
    _check_number(len(np.unique(world, axis=0)), prior)
    spread = np.linalg.svd(world - world.mean(0), compute_uv=False)
    if spread[1] <= 1e-6 * spread[0]:
        raise RegistrationError("The landmarks lie on one line, about which the pose could turn; add one beside it.")
    return world, clicked


def _check_number(count: int, prior: Pose | None) -> None:
    if count < 3:
        raise RegistrationError(f"A pose needs four different landmarks, or three and a prior pose; got {count}.")
    if count == 3 and prior is None:
        raise RegistrationError("Three landmarks allow up to four poses: add a fourth one, or give a prior pose.")
    if prior is not None and prior.matrix.ndim != 2:
        raise RegistrationError("The prior is one pose, not a batch.")


def _intrinsics(camera: Camera) -> Array:
    if camera.parallel:
        raise RegistrationError(
            "Landmarks cannot give the pose of a parallel-beam camera: the image does not depend on depth."
        )
    if camera.K.ndim != 2:
        raise RegistrationError("Landmarks are fitted one camera at a time, not to a batch of cameras.")
    return camera.K.detach().to("cpu", torch.float64).numpy()


def _default_threshold(camera: Camera) -> float:
    return _DETECTOR_TOLERANCE / float(camera.pixel_spacing.detach().max())


def _proposals(world: Array, clicked: Array, intrinsics: Array, seed: int) -> Array:
    """world_to_camera [S, 4, 4] of all poses that three of the landmarks allow."""
    triples = _triples(world, seed)
    pixels = np.concatenate([clicked, np.ones((len(clicked), 1))], axis=1)
    bearings = pixels @ np.linalg.inv(intrinsics).T
    bearings /= np.linalg.norm(bearings, axis=1, keepdims=True)
    proposals, _ = solve_p3p(world[triples], bearings[triples])
    if len(proposals) == 0:
        raise RegistrationError(
            "No camera pose sees the landmarks where they were clicked; check the pairs and the camera."
        )
    return proposals


def _triples(world: Array, seed: int) -> NDArray[np.int64]:
    """Indices [T, 3] of triples that span a plane."""
    count = len(world)
    if math.comb(count, 3) <= _MAX_TRIPLES:
        triples = np.array(list(combinations(range(count), 3)))
    else:
        generator = np.random.default_rng(seed)
        triples = np.array([generator.choice(count, 3, replace=False) for _ in range(_MAX_TRIPLES)])
    sides = world[triples[:, 1:]] - world[triples[:, :1]]
    area = np.linalg.norm(np.cross(sides[:, 0], sides[:, 1]), axis=-1)
    return triples[area > 1e-6 * (sides**2).sum((-2, -1))]


def _pixels(local: Array, intrinsics: Array) -> Array:
    """[..., 2] of camera-frame points [..., 3]; NaN at or behind the source."""
    depth = np.where(local[..., 2:] > 0, local[..., 2:], np.nan)
    return (local / depth @ intrinsics.T)[..., :2]


def _squared_errors(world_to_camera: Array, world: Array, clicked: Array, intrinsics: Array) -> Array:
    """[S, N] squared pixels; infinite for points at or behind the source."""
    local = world @ world_to_camera[:, :3, :3].transpose(0, 2, 1) + world_to_camera[:, None, :3, 3]
    squares = ((_pixels(local, intrinsics) - clicked) ** 2).sum(-1)
    return np.where(np.isnan(squares), np.inf, squares)


def _nearest(proposals: Array, world: Array, prior: Pose) -> int:
    """The proposal that moves the landmarks least from where `prior` puts them in the camera frame (mm)."""
    expected = prior.detach().inverse().transform(world).cpu().numpy()
    local = world @ proposals[:, :3, :3].transpose(0, 2, 1) + proposals[:, None, :3, 3]
    return int(np.argmin(((local - expected) ** 2).sum((-2, -1))))


def _consensus(
    proposal: Array, inliers: NDArray[np.bool_], world: Array, clicked: Array, intrinsics: Array, threshold: float
) -> LandmarkFit | None:
    """Refine on the inliers and choose them anew until they stay; None where fewer than four are left."""
    for _ in range(_MAX_ROUNDS):
        if len(np.unique(world[inliers], axis=0)) < 4:
            return None
        proposal = _refined(proposal, world[inliers], clicked[inliers], intrinsics)
        fit = _fit(proposal, inliers, world, clicked, intrinsics)
        kept, inliers = inliers, fit.errors.numpy() <= threshold
        if np.array_equal(kept, inliers):
            break
    return fit


def _refined(world_to_camera: Array, world: Array, clicked: Array, intrinsics: Array) -> Array:
    """world_to_camera [4, 4] of least squared reprojection error; steps are motions about the points' centroid."""
    centroid = world.mean(0)
    arms = (world - centroid) @ world_to_camera[:3, :3].T
    pivot = world_to_camera[:3, :3] @ centroid + world_to_camera[:3, 3]

    def residuals(xi: Array) -> Array:
        return (_pixels(Rotation.from_rotvec(xi[:3]).apply(arms) + pivot + xi[3:], intrinsics) - clicked).ravel()

    xi = least_squares(
        residuals, np.zeros(6), jac="3-point", x_scale="jac", xtol=1e-12, ftol=1e-12, gtol=1e-12, max_nfev=100
    ).x
    rotation = Rotation.from_rotvec(xi[:3]).as_matrix() @ world_to_camera[:3, :3]
    refined = np.eye(4)
    refined[:3, :3] = rotation
    refined[:3, 3] = pivot + xi[3:] - rotation @ centroid
    return refined


def _fit(
    world_to_camera: Array, inliers: NDArray[np.bool_], world: Array, clicked: Array, intrinsics: Array
) -> LandmarkFit:
    squares = _squared_errors(world_to_camera[None], world, clicked, intrinsics)[0]
    rms = float(np.sqrt(squares[inliers].mean()))
    errors = torch.from_numpy(np.sqrt(squares))
    return LandmarkFit(Pose(world_to_camera).inverse(), torch.from_numpy(inliers.copy()), errors, rms)
