"""project and backproject against each other and against a 3 x 4 projection matrix written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from DiffDRRCore import Camera, Pose, backproject, project
from DiffDRRCore.errors import GeometryError
from DiffDRRCore.geometry import pixel_rays, stack_poses
from Testing.core import samples
from Testing.core.samples import differences, jacobian, seeds

views = st.sampled_from(["source", "detector"])


def points_in_front(rng: np.random.Generator, pose: Pose, count: int = 6) -> torch.Tensor:
    local = np.c_[rng.normal(0, 100, (count, 2)), rng.uniform(100, 1000, count)]
    return pose.transform(local)


@given(seed=seeds, view_from=views)
@settings(max_examples=40, deadline=None)
def test_project_is_the_projection_matrix(seed, view_from):
    """P = K [R^T | -R^T c], divided by its third row (Hartley and Zisserman, 6.1)."""
    rng = np.random.default_rng(seed)
    pose, camera = Pose(samples.rigid(rng)), samples.camera(rng, view_from)
    points = points_in_front(rng, pose).numpy()
    R, c = pose.rotation.numpy(), pose.translation.numpy()
    P = camera.K.numpy() @ np.c_[R.T, -R.T @ c]
    homogeneous = np.c_[points, np.ones(len(points))] @ P.T
    assert np.allclose(project(camera, pose, points)[0], homogeneous[:, :2] / homogeneous[:, 2:], atol=1e-8)


@given(seed=seeds, view_from=views)
@settings(max_examples=40, deadline=None)
def test_every_point_of_a_backprojected_ray_projects_to_its_pixel(seed, view_from):
    rng = np.random.default_rng(seed)
    pose, camera = Pose(samples.rigid(rng)), samples.camera(rng, view_from)
    uv = rng.uniform(-20, 60, (5, 2))
    origin, direction = backproject(camera, pose, uv)
    assert torch.allclose(origin[0], pose.translation.expand(5, 3))
    assert torch.allclose(direction.norm(dim=-1), torch.ones(1, 5, dtype=torch.float64))
    for depth in (1.0, 50.0, 2000.0):
        assert np.allclose(project(camera, pose, (origin + depth * direction)[0])[0], uv, atol=1e-7)


@given(seed=seeds, view_from=views)
@settings(max_examples=40, deadline=None)
def test_a_point_lies_on_the_ray_of_its_pixel(seed, view_from):
    rng = np.random.default_rng(seed)
    pose, camera = Pose(samples.rigid(rng)), samples.camera(rng, view_from)
    points = points_in_front(rng, pose)
    origin, direction = backproject(camera, pose, project(camera, pose, points))
    assert torch.linalg.cross(points - origin[0], direction[0]).norm(dim=-1).max() < 1e-8
    assert ((points - origin[0]) * direction[0]).sum(-1).min() > 0


@given(seed=seeds, view_from=views)
@settings(max_examples=20, deadline=None)
def test_rays_end_on_the_detector(seed, view_from):
    """In the camera frame all ends have z = SDD, and neighbours are pixel_spacing apart."""
    rng = np.random.default_rng(seed)
    pose, camera = Pose(samples.rigid(rng)), samples.camera(rng, view_from)
    source, target = pixel_rays(camera, pose, [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    local = pose.inverse().transform(target[0])
    assert torch.allclose(source, pose.translation.expand(1, 1, 3))
    assert torch.allclose(local[:, 2], camera.source_to_detector.expand(3))
    side = 1 if view_from == "source" else -1
    assert float(local[1, 0] - local[0, 0]) == pytest.approx(side * float(camera.pixel_spacing[1]))
    assert float(local[2, 1] - local[0, 1]) == pytest.approx(float(camera.pixel_spacing[0]))


def test_batches_of_cameras_poses_and_points():
    rng = np.random.default_rng(3)
    poses = [Pose(samples.rigid(rng)) for _ in range(3)]
    cameras = [samples.camera(rng, view) for view in ("source", "detector", "source")]
    batch = Camera.from_intrinsics(
        torch.stack([camera.K for camera in cameras]),
        30,
        40,
        source_to_detector=torch.stack([camera.source_to_detector for camera in cameras]),
    )
    points = torch.stack([points_in_front(rng, pose) for pose in poses])
    uv = torch.from_numpy(rng.uniform(0, 30, (3, 4, 2)))
    together = project(batch, stack_poses(poses), points)
    origin, direction = backproject(batch, stack_poses(poses), uv)
    for index, (camera, pose) in enumerate(zip(cameras, poses, strict=True)):
        assert torch.allclose(together[index], project(camera, pose, points[index])[0])
        one_origin, one_direction = backproject(camera, pose, uv[index])
        assert torch.allclose(origin[index], one_origin[0])
        assert torch.allclose(direction[index], one_direction[0])
    shared = project(cameras[0], stack_poses(poses), points[0])
    assert shared.shape == (3, 6, 2)
    assert project(batch, poses[0], points[0]).shape == (3, 6, 2)


def test_behind_or_level_with_the_source_there_is_no_image_and_gradients_stay_finite():
    camera = Camera(30, 40, (1, 1), 1000)
    points = torch.tensor(
        [[10.0, 5.0, 500.0], [10.0, 5.0, -500.0], [10.0, 5.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64
    )
    points.requires_grad_(True)
    xi = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    K = camera.K.clone().requires_grad_(True)
    uv = project(Camera.from_intrinsics(K, 30, 40, source_to_detector=1000), Pose.exp(xi), points)
    assert torch.isfinite(uv[0, 0]).all()
    assert torch.isnan(uv[0, 1:]).all()
    gradients = torch.autograd.grad(torch.nansum(uv), (points, xi, K))
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    assert (gradients[0][0] != 0).any() and (gradients[0][1:] == 0).all()


@pytest.mark.parametrize("parallel", [False, True])
def test_gradients_of_project_and_backproject(parallel):
    rng = np.random.default_rng(4)
    pose = Pose(samples.rigid(rng))
    make = Camera.parallel_beam if parallel else Camera
    camera = make(30, 40, (0.8, 1.3), 1000, view_from="detector")
    points = points_in_front(rng, pose)
    at = torch.zeros(6, dtype=torch.float64)
    by_pose = lambda xi: project(camera, pose.retract(xi, points[0]), points)  # noqa: E731
    assert torch.allclose(jacobian(by_pose, at), differences(by_pose, at), rtol=1e-6, atol=1e-4)
    by_points = lambda x: project(camera, pose, x)  # noqa: E731
    assert torch.allclose(jacobian(by_points, points), differences(by_points, points, 1e-4), rtol=1e-6, atol=1e-7)
    rays = lambda xi: torch.cat(backproject(camera, pose.retract(xi), [[3.0, 4.0], [30.0, 1.0]]))  # noqa: E731
    assert torch.allclose(jacobian(rays, at), differences(rays, at), rtol=1e-6, atol=1e-6)


def test_the_result_has_the_dtype_of_pose_and_points():
    camera = Camera(30, 40, (1, 1), 1000)
    pose = Pose.identity(torch.float32)
    points = torch.tensor([[10.0, 5.0, 500.0]])
    assert project(camera, pose, points).dtype == torch.float32
    assert project(camera, pose, points.double()).dtype == torch.float64
    assert project(camera, pose, points.tolist()).dtype == torch.float64
    assert torch.allclose(project(camera, pose, points)[0, 0], torch.tensor([39.5, 24.5]))


def test_shapes_are_checked():
    camera, pose = Camera(30, 40, (1, 1), 1000), Pose.identity()
    with pytest.raises(GeometryError, match=r"three numbers each, got shape \[1, 2\]"):
        project(camera, pose, [[1, 2]])
    with pytest.raises(GeometryError, match=r"pairs \(u, v\), got shape \[1, 3\]"):
        backproject(camera, pose, [[1, 2, 3]])
