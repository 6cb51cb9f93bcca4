"""The numbers that a network is asked for, against projections, SciPy's rotations and hand-worked cameras."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from DiffDRRCore import Camera, Pose, project
from DiffDRRCore.errors import DiffDRRError, GeometryError, LearningError
from DiffDRRCore.geometry import stack_poses
from DiffDRRCore.learning.network.targets import LEAST_SPREAD, Target, as_seen, least_rotation, rotation_size
from Testing.core import samples
from Testing.core.learning.scene import NAMES

EYE = np.eye(3).tolist()
PLAIN = Target(EYE, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "rotation_9d")


def view(rotvec, origin) -> Pose:
    """camera_to_frame of the view that has the frame turned by `rotvec` and its origin at `origin` in the camera."""
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = Rotation.from_rotvec(rotvec).as_matrix(), origin
    return Pose(np.linalg.inv(matrix)[None])


def random_views(rng, view_from, count=5) -> tuple[Camera, Pose]:
    """Views that have the frame's origin somewhere in or near the image, of one camera with skew."""
    plain = samples.camera(rng, view_from)
    K = plain.K.clone()
    K[0, 1] = rng.uniform(-50, 50)
    camera = Camera.from_intrinsics(K, plain.height, plain.width, source_to_detector=plain.source_to_detector)
    pixels = rng.uniform(-10, 50, (count, 2))
    rays = np.linalg.inv(K.numpy()) @ np.c_[pixels, np.ones(count)].T
    origins = (rays * rng.uniform(300, 1200, count)).T
    poses = [view(Rotation.random(rng=rng).as_rotvec(), origin)[0] for origin in origins]
    return camera, stack_poses(poses)


@pytest.mark.parametrize(("name", "convention"), NAMES)
@settings(max_examples=15, deadline=None)
@given(seed=samples.seeds, view_from=st.sampled_from(["source", "detector"]))
def test_decode_is_the_inverse_of_encode(name, convention, seed, view_from):
    rng = np.random.default_rng(seed)
    camera, pose = random_views(rng, view_from)
    target = Target(samples.rotation(rng), rng.normal(0, 1, 3), rng.uniform(0.1, 2, 3), name, convention)
    rotation, offsets = target.encode(camera, pose)
    assert rotation.shape == (5, rotation_size(name))
    again = target.decode(camera, rotation, offsets)
    torch.testing.assert_close(again.rotation, pose.rotation, rtol=0, atol=1e-9)
    torch.testing.assert_close(again.translation, pose.translation, rtol=1e-9, atol=1e-9)


def test_cameras_in_a_batch():
    rng = np.random.default_rng(0)
    views = [random_views(rng, side, 1) for side in ("source", "detector", "source")]
    distances = torch.stack([camera.source_to_detector for camera, _ in views])
    together = Camera.from_intrinsics(
        torch.stack([camera.K for camera, _ in views]), 30, 40, source_to_detector=distances
    )
    rotation, offsets = PLAIN.encode(together, stack_poses([pose[0] for _, pose in views]))
    for n, (camera, pose) in enumerate(views):
        single = PLAIN.encode(camera, pose)
        torch.testing.assert_close(rotation[n : n + 1], single[0])
        torch.testing.assert_close(offsets[n : n + 1], single[1])


@given(seed=samples.seeds)
@settings(max_examples=20, deadline=None)
def test_least_rotation(seed):
    """It turns z into d, about an axis normal to both, by the angle between them: SciPy's rotation by that vector."""
    rng = np.random.default_rng(seed)
    d = rng.normal(size=3)
    d[2] = abs(d[2])
    d /= np.linalg.norm(d)
    axis = np.cross([0, 0, 1], d)
    expected = Rotation.from_rotvec(axis / np.linalg.norm(axis) * math.acos(d[2])).as_matrix()
    np.testing.assert_allclose(least_rotation(torch.tensor(d)).numpy(), expected, atol=1e-7)
    np.testing.assert_allclose(least_rotation(torch.tensor(d)).numpy()[:, 2], d, atol=1e-12)


def test_least_rotation_by_hand():
    z = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    assert torch.equal(least_rotation(z), torch.eye(3, dtype=torch.float64))
    d = torch.tensor([0.6, 0.0, 0.8], dtype=torch.float64)
    expected = torch.tensor([[0.8, 0.0, 0.6], [0.0, 1.0, 0.0], [-0.6, 0.0, 0.8]], dtype=torch.float64)
    torch.testing.assert_close(least_rotation(d), expected)


