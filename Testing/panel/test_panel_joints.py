"""The section "Bones and X-rays" beyond its lists: joints, points of bones, bounds; bad input is a sentence."""

from __future__ import annotations

import pytest
import slicer
import torch

from DiffDRRCore import Pose
from Testing.panel.bones_kit import add, bones, bones_panel, cell, texts, ui
from Testing.panel.kit import load_scene, registered, save_scene, sections, settle


@pytest.fixture
def widget(make_widget):
    return make_widget("DiffDRRSlicer")


@pytest.fixture
def panel(widget, slicer_app):
    return bones_panel(slicer_app, widget)


AWAY = Pose.exp(torch.tensor([0.0, 0.0, 0.0, 2000.0, 0.0, 0.0]).double())


def points(app, *places):
    markups = app.scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "knee")
    for place in places:
        markups.AddControlPoint(*place)
    return markups


def joints(panel):
    from DiffDRRSlicerLib.scene.joints import JointNode

    return JointNode.of(panel.anatomy)


def test_joints_are_made_changed_saved_and_removed(slicer_app, panel, tmp_path):
    assert not ui(panel).addJointButton.enabled
    add(slicer_app, panel, "7")
    add(slicer_app, panel, "8")
    ui(panel).addJointButton.click()
    settle(slicer_app, panel)
    table = ui(panel).jointsTable
    assert texts(table) == [["7 – 8", "–", "2", "–", "–", "0.001"]]
    for column, text in ((1, "5 10 60"), (2, "1,5"), (3, "30"), (5, "0.01")):
        cell(table, 0, column).setText(text)
        settle(slicer_app, panel)
    assert texts(table) == [["7 – 8", "5 10 60", "1.5", "30", "–", "0.01"]]
    (joint,) = joints(panel)
    assert joint.settings.deviations == (5.0, 10.0, 60.0, 1.5, 1.5, 1.5) and joint.settings.weight == 0.01
    for text, said in (("1 2", "one number for all axes, or three"), ("x", "'x' is no number"), ("-1", "")):
        cell(table, 0, 2).setText(text)
        settle(slicer_app, panel)
        assert said in slicer_app.messages[-1].text and texts(table)[0][2] == "1.5"
        slicer_app.messages.clear()
    centre = points(slicer_app, (1, 2, 3))
    ui(panel).jointCenterSelector.setCurrentNode(centre)
    settle(slicer_app, panel)
    assert joint.center is centre
    ui(panel).jointCenterSelector.setCurrentNode(None)
    settle(slicer_app, panel)
    assert joint.center is None and joint.lost_center is None
    other = points(slicer_app, (4, 5, 6))
    ui(panel).jointCenterSelector.setCurrentNode(other)
    settle(slicer_app, panel)
    slicer_app.scene.RemoveNode(other)
    settle(slicer_app, panel)
    assert joint.lost_center == "knee"
    ui(panel).jointCenterSelector.setCurrentNode(centre)
    settle(slicer_app, panel)
    ui(panel).addJointButton.click()
    assert "have a joint already" in slicer_app.messages[-1].text
    slicer_app.messages.clear()
    cell(ui(panel).bonesTable, 0, 0).setText("femur")
    settle(slicer_app, panel)
    assert texts(table)[0][0] == "femur – 8"
    scene = save_scene(slicer_app.scene, tmp_path / "saved")
    load_scene(slicer_app.scene, scene)
    settle(slicer_app, panel)
    sections(panel)["Bones and X-rays"].button.collapsed = False
    settle(slicer_app, panel)
    assert texts(table) == [["femur – 8", "5 10 60", "1.5", "30", "–", "0.01"]]
    table.setCurrentCell(0, 0)
    settle(slicer_app, panel)
    assert ui(panel).jointCenterSelector.currentNode().GetName() == "knee"
    ui(panel).removeJointButton.click()
    settle(slicer_app, panel)
    assert joints(panel) == [] and table.rowCount == 0 and not ui(panel).removeJointButton.enabled


