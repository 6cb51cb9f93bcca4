"""pose_from_landmarks against known poses, OpenCV's numbers and wrong input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from DiffDRRCore.errors import RegistrationError
from DiffDRRCore.geometry import Camera, Pose, project
from DiffDRRCore.geometry.converters import from_opencv
from DiffDRRCore.registration.landmarks import landmark_residuals, pose_from_landmarks
from DiffDRRCore.registration.landmarks.p3p import solve_p3p

ANATOMY = np.array(
    [
        [10.0, -40.0, 120.0],
        [85.0, 15.0, 60.0],
        [-70.0, 30.0, 90.0],
        [20.0, -65.0, -30.0],
        [-45.0, 50.0, 10.0],
        [60.0, -10.0, -80.0],
        [0.0, 35.0, 40.0],
        [-90.0, -25.0, -15.0],
        [35.0, 70.0, 100.0],
        [-20.0, -55.0, 65.0],
    ]
)
NARROW = (0.0, 0.0, 800.0)


def camera_pose(rotvec, translation) -> Pose:
    """camera_to_world of a world_to_camera rotation vector and translation, by SciPy."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_rotvec(rotvec).as_matrix()
    matrix[:3, 3] = translation
    return Pose(np.linalg.inv(matrix))


def pinhole(K: np.ndarray, pose: Pose, points: np.ndarray) -> np.ndarray:
    """Pixels by the pinhole formula, without the package's own projection."""
    local = (points - pose.translation.numpy()) @ pose.rotation.numpy()
    pixels = local @ K.T
    return pixels[:, :2] / pixels[:, 2:]


def assert_same_pose(found: Pose, expected: Pose, tolerance: float) -> None:
    np.testing.assert_allclose(found.matrix, expected.matrix, rtol=0, atol=tolerance)


CAMERAS = {
    "square pixels": np.array([[3400.0, 0, 511.5], [0, 3400.0, 383.5], [0, 0, 1]]),
    "non-square, off-centre": np.array([[1700.0, 0, 210.0], [0, 3400.0, 590.0], [0, 0, 1]]),
    "seen from the detector": np.array([[-3400.0, 0, 511.5], [0, 3400.0, 383.5], [0, 0, 1]]),
    "skew": np.array([[-3400.0, 12.5, 511.5], [0, 3300.0, 383.5], [0, 0, 1]]),
}
POSE = camera_pose([0.4, -1.1, 0.7], [12.0, -30.0, 700.0])


def make_camera(K: np.ndarray) -> Camera:
    return Camera.from_intrinsics(K, 768, 1024, source_to_detector=1020.0)


@pytest.mark.parametrize("K", CAMERAS.values(), ids=CAMERAS.keys())
@pytest.mark.parametrize("count", [4, 5, 10])
def test_exact_points_give_the_pose(K, count):
    points = ANATOMY[:count]
    fit = pose_from_landmarks(points, pinhole(K, POSE, points), make_camera(K))
    assert_same_pose(fit.pose, POSE, 1e-6)
    assert bool(fit.inliers.all())
    assert fit.rms < 1e-6


@settings(max_examples=30, deadline=None)
@given(
    rotvec=st.tuples(*[st.floats(-3, 3)] * 3),
    shift=st.tuples(st.floats(-80, 80), st.floats(-80, 80), st.floats(450, 1200)),
)
def test_any_pose_is_found(rotvec, shift):
    pose = camera_pose(rotvec, shift)
    K = CAMERAS["non-square, off-centre"]
    fit = pose_from_landmarks(ANATOMY[:6], pinhole(K, pose, ANATOMY[:6]), make_camera(K))
    assert_same_pose(fit.pose, pose, 1e-5)


@pytest.mark.parametrize(
    "flat",
    [
        np.array([[-50.0, -50, 0], [50, -50, 0], [50, 50, 0], [-50, 50, 0]]),
        np.array([[-60.0, -40, 10], [55, -50, 10], [20, 70, 10], [-30, 45, 10], [5, 10, 10]]),
    ],
    ids=["square", "five"],
)
@pytest.mark.parametrize("rotvec", [(0.0, 0.0, 0.0), (0.5, -0.3, 0.2)])
def test_coplanar_points(flat, rotvec):
    pose = camera_pose(rotvec, NARROW)
    K = CAMERAS["square pixels"]
    fit = pose_from_landmarks(flat, pinhole(K, pose, flat), make_camera(K))
    assert_same_pose(fit.pose, pose, 1e-5)


def test_noise_moves_the_pose_by_what_the_least_squares_covariance_says():
    K, points = CAMERAS["square pixels"], ANATOMY
    camera, sigma, generator = make_camera(K), 0.5, np.random.default_rng(0)
    exact = pinhole(K, POSE, points)
    xi = torch.zeros(6, dtype=torch.float64)
    about = torch.from_numpy(points.mean(0))
    jacobian = torch.func.jacfwd(lambda v: landmark_residuals(camera, POSE.retract(v, about), points, exact))(xi)
    information = jacobian.T @ jacobian / sigma**2
    distances = []
    for _ in range(12):
        fit = pose_from_landmarks(points, exact + generator.normal(0, sigma, exact.shape), camera)
        local = Pose(torch.eye(4, dtype=torch.float64)).retract(xi)
        motion = fit.pose @ POSE.inverse()
        shift = torch.eye(4, dtype=torch.float64)
        shift[:3, 3] = about
        step = (local @ Pose(shift).inverse() @ motion @ Pose(shift)).log()
        distances.append(float(step @ information @ step))
    # Chi-squared with 6 degrees of freedom: mean 6, and the mean of 12 lies within 2..12 but for one case in 10^4.
    assert 2 < np.mean(distances) < 12


