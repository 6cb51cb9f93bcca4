import json
import math
from pathlib import Path

import pytest
import torch

from DiffDRRCore.datasets.shapes import Sphere
from DiffDRRCore.errors import PhysicsError
from DiffDRRCore.physics import BeamObject, Detector, Simulator, Spectrum, material, signal_weights, transmission
from DiffDRRCore.physics.transmission import transmissions

GOLDEN = json.loads(Path(__file__).with_name("golden.json").read_text(encoding="utf-8"))
SLABS = list(GOLDEN["slabs"].items())


@pytest.fixture(scope="module")
def spekpy() -> Spectrum:
    """SpekPy's own spectrum: 90 kVp, 12 degrees, 4 mm Al."""
    table = GOLDEN["spectrum"]
    return Spectrum.from_table(table["kev"], table["photons"], table["kvp"])


def slab(name: str, centimetres) -> torch.Tensor:
    """[N, 1] in g/cm2."""
    return torch.tensor([float(cm) for cm in centimetres], dtype=torch.float64)[:, None] * material(name).density


@pytest.mark.parametrize(("name", "golden"), SLABS)
def test_slabs_transmit_what_xraylib_says(spekpy, name, golden):
    found = transmission(slab(name, golden["transmission"]), [name], spekpy)
    expected = torch.tensor(list(golden["transmission"].values()), dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=2e-4, atol=0)


@pytest.mark.parametrize(("name", "golden"), SLABS)
def test_slabs_behind_our_own_tube(name, golden):
    # The same, with the filter's attenuation from our table instead of PENELOPE's.
    areal = slab(name, golden["transmission"])
    attenuation = -transmission(areal, [name], Spectrum.tungsten(90, {"Al": 4.0})).log()
    expected = -torch.tensor(list(golden["transmission"].values()), dtype=torch.float64).log()
    torch.testing.assert_close(attenuation, expected, rtol=5e-3, atol=0)


@pytest.mark.parametrize(("name", "golden"), SLABS)
def test_the_slope_at_nothing(spekpy, name, golden):
    areal = torch.zeros(1, 1, dtype=torch.float64, requires_grad=True)
    transmission(areal, [name], spekpy).sum().backward()
    assert -float(areal.grad) * material(name).density == pytest.approx(golden["slope"], rel=1e-4)


def test_published_numbers_of_beam_hardening(spekpy):
    # Slopes at 0 and water's secants at 1 and 30 cm, in 1/cm
    slopes = [golden["slope"] for _, golden in SLABS]
    assert slopes == pytest.approx([0.24320, 1.03175, 1.25220, 7.65854], abs=1e-5)
    secants = -transmission(slab("water", (1, 30)), ["water"], spekpy).log() / torch.tensor([1, 30])
    assert secants.tolist() == pytest.approx([0.2407, 0.2150], abs=6e-5)


@pytest.mark.parametrize("name", ["water", "bone", "Al", "Ti", "iodine"])
def test_beams_harden(spekpy, name):
    line = -transmission(torch.linspace(0, 20, 200, dtype=torch.float64)[:, None], [name], spekpy).log()
    assert float(line[0]) == pytest.approx(0, abs=1e-15)
    assert bool((line.diff() > 0).all())
    assert bool((line.diff().diff() < 0).all())  # concave


def test_far_in_the_most_penetrating_photons_are_left(spekpy):
    far = torch.tensor([[3000.0], [3010.0]], dtype=torch.float64)
    slope = float((-transmission(far, ["water"], spekpy).log()).diff() / 10)
    least = material("water").mass_attenuation(spekpy.energies)
    assert float(least.min()) < slope < float(least.min()) * 1.01


def test_one_energy_is_beer_lambert():
    areal = torch.rand(4, 5, 2, dtype=torch.float64)
    found = transmission(areal, ["water", "bone"], Spectrum.monochromatic(70))
    mu = torch.stack([material(one).mass_attenuation(70) for one in ("water", "bone")])
    torch.testing.assert_close(found, (-(areal @ mu)).exp())


@pytest.mark.parametrize(("cm", "expected"), [(0, 1.094), (10, 1.058), (20, 1.044), (30, 1.036)])
def test_excess_noise_of_an_energy_integrator(spekpy, cm, expected):
    # <E^2> / <E>^2 behind water, by detectors that answer with 1, E and E^2
    energies = spekpy.energies
    open_field = [float((spekpy.photons * energies**power).sum()) for power in range(3)]
    behind = [
        full * float(transmission(slab("water", [cm]), ["water"], spekpy, response=energies**power))
        for power, full in enumerate(open_field)
    ]
    assert behind[2] * behind[0] / behind[1] ** 2 == pytest.approx(expected, abs=6e-4)


def test_counting_and_integrating_weigh_differently(spekpy):
    areal = slab("water", [10])
    counted, integrated = (transmission(areal, ["water"], spekpy, one) for one in ("count", "energy"))
    assert float(counted) < float(integrated)
    torch.testing.assert_close(counted, transmission(areal, ["water"], spekpy, torch.ones(len(spekpy.energies))))
    assert float(signal_weights(spekpy).sum()) == pytest.approx(1)


