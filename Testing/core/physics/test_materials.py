import json
import pickle
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from DiffDRRCore.errors import PhysicsError
from DiffDRRCore.physics import Material, material, material_names

GOLDEN = json.loads(Path(__file__).with_name("golden.json").read_text(encoding="utf-8"))

# Hubbell and Seltzer, NISTIR 5632 (keV, mu/rho, mu_en/rho in cm2/g), as printed.
NIST = [
    ("water", 10, 5.329, 4.944),
    ("water", 30, 0.3756, 0.1557),
    ("water", 60, 0.2059, 0.03190),
    ("water", 100, 0.1707, 0.02546),
    ("air", 30, 0.3538, 0.1537),
    ("air", 60, 0.1875, 0.03041),
    ("air", 100, 0.1541, 0.02325),
    ("air", 150, 0.1356, 0.02496),
    ("Al", 30, 1.128, 0.8778),
    ("Al", 60, 0.2778, 0.1099),
    ("Al", 100, 0.1704, 0.03794),
    ("cortical bone", 30, 1.331, 1.070),
    ("cortical bone", 60, 0.3148, 0.1400),
]
NIST_ATTENUATION = [("Pb", 100, 5.549), ("W", 100, 4.438), ("Cu", 60, 1.593), ("Fe", 60, 1.205), ("Ti", 60, 0.7661)]
NIST_ATTENUATION += [("soft tissue", 60, 0.2048), ("muscle", 60, 0.2048), ("I", 40, 22.10), ("CsI", 60, 7.921)]


@pytest.mark.parametrize(("name", "kev", "expected"), [row[:3] for row in NIST] + NIST_ATTENUATION)
def test_mass_attenuation_is_nists(name, kev, expected):
    assert float(material(name).mass_attenuation(kev)) == pytest.approx(expected, rel=6e-4)


@pytest.mark.parametrize(("name", "kev", "expected"), [(row[0], row[1], row[3]) for row in NIST])
def test_mass_energy_absorption_is_nists(name, kev, expected):
    assert float(material(name).mass_energy_absorption(kev)) == pytest.approx(expected, rel=4e-3)


def test_the_table_is_xraydbs_everywhere():
    symbols = {symbol for symbol, _, _ in GOLDEN["elements"]}
    assert len(symbols) > 60
    for symbol, kev, expected in GOLDEN["elements"]:
        value = float(Material(symbol, 1.0, {symbol: 1.0}).mass_attenuation(kev))
        assert value == pytest.approx(expected, rel=1e-3), (symbol, kev)


@pytest.mark.parametrize(
    ("name", "edge", "below", "above"),
    # NIST's two values at each K edge
    [("iodine", 33.1694, 6.553, 35.82), ("tungsten", 69.525, 2.552, 11.23), ("lead", 88.0045, 1.910, 7.683)],
)
def test_k_edges_are_sharp(name, edge, below, above):
    at = [one for one in material(name).edges if one == pytest.approx(edge, rel=3e-4)]
    assert len(at) == 1
    under, over = material(name).mass_attenuation([at[0] - 1e-6, at[0] + 1e-6]).tolist()
    assert under == pytest.approx(below, rel=0.02)
    assert over == pytest.approx(above, rel=0.02)


def test_attenuation_falls_between_edges():
    for name in ("water", "CsI", "lead", "GOS", "blood"):
        ends = [5.0, *material(name).edges, 160.0]
        for low, high in pairwise(ends):
            inside = torch.linspace(low, high - 1e-6, 50, dtype=torch.float64)[1:]
            assert bool((material(name).mass_attenuation(inside).diff() < 0).all())


def test_linear_attenuation_is_per_millimetre():
    assert float(material("water").linear_attenuation(60)) == pytest.approx(0.02059, rel=6e-4)
    assert float(material("cortical bone").linear_attenuation(60)) == pytest.approx(0.3148 * 1.92 / 10, rel=6e-4)


def test_the_parts_add_up():
    kev = torch.tensor([[10.0, 40.0], [80.0, 150.0]])
    bone = material("bone")
    parts = [bone.mass_attenuation(kev, parts=(part,)) for part in ("photo", "coherent", "incoherent")]
    assert parts[0].shape == (2, 2)
    torch.testing.assert_close(sum(parts), bone.mass_attenuation(kev))
    assert float(parts[0][0, 0]) > float(parts[2][0, 0])  # absorption at 10 keV,
    assert float(parts[2][1, 1]) > float(parts[0][1, 1])  # scattering at 150


def test_energy_absorption_is_less_than_attenuation():
    kev = torch.linspace(5, 160, 400)
    for name in material_names():
        absorbed, total = material(name).mass_energy_absorption(kev), material(name).mass_attenuation(kev)
        assert bool((absorbed > 0).all()), name
        assert bool((absorbed < total).all()), name


