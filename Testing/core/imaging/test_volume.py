"""The Volume: what it accepts, its grid, its attenuation and gradients, labels and coarsening."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from DiffDRRCore.errors import DiffDRRError, VolumeError
from DiffDRRCore.imaging.attenuation import AttenuationMap
from DiffDRRCore.imaging.volume import Volume

# 30 degrees about S, spacings 1, 2, 3 mm, left-handed (k points down), origin (10, -20, 30).
COS, SIN = 3**0.5 / 2, 0.5
AFFINE = [[COS, -2 * SIN, 0, 10], [SIN, 2 * COS, 0, -20], [0, 0, -3, 30], [0, 0, 0, 1]]


def random_hu(shape=(4, 5, 6), dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator, dtype=dtype) * 3000 - 1000


@pytest.mark.parametrize("dtype", ["int16", "uint8", "uint16", "int64", ">i2", "bool", "uint32"])
def test_integers_become_float32(dtype):
    hu = np.arange(24).reshape(2, 3, 4).astype(dtype)
    volume = Volume(hu, np.eye(4))
    assert volume.dtype == volume.attenuation.dtype == torch.float32
    assert volume.hu.tolist() == hu.astype(float).tolist()


@pytest.mark.parametrize("dtype", ["float32", "float64", ">f4", ">f8"])
def test_floats_keep_their_precision(dtype):
    volume = Volume(np.ones((2, 2, 2), dtype), np.eye(4))
    assert str(volume.dtype) == f"torch.float{8 * np.dtype(dtype).itemsize}"


def test_a_torch_integer_volume_becomes_float32():
    assert Volume(torch.ones(2, 2, 2, dtype=torch.int16), torch.eye(4)).dtype == torch.float32


def test_numpy_voxels_are_copied_and_torch_voxels_shared():
    array, tensor = np.zeros((2, 2, 2)), torch.zeros(2, 2, 2)
    volumes = Volume(array, np.eye(4)), Volume(tensor, np.eye(4))
    array += 5
    tensor += 5
    assert [float(volume.hu.max()) for volume in volumes] == [0, 5]


def test_the_grid_in_numbers_worked_out_by_hand():
    volume = Volume(np.zeros((3, 5, 7), np.float32), AFFINE)
    assert volume.ijk_to_ras.dtype == torch.float64
    assert volume.spacing.tolist() == pytest.approx([1, 2, 3])
    # the middle is voxel (3, 2, 1): x = 3 cos - 4 sin + 10, y = 3 sin + 4 cos - 20, z = 27
    assert volume.center.tolist() == pytest.approx([3 * COS - 4 * SIN + 10, 3 * SIN + 4 * COS - 20, 27])
    torch.testing.assert_close(volume.ras_to_ijk @ volume.ijk_to_ras, torch.eye(4, dtype=torch.float64))


@pytest.mark.parametrize(
    ("voxels", "words"),
    [
        (np.zeros((4, 4)), "3 dimensions"),
        (np.zeros((1, 4, 4, 4)), "3 dimensions"),
        (np.zeros((0, 4, 4)), "no voxels"),
        (np.array([[[1.0, np.nan, np.inf]]]), "^2 of the 3"),
        (np.ones((2, 2, 2), complex), "complex"),
        (torch.ones(2, 2, 2, dtype=torch.complex64), "complex"),
        (np.array([[["a"]]]), "real numbers"),
    ],
)
def test_wrong_voxels_are_refused(voxels, words):
    with pytest.raises(VolumeError, match=words):
        Volume(voxels, np.eye(4))


@pytest.mark.parametrize(
    ("affine", "words"),
    [
        (np.eye(3), "4 x 4"),
        (np.diag([1.0, 1, 0, 1]), "singular"),
        ([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], "singular"),
        (np.diag([1.0, 1, np.nan, 1]), "NaN"),
        (np.diag([1.0, 1, 1, 2]), "last row"),
    ],
)
def test_wrong_affines_are_refused(affine, words):
    with pytest.raises(VolumeError, match=words):
        Volume(np.zeros((2, 2, 2)), affine)


def test_tiny_and_sheared_grids_are_accepted():
    Volume(np.zeros((2, 2, 2)), np.diag([1e-3, 1e-3, 1e-3, 1]))
    Volume(np.zeros((2, 2, 2)), [[1, 0, 0.3, 0], [0, 1, -0.5, 0], [0, 0, 2, 0], [0, 0, 0, 1]])


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.zeros((2, 2, 3), int), "same"),
        (np.full((2, 2, 2), 0.5), "whole numbers"),
        (np.full((2, 2, 2), np.nan), "whole numbers"),
        (np.full((2, 2, 2), np.inf), "between"),
        (np.full((2, 2, 2), 70000), "between"),
    ],
)
def test_wrong_labels_are_refused(labels, words):
    with pytest.raises(VolumeError, match=words):
        Volume(np.zeros((2, 2, 2)), np.eye(4), labels)


@pytest.mark.parametrize("dtype", ["float32", "uint16", "bool", "int64"])
def test_labels_become_int16(dtype):
    volume = Volume(np.zeros((2, 2, 2)), np.eye(4), np.ones((2, 2, 2), dtype))
    assert volume.labels.dtype == torch.int16 and volume.labels.unique().tolist() == [1]


# ---- attenuation: values, cache, gradients


def test_attenuation_is_the_map_of_the_hu():
    hu = random_hu()
    volume = Volume(hu, AFFINE, attenuation_map=AttenuationMap(60, 1.5, -800))
    assert torch.equal(volume.attenuation, AttenuationMap(60, 1.5, -800)(hu))


def test_attenuation_in_slabs_is_that_of_the_whole(monkeypatch):
    hu = random_hu()
    for voxels in (1, 2 * hu[0].numel(), 10**6):
        monkeypatch.setattr("DiffDRRCore.imaging.volume._SLAB", voxels)
        assert torch.equal(Volume(hu, AFFINE).attenuation, AttenuationMap()(hu))
        turned = hu.permute(2, 0, 1)
        assert torch.equal(Volume(turned, AFFINE).attenuation, AttenuationMap()(turned))


def test_attenuation_is_computed_once():
    volume = Volume(random_hu(), AFFINE)
    assert volume.attenuation is volume.attenuation


def test_changes_in_place_are_noticed():
    volume = Volume(np.zeros((2, 2, 2)), np.eye(4))
    assert float(volume.attenuation[0, 0, 0]) == pytest.approx(0.01929)
    volume.hu[0, 0, 0] = 1000
    assert float(volume.attenuation[0, 0, 0]) == pytest.approx(0.01929 * 2)
    volume.attenuation_map = AttenuationMap(bone_contrast=2)
    assert float(volume.attenuation[0, 0, 0]) == pytest.approx(0.01929 * 3)


def test_gradients_reach_the_hu_twice_over_and_after_a_change():
    hu = torch.zeros(2, 2, 2, dtype=torch.float64, requires_grad=True)
    volume = Volume(hu, np.eye(4))
    for expected in (1, 2):
        volume.attenuation.sum().backward()
        assert hu.grad.flatten().tolist() == pytest.approx([expected * 0.01929e-3] * 8)
    with torch.no_grad():
        hu += 500
    assert float(volume.attenuation.detach().mean()) == pytest.approx(0.01929 * 1.5)


def test_a_gradient_asked_for_later_flows():
    volume = Volume(np.zeros((2, 2, 2)), np.eye(4))
    assert not volume.attenuation.requires_grad
    volume.hu.requires_grad_()
    volume.attenuation.sum().backward()
    assert volume.hu.grad is not None


def test_a_cache_filled_in_inference_mode_serves_autograd():
    volume = Volume(np.zeros((2, 2, 2)), np.eye(4))
    with torch.inference_mode():
        volume.attenuation  # noqa: B018
    weight = torch.ones(2, 2, 2, dtype=torch.float64, requires_grad=True)
    (volume.attenuation * weight).sum().backward()
    assert float(weight.grad[0, 0, 0]) == pytest.approx(0.01929)


def test_from_attenuation_is_exact_and_its_hu_follow():
    mu = torch.rand(3, 4, 5, dtype=torch.float32) * 0.05
    volume = Volume.from_attenuation(mu, AFFINE)
    assert torch.equal(volume.attenuation, mu)
    torch.testing.assert_close(volume.hu, (mu / 0.01929 - 1) * 1000, rtol=1e-5, atol=1e-3)
    mu.requires_grad_()
    volume.attenuation.sum().backward()
    assert torch.equal(mu.grad, torch.ones_like(mu))


def test_negative_attenuation_is_refused():
    with pytest.raises(VolumeError, match="1 voxels"):
        Volume.from_attenuation([[[0.1, -0.1]]], np.eye(4))


# ---- labels


@pytest.fixture
def labelled():
    labels = np.zeros((2, 2, 4), np.int16)
    labels[..., 1], labels[..., 2], labels[..., 3] = 3, 7, 9
    return Volume(np.full((2, 2, 4), 500.0), np.eye(4), labels, {3: "femur", 7: "tibia", 8: "fibula"})


def test_select_leaves_air_around_the_chosen(labelled):
    chosen = labelled.select(["femur", 9])
    inside = [0, 500, 0, 500]
    assert chosen.attenuation[0, 0].tolist() == pytest.approx([0.01929 * 1.5 if hu else 0 for hu in inside])
    assert chosen.labels[0, 0].tolist() == [0, 3, 0, 9]
    assert chosen.label_names == {3: "femur"}
    assert labelled.hu.unique().tolist() == [500]


@pytest.mark.parametrize("choice", [7, "tibia", np.int64(7), (7,), ["tibia"]])
def test_one_label_may_be_given_in_any_way(labelled, choice):
    assert labelled.select(choice).labels.unique().tolist() == [0, 7]


def test_select_keeps_gradients_and_exact_attenuation():
    mu = torch.full((1, 1, 2), 0.0123456789, dtype=torch.float64, requires_grad=True)
    volume = Volume.from_attenuation(mu, np.eye(4), [[[0, 1]]]).select(1)
    volume.attenuation.sum().backward()
    assert volume.attenuation.tolist() == [[[0, 0.0123456789]]] and mu.grad.tolist() == [[[0, 1]]]


@pytest.mark.parametrize("unknown", ["patella", 5, "fibula", 8, 2.5])
def test_unknown_labels_are_refused_with_a_list(labelled, unknown):
    with pytest.raises(VolumeError, match=r"3 femur, 7 tibia, 9\."):
        labelled.select([3, unknown])


def test_select_without_labels_or_choice_is_refused(labelled):
    with pytest.raises(VolumeError, match="no labels"):
        Volume(np.zeros((2, 2, 2)), np.eye(4)).select(1)
    with pytest.raises(VolumeError, match="at least one"):
        labelled.select([])


def test_present_labels(labelled):
    assert labelled.present_labels == {0, 3, 7, 9}
    assert Volume(np.zeros((2, 2, 2)), np.eye(4)).present_labels == set()
    labels = np.array([[[-32768, 5], [5, 32767]], [[-1, 5], [5, 5]]])
    assert Volume(np.zeros((2, 2, 2)), np.eye(4), labels).present_labels == {-32768, -1, 5, 32767}


def test_label_id(labelled):
    assert labelled.label_id("tibia") == 7
    twice = Volume(np.zeros((1, 1, 1)), np.eye(4), [[[1]]], {1: "rib", 2: "rib"})
    with pytest.raises(VolumeError, match=r"\[1, 2\]"):
        twice.label_id("rib")


# ---- coarsening


def test_coarsened_by_hand():
    mu = torch.arange(1.0, 1 + 2 * 2 * 3, dtype=torch.float64).reshape(2, 2, 3) / 100
    labels = [[[5, 5, 2], [5, 1, 2]], [[0, 5, 2], [0, 1, 0]]]
    coarse = Volume.from_attenuation(mu, np.diag([1.0, 2, 3, 1]), labels).coarsened(2)
    # columns 0-1: (1+2+4+5+7+8+10+11)/8 = 6; column 2 alone, half of the block is air: (3+6+9+12)/8 = 3.75
    torch.testing.assert_close(coarse.attenuation, torch.tensor([[[0.06, 0.0375]]], dtype=torch.float64))
    assert coarse.labels.tolist() == [[[5, 0]]]
    # the first block is centred on voxel (0.5, 0.5, 0.5)
    assert coarse.ijk_to_ras.tolist() == [[2, 0, 0, 0.5], [0, 4, 0, 1], [0, 0, 6, 1.5], [0, 0, 0, 1]]


@given(st.tuples(*[st.integers(1, 3)] * 3), st.tuples(*[st.integers(1, 5)] * 3), st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_coarsening_keeps_the_mass(factors, shape, seed):
    volume = Volume(random_hu(shape, seed=seed), AFFINE, attenuation_map=AttenuationMap(60, 2.0))

    def mass(a):
        return float(a.attenuation.sum() * torch.linalg.det(a.ijk_to_ras[:3, :3]).abs())

    assert mass(volume.coarsened(factors)) == pytest.approx(mass(volume), rel=1e-9)


@given(st.tuples(*[st.integers(1, 4)] * 3), st.tuples(*[st.integers(1, 3)] * 3))
@settings(max_examples=30, deadline=None)
def test_coarsening_shifts_nothing(factors, blocks):
    """An attenuation that is linear in RAS keeps its value at every point, the block centres included."""

    def linear(shape, ijk_to_ras):
        k, j, i = torch.meshgrid(*[torch.arange(n, dtype=torch.float64) for n in shape], indexing="ij")
        ras = torch.as_tensor(ijk_to_ras, dtype=torch.float64) @ torch.stack([i, j, k, i * 0 + 1]).flatten(1)
        return (torch.tensor([0.011, -0.007, 0.005, 2], dtype=torch.float64) @ ras).reshape(shape)

    shape = [factor * block for factor, block in zip(factors, blocks, strict=True)]
    coarse = Volume.from_attenuation(linear(shape, AFFINE), AFFINE).coarsened(factors)
    torch.testing.assert_close(coarse.attenuation, linear(coarse.shape, coarse.ijk_to_ras))


@pytest.mark.parametrize("factor", [0, -1, 1.5, (2, 2), (1, 0, 1)])
def test_wrong_factors_are_refused(factor):
    with pytest.raises(DiffDRRError):
        Volume(np.zeros((2, 2, 2)), np.eye(4)).coarsened(factor)


def test_coarsened_passes_gradients_on():
    hu = random_hu().requires_grad_()
    Volume(hu, AFFINE).coarsened((2, 1, 3)).attenuation.sum().backward()
    torch.testing.assert_close(hu.grad, torch.full_like(hu, 0.01929e-3 / 6))


def test_to_changes_the_voxels_type_and_keeps_the_grid():
    volume = Volume(random_hu(), AFFINE, np.ones((4, 5, 6), int)).to("cpu", torch.float32)
    assert (volume.dtype, volume.ijk_to_ras.dtype, volume.labels.dtype) == (torch.float32, torch.float64, torch.int16)
    assert "6 x 5 x 4 voxels of 1 x 2 x 3 mm, 1 labels" in repr(volume)
