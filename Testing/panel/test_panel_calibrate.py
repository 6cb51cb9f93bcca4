"""The section Calibrate as a user meets it: phantom, X-rays, Calibrate, what was found, Apply, Save."""

from __future__ import annotations

import json

import numpy as np
import pytest
import slicer
import slicer.util

from DiffDRRSlicerLib.choices import Distortion
from Testing.panel.kit import load_scene, node_count, open_all, reload, save_scene, sections, settle
from Testing.scene import bead_images as made

pytestmark = pytest.mark.usefixtures("once")
once = made.once
POSES = made.poses(3)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Three X-rays of the phantom with distortion, and two without, as a C-arm writes them; the phantom's file."""
    folder = tmp_path_factory.mktemp("phantom")
    for number, pose in enumerate(POSES):
        made.xray(pose, seed=number, k1=made.K1).write(folder / f"bent{number}.nrrd")
    for number, pose in enumerate(POSES[:2]):
        made.xray(pose, seed=number).write(folder / f"shot{number}.nrrd")
    made.PHANTOM.write(folder / "beads.json")
    return folder


@pytest.fixture
def panel(make_widget, slicer_app):
    panel = make_widget("DiffDRRSlicer").panel
    open_all(panel)
    settle(slicer_app, panel)
    return panel


@pytest.fixture
def ready(panel, slicer_app, files):
    """Two X-rays without distortion and the phantom's file are chosen."""
    load(slicer_app, panel, files / "shot0.nrrd", files / "shot1.nrrd")
    ui(panel).phantomPath.currentPath = str(files / "beads.json")
    choose(panel, "calibrateXRaysSelector", "shot0", "shot1")
    settle(slicer_app, panel)
    return panel


def ui(panel):
    return sections(panel)["Calibrate"].ui


def load(app, panel, *paths):
    widgets = sections(panel)["Load"].ui
    for path in paths:
        widgets.xrayPath.currentPath = str(path)
        widgets.loadXRayButton.click()
        settle(app, panel)
    assert not app.messages, app.messages[-1].text


def offered(panel, name):
    combo = getattr(ui(panel), name)
    return [combo.itemText(index) for index in range(combo.count)]


def checked(panel, name):
    return [offered(panel, name)[index.row()] for index in getattr(ui(panel), name).checkedIndexes()]


def choose(panel, name, *titles):
    import qt

    combo = getattr(ui(panel), name)
    for row, title in enumerate(offered(panel, name)):
        combo.setCheckState(combo.model().index(row, 0), qt.Qt.Checked if title in titles else qt.Qt.Unchecked)


def calibrate(app, panel, seconds=60):
    ui(panel).calibrateButton.click()
    app.wait_until(lambda: sections(panel)["Calibrate"].running is None, seconds)
    settle(app, panel)


def table(panel, name):
    widget = getattr(ui(panel), name)
    return [[widget.item(row, column).text() for column in range(widget.columnCount)] for row in range(widget.rowCount)]


def carm(panel, name):
    from DiffDRRSlicerLib.scene.carm import CArmNode

    return CArmNode(slicer.mrmlScene.GetFirstNodeByName(name))


def enabled(panel):
    names = ("calibrateButton", "cancelCalibrationButton", "applyCalibrationButton", "saveCalibrationButton")
    return {name for name in names if getattr(ui(panel), name).enabled}


def test_the_section_waits_for_x_rays(panel, slicer_app, files):
    assert type(sections(panel)["Calibrate"]).collapsed and enabled(panel) == set()
    load(slicer_app, panel, files / "shot0.nrrd")
    assert offered(panel, "calibrateXRaysSelector") == offered(panel, "applyToSelector") == ["shot0"]
    assert enabled(panel) == set()
    choose(panel, "calibrateXRaysSelector", "shot0")
    settle(slicer_app, panel)
    assert enabled(panel) == {"calibrateButton"}
    ui(panel).calibrateButton.click()
    assert "Choose the phantom first" in slicer_app.messages[-1].text
    slicer_app.scene.RemoveNode(carm(panel, "shot0").node)
    settle(slicer_app, panel)
    assert offered(panel, "calibrateXRaysSelector") == [] and enabled(panel) == set()


