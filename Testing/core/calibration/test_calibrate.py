"""Bundle adjustment against the truth of simulated images, and against a direct linear formulation."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from scipy.linalg import rq

from DiffDRRCore import Camera, Pose, project
from DiffDRRCore.calibration import BeadPhantom, GridDistortion, RadialDistortion, calibrate, read_calibrated
from DiffDRRCore.calibration.bundle import Bundle
from DiffDRRCore.errors import CalibrationError, DiffDRRWarning, ReadError
from Testing.core.calibration import scene

PHANTOM = BeadPhantom.helix()
POINTS = PHANTOM.positions
TRUE = scene.camera()
START = scene.camera(principal_point=None, sdd=1000.0)


def ten_images(seed: int, count: int = 10, noise: float = 0.2, distort=None, camera=TRUE):
    rng = np.random.default_rng(seed)
    poses = scene.poses(rng, count)
    return poses, scene.observed(camera, poses, POINTS, rng, noise, distort)


@pytest.fixture(scope="module")
def trials():
    """(errors / deviations) of SDD, u0, v0 in 12 calibrations of ten images with 0.2 pixels of noise."""
    results = []
    for seed in range(12):
        poses, seen = ten_images(seed)
        start = [pose.retract([0.02, -0.02, 0.02, 3.0, 3.0, -20.0]) for pose in poses]
        results.append(calibrate(POINTS, seen, START, poses=start))
    return results


def test_sdd_of_ten_images_with_a_fifth_of_a_pixel_of_noise(trials):
    errors = np.array([result.values["source_to_detector"] - 1020.0 for result in trials])
    assert np.abs(errors).max() < 2.0
    assert np.sqrt((errors**2).mean()) < 0.9
    points = np.array([[r.values["principal_point_u"] - 520, r.values["principal_point_v"] - 505] for r in trials])
    assert np.abs(points).max() < 6.0


def test_deviations_are_those_of_the_errors(trials):
    truth = {"source_to_detector": 1020.0, "principal_point_u": 520.0, "principal_point_v": 505.0}
    z = np.array([[(r.values[n] - truth[n]) / r.deviations[n] for n in truth] for r in trials])
    assert 0.65 < np.sqrt((z**2).mean()) < 1.4  # 36 numbers
    noise = np.array([r.noise for r in trials])
    assert abs(noise.mean() - 0.2) < 0.004
    assert all(r.converged and not r.undetermined for r in trials)


def test_rms_is_that_of_two_coordinates_less_the_unknowns(trials):
    for result in trials[:5]:
        numbers, unknowns = 2 * int(result.inliers.sum()), 3 + 60
        assert result.rms == pytest.approx(result.noise * np.sqrt(2 * (numbers - unknowns) / numbers), rel=0.01)


def test_without_noise_the_truth_comes_back_exactly_with_no_start_of_poses():
    poses, seen = ten_images(3, 3, noise=0.0)
    result = calibrate(POINTS, seen, START, priors={"source_to_detector": 1e5, "principal_point": 1e5})
    torch.testing.assert_close(result.camera.K, TRUE.K, rtol=1e-6, atol=1e-3)
    for pose, found in zip(poses, result.poses, strict=True):
        torch.testing.assert_close(found.matrix, pose.matrix, rtol=0, atol=1e-3)


def test_the_direct_linear_transformation_says_the_same():
    """K by DLT (Abdel-Aziz and Karara 1971) and RQ of one noiseless projection matrix; and the solution keeps its K."""
    _, seen = ten_images(5, 1, noise=0.0)
    points, uv = POINTS.numpy(), seen[0]
    rows = []
    for (x, y, z), (u, v) in zip(points, uv, strict=True):
        if np.isfinite(u):
            rows += [[x, y, z, 1, 0, 0, 0, 0, -u * x, -u * y, -u * z, -u]]
            rows += [[0, 0, 0, 0, x, y, z, 1, -v * x, -v * y, -v * z, -v]]
    P = np.linalg.svd(np.array(rows))[2][-1].reshape(3, 4)
    K, _ = rq(P[:, :3])
    K = K @ np.diag(np.sign(np.diag(K)))
    K /= K[2, 2]
    result = calibrate(POINTS, seen, START, priors={"source_to_detector": 1e5, "principal_point": 1e5})
    np.testing.assert_allclose(result.camera.K.numpy(), K, rtol=1e-5, atol=0.02)


def test_derivatives_are_those_of_differences():
    rng = np.random.default_rng(0)
    free = ("source_to_detector", "principal_point", "pixel_size", "pixel_ratio", "distortion", "tangential", "poses")
    radial = RadialDistortion.of_image(TRUE, (0.05, -0.01, 0.002, -0.001))
    grid = GridDistortion(1024, 1024, (3, 4), rng.normal(0, 2, 84))
    starts = np.stack([pose.inverse().matrix.numpy() for pose in scene.poses(rng, 2)])
    fixed = np.tile(np.eye(4), (2, 1, 1))
    for distortion, to_camera, blocks in ((radial, fixed, starts), (grid, starts @ starts[0], starts[:1] * 1.0)):
        to_camera = to_camera.copy()
        if len(blocks) == 1:
            to_camera = np.stack([np.eye(4), starts[1] @ np.linalg.inv(starts[0])])
        bundle = Bundle(POINTS.numpy(), TRUE, distortion, free, to_camera, blocks)
        sizes = np.concatenate(
            [[3, 3, 3, 0.003, 0.003], np.full(bundle.shared - 5, 0.01), np.full(6 * len(blocks), 0.1)]
        )
        x = rng.normal(0, 1, bundle.size) * sizes
        _, jacobian = bundle.predict(x)
        for k, step in enumerate(np.eye(bundle.size) * 1e-6):
            difference = (bundle.predict(x + step)[0] - bundle.predict(x - step)[0]) / 2e-6
            np.testing.assert_allclose(jacobian[..., k], difference, atol=2e-5 * max(1, np.abs(jacobian[..., k]).max()))


def test_radial_distortion_is_found():
    true = RadialDistortion.of_image(TRUE, (0.06, -0.015, 0.003, -0.002))
    errors = []
    for seed in range(2):
        _, seen = ten_images(seed, 6, distort=lambda uv: true.distort(uv).numpy())
        result = calibrate(
            POINTS, seen, START, free=("source_to_detector", "principal_point", "distortion", "tangential", "poses")
        )
        found = np.array([result.values[name] for name in ("k1", "k2", "p1", "p2")])
        errors.append((found - true.coefficients.numpy()) / [result.deviations[n] for n in ("k1", "k2", "p1", "p2")])
        assert abs(result.values["source_to_detector"] - 1020) < 4 * result.deviations["source_to_detector"]
        assert result.noise == pytest.approx(0.2, abs=0.02)
        if seed == 0:
            np.testing.assert_allclose(found, true.coefficients, atol=4e-3)
    assert 0.5 < np.sqrt(np.mean(np.square(errors))) < 1.6


def intensifier(uv: np.ndarray) -> np.ndarray:
    """Pincushion of 4 % and an S-shaped turn of 1.5 degrees at the image's corner."""
    center = np.array([505.0, 515.0])
    x = (uv - center) / 724.0
    r2 = (x**2).sum(-1, keepdims=True)
    turn = np.radians(1.5) * r2[..., 0]
    c, s = np.cos(turn), np.sin(turn)
    return center + 724.0 * np.stack([c * x[:, 0] - s * x[:, 1], s * x[:, 0] + c * x[:, 1]], -1) * (1 + 0.04 * r2)


