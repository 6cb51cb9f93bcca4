"""Rays through edges and corners of meshes, and meshes in all places that a camera can see, or not."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from DiffDRRCore import Camera, Pose
from DiffDRRCore.datasets.shapes import Box
from DiffDRRCore.errors import PhysicsError
from DiffDRRCore.physics.solids.mesh import Mesh
from DiffDRRCore.physics.solids.rays import _steps, chord_lengths, crossings, crossings_along
from Testing.core import samples
from Testing.core.physics.solids import (
    at,
    box_arrays,
    convex_interval,
    hull_arrays,
    line_lengths,
    numpy_rays,
    sides,
    star_arrays,
)


def exact_step(x: list[float], y: list[float]) -> int:
    """By fractions: whether the point (e, e^2), e small enough, lies in the triangle, and on which way round."""
    e = Fraction(1, 2**400)
    u, v = ([Fraction(value) - shift for value in values] for values, shift in ((x, e), (y, e * e)))
    signs = {(lambda s: (s > 0) - (s < 0))(u[a] * v[b] - u[b] * v[a]) for a, b in ((0, 1), (1, 2), (2, 0))}
    return -signs.pop() if len(signs) == 1 else 0


@given(samples.seeds)
@settings(max_examples=30, deadline=None)
def test_sides_are_exact_where_rounding_hides_them(seed):
    """Triangles with an edge that runs through the origin, or past it by less than a product's rounding."""
    rng = np.random.default_rng(seed)
    corners = rng.normal(size=(60, 2, 3)) * 10.0 ** rng.integers(-12, 4, (60, 1, 1))
    corners[:, :, 1] = corners[:, :, 0] * -rng.choice([0.1, 1, 3, 0.7], (60, 1))
    ulps = np.spacing(np.abs(corners[:, :, 1])) * rng.integers(-1, 2, (60, 2))
    corners[:, :, 1] += ulps
    corners[:10] = rng.integers(-1, 2, (10, 2, 3))
    for order in ((0, 1, 2), (1, 2, 0), (2, 1, 0)):
        x, y = (torch.from_numpy(corners[:, axis][:, list(order)].T.copy()) for axis in (0, 1))
        expected = [exact_step(a, b) for a, b in zip(x.T.tolist(), y.T.tolist(), strict=True)]
        assert _steps(x, y).tolist() == expected


@pytest.mark.parametrize("shift", [(0, 0), (0.5, 0), (0.5, 0.5)])
@pytest.mark.parametrize("side", ["source", "detector"])
def test_faces_on_pixel_centres_belong_to_one_side(shift, side):
    """A box of 4 x 3 pixels has 12 of them wherever it lies: no ray in its boundary counts twice or is lost."""
    camera = Camera.parallel_beam(16, 16, (1, 1), 100, (8, 8), side)
    mesh = Mesh(*box_arrays((-2 + shift[0], -1 + shift[1], 10), (2 + shift[0], 2 + shift[1], 17)))
    chords = chord_lengths(mesh, camera, at(0, 0, 0))
    assert int((chords > 0).sum()) == 12
    np.testing.assert_allclose(chords[chords > 0], 7.0, rtol=1e-13)


def test_neighbouring_boxes_share_out_the_rays_between_them():
    camera = Camera(33, 33, (1, 1), 100)
    boxes = [((-4, -4), (0, 0)), ((0, -4), (4, 0)), ((-4, 0), (0, 4)), ((0, 0), (4, 4))]
    parts = [Mesh(*box_arrays((*low, 50), (*high, 60))) for low, high in boxes]
    whole = chord_lengths(Mesh(*box_arrays((-4, -4, 50), (4, 4, 60))), camera, at(0, 0, 0))
    np.testing.assert_allclose(sum(chord_lengths(part, camera, at(0, 0, 0)) for part in parts), whole, atol=1e-12)
    assert float(whole[16, 16]) == pytest.approx(10, abs=1e-12)


