"""The logic's methods for scripts that train and that find poses."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from DiffDRRCore.errors import DiffDRRError
from Testing.panel.kit import SMALL, simulated
from Testing.scene import fake_trainer
from Testing.scene.networks import Answer, answering


@pytest.fixture
def logic(make_widget, slicer_app):
    widget = make_widget("DiffDRRSlicer")
    simulated(slicer_app, widget, **SMALL)
    widget.panel.timer.stop()
    return widget.panel.logic


@pytest.fixture
def nodes(logic):
    parameters = logic.getParameterNode()
    return parameters.carm, parameters.ct


def ended(logic, folder):
    end = time.monotonic() + 20
    while logic.trainingState(folder).going:
        assert time.monotonic() < end
        time.sleep(0.02)
    return logic.trainingState(folder)


def test_a_training_by_script(logic, nodes, tmp_path, monkeypatch):
    from DiffDRRSlicerLib.scene import training_run

    monkeypatch.setattr(training_run, "command", lambda: [sys.executable, str(Path(fake_trainer.__file__))])
    folder = logic.startTraining(*nodes, tmp_path, steps=300, size=64, backbone="resnet10")
    while logic.trainingState(folder).step < 2:
        time.sleep(0.02)
    logic.stopTraining(folder)
    state = ended(logic, folder)
    assert state.status == "stopped" and 2 <= state.step < 300
    logic.resumeTraining(folder)
    assert ended(logic, folder).status == "finished" and (folder / "model.safetensors").is_file()
    with pytest.raises(DiffDRRError, match="no setting 'epochs'"):
        logic.startTraining(*nodes, tmp_path, epochs=3)


def test_a_pose_by_script(logic, nodes, monkeypatch):
    from DiffDRRSlicerLib import scene

    carm, anatomy = scene.carm.CArmNode(nodes[0]), scene.anatomy.Anatomy(nodes[1])
    truth = carm.pose
    said = truth.retract(torch.tensor([0, 0, 0, 6.0, 0, 0]).double(), about=torch.from_numpy(anatomy.center))
    answering(monkeypatch, Answer(anatomy.pose_in_volume(said)))
    carm.move_arm(primary=80.0)
    prediction = logic.findPose(*nodes, "model.safetensors", refine=False)
    assert prediction.similarity == 0.75 and np.allclose(carm.to_world, said.matrix)
    carm.move_arm(primary=80.0)
    outcome = logic.findPose(*nodes, "model.safetensors", sizes=(32, 64), search=0)
    assert outcome.similarity[1] > 0.99
    carm.move_arm(primary=80.0)
    assert logic.findPose(*nodes, "model.safetensors", progress=lambda step: step.level < 2) is not None
    assert not np.allclose(carm.to_world, said.matrix, atol=1e-3)  # the best pose so far
