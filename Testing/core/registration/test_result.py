"""What a result holds and how it is kept."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from DiffDRRCore import Registration, RegistrationResult, register
from DiffDRRCore.datasets.simulated import simulated_xray
from DiffDRRCore.errors import ReadError, RegistrationError
from Testing.core.registration import scene

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


@pytest.fixture(scope="module")
def result():
    xrays = [scene.xray(), scene.xray(80.0)]
    return register(scene.ct(), xrays, [scene.moved(xray.pose) for xray in xrays], sizes=(32,))


@pytest.mark.parametrize("suffix", [".tfm", ".txt", ".h5"])
@pytest.mark.parametrize(("what", "view"), [("pose", 0), ("pose", 1), ("patient_motion", 0)])
def test_transform_file_is_the_inverse_in_lps(result, tmp_path, suffix, what, view):
    path = result.save(tmp_path / f"found{suffix}", view=view, what=what)
    transform = sitk.AffineTransform(sitk.ReadTransform(str(path)))
    found = np.eye(4)
    found[:3, :3] = np.array(transform.GetMatrix()).reshape(3, 3)
    found[:3, 3] = np.array(transform.GetTranslation())
    pose = result.poses[view] if what == "pose" else result.patient_motion
    assert np.allclose(found, LPS @ np.linalg.inv(pose.matrix.numpy()) @ LPS, atol=1e-6)


@pytest.mark.parametrize(("what", "view"), [("pose", 2), ("pose", -1), ("motion", 0)])
def test_what_cannot_be_saved(result, tmp_path, what, view):
    with pytest.raises(RegistrationError, match="view a number below 2"):
        result.save(tmp_path / "found.tfm", view=view, what=what)


def test_numbers_that_are_not_finite_are_null_in_json_and_nan_again(result, tmp_path):
    infinite = replace(result, similarity=math.inf, covariance=torch.full((6, 6), math.nan, dtype=torch.float64))
    infinite = replace(infinite, history=[{"cost": math.inf, "motion": [[math.nan]]}])
    path = infinite.save(tmp_path / "infinite.json")

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    content = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    assert content["similarity"] is None
    assert content["history"] == [{"cost": None, "motion": [[None]]}]
    again = RegistrationResult.load(path)
    assert math.isnan(again.similarity)
    assert bool(torch.isnan(again.covariance).all())
    assert torch.equal(again.poses.matrix, result.poses.matrix)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("poses", "here"),
        ("poses", [[1.0, 2.0]]),
        ("poses", [[[2.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]]),
        ("patient_motion", None),
        ("covariance_rad_mm", [[1.0] * 6] * 5),
        ("covariance_rad_mm", [[1.0] * 6] * 5 + [[1.0]]),
        ("about_mm", {"x": 1}),
        ("similarity", "high"),
        ("similarity", True),
        ("converged", 1),
        ("reason", 3),
        ("at_bound", "depth"),
        ("history", {}),
        ("alternatives", 5),
    ],
)
def test_a_damaged_file_is_refused(result, tmp_path, name, value):
    path = tmp_path / "damaged.json"
    path.write_text(json.dumps(result.to_dict() | {name: value}), encoding="utf-8")
    with pytest.raises(ReadError, match="is damaged"):
        RegistrationResult.load(path)


def test_a_file_without_an_entry_is_refused_but_alternatives_may_lack(result, tmp_path):
    path = tmp_path / "part.json"
    content = result.to_dict()
    path.write_text(json.dumps({key: value for key, value in content.items() if key != "alternatives"}))
    assert RegistrationResult.load(path).alternatives == []
    path.write_text(json.dumps({key: value for key, value in content.items() if key != "about_mm"}))
    with pytest.raises(ReadError, match="about_mm"):
        RegistrationResult.load(path)


def test_standard_deviations_are_degrees_and_mm(result):
    variances = result.covariance.diagonal()
    expected = torch.cat([variances[:3].sqrt() * 180 / torch.pi, variances[3:].sqrt()])
    assert torch.allclose(result.standard_deviations, expected)


def test_an_early_result_is_not_changed_by_later_steps():
    registration = Registration(scene.ct(), scene.xray(), scene.moved(scene.xray().pose), sizes=(32,))
    steps = registration.steps()
    next(steps)
    early = registration.result()
    for count, _ in enumerate(steps, start=2):
        assert len(registration.history) == count
    assert len(early.history) == 1


def test_covariance_against_repeated_noise():
    """Twelve noisy pairs of X-rays, all six numbers: within a factor of 3 of the deviations stated."""
    views = [scene.xray(), scene.xray(80.0)]
    truth = [xray.pose for xray in views]
    found, stated = [], []
    for seed in range(12):
        noisy = [
            simulated_xray(scene.ct(), xray.camera, xray.pose, photons=300.0, oversampling=1, seed=2 * seed + n)
            for n, xray in enumerate(views)
        ]
        result = register(scene.ct(), noisy, truth, sizes=(64,), tolerance=1e-3, search=0)
        motion = result.poses[0] @ truth[0].inverse()
        shift = motion.transform(result.about[None])[0] - result.about
        turn = torch.tensor(motion.to_parameters("axis_angle", degrees=True)[0].tolist(), dtype=torch.float64)
        found.append(torch.cat([turn, shift]))
        stated.append(result.standard_deviations)
    ratio = torch.stack(found).std(0) / torch.stack(stated).mean(0)
    assert float(ratio.min()) > 1 / 3, ratio
    assert float(ratio.max()) < 3, ratio
