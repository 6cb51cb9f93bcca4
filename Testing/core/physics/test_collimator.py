"""Collimation against the geometry of straight and round edges."""

from __future__ import annotations

import math

import pytest
import torch

from DiffDRRCore.errors import PhysicsError
from DiffDRRCore.physics.collimator import Collimator, penumbra_width

SPACING = (0.5, 0.25)


def test_an_open_collimator_is_one_everywhere():
    assert torch.equal(Collimator().field(6, 7, SPACING), torch.ones(6, 7))


def test_blades_cover_so_many_mm_of_each_side():
    field = Collimator(blades=(5.0, 2.5, 1.0, 3.0)).field(60, 80, SPACING)
    assert field[:10].max() == 0 and field[10, 40] == 1
    assert field[-5:].max() == 0 and field[-6, 40] == 1
    assert field[:, :4].max() == 0 and field[30, 4] == 1
    assert field[:, -12:].max() == 0 and field[30, -13] == 1
    assert torch.equal(Collimator(blades=(10, 5, 4, 12), unit="px").field(60, 80, SPACING), field)


def test_an_edge_within_a_pixel_covers_its_part():
    field = Collimator(blades=(5.2, 0.0, 0.0, 0.0)).field(60, 80, SPACING, torch.float64)
    assert field[9].max() == 0 and float(field[10, 3]) == pytest.approx(0.6)  # 0.3 of 0.5 mm are open
    assert float(field.sum()) == pytest.approx((30 - 5.2) / 0.5 * 80)


def test_the_penumbra_is_a_ramp_of_its_width_about_the_edge():
    field = Collimator(blades=(0.0, 0.0, 10.0, 0.0), penumbra=4.0).field(2, 160, SPACING, torch.float64)
    place = (torch.arange(160, dtype=torch.float64) + 0.5) * 0.25
    torch.testing.assert_close(field[0], ((place - 8) / 4).clamp(0, 1))


def test_penumbra_follows_from_similar_triangles():
    assert penumbra_width(0.6, 1000.0, 250.0) == pytest.approx(1.8)
    assert penumbra_width(0.0, 1000.0, 250.0) == 0


def test_blades_let_through_their_transmission():
    field = Collimator(blades=(5.0, 0.0, 0.0, 0.0), transmission=0.01).field(60, 80, SPACING)
    assert float(field[0, 0]) == pytest.approx(0.01) and float(field[-1, 0]) == 1


@pytest.mark.parametrize("radius", [3.0, 8.0])
@pytest.mark.parametrize("center", [(0.0, 0.0), (4.0, -2.0)])
def test_a_round_field_has_the_area_and_the_centre_of_its_circle(radius, center):
    field = Collimator(radius=radius, center=center).field(80, 160, SPACING, torch.float64)
    y = (torch.arange(80, dtype=torch.float64) - 39.5) * 0.5
    x = (torch.arange(160, dtype=torch.float64) - 79.5) * 0.25
    assert float(field.sum()) * 0.125 == pytest.approx(math.pi * radius**2, rel=5e-3)
    assert float((field.sum(0) * x).sum() / field.sum()) == pytest.approx(center[0], abs=0.01)
    assert float((field.sum(1) * y).sum() / field.sum()) == pytest.approx(center[1], abs=0.01)


def test_a_round_field_in_pixels_is_round_in_pixels():
    field = Collimator(radius=20.0, center=(3.0, 0.0), unit="px").field(64, 64, SPACING)
    inside = (field > 0.5).nonzero().float()
    assert inside.amin(dim=0).tolist() == [12, 15] and inside.amax(dim=0).tolist() == [51, 54]


def test_a_polygon_is_filled_by_the_even_odd_rule():
    # An L: not convex, area 300 - 100 mm2.
    corners = [(-10.0, -7.5), (10.0, -7.5), (10.0, -2.5), (-5.0, -2.5), (-5.0, 7.5), (-10.0, 7.5)]
    field = Collimator(polygon=corners).field(80, 160, (0.5, 0.25), torch.float64)
    assert float(field.sum()) * 0.125 == pytest.approx(100 + 50, rel=0.01)
    y, x = (torch.tensor([-6.0, 5.0, 5.0]) / 0.5 + 39.5).long(), (torch.tensor([6.0, 6.0, -8.0]) / 0.25 + 79.5).long()
    assert field[y, x].tolist() == [1, 0, 1]


def test_a_square_polygon_is_the_same_as_blades():
    square = Collimator(polygon=[(-5.0, -4.0), (5.0, -4.0), (5.0, 4.0), (-5.0, 4.0)]).field(40, 80, (0.5, 0.5))
    blades = Collimator(blades=(6.0, 6.0, 15.0, 15.0)).field(40, 80, (0.5, 0.5))
    assert torch.equal(square > 0.5, blades > 0.5)


def test_all_parts_apply_together():
    both = Collimator(blades=(10.0, 0.0, 0.0, 0.0), radius=12.0).field(80, 160, SPACING)
    one, other = Collimator(blades=(10.0, 0.0, 0.0, 0.0)), Collimator(radius=12.0)
    torch.testing.assert_close(both, one.field(80, 160, SPACING) * other.field(80, 160, SPACING))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Collimator(blades=(-1.0, 0.0, 0.0, 0.0)), "Blades"),
        (lambda: Collimator(blades=(1.0, 0.0)), "Blades"),
        (lambda: Collimator(blades=(float("nan"), 0.0, 0.0, 0.0)), "Blades"),
        (lambda: Collimator(radius=0.0), "radius"),
        (lambda: Collimator(unit="cm"), "mm"),
        (lambda: Collimator(penumbra=-1.0), "penumbra"),
        (lambda: Collimator(transmission=1.0), "fraction"),
        (lambda: Collimator(polygon=[(0.0, 0.0), (1.0, 1.0)]), "3 corners"),
        (lambda: Collimator(polygon=[(0.0, 0.0), (1.0, 1.0), (2.0, 2.0)]), "no area"),
        (lambda: Collimator(blades=(20.0, 10.0, 0.0, 0.0)).field(60, 80, SPACING), "leaves nothing"),
        (lambda: Collimator(blades=(25.0, 10.0, 0.0, 0.0)).field(60, 80, SPACING), "leaves nothing"),
        (lambda: Collimator(radius=5.0, center=(90.0, 0.0)).field(60, 80, SPACING), "leaves nothing"),
        (lambda: Collimator().field(60, 80, (0.0, 1.0)), "positive size"),
        (lambda: Collimator().field(0, 80, (1.0, 1.0)), "positive size"),
        (lambda: penumbra_width(0.6, 1000.0, 1200.0), "between source and detector"),
        (lambda: penumbra_width(-0.6, 1000.0, 200.0), "focal spot"),
    ],
)
def test_bad_input_is_one_sentence(make, sentence):
    with pytest.raises(PhysicsError, match=sentence):
        make()
