"""What a user relies on while something else happens: sliders, locks, results, undo, messages."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import slicer

from DiffDRRCore import Camera
from DiffDRRCore.geometry import project
from DiffDRRCore.imaging.camera_file import write_camera
from Testing.panel.kit import (
    SMALL,
    add_phantom,
    load_scene,
    open_all,
    picture,
    registered,
    save_scene,
    sections,
    settle,
    simulated,
)
from Testing.panel.test_panel_scenes import begin, place_landmarks, quickly


@pytest.fixture
def widget(make_widget, slicer_app):
    made = make_widget("DiffDRRSlicer")
    simulated(slicer_app, made, **SMALL)
    open_all(made.panel)
    quickly(made.panel)
    assert not slicer_app.messages
    return made


@pytest.fixture
def panel(widget):
    return widget.panel


def both(slider):
    """What handle and spin box of a slider show."""
    return slider.value, slicer.util.findChild(slider, "SpinBox").value


def test_handles_and_spin_boxes_follow_what_moves_elsewhere(panel, slicer_app):
    move = sections(panel)["Move"].ui
    panel.carm.move_arm(primary=25, secondary=11, roll=5, isocenter=panel.carm.arm.isocenter + 7)
    settle(slicer_app, panel)
    isocenter = panel.carm.arm.isocenter.tolist()
    for name, value in zip(
        ("primarySlider", "secondarySlider", "rollSlider", "isocenterR", "isocenterA", "isocenterS", "distanceSlider"),
        (25, 11, 5, *isocenter, panel.carm.source_to_isocenter),
        strict=True,
    ):
        assert both(getattr(move, name)) == pytest.approx((value, value), abs=0.06), name
    slicer.util.findChild(move.primarySlider, "SpinBox").setValue(0.0)
    settle(slicer_app, panel)
    assert float(panel.carm.arm.primary) == pytest.approx(0, abs=1e-9)
    move.undoButton.click()
    settle(slicer_app, panel)
    assert both(move.primarySlider) == pytest.approx((25, 25))
    slicer.util.findChild(move.patientTranslationS, "Slider").setValue(14.0)
    settle(slicer_app, panel)
    assert panel.anatomy.to_world[2, 3] == pytest.approx(14) and both(move.patientTranslationS) == (14, 14)


LOCKED = ("Load", "Camera", "Move", "Landmarks")


def test_what_would_disturb_a_registration_stays_locked_until_its_end(panel, slicer_app):
    panel.carm.move_arm(primary=3)
    settle(slicer_app, panel)
    begin(slicer_app, panel, "registering for a while")
    for _ in range(3):
        panel.tick()
        assert panel.running and not any(sections(panel)[title].root.enabled for title in LOCKED)
    slicer_app.wait_until(lambda: not panel.running, 60)
    settle(slicer_app, panel)
    assert all(sections(panel)[title].root.enabled for title in LOCKED)


def test_points_on_the_ct_go_with_a_patient_who_is_registered(panel, slicer_app):
    from DiffDRRSlicerLib import choices

    center, places = panel.anatomy.center, {}
    for name in ("fiducials", "ctLandmarks"):
        markups = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", name)
        markups.AddControlPoint(*center, "middle")
        setattr(panel.parameters, name, markups)
        places[name] = markups
    panel.carm.move_arm(primary=3, isocenter=panel.carm.arm.isocenter + 8)
    settle(slicer_app, panel)
    panel.parameters.moves = choices.Moves.PATIENT
    registered(slicer_app, panel)
    assert np.linalg.norm(panel.anatomy.center - center) > 4 and not slicer_app.messages
    for markups in places.values():
        place = np.zeros(3)
        markups.GetNthControlPointPositionWorld(0, place)
        assert place == pytest.approx(panel.anatomy.center, abs=1e-4)


def test_a_bone_surface_that_cannot_be_made_stops_nothing_else(panel, slicer_app):
    voxels = slicer.util.arrayFromVolume(panel.parameters.ct)
    voxels[voxels > 150] = 150
    slicer.util.arrayFromVolumeModified(panel.parameters.ct)
    settle(slicer_app, panel)
    panel.parameters.showBone = True
    settle(slicer_app, panel)
    move = sections(panel)["Move"].ui
    for value in (5, 9):
        panel.carm.move_arm(roll=value)
        settle(slicer_app, panel)
        assert move.rollSlider.value == pytest.approx(value) and move.undoButton.enabled
    assert len(slicer_app.messages) == 1 and "200" in slicer_app.messages[0].text


@pytest.mark.parametrize(("title", "method"), [("View", "apply"), ("View", "aim"), ("Load", "refresh")])
def test_one_section_that_fails_is_told_once_and_the_others_go_on(panel, slicer_app, monkeypatch, title, method):
    work, done = [], []
    monkeypatch.setattr(sections(panel)[title], method, lambda: work.append(1) or 1 / 0)
    monkeypatch.setattr(sections(panel)["Keep"], "apply", lambda: done.append("apply"))
    if method != "aim":
        monkeypatch.setattr(sections(panel)["View"], "aim", lambda: done.append("aim"))
    for value in (5, 9):
        panel.carm.move_arm(roll=value)
        settle(slicer_app, panel)
        assert sections(panel)["Move"].ui.rollSlider.value == pytest.approx(value)
    assert len(work) > 1 and len(slicer_app.messages) == 1 and "division" in slicer_app.messages[0].text
    assert done.count("apply") == len(work) and (method == "aim" or done.count("aim") == len(work))


def table(panel):
    """Rows of the results as they are shown: {quantity: value}."""
    shown = sections(panel)["Register"].ui.resultTable
    return {shown.item(row, 0).text(): shown.item(row, 1).text() for row in range(shown.rowCount)}


def test_a_chosen_reference_is_for_this_run_and_the_c_arms_own_stays(panel, slicer_app):
    from DiffDRRSlicerLib.scene import nodes

    own, settled = panel.carm.referred("reference"), panel.carm.pose.matrix.numpy().copy()
    other = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "other")
    settled[2, 3] += 40
    nodes.set_transform_to_parent(other, settled)
    panel.parameters.reference = other
    registered(slicer_app, panel)
    assert panel.carm.referred("reference") is own
    (far,) = [float(value) for name, value in table(panel).items() if name.endswith("target registration error")]
    panel.parameters.reference = None
    registered(slicer_app, panel)
    (near,) = [float(value) for name, value in table(panel).items() if name.endswith("target registration error")]
    assert far == pytest.approx(40, abs=5) and near < 10 and not slicer_app.messages


def test_results_are_those_of_the_chosen_c_arms_last_registration(widget, slicer_app, monkeypatch, tmp_path):
    panel = widget.panel
    register, first = sections(panel)["Register"].ui, panel.carm.node
    panel.carm.move_arm(primary=3)
    registered(slicer_app, panel)
    found, text = table(panel), register.progressText.text
    assert len(found) > 8 and text.startswith("Done. Similarity") and found["similarity"] in text
    sections(panel)["Load"].ui.addCArmButton.click()
    settle(slicer_app, panel)
    assert (table(panel), register.progressText.text, register.progressBar.value) == ({}, "", 0)
    panel.parameters.carm = first
    settle(slicer_app, panel)
    assert table(panel) == found and register.progressText.text == text
    load_scene(slicer_app.scene, save_scene(slicer_app.scene, tmp_path / "scene"))
    settle(slicer_app, panel)
    assert panel.outcome is None and table(panel) == found
    monkeypatch.setattr("DiffDRRSlicerLib.scene.registration.combined_mask", lambda *_: 1 / 0)
    registered(slicer_app, panel)
    assert table(panel) == {} and "division" in register.progressText.text and "division" in slicer_app.messages[0].text
    monkeypatch.undo()
    registered(slicer_app, panel)
    assert table(panel).keys() == found.keys()
    slicer_app.leave(widget)  # so that nothing is brought up to date after the scene was closed
    slicer.mrmlScene.Clear(False)
    assert (table(panel), register.progressText.text, register.warningText.text) == ({}, "", "")
    assert register.progressBar.value == 0 and len(slicer_app.messages) == 1


def test_the_results_of_the_run_before_are_not_shown_during_a_run(panel, slicer_app):
    registered(slicer_app, panel)
    assert table(panel)
    sections(panel)["Register"].ui.registerButton.click()
    panel.tick()
    assert panel.running and table(panel) == {}
    slicer_app.wait_until(lambda: not panel.running, 60)


def projection(panel):
    from DiffDRRSlicerLib import scene

    return scene.results.projection_matrix(panel.carm.camera, panel.carm.pose)


@pytest.mark.parametrize("how", ["matrix", "file", "typed"])
def test_undo_brings_the_camera_back_and_redo_the_new_one(panel, slicer_app, tmp_path, how):
    camera, move, before = sections(panel)["Camera"].ui, sections(panel)["Move"].ui, projection(panel)
    panel.carm.meta = {**panel.carm.meta, "missing": ["pixel spacing (1 mm assumed)"]}
    settle(slicer_app, panel)
    panel.rested()
    xray, K = panel.carm.referred("xray"), panel.carm.camera.K.tolist()
    grid = slicer_matrix(xray)
    if how == "matrix":
        camera.matrixText.plainText = "900 10 300 20000 10 -20 950 9000 0.1 0.99 0.05 700"
        camera.applyMatrixButton.click()
    elif how == "file":
        size = (panel.carm.camera.height, panel.carm.camera.width)
        write_camera(tmp_path / "camera.json", Camera(*size, (4.0, 5.0), 1111.0, (30.5, 20.25)), panel.carm.pose)
        camera.cameraPath.currentPath = str(tmp_path / "camera.json")
        camera.loadCameraButton.click()
    else:
        camera.rowSpacing.value = 4.5
    settle(slicer_app, panel)
    after = projection(panel)
    assert not slicer_app.messages and np.abs(after - before).max() > 1 and panel.carm.meta["missing"] == []
    move.undoButton.click()
    settle(slicer_app, panel)
    assert projection(panel) == pytest.approx(before, abs=1e-9) and panel.carm.camera.K.tolist() == K
    assert slicer_matrix(xray) == pytest.approx(grid, abs=1e-9) and "pixel spacing" in camera.cameraNotes.text
    move.redoButton.click()
    settle(slicer_app, panel)
    assert projection(panel) == pytest.approx(after, abs=1e-9) and panel.carm.meta["missing"] == []


def slicer_matrix(volume):
    from DiffDRRSlicerLib.scene import nodes

    return nodes.volume_grid(volume)


def test_the_detail_at_rest_holds_from_the_beginning_and_is_saved(make_widget, slicer_app, tmp_path):
    panel = make_widget("DiffDRRSlicer").panel
    combo = sections(panel)["View"].ui.restSize
    assert [combo.itemText(index) for index in range(combo.count)] == ["256", "512", "1024"]
    assert combo.currentText == "512"
    combo.currentIndex = 0
    big = {"shape": (24, 18, 21), "spacing": 16.0, "size": 300}
    simulated(slicer_app, slicer.modules.DiffDRRSlicerWidget, **big)
    assert picture(panel).shape == (256, 256)
    combo.currentIndex = 2
    settle(slicer_app, panel)
    assert picture(panel).shape == (300, 300)  # the X-ray has no more
    combo.currentIndex = 0
    settle(slicer_app, panel)
    load_scene(slicer_app.scene, save_scene(slicer_app.scene, tmp_path / "scene"))
    settle(slicer_app, panel)
    sections(panel)["Move"].ui.laoButton.click()
    settle(slicer_app, panel)
    assert combo.currentText == "256" and picture(panel).shape == (256, 256)
    slicer.mrmlScene.Clear(False)
    simulated(slicer_app, slicer.modules.DiffDRRSlicerWidget, **big)
    assert combo.currentText == "512" and picture(panel).shape == (300, 300)


def own(caplog):
    """What the panel logged; Slicer logs the text of each message too."""
    return [record for record in caplog.records if record.filename == "panel.py"]


def expected_errors():
    from DiffDRRCore.errors import DiffDRRError
    from DiffDRRSlicerLib.install import InstallError
    from DiffDRRSlicerLib.panel.section import NotReadyError
    from DiffDRRSlicerLib.scene.errors import SceneError

    return [DiffDRRError("so"), SceneError("so"), InstallError("so"), NotReadyError("so"), PermissionError("so")]


@pytest.mark.parametrize("number", range(5))
def test_expected_errors_are_one_sentence_without_a_traceback(panel, slicer_app, caplog, number):
    error = expected_errors()[number]
    panel.show_error("It did not work.", error)
    assert slicer_app.messages[-1].text == "It did not work.\n\nso"
    (record,) = own(caplog)
    assert record.levelno == logging.WARNING and record.exc_info is None


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), ValueError("of numpy"), KeyError("bug")])
def test_other_errors_are_logged_with_their_traceback(panel, slicer_app, monkeypatch, caplog, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(panel.logic, "copyDRR", fail)
    sections(panel)["Keep"].ui.keepDRRButton.click()
    text = slicer_app.messages[-1].text
    assert text.startswith(f"The DRR could not be copied.\n\n{error}") and "error log" in text
    (record,) = own(caplog)
    assert record.levelno == logging.ERROR and record.exc_info[1] is error and record.exc_info[2].tb_next is not None


def landmark_rows(panel):
    return {name.split(": ")[1]: float(value) for name, value in table(panel).items() if "landmark" in name}


def test_landmarks_are_measured_whether_they_are_used_or_not(panel, slicer_app):
    from DiffDRRSlicerLib.scene import landmarks

    registered(slicer_app, panel)
    assert landmark_rows(panel) == {}
    place_landmarks(slicer_app, panel)
    panel.parameters.useLandmarks = False
    registered(slicer_app, panel)
    carm, ct_list = panel.carm, panel.parameters.ctLandmarks
    rows = landmark_rows(panel)
    points = landmarks.points_in_world(ct_list, range(4))
    clicked = landmarks.points_in_xray(carm, carm.referred("landmarks"), range(4))
    off = np.linalg.norm(project(carm.camera, carm.pose, points)[0].numpy() - clicked, axis=1)
    assert [rows[f"landmark tip {number}"] for number in range(4)] == pytest.approx(off.tolist(), rel=1e-3)
    panel.parameters.useLandmarks = True
    registered(slicer_app, panel)
    assert landmark_rows(panel).keys() == rows.keys() and landmark_rows(panel) != rows
    panel.parameters.useLandmarks = False
    ct_list.SetNthControlPointLabel(1, "tip 0")
    registered(slicer_app, panel)
    assert landmark_rows(panel) == {} and table(panel) and not slicer_app.messages


def test_landmarks_that_are_used_need_a_list(panel, slicer_app):
    add_phantom(slicer_app.scene, "another", **{key: SMALL[key] for key in ("shape", "spacing")})
    panel.parameters.useLandmarks = True
    sections(panel)["Register"].ui.registerButton.click()
    assert "Choose the list of landmarks in the CT first" in slicer_app.messages[-1].text and not panel.running
