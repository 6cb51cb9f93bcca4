"""Triangulation against figures worked out by hand, SciPy's least squares and the scatter of simulated noise."""

from __future__ import annotations

import json
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import least_squares, linear_sum_assignment

from DiffDRRCore import Camera, Pose, project
from DiffDRRCore.errors import GeometryError
from DiffDRRCore.geometry import stack_poses, triangulate
from DiffDRRCore.geometry.converters import from_opencv
from Testing.core import samples
from Testing.core.samples import seeds

# Two cameras of focal length 1000 px, principal point (0, 0): the first at z = -500 along +z with x right and y down,
# the second at x = -500 along +x with its image's x along -z and its y along +y.
FRONT = Pose([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, -500], [0, 0, 0, 1]])
SIDE = Pose([[0.0, 0, 1, -500], [0, 1, 0, 0], [-1, 0, 0, 0], [0, 0, 0, 1]])


def by_hand(view_from: str = "source") -> Camera:
    return Camera(100, 100, (1.0, 1.0), 1000.0, principal_point=(0.0, 0.0), view_from=view_from)


def ring(rng: np.random.Generator, count: int, view_from=("source", "detector")) -> tuple[list, Pose]:
    """Cameras that look at the origin from about 700 mm, with non-square pixels."""
    cameras = [samples.camera(rng, view_from[number % 2]) for number in range(count)]
    return cameras, stack_poses([samples.looking_at(rng, (0.0, 0.0, 0.0), 700.0) for _ in range(count)])


def seen(cameras, poses, points) -> torch.Tensor:
    return torch.cat([project(camera, pose, points) for camera, pose in zip(cameras, poses, strict=True)])


def test_two_orthogonal_views_by_hand():
    """(10, 20, 30): u = 1000 * 10 / 530 from the front, at depth 530, and -1000 * 30 / 510 from the side."""
    pixels = [[[10000 / 530, 20000 / 530]], [[-30000 / 510, 20000 / 510]]]
    result = triangulate(by_hand(), [FRONT, SIDE], pixels)
    assert torch.allclose(result.points, torch.tensor([[10.0, 20.0, 30.0]], dtype=torch.float64), atol=1e-9)
    assert result.residuals_px.shape == (2, 1)
    assert float(result.residuals_px.max()) < 1e-9
    assert float(result.gap_mm) < 1e-9


def test_rays_that_miss_each_other_by_hand():
    """v = +2 px in the front view, -2 in the side view: at depth 500 the rays pass 1 mm above and below the origin."""
    result = triangulate(by_hand(), [FRONT, SIDE], [[[0.0, 2.0]], [[0.0, -2.0]]])
    assert float(result.points.abs().max()) < 1e-9
    assert torch.allclose(result.residuals_px, torch.full((2, 1), 2.0, dtype=torch.float64))
    assert float(result.gap_mm) == pytest.approx(2.0, rel=1e-4)  # the rays are not quite level there: less by 1.6e-5
    assert result.noise_px == pytest.approx(np.sqrt(8.0))  # 2^2 + 2^2, four coordinates less three unknowns


def test_covariance_of_orthogonal_views_by_hand():
    """At the origin 1 px is 0.5 mm: x from one view, z from the other, y from both."""
    result = triangulate(by_hand(), [FRONT, SIDE], torch.zeros(2, 1, 2))
    assert torch.allclose(result.covariance[0], torch.diag(torch.tensor([0.25, 0.125, 0.25], dtype=torch.float64)))
    weighted = triangulate(by_hand(), [FRONT, SIDE], torch.zeros(2, 1, 2), weights=[4.0, 1.0])
    assert torch.allclose(weighted.covariance[0], torch.diag(torch.tensor([1 / 16, 1 / 20, 0.25]).double()))


def test_a_weight_pulls_the_point_by_hand():
    """v = 2 with weight 3 and v = -2 with weight 1, at one depth: their mean is v = 1, which is 0.5 mm."""
    result = triangulate(by_hand(), [FRONT, SIDE], [[[0.0, 2.0]], [[0.0, -2.0]]], weights=[3.0, 1.0])
    assert float(result.points[0, 1]) == pytest.approx(0.5, abs=1e-5)


