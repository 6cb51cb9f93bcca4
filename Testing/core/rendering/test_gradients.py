"""Gradients to pose, camera and volume against float64 central differences, to 1e-3 of the largest entry."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from DiffDRRCore import Camera, CArm, Pose, Renderer, Volume
from Testing.core import samples
from Testing.core.rendering import reference
from Testing.core.samples import differences, jacobian

INTEGRATORS = ("trilinear", "siddon")
SHAPE = (9, 10, 11)
TOLERANCE = 1e-3


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Of each derivative against the largest of its kind, so that radians and millimetres are judged apart."""
    scale = expected.flatten(0, -2).abs().amax(0).clamp(min=1e-12)
    return float(((found - expected).abs() / scale).max())


def textured(seed: int = 0) -> Volume:
    """Smooth random attenuation on an oblique grid: rays cross steps of every size."""
    rng = np.random.default_rng(seed)
    mu = rng.uniform(0, 1, SHAPE)
    for axis in range(3):
        mu = (mu + np.roll(mu, 1, axis)) / 2
    return reference.double(0.05 * mu, samples.oblique_grid(rng, SHAPE, spacing=(2.0, 4.0)))


def arm(volume: Volume) -> CArm:
    return CArm(900, 600, volume.center, primary=23, secondary=-31, roll=7)


@pytest.mark.parametrize("about", [None, "center"])
@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_pose(integrator, about):
    volume = textured()
    carm, pivot = arm(volume), volume.center if about else None
    camera = carm.camera(5, 6, (6, 5), "detector")
    renderer = Renderer(volume, integrator)
    render = lambda xi: renderer(camera, carm.pose.retract(xi, pivot))  # noqa: E731
    at = torch.zeros(6, dtype=torch.float64)
    assert relative_error(jacobian(render, at), differences(render, at, 1e-7)) < TOLERANCE


@pytest.mark.parametrize("integrator", INTEGRATORS)
@pytest.mark.parametrize(
    "parameterization, convention", [("axis_angle", None), ("quaternion", None), ("rotation_6d", None)]
)
def test_pose_through_its_parameters_at_the_identity(integrator, parameterization, convention):
    """A rotation by nothing, where formulas of rotation vectors divide by zero. The camera looks along +z."""
    mu = textured().attenuation
    volume = Volume.from_attenuation(mu, reference.grid(3.0, SHAPE, (2.2, 1.3, 500)))
    renderer, camera = Renderer(volume, integrator), Camera(5, 6, (6, 5), 900)
    rotation, translation = Pose.identity().to_parameters(parameterization, convention)
    at = torch.cat([rotation, translation])

    def render(numbers):
        pose = Pose.from_parameters(numbers[:-3], numbers[-3:], parameterization, convention)
        return renderer(camera, pose)

    assert relative_error(jacobian(render, at), differences(render, at, 1e-7)) < TOLERANCE


@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_carm_angles(integrator):
    volume = textured(1)
    renderer = Renderer(volume, integrator)

    def render(numbers):
        carm = CArm(900, 600, volume.center, *numbers)
        return renderer(carm.camera(5, 6, (6, 5)), carm.pose)

    for angles in ([10.0, -20.0, 5.0], [0.3, 90.0, 0.4]):
        at = torch.tensor(angles, dtype=torch.float64)
        assert relative_error(jacobian(render, at), differences(render, at, 1e-6)) < TOLERANCE


@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_camera_numbers(integrator):
    """Pixel spacing, SDD, principal point."""
    volume = textured(2)
    renderer, pose = Renderer(volume, integrator), arm(volume).pose

    def render(numbers):
        return renderer(Camera(5, 6, numbers[:2], numbers[2], numbers[3:], "detector"), pose)

    at = torch.tensor([6.0, 5.0, 900.0, 2.1, 2.7], dtype=torch.float64)
    assert relative_error(jacobian(render, at), differences(render, at, 1e-6)) < TOLERANCE