def test_a_grid_follows_an_image_intensifier():
    _, seen = ten_images(1, distort=intensifier)
    free = ("source_to_detector", "principal_point", "distortion", "poses")
    result = calibrate(POINTS, seen, START, free=free, distortion=GridDistortion.of_image(START))
    assert result.noise == pytest.approx(0.2, abs=0.02)
    held_out = scene.poses(np.random.default_rng(77), 2)
    for pose in held_out:  # a calibrated camera explains images that it has not seen, but for their pose
        truth = intensifier(project(TRUE, pose, POINTS)[0].numpy())
        fixed = calibrate(POINTS, [truth], result.camera, free=("poses",), poses=[pose], distortion=result.distortion)
        inner = ((truth > 60) & (truth < 963)).all(-1)
        assert float(fixed.errors[0][inner].max()) < 0.5
        assert float(fixed.errors[0][inner].square().mean().sqrt()) < 0.2


def test_a_grid_leaves_out_what_camera_and_pose_explain():
    """Without distortion in the images, freeing one changes neither the camera nor its deviations much."""
    _, seen = ten_images(2, 6)
    free = ("source_to_detector", "principal_point", "distortion", "poses")
    grid = calibrate(POINTS, seen, START, free=free, distortion=GridDistortion.of_image(START, (4, 4)))
    plain = calibrate(POINTS, seen, START)
    inner = torch.cartesian_prod(*[torch.linspace(150, 870, 9).double()] * 2)
    assert grid.distortion.shift(inner).abs().max() < 1.0
    assert abs(grid.values["source_to_detector"] - 1020) < 4 * grid.deviations["source_to_detector"]
    assert grid.deviations["source_to_detector"] < 3 * plain.deviations["source_to_detector"]


def test_known_motions_share_one_pose_and_tell_more():
    poses, seen = ten_images(4)
    offset = Pose.exp([0.3, -0.2, 1.0, 30.0, -20.0, 50.0])
    motions = [offset @ pose for pose in poses]
    shared = calibrate(POINTS, seen, START, motions=motions)
    own = calibrate(POINTS, seen, START)
    assert abs(shared.values["source_to_detector"] - 1020) < 2
    assert shared.deviations["principal_point_u"] < own.deviations["principal_point_u"]
    relative = [(offset @ pose).matrix for pose in shared.poses]
    torch.testing.assert_close(
        relative[0] @ torch.linalg.inv(relative[3]), motions[0].matrix @ motions[3].inverse().matrix, rtol=0, atol=0.5
    )