@given(seed=seeds, count=st.integers(2, 4))
@settings(max_examples=40, deadline=None)
def test_exact_pixels_give_the_points_back(seed, count):
    """Non-square pixels, images from both sides, points anywhere about the centre, one view without some of them."""
    rng = np.random.default_rng(seed)
    cameras, poses = ring(rng, count)
    points = rng.normal(0, 60, (5, 3))
    pixels = seen(cameras, poses, points)
    if count > 2:
        pixels[0, 1::2] = torch.nan
    result = triangulate(cameras, poses, pixels)
    assert np.allclose(result.points, points, atol=1e-6)
    assert torch.equal(torch.isnan(result.residuals_px), torch.isnan(pixels[..., 0]))
    assert float(result.residuals_px.nan_to_num().max()) < 1e-6


def test_parallel_and_perspective_views_mix():
    rng = np.random.default_rng(3)
    cameras, poses = ring(rng, 2)
    cameras[0] = Camera.parallel_beam(80, 90, (0.5, 0.7), 1000.0, view_from="detector")
    points = rng.normal(0, 60, (4, 3))
    assert np.allclose(triangulate(cameras, poses, seen(cameras, poses, points)).points, points, atol=1e-7)


def test_covariance_of_parallel_views_by_hand():
    """Rows 0.5 mm and columns 0.2 mm apart wherever the point lies: x and z from the columns of one view each, y from
    the rows of both."""
    camera = Camera.parallel_beam(80, 90, (0.5, 0.2), 1000.0, principal_point=(0.0, 0.0))
    result = triangulate(camera, [FRONT, SIDE], torch.tensor([[[50.0, 20.0]], [[-150.0, 20.0]]]))
    assert np.allclose(result.points[0], [10, 10, 30])
    assert np.allclose(result.covariance[0], np.diag([0.04, 0.125, 0.04]))


@pytest.mark.parametrize("seed", range(5))
def test_the_least_squares_of_scipy(seed):
    """The minimum of the weighted reprojection error, which the point nearest to the rays is not."""
    rng = np.random.default_rng(seed)
    cameras, poses = ring(rng, 3)
    pixels = seen(cameras, poses, rng.normal(0, 60, (1, 3))) + torch.from_numpy(rng.normal(0, 3.0, (3, 1, 2)))
    weights = rng.uniform(0.2, 4.0, 3)

    def misses(x):
        return ((seen(cameras, poses, x[None]) - pixels).numpy() * np.sqrt(weights)[:, None, None]).ravel()

    best = least_squares(misses, np.zeros(3), xtol=1e-14, ftol=1e-14, gtol=1e-14)
    result = triangulate(cameras, poses, pixels, weights)
    assert np.allclose(result.points[0], best.x, atol=1e-4)
    assert np.allclose(result.covariance[0], np.linalg.inv(best.jac.T @ best.jac), rtol=1e-3)
    assert result.noise_px == pytest.approx(np.sqrt(2 * best.cost / 3), rel=1e-6)


def test_covariance_is_the_scatter_of_simulated_noise():
    """8000 draws of 0.4 px: variances to 5 %, over four standard errors; Mahalanobis distances are chi-square of 3."""
    rng = np.random.default_rng(11)
    cameras, poses = ring(rng, 2)
    truth, draws, sigma = np.array([[12.0, -30.0, 25.0]]), 8000, 0.4
    pixels = seen(cameras, poses, truth).expand(2, draws, 2) + torch.from_numpy(rng.normal(0, sigma, (2, draws, 2)))
    result = triangulate(cameras, poses, pixels)
    errors = result.points.numpy() - truth
    stated = sigma**2 * triangulate(cameras, poses, seen(cameras, poses, truth)).covariance[0].numpy()
    whitened = np.linalg.solve(np.linalg.cholesky(stated), np.cov(errors.T))
    whitened = np.linalg.solve(np.linalg.cholesky(stated), whitened.T)
    assert np.allclose(whitened, np.eye(3), atol=0.065)
    distances = np.einsum("ni,ij,nj->n", errors, np.linalg.inv(stated), errors)
    assert np.mean(distances < 6.2514) == pytest.approx(0.90, abs=0.015)  # the 90 % quantile of chi-square of 3
    assert result.noise_px == pytest.approx(sigma, rel=0.04)


