"""A network finds poses in the scene: below transforms, of several views, of the patient; and one end to end."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from DiffDRRCore import Pose
from DiffDRRCore.errors import DiffDRRError
from Testing.scene import kit
from Testing.scene.networks import DEVIATIONS, Answer, answering
from Testing.scene.test_registration import QUICK, Case

slicer = pytest.importorskip("slicer")

from DiffDRRSlicerLib.scene import results  # noqa: E402
from DiffDRRSlicerLib.scene.accuracy import PARAMETERS  # noqa: E402
from DiffDRRSlicerLib.scene.errors import SceneError  # noqa: E402
from DiffDRRSlicerLib.scene.network_pose import NetworkRegistration, network_summary  # noqa: E402
from DiffDRRSlicerLib.scene.training import TrainingSettings, prepare_training  # noqa: E402
from DiffDRRSlicerLib.scene.training_curve import read_losses  # noqa: E402

FAR = [1.2, -0.8, 0.6, 90.0, -70.0, 120.0]


def wait(condition, seconds=300.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.1)


@pytest.fixture
def case(scene):
    """Below rotated transforms, and where no registration would come back from."""
    case = Case(scene)
    lose(case)
    return case


def lose(case):
    """Move all C-arms away, together."""
    motion = Pose.exp(torch.tensor(FAR, dtype=torch.float64))
    for carm in case.carms:
        carm.pose = motion @ carm.pose


def near(case, view=0, away=(0.03, -0.02, 0.04, 5.0, -6.0, 10.0)):
    """What a fair network says: the true pose in the CT's coordinates, nearly; by plain matrices."""
    center = torch.from_numpy(case.anatomy.center)
    pose = case.truths[view].retract(torch.tensor(away, dtype=torch.float64), about=center)
    below = np.linalg.inv(case.first @ np.linalg.inv(case.grid))
    return Answer(Pose(torch.from_numpy(below @ pose.matrix.numpy())))


def run(case, **options):
    found = NetworkRegistration(case.anatomy, case.carms, "model.safetensors", **{**QUICK, **options})
    return list(found.steps()), found


def test_from_anywhere_below_moved_transforms(case, monkeypatch):
    answering(monkeypatch, near(case))
    progress, found = run(case)
    in_plane, depth = case.errors()
    assert in_plane < 0.5 and depth < 3.0 and found.ending == ""
    texts = [one.text for one in progress]
    assert texts.index("The network has found a pose") < len(texts) - 10 and texts[-1] == "Done"
    fractions = [one.fraction for one in progress]
    assert fractions == sorted(fractions)
    rows = {name: value for name, value, _ in found.outcome.rows()}
    said = [rows[f"network: standard deviation, {name}"] for name in PARAMETERS]
    assert said == pytest.approx(DEVIATIONS) and rows["network: similarity"] == 0.75
    table = results.read_results_table(case.carms[0])
    assert table[0] == ("network: similarity", "0.75", "") and "12.0 mm in depth" in network_summary(table)
    assert found.outcome.to_dict()["start"][0] == {"quantity": "network: similarity", "value": 0.75, "unit": ""}


def test_the_patient_moves_in_place_of_the_c_arm(case, monkeypatch):
    before = case.carms[0].to_world
    answering(monkeypatch, near(case))
    run(case, target="patient")
    in_plane, depth = case.errors()
    assert in_plane < 0.5 and depth < 3.0 and np.array_equal(case.carms[0].to_world, before)


def test_two_c_arms_stay_fixed_to_each_other(scene, monkeypatch):
    case = Case(scene, primaries=(0.0, 80.0))
    between = np.linalg.inv(case.truths[0].matrix.numpy()) @ case.truths[1].matrix.numpy()
    for carm, truth in zip(case.carms, case.truths, strict=True):
        carm.pose = truth
    lose(case)
    answering(monkeypatch, near(case))
    _, found = run(case, refine=False)
    first, second = (carm.to_world for carm in case.carms)
    assert np.allclose(np.linalg.inv(first) @ second, between, atol=1e-6)
    expected = case.anatomy.pose_in_world(found.prediction.pose).matrix
    assert np.allclose(first, expected, atol=1e-9)


def test_an_error_after_the_network_puts_all_back(case, monkeypatch):
    before = case.carms[0].to_world
    answering(monkeypatch, near(case))
    with pytest.raises(DiffDRRError):
        run(case, structures=["nothing of that name"])
    assert np.array_equal(case.carms[0].to_world, before)


def test_doubts_of_the_network_are_told(case, monkeypatch):
    answer = near(case)
    answer.doubt = "The network may be wrong here."
    answering(monkeypatch, answer)
    _, found = run(case)
    assert ("warning", "The network may be wrong here.", "") in list(found.outcome.rows())


def test_no_network_was_chosen(case):
    with pytest.raises(SceneError, match="Choose a network first"):
        NetworkRegistration(case.anatomy, case.carms, " ")


@pytest.mark.slow
def test_train_in_a_process_of_its_own_and_find_the_pose(scene, tmp_path):
    """End to end: CT below transforms, real trainer, real network; another patient's CT is refused."""
    case = Case(scene)
    settings = TrainingSettings(
        *(6.0, 6.0, 4.0, 8.0, 15.0), steps=40, batch=8, size=48, backbone="resnet10", device="cpu"
    )
    case.carms[0].pose = case.truths[0]
    training = prepare_training(tmp_path, case.carms[0], case.anatomy, settings)
    training.start()
    wait(lambda: training.state.step > 4)
    training.stop()
    wait(lambda: not training.state.going)
    state = training.state
    assert state.status == "stopped" and 4 < state.step < 40 and training.resumable, state
    training.resume()
    wait(lambda: not training.state.going)
    state = training.state
    assert (state.status, state.step) == ("finished", 40), state
    assert [step for step, _ in read_losses(training.folder / "log.csv")] == list(range(1, 41))
    assert 0 < state.best["mm"] < 40 and training.model.is_file()
    lose(case)
    lost = max(case.errors())
    found = NetworkRegistration(case.anatomy, case.carms, training.model, refine=False)
    assert [one.text for one in found.steps()][-1] == "Done"
    assert max(case.errors()) < 30 < lost
    rows = {name: value for name, value, _ in results.read_results_table(case.carms[0])}
    assert all(float(rows[f"network: standard deviation, {name}"]) > 0 for name in PARAMETERS)
    voxels = slicer.util.arrayFromVolume(case.ct)
    voxels[10:20] -= 50
    slicer.util.arrayFromVolumeModified(case.ct)
    with pytest.raises(DiffDRRError, match="another CT"):
        list(NetworkRegistration(type(case.anatomy)(case.ct), case.carms, training.model).steps())
    assert np.isfinite(kit.to_world(case.ct)).all()