def test_points_go_with_a_bone_and_are_used_for_it(slicer_app, panel):
    body = add(slicer_app, panel, "3")
    markups = points(slicer_app, (1.0, 2.0, 3.0))
    ui(panel).bonePointsSelector.setCurrentNode(markups)
    settle(slicer_app, panel)
    assert ui(panel).attachPointsButton.text == "Attach"
    ui(panel).attachPointsButton.click()
    settle(slicer_app, panel)
    assert markups.GetParentTransformNode() is body.node and ui(panel).attachPointsButton.text == "Detach"
    assert ui(panel).bonesText.text == "Points of 3: knee."
    assert sections(panel)["Register"].options(panel.carm)["landmarks"][0] == [markups]
    ui(panel).attachPointsButton.click()
    settle(slicer_app, panel)
    assert markups.GetParentTransformNode() is None and ui(panel).bonesText.text == ""
    assert sections(panel)["Register"].options(panel.carm)["landmarks"] is None


def test_bounds_of_a_free_c_arm_are_typed(slicer_app, panel):
    import qt

    from DiffDRRSlicerLib.scene.view_settings import view_settings

    cell(ui(panel).viewsTable, 0, 2).setCheckState(qt.Qt.Checked)
    settle(slicer_app, panel)
    for name, value in (("Degrees", 3.0), ("Mm", 15.0), ("MostDegrees", 8.0), ("MostMm", 40.0)):
        box = getattr(ui(panel), f"view{name}SpinBox")
        assert box.enabled
        box.value = value
        settle(slicer_app, panel)
    limits = view_settings(panel.carm).limits
    assert limits.bounds == (8.0,) * 3 + (40.0,) * 3 and limits.deviations == (3.0,) * 3 + (15.0,) * 3


def said(app, panel):
    """The one message that a click on Register brings."""
    app.messages.clear()
    registered(app, panel)
    (message,) = app.messages
    app.messages.clear()
    return message.text


def test_each_bad_input_is_one_sentence(slicer_app, panel):
    from DiffDRRSlicerLib.scene import nodes
    from DiffDRRSlicerLib.scene.view_settings import set_view
    from DiffDRRSlicerLib.scene.xrays import add_xray

    first = panel.carm
    image = nodes.get_image(first.referred("xray"))
    second = add_xray(slicer_app.scene, image, first.camera, first.pose, first.meta, "Copy", 600.0)
    set_view(second, use=True)
    settle(slicer_app, panel)
    assert f"'{first.name}' and 'Copy' are the same X-ray: uncheck one" in said(slicer_app, panel)
    volume = second.referred("xray")
    slicer.util.arrayFromVolume(volume)[:] *= 1.5
    slicer.util.arrayFromVolumeModified(volume)
    assert "their C-arms stand at the same place: move one" in said(slicer_app, panel)
    set_view(first, free=True)
    set_view(second, free=True)
    assert "All C-arms are free" in said(slicer_app, panel)
    set_view(first, free=False)
    set_view(second, use=False)
    body = add(slicer_app, panel, "7")
    body.move(panel.anatomy, AWAY)
    assert "'7' lies outside of the X-ray where it is now: move it or the C-arm" in said(slicer_app, panel)
    body.put_back(panel.anatomy)
    set_view(first, radial=1.0)
    first.meta = {**first.meta, "undistorted": {"model": "radial", "center": [1, 1], "scale": [1, 1]}}
    assert "is undone already: let its radial distortion be known" in said(slicer_app, panel)
    assert len(bones(panel)) == 1


def test_a_bone_without_voxels_is_one_sentence(slicer_app, panel):
    add(slicer_app, panel, "7")
    labels = panel.parameters.labels
    voxels = slicer.util.arrayFromVolume(labels)
    voxels[voxels == 7] = 0
    slicer.util.arrayFromVolumeModified(labels)
    settle(slicer_app, panel)
    panel.changed()
    settle(slicer_app, panel)
    assert "The bone '7' is made of '7', which 'CT labels' does not have" in ui(panel).bonesText.text
    assert "'7' is made of '7'" in said(slicer_app, panel)
