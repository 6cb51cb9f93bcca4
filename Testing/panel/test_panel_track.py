"""The section Track as a user meets it: a run, its frames, keyframes, Track, Cancel, lost frames, smoothing, Save."""

from __future__ import annotations

import numpy as np
import pytest
import slicer
import slicer.util
import torch

from DiffDRRCore import Pose
from DiffDRRSlicerLib.choices import Moves
from Testing.panel.kit import add_phantom, load_scene, save_scene, sections, settle

SIZE = 48
COUNT = 4


def moved(frame):
    """How the patient moves: about 0.6 degrees and 2 mm a frame."""
    return Pose.exp(frame * torch.tensor([0.006, -0.006, 0.006, 1.2, 1.0, -1.2]).double())


@pytest.fixture
def widget(make_widget):
    return make_widget("DiffDRRSlicer")


@pytest.fixture
def panel(widget, slicer_app):
    """With a phantom and its X-ray, the section open; nothing is a run yet."""
    panel = widget.panel
    panel.parameters.ct = add_phantom(slicer_app.scene, shape=(24, 18, 21), spacing=16.0)
    panel.parameters.carm = panel.logic.createCArm(panel.parameters.ct, SIZE, SIZE, (8.0, 8.0))
    sections(panel)["Track"].button.collapsed = False
    settle(slicer_app, panel)
    add_run(panel, slicer_app.scene)
    settle(slicer_app, panel)
    return panel


def add_run(panel, scene, blank=()):
    """An X-ray of the phantom, and a sequence of images in which it moves, as Slicer loads one."""
    from DiffDRRSlicerLib.scene.xrays import add_xray

    carm, renderer = panel.carm, panel.anatomy.renderer()
    images = [renderer(carm.camera, moved(frame).inverse() @ carm.pose)[0, 0].numpy() for frame in range(COUNT)]
    images = [image * (number not in blank) for number, image in enumerate(images)]
    run = scene.AddNewNodeByClass("vtkMRMLSequenceNode", "run")
    for number, image in enumerate(images):
        volume = slicer.vtkMRMLScalarVolumeNode()
        slicer.util.updateVolumeFromArray(volume, image[None])
        run.SetDataNodeAtValue(volume, str(number))
    made = add_xray(scene, images[0], carm.camera, carm.pose, {"intensity": "attenuation"}, "shot", 750.0)
    scene.RemoveNode(carm.node)
    panel.parameters.carm, panel.parameters.trackImages = made.node, run


def ui(panel):
    return sections(panel)["Track"].ui


def press(app, panel, name):
    getattr(ui(panel), name).click()
    settle(app, panel)


def tracked(app, panel):
    ui(panel).trackButton.click()
    app.wait_until(lambda: sections(panel)["Track"].running is None, 60)
    settle(app, panel)
    assert not app.messages, app.messages[-1].text


def error(panel, truth, frame):
    """mm across the beam, of the CT's centre in the camera: one view tells little of the depth."""
    center = [*panel.anatomy.center, 1.0]
    found = np.linalg.inv(panel.carm.to_world) @ center
    wanted = np.linalg.inv(truth) @ moved(frame).matrix.numpy() @ center
    return np.linalg.norm((found - wanted)[:2])


def test_a_single_image_is_no_run_until_one_is_chosen(slicer_app, panel):
    widgets = ui(panel)
    assert "is a single image" in widgets.runText.text and not widgets.trackButton.enabled
    assert not widgets.frameSlider.enabled and not widgets.setKeyframeButton.enabled
    press(slicer_app, panel, "useRunButton")
    assert widgets.runText.text == f"{COUNT} frames of shot." and widgets.trackButton.enabled
    assert widgets.frameSlider.maximum == COUNT - 1
    panel.parameters.trackImages = None
    press(slicer_app, panel, "useRunButton")
    assert "Choose the run's images first" in slicer_app.messages[-1].text


def test_slider_and_browser_follow_each_other(slicer_app, panel):
    press(slicer_app, panel, "useRunButton")
    browser = sections(panel)["Track"].run.browser
    ui(panel).frameSlider.value = 2
    settle(slicer_app, panel)
    assert browser.GetSelectedItemNumber() == 2
    browser.SetSelectedItemNumber(3)
    settle(slicer_app, panel)
    assert ui(panel).frameSlider.value == 3


def test_track_moves_the_c_arm_over_the_frames_and_the_files_are_written(slicer_app, panel, tmp_path):
    press(slicer_app, panel, "useRunButton")
    truth, widgets = panel.carm.to_world, ui(panel)
    assert not widgets.saveMotionsButton.enabled and not widgets.lostTable.visible
    tracked(slicer_app, panel)
    assert widgets.trackText.text == f"{COUNT} of {COUNT} frames found, 0 lost."
    errors = []
    for frame in (3, 1, 2, 0):
        widgets.frameSlider.value = frame
        settle(slicer_app, panel)
        errors.append(error(panel, truth, frame))
    assert max(errors) < 0.5 and error(panel, truth, 3) > 2.0
    from DiffDRRSlicerLib.scene import tracking_course as courses

    course = courses.course_of(panel.carm.node)
    browser = sections(panel)["Track"].run.browser
    assert browser.GetSequenceNode(course) is courses.sequence_of(panel.carm.node, "motion")
    widgets.trackSmooth.click()
    settle(slicer_app, panel)
    assert browser.GetSequenceNode(course) is courses.sequence_of(panel.carm.node, "motion unsmoothed")
    for name in ("motions.csv", "motions.tra"):
        widgets.motionsPath.currentPath = str(tmp_path / name)
        press(slicer_app, panel, "saveMotionsButton")
        assert (tmp_path / name).stat().st_size > 100
    assert not panel.can_undo
    panel.carm.move_arm(primary=20.0)  # off its motion, which has it back with the next frame
    widgets.frameSlider.value = 1
    settle(slicer_app, panel)
    assert error(panel, truth, 1) < 0.5


