"""What a result holds and how it is kept."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from DiffDRRCore import Registration, register
from DiffDRRCore.datasets.simulated import simulated_xray
from DiffDRRCore.errors import RegistrationError
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
        result = register(scene.ct(), noisy, truth, sizes=(64,), tolerance=1e-3)
        motion = result.poses[0] @ truth[0].inverse()
        shift = motion.transform(result.about[None])[0] - result.about
        turn = torch.tensor(motion.to_parameters("axis_angle", degrees=True)[0].tolist(), dtype=torch.float64)
        found.append(torch.cat([turn, shift]))
        stated.append(result.standard_deviations)
    ratio = torch.stack(found).std(0) / torch.stack(stated).mean(0)
    assert float(ratio.min()) > 1 / 3, ratio
    assert float(ratio.max()) < 3, ratio