def test_calibrate_apply_and_save(ready, slicer_app, files, tmp_path):
    panel = ready
    calibrate(slicer_app, panel)
    assert not slicer_app.messages and ui(panel).calibrationWarnings.text == ""
    rows = {row[0]: row for row in table(panel, "calibrationTable")}
    distance = rows["source to detector"]
    assert abs(float(distance[1]) - made.SDD) < 4 * float(distance[2].removeprefix("± ")) and distance[3] == "mm"
    residuals = table(panel, "residualsTable")
    assert [row[0] for row in residuals] == ["shot0", "shot1", "all"]
    assert all(0 < float(row[3]) < 0.3 and float(row[4]) < 1 for row in residuals)
    assert ui(panel).calibrationText.text.startswith("Calibrated by 2 images, 0.")
    assert "Residuals are drawn" in ui(panel).calibrationText.text
    assert checked(panel, "applyToSelector") == ["shot0", "shot1"]
    assert float(carm(panel, "shot0").camera.source_to_detector) == 1000  # not before Apply
    assert enabled(panel) == {"calibrateButton", "applyCalibrationButton", "saveCalibrationButton"}
    ui(panel).applyCalibrationButton.click()
    settle(slicer_app, panel)
    for name in ("shot0", "shot1"):
        assert float(carm(panel, name).camera.source_to_detector) == pytest.approx(float(distance[1]), abs=0.01)
    assert ui(panel).calibrationText.text == "Calibrated: shot0, shot1."
    shown = sections(panel)["Camera"].ui.sourceToDetector.value
    assert shown == pytest.approx(float(distance[1]), abs=0.06)
    ui(panel).calibrationPath.currentPath = str(tmp_path / "found")
    ui(panel).saveCalibrationButton.click()
    assert json.loads((tmp_path / "found.json").read_text())["kind"] == "calibration"
    assert ui(panel).calibrationText.text == "Saved found.json." and not slicer_app.messages
    load(slicer_app, panel, files / "bent0.nrrd")  # the file is a camera for another C-arm
    assert panel.carm.name == "bent0" and float(panel.carm.camera.source_to_detector) == 1000
    camera = sections(panel)["Camera"].ui
    camera.cameraPath.currentPath = str(tmp_path / "found.json")
    camera.loadCameraButton.click()
    settle(slicer_app, panel)
    assert float(panel.carm.camera.source_to_detector) == pytest.approx(float(distance[1]), abs=0.06)


def test_a_distortion_is_undone_by_apply(panel, slicer_app, files):
    load(slicer_app, panel, *(files / f"bent{number}.nrrd" for number in range(3)))
    ui(panel).phantomPath.currentPath = str(files / "beads.json")
    choose(panel, "calibrateXRaysSelector", "bent0", "bent1", "bent2")
    ui(panel).distortionSelector.currentIndex = list(Distortion).index(Distortion.RADIAL)
    settle(slicer_app, panel)
    calibrate(slicer_app, panel)
    rows = {row[0]: row for row in table(panel, "calibrationTable")}
    assert float(rows["k1"][1]) == pytest.approx(made.K1, abs=0.01) and "distortion, at most" in rows
    volume = carm(panel, "bent0").referred("xray")
    before = np.array(slicer.util.arrayFromVolume(volume)[0])
    ui(panel).applyCalibrationButton.click()
    settle(slicer_app, panel)
    after, ideal = slicer.util.arrayFromVolume(volume)[0], made.image(POSES[0])
    inner = slice(20, made.SIZE - 20)
    assert np.std((after - ideal)[inner, inner]) < 0.2 * np.std((before - ideal)[inner, inner])
    assert ui(panel).calibrationText.text == "Calibrated and undistorted: bent0, bent1, bent2."
    assert np.array_equal(slicer.util.arrayFromVolume(carm(panel, "bent0").referred("recorded"))[0], before)


