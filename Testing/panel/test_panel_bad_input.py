"""Bad input in every field: one message with one clear sentence, and the scene stays as it was."""

from __future__ import annotations

import json

import numpy as np
import pytest
import slicer

from Testing.panel.kit import add_phantom, sections, settle, simulated


@pytest.fixture
def panel(make_widget, slicer_app):
    widget = make_widget("DiffDRRSlicer")
    simulated(slicer_app, widget)
    for section in widget.panel.sections.values():
        section.button.collapsed = False
        for name, child in vars(section.ui).items():
            if name.endswith("Group"):
                child.collapsed = False
    assert not slicer_app.messages
    return widget.panel


def state(scene):
    return sorted(scene.GetNthNode(index).GetID() for index in range(scene.GetNumberOfNodes()))


def refused(slicer_app, panel, action, *words):
    """`action` gives exactly one message, which says these words, and changes neither nodes nor pose."""
    settle(slicer_app, panel)
    nodes, pose = state(slicer_app.scene), None if panel.carm is None else panel.carm.pose.matrix.numpy().copy()
    slicer_app.messages.clear()
    action()
    settle(slicer_app, panel)
    assert len(slicer_app.messages) == 1, [message.text for message in slicer_app.messages]
    text = slicer_app.messages[0].text
    assert all(word in text for word in words), text
    assert "Traceback" not in text and "Error:" not in text
    assert state(slicer_app.scene) == nodes
    if pose is not None:
        assert np.array_equal(panel.carm.pose.matrix.numpy(), pose)


def test_files_that_are_no_x_ray(panel, slicer_app, tmp_path):
    load = sections(panel)["Load"].ui
    (tmp_path / "text.dcm").write_text("no image")
    for name, words in (("nowhere.dcm", ["There is no file"]), ("text.dcm", ["text.dcm"])):
        load.xrayPath.currentPath = str(tmp_path / name)
        refused(slicer_app, panel, load.loadXRayButton.click, *words)


def test_a_volume_of_many_slices_needs_a_frame_and_one_that_is_there(panel, slicer_app):
    load = sections(panel)["Load"].ui
    load.xraySelector.setCurrentNode(panel.parameters.ct)
    refused(slicer_app, panel, load.addXRayButton.click, "slice")
    load.frameSpinBox.value = 999
    refused(slicer_app, panel, load.addXRayButton.click, "999")


def test_matrices_that_are_none(panel, slicer_app):
    camera = sections(panel)["Camera"].ui
    texts = {"": "", "one two": "", "1 2 3": "3 numbers", " ".join(["0"] * 12): "singular", "1 " * 9: ""}
    for text, words in texts.items():
        camera.matrixText.plainText = text
        refused(slicer_app, panel, camera.applyMatrixButton.click, words)


def test_camera_files_that_are_none_or_do_not_fit(panel, slicer_app, tmp_path):
    camera = sections(panel)["Camera"].ui
    refused(slicer_app, panel, camera.loadCameraButton.click, "Choose a camera file first")
    path = tmp_path / "camera.json"
    for content, words in (("not json", "JSON"), (json.dumps({"height": 5}), "lacks")):
        path.write_text(content)
        camera.cameraPath.currentPath = str(path)
        refused(slicer_app, panel, camera.loadCameraButton.click, words)
    path.write_text(json.dumps({"height": 5, "width": 5, "pixel_spacing": [1, 1], "source_to_detector": 1000}))
    refused(slicer_app, panel, camera.loadCameraButton.click, "96 x 96")


def test_a_pose_without_a_name(panel, slicer_app):
    move = sections(panel)["Move"].ui
    move.poseName.text = "  "
    refused(slicer_app, panel, move.savePoseButton.click, "name")
    refused(slicer_app, panel, move.goToPoseButton.click, "saved pose")
    refused(slicer_app, panel, move.deletePoseButton.click, "saved pose")


def test_landmarks_that_are_too_few_or_named_twice(panel, slicer_app):
    landmarks = sections(panel)["Landmarks"]
    ct_list = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "points")
    panel.parameters.ctLandmarks = ct_list
    settle(slicer_app, panel)
    assert not landmarks.ui.alignButton.enabled
    ct_list.AddControlPoint(0, 0, 0, "a")
    ct_list.AddControlPoint(1, 0, 0, "a")
    settle(slicer_app, panel)
    assert "more than once" in landmarks.ui.landmarkNotes.text and not landmarks.ui.alignButton.enabled
    ct_list.SetNthControlPointLabel(1, "b")
    settle(slicer_app, panel)
    assert not slicer_app.messages