def test_materials_multiply_within_one_energy_only(spekpy):
    areal = torch.tensor([[20.0, 2.0], [20.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    both, water, bone = transmission(areal, ["water", "bone"], spekpy).tolist()
    assert both > water * bone * 1.01  # what is behind water is harder
    split = torch.tensor([[10.0, 10.0]], dtype=torch.float64)
    assert float(transmission(split, ["water", "water"], spekpy)) == pytest.approx(water)


@pytest.mark.parametrize("kvp", [60, 90, 140])
@pytest.mark.parametrize(("name", "most"), [("water", 40), ("bone", 10), ("titanium", 2), ("iodine", 0.05)])
def test_sixteen_energies_are_enough(kvp, name, most):
    spectrum = Spectrum.tungsten(kvp, {"Al": 3.0})
    areal = slab(name, torch.linspace(0, most, 30).tolist())
    found = transmission(areal, [name], spectrum.compressed(16, [name]))
    torch.testing.assert_close(found, transmission(areal, [name], spectrum), rtol=1e-4, atol=0)


@pytest.mark.parametrize("kvp", [60, 90, 140])
@pytest.mark.parametrize("kind", ["ideal", "csi", "counting"])
def test_the_simulators_energies_behind_bone_iodine_and_steel_together(kvp, kind):
    """2000 paths, most of them through several materials: signal and its variance, to a hundred-thousandth of the beam;
    2 % iodine in a 5 cm vessel are 0.1 g/cm2, and 2 cm of steel 16 g/cm2."""
    detector = {
        "ideal": Detector(),
        "csi": Detector.scintillating(material("CsI").mass_attenuation, 0.6),
        "counting": Detector("photon_counting"),
    }[kind]
    most = {"water": 40.0, "cortical bone": 15.0, "iodine": 0.1, "steel": 16.0}
    spectrum, generator = Spectrum.tungsten(kvp, {"Al": 3.0}), torch.Generator().manual_seed(kvp)
    balls = [BeamObject(Sphere((0, 0, 0), 1.0), name, name=name) for name in most]
    beam = Simulator((), spectrum, detector, balls).beam
    assert len(beam.energies) < 30 < 100 < len(spectrum.energies)
    depths, kept = (torch.rand(2000, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    areal = depths * (kept < 0.7) * torch.tensor(list(most.values()))
    found, full = (transmissions(areal, list(most), one, detector.weights(one.energies)) for one in (beam, spectrum))
    seen = full[0] > 1e-5
    assert int(seen.sum()) > 500
    torch.testing.assert_close(found[:, seen], full[:, seen], rtol=1.5e-4, atol=0)


def test_several_responses_at_once_are_those_one_by_one(spekpy):
    few = spekpy.compressed(10)
    areal = (torch.rand(3, 4, 2, dtype=torch.float64) * 5).requires_grad_()
    responses = ["energy", "count", few.energies**2]
    together = transmissions(areal, ["water", "Ti"], few, responses)
    assert together.shape == (3, 3, 4)
    for one, response in zip(together, responses, strict=True):
        torch.testing.assert_close(one, transmission(areal, ["water", "Ti"], few, response), rtol=1e-14, atol=0)
    assert torch.autograd.gradcheck(lambda a: transmissions(a, ["water", "Ti"], few, responses), areal)


def test_gradients_are_exact(spekpy):
    few = spekpy.compressed(10)
    areal = (torch.rand(3, 4, 2, dtype=torch.float64) * 5).requires_grad_()
    assert torch.autograd.gradcheck(lambda a: transmission(a, ["water", "Ti"], few), areal)


def test_large_images_in_single_precision(spekpy):
    torch.manual_seed(0)
    areal = torch.rand(200, 300, 3) * torch.tensor([20.0, 4.0, 1.0])
    materials = ["water", "bone", "steel"]
    found = transmission(areal, materials, spekpy)  # more than one chunk
    exact = transmission(areal.double(), materials, spekpy)
    assert found.dtype == torch.float32
    assert found.shape == (200, 300)
    torch.testing.assert_close(found.double(), exact, rtol=2e-5, atol=1e-9)
    mu = torch.stack([material(one).mass_attenuation(spekpy.energies) for one in materials])
    direct = torch.exp(-(areal[-1].double() @ mu)) @ signal_weights(spekpy)
    torch.testing.assert_close(exact[-1], direct)


def test_edges_of_shape(spekpy):
    assert transmission(torch.zeros(2), ["water", "bone"], spekpy).shape == ()
    assert transmission(torch.zeros(0, 7, 1), ["water"], spekpy).shape == (0, 7)
    assert transmissions(torch.zeros(1), ["water"], spekpy, ["energy", "count"]).shape == (2,)
    assert float(transmission([0.0], ["water"], spekpy)) == pytest.approx(1)
    assert float(transmission([-1e-5], ["water"], spekpy)) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    ("areal", "materials", "response", "message"),
    [
        (torch.ones(5, 3), ["water"], "energy", r"\[..., M\] for 1 materials, not \[5, 3\]"),
        (torch.ones(5, 0), [], "energy", "for 0 materials"),
        (-torch.ones(5, 1), ["water"], "energy", "cannot be below zero, as -1 g/cm2"),
        (torch.ones(5, 1), ["watre"], "energy", "no material 'watre'"),
        (torch.ones(5, 1), ["water"], "intensity", "'energy' or 'count'"),
        (torch.ones(5, 1), ["water"], torch.ones(3), "one number, 0 or more, for each"),
        (torch.ones(5, 1), ["water"], torch.tensor([1.0, -1.0]), "one number, 0 or more, for each"),
        (torch.ones(5, 1), ["water"], torch.zeros(2), "answers to none"),
        (torch.ones(5, 1), ["water"], torch.tensor([1.0, math.nan]), "one number, 0 or more"),
    ],
)
def test_bad_input_is_one_sentence(areal, materials, response, message):
    with pytest.raises(PhysicsError, match=message):
        transmission(areal, materials, Spectrum.from_table([40, 60], [1, 1]), response)