@pytest.mark.parametrize("seed", range(4))
def test_a_third_of_wrong_clicks_is_left_out(seed):
    K, generator = CAMERAS["seen from the detector"], np.random.default_rng(seed)
    clicked = pinhole(K, POSE, ANATOMY) + generator.normal(0, 0.3, (10, 2))
    wrong = generator.choice(10, 3, replace=False)
    clicked[wrong] += generator.choice([-1, 1], (3, 2)) * generator.uniform(60, 300, (3, 2))
    fit = pose_from_landmarks(ANATOMY, clicked, make_camera(K))
    expected = np.ones(10, dtype=bool)
    expected[wrong] = False
    assert fit.inliers.tolist() == expected.tolist()
    assert fit.rms < 1.0
    assert float(fit.errors[torch.from_numpy(~expected)].min()) > 50
    moved = (fit.pose.inverse().transform(ANATOMY) - POSE.inverse().transform(ANATOMY))[:, :2]
    assert float(moved.norm(dim=-1).max()) < 1.0  # mm, in the image plane


def test_many_landmarks_take_seeded_triples():
    generator = np.random.default_rng(5)
    points = generator.uniform(-90, 90, (40, 3))
    K = CAMERAS["square pixels"]
    clicked = pinhole(K, POSE, points)
    clicked[:12] += generator.uniform(50, 100, (12, 2))
    fits = [pose_from_landmarks(points, clicked, make_camera(K), seed=3) for _ in range(2)]
    assert_same_pose(fits[0].pose, POSE, 1e-6)
    assert torch.equal(fits[0].pose.matrix, fits[1].pose.matrix)
    assert fits[0].inliers.tolist() == [False] * 12 + [True] * 28


def test_three_points_take_the_solution_nearest_the_prior():
    """opencv-python-headless 5.0.0.93, solveP3P: both poses see the three points on the same pixels."""
    points = np.array([[30.0, -20, 50], [-60, 45, -25], [12.5, 80, -70]])
    K = np.array([[640.0, 0, 201.25], [0, 810.0, 98.5], [0, 0, 1]])
    pixels = np.array([[201.609776918, 42.317459174], [186.848799665, 97.56916754], [206.408472154, 167.461134738]])
    camera = make_camera(K)
    solutions = [
        camera_pose([0.4, -1.1, 0.7], [12.0, -30.0, 900.0]),
        camera_pose([1.1867186, 1.246022302, -0.360707629], [-21.382873375, -18.459519432, 870.839090858]),
    ]
    for wanted in solutions:
        rough = wanted.retract([0.1, -0.15, 0.1, 8.0, -10.0, 12.0], about=[0.0, 0.0, 0.0])
        fit = pose_from_landmarks(points, pixels, camera, prior=rough)
        assert_same_pose(fit.pose, wanted, 2e-4)
        assert fit.rms < 1e-6
        assert fit.inliers.tolist() == [True] * 3


def test_noisy_points_against_opencv():
    """opencv-python-headless 5.0.0.93: solvePnP(SOLVEPNP_ITERATIVE), then solvePnPRefineLM to 1e-12."""
    points = np.array([[0.0, 0, 0], [30, -20, 50], [-60, 45, -25], [12.5, 80, -70], [55, -5, 33], [-20, -60, 10]])
    pixels = [
        [211.8243, 68.9443],
        [202.0279, 41.7497],
        [186.3962, 97.3536],
        [204.3885, 167.2292],
        [205.9697, 71.0263],
        [231.1829, 19.9373],
    ]
    K = np.array([[640.0, 0, 201.25], [0, 810.0, 98.5], [0, 0, 1]])
    R = Rotation.from_rotvec([0.390716357, -1.093873094, 0.725874547]).as_matrix()
    camera, expected = from_opencv(
        K, R, [11.904083841, -29.922145674, 892.362964591], 200, 400, source_to_detector=1020.0
    )
    fit = pose_from_landmarks(points, pixels, camera, inlier_threshold=10.0)
    np.testing.assert_allclose(fit.pose.rotation, expected.rotation, rtol=0, atol=1e-6)
    np.testing.assert_allclose(fit.pose.translation, expected.translation, rtol=0, atol=1e-3)
    assert fit.rms == pytest.approx(1.876283220453502, abs=1e-6)