def test_keyframes_are_set_listed_shown_and_removed(slicer_app, panel):
    press(slicer_app, panel, "useRunButton")
    widgets = ui(panel)
    widgets.frameSlider.value = 2
    settle(slicer_app, panel)
    panel.carm.move_arm(primary=3.0)
    place = panel.carm.to_world
    press(slicer_app, panel, "setKeyframeButton")
    panel.carm.move_arm(primary=0.0)
    widgets.frameSlider.value = 0
    settle(slicer_app, panel)
    press(slicer_app, panel, "setKeyframeButton")
    assert [widgets.keyframesTable.item(row, 0).text() for row in range(widgets.keyframesTable.rowCount)] == [
        "Frame 0",
        "Frame 2",
    ]
    widgets.keyframesTable.cellClicked(1, 0)
    settle(slicer_app, panel)
    assert widgets.frameSlider.value == 2 and np.allclose(panel.carm.to_world, place)
    press(slicer_app, panel, "removeKeyframeButton")
    assert widgets.keyframesTable.rowCount == 1
    press(slicer_app, panel, "removeKeyframeButton")
    assert "Frame 2 has no keyframe" in slicer_app.messages[-1].text


def test_lost_frames_are_listed_and_shown_by_a_click(slicer_app, panel):
    add_run(panel, slicer_app.scene, blank=(2,))
    settle(slicer_app, panel)
    press(slicer_app, panel, "useRunButton")
    tracked(slicer_app, panel)
    widgets = ui(panel)
    assert "1 lost" in widgets.trackText.text and widgets.lostTable.rowCount == 1
    assert widgets.lostTable.item(0, 1).text() == "2" and len(widgets.lostTable.item(0, 0).text()) > 10
    widgets.lostTable.cellClicked(0, 0)
    settle(slicer_app, panel)
    assert widgets.frameSlider.value == 2


def test_the_panel_is_alive_and_cancel_keeps_the_frames_so_far(slicer_app, panel):
    press(slicer_app, panel, "useRunButton")
    widgets, section = ui(panel), sections(panel)["Track"]
    widgets.trackButton.click()
    assert panel.running and not sections(panel)["Move"].root.enabled
    slicer_app.wait_until(lambda: widgets.trackText.text.startswith("Frame"), 30)
    assert not widgets.frameSlider.enabled and widgets.cancelTrackButton.enabled
    widgets.cancelTrackButton.click()
    slicer_app.wait_until(lambda: section.running is None, 30)
    settle(slicer_app, panel)
    assert "Cancelled: the frames so far are kept." in widgets.trackText.text and not slicer_app.messages
    assert sections(panel)["Move"].root.enabled and widgets.frameSlider.enabled


def test_what_is_wrong_is_one_sentence(slicer_app, panel):
    press(slicer_app, panel, "useRunButton")
    panel.parameters.trackLast = 0
    press(slicer_app, panel, "trackButton")
    assert "two frames or more" in slicer_app.messages[-1].text and not panel.running
    panel.parameters.trackLast = -1
    panel.parameters.moves = Moves.BODIES
    press(slicer_app, panel, "trackButton")
    assert "no bones to move" in slicer_app.messages[-1].text
    press(slicer_app, panel, "saveMotionsButton")
    assert len(slicer_app.messages) == 2  # it is not enabled


def test_a_saved_scene_plays_its_motions(slicer_app, panel, tmp_path):
    press(slicer_app, panel, "useRunButton")
    press(slicer_app, panel, "setKeyframeButton")
    tracked(slicer_app, panel)
    ui(panel).frameSlider.value = 3
    settle(slicer_app, panel)
    place = panel.carm.to_world
    load_scene(slicer_app.scene, save_scene(slicer_app.scene, tmp_path / "saved"))
    settle(slicer_app, panel)
    sections(panel)["Track"].button.collapsed = False
    settle(slicer_app, panel)
    widgets = ui(panel)
    assert widgets.trackText.text == f"{COUNT} of {COUNT} frames found, 0 lost." and widgets.frameSlider.value == 3
    widgets.frameSlider.value = 0
    settle(slicer_app, panel)
    assert not np.allclose(panel.carm.to_world, place, atol=0.1) and widgets.keyframesTable.rowCount == 1
    widgets.frameSlider.value = 3
    settle(slicer_app, panel)
    assert np.allclose(panel.carm.to_world, place, atol=1e-4)


def test_the_logic_does_the_same_from_a_script(slicer_app, panel):
    logic, ct, carm, run = panel.logic, panel.parameters.ct, panel.parameters.carm, panel.parameters.trackImages
    browser = logic.useRun(carm, run)
    logic.setKeyframe(carm, ct, frame=1)
    assert logic.keyframes(carm) == [1] and browser.GetSelectedItemNumber() == 1
    logic.removeKeyframe(carm, ct, 1)
    browser.SetSelectedItemNumber(0)
    result = logic.track(carm, ct, sizes=(32, 48), search=0, last=2)
    assert result.frames == (0, 1, 2) and not result.lost
    assert logic.motionSequence(carm).GetNumberOfDataNodes() == COUNT
    logic.showSmoothed(carm, False)
    assert browser.GetProxyNode(logic.motionSequence(carm, False)) is carm.GetParentTransformNode()