def test_wrong_motions_are_told():
    poses, seen = ten_images(4)
    with pytest.raises(CalibrationError, match=r"No camera sees|Only .* agree"):
        calibrate(POINTS, seen, START, motions=poses[::-1])


def test_outliers_are_left_out():
    _, seen = ten_images(6)
    for k, image in enumerate(seen):
        image[k] += [80.0, -50.0]
        image[(k + 7) % 36] += [4.0, 3.0]
    result = calibrate(POINTS, seen, START)
    wrong = torch.zeros(10, 36, dtype=torch.bool)
    wrong[range(10), range(10)] = wrong[range(10), [(k + 7) % 36 for k in range(10)]] = True
    assert not (result.inliers & wrong).any()
    assert abs(result.values["source_to_detector"] - 1020) < 3
    assert result.noise == pytest.approx(0.2, abs=0.02)


def test_sdd_and_pixel_size_together_are_not_determined():
    _, seen = ten_images(7, 4)
    with pytest.warns(DiffDRRWarning, match="do not determine source_to_detector.*pixel_size"):
        result = calibrate(POINTS, seen, START, free=("source_to_detector", "pixel_size", "principal_point", "poses"))
    ratio = result.values["source_to_detector"] / result.values["pixel_size"]
    assert ratio == pytest.approx(1020 / 0.3, rel=2e-3)  # but their ratio is
    with warnings.catch_warnings():
        warnings.simplefilter("error", DiffDRRWarning)
        calibrate(POINTS, seen, START, free=("pixel_size", "principal_point", "poses"))


def test_one_view_of_a_plate_facing_the_detector_does_not_determine_the_distance():
    plate = BeadPhantom.plate().positions
    matrix = np.eye(4)
    matrix[2, 3] = -620.0
    seen = scene.observed(TRUE, [Pose(matrix)], plate, np.random.default_rng(0))
    with pytest.warns(DiffDRRWarning, match="do not determine source_to_detector"):
        calibrate(plate, seen, START)


def test_images_of_two_settings_contradict_each_other():
    rng = np.random.default_rng(8)
    poses = scene.poses(rng, 6)
    seen = scene.observed(TRUE, poses[:3], POINTS, rng) + scene.observed(
        scene.camera(sdd=1090.0), poses[3:], POINTS, rng
    )
    with pytest.warns(DiffDRRWarning, match="images contradict each other: source_to_detector is 10"):
        calibrate(POINTS, seen, START)


def test_a_result_is_kept_in_json(tmp_path):
    true = RadialDistortion.of_image(TRUE, (0.03, 0, 0, 0))
    _, seen = ten_images(1, 3, distort=lambda uv: true.distort(uv).numpy())
    result = calibrate(POINTS, seen, START, free=("source_to_detector", "distortion", "poses"))
    result.save(tmp_path / "c.json")
    camera, distortion = read_calibrated(tmp_path / "c.json")
    assert torch.equal(camera.K, result.camera.K)
    assert torch.equal(distortion.coefficients, result.distortion.coefficients)
    (tmp_path / "d.json").write_text("{}")
    with pytest.raises(ReadError, match="no calibration file"):
        read_calibrated(tmp_path / "d.json")


@pytest.mark.parametrize(
    "change, says",
    [
        ({"free": ("everything",)}, "nothing called 'everything'"),
        ({"free": ()}, "Nothing is free"),
        ({"priors": {"pixel_size": 1.0}}, "which is not free"),
        ({"priors": {"source_to_detector": -1.0}}, "above 0"),
        ({"poses": []}, "3 images but 0 poses"),
        ({"free": ("source_to_detector",)}, "must be given as `poses`"),
    ],
)
def test_wrong_arguments(change, says):
    _, seen = ten_images(1, 3)
    with pytest.raises(CalibrationError, match=says):
        calibrate(POINTS, seen, START, **change)


def test_wrong_data():
    _, seen = ten_images(1, 2)
    with pytest.raises(CalibrationError, match="There is no image"):
        calibrate(POINTS, [], START)
    with pytest.raises(CalibrationError, match="but there are 36 points"):
        calibrate(POINTS, [seen[0][:5]], START)
    few = np.full((36, 2), np.nan)
    few[:3] = seen[0][:3]
    with pytest.raises(CalibrationError, match="Image 2 shows 3 of the points"):
        calibrate(POINTS, [seen[0], few], START)
    with pytest.raises(CalibrationError, match=r"1 image with \d+ points in all gives \d+ numbers for \d+ unknowns"):
        free = ("source_to_detector", "principal_point", "distortion", "poses")
        calibrate(POINTS, seen[:1], START, free=free, distortion=GridDistortion.of_image(START))
    with pytest.raises(CalibrationError, match="another unit"):
        calibrate(POINTS / 10, seen, START)
    with pytest.raises(CalibrationError, match=r"No camera sees|Only .* agree|No four landmarks"):
        calibrate(POINTS, [np.random.default_rng(0).permutation(one) for one in seen], START)
    with pytest.raises(CalibrationError, match="parallel beam"):
        calibrate(POINTS, seen, Camera.parallel_beam(1024, 1024, (0.3, 0.3), 1000.0))
