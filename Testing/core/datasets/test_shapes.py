"""Chords by hand, by dense sampling, and the voxelised shapes."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from DiffDRRCore.datasets.shapes import Box, Cylinder, Sphere, voxelize
from DiffDRRCore.errors import GeometryError, VolumeError

TURN = Rotation.from_euler("zyx", [20, -35, 50], degrees=True).as_matrix().tolist()
DIAGONAL = ((math.sqrt(0.5), math.sqrt(0.5), 0), (math.sqrt(0.5), -math.sqrt(0.5), 0), (0, 0, 1))
SHAPES = {
    "sphere": Sphere((5.0, -3.0, 8.0), 20.0),
    "box": Box((5.0, -3.0, 8.0), (30.0, 20.0, 44.0)),
    "turned box": Box((5.0, -3.0, 8.0), (30.0, 20.0, 44.0), TURN),
    "cylinder": Cylinder((5.0, -3.0, 8.0), (0.0, 0.0, 1.0), 15.0, 40.0),
    "turned cylinder": Cylinder((5.0, -3.0, 8.0), (1.0, -2.0, 0.5), 15.0, 40.0),
}


def point(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


@pytest.mark.parametrize(
    ("shape", "source", "target", "length"),
    [
        (Sphere((1, 2, 3), 5), (1, 2, -100), (1, 2, 100), 10),
        (Sphere((1, 2, 3), 5), (4, 2, -100), (4, 2, 100), 8),  # 3 off the centre: 2 sqrt(25 - 9)
        (Sphere((1, 2, 3), 5), (6, 2, -100), (6, 2, 100), 0),  # touches
        (Sphere((1, 2, 3), 5), (1, 2, 3), (1, 2, 100), 5),  # starts at the centre
        (Sphere((1, 2, 3), 5), (1, 2, 2), (1, 2, 5), 3),  # all of it inside
        (Sphere((1, 2, 3), 5), (1, 2, 9), (1, 2, 100), 0),  # the shape is behind the source
        (Sphere((1, 2, 3), 5), (1, 2, -100), (1, 2, -3), 0),  # and beyond the target
        (Sphere((1, 2, 3), 5), (1, 2, 3), (1, 2, 3), 0),  # no length
        (Box((0, 0, 0), (2, 4, 6)), (-9, 0, 0), (9, 0, 0), 2),
        (Box((0, 0, 0), (2, 4, 6)), (0, 0, -1), (0, 0, 9), 4),
        (Box((0, 0, 0), (2, 2, 2)), (-3, -3, -3), (3, 3, 3), 2 * math.sqrt(3)),
        (Box((0, 0, 0), (2, 2, 2)), (-9, 1, 0), (9, 1, 0), 2),  # within a face
        (Box((0, 0, 0), (2, 2, 2)), (-9, 1.001, 0), (9, 1.001, 0), 0),  # parallel to it, outside
        (Box((0, 0, 0), (2, 2, 2)), (-2, 0, 0), (0, 2, 0), 0),  # touches an edge
        (Box((0, 0, 0), (2, 2, 9), DIAGONAL), (-9, 0, 0), (9, 0, 0), 2 * math.sqrt(2)),
        (Cylinder((0, 0, 0), (0, 0, 2), 5, 8), (0, 0, -9), (0, 0, 9), 8),  # along the axis
        (Cylinder((0, 0, 0), (0, 0, 2), 5, 8), (5, 0, -9), (5, 0, 9), 8),  # within the side
        (Cylinder((0, 0, 0), (0, 0, 2), 5, 8), (5.001, 0, -9), (5.001, 0, 9), 0),
        (Cylinder((0, 0, 0), (0, 0, 2), 5, 8), (-9, 3, 1), (9, 3, 1), 8),
        (Cylinder((0, 0, 0), (0, 0, 2), 5, 8), (-9, 3, 4), (9, 3, 4), 8),  # within an end
        (Cylinder((0, 0, 0), (0, 0, 2), 5, 8), (-9, 3, 4.001), (9, 3, 4.001), 0),
        (Cylinder((0, 0, 0), (0, 0, 2), 5, 8), (-8, 0, -8), (8, 0, 8), 8 * math.sqrt(2)),  # out through both ends
        (Cylinder((0, 0, 0), (3, 0, 0), 5, 8), (0, -9, 0), (0, 9, 0), 10),
    ],
)
def test_chord_by_hand(shape, source, target, length):
    for a, b in ((source, target), (target, source)):
        assert shape.chord(point(*a), point(*b)).item() == pytest.approx(length, abs=1e-12)
        single = shape.chord(point(*a).float(), point(*b).float())
        assert single.dtype == torch.float32 and single.item() == pytest.approx(length, abs=1e-5)


@pytest.mark.parametrize("name", SHAPES)
def test_chord_against_dense_sampling(name):
    generator = torch.Generator().manual_seed(1)
    s, t = (40 * torch.randn(60, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    t[:30] = s[:30] + 3 * (point(5, -3, 8) - s[:30])  # half of them through the centre
    parts = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    inside = SHAPES[name].inside(s[:, None] + parts[:, None] * (t - s)[:, None])
    length = (t - s).norm(dim=-1)
    chord = SHAPES[name].chord(s, t)
    assert ((chord - inside.double().mean(dim=-1) * length).abs() <= 2 * length / 20_000).all()
    assert (chord > 1).sum() > 20


@pytest.mark.parametrize("name", SHAPES)
@given(seed=st.integers(0, 10_000), cut=st.floats(0, 1))
@settings(max_examples=25, deadline=None)
def test_chords_add_up_and_do_not_depend_on_direction(name, seed, cut):
    generator = torch.Generator().manual_seed(seed)
    s, t = (30 * torch.randn(20, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    middle = s + cut * (t - s)
    shape = SHAPES[name]
    torch.testing.assert_close(shape.chord(s, middle) + shape.chord(middle, t), shape.chord(s, t), atol=1e-9, rtol=0)
    torch.testing.assert_close(shape.chord(t, s), shape.chord(s, t), atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", SHAPES)
def test_chord_gradients(name):
    s = torch.tensor([[-60.0, 10.0, 4.0], [50.0, 40.0, -30.0], [200.0, 0.0, 0.0]], dtype=torch.float64)
    t = torch.tensor([[60.0, -5.0, 12.0], [-40.0, -40.0, 45.0], [200.0, 9.0, 0.0]], dtype=torch.float64)
    assert torch.autograd.gradcheck(SHAPES[name].chord, (s.requires_grad_(), t.requires_grad_()))
    along = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    SHAPES[name].chord(along, along + point(0, 0, 50)).backward()
    assert torch.isfinite(along.grad).all()


def test_chord_broadcasts():
    s, t = torch.zeros(1, 3), torch.randn(4, 5, 3)
    assert Sphere((0, 0, 0), 1).chord(s, t).shape == (4, 5)


@pytest.mark.parametrize("name", SHAPES)
def test_level_never_exceeds_the_distance_to_the_surface(name):
    """So a point whose |level| is above r has a ball of radius r all on one side."""
    generator = torch.Generator().manual_seed(2)
    points = point(5, -3, 8) + 25 * torch.randn(400, 3, generator=generator, dtype=torch.float64)
    directions = torch.nn.functional.normalize(torch.randn(200, 3, generator=generator, dtype=torch.float64), dim=-1)
    level = SHAPES[name].level(points)
    reach = 0.999 * level.abs()[:, None, None] * directions
    assert (SHAPES[name].inside(points[:, None] + reach) == (level <= 0)[:, None]).all()


AFFINE = torch.tensor([[2.0, 0, 0, -20], [0, -3, 0, 30], [0, 0, 2.5, -25], [0, 0, 0, 1]], dtype=torch.float64)
SHEARED = AFFINE + torch.tensor([[0, 0.4, 0, 0], [0.3, 0, 0, 0], [0, 0.2, 0, 0], [0, 0, 0, 0]])


def test_a_box_on_voxel_faces_is_exact():
    # voxels 3..7 along i, 2..5 along j, 6..6 along k: faces at index 2.5 and 7.5, 1.5 and 5.5, 5.5 and 6.5
    low, high = (AFFINE @ point(*index, 1) for index in ((2.5, 1.5, 5.5), (7.5, 5.5, 6.5)))
    box = Box(((low + high) / 2)[:3].tolist(), (high - low)[:3].abs().tolist())
    volume = voxelize(box, (12, 14, 16), AFFINE, mu=0.02)
    expected = torch.zeros(12, 14, 16, dtype=torch.float64)
    expected[6:7, 2:6, 3:8] = 0.02
    torch.testing.assert_close(volume.attenuation.double(), expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(volume.ijk_to_ras, AFFINE)


@pytest.mark.parametrize("affine", [AFFINE, SHEARED], ids=["flipped", "sheared"])
@pytest.mark.parametrize(
    ("shape", "volume"),
    [
        (Sphere((1, 0, 2), 9), 4 / 3 * math.pi * 9**3),
        (Cylinder((1, 0, 2), (1, 1, 1), 6, 14), math.pi * 36 * 14),
        (Box((1, 0, 2), (11, 9, 13), TURN), 11 * 9 * 13),
    ],
)
def test_voxels_hold_the_shapes_volume(affine, shape, volume):
    voxels = voxelize(shape, (22, 22, 22), affine, mu=0.5, supersample=6)
    filled = voxels.attenuation.double().sum() / 0.5 * torch.linalg.det(affine).abs()
    assert filled.item() == pytest.approx(volume, rel=5e-3)
    assert voxels.attenuation.min() == 0 and voxels.attenuation.max().item() == pytest.approx(0.5)


def test_partial_voxels_against_counting():
    sphere = Sphere((1, 0, 2), 9)
    fraction = voxelize(sphere, (22, 22, 22), AFFINE, mu=1.0, supersample=8).attenuation.double()
    generator = torch.Generator().manual_seed(0)
    index = torch.tensor([[12, 10, 11], [10, 7, 11], [14, 9, 10], [7, 9, 11], [10, 10, 14]])  # (i, j, k)
    sub = index[:, None] + torch.rand(5, 100_000, 3, generator=generator, dtype=torch.float64) - 0.5
    inside = sphere.inside(sub @ AFFINE[:3, :3].T + AFFINE[:3, 3]).double().mean(dim=-1)
    assert ((inside > 0.05) & (inside < 0.95)).sum() >= 2
    i, j, k = index.T
    torch.testing.assert_close(fraction[k, j, i], inside, atol=0.02, rtol=0)


@pytest.mark.parametrize(
    "build",
    [
        lambda: Sphere((0, 0, 0), 0),
        lambda: Sphere((0, 0, 0), math.nan),
        lambda: Box((0, 0, 0), (1, -1, 1)),
        lambda: Box((0, 0, 0), (1, 1, 1), ((1, 0, 0), (0, 1, 0), (0, 0.1, 1))),
        lambda: Cylinder((0, 0, 0), (0, 0, 0), 1, 1),
        lambda: Cylinder((0, 0, 0), (0, 0, 1), 1, math.inf),
    ],
)
def test_bad_shapes(build):
    with pytest.raises(GeometryError):
        build()


def test_bad_voxels():
    for options in ({"mu": -1.0}, {"mu": math.nan}, {"mu": 1.0, "supersample": 0}):
        with pytest.raises(VolumeError):
            voxelize(Sphere((0, 0, 0), 1), (4, 4, 4), torch.eye(4), **options)