@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_K_and_source_to_detector_with_the_detector_inside_the_volume(integrator):
    """With K fixed the SDD only says where rays end; here they end inside."""
    volume = textured(3)
    renderer, pose = Renderer(volume, integrator), arm(volume).pose

    def render(numbers):
        zero, one = numbers.new_zeros(()), numbers.new_ones(())
        fx, fy, skew, u0, v0, distance = numbers
        K = torch.stack([fx, skew, u0, zero, fy, v0, zero, zero, one]).reshape(3, 3)
        return renderer(Camera.from_intrinsics(K, 5, 6, source_to_detector=distance), pose)

    at = torch.tensor([200.0, 180.0, 3.0, 2.6, 1.9, 601.3], dtype=torch.float64)
    expected = differences(render, at, 1e-6)
    assert expected[..., 5].abs().max() > 0.01
    assert relative_error(jacobian(render, at), expected) < TOLERANCE


@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_both_ends_of_a_ray_with_the_source_inside_the_volume(integrator):
    """d/ds and d/dt of single rays: from outside, from inside, ending inside, missing."""
    volume = textured(4)
    renderer = Renderer(volume, integrator)
    middle = volume.center
    offsets = [[-300, 20, 5, 280, -30, 8], [1.3, 2.1, -3.3, 250, 90, 60], [-200, 40, 90, 2.2, 1.1, 3.1]]
    rays = torch.tensor([*offsets, [-300, 500, 0, 300, 500, 0]], dtype=torch.float64)
    for ray in rays:
        integral = lambda r: renderer.trace(r[None, :3] + middle, r[None, 3:] + middle)  # noqa: E731
        assert torch.allclose(jacobian(integral, ray), differences(integral, ray, 1e-6), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_rays_parallel_to_grid_planes_have_finite_gradients(integrator):
    volume = reference.double(np.random.default_rng(5).uniform(0, 1, SHAPE), np.eye(4))
    renderer = Renderer(volume, integrator)
    s = torch.tensor([[-50.0, 3, 4], [-50, 3.5, 4.5], [3, -50, 4], [0, 0, -50], [2.2, 3.3, 4.4]], dtype=torch.float64)
    t = torch.tensor([[50.0, 3, 4], [50, 3.5, 4.5], [3, 50, 4], [0, 0, 50], [2.2, 3.3, 4.4]], dtype=torch.float64)
    s.requires_grad_(True), t.requires_grad_(True)
    gradients = torch.autograd.grad(renderer.trace(s, t).sum(), (s, t))
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    tilted = t.detach() + torch.tensor([0, 1e-160, 1e-300], dtype=torch.float64)
    tilted.requires_grad_(True)
    assert torch.isfinite(torch.autograd.grad(renderer.trace(s.detach(), tilted).sum(), tilted)[0]).all()


@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_volume(integrator):
    """The integral is linear in the voxels: its derivative by a voxel is the image of that voxel alone."""
    mu = textured(6).attenuation[:4, :4, :5].clone()
    affine = reference.grid(4.0, mu.shape)
    carm = CArm(900, 600, primary=12, secondary=33)
    camera = carm.camera(4, 4, (6, 5))
    weights = torch.from_numpy(np.random.default_rng(7).normal(size=(1, 1, 4, 4)))

    def objective(voxels):
        return (Renderer(Volume.from_attenuation(voxels, affine), integrator)(camera, carm.pose) * weights).sum()

    assert torch.allclose(jacobian(objective, mu), differences(objective, mu, 1e-3), rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_volume_in_HU(integrator):
    hu = torch.full((3, 3, 3), 200.0, dtype=torch.float64, requires_grad=True)
    carm = CArm(900, 600)
    image = Renderer(Volume(hu, reference.grid(4.0, hu.shape)), integrator)(carm.camera(3, 3, (4, 4)), carm.pose)
    gradient = torch.autograd.grad(image.sum(), hu)[0]
    assert torch.isfinite(gradient).all() and (gradient > 0).any()


@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_float32_gradients_follow_float64(integrator):
    volume = textured(8)
    carm = arm(volume)
    camera = carm.camera(5, 6, (6, 5))
    at = torch.zeros(6, dtype=torch.float64)

    def gradient(ct):
        renderer = Renderer(ct, integrator)
        return jacobian(lambda xi: renderer(camera, carm.pose.retract(xi, volume.center)), at).double()

    assert relative_error(gradient(volume.to(dtype=torch.float32)), gradient(volume)) < TOLERANCE