def test_all_widgets_reach_the_settings(panel, slicer_app):
    from DiffDRRSlicerLib.scene.calibration import CalibrationSettings

    widgets, section = ui(panel), sections(panel)["Calibrate"]
    assert CalibrationSettings.of(**section.settings()) == CalibrationSettings()  # the defaults are the same
    widgets.calibrateDistanceSpinBox.value, widgets.calibratePixelSpinBox.value = 1050, 0.31
    widgets.freePoint.checked, widgets.freePixel.checked, widgets.freeRatio.checked = False, True, True
    settle(slicer_app, panel)
    widgets.priorDistanceSpinBox.value, widgets.priorPixelSpinBox.value = 5, 0.002
    widgets.priorRatioSpinBox.value, widgets.priorDistortionSpinBox.value = 0.01, 2.5
    widgets.distortionSelector.currentIndex = list(Distortion).index(Distortion.GRID)
    widgets.gridCellsSpinBox.value = 4
    widgets.beadsFromSpinBox.value, widgets.beadsToSpinBox.value = 2, 9.5
    settle(slicer_app, panel)
    assert section.settings() == {
        "source_to_detector": 1050,
        "pixel_size": 0.31,
        "free": ("source_to_detector", "pixel_size", "pixel_ratio"),
        "priors": {"source_to_detector": 5, "pixel_size": 0.002, "pixel_ratio": 0.01, "distortion": 2.5},
        "distortion": "grid",
        "cells": (4, 4),
        "radius_range": (2, 9.5),
    }
    from DiffDRRSlicerLib import scene

    assert [one.key for one in Distortion] == [None, *scene.calibration.DISTORTIONS]
    assert not widgets.priorPointSpinBox.enabled and widgets.priorPixelSpinBox.enabled
    widgets.beadsToSpinBox.value = 0
    settle(slicer_app, panel)
    with pytest.raises(ValueError, match="Give both radii"):
        section.settings()


def test_cancel(ready, slicer_app):
    panel, before = ready, node_count(slicer_app.scene)
    ui(panel).calibrateButton.click()
    section = sections(panel)["Calibrate"]
    slicer_app.wait_until(lambda: ui(panel).calibrationProgress.value > 0, 20)
    assert "blobs" in ui(panel).calibrationText.text or "looking" in ui(panel).calibrationText.text
    assert panel.running and not sections(panel)["Camera"].root.enabled
    assert enabled(panel) == {"cancelCalibrationButton"}
    ui(panel).cancelCalibrationButton.click()
    settle(slicer_app, panel)
    assert section.running is None and ui(panel).calibrationText.text == "Cancelled; nothing was changed."
    assert node_count(slicer_app.scene) == before and sections(panel)["Camera"].root.enabled
    assert enabled(panel) == {"calibrateButton"} and table(panel, "calibrationTable") == []


def test_the_wrong_phantom_is_one_sentence(ready, slicer_app, files):
    rows = [f"{20 * (k % 4)},{20 * (k // 4)},0,{1.6 if k % 3 else 2.6}" for k in range(16)]
    (files / "plate.csv").write_text("x,y,z,radius\n" + "\n".join(rows))
    choose(ready, "calibrateXRaysSelector", "shot0")
    wrong = {"nowhere.json": "nowhere.json", "shot0.json": "Bead phantom", "plate.csv": "do not fit"}
    for number, (name, says) in enumerate(wrong.items(), 1):
        ui(ready).phantomPath.currentPath = str(files / name)
        settle(slicer_app, ready)
        calibrate(slicer_app, ready)
        assert len(slicer_app.messages) == number and says in slicer_app.messages[-1].text
        assert "not to be expected" not in slicer_app.messages[-1].text
        assert ui(ready).calibrationText.text == "" and enabled(ready) == {"calibrateButton"}
    ready.parameters.phantomPoints = slicer_app.scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "beads")
    settle(slicer_app, ready)
    ui(ready).calibrateButton.click()
    assert "either a file of the phantom or a list of points" in slicer_app.messages[-1].text


def test_a_phantom_of_points(ready, slicer_app):
    points = slicer_app.scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "beads")
    for number, (point, radius) in enumerate(zip(made.PHANTOM.positions, made.PHANTOM.radii, strict=True)):
        points.AddControlPoint(*point.tolist())
        points.SetNthControlPointDescription(number, f"{float(radius)}")
    ui(ready).phantomPath.currentPath = ""
    ui(ready).phantomPointsSelector.setCurrentNode(points)
    settle(slicer_app, ready)
    calibrate(slicer_app, ready)
    assert not slicer_app.messages and len(table(ready, "residualsTable")) == 3
    found = ready.carm.referred("beads found")
    hidden = ui(ready).phantomPointsSelector.sortFilterProxyModel().hiddenNodeIDs
    assert found.GetID() in hidden and points.GetID() not in hidden