def test_a_point_in_one_view_is_missing_and_leaves_the_others_alone():
    pixels = torch.zeros(2, 2, 2)
    pixels[1, 0] = torch.nan
    result = triangulate(by_hand(), [FRONT, SIDE], pixels)
    for values in (result.points[0], result.gap_mm[0], result.covariance[0], result.residuals_px[:, 0]):
        assert bool(torch.isnan(values).all())
    assert float(result.points[1].abs().max()) < 1e-9
    zero = triangulate(by_hand(), [FRONT, SIDE], torch.zeros(2, 2, 2), weights=[[1.0, 1.0], [0.0, 1.0]])
    assert torch.equal(torch.isnan(zero.points), torch.isnan(result.points))


def nearly_front(degrees: float) -> Pose:
    """The front view, turned about the vertical axis through the origin."""
    angle = np.deg2rad(degrees)
    turn = np.eye(4)
    turn[:3, :3] = [[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]]
    return Pose(turn) @ FRONT


@pytest.mark.parametrize(
    ("poses", "pixels", "weights", "message"),
    [
        ([FRONT], torch.zeros(1, 1, 2), None, "at least two views, got 1"),
        (FRONT, torch.zeros(1, 1, 2), None, "at least two views, got 1"),
        ([FRONT, SIDE], torch.zeros(3, 1, 2), None, r"here \[2, N, 2\]"),
        ([FRONT, SIDE], torch.full((2, 3, 2), torch.nan), None, "No point is seen in two views"),
        ([FRONT, FRONT], torch.zeros(2, 1, 2), None, r"nearly parallel \(0 degrees apart"),
        ([FRONT, nearly_front(0.25)], torch.zeros(2, 1, 2), None, r"\(0.25 degrees apart, at least 0.5"),
        ([FRONT, nearly_front(180)], torch.zeros(2, 1, 2), None, "nearly parallel"),
        ([FRONT, SIDE], [[[1500.0, 0.0]], [[1500.0, 0.0]]], None, "meet behind a source"),
        ([FRONT, SIDE], torch.zeros(2, 1, 2), [1.0, -1.0], "not negative"),
        ([FRONT, SIDE], torch.zeros(2, 1, 2), [1.0, 1.0, 1.0], r"\[views\] or \[views, points\]"),
    ],
)
def test_bad_input_is_one_clear_error(poses, pixels, weights, message):
    with pytest.raises(GeometryError, match=message):
        triangulate(by_hand(), poses, pixels, weights)


def test_as_many_cameras_as_poses():
    with pytest.raises(GeometryError, match="3 cameras and 2 poses"):
        triangulate([by_hand()] * 3, [FRONT, SIDE], torch.zeros(2, 1, 2))


def test_two_degrees_are_enough_but_the_covariance_says_what_they_are_worth():
    """The depth's error is that across, divided by about the sine of half the angle."""
    result = triangulate(by_hand(), [nearly_front(-1), nearly_front(1)], torch.zeros(2, 1, 2))
    sigma = result.covariance[0].diagonal().sqrt()
    assert float(sigma[2] / sigma[0]) == pytest.approx(1 / np.tan(np.deg2rad(1.0)), rel=1e-6)


def test_the_skin_beads_of_the_real_wrist(shared_data):
    """12 steel beads of frame 99: reference.json says that pairs agree to 0.12 px RMS of a coordinate."""
    reference = json.loads((shared_data / "wrist_biplane" / "reference.json").read_text(encoding="utf-8"))
    calibrations = [(view["K"], view["R"], view["t"], 1760, 1760) for view in reference["cameras"].values()]
    cameras, poses = zip(*(from_opencv(*view, source_to_detector=1800.0) for view in calibrations), strict=True)
    beads = reference["skin_beads_px"]
    for one, two in (("A", "B_is_A1"), ("B", "A_is_B1")):
        pairs = list(product(beads["cam1"][one], beads["cam2"][two]))
        result = triangulate(cameras, poses, np.array(pairs).transpose(1, 0, 2))
        rms = (result.residuals_px**2).mean(0).div(2).sqrt().reshape(6, 6).numpy()
        chosen = linear_sum_assignment(rms)
        assert rms[chosen].max() < 0.125
        assert result.gap_mm.reshape(6, 6).numpy()[chosen].max() < 0.06
        places = result.points.reshape(6, 6, 3).numpy()[chosen]
        assert np.abs(places - places.mean(0)).max() < 60  # on one wrist