def test_offsets_by_hand():
    """10 mm to the right and 20 mm up at 500 mm: 4 and -4 pixels, 0.4 pixels per mm across and 0.2 down."""
    camera = Camera(51, 81, (5.0, 2.5), 1000.0)
    _, offsets = PLAIN.encode(camera, view([0, 0, 0], [10.0, -20.0, 500.0]))
    expected = [[8 / 81, -8 / 51, math.log(math.sqrt(0.8 * 0.4))]]
    torch.testing.assert_close(offsets, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("view_from", ["source", "detector"])
def test_offsets_against_projection(view_from):
    rng = np.random.default_rng(3)
    camera = samples.camera(rng, view_from)
    pose = random_views(rng, view_from)[1]
    _, offsets = PLAIN.encode(camera, pose)
    seen = camera if view_from == "source" else camera.flipped()
    uv = project(seen, pose, [[0.0, 0.0, 0.0]])[:, 0]
    center = torch.tensor([(camera.width - 1) / 2, (camera.height - 1) / 2])
    size = torch.tensor([camera.width, camera.height])
    torch.testing.assert_close(offsets[:, :2], (uv - center) / size)
    # the scale: how far apart two points 1 mm apart appear, along the detector's rows and columns
    shifted = [project(seen, pose, (pose.rotation @ step)[:, None])[:, 0] for step in torch.eye(3).double()[:2]]
    scales = [torch.linalg.vector_norm(other - uv, dim=-1) for other in shifted]
    torch.testing.assert_close(offsets[:, 2], (scales[0] * scales[1]).sqrt().log())


def test_a_shifted_principal_point_shifts_the_offsets_alone():
    pose = view([0.3, -0.2, 0.5], [30.0, 20.0, 700.0])
    plain = Camera(50, 80, (2.0, 3.0), 1000.0, principal_point=(40.0, 22.0))
    shifted = Camera(50, 80, (2.0, 3.0), 1000.0, principal_point=(48.0, 17.0))
    (before, a), (after, b) = PLAIN.encode(plain, pose), PLAIN.encode(shifted, pose)
    torch.testing.assert_close(before, after)
    torch.testing.assert_close(b - a, torch.tensor([[8 / 80, -5 / 50, 0.0]], dtype=torch.float64))


def test_cropping_changes_the_offsets_alone():
    """u - left in an image of 64 columns, its centre at 31.5."""
    pose = view([0.3, -0.2, 0.5], [30.0, 20.0, 700.0])
    camera = Camera(50, 80, (2.0, 3.0), 1000.0)
    u, v = 39.5 + 30 / 700 * 1000 / 3, 24.5 + 20 / 700 * 1000 / 2
    (before, a), (after, b) = PLAIN.encode(camera, pose), PLAIN.encode(camera.cropped(4, 6, 1, 15), pose)
    torch.testing.assert_close(before, after)
    assert b[0, 0].item() == pytest.approx((u - 1 - 31.5) / 64, abs=1e-12)
    assert b[0, 1].item() == pytest.approx((v - 4 - 19.5) / 40, abs=1e-12)
    assert b[0, 2].item() == pytest.approx(a[0, 2].item(), abs=1e-12)


def test_pixels_of_another_size_change_the_scale_alone():
    pose = view([0.3, -0.2, 0.5], [30.0, 20.0, 700.0])
    camera = Camera(50, 80, (2.0, 3.0), 1000.0)
    (before, a), (after, b) = PLAIN.encode(camera, pose), PLAIN.encode(camera.resized(100, 40), pose)
    torch.testing.assert_close(before, after)
    torch.testing.assert_close(a[:, :2], b[:, :2])  # in widths and heights
    assert (b - a)[0, 2].item() == pytest.approx(math.log(math.sqrt(2 * 0.5)), abs=1e-12)
    finer = PLAIN.encode(camera.resized(150, 240), pose)[1]
    assert (finer - a)[0, 2].item() == pytest.approx(math.log(3), abs=1e-12)


def test_a_mirrored_image_has_the_target_of_the_plain_one():
    rng = np.random.default_rng(5)
    camera, pose = random_views(rng, "source")
    for a, b in zip(PLAIN.encode(camera, pose), PLAIN.encode(camera.flipped(), pose), strict=True):
        torch.testing.assert_close(a, b)


def test_on_a_sphere_about_the_anatomy_only_the_rotation_changes():
    camera = Camera(50, 80, (2.0, 3.0), 1000.0, principal_point=(45.0, 20.0))
    turn, there = Rotation.from_rotvec([0.2, 0.4, -0.3]), [15.0, -25.0, 650.0]
    orbit = Rotation.from_rotvec([0.1, -0.5, 0.7])
    a = PLAIN.encode(camera, view(turn.as_rotvec(), there))
    b = PLAIN.encode(camera, view((turn * orbit).as_rotvec(), there))
    torch.testing.assert_close(a[1], b[1])
    relative = a[0].reshape(3, 3).T @ b[0].reshape(3, 3)
    np.testing.assert_allclose(relative.numpy(), orbit.as_matrix(), atol=1e-12)


def test_turning_the_camera_about_its_source_leaves_the_allocentric_rotation():
    """The anatomy moves about the image and looks the same, as the rays through it are the same."""
    turn, tilt = Rotation.from_rotvec([0.2, 0.4, -0.3]), Rotation.from_rotvec([0.2, -0.15, 0.0])
    camera = Camera(50, 80, (2.0, 3.0), 1000.0)
    straight = PLAIN.encode(camera, view(turn.as_rotvec(), [0, 0, 650.0]))[0]
    tilted = PLAIN.encode(camera, view((tilt * turn).as_rotvec(), tilt.apply([0, 0, 650.0])))[0]
    torch.testing.assert_close(straight, tilted)
    np.testing.assert_allclose(straight[0].reshape(3, 3).numpy(), turn.as_matrix(), atol=1e-12)


@pytest.mark.parametrize(("name", "convention"), NAMES)
def test_gradients_are_finite_with_the_anatomy_straight_ahead(name, convention):
    camera = Camera(50, 80, (2.0, 3.0), 1000.0)
    target = Target(EYE, (0, 0, math.log(0.5)), (0.1, 0.1, 0.2), name, convention)
    ahead = view([0, 0, 0], [0, 0, 700.0])
    numbers = [x.detach().requires_grad_() for x in target.encode(camera, ahead)]
    matrix = target.decode(camera, *numbers).matrix
    slopes = torch.autograd.grad((matrix * torch.randn(4, 4, dtype=torch.float64)).sum(), numbers)
    assert all(bool(slope.isfinite().all()) and bool((slope != 0).any()) for slope in slopes)
    pose = ahead.matrix.requires_grad_()
    for output in target.encode(camera, Pose._rigid(pose)):
        (slope,) = torch.autograd.grad(output.square().sum() + output.sum(), pose, retain_graph=True)
        assert bool(slope.isfinite().all())


def test_decode_has_the_gradient_of_differences():
    rng = np.random.default_rng(8)
    camera, pose = random_views(rng, "detector", 2)
    target = Target(samples.rotation(rng), rng.normal(0, 1, 3), rng.uniform(0.1, 0.5, 3))
    rotation, offsets = (x.detach().requires_grad_() for x in target.encode(camera, pose))
    assert torch.autograd.gradcheck(
        lambda r, o: target.decode(camera, r, o).matrix, (rotation, offsets), atol=1e-4, rtol=1e-4
    )


def test_a_target_of_views():
    rng = np.random.default_rng(2)
    middle, camera = Rotation.from_rotvec([1.2, 0.5, -0.4]), Camera(50, 80, (2.0, 3.0), 1000.0)
    small = rng.normal(0, 0.2, (400, 3))
    small = np.concatenate([small, -small])  # so that the mean is the middle
    origins = np.c_[rng.normal(10, 5, 800), np.full(800, 20.0), rng.uniform(600, 800, 800)]
    origins[:, 1] *= origins[:, 2] / 700  # v does not vary
    pose = stack_poses(
        [view((Rotation.from_rotvec(r) * middle).as_rotvec(), o)[0] for r, o in zip(small, origins, strict=True)]
    )
    target = Target.from_views(camera, pose)
    offsets = target.encode(camera, pose)[1].numpy()
    np.testing.assert_allclose(offsets.mean(axis=0), 0, atol=1e-9)
    np.testing.assert_allclose(offsets[:, [0, 2]].std(axis=0), 1, rtol=1e-9)
    assert target.spread[1] == LEAST_SPREAD
    rotations = as_seen(camera, pose)[0].numpy()
    mean = Rotation.from_matrix(rotations).mean()  # SciPy's chordal mean
    np.testing.assert_allclose(target.reference_rotation, mean.as_matrix(), atol=1e-9)
    again = Target.from_dict(json.loads(json.dumps(target.to_dict())))
    assert again == target


def test_origins_behind_the_source():
    camera, behind = Camera(50, 80, (2.0, 3.0), 1000.0), view([0, 0, 0], [0, 0, -700.0])
    assert PLAIN.encode(camera, behind)[1].isnan().any()
    with pytest.raises(LearningError, match="behind the X-ray source"):
        Target.from_views(camera, behind)


def test_what_is_refused():
    parallel = Camera.parallel_beam(50, 80, (2.0, 3.0), 1000.0)
    with pytest.raises(LearningError, match="parallel beam"):
        PLAIN.encode(parallel, view([0, 0, 0], [0, 0, 700.0]))
    with pytest.raises(LearningError, match="Unknown parameterization 'eulers' of rotations; choose from axis_angle"):
        Target(EYE, (0, 0, 0), (1, 1, 1), "eulers")
    with pytest.raises(LearningError, match="euler_angles"):
        Target(EYE, (0, 0, 0), (1, 1, 1), "euler_angles")
    with pytest.raises(LearningError, match="three spreads"):
        Target(EYE, (0, 0, 0), (1, 0, 1))
    with pytest.raises(GeometryError, match="reflection"):
        Target(np.diag([1, 1, -1]).tolist(), (0, 0, 0), (1, 1, 1))
    with pytest.raises(DiffDRRError, match=r"target\.center must be a list of 3 items"):
        Target.from_dict({**PLAIN.to_dict(), "center": [1, 2]})
