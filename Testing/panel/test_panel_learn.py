"""The section Learn: a training is started, watched, stopped, resumed and found again; a network finds the pose."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from DiffDRRSlicerLib.choices import Backbone, NetworkSize, Processor
from Testing.panel.kit import SMALL, load_scene, open_all, reload, save_scene, sections, settle, simulated
from Testing.scene import fake_trainer
from Testing.scene.networks import Answer, answering


@pytest.fixture
def widget(make_widget):
    return make_widget("DiffDRRSlicer")


@pytest.fixture
def panel(widget, slicer_app):
    """With a phantom and its X-ray; all sections open."""
    simulated(slicer_app, widget, labels=True, **SMALL)
    open_all(widget.panel)
    settle(slicer_app, widget.panel)
    return widget.panel


@pytest.fixture
def fake(monkeypatch, panel, tmp_path):
    """The stand-in trains; function that says how. What is left at the end is ended."""
    from DiffDRRSlicerLib.scene import training_run

    manner = {"pause": 0.02}
    monkeypatch.setattr(training_run, "command", lambda: [sys.executable, str(Path(fake_trainer.__file__))])
    start = training_run._start

    def told(arguments, folder, output):
        (folder / "manner.json").write_text(json.dumps(manner))
        return start(arguments, folder, output)

    monkeypatch.setattr(training_run, "_start", told)
    panel.parameters.trainingFolder = str(tmp_path)
    sections(panel)["Learn"].timer.interval = 20
    yield manner
    for process in training_run._processes.values():
        process.kill()
        process.wait()
    training_run._processes.clear()


def ui(panel):
    return sections(panel)["Learn"].ui


def train(app, panel, steps=40):
    """Press Train and wait until some steps are done."""
    settle(app, panel)
    panel.parameters.trainSteps = steps
    ui(panel).trainButton.click()
    assert not app.messages, app.messages[-1].text
    app.wait_until(lambda: ui(panel).trainingText.text.startswith(("Step", "Done")), 20)
    settle(app, panel)


def enabled(panel):
    buttons = ("trainButton", "stopTrainingButton", "resumeTrainingButton", "findButton")
    return {name.removesuffix("Button") for name in buttons if getattr(ui(panel), name).enabled}


def wait_for(app, panel, text, seconds=20):
    app.wait_until(lambda: text in ui(panel).trainingText.text, seconds)
    settle(app, panel)


def test_train_watch_stop_resume_and_done(panel, slicer_app, fake, tmp_path):
    settle(slicer_app, panel)
    assert enabled(panel) == {"train"} and ui(panel).trainingText.text == ""
    train(slicer_app, panel, steps=80)
    folder = Path(panel.parameters.trainingFolder)
    assert folder.parent == tmp_path and ui(panel).trainingPath.currentPath == str(folder)
    assert panel.parameters.networkFile == str(folder / "model.safetensors") == ui(panel).networkPath.currentPath
    slicer_app.wait_until(lambda: "left" in ui(panel).trainingText.text and "mm" in ui(panel).trainingText.text, 20)
    settle(slicer_app, panel)
    assert enabled(panel) == {"stopTraining", "find"}  # the network so far can be used while it goes on
    assert 0 < ui(panel).trainingProgress.value < 1000
    section = sections(panel)["Learn"]
    assert section._plot.node.GetPlotChartNode().GetNthPlotSeriesNode(0).GetYColumnName() == "loss"
    ui(panel).stopTrainingButton.click()
    wait_for(slicer_app, panel, "Stopped at step")
    assert enabled(panel) == {"train", "resumeTraining", "find"} and not section.timer.active
    fake["pause"] = 0.0
    ui(panel).resumeTrainingButton.click()
    wait_for(slicer_app, panel, "Done in")
    assert ui(panel).trainingProgress.value == 1000 and enabled(panel) == {"train", "find"}
    assert section._curve.table.GetTable().GetNumberOfRows() == 80 and not section.timer.active
    ui(panel).trainButton.click()  # another one, beside it
    assert Path(panel.parameters.trainingFolder).parent == tmp_path
    assert Path(panel.parameters.trainingFolder) != folder and not slicer_app.messages


def test_all_widgets_reach_the_options(panel, slicer_app, fake):
    widgets, parameters = ui(panel), panel.parameters
    widgets.trainPrimarySpinBox.value, widgets.trainSecondarySpinBox.value = 44, 33
    widgets.trainRollSpinBox.value, widgets.trainShiftSpinBox.value = 22, 11
    widgets.trainDepthSpinBox.value = 5
    widgets.trainSizeSelector.currentIndex = list(NetworkSize).index(NetworkSize.SMALL)
    widgets.batchSpinBox.value = 3
    widgets.backboneSelector.currentIndex = list(Backbone).index(Backbone.RESNET34)
    widgets.trainDeviceSelector.currentIndex = list(Processor).index(Processor.CPU)
    widgets.trainStructures.checked = True
    parameters.structures = ["3"]
    train(slicer_app, panel, steps=17)
    options = json.loads((Path(parameters.trainingFolder) / "training.json").read_text())
    ranges, arm = options["views"], panel.carm.arm
    for name, half in (("primary", 44), ("secondary", 33), ("roll", 22)):
        middle = float(getattr(arm, name))
        assert ranges[name] == pytest.approx([middle - half, middle + half], abs=1e-4)
    assert ranges["shift_a"] == [-11, 11] and np.ptp(ranges["sod"]) == pytest.approx(10)
    assert (options["steps"], options["batch"], options["backbone"], options["device"]) == (17, 3, "resnet34", "cpu")
    assert max(options["camera"]["height"], options["camera"]["width"]) == 64
    assert options["labels"] == ["3"] and options["labelmaps"]


def test_backbones_and_processors_are_those_of_the_training():
    from DiffDRRCore.learning.network.pose_net import BACKBONES

    assert {one.key for one in Backbone} == set(BACKBONES)


def test_a_death_and_a_failure_are_told_in_the_panel(panel, slicer_app, fake):
    fake.update(end="dead", at=3)
    settle(slicer_app, panel)
    ui(panel).trainButton.click()
    wait_for(slicer_app, panel, "ended unexpectedly")
    assert ui(panel).trainingText.text.startswith(
        "The training ended unexpectedly after step 2 of 1000. It printed last"
    )
    assert ui(panel).trainingText.text.endswith("out of memory\nkilled")
    assert enabled(panel) >= {"train", "resumeTraining"}
    fake["end"] = "failed"
    ui(panel).trainButton.click()
    wait_for(slicer_app, panel, "failed: " + fake_trainer.MESSAGE)
    assert not slicer_app.messages


def test_how_a_training_stands_in_words(panel):
    from DiffDRRSlicerLib.panel.learn import told
    from DiffDRRSlicerLib.scene.training_run import RunState

    assert told(RunState("starting")) == "Starting: the trainer is loaded ..."
    assert told(RunState("running", steps=9, message="reading the CTs")) == "Starting: reading the CTs ..."
    assert told(RunState("stopped", 3, 9)) == "Stopped at step 3 of 9; there is no network yet."
    silent = told(RunState("lost"))
    assert silent.startswith("The training ended unexpectedly before its first step. It printed nothing")


def test_the_copy_of_the_ct_is_removed_after_asking(panel, slicer_app, fake):
    train(slicer_app, panel, steps=6)
    wait_for(slicer_app, panel, "Done in")
    copy = Path(panel.parameters.trainingFolder) / "ct copy.nrrd"
    slicer_app.answer = False
    assert ui(panel).clearTrainingButton.enabled
    ui(panel).clearTrainingButton.click()
    assert copy.is_file() and "cannot be resumed" in slicer_app.messages[-1].text
    slicer_app.answer = True
    ui(panel).clearTrainingButton.click()
    settle(slicer_app, panel)
    assert not copy.exists() and not ui(panel).clearTrainingButton.enabled
    assert [message.kind for message in slicer_app.messages] == ["confirm", "confirm"] and "find" in enabled(panel)


def test_the_panel_begins_with_the_defaults_of_all_trainings(panel):
    from DiffDRRSlicerLib.scene.training import TrainingSettings

    settings, own = TrainingSettings(), sections(panel)["Learn"]._settings()
    del own["names"]
    assert own == {name: getattr(settings, name) for name in own}
    assert ui(panel).stepsSpinBox.value == settings.steps


def test_a_template_is_handed_to_the_network(panel, slicer_app, monkeypatch, tmp_path):
    from DiffDRRSlicerLib.scene import network_pose

    asked = []
    monkeypatch.setattr(network_pose, "read_network", lambda *given: asked.append(given))
    node = slicer_app.scene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "to the template")
    ui(panel).networkWarpSelector.setCurrentNode(node)
    find(slicer_app, panel, monkeypatch, tmp_path, wrong_by(panel, 8.0))
    done(slicer_app, panel)
    assert asked == [(tmp_path / "model.safetensors", node, False)]


def test_it_survives_leaving_reloading_and_closing_and_is_found_again(
    panel, slicer_app, widget, fake, tmp_path, fresh_modules
):
    train(slicer_app, panel, steps=4000)
    slicer_app.leave(widget)
    folder = Path(panel.parameters.trainingFolder)
    before = ui(panel).trainingProgress.value
    slicer_app.wait_until(lambda: ui(panel).trainingProgress.value > before, 20)  # another module is shown meanwhile
    slicer_app.enter(widget)
    path = save_scene(slicer_app.scene, tmp_path / "scene")
    slicer_app.scene.Clear(False)
    settle(slicer_app, panel)
    assert not sections(panel)["Learn"].timer.active and ui(panel).trainingText.text == ""
    load_scene(slicer_app.scene, path)
    settle(slicer_app, panel)
    slicer_app.wait_until(lambda: ui(panel).trainingText.text.startswith("Step"), 20)
    assert Path(panel.parameters.trainingFolder) == folder and "stopTraining" in enabled(panel)
    new = reload(slicer_app, widget).panel
    settle(slicer_app, new)
    slicer_app.wait_until(lambda: ui(new).trainingText.text.startswith("Step"), 20)
    ui(new).stopTrainingButton.click()
    wait_for(slicer_app, new, "Stopped at step")
    assert not slicer_app.messages


def test_choosing_the_folder_of_a_training_shows_it(panel, slicer_app, fake, tmp_path):
    train(slicer_app, panel, steps=6)
    wait_for(slicer_app, panel, "Done in")
    folder = panel.parameters.trainingFolder
    ui(panel).trainingPath.currentPath = ""
    settle(slicer_app, panel)
    assert ui(panel).trainingText.text == "" and panel.parameters.trainingFolder == ""
    panel.parameters.networkFile = ""
    ui(panel).trainingPath.currentPath = "x" * 5000  # a name that no folder can have
    settle(slicer_app, panel)
    assert "train" in enabled(panel) and not slicer_app.messages
    history = ui(panel).trainingPath
    history.retrieveHistory()
    assert history.comboBox().findText(folder) >= 0
    ui(panel).trainingPath.currentPath = folder
    settle(slicer_app, panel)
    assert "Done in" in ui(panel).trainingText.text
    assert panel.parameters.networkFile == str(Path(folder) / "model.safetensors")


def test_paths_that_are_cleared_stay_cleared(panel, slicer_app, fake, tmp_path):
    """currentPathChanged says nothing of an empty path, so the parameter node must hear of it otherwise."""
    train(slicer_app, panel, 1)
    folder = panel.parameters.trainingFolder
    assert folder and panel.parameters.networkFile
    for name, parameter in (("trainingPath", "trainingFolder"), ("networkPath", "networkFile")):
        getattr(ui(panel), name).currentPath = ""
        settle(slicer_app, panel)
        assert getattr(panel.parameters, parameter) == "" and getattr(ui(panel), name).currentPath == ""
    assert not ui(panel).findButton.enabled
    ui(panel).trainingPath.currentPath = folder
    settle(slicer_app, panel)
    assert panel.parameters.trainingFolder == folder


def test_packages_are_asked_for_once_and_a_no_starts_nothing(panel, slicer_app, fake, tmp_path, monkeypatch):
    from DiffDRRSlicerLib import install  # which another test may have loaded anew

    settle(slicer_app, panel)
    monkeypatch.setattr(install, "_is_there", lambda requirement: requirement.name != "monai")
    slicer_app.answer = False
    ui(panel).trainButton.click()
    asked = [message for message in slicer_app.messages if message.kind == "confirm"]
    assert len(asked) == 1 and "monai" in asked[0].text
    assert "Nothing was installed" in slicer_app.messages[-1].text and not list(tmp_path.iterdir())


def test_bad_settings_are_one_message(panel, slicer_app, fake, tmp_path):
    panel.parameters.trainDepth = 500
    settle(slicer_app, panel)
    ui(panel).trainButton.click()
    assert len(slicer_app.messages) == 1 and "at the source or the detector" in slicer_app.messages[0].text
    assert not list(tmp_path.iterdir()) and enabled(panel) == {"train"}


def test_without_a_ct_nothing_can_be_pressed(widget, slicer_app):
    settle(slicer_app, widget.panel)
    assert enabled(widget.panel) == set()


def wrong_by(panel, mm):
    """A network that says the true pose, `mm` too far to the right."""
    anatomy, truth = panel.anatomy, panel.carm.pose
    shift = torch.tensor([0, 0, 0, mm, 0, 0], dtype=torch.float64)
    return Answer(anatomy.pose_in_volume(truth.retract(shift, about=torch.from_numpy(anatomy.center))))


def find(app, panel, monkeypatch, tmp_path, answer, **choices):
    """Lose the pose, press Find the pose, and wait; the true pose and the one before."""
    truth = panel.carm.pose.matrix.clone()
    answering(monkeypatch, answer)
    network = tmp_path / "model.safetensors"
    network.write_bytes(b"")
    panel.parameters.networkFile = str(network)
    panel.carm.move_arm(primary=70.0, secondary=-30.0)
    for name, value in choices.items():
        setattr(panel.parameters, name, value)
    settle(app, panel)
    lost = panel.carm.pose.matrix.clone()
    ui(panel).findButton.click()
    return truth, lost


def done(app, panel):
    app.wait_until(lambda: sections(panel)["Register"].running is None, 120)
    settle(app, panel)


def results(panel):
    table = sections(panel)["Register"].ui.resultTable
    return {table.item(row, 0).text(): table.item(row, 1).text() for row in range(table.rowCount)}


def test_the_network_finds_the_pose_and_registration_refines_it(panel, slicer_app, monkeypatch, tmp_path):
    truth, lost = find(slicer_app, panel, monkeypatch, tmp_path, wrong_by(panel, 8.0))
    panel.tick()
    assert not ui(panel).trainButton.enabled and ui(panel).cancelFindButton.enabled
    assert not sections(panel)["Move"].root.enabled
    done(slicer_app, panel)
    found = panel.carm.pose.matrix
    center = torch.from_numpy(panel.anatomy.center)
    seen = [(torch.linalg.inv(pose) @ torch.cat([center, torch.ones(1)]))[:2] for pose in (found, truth)]
    assert (seen[0] - seen[1]).norm() < 1.0 and not slicer_app.messages
    told = results(panel)
    assert float(told["network: similarity"]) == pytest.approx(0.75)
    assert float(told["network: standard deviation, right"]) == pytest.approx(3.0)
    assert float(told["network: standard deviation, depth"]) == pytest.approx(12.0)
    assert float(told["network: standard deviation, turn in the image"]) == pytest.approx(1.5, rel=1e-3)
    assert float(told["similarity"]) > 0.99 and "answer" not in told
    assert "3.0 mm in the image and 12.0 mm in depth" in ui(panel).findText.text
    assert ui(panel).findProgress.value == 0 and not ui(panel).cancelFindButton.enabled
    panel.undo()  # one step
    assert torch.allclose(panel.carm.pose.matrix, lost)
    panel.redo()
    assert torch.allclose(panel.carm.pose.matrix, found)


def test_without_refinement_the_network_has_the_last_word(panel, slicer_app, monkeypatch, tmp_path):
    answer = wrong_by(panel, 8.0)
    _, lost = find(slicer_app, panel, monkeypatch, tmp_path, answer, findRefine=False, findCandidates=False)
    done(slicer_app, panel)
    assert torch.allclose(panel.anatomy.pose_in_volume(panel.carm.pose).matrix, answer.pose.matrix)
    assert "similarity" not in results(panel) and "network: similarity" in results(panel)
    assert answer.asked == [False] and panel.outcome is None and not slicer_app.messages
    panel.undo()
    assert torch.allclose(panel.carm.pose.matrix, lost)


def test_cancel_keeps_the_best_pose_so_far(panel, slicer_app, monkeypatch, tmp_path):
    answer = wrong_by(panel, 8.0)
    find(slicer_app, panel, monkeypatch, tmp_path, answer)
    register = sections(panel)["Register"]
    register.timer.stop()
    while "network has found" not in register.ui.progressText.text:
        register.step()
    settle(slicer_app, panel)
    assert "network has found" in ui(panel).findText.text and ui(panel).findProgress.value > 0
    ui(panel).cancelFindButton.click()
    register.timer.start()
    done(slicer_app, panel)
    assert torch.allclose(panel.anatomy.pose_in_volume(panel.carm.pose).matrix, answer.pose.matrix)
    assert register.ui.progressText.text == "Cancelled: the network's pose is kept." and not slicer_app.messages


def test_a_network_that_cannot_be_used_leaves_all_as_it_was(panel, slicer_app, monkeypatch, tmp_path):
    answer = Answer(panel.carm.pose, error="The network was trained on another CT.")
    _, lost = find(slicer_app, panel, monkeypatch, tmp_path, answer)
    done(slicer_app, panel)
    assert torch.equal(panel.carm.pose.matrix, lost)
    assert len(slicer_app.messages) == 1 and "trained on another CT" in slicer_app.messages[0].text
    assert "The pose was not found" in slicer_app.messages[0].text and ui(panel).findButton.enabled


def test_a_file_that_is_no_network(panel, slicer_app, tmp_path):
    network = tmp_path / "model.safetensors"
    network.write_bytes(b"nonsense")
    panel.parameters.networkFile = str(network)
    settle(slicer_app, panel)
    before = panel.carm.pose.matrix.clone()
    ui(panel).findButton.click()
    done(slicer_app, panel)
    assert len(slicer_app.messages) == 1 and "model.safetensors" in slicer_app.messages[0].text
    assert "not to be expected" not in slicer_app.messages[0].text
    assert torch.equal(panel.carm.pose.matrix, before)
