"""Line integrals against closed forms and against slow float64 references."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from DiffDRRCore import Camera, CArm, Pose, Renderer
from DiffDRRCore.datasets.shapes import Box, Sphere, voxelize
from DiffDRRCore.geometry import pixel_rays
from Testing.core import samples
from Testing.core.rendering import reference
from Testing.core.samples import seeds

MU = 0.02
INTEGRATORS = ("trilinear", "siddon")


def one_ray(renderer: Renderer, s, t) -> float:
    return float(renderer.trace(np.array([s], dtype=float), np.array([t], dtype=float))[0, 0])


def rays_through(rng: np.random.Generator, center, radius: float, count: int, reach: float = 500.0):
    """Segments far outside at both ends, whose lines pass within `radius` of the centre."""
    direction = rng.normal(size=(count, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    near = np.asarray(center) + rng.uniform(-radius, radius, (count, 3)) / np.sqrt(3)
    return near - reach * direction, near + reach * direction


def test_the_references_themselves():
    """By hand: two voxels of 0.1 and 0.3 per mm and 2 x 2 x 2 mm, a ray along both and one that leaves by a side."""
    mu, affine = np.array([[[0.1, 0.3]]]), np.diag([2.0, 2, 2, 1])
    assert reference.siddon(mu, affine, [-9, 0, 0], [9, 0, 0]) == pytest.approx(0.1 * 2 + 0.3 * 2)
    diagonal = np.sqrt(2) * (0.1 * 0.5 + 0.3 * 1.5)  # enters by y = -1 at x = 0.5, crosses at x = 1, leaves at x = 2.5
    assert reference.siddon(mu, affine, [-1, -2.5, 0], [3, 1.5, 0]) == pytest.approx(diagonal)
    assert reference.trilinear(mu, affine, [-9, 0, 0], [9, 0, 0]) == pytest.approx(2 * (0.1 + 0.3))
    assert reference.trilinear(mu, affine, [1, -9, 0], [1, 9, 0]) == pytest.approx(2 * (0.1 + 0.3) / 2)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_siddon_is_exact_on_a_grid_aligned_box(dtype, tolerance):
    box = Box(center=(5, -3, 10), size=(24, 30, 36))
    shape = (22, 20, 18)
    volume = voxelize(box, shape, reference.grid((2, 2.5, 3), shape, box.center), MU).to(dtype=dtype)
    carm = CArm(1000, 700, box.center, primary=25, secondary=-35, roll=10)
    camera = carm.camera(24, 24, (3, 4), "detector")
    image = Renderer(volume, "siddon")(camera, carm.pose)[0, 0]
    expected = MU * box.chord(*pixel_rays(camera, carm.pose)).reshape(24, 24)
    assert (expected > 0).sum() > 200
    assert torch.allclose(image.double(), expected, rtol=tolerance, atol=tolerance * MU * 24)


@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_slab(integrator):
    """A plate of 8 mm: mu d / cos(theta) by both integrators; the trilinear ramps at its faces keep the integral."""
    mu = np.zeros((20, 80, 80))
    mu[6:14] = MU
    volume = reference.double(mu, reference.grid(1.0, mu.shape))
    renderer = Renderer(volume, integrator, step=0.05)
    for angle in (0, 10, 30, 50):
        direction = np.array([np.sin(np.radians(angle)), 0.2 * np.sin(np.radians(angle)), np.cos(np.radians(angle))])
        direction /= np.linalg.norm(direction)
        found = one_ray(renderer, -300 * direction, 300 * direction)
        tolerance = 1e-12 if integrator == "siddon" else 1e-4
        assert found == pytest.approx(MU * 8 / direction[2], rel=tolerance)


@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_a_sphere_is_found_to_first_order_in_the_voxel_size(integrator):
    sphere = Sphere(center=(3.3, -2.2, 1.1), radius=20)
    s, t = rays_through(np.random.default_rng(0), sphere.center, 19, 300)
    chord = sphere.chord(s, t).numpy()
    errors = []
    for spacing in (4.0, 2.0, 1.0):
        shape = (int(52 / spacing),) * 3
        volume = voxelize(sphere, shape, reference.grid(spacing, shape), MU).to(dtype=torch.float64)
        errors.append(np.abs(Renderer(volume, integrator).trace(s, t)[0].numpy() / MU - chord).mean())
    assert errors[-1] < 0.2  # mm, of chords of 20 to 40
    assert errors[0] / errors[1] > 1.7 and errors[1] / errors[2] > 1.7


def test_trilinear_converges_to_second_order_on_a_smooth_field():
    """A Gaussian blob: along a line at distance d its integral is A sigma sqrt(2 pi) exp(-d^2 / (2 sigma^2))."""
    sigma, center = 8.0, np.array([1.7, -0.6, 2.9])
    s, t = rays_through(np.random.default_rng(1), center, 12, 100)
    direction = (t - s) / np.linalg.norm(t - s, axis=1, keepdims=True)
    distance = np.linalg.norm(np.cross(center - s, direction), axis=1)
    expected = MU * sigma * np.sqrt(2 * np.pi) * np.exp(-(distance**2) / (2 * sigma**2))
    errors = []
    for spacing in (4.0, 2.0, 1.0):
        shape = (int(100 / spacing),) * 3
        affine = reference.grid(spacing, shape)
        k, j, i = np.meshgrid(*map(np.arange, shape), indexing="ij")
        world = np.stack([i, j, k], -1) * spacing + affine[:3, 3]
        mu = MU * np.exp(-((world - center) ** 2).sum(-1) / (2 * sigma**2))
        found = Renderer(reference.double(mu, affine), "trilinear").trace(s, t)[0].numpy()
        errors.append(np.abs(found - expected).max() / expected.max())
    assert errors[-1] < 0.005
    assert errors[0] / errors[1] > 3.5 and errors[1] / errors[2] > 3.5


def test_trilinear_is_exact_on_a_linear_field():
    """A segment inside the volume through mu = a + b . x: its length times mu at its middle. Both ends lie inside."""
    shape, rng = (9, 10, 11), np.random.default_rng(2)
    affine = samples.oblique_grid(rng, shape)
    k, j, i = np.meshgrid(*map(np.arange, shape), indexing="ij")
    world = np.stack([i, j, k], -1) @ affine[:3, :3].T + affine[:3, 3]
    b = np.array([1e-3, -2e-3, 0.5e-3])
    volume = reference.double(1.0 + world @ b, affine)
    ends = rng.uniform(0.5, 7.5, (2, 20, 3)) @ affine[:3, :3].T + affine[:3, 3]
    expected = np.linalg.norm(ends[1] - ends[0], axis=1) * (1.0 + ends.mean(0) @ b)
    assert np.allclose(Renderer(volume, "trilinear").trace(ends[0], ends[1])[0], expected, rtol=1e-12)


@given(seed=seeds, shape=st.tuples(*[st.integers(1, 7)] * 3))
@settings(max_examples=40, deadline=None)
def test_siddon_agrees_with_the_reference_on_any_grid(seed, shape):
    """Oblique, anisotropic, left-handed, sheared, one-slice grids; ends anywhere, inside the volume too."""
    rng = np.random.default_rng(seed)
    affine, mu = samples.oblique_grid(rng, shape), rng.uniform(0, 1, shape)
    center = affine[:3, :3] @ ((np.array(shape[::-1]) - 1) / 2) + affine[:3, 3]
    s, t = rays_through(rng, center, 8, 12, reach=rng.choice([3.0, 300.0]))
    found = Renderer(reference.double(mu, affine), "siddon").trace(s, t)[0].numpy()
    expected = [reference.siddon(mu, affine, *ends) for ends in zip(s, t, strict=True)]
    assert np.allclose(found, expected, rtol=1e-9, atol=1e-9)


@given(seed=seeds, shape=st.tuples(*[st.integers(1, 7)] * 3))
@settings(max_examples=30, deadline=None)
def test_trilinear_agrees_with_the_reference_on_any_grid(seed, shape):
    rng = np.random.default_rng(seed)
    affine, mu = samples.oblique_grid(rng, shape), rng.uniform(0, 1, shape)
    center = affine[:3, :3] @ ((np.array(shape[::-1]) - 1) / 2) + affine[:3, 3]
    s, t = rays_through(rng, center, 8, 12, reach=rng.choice([3.0, 300.0]))
    found = Renderer(reference.double(mu, affine), "trilinear", step=0.02).trace(s, t)[0].numpy()
    expected = [reference.trilinear(mu, affine, *ends) for ends in zip(s, t, strict=True)]
    assert np.allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_the_midpoint_rule_of_trilinear_is_of_second_order_in_the_step():
    rng = np.random.default_rng(3)
    mu = rng.uniform(0, 1, (6, 7, 8))
    affine = samples.oblique_grid(rng, mu.shape)
    s, t = rays_through(rng, affine[:3, :3] @ [3.5, 3, 2.5] + affine[:3, 3], 3, 60)
    expected = np.array([reference.trilinear(mu, affine, *ends) for ends in zip(s, t, strict=True)])
    volume = reference.double(mu, affine)
    rms = [
        np.sqrt(np.mean((Renderer(volume, step=step).trace(s, t)[0].numpy() - expected) ** 2))
        for step in (0.4, 0.1, 0.025)
    ]
    assert rms[0] / rms[1] > 10 and rms[1] / rms[2] > 10  # 16 for order two


@pytest.mark.parametrize("integrator", INTEGRATORS)
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("sign", [1, -1])
def test_rays_along_a_grid_axis(integrator, axis, sign):
    """Through voxel centres: the sum of a row of voxels times their size, by both integrators."""
    mu = np.random.default_rng(4).uniform(0, 1, (4, 5, 6))
    spacing = np.array([1.0, 2.0, 3.0])
    renderer = Renderer(reference.double(mu, np.diag([*spacing, 1.0])), integrator, step=0.01)
    s = spacing * [2, 3, 1]
    t = s.copy()
    s[axis], t[axis] = -100 * sign, 100 * sign
    row = (mu[1, 3, :], mu[1, :, 2], mu[:, 3, 2])[axis]
    expected = row.sum() * spacing[axis]
    assert one_ray(renderer, s, t) == pytest.approx(expected, rel=1e-12 if integrator == "siddon" else 1e-3)


def test_rays_in_a_grid_plane_take_one_of_the_two_voxels_beside_it():
    """On the face between two voxels, and on the edge of four; never both, never nothing."""
    mu = np.arange(1.0, 9.0).reshape(2, 2, 2)
    renderer = Renderer(reference.double(mu, np.eye(4)), "siddon")
    on_face = one_ray(renderer, [-50, 0.5, 0], [50, 0.5, 0])
    assert on_face == pytest.approx(1 + 2) or on_face == pytest.approx(3 + 4)
    on_edge = one_ray(renderer, [-50, 0.5, 0.5], [50, 0.5, 0.5])
    assert min(abs(on_edge - total) for total in (1 + 2, 3 + 4, 5 + 6, 7 + 8)) < 1e-12
    diagonal = one_ray(renderer, [-50, -50, 0.5], [50, 50, 0.5])
    assert min(abs(diagonal - np.sqrt(2) * total) for total in (1 + 4, 5 + 8)) < 1e-9
    trilinear = Renderer(reference.double(mu, np.eye(4)), "trilinear", step=0.01)
    assert one_ray(trilinear, [-50, 0.5, 0], [50, 0.5, 0]) == pytest.approx((1 + 2 + 3 + 4) / 2, rel=1e-4)


@given(seed=seeds, tilt=st.sampled_from([1e-16, 1e-14, 1e-10, 1e-6]))
@settings(max_examples=20, deadline=None)
def test_rays_nearly_parallel_to_a_grid_plane(seed, tilt):
    rng = np.random.default_rng(seed)
    mu = rng.uniform(0, 1, (3, 4, 5))
    s, t = np.array([-40.0, 1.2, 0.7]), np.array([40.0, 1.2, 0.7])
    t[1] += rng.normal() * tilt * 80
    for integrator, tolerance in (("siddon", 1e-9), ("trilinear", 1e-3)):
        found = one_ray(Renderer(reference.double(mu, np.eye(4)), integrator, step=0.01), s, t)
        assert found == pytest.approx(getattr(reference, integrator)(mu, np.eye(4), s, t), rel=tolerance)


@pytest.mark.parametrize("climb", [0.2, 1e-4, 1e-9])
def test_a_ray_that_crosses_a_grid_plane_at_a_small_angle_takes_from_both_sides(climb):
    """Half of its way in a voxel of 1 per mm, below the plane y = 0.5, and half in one of 2 per mm above it."""
    renderer = Renderer(reference.double([[[1.0], [2.0]]], np.eye(4)), "siddon")
    found = one_ray(renderer, [-0.5, 0.5 - climb / 2, 0], [0.5, 0.5 + climb / 2, 0])
    assert found == pytest.approx(np.hypot(1, climb) * 1.5, rel=1e-6)


@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_what_lies_behind_the_source_or_beyond_the_detector_does_not_count(integrator):
    """A bar of 1 per mm from x = 0 to 40: the part between the ends, wherever the ends are."""
    mu = np.ones((3, 3, 40))
    renderer = Renderer(reference.double(mu, reference.grid(1.0, mu.shape, (20, 0, 0))), integrator)
    for start, end, length in ((10, 30, 20), (10, 100, 30), (-50, 15, 15), (100, 5, 35), (12.25, 12.75, 0.5)):
        found = one_ray(renderer, [start, 0, 0], [end, 0, 0])
        assert found == pytest.approx(length, rel=1e-9 if integrator == "siddon" else 2e-3)


@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_rays_that_miss_are_zero(integrator):
    volume = reference.double(np.ones((4, 5, 6)), reference.grid(2.0, (4, 5, 6)))
    renderer = Renderer(volume, integrator)
    misses = [
        ([-100, 50, 0], [100, 50, 0]),  # beside, parallel to an axis
        ([-100, 50, 1], [100, 52, 3]),  # beside, oblique
        ([-100, 0, 0], [-50, 0, 0]),  # the detector in front of the volume
        ([50, 0, 0], [100, 0, 0]),  # the volume behind the source
        ([50, 0, 0], [50, 0, 0]),  # no length
        ([0, 0, 0], [0, 0, 0]),  # no length, inside
    ]
    s, t = (np.array(ends, dtype=float) for ends in zip(*misses, strict=True))
    assert renderer.trace(s, t).abs().max() == 0


def test_a_single_slice_and_a_single_voxel():
    """Siddon: thickness over cosine. Trilinear: a tent of the same integral across the slice."""
    for shape in ((1, 9, 9), (9, 1, 9), (9, 9, 1), (1, 1, 1)):
        volume = reference.double(np.full(shape, 0.1), reference.grid(3.0, shape))
        thin = shape[::-1].index(1)
        direction = np.zeros(3)
        direction[thin] = 1
        for integrator in INTEGRATORS:
            renderer = Renderer(volume, integrator, step=0.01)
            assert one_ray(renderer, -90 * direction, 90 * direction) == pytest.approx(0.3, rel=1e-5)


@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_parallel_beam(integrator):
    """A box seen along z by parallel rays: the same thickness under every pixel that it covers, zero elsewhere."""
    mu = np.full((10, 20, 30), MU)
    volume = reference.double(mu, reference.grid(1.0, mu.shape, (0, 0, 50)))
    camera = Camera.parallel_beam(9, 9, (4, 4), 100)
    image = Renderer(volume, integrator, step=0.01)(camera, Pose.identity())[0, 0]
    expected = torch.zeros(9, 9, dtype=torch.float64)
    expected[2:7, 1:8] = MU * 10  # |y| < 10 is rows -8 .. 8; |x| < 15 is columns -12 .. 12
    assert torch.allclose(image, expected, rtol=1e-3, atol=1e-12)
    half = Camera.parallel_beam(9, 9, (4, 4), 50)  # the detector in the middle of the box
    image = Renderer(volume, integrator, step=0.01)(half, Pose.identity())[0, 0]
    assert torch.allclose(image, expected / 2, rtol=1e-3, atol=1e-12)


@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_float32_follows_float64(integrator):
    rng = np.random.default_rng(6)
    shape = (20, 21, 22)
    volume = reference.double(rng.uniform(0, MU, shape), samples.oblique_grid(rng, shape))
    carm = CArm(1000, 700, volume.center, primary=33, secondary=12)
    camera = carm.camera(20, 20, (3, 3))
    exact = Renderer(volume, integrator)(camera, carm.pose)
    single = Renderer(volume.to(dtype=torch.float32), integrator)(camera, carm.pose)
    assert single.dtype == torch.float32
    assert torch.allclose(single.double(), exact, rtol=1e-4, atol=1e-5 * float(exact.max()))