def test_doubts_are_shown_and_one_image_twice_is_refused(ready, slicer_app, files):
    ui(ready).freePixel.checked = True
    settle(slicer_app, ready)
    calibrate(slicer_app, ready)
    assert ui(ready).calibrationWarnings.text.startswith("Doubtful: The images do not determine")
    load(slicer_app, ready, files / "shot0.nrrd")
    choose(ready, "calibrateXRaysSelector", *offered(ready, "calibrateXRaysSelector"))
    settle(slicer_app, ready)
    calibrate(slicer_app, ready)
    assert "are the same: leave one out" in slicer_app.messages[-1].text


def test_the_chosen_c_arm_s_calibration_and_beads_are_shown(ready, slicer_app, files):
    panel = ready
    load(slicer_app, panel, files / "bent0.nrrd")
    calibrate(slicer_app, panel)
    assert panel.carm.name == "shot0"  # it was another
    first, second = carm(panel, "shot0"), carm(panel, "shot1")

    def visible(one):
        return one.referred("beads found").GetDisplayNode().GetVisibility()

    assert (visible(first), visible(second)) == (1, 0)
    panel.parameters.carm = second.node
    settle(slicer_app, panel)
    assert (visible(first), visible(second)) == (0, 1) and len(table(panel, "calibrationTable")) == 3
    ui(panel).showBeads.checked = False
    settle(slicer_app, panel)
    assert (visible(first), visible(second)) == (0, 0)
    panel.parameters.carm = carm(panel, "bent0").node
    settle(slicer_app, panel)
    assert table(panel, "calibrationTable") == [] and ui(panel).calibrationText.text == ""
    assert "saveCalibrationButton" not in enabled(panel)


def test_it_is_saved_with_the_scene(ready, slicer_app, tmp_path):
    panel = ready
    calibrate(slicer_app, panel)
    before = table(panel, "calibrationTable"), table(panel, "residualsTable")
    path = save_scene(slicer_app.scene, tmp_path / "scene")
    load_scene(slicer_app.scene, path)
    settle(slicer_app, panel)
    assert (table(panel, "calibrationTable"), table(panel, "residualsTable")) == before
    assert carm(panel, "shot1").referred("beads found").GetNumberOfControlPoints() > 12
    assert checked(panel, "calibrateXRaysSelector") == []  # a new scene, a new choice


def test_closing_the_scene_and_reloading_while_it_runs(ready, slicer_app, make_widget, fresh_modules):
    panel = ready
    ui(panel).calibrateButton.click()
    slicer_app.wait_until(lambda: ui(panel).calibrationProgress.value > 0, 20)
    slicer_app.scene.Clear(False)
    slicer_app.process_events()
    assert sections(panel)["Calibrate"].running is None and ui(panel).calibrationText.text == ""
    widget = reload(slicer_app, slicer_app._widgets[0])
    assert not slicer_app.messages and sections(widget.panel)["Calibrate"].running is None


def test_by_script(ready, slicer_app, files, tmp_path):
    logic = ready.logic
    ready.timer.stop()
    nodes = [carm(ready, name).node for name in ("shot0", "shot1")]
    texts = []
    cancelled = logic.calibrate(nodes, files / "beads.json", progress=lambda step: texts.append(step) or len(texts) < 2)
    assert cancelled is None and nodes[0].GetAttribute("DiffDRR.Calibration") is None
    found = logic.calibrate(nodes, files / "beads.json", progress=texts.append)
    assert found.content["values"]["source_to_detector"] == pytest.approx(made.SDD, rel=0.02)
    assert any(step.text.endswith("of 16 beads") for step in texts)
    logic.applyCalibration(nodes[0])
    camera = carm(ready, "shot0").camera
    path = logic.saveCalibration(tmp_path / "c.json", nodes[0])
    logic.applyCalibration(nodes[1], path)
    assert np.array_equal(carm(ready, "shot1").camera.K, camera.K)
    logic.applyCalibration(nodes, nodes[0], place=True)
    for name, pose in zip(("shot0", "shot1"), POSES, strict=False):
        seen = made.pixels(camera, carm(ready, name).pose, made.PHANTOM.positions)
        np.testing.assert_allclose(seen, made.pixels(made.CAMERA, pose, made.PHANTOM.positions), atol=0.4)
