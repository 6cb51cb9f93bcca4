"""The scatter model against closed forms, a Monte Carlo simulation of its own and a published measurement."""

from __future__ import annotations

import json
import math
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch

from DiffDRRCore.errors import PhysicsError
from DiffDRRCore.physics import Spectrum, scatter
from DiffDRRCore.physics.scatter import (
    Grid,
    Scatter,
    broad_beam_ratio,
    effective_attenuation,
    water_thickness,
)
from Testing.core.physics.water_slab import SPECTRUM_100_KVP, primary_signal, scatter_of_pencil

simulated = cache(lambda thickness: scatter_of_pencil(thickness, SPECTRUM_100_KVP, 150_000))
FILE = json.loads((scatter.TABLES / "scatter.json").read_text(encoding="utf-8"))
NODES = (50.0, 150.0, 250.0, 400.0)  # thicknesses at which one kernel is at work


def _slab(thickness: float, size: int, dtype=torch.float64):
    return torch.full((size, size), thickness, dtype=dtype)


def _disc(radius: float, size: int, pixel: float):
    place = (torch.arange(size, dtype=torch.float64) - (size - 1) / 2) * pixel
    return (place[:, None] ** 2 + place**2 <= radius**2).double()


def _center(image: torch.Tensor) -> float:
    return float(image[image.shape[0] // 2, image.shape[1] // 2])


@pytest.mark.parametrize("thickness", [100.0, 200.0, 300.0])
def test_tables_are_those_of_the_simulation(thickness):
    leaving, primary = simulated(thickness)
    expected = leaving[5].sum() / primary
    assert float(broad_beam_ratio(thickness, 100.0)) == pytest.approx(expected, rel=0.04)


@pytest.mark.parametrize(("kvp", "thickness"), [(60, 50.0), (60, 200.0), (100, 50.0), (120, 250.0)])
def test_the_numbers_in_the_file_are_those_of_the_simulation(kvp, thickness):
    row, column = FILE["kvp"].index(kvp), FILE["thickness_mm"].index(thickness)
    beam = _beam(kvp)
    (x, y, ux, uy, uz, signal), primary = scatter_of_pencil(thickness, beam, 80_000)

    expected, error = signal.sum() / primary, np.linalg.norm(signal) / primary
    allowed = 4 * math.hypot(error, FILE["ratio_error"][row][column]) + 0.02 * expected  # coarser tables in water_slab
    assert abs(FILE["ratio"][row][column] - expected) < allowed

    open_beam, behind = (primary_signal(t, beam) for t in (0.0, 200.0))
    assert FILE["attenuation_per_mm"][row] == pytest.approx(-math.log(behind / open_beam) / 200, rel=0.01)

    forward, height, width = (FILE[name][column] for name in ("forward", "height_mm", "width_per_mm"))
    for gap, radius in ((100.0, 80.0), (200.0, 100.0), (300.0, 200.0)):
        landing = np.hypot(x + gap * ux / uz, y + gap * uy / uz)
        d = width * FILE["width_by_kvp"][row] * (gap + height)
        narrow, wide = (1 - (1 + (radius / one) ** 2) ** -1.5 for one in (d / 6, d))
        share = signal[landing < radius].sum() / signal.sum()
        assert forward * narrow + (1 - forward) * wide == pytest.approx(share, rel=0.08)


def _beam(kvp: float):
    if kvp == 100:
        return SPECTRUM_100_KVP
    spectrum = Spectrum.tungsten(kvp, {"Al": 3.0}).rebinned(2.0)
    return spectrum.photons.numpy(), spectrum.energies.numpy()


def test_the_file_says_what_made_it_and_how_well():
    assert all(name in FILE["made_with"] for name in ("make_scatter_tables.py", "spekpy", "xraylib"))
    assert FILE["seed"] == 1 and len(FILE["photons"]) == len(FILE["thickness_mm"])
    relative = np.sort((np.array(FILE["ratio_error"])[:, 1:] / np.array(FILE["ratio"])[:, 1:]).ravel())
    assert relative[0] > 0 and relative[-2] < 0.0135 and relative[-1] < 0.0225  # as scatter.py has it
    assert FILE["fit_error"]["rms"] < 0.035 and FILE["fit_error"]["largest"] < 0.135


@pytest.fixture
def other_table(monkeypatch, tmp_path):
    monkeypatch.setattr(scatter, "TABLES", tmp_path)
    scatter._tables.cache_clear()
    yield tmp_path / "scatter.json"
    scatter._tables.cache_clear()


@pytest.mark.parametrize(
    "damage",
    [
        lambda table: None,
        lambda table: json.dumps(table)[:-50],
        lambda table: json.dumps([table]),
        lambda table: json.dumps({name: values for name, values in table.items() if name != "forward"}),
        lambda table: json.dumps(table | {"ratio": [row[1:] for row in table["ratio"]]}),
        lambda table: json.dumps(table | {"ratio": [*table["ratio"][:-1], [0]]}),
        lambda table: json.dumps(table | {"height_mm": [math.nan, *table["height_mm"][1:]]}),
        lambda table: json.dumps(table | {"width_per_mm": [-value for value in table["width_per_mm"]]}),
        lambda table: json.dumps(table | {"kvp": table["kvp"][::-1]}),
        lambda table: json.dumps(table | {"kvp": 5}),
    ],
)
def test_a_missing_or_damaged_file_is_one_sentence(other_table, damage):
    text = damage(FILE)
    if text is not None:
        other_table.write_text(text, encoding="utf-8")
    for use in (lambda: broad_beam_ratio(100.0, 80.0), lambda: Scatter(80.0).width(1.0)):
        with pytest.raises(PhysicsError, match=r"^The scatter model's table .*scatter\.json is missing or damaged: \w"):
            use()


def test_the_file_is_read_when_it_is_needed(other_table):
    model = Scatter(80.0, 200.0)
    other_table.write_text(json.dumps(FILE | {"ratio": [[7.0] * len(row) for row in FILE["ratio"]]}), encoding="utf-8")
    assert float(broad_beam_ratio(200.0, 100.0)) == 7.0
    assert model.width(200.0) == pytest.approx(FILE["width_per_mm"][5] * 0.953 * (200 + FILE["height_mm"][5]))


@pytest.mark.parametrize("thickness", [100.0, 200.0, 300.0])
@pytest.mark.parametrize("gap", [100.0, 200.0])
def test_a_round_field_has_the_simulated_ratio_in_its_centre(thickness, gap):
    x, y, ux, uy, uz, signal = (leaving := simulated(thickness))[0]
    landing = np.hypot(x + gap * ux / uz, y + gap * uy / uz)
    for radius in (80.0, 160.0):
        expected = signal[landing < radius].sum() / leaving[1]
        primary = _disc(radius, 401, 1.0)
        found = _center(Scatter(100.0, gap).scattered(primary, _slab(thickness, 401), (1.0, 1.0)))
        assert found == pytest.approx(expected, rel=0.12)  # 0.1 of the model, 0.02 of statistics


@pytest.mark.parametrize("thickness", [60.0, 100.0, 200.0, 350.0])
def test_an_endless_field_has_the_stated_ratio(thickness):
    model = Scatter(80.0, air_gap=100.0)
    primary = _slab(3.0, 201)
    found = model.scattered(primary, _slab(thickness, 201), (40.0, 40.0)) / 3
    assert _center(found) == pytest.approx(float(broad_beam_ratio(thickness, 80.0)), rel=0.02)


@pytest.mark.parametrize("thickness", NODES)
@pytest.mark.parametrize(("gap", "radius"), [(50.0, 60.0), (200.0, 100.0), (300.0, 160.0)])
def test_a_round_field_has_its_closed_form(thickness, gap, radius):
    model = Scatter(100.0, gap)
    found = _center(model.scattered(_disc(radius, 512, 0.7), _slab(thickness, 512), (0.7, 0.7)))
    d, forward = model.width(thickness), {50.0: 0.079, 150.0: 0.043, 250.0: 0.027, 400.0: 0.011}[thickness]
    share = forward * (1 - (1 + 36 * (radius / d) ** 2) ** -1.5) + (1 - forward) * (1 - (1 + (radius / d) ** 2) ** -1.5)
    assert model.round_field_share(thickness, radius) == pytest.approx(share)
    assert found == pytest.approx(float(broad_beam_ratio(thickness, 100.0)) * share, rel=0.02)


@pytest.mark.parametrize("thickness", [80.0, 200.0])
@pytest.mark.parametrize("shape", [(256, 300), (255, 301)])
def test_a_given_ratio_is_met_in_the_centre_of_a_slab(thickness, shape):
    primary = torch.full(shape, 7.0)
    found = Scatter(80.0, air_gap=150.0, ratio=2.5).scattered(primary, torch.full(shape, thickness), (1.0, 1.2))
    assert _center(found) / 7 == pytest.approx(2.5, rel=0.02)
    assert float(found.max()) / 7 < 2.5 * 1.02


def test_the_total_of_a_pencil_is_conserved():
    primary = torch.zeros(401, 401, dtype=torch.float64)
    primary[200, 200] = 1
    model = Scatter(100.0, 0.0)
    found = model.scattered(primary, _slab(150.0, 401), (4.0, 4.0))
    assert float(found.sum()) == pytest.approx(float(broad_beam_ratio(150.0, 100.0)), rel=0.01)


def test_contrast_of_a_small_object_falls_by_one_plus_the_ratio():
    thickness = _slab(200.0, 256)
    plain, primary = torch.ones_like(thickness), torch.ones_like(thickness)
    primary[126:130, 126:130] = 0.8
    model = Scatter(80.0, 200.0)
    ratio = _center(model.scattered(plain, thickness, (1.2, 1.2)))
    without, image = (_center(model(one, thickness, (1.2, 1.2))) for one in (plain, primary))
    assert ratio > 1 and (without - image) / without == pytest.approx(0.2 / (1 + ratio), rel=0.01)


def test_the_grid_lets_through_its_parts():
    thickness, primary = _slab(300.0, 128), _slab(2.0, 128)
    free, grid = Scatter(125.0, 200.0), Scatter(125.0, 200.0, Grid(0.7, 0.1))
    found = free.scattered(primary, thickness, (3.0, 3.0))
    torch.testing.assert_close(grid(primary, thickness, (3.0, 3.0)), 0.7 * primary + 0.1 * found)
    torch.testing.assert_close(free(primary, thickness, (3.0, 3.0)), primary + found)


def test_the_measured_ratios_of_a_cone_beam_ct():
    """Altunbas 2016: 300 mm of acrylic (333 mm of water): 4.51 without, 1.28 with a grid; the gap is not given."""
    ones = torch.ones(300, 400)
    for gap, low, high in ((150.0, 4.51, 6.0), (250.0, 3.0, 4.51)):
        found = _center(Scatter(125.0, gap).scattered(ones, 333 * ones, (1.0, 1.0)))
        assert low < found < high
    near = Scatter(125.0, 200.0, Grid())
    ratio = _center(near(ones, 333 * ones, (1.0, 1.0))) / near.grid.primary - 1
    assert ratio == pytest.approx(1.28, rel=0.08)


def test_the_ratio_rises_with_thickness_voltage_and_field_and_falls_with_the_gap():
    def center(kvp=80.0, gap=200.0, thickness=200.0, pixel=1.0):
        return _center(Scatter(kvp, gap).scattered(_slab(1.0, 200), _slab(thickness, 200), (pixel, pixel)))

    assert center(thickness=100) < center(thickness=200) < center(thickness=300)
    assert center(gap=100) > center(gap=200) > center(gap=400)
    assert center(pixel=0.5) < center(pixel=1.0) < center(pixel=2.0)
    assert broad_beam_ratio(200.0, 60) < broad_beam_ratio(200.0, 90) < broad_beam_ratio(200.0, 130)
    thick = torch.linspace(0, 600, 301, dtype=torch.float64)
    assert bool((broad_beam_ratio(thick, 110.0).diff() > 0).all()) and float(broad_beam_ratio(0.0, 80)) == 0


def test_the_blocks_do_not_show():
    """With blades and an object, edges included, against the sum of the module's text over blocks of 8 x 8 pixels."""
    primary = torch.full((256, 256), 1.0, dtype=torch.float64)
    primary[:, :64], primary[64:128, 144:200] = 0, 0.3
    thickness = torch.full_like(primary, 180.0)
    thickness[64:128, 144:200] = 240.0
    model = Scatter(80.0, 150.0)
    found = model.scattered(primary, thickness, (1.2, 1.2))[4::8, 4::8]
    expected = _summed(model, primary[4::8, 4::8], thickness[4::8, 4::8], 9.6, 0.6)
    assert float((found - expected).abs().max() / expected.max()) < 0.015


def _summed(model: Scatter, primary, thickness, step, shift):
    """The sum over blocks of `step` mm, at `shift` mm to the right of and below their centres."""
    place = torch.arange(32, dtype=torch.float64) * step
    squared = ((place + shift)[:, None] - place).square()
    squared = squared[:, None, :, None] + squared[None, :, None, :]
    rises = [((thickness - a) / (b - a)).clamp(0, 1) for a, b in pairwise(NODES)]
    shares = [1 - rises[0], rises[0] - rises[1], rises[1] - rises[2], rises[2]]
    total = 0
    for node, forward, share in zip(NODES, (0.079, 0.043, 0.027, 0.011), shares, strict=True):
        source = primary * broad_beam_ratio(thickness, model.kvp) * share * step**2 * 1.5 / math.pi
        for part, d in ((forward, model.width(node) / 6), (1 - forward, model.width(node))):
            total = total + part / d**2 * ((1 + squared / d**2) ** -2.5 * source).sum(dim=(2, 3))
    return total


def test_scatter_is_smooth_and_never_negative():
    primary = _disc(60.0, 256, 1.0) * torch.rand(256, 256, dtype=torch.float64)
    found = Scatter(80.0).scattered(primary, _slab(200.0, 256), (1.0, 1.0))
    assert float(found.min()) >= 0
    assert float(found.diff(dim=0).abs().max()) < 0.02 * float(found.max())


@pytest.mark.parametrize("shape", [(1, 1), (3, 500), (2, 3, 40, 50)])
def test_any_shape_is_kept(shape):
    primary = torch.rand(shape)
    found = Scatter(80.0, grid=Grid())(primary, 100 * torch.ones(shape), (0.8, 0.8))
    assert found.shape == shape and found.dtype == torch.float32 and bool(torch.isfinite(found).all())


def test_batches_are_computed_one_by_one():
    primary, thickness = torch.rand(2, 60, 70).double(), 300 * torch.rand(2, 60, 70).double()
    whole = Scatter(80.0).scattered(primary, thickness, (2.0, 2.0))
    torch.testing.assert_close(whole[1], Scatter(80.0).scattered(primary[1], thickness[1], (2.0, 2.0)))


def test_scatter_is_differentiable_in_primary_and_thickness():
    primary = torch.rand(4, 5, dtype=torch.float64, requires_grad=True)
    thickness = (60 + 200 * torch.rand(4, 5, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(lambda p, t: Scatter(80.0)(p, t, (20.0, 20.0)), (primary, thickness))


def test_water_thickness_is_beer_and_lamberts():
    mu = effective_attenuation(90.0)
    assert 0.0220 < mu < 0.0235
    depth = torch.tensor([0.0, 120.0, 480.0], dtype=torch.float64)
    torch.testing.assert_close(water_thickness(torch.exp(-mu * depth), mu), depth)
    assert water_thickness(torch.tensor([0.0, 1.3]), mu).tolist() == pytest.approx([600, 0])
    assert float(broad_beam_ratio(water_thickness(torch.zeros(1, 1), mu), 80.0)) > 0


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda one: Scatter(kvp=60_000), "tube voltage"),
        (lambda one: Scatter()(one, one, (1.0, 1.0)), r"tube voltage, which is not known here: give Scatter\(kvp"),
        (lambda one: Scatter(ratio=1.0).width(100.0), r"tube voltage, which is not known here"),
        (lambda one: Scatter(air_gap=-1.0), "air gap"),
        (lambda one: Scatter(ratio=-0.5), "ratio"),
        (lambda one: Grid(0.7, 0.8), "grid"),
        (lambda one: Grid(0.7, 0.0), "grid"),
        (lambda one: Scatter(80.0)(-one, one, (1.0, 1.0)), "negative or missing"),
        (lambda one: Scatter(80.0)(one * torch.nan, one, (1.0, 1.0)), "negative or missing"),
        (lambda one: Scatter(80.0)(one, 2000 * one, (1.0, 1.0)), "600 mm"),
        (lambda one: Scatter(80.0)(one, -one, (1.0, 1.0)), "600 mm"),
        (lambda one: Scatter(80.0)(one, torch.nan * one, (1.0, 1.0)), "600 mm"),
        (lambda one: Scatter(80.0)(one, one[:2], (1.0, 1.0)), "one shape"),
        (lambda one: Scatter(80.0)(one, one, (0.0, 1.0)), "Pixel spacing"),
        (lambda one: water_thickness(one, 0.2), "per cm"),
        (lambda one: water_thickness(-one, 0.02), "Transmission"),
        (lambda one: broad_beam_ratio(-5.0, 80.0), "600 mm"),
    ],
)
def test_bad_input_is_one_sentence(make, sentence):
    with pytest.raises(PhysicsError, match=sentence):
        make(torch.ones(4, 5))