def test_a_region_that_holds_no_pixel(panel, slicer_app):
    curve = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsClosedCurveNode", "region")
    panel.parameters.region = curve
    register = sections(panel)["Register"]
    pose = panel.carm.pose.matrix.numpy().copy()
    register.ui.registerButton.click()
    slicer_app.wait_until(lambda: register.running is None, 60)
    assert len(slicer_app.messages) == 1 and "region" in slicer_app.messages[0].text
    assert np.array_equal(panel.carm.pose.matrix.numpy(), pose)
    settle(slicer_app, panel)
    assert register.ui.registerButton.enabled and not register.ui.cancelButton.enabled


def test_a_folder_that_cannot_be_written_to(panel, slicer_app, tmp_path):
    (tmp_path / "file").write_text("")
    keep = sections(panel)["Keep"].ui
    keep.outputPath.currentPath = str(tmp_path / "file")
    refused(slicer_app, panel, keep.saveButton.click, "file")


def test_a_c_arm_below_a_scaling_transform_is_one_message_not_fifty_a_second(panel, slicer_app):
    scaled = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "scaled")
    from DiffDRRSlicerLib.scene import nodes

    nodes.set_transform_to_parent(scaled, np.diag([2.0, 1, 1, 1]))
    panel.carm.node.SetAndObserveTransformNodeID(scaled.GetID())
    for _ in range(30):
        panel.tick()
        slicer_app.process_events()
    assert len(slicer_app.messages) == 1 and "only be moved" in slicer_app.messages[0].text
    panel.carm.node.SetAndObserveTransformNodeID(None)
    settle(slicer_app, panel)
    assert len(slicer_app.messages) == 1


def test_a_ct_without_voxels_and_one_that_is_deleted(panel, slicer_app):
    empty = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "empty")
    panel.parameters.ct = empty
    for _ in range(5):
        panel.tick()
    slicer.mrmlScene.RemoveNode(empty)
    for _ in range(5):
        panel.tick()
    assert panel.parameters.ct is None or panel.parameters.ct.GetScene() is not None
    panel.parameters.ct = add_phantom(slicer_app.scene, "another")
    settle(slicer_app, panel)
    assert len(slicer_app.messages) <= 1


def test_deleting_the_c_arm_takes_everything_of_it_away(panel, slicer_app):
    node = panel.carm.node
    name = node.GetName()
    sections(panel)["Load"].ui.carmSelector.setCurrentNode(node)
    slicer.mrmlScene.RemoveNode(node)
    settle(slicer_app, panel)
    left = [slicer.mrmlScene.GetNthNode(i).GetName() or "" for i in range(slicer.mrmlScene.GetNumberOfNodes())]
    assert not [one for one in left if one.startswith(f"{name} ") and "true pose" not in one], left
    assert not slicer_app.messages


def test_renaming_nodes_changes_nothing(panel, slicer_app):
    drr = panel.carm.referred("drr")
    panel.carm.node.SetName("renamed")
    panel.parameters.ct.SetName("renamed too")
    settle(slicer_app, panel)
    sections(panel)["Move"].ui.laoButton.click()
    settle(slicer_app, panel)
    assert panel.carm.referred("drr") is drr and float(panel.carm.arm.primary) == pytest.approx(45)


def test_two_x_rays_have_their_own_cameras_and_poses(panel, slicer_app):
    first = panel.carm
    sections(panel)["Load"].ui.addCArmButton.click()
    settle(slicer_app, panel)
    second = panel.carm
    assert second != first and (second.camera.height, first.camera.height) == (512, 96)
    before = first.pose.matrix.numpy().copy()
    sections(panel)["Move"].ui.leftLateralButton.click()
    settle(slicer_app, panel)
    assert np.array_equal(first.pose.matrix.numpy(), before)
    assert second.referred("drr") is not first.referred("drr")
    panel.parameters.carm = first.node
    settle(slicer_app, panel)
    assert sections(panel)["Camera"].ui.imageSize.text == "96 rows x 96 columns"
    assert not slicer_app.messages