@given(samples.seeds, st.sampled_from(["cone", "parallel", "oblique"]), sides)
@settings(max_examples=40, deadline=None)
def test_rays_through_edges_and_corners_of_lattice_polyhedra(seed, kind, side):
    """Between the lengths in the hull made smaller and larger by 1e-9 mm: neither lost nor counted twice."""
    rng = np.random.default_rng(seed)
    vertices, triangles, planes = hull_arrays(rng, int(rng.integers(8, 25)), lattice=4)
    if kind == "parallel":  # every ray runs along a line of the lattice
        camera, pose = Camera.parallel_beam(12, 12, (1, 1), 40, (6, 6), side), at(0, 0, -20)
    elif kind == "cone":  # from a point of the lattice; every corner of one layer has a ray
        camera, pose = Camera(24, 24, (1, 1), 16, (12, 12), side), at(*rng.integers(-2, 3, 2), -16)
    else:
        turn = samples.rigid(rng, 0)
        camera, pose = Camera(24, 24, (1, 1), 16, (12, 12), side), Pose(turn @ at(0, 0, -16).matrix.numpy())
        vertices, planes = vertices @ turn[:3, :3].T, np.c_[planes[:, :3] @ turn[:3, :3].T, planes[:, 3]]
    source, target = numpy_rays(camera, pose)
    bounds = []
    for grown in (-1e-9, 1e-9):
        near, far = convex_interval(planes, source, target - source, grown)
        part = np.clip(np.minimum(far, 1) - np.maximum(near, 0), 0, None)
        bounds.append(part * np.linalg.norm(target - source, axis=1))
    chords = chord_lengths(Mesh(vertices, triangles), camera, pose).flatten().numpy()
    assert (chords >= bounds[0] - 1e-6).all() and (chords <= bounds[1] + 1e-6).all()
    inner = (bounds[1] - bounds[0] < 1e-6) & (bounds[0] > 1e-3)
    np.testing.assert_allclose(chords[inner], bounds[0][inner], atol=1e-6)
    assert inner.any() or not (bounds[1] > 1e-3).any()  # now and then all of it lies behind the detector


@given(samples.seeds)
@settings(max_examples=8, deadline=None)
def test_rays_at_the_vertices_of_a_bumpy_surface(seed):
    """Every ray aims at a vertex, and the number of entries must still be that of exits, which is checked inside."""
    rng = np.random.default_rng(seed)
    mesh = Mesh(*star_arrays(rng, 1)).transformed(Pose(samples.rigid(rng)))
    middle = mesh.vertices.mean(0)
    source = middle + 200 * torch.from_numpy(samples.rotation(rng)[0])
    target = source + 3 * (mesh.vertices - source)
    chords = crossings_along(mesh, source, target).chord_lengths()
    near = source + 3 * (mesh.vertices - source) + 1e-6 * torch.from_numpy(rng.normal(size=target.shape))
    beside = line_lengths(mesh.vertices.numpy(), mesh.triangles.numpy(), *np.broadcast_arrays(source, near))
    hidden = crossings_along(mesh, source, middle + 1.001 * (mesh.vertices - middle)).chord_lengths()
    assert bool((chords >= 0).all()) and bool((hidden >= 0).all())
    assert abs(chords.numpy() - beside).mean() < 10  # a ray that only touches may go to either side


# What is in the way and what is not


def test_behind_the_source_and_beyond_the_detector():
    camera, pose = Camera(16, 16, (4, 4), 500), at(0, 0, 0)
    for low, high, length in ((-200, -100, 0), (600, 700, 0), (100, 300, 200), (400, 600, 100)):
        mesh = Mesh(*box_arrays((-100, -100, low), (100, 100, high)))
        chords = chord_lengths(mesh, camera, pose)
        source, target = (torch.from_numpy(x) for x in numpy_rays(camera, pose))
        slant = torch.linalg.vector_norm(target - source, dim=-1) / 500
        np.testing.assert_allclose(chords.flatten(), length * slant, atol=1e-9)


@pytest.mark.parametrize("kind", ["cone", "parallel"])
def test_beside_the_source(kind):
    """A plate that reaches from behind the source to beyond the detector."""
    size = (20, 60, (7.0, 5.0), 150)
    camera = Camera(*size) if kind == "cone" else Camera.parallel_beam(*size)
    shape = Box((60, 3, 50), (60, 50, 400))
    mesh = Mesh(*box_arrays((30, -22, -150), (90, 28, 250)))
    source, target = (torch.from_numpy(x) for x in numpy_rays(camera, at(0, 0, 0)))
    chords = chord_lengths(mesh, camera, at(0, 0, 0), allow_inside=kind == "parallel")
    np.testing.assert_allclose(chords.flatten(), shape.chord(source, target), atol=1e-9)
    assert float(chords.max()) > 100


