"""The procedural CT: realistic numbers, landmarks where the bones are, no symmetry, quick and repeatable."""

from __future__ import annotations

import pytest
import torch

from DiffDRRCore.datasets import phantom, phantom_landmarks
from DiffDRRCore.errors import VolumeError
from DiffDRRCore.imaging.volume import Volume


@pytest.fixture(scope="module")
def ct() -> Volume:
    return phantom()


def at(ct: Volume, ras: torch.Tensor) -> tuple[int, int, int]:
    i, j, k = (torch.linalg.inv(ct.ijk_to_ras) @ torch.cat([ras, ras.new_ones(1)]))[:3].round().int().tolist()
    return k, j, i


def label_near(ct: Volume, ras: torch.Tensor) -> set[str]:
    """The labels within two voxels."""
    k, j, i = at(ct, ras)
    block = ct.labels[max(k - 2, 0) : k + 3, max(j - 2, 0) : j + 3, max(i - 2, 0) : i + 3]
    return {ct.label_names[int(number)] for number in block.unique() if number}


def test_grid(ct):
    assert tuple(ct.hu.shape) == (192, 128, 168)
    torch.testing.assert_close(ct.center, torch.zeros(3, dtype=torch.float64))
    other = phantom((11, 12, 13), spacing=(4.0, 5.0, 6.0))
    torch.testing.assert_close(other.ijk_to_ras.diagonal()[:3], torch.tensor([4.0, 5.0, 6.0], dtype=torch.float64))
    torch.testing.assert_close(other.center, torch.zeros(3, dtype=torch.float64))
    # the same anatomy on another grid
    fine, coarse = phantom((32, 32, 32), 2.0), phantom((16, 16, 16), 4.0)
    averaged = torch.nn.functional.avg_pool3d(fine.hu[None, None], 2)[0, 0]
    assert (averaged - coarse.hu).abs().mean() < 25
    assert torch.corrcoef(torch.stack([averaged.flatten(), coarse.hu.flatten()]))[0, 1] > 0.97


def test_hounsfield_units_are_those_of_a_body(ct):
    assert ct.hu.min() >= -1024 and ct.hu[0, 0, 0] == -1000
    soft = ct.hu[(ct.hu > -20) & (ct.hu < 110)]
    assert soft.mean().item() == pytest.approx(50, abs=10)
    assert 0.2 < len(soft) / ct.hu.numel() < 0.6
    names = {name: number for number, name in ct.label_names.items()}
    for bone in ("vertebrae", "sacrum", "hip_right", "hip_left", "femur_right", "femur_left"):
        values = ct.hu[ct.labels == names[bone]]
        assert 900 < values.quantile(0.98) < 1400  # cortex
        assert 50 < values.quantile(0.2) < 500  # marrow, and surface voxels
    for lung in ("lung_right", "lung_left"):
        assert ct.hu[ct.labels == names[lung]].mean().item() == pytest.approx(-800, abs=50)


def test_every_label_is_there_in_a_plausible_size(ct):
    litres = {name: int((ct.labels == number).sum()) * 8e-6 for number, name in ct.label_names.items()}
    for name in ("hip_right", "hip_left", "vertebrae"):
        assert 0.15 < litres[name] < 0.7
    for name in ("ribs_right", "ribs_left", "femur_right", "femur_left", "sacrum"):
        assert 0.05 < litres[name] < 0.4
    right = torch.nonzero(ct.labels == 9)[:, 2].double().mean()  # +x is the patient's right
    assert (ct.ijk_to_ras[0, 0] * right + ct.ijk_to_ras[0, 3]).item() > 80
    assert ct.label_names[9] == "femur_right"


@pytest.mark.parametrize("seed", [0, 3])
def test_landmarks_lie_on_their_bones(seed):
    ct, landmarks = phantom(seed=seed), phantom_landmarks(seed)
    bones = {"femoral_head": "femur", "greater_trochanter": "femur", "asis": "hip", "ischial_tuberosity": "hip"}
    for start, bone in bones.items():
        for side in ("right", "left"):
            assert f"{bone}_{side}" in label_near(ct, landmarks[f"{start}_{side}"])
    for name in ("L5", "L4", "L3", "L2", "L1", "T12"):
        k, j, i = at(ct, landmarks[f"{name}_center"])
        assert ct.label_names[int(ct.labels[k, j, i])] == "vertebrae"
        assert "vertebrae" in label_near(ct, landmarks[f"{name}_spinous_process"])
    for rib in (10, 11, 12):
        for side in ("right", "left"):
            assert f"ribs_{side}" in label_near(ct, landmarks[f"rib_{rib}_tip_{side}"])
    assert "sacrum" in label_near(ct, landmarks["sacral_promontory"])
    sides = {int(ct.labels[k, j, i]) for k, j, i in (at(ct, landmarks["pubic_symphysis"] + s) for s in SIDEWAYS)}
    assert {ct.label_names[number] for number in sides} == {"hip_right", "hip_left"}


SIDEWAYS = [torch.tensor([step, 0.0, 0.0], dtype=torch.float64) for step in (10.0, -10.0)]


def test_the_body_is_not_its_own_mirror_image(ct):
    """No shift makes the mirrored projection match: a turn by 180 degrees is no second optimum."""
    projection = ct.attenuation.sum(dim=1)
    bone = torch.where(ct.hu > 200, ct.attenuation, 0).sum(dim=1)
    for image, bound in ((projection, 0.99), (bone, 0.85)):
        shifted = [image.flip(-1).roll((rows, columns), (0, 1)) for rows in (-2, 0, 2) for columns in range(-6, 7)]
        pairs = [torch.corrcoef(torch.stack([other.flatten(), image.flatten()]))[0, 1] for other in shifted]
        assert max(pairs) < bound


def test_seeds_and_noise():
    small = {"shape": (48, 48, 60), "spacing": 5.0}
    one = phantom(**small, seed=1)
    torch.testing.assert_close(phantom(**small, seed=1).hu, one.hu, rtol=0, atol=0)
    assert (phantom(**small, seed=2).hu - one.hu).abs().mean() > 2
    moved = phantom_landmarks(1)["femoral_head_left"] - phantom_landmarks(2)["femoral_head_left"]
    assert 0 < moved.norm() < 10
    noisy = phantom(**small, seed=1, noise=30.0)
    difference = (noisy.hu - one.hu)[one.hu > -500]
    assert difference.std().item() == pytest.approx(30, rel=0.05)
    assert abs(difference.mean().item()) < 1


def test_bad_input():
    for options in ({"shape": (0, 4, 4)}, {"shape": (4, 4)}, {"spacing": -1.0}, {"spacing": (1, 0, 1)}, {"noise": -1}):
        with pytest.raises(VolumeError):
            phantom(**{"shape": (4, 4, 4), **options})