def test_names_aliases_and_spellings():
    assert material("Cortical_Bone") is material("bone")
    assert material("aluminum") is material("Al")
    assert material("fat") is material("adipose tissue")
    assert material(material("steel")) is material("stainless-steel 316L")


def test_every_material_is_whole_and_found():
    assert len(material_names()) > 40
    for name in material_names():
        assert material(name).name == name
        assert sum(material(name).fractions.values()) == pytest.approx(1, abs=1e-12)


def test_formulas():
    water = Material.from_formula("H2O", 1.0)
    assert water.fractions["H"] == pytest.approx(0.111898, rel=1e-4)
    assert Material.from_formula("Al2O3", 3.97).fractions["Al"] == pytest.approx(0.529251, rel=1e-4)
    assert material("CsI").fractions["Cs"] == pytest.approx(0.511549, rel=1e-4)
    assert material("GOS").fractions["Gd"] == pytest.approx(0.830782, rel=1e-4)
    assert material("PMMA").fractions["C"] == pytest.approx(0.599848, rel=1e-4)


def test_mixtures_follow_mass_and_volume():
    half = Material.mixture({"water": 0.5, "cortical bone": 0.5})
    assert half.density == pytest.approx(2 / (1 / 1.0 + 1 / 1.92))
    expected = (material("water").mass_attenuation(50) + material("bone").mass_attenuation(50)) / 2
    torch.testing.assert_close(half.mass_attenuation(50), expected)


def test_iodine_adds_its_own_attenuation():
    blood, kev = material("blood"), torch.tensor([32.0, 34.0, 60.0])
    filled = blood.with_iodine(300)
    assert filled.density == pytest.approx(1.36)
    added = 0.3 * material("iodine").mass_attenuation(kev) / 10
    torch.testing.assert_close(filled.linear_attenuation(kev), blood.linear_attenuation(kev) + added)
    torch.testing.assert_close(blood.with_iodine(0).linear_attenuation(kev), blood.linear_attenuation(kev))


def test_materials_are_keys_and_travel_to_workers():
    lung = material("lung")
    again = pickle.loads(pickle.dumps(lung))
    assert again == lung
    assert {lung: 1}[again] == 1
    assert lung != lung.with_density(0.3)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: material("watr"), "no material 'watr'.*'water'"),
        (lambda: material("titaniun"), "'titanium'"),
        (lambda: Material("foam", -0.1, {"C": 1.0}), "density of foam must be above 0"),
        (lambda: Material("foam", float("nan"), {"C": 1.0}), "density of foam"),
        (lambda: Material("foam", 1000.0, {"C": 1.0}), "below 30 g/cm3, not 1000"),
        (lambda: Material("foam", 1.0, {"C": 0.5}), "add up to 1, not C 0.5"),
        (lambda: Material("foam", 1.0, {"C": 1.5, "H": -0.5}), "must be 0 or more"),
        (lambda: Material("foam", 1.0, {}), "add up to 1, not none"),
        (lambda: Material("foam", 1.0, {"Xx": 1.0}), "no element 'Xx'"),
        (lambda: Material.from_formula("Ca5(PO4)3", 3.1), "not a formula"),
        (lambda: Material.from_formula("", 3.1), "not a formula"),
        (lambda: material("water").mass_attenuation(60000), "between 5 and 160 keV, not 60000"),
        (lambda: material("water").mass_attenuation([60, 0.06]), "not 0.06 keV"),
        (lambda: material("water").mass_attenuation(float("nan")), "not nan"),
        (lambda: material("water").mass_attenuation(60, parts=("pair",)), "'photo', 'coherent', 'incoherent'"),
        (lambda: material("blood").with_iodine(-1), "0 to 1000 mg/ml"),
        (lambda: Material.mixture({"water": 0.5, "bone": 0.2}), "add up to 1"),
    ],
)
def test_bad_input_is_one_sentence(wrong, message):
    with pytest.raises(PhysicsError, match=message) as caught:
        wrong()
    assert "\n" not in str(caught.value)


def test_contrast_agent_by_name():
    """15 mg of iodine in a millilitre of blood: the blood's own attenuation, and 0.015 g/cm3 of iodine's."""
    mixed = material("blood with 15 mg/ml iodine")
    assert mixed == material("blood").with_iodine(15)
    assert material(mixed.name) == mixed
    apart = material("blood").linear_attenuation(60.0) + material("iodine").mass_attenuation(60.0) * 0.015 / 10
    torch.testing.assert_close(mixed.linear_attenuation(60.0), apart, rtol=1e-9, atol=0)
    assert "blood with 15 mg/ml iodine" in material_names()
    with pytest.raises(PhysicsError, match="no material 'custard'"):
        material("custard with 5 mg/ml iodine")
