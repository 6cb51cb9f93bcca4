"""Shapes in closed form: only the pixels around them are looked at, and nothing is lost by it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch.testing import assert_close

from DiffDRRCore import Camera, Pose
from DiffDRRCore.datasets.shapes import Box, Cylinder, Shape, Sphere
from DiffDRRCore.errors import PhysicsError
from DiffDRRCore.geometry import pixel_rays
from DiffDRRCore.physics import BeamObject
from DiffDRRCore.physics.solids import rays
from DiffDRRCore.physics.solids.pixels import pixels_around
from DiffDRRCore.physics.solids.rays import crossings, crossings_along
from Testing.core import samples
from Testing.core.physics.solids import kinds, sides, some_camera


def some_shape(rng) -> Shape:
    """Within some 60 mm of the origin, now and then much larger than the image."""
    center, axes = rng.uniform(-60, 60, 3).tolist(), samples.rigid(rng, 1.0)[:3, :3]
    size = rng.uniform(1, 20) * rng.choice([1, 1, 1, 12])
    shapes = (
        Sphere(center, size),
        Box(center, rng.uniform(1, 40, 3).tolist(), axes.tolist()),
        Cylinder(center, (3 * axes[2]).tolist(), size, rng.uniform(1, 400)),
    )
    return shapes[rng.integers(3)]


@given(samples.seeds)
@settings(max_examples=30, deadline=None)
def test_shapes_are_within_their_corners(seed):
    rng = np.random.default_rng(seed)
    shape = some_shape(rng)
    corners = shape.corners()
    middle = corners.mean(dim=0)
    edges = torch.stack([corners[n] - corners[0] for n in (4, 2, 1)])
    size = torch.linalg.vector_norm(edges, dim=-1)
    axes = edges / size[:, None]
    assert_close(axes @ axes.T, torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-9)
    directions = (torch.from_numpy(rng.normal(size=(2000, 3))) * size) @ axes
    near, far = shape.interval(middle, middle + directions)
    unit = directions / torch.linalg.vector_norm(directions, dim=-1, keepdim=True)
    surface = torch.cat([middle + unit * near[:, None], middle + unit * far[:, None]])
    local = ((surface - middle) @ axes.T).abs() / size
    assert bool((local <= 0.5 + 1e-9).all())
    assert bool((local.amax(dim=0) > 0.4).all())  # and it reaches nearly to each of the six faces


@given(samples.seeds, kinds, sides)
@settings(max_examples=40, deadline=None)
def test_every_ray_that_meets_a_shape_is_found(seed, kind, side):
    rng = np.random.default_rng(seed)
    camera, pose = some_camera(rng, kind, side), samples.looking_at(rng, (0, 0, 0), rng.uniform(100, 300))
    solid = BeamObject(some_shape(rng), "Ti", Pose(samples.rigid(rng, 20))).placed
    found = crossings(solid, camera, pose, allow_inside=True)
    every = crossings_along(solid, *(end[0] for end in pixel_rays(camera, pose)), allow_inside=True)
    # A ray that only just touches may be told either way.
    lengths = every.chord_lengths().reshape(found.shape)
    assert_close(found.chord_lengths(), lengths, rtol=1e-9, atol=1e-6)
    assert_close(found.depth()[lengths > 1e-3], every.depth().reshape(found.shape)[lengths > 1e-3])
    assert bool((found.ray[1:] >= found.ray[:-1]).all())


def test_only_the_pixels_around_a_shape_are_looked_at(monkeypatch):
    camera, pose = Camera(100, 120, (1.0, 1.0), 1000.0), samples.looking_at(np.random.default_rng(0), (0, 0, 0), 500.0)
    seen, of_convex = [], rays._of_convex
    monkeypatch.setattr(rays, "_of_convex", lambda solid, *ends: seen.append(ends[0].shape) or of_convex(solid, *ends))
    crossings(Sphere((0, 0, 0), 5.0), camera, pose)
    assert 20**2 <= seen[0][0] <= 36**2  # 10 mm at twice their size, and at most the diagonal of a cube of them


def test_pixels_around_points():
    camera = Camera(100, 120, (1.0, 1.0), 1000.0)
    around = pixels_around(torch.tensor([[-1.0, -2.0, 500.0], [2.0, 3.0, 500.0]]).double(), camera)
    row, column = around // 120, around % 120  # the middle is at (59.5, 49.5), a mm is two pixels
    assert (int(row.min()), int(row.max())) == (46, 55) and (int(column.min()), int(column.max())) == (58, 63)
    assert len(around) == 10 * 6 and bool((around.diff() > 0).all())
    aside = torch.tensor([[90.0, 0.0, 500.0], [91.0, 1.0, 510.0]]).double()
    assert len(pixels_around(aside, camera)) == 0
    assert len(pixels_around(torch.cat([aside, -aside]), camera)) == 100 * 120  # on both sides of the source


def test_a_shape_beside_the_image_and_one_around_the_source():
    camera, pose = Camera(10, 12, (1.0, 1.0), 1000.0), Pose(torch.eye(4, dtype=torch.float64))
    aside = crossings(Sphere((300.0, 0.0, 500.0), 5.0), camera, pose)
    assert len(aside.ray) == 0 and aside.shape == (10, 12) and not bool(aside.mask().any())
    with pytest.raises(PhysicsError, match="inside"):
        crossings(Cylinder((0, 0, 0), (1, 0, 0), 3.0, 50.0), camera, pose)


def test_gradients_of_a_shape_reach_the_pose():
    camera, pose = Camera(9, 8, (2.0, 2.0), 1000.0), samples.looking_at(np.random.default_rng(1), (0, 0, 0), 500.0)
    screw = Cylinder((1.0, 0.0, 2.0), (1.0, 0.3, 0.2), 3.0, 400.0)
    weights = torch.randn(9, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def loss(xi):
        return (crossings(screw, camera, pose.retract(xi, about=(0.0, 0.0, 0.0))).chord_lengths() * weights).sum()

    zero = torch.zeros(6, dtype=torch.float64)
    slope = samples.jacobian(loss, zero)
    assert float(slope.abs().max()) > 1
    assert_close(slope, samples.differences(loss, zero, 1e-6), rtol=1e-4, atol=1e-4)