@given(samples.seeds)
@settings(max_examples=12, deadline=None)
def test_meshes_all_around_the_source(seed):
    """Parts in front, beside and behind; triangles that cross the plane of the source."""
    rng = np.random.default_rng(seed)
    boxes = [Box(rng.uniform(-150, 150, 3).tolist(), rng.uniform(20, 120, 3).tolist()) for _ in range(6)]
    boxes = [box for box in boxes if float(box.level((0, 0, 0))) > 1]
    camera, pose = Camera(24, 30, (15, 12), 150), Pose(samples.rigid(rng, 0))
    source, target = (torch.from_numpy(x) for x in numpy_rays(camera, pose))
    for box in boxes:
        corner, size = np.array(box.center), np.array(box.size) / 2
        chords = chord_lengths(Mesh(*box_arrays(corner - size, corner + size)), camera, pose)
        np.testing.assert_allclose(chords.flatten(), box.chord(source, target), atol=1e-9)


@pytest.mark.parametrize("tilt", [0, 20, 45, 70, 90, 130, 160])
def test_a_plate_close_to_the_source(tilt):
    """Its horizon cuts the image: beyond it, rays would meet the same triangles behind the source."""
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_euler("xz", [7, tilt], degrees=True).as_matrix()
    plate, box = Mesh(*box_arrays((-200, 3, -200), (200, 5, 200))), Box((0, 4, 0), (400, 2, 400))
    camera, pose = Camera(40, 40, (3, 3), 150), Pose(turn)
    source, target = (torch.from_numpy(x) for x in numpy_rays(camera, pose))
    np.testing.assert_allclose(chord_lengths(plate, camera, pose).flatten(), box.chord(source, target), atol=1e-8)


def test_partly_outside_the_image():
    rng = np.random.default_rng(7)
    mesh, pose = Mesh(*star_arrays(rng)), at(0, 0, -300)
    camera = Camera(60, 60, (2, 2), 600)
    whole = chord_lengths(mesh, camera, pose)
    assert float(whole[30, 30]) > 0
    part = chord_lengths(mesh, camera.cropped(20, 10, 30, 5), pose)
    np.testing.assert_allclose(part, whole[20:-10, 30:-5], atol=1e-9)
    nothing = crossings(mesh, camera.cropped(0, 0, 2000, -2000), pose)
    assert len(nothing.ray) == 0 and not nothing.mask().any() and torch.isinf(nothing.depth()).all()


def test_a_triangle_far_larger_than_the_image():
    camera, pose = Camera(40, 50, (1, 1), 1000), at(0, 0, 0)
    mesh = Mesh(*box_arrays((-1e7, -3e7, 400), (2e7, 1e7, 500)))
    source, target = numpy_rays(camera, pose)
    slant = np.linalg.norm(target - source, axis=1) / 1000
    np.testing.assert_allclose(chord_lengths(mesh, camera, pose).flatten(), 100 * slant, rtol=1e-8)


@pytest.mark.parametrize("kind", ["cone", "parallel"])
def test_a_source_inside_is_refused_or_allowed(kind):
    size = (9, 9, (10, 10), 300)
    camera = Camera(*size) if kind == "cone" else Camera.parallel_beam(*size)
    mesh, box = Mesh(*box_arrays((-80, -90, -50), (80, 90, 60)), name="table"), Box((0, 0, 5), (160, 180, 110))
    with pytest.raises(PhysicsError, match="source lies inside the mesh 'table'; move the source or the mesh"):
        crossings(mesh, camera, at(0, 0, 0))
    source, target = (torch.from_numpy(x) for x in numpy_rays(camera, at(0, 0, 0)))
    allowed = crossings(mesh, camera, at(0, 0, 0), allow_inside=True)
    np.testing.assert_allclose(allowed.chord_lengths().flatten(), box.chord(source, target), atol=1e-9)
    assert float(allowed.entry.max()) == 0
    with pytest.raises(PhysicsError, match="source lies inside"):
        crossings_along(mesh, source, target)
    along = crossings_along(mesh, source, target, allow_inside=True)
    np.testing.assert_allclose(along.chord_lengths(), box.chord(source, target), atol=1e-9)


def test_a_surface_with_a_leak_is_not_lost_in_silence():
    whole = Mesh(*box_arrays((-50, -50, 100), (50, 50, 200)), name="screw")
    leaking = whole._of(whole.vertices, whole.triangles[2:])  # past the check that meshes are closed
    camera = Camera(16, 16, (2, 2), 500)
    with pytest.raises(PhysicsError, match=r"256 rays do not enter the mesh 'screw' as often as they leave it"):
        crossings(leaking, camera, at(0, 0, 0))