def test_p3p_finds_the_truth_among_its_solutions():
    generator = np.random.default_rng(1)
    count = 300
    points = generator.uniform(-100, 100, (count, 3, 3))
    R = Rotation.random(count, random_state=2).as_matrix()
    t = np.concatenate([generator.uniform(-150, 150, (count, 2)), generator.uniform(400, 1500, (count, 1))], axis=1)
    seen = np.einsum("tij,tkj->tki", R, points) + t[:, None]
    motions, triple = solve_p3p(points, seen / np.linalg.norm(seen, axis=-1, keepdims=True))
    local = np.einsum("sij,skj->ski", motions[:, :3, :3], points[triple]) + motions[:, None, :3, 3]
    cosines = (local * seen[triple]).sum(-1) / np.linalg.norm(local, axis=-1) / np.linalg.norm(seen[triple], axis=-1)
    assert cosines.min() > 1 - 1e-8  # every solution sees the points in their directions, and in front
    error = np.full(count, np.inf)
    np.minimum.at(error, triple, np.abs(local - seen[triple]).max(axis=(1, 2)))
    assert error.max() < 1e-5
    assert np.bincount(triple).max() <= 4


@pytest.mark.parametrize("distance", [200.0, 800.0])
def test_p3p_of_symmetric_triangles(distance):
    """Grunert's quartic divides by zero here."""
    triangle = np.array([[100.0, 0, 0], [-50, 75**0.5 * 10, 0], [-50, -(75**0.5) * 10, 0]])
    seen = triangle + np.array([0, 0, distance])
    motions, _ = solve_p3p(triangle[None], (seen / np.linalg.norm(seen, axis=-1, keepdims=True))[None])
    truth = np.eye(4)
    truth[2, 3] = distance
    assert np.abs(motions - truth).max(axis=(1, 2)).min() < 1e-9


def test_residuals_and_their_derivative():
    camera = Camera(200, 300, (0.5, 0.4), 1000.0, view_from="detector")
    pose = POSE
    target = np.arange(20.0).reshape(10, 2)
    residuals = landmark_residuals(camera, pose, ANATOMY, target)
    np.testing.assert_allclose(residuals, (project(camera, pose, ANATOMY)[0].numpy() - target).ravel(), atol=1e-12)
    batch = Pose(torch.stack([pose.matrix, pose.matrix]))
    assert landmark_residuals(camera, batch, ANATOMY, target).shape == (2, 20)

    def moved(xi):
        return landmark_residuals(camera, pose.retract(xi, about=[5.0, 6.0, 7.0]), ANATOMY, target)

    jacobian = torch.func.jacrev(moved)(torch.zeros(6, dtype=torch.float64))
    for column, step in zip(jacobian.T, 1e-5 * torch.eye(6, dtype=torch.float64), strict=True):
        np.testing.assert_allclose(column, (moved(step) - moved(-step)) / 2e-5, rtol=1e-6, atol=1e-6)


def test_camera_with_gradients_and_float32_input():
    K = torch.tensor(CAMERAS["square pixels"], requires_grad=True)
    pixels = pinhole(CAMERAS["square pixels"], POSE, ANATOMY).astype(np.float32)
    fit = pose_from_landmarks(ANATOMY.astype(np.float32), torch.from_numpy(pixels), make_camera(K))
    assert_same_pose(fit.pose, POSE, 1e-2)


LINE = np.outer(np.arange(5.0), [10.0, 20.0, -5.0])
NAN_POINTS = np.where(np.arange(30).reshape(10, 3) == 4, np.nan, ANATOMY)
PIXELS = pinhole(CAMERAS["square pixels"], POSE, ANATOMY)


@pytest.mark.parametrize(
    ("points", "pixels", "options", "message"),
    [
        (ANATOMY[:2], PIXELS[:2], {"prior": POSE}, "four different landmarks"),
        (ANATOMY[:3], PIXELS[:3], {}, "give a prior"),
        (ANATOMY[[0, 1, 2, 2]], PIXELS[[0, 1, 2, 2]], {}, "give a prior"),
        (ANATOMY[:5], PIXELS[:4], {}, "5 landmarks in 3D but 4"),
        (NAN_POINTS, PIXELS, {}, "not a finite number"),
        (ANATOMY, np.full((10, 2), np.inf), {}, "not a finite number"),
        (LINE, PIXELS[:5], {}, "on one line"),
        (PIXELS, PIXELS, {}, "Landmarks are"),
        (ANATOMY[:5], PIXELS[[3, 0, 1, 4, 2]], {}, "agree on a pose"),
        (ANATOMY, PIXELS, {"inlier_threshold": 0.0}, "must be positive"),
    ],
)
def test_bad_input_is_told_in_one_sentence(points, pixels, options, message):
    with pytest.raises(RegistrationError, match=message):
        pose_from_landmarks(points, pixels, make_camera(CAMERAS["square pixels"]), **options)


def test_cameras_that_cannot_be_fitted():
    parallel = Camera.parallel_beam(100, 100, (1.0, 1.0), 1000.0)
    with pytest.raises(RegistrationError, match="parallel-beam"):
        pose_from_landmarks(ANATOMY, PIXELS, parallel)
    batch = Camera(100, 100, (1.0, 1.0), torch.tensor([1000.0, 1100.0]))
    with pytest.raises(RegistrationError, match="one camera at a time"):
        pose_from_landmarks(ANATOMY, PIXELS, batch)
