import pytest
import torch

from DiffDRRCore import DiffDRRError, Volume
from DiffDRRCore.errors import PhysicsError
from DiffDRRCore.imaging.attenuation import AttenuationMap
from DiffDRRCore.physics import decompose, decompose_together, material
from DiffDRRCore.physics.decomposition import Composition

HU = torch.linspace(-1000, 4000, 5001, dtype=torch.float64)


def line(hu=HU, labels=None, names=None) -> Volume:
    """A row of voxels, 2 mm apart."""
    hu = torch.as_tensor(hu, dtype=torch.float64)
    affine = torch.diag(torch.tensor([2.0, 2.0, 2.0, 1.0], dtype=torch.float64))
    labels = None if labels is None else torch.as_tensor(labels).reshape(1, 1, -1)
    return Volume(hu.reshape(1, 1, -1), affine, labels, names)


def part(composition: Composition, name: str) -> torch.Tensor:
    return dict(zip(composition.materials, composition.densities, strict=True))[material(name)].flatten()


def test_at_70_kev_the_attenuation_is_the_definition_of_the_hu():
    found = decompose(line()).attenuation(70.0).flatten()
    water = float(material("water").linear_attenuation(70.0))
    torch.testing.assert_close(found, water * (1 + HU / 1000), rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(found, AttenuationMap()(HU), rtol=3e-4, atol=1e-15)  # another table


@pytest.mark.parametrize("kev", [25.0, 40.0, 110.0])
def test_there_is_no_jump_at_any_energy(kev):
    mu = decompose(line()).attenuation(kev).flatten()
    steps = mu.diff()
    assert bool((steps > 0).all())
    assert float(steps.max() / steps.min()) < 12  # bone rises faster than water, the more the lower the energy
    jump = decompose(line(), "thresholds").attenuation(40.0).flatten().diff()
    assert float(jump.max() / jump.median()) > 100


def test_known_tissues():
    bone = 1000 * float(material("cortical bone").linear_attenuation(70.0) / material("water").linear_attenuation(70.0))
    made = decompose(line([-1500.0, -1000.0, -700.0, 0.0, 60.0, bone - 1000]))
    expected = torch.tensor([0.0, 0.0, 0.3, 1.0, 1.06, 0.0], dtype=torch.float64)
    torch.testing.assert_close(part(made, "water"), expected)
    expected = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, material("cortical bone").density], dtype=torch.float64)
    torch.testing.assert_close(part(made, "cortical bone"), expected)


def test_float32_air_is_nothing():
    volume = Volume(torch.full((2, 2, 2), -1000.0), torch.eye(4))
    assert not any(bool(density.any()) for density in decompose(volume).densities)


def test_thresholds_are_those_of_deepdrr():
    made = decompose(line([-1000.0, -800.0, -799.0, 0.0, 350.0, 351.0, 1000.0, 3000.0]), "thresholds")
    water, bone = part(made, "soft tissue"), part(made, "cortical bone")
    assert [bool(x > 0) for x in water] == [False, False, True, True, True, False, False, False]
    assert float(water[3]) == pytest.approx(1.030)
    assert bone[-2:].tolist() == pytest.approx([1.619, 2.796], abs=1e-3)


def test_labels_have_their_own_material():
    contrast = material("blood").with_iodine(20)
    volume = line([0.0, 40.0, 1000.0], [0, 7, 8], {7: "aorta", 8: "plate"})
    made = decompose(volume, labels={"aorta": contrast, 8: "titanium"})
    of = dict(zip(made.materials, made.densities, strict=True))
    assert of[contrast].flatten().tolist() == pytest.approx([0, contrast.density, 0])
    assert of[material("titanium")].flatten().tolist() == pytest.approx([0, 0, material("titanium").density])
    assert float(sum(density[0, 0, 2] for density in made.densities)) == pytest.approx(material("titanium").density)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"method": "vnet"}, "'continuous' or 'thresholds'"),
        ({"labels": {1: "unobtainium"}}, "no material 'unobtainium'"),
        ({"labels": {5: "Ti"}}, "No voxel has the label 5"),
        ({"labels": {"aorta": "Ti"}}, "aorta"),
    ],
)
def test_bad_input(arguments, words):
    with pytest.raises(DiffDRRError, match=words):
        decompose(line([0.0, 0.0], [0, 1]), **arguments)


def test_labels_without_a_labelmap():
    with pytest.raises(PhysicsError, match="no labelmap"):
        decompose(line([0.0]), labels={1: "Ti"})


def together(*volumes, **options):
    return [composition.density.flatten().tolist() for composition in decompose_together(volumes, **options)]


def test_the_later_volume_replaces_where_it_has_matter():
    body, tool = line([0.0, 0.0, 0.0, 0.0]), line([-1000.0, 100.0, -950.0, -1000.0])
    assert together(body, tool) == [[1, 0, 1, 1], pytest.approx([0, 1.1, 0, 0])]
    assert together(tool, body) == [[0, 0, 0, 0], [1, 1, 1, 1]]


def test_a_labelled_cavity_replaces_too():
    body, organ = line([0.0, 0.0, 0.0]), line([50.0, -1000.0, -1000.0], [0, 1, 0])
    assert together(body, organ) == [[0, 0, 1], pytest.approx([1.05, 0, 0])]


def test_three_volumes_by_their_order_on_their_own_grids():
    body, plate = line([0.0] * 6), line([-1000.0, 200.0, 200.0, 200.0, -1000.0, -1000.0])
    fine = torch.diag(torch.tensor([-1.0, 1.0, 1.0, 1.0], dtype=torch.float64))  # left-handed, half the spacing
    fine[0, 3] = 5.0  # voxels at x = 5, 4, 3: of the others' voxels at 4 and (by its centre) none else
    screw = Volume(torch.tensor([[[-1000.0, 300.0, -1000.0]]], dtype=torch.float64), fine)
    lower, middle, upper = together(body, plate, screw)
    assert lower == [1, 0, 0, 0, 1, 1]
    assert [x > 0 for x in middle] == [False, True, False, True, False, False]
    assert [x > 0 for x in upper] == [False, True, False]


def test_a_label_may_be_in_some_of_the_volumes():
    body, tool = line([0.0, 0.0]), line([-1000.0, 0.0], [0, 3])
    made = decompose_together([body, tool], labels={3: "Ti"})
    assert made[1].density.flatten().tolist() == pytest.approx([0, material("Ti").density])
    with pytest.raises(PhysicsError, match=r"labelmap|label 4"):
        decompose_together([body, tool], labels={4: "Ti"})
