"""Rays through meshes: closed forms, half spaces, another algorithm, and rays through edges and corners."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from scipy.spatial.transform import Rotation

from DiffDRRCore import Camera, Pose
from DiffDRRCore.datasets.shapes import Box, Sphere
from DiffDRRCore.errors import GeometryError, PhysicsError
from DiffDRRCore.geometry import pixel_rays
from DiffDRRCore.physics.solids.mesh import Mesh
from DiffDRRCore.physics.solids.rays import chord_lengths, crossings, crossings_along, depth, mask
from Testing.core import samples
from Testing.core.physics.solids import (
    Interval,
    at,
    box_arrays,
    convex_interval,
    hull_arrays,
    icosphere_arrays,
    joined,
    kinds,
    line_lengths,
    numpy_rays,
    sides,
    some_camera,
    star_arrays,
)

# Closed forms


def test_finer_spheres_approach_the_formula_with_the_square_of_the_edge():
    rng = np.random.default_rng(1)
    camera, pose = Camera(64, 64, (1.5, 2.0), 1000, (29.3, 33.1)), samples.looking_at(rng, (3, 4, 5), 600)
    exact = Sphere((3, 4, 5), 25).chord(*pixel_rays(camera, pose)).reshape(64, 64)
    errors = []
    for subdivisions in (2, 3, 4):
        chords = chord_lengths(Mesh(*icosphere_arrays(25.0, subdivisions, (3, 4, 5))), camera, pose)
        assert bool((chords <= exact + 1e-9).all())  # the mesh lies inside the sphere
        errors.append(float((exact - chords)[exact > 25].max()))
    assert errors[2] < 0.1
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.3) and errors[1] / errors[2] == pytest.approx(4, rel=0.3)


@given(samples.seeds, kinds, sides)
@settings(max_examples=12, deadline=None)
def test_boxes_are_exact(seed, kind, side):
    rng = np.random.default_rng(seed)
    camera, pose = some_camera(rng, kind, side), samples.looking_at(rng, (0, 0, 0), 300)
    low, high = -rng.uniform(2, 30, 3), rng.uniform(2, 30, 3)
    place = samples.rigid(rng, 10)
    mesh = Mesh(*box_arrays(low, high)).transformed(Pose(place))
    center = place[:3, :3] @ (low + high) / 2 + place[:3, 3]
    box = Box(center.tolist(), (high - low).tolist(), place[:3, :3].T.tolist())
    source, target = (torch.from_numpy(x).unflatten(0, (30, 40)) for x in numpy_rays(camera, pose))
    np.testing.assert_allclose(chord_lengths(mesh, camera, pose), box.chord(source, target), atol=1e-9)
    entry = depth(mesh, camera, pose)
    near, _ = Interval(box).interval(source, target)
    met = box.chord(source, target) > 1e-6
    np.testing.assert_allclose(entry[met], near[met], rtol=1e-12, atol=1e-9)
    assert bool(torch.isinf(entry[box.chord(source, target) == 0]).all())
    assert torch.equal(mask(mesh, camera, pose), torch.isfinite(entry))


def test_shadow_of_a_sphere_on_the_axis():
    """R = 50 mm at 530 mm on a detector at 1020 mm: a disc of radius 1020 * 50 / sqrt(530^2 - 50^2) = 96.66 mm."""
    camera = Camera(401, 401, (0.5, 0.5), 1020)
    shadow = mask(Mesh(*icosphere_arrays(50.0, 5)), camera, at(0, 0, -530))
    radius = math.sqrt(float(shadow.sum()) * 0.25 / math.pi)
    assert radius == pytest.approx(1020 * 50 / math.sqrt(530**2 - 50**2), abs=0.05)


@given(samples.seeds, sides)
@settings(max_examples=5, deadline=None)
def test_a_cone_beam_sweeps_the_whole_volume(seed, side):
    """The volume is the sum over pixels of their solid angle times (exit^3 - entry^3) / 3."""
    rng = np.random.default_rng(seed)
    camera, pose = Camera(300, 250, (0.5, 0.6), 800, None, side), samples.looking_at(rng, (0, 0, 0), 500)
    mesh = Mesh(*star_arrays(rng))
    found = crossings(mesh, camera, pose)
    source, target = numpy_rays(camera, pose)
    angle = 0.5 * 0.6 * 800 / np.linalg.norm(target - source, axis=1) ** 3
    parts = (found.exit**3 - found.entry**3).numpy() / 3 * angle[found.ray.numpy()]
    assert parts.sum() == pytest.approx(float(mesh.volume), rel=2e-3)


def test_a_parallel_beam_sweeps_the_whole_volume():
    rng = np.random.default_rng(5)
    camera, pose = Camera.parallel_beam(200, 220, (0.5, 0.4), 500), samples.looking_at(rng, (0, 0, 0), 250)
    mesh = Mesh(*star_arrays(rng))
    assert float(chord_lengths(mesh, camera, pose).sum()) * 0.2 == pytest.approx(float(mesh.volume), rel=1e-3)


# Other ways to the same numbers


@given(samples.seeds, kinds, sides)
@settings(max_examples=12, deadline=None)
def test_convex_meshes_against_their_half_spaces(seed, kind, side):
    rng = np.random.default_rng(seed)
    vertices, triangles, planes = hull_arrays(rng, int(rng.integers(4, 30)))
    camera, pose = some_camera(rng, kind, side), samples.looking_at(rng, (0, 0, 0), 300)
    source, target = numpy_rays(camera, pose)
    near, far = convex_interval(planes, source, target - source)
    length = np.clip(np.minimum(far, 1) - np.maximum(near, 0), 0, None) * np.linalg.norm(target - source, axis=1)
    chords = chord_lengths(Mesh(vertices, triangles), camera, pose)
    np.testing.assert_allclose(chords.flatten(), length, atol=1e-7)


@given(samples.seeds, kinds, sides)
@settings(max_examples=8, deadline=None)
def test_meshes_that_are_not_convex_against_moeller_trumbore(seed, kind, side):
    rng = np.random.default_rng(seed)
    arrays = star_arrays(rng)
    camera, pose = some_camera(rng, kind, side), samples.looking_at(rng, rng.normal(0, 20, 3), 300)
    source, target = numpy_rays(camera, pose)
    expected = line_lengths(*arrays, source, target)
    np.testing.assert_allclose(chord_lengths(Mesh(*arrays), camera, pose).flatten(), expected, atol=1e-8)
    np.testing.assert_allclose(crossings_along(Mesh(*arrays), source, target).chord_lengths(), expected, atol=1e-8)


@given(samples.seeds, kinds)
@settings(max_examples=8, deadline=None)
def test_rays_of_a_camera_are_rays(seed, kind):
    rng = np.random.default_rng(seed)
    mesh = Mesh(*star_arrays(rng))
    camera, pose = some_camera(rng, kind, "detector"), samples.looking_at(rng, (0, 0, 0), 300)
    image = crossings(mesh, camera, pose)
    one_by_one = crossings_along(mesh, *(x[0] for x in pixel_rays(camera, pose)))
    assert image.shape == (30, 40) and one_by_one.shape == (1200,)
    assert torch.equal(image.ray, one_by_one.ray)
    np.testing.assert_allclose(image.entry, one_by_one.entry, atol=1e-8)
    np.testing.assert_allclose(image.exit, one_by_one.exit, atol=1e-8)


@given(samples.seeds)
@settings(max_examples=12, deadline=None)
def test_turning_a_ray_round_leaves_its_length(seed):
    rng = np.random.default_rng(seed)
    mesh = Mesh(*star_arrays(rng, 1))
    source, target = rng.normal(0, 100, (2, 50, 3))
    there, back = (crossings_along(mesh, a, b, allow_inside=True) for a, b in ((source, target), (target, source)))
    np.testing.assert_allclose(there.chord_lengths(), back.chord_lengths(), atol=1e-8)


def test_rays_along_the_axes_and_rays_of_no_length():
    mesh = Mesh(*box_arrays((-1, -2, -3), (1, 2, 3)))
    source = torch.tensor([[-9.0, 0, 0], [9, 0.5, 0.3], [0, 9, 0], [0, -9, 0], [0.2, 0.1, 9], [0, 0, -9], [5, 5, 5]])
    target = torch.tensor([[9.0, 0, 0], [-9, 0.5, 0.3], [0, -9, 0], [0, 9, 0], [0.2, 0.1, -9], [0, 0, 9], [5, 5, 5]])
    found = crossings_along(mesh, source, target)
    assert found.chord_lengths().tolist() == pytest.approx([2, 2, 4, 4, 6, 6, 0], abs=1e-12)
    assert found.depth().tolist() == pytest.approx([8, 8, 7, 7, 6, 6, math.inf], abs=1e-12)
    assert crossings_along(mesh, source[0], target[:6].reshape(2, 3, 3)).shape == (2, 3)


# Several surfaces in one mesh


def test_overlapping_parts_are_one_solid():
    camera, pose = Camera(8, 8, (1, 1), 100), at(0, 0, 0)
    apart = joined(box_arrays((-9, -9, 50), (9, 9, 70)), box_arrays((-9, -9, 60), (9, 9, 85)))
    one = Mesh(*box_arrays((-9, -9, 50), (9, 9, 85)))
    np.testing.assert_allclose(chord_lengths(Mesh(*apart), camera, pose), chord_lengths(one, camera, pose), atol=1e-12)
    assert len(crossings(Mesh(*apart), camera, pose).ray) == 64


def test_a_part_inside_turned_inside_out_is_a_cavity():
    camera, pose = Camera(8, 8, (1, 1), 100), at(0, 0, 0)
    vertices, triangles = box_arrays((-20, -20, 60), (20, 20, 70))
    hollow = Mesh(*joined(box_arrays((-30, -30, 50), (30, 30, 90)), (vertices, triangles[:, ::-1])))
    found = crossings(hollow, camera, pose)
    source, target = numpy_rays(camera, pose)
    slant = np.linalg.norm(target - source, axis=1) / 100
    np.testing.assert_allclose(found.chord_lengths().flatten(), 30 * slant, atol=1e-9)
    np.testing.assert_allclose(found.entry.reshape(64, 2), np.outer(slant, [50, 70]), atol=1e-9)
    np.testing.assert_allclose(found.exit.reshape(64, 2), np.outer(slant, [60, 90]), atol=1e-9)


def test_a_part_turned_inside_out_beside_others_is_not_lost():
    camera, pose = Camera(8, 8, (1, 1), 100), at(0, 0, 0)
    vertices, triangles = box_arrays((-20, -20, 20), (20, 20, 25))
    mesh = Mesh(*joined(box_arrays((-30, -30, 50), (30, 30, 90)), (vertices, triangles[:, ::-1])))
    assert float(chord_lengths(mesh, camera, pose).min()) > 45


# Shapes, gradients, bad input


@pytest.mark.parametrize("kind", ["cone", "parallel"])
def test_solids_of_one_interval(kind):
    rng = np.random.default_rng(3)
    camera, pose = some_camera(rng, kind, "detector"), samples.looking_at(rng, (1, 2, 3), 300)
    ball = Sphere((1, 2, 3), 20)
    source, target = (torch.from_numpy(x) for x in numpy_rays(camera, pose))
    found = crossings(Interval(ball), camera, pose)
    np.testing.assert_allclose(found.chord_lengths().flatten(), ball.chord(source, target), atol=1e-9)
    along = crossings_along(Interval(ball), source, target)
    assert torch.equal(along.entry, found.entry) and found.shape == (30, 40) and along.shape == (1200,)
    with pytest.raises(PhysicsError, match="source lies inside the solid; move the source or the solid"):
        crossings(Interval(Sphere(pose.translation.tolist(), 5)), Camera(8, 8, (1, 1), 500), pose)


@pytest.mark.parametrize("kind", ["cone", "parallel"])
def test_gradients_by_pose_and_vertices(kind):
    rng = np.random.default_rng(11)
    mesh = Mesh(*icosphere_arrays(20.0, 1))
    camera, pose = some_camera(rng, kind, "source"), samples.looking_at(rng, (0, 0, 0), 300)
    weight = torch.from_numpy(rng.normal(size=(30, 40)))
    inner = chord_lengths(mesh, camera, pose) > 15  # where a small motion does not reach the outline

    def value(xi: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        moved = mesh._of(mesh.vertices * scale, mesh.triangles)
        return (chord_lengths(moved, camera, pose.retract(xi)) * weight)[inner].sum()

    start = torch.zeros(6, dtype=torch.float64, requires_grad=True), torch.ones(3).double().requires_grad_()
    slopes = torch.autograd.grad(value(*start), start)
    for which, slope in enumerate(slopes):
        for n in range(len(slope)):
            step = [torch.zeros_like(x) for x in start]
            step[which][n] = 1e-6
            ahead, back = (value(*(x.detach() + s * h for x, h in zip(start, step, strict=True))) for s in (1, -1))
            assert float(slope[n]) == pytest.approx(float(ahead - back) / 2e-6, rel=1e-4, abs=1e-3)
        assert float(slope.abs().max()) > 1


def test_one_view_at_a_time():
    mesh = Mesh(*box_arrays((-1, -1, 50), (1, 1, 60)))
    batch = Pose(np.eye(4)[None].repeat(2, 0))
    with pytest.raises(GeometryError, match="one camera and one pose at a time"):
        crossings(mesh, Camera(4, 4, (1, 1), 100), batch)
    single = crossings(mesh, Camera(4, 4, (1, 1), 100).to(torch.float32), Pose(torch.eye(4)[None]))
    assert single.shape == (4, 4) and single.entry.dtype == torch.float64
    with pytest.raises(GeometryError, match="three numbers"):
        crossings_along(mesh, [[0, 0]], [[1, 1]])


def test_chunks_do_not_show(monkeypatch):
    from DiffDRRCore.physics.solids import pixels as mesh_pixels
    from DiffDRRCore.physics.solids import rays as mesh_rays

    rng = np.random.default_rng(13)
    mesh, pose = Mesh(*star_arrays(rng)), samples.looking_at(rng, (0, 0, 0), 300)
    camera = Camera(50, 60, (3, 2), 700)
    rays = [x[0] for x in pixel_rays(camera, pose)]
    before = crossings(mesh, camera, pose), crossings_along(mesh, *rays)
    monkeypatch.setattr(mesh_pixels, "_AT_A_TIME", 97)
    monkeypatch.setattr(mesh_rays, "_PAIRS_AT_A_TIME", 5000)
    after = crossings(mesh, camera, pose), crossings_along(mesh, *rays)
    for one, other in zip(before, after, strict=True):
        assert torch.equal(one.ray, other.ray) and torch.equal(one.entry, other.entry)


def test_a_wire_at_every_angle():
    """A thin prism: triangles whose boxes are almost empty. Its length through the middle is known."""
    for angle in np.linspace(0, 80, 9):
        turn = np.eye(4)
        turn[:3, :3] = Rotation.from_euler("xz", [angle, 2 * angle + 1], degrees=True).as_matrix()
        wire = Mesh(*box_arrays((-0.5, -150, -0.5), (0.5, 150, 0.5))).transformed(turn)
        camera, pose = Camera(101, 101, (1, 1), 1000), at(0, 0, -500)
        box = Box((0, 0, 0), (1, 300, 1), turn[:3, :3].T.tolist())
        source, target = (torch.from_numpy(x) for x in numpy_rays(camera, pose))
        np.testing.assert_allclose(chord_lengths(wire, camera, pose).flatten(), box.chord(source, target), atol=1e-8)
