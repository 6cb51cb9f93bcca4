"""The linearised image against central differences of `pose.retract(xi, about)`."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from DiffDRRCore import Camera, CArm, Pose, Renderer, Volume
from DiffDRRCore.geometry import stack_poses
from Testing.core import samples
from Testing.core.rendering import reference
from Testing.core.samples import differences

INTEGRATORS = ("trilinear", "siddon")
PIVOT = torch.tensor([12.0, -7.0, 30.0], dtype=torch.float64)


def volume(seed: int = 0) -> Volume:
    rng, shape = np.random.default_rng(seed), (7, 8, 9)
    return reference.double(rng.uniform(0, 0.05, shape), samples.oblique_grid(rng, shape, spacing=(2.0, 4.0)))


def arm(ct: Volume, **angles) -> CArm:
    return CArm(900, 600, ct.center, **{"primary": 23, "secondary": -31, **angles})


def assert_is_linearization(renderer: Renderer, camera: Camera, pose: Pose, about) -> None:
    image, slope = renderer.linearize(camera, pose, about=about)
    expected = renderer(camera, pose)
    batch = expected.shape[0]
    assert image.shape == (batch, 1, camera.height, camera.width)
    assert slope.shape == (batch, camera.height, camera.width, 6)
    assert torch.allclose(image, expected, rtol=1e-12)
    shift = lambda xi: renderer(camera, pose.retract(xi, about))[:, 0]  # noqa: E731
    numeric = differences(shift, torch.zeros(6, dtype=torch.float64), 1e-7)
    scale = numeric.flatten(0, -2).abs().amax(0)
    assert float(((slope - numeric).abs() / scale).max()) < 1e-3


@pytest.mark.parametrize("integrator", INTEGRATORS)
@pytest.mark.parametrize("about", [None, PIVOT, (12, -7, 30)])
@pytest.mark.parametrize("view_from", ["source", "detector"])
def test_one_view(integrator, about, view_from):
    ct = volume()
    carm = arm(ct)
    assert_is_linearization(Renderer(ct, integrator), carm.camera(5, 4, (6, 5), view_from), carm.pose, about)


@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_parallel_beam(integrator):
    ct = volume(1)
    camera = Camera.parallel_beam(5, 4, (5, 4), 900, principal_point=(1.6, 2.2))
    assert_is_linearization(Renderer(ct, integrator), camera, arm(ct).pose, PIVOT)


@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_source_and_detector_inside_the_volume(integrator):
    ct = volume(2)
    carm = CArm(7.7, 3.3, ct.center, primary=15, secondary=40)
    assert_is_linearization(Renderer(ct, integrator), carm.camera(3, 3, (2, 2)), carm.pose, ct.center)


@pytest.mark.parametrize("integrator", INTEGRATORS)
@pytest.mark.parametrize("pivots", ["one", "each"])
def test_a_batch_is_its_members(integrator, pivots):
    ct = volume(3)
    poses = stack_poses([arm(ct, roll=roll).pose for roll in (0, 20, 50)])
    about = PIVOT + torch.arange(3)[:, None] if pivots == "each" else PIVOT
    camera = arm(ct).camera(5, 4, (6, 5))
    renderer = Renderer(ct, integrator)
    assert_is_linearization(renderer, camera, poses, about)
    image, slope = renderer.linearize(camera, poses, about=about)
    for index in range(3):
        one_image, one_slope = renderer.linearize(
            camera, poses[index], about=about[index] if about.ndim == 2 else about
        )
        assert torch.allclose(image[index], one_image[0])
        assert torch.allclose(slope[index], one_slope[0])


@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_chosen_pixels_are_those_of_the_image(integrator):
    ct = volume(4)
    carm = arm(ct)
    camera, renderer = carm.camera(5, 4, (6, 5)), Renderer(ct, integrator)
    poses = stack_poses([carm.pose, arm(ct, roll=30).pose])
    image, slope = renderer.linearize(camera, poses, about=PIVOT)
    u, v = [3, 0, 2], [4, 1, 2]
    some_image, some_slope = renderer.linearize(camera, poses, about=PIVOT, uv=list(zip(u, v, strict=True)))
    assert some_image.shape == (2, 1, 3) and some_slope.shape == (2, 3, 6)
    assert torch.allclose(some_image[:, 0], image[:, 0, v, u])
    assert torch.allclose(some_slope, slope[:, v, u])
    each = torch.tensor([[[3.0, 4.0]], [[0.0, 1.0]]])
    own_image, own_slope = renderer.linearize(camera, poses, about=PIVOT, uv=each)
    assert torch.allclose(own_image[:, 0, 0], torch.stack([image[0, 0, 4, 3], image[1, 0, 1, 0]]))
    assert torch.allclose(own_slope[:, 0], torch.stack([slope[0, 4, 3], slope[1, 1, 0]]))


@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_the_result_has_no_graph_whatever_requires_gradients(integrator):
    ct = volume(5)
    carm = arm(ct)
    voxels = ct.attenuation.clone().requires_grad_(True)
    pose = carm.pose.retract(torch.zeros(6, dtype=torch.float64, requires_grad=True))
    renderer = Renderer(Volume.from_attenuation(voxels, ct.ijk_to_ras), integrator)
    for result in renderer.linearize(carm.camera(5, 4, (6, 5)), pose, about=PIVOT):
        assert not result.requires_grad
    with torch.no_grad():
        _, slope = renderer.linearize(carm.camera(5, 4, (6, 5)), pose, about=PIVOT)
    assert (slope != 0).any()


@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_the_dtype_is_that_of_the_volume(integrator):
    ct = volume(6)
    carm = arm(ct)
    camera = carm.camera(5, 4, (6, 5))
    exact = Renderer(ct, integrator).linearize(camera, carm.pose, about=PIVOT)
    single = Renderer(ct.to(dtype=torch.float32), integrator).linearize(camera, carm.pose, about=PIVOT)
    for one, other in zip(single, exact, strict=True):
        assert one.dtype == torch.float32
        assert torch.allclose(one.double(), other, rtol=1e-3, atol=1e-4 * float(other.abs().max()))
