"""The section "Bones and X-rays": bones made, changed and registered by clicks; X-rays chosen; the map of errors."""

from __future__ import annotations

import numpy as np
import pytest
import slicer
import slicer.util
import torch

from DiffDRRCore import Pose
from DiffDRRSlicerLib.choices import Moves, Rest
from Testing.panel.bones_kit import SIZE, add, bones, bones_panel, cell, texts, ui
from Testing.panel.kit import (
    add_phantom,
    load_scene,
    node_count,
    picture,
    registered,
    save_scene,
    sections,
    settle,
)

MOVED = Pose.exp(torch.tensor([0.08, -0.06, 0.1, 5.0, -4.0, 6.0]).double())


@pytest.fixture
def widget(make_widget):
    return make_widget("DiffDRRSlicer")


@pytest.fixture
def panel(widget, slicer_app):
    return bones_panel(slicer_app, widget)


def test_without_labels_the_section_says_what_is_missing(widget, slicer_app):
    panel = widget.panel
    panel.parameters.ct = add_phantom(slicer_app.scene, shape=(24, 18, 21), spacing=16.0)
    sections(panel)["Bones and X-rays"].button.collapsed = False
    settle(slicer_app, panel)
    assert "Choose a labelmap" in ui(panel).bonesText.text and not ui(panel).addBoneButton.enabled
    assert not ui(panel).removeBoneButton.enabled and ui(panel).viewsTable.rowCount == 0


def test_bones_are_made_listed_and_changed(slicer_app, panel):
    import qt

    before = node_count(slicer_app.scene)
    body = add(slicer_app, panel, "7", "9")
    assert body.structures == ["7", "9"] and ui(panel).boneStructuresSelector.findText("7") == -1
    table = ui(panel).bonesTable
    assert texts(table) == [["7", "7, 9", "", ""]] and ui(panel).removeBoneButton.enabled
    cell(table, 0, 0).setText("right leg")
    cell(table, 0, 3).setCheckState(qt.Qt.Checked)
    settle(slicer_app, panel)
    cell(table, 0, 0).setCheckState(qt.Qt.Unchecked)
    settle(slicer_app, panel)
    assert body.name == "right leg" and body.locked and not body.visible
    ui(panel).boneColorButton.setColor(qt.QColor(255, 0, 0))
    settle(slicer_app, panel)
    assert np.allclose(body.color, (1, 0, 0)) and cell(table, 0, 2).background().color().red() == 255
    other = add(slicer_app, panel, "8")
    cell(table, 1, 0).setText("right leg")
    settle(slicer_app, panel)
    assert "There is a bone 'right leg' already" in slicer_app.messages[-1].text
    assert other.name == "8" and texts(table)[1][0] == "8"
    slicer_app.messages.clear()
    for _ in range(2):
        table.setCurrentCell(0, 1)
        settle(slicer_app, panel)
        ui(panel).removeBoneButton.click()
        settle(slicer_app, panel)
    left = node_count(slicer_app.scene) - before
    assert not {name for name in left if "Transform" in name or "Model" in name or "Segmentation" in name}
    assert ui(panel).boneStructuresSelector.findText("7") >= 0 and table.rowCount == 0


def test_nothing_checked_is_a_message(slicer_app, panel):
    ui(panel).addBoneButton.click()
    assert "Check the structures" in slicer_app.messages[-1].text and bones(panel) == []


def test_a_bone_that_moves_shows_in_the_picture_and_can_be_put_back(slicer_app, panel):
    body = add(slicer_app, panel, "7")
    before = picture(panel)
    body.move(panel.anatomy, MOVED)
    settle(slicer_app, panel)
    assert np.abs(picture(panel) - before).max() > 0.1
    ui(panel).restSelector.currentIndex = list(Rest).index(Rest.LEFT_OUT)
    settle(slicer_app, panel)
    assert picture(panel).max() < 0.8 * before.max()
    ui(panel).restSelector.currentIndex = 0
    ui(panel).resetBoneButton.click()
    settle(slicer_app, panel)
    assert not body.is_moved(panel.anatomy) and np.allclose(picture(panel), before, atol=1e-4)
    move = sections(panel)["Move"].ui
    move.undoButton.click()
    settle(slicer_app, panel)
    assert np.allclose(body.motion(panel.anatomy), MOVED.matrix)


def test_register_moves_the_bones_and_tells_how_sure_it_is(slicer_app, panel):
    body = add(slicer_app, panel, "3")  # the vertebrae
    body.move(panel.anatomy, Pose.exp(torch.tensor([0.02, 0.0, 0.02, 4.0, 0, 3.0]).double()))
    panel.parameters.moves = Moves.BODIES
    pose = panel.carm.pose.matrix
    registered(slicer_app, panel)
    assert not slicer_app.messages
    found = sections(panel)["Register"].ui
    table = texts(found.bonesResultTable)
    assert [row[0] for row in table] == ["3", "all else"] and table[1][3] == "held"
    moved = body.motion(panel.anatomy)
    assert float(table[0][2]) == pytest.approx(_shift(panel, body), abs=0.01)
    assert np.linalg.norm(moved[:3, 3]) < 3 and torch.equal(panel.carm.pose.matrix, pose)
    assert "turn about R, deg" in found.bonesResultTable.item(0, 1).toolTip()
    assert found.viewsResultTable.rowCount == 1 and float(texts(found.viewsResultTable)[0][1]) > 0.9
    sections(panel)["Move"].ui.undoButton.click()
    settle(slicer_app, panel)
    assert np.allclose(body.motion(panel.anatomy)[:3, 3], (4, 0, 3), atol=0.5)


def _shift(panel, body):
    """mm, of the pivot."""
    about = panel.outcome.result.body("3").about.numpy()
    moved = body.motion(panel.anatomy)
    return np.linalg.norm(moved[:3, :3] @ about + moved[:3, 3] - about)


def test_the_map_of_errors_is_shown_and_hidden(slicer_app, panel):
    from DiffDRRSlicerLib.scene.error_map import ARRAY

    body = add(slicer_app, panel, "3")
    assert not ui(panel).showErrors.enabled
    panel.parameters.moves = Moves.BODIES
    registered(slicer_app, panel)
    assert ui(panel).showErrors.enabled
    ui(panel).showErrors.click()
    settle(slicer_app, panel)
    display = body.surface.GetDisplayNode()
    assert display.GetScalarVisibility() and display.GetActiveScalarName() == ARRAY
    legend = slicer.vtkSlicerColorLogic.GetColorLegendDisplayNode(body.surface)
    assert legend is None or legend.GetVisibility()
    ui(panel).showErrors.click()
    settle(slicer_app, panel)
    assert not display.GetScalarVisibility()


def test_x_rays_are_chosen_weighed_and_freed(slicer_app, panel):
    import qt

    from DiffDRRSlicerLib.scene.view_settings import used_carms, view_settings

    first = panel.carm
    panel.parameters.carm = panel.logic.createCArm(panel.parameters.ct, SIZE, SIZE, (6.0, 6.0), primary=80.0)
    settle(slicer_app, panel)
    sections(panel)["Load"].ui.simulateButton.click()
    settle(slicer_app, panel)
    second, table = panel.carm, ui(panel).viewsTable
    assert first != second and [row[0] for row in texts(table)] == [first.name, second.name]
    assert cell(table, 0, 0).checkState() == qt.Qt.Unchecked and cell(table, 1, 0).checkState() == qt.Qt.Checked
    cell(table, 0, 0).setCheckState(qt.Qt.Checked)
    settle(slicer_app, panel)
    cell(table, 0, 1).setText("2,5")
    settle(slicer_app, panel)
    cell(table, 0, 2).setCheckState(qt.Qt.Checked)
    settle(slicer_app, panel)
    table.setCurrentCell(0, 0)
    settle(slicer_app, panel)
    ui(panel).viewDegreesSpinBox.value = 8.0
    settle(slicer_app, panel)
    settings = view_settings(first)
    assert (settings.use, settings.weight, settings.free, settings.degrees) == (True, 2.5, True, 8.0)
    assert used_carms(second) == [second, first]
    cell(table, 0, 1).setText("no")
    settle(slicer_app, panel)
    assert "'no' is no number" in slicer_app.messages[-1].text and texts(table)[0][1] == "2.5"
    slicer_app.messages.clear()
    before = first.pose.matrix
    registered(slicer_app, panel)
    assert not slicer_app.messages
    rows = texts(sections(panel)["Register"].ui.viewsResultTable)
    assert [row[0] for row in rows] == [second.name, f"{first.name}, free"]
    assert not torch.equal(first.pose.matrix, before) and len(panel.outcome.views) == 2


def test_a_bone_deleted_in_another_module_takes_its_parts_along(slicer_app, panel):
    before = node_count(slicer_app.scene)
    body = add(slicer_app, panel, "7")
    slicer.mrmlScene.RemoveNode(body.node)
    settle(slicer_app, panel)
    left = node_count(slicer_app.scene) - before
    assert not {name for name in left if "Transform" in name or "Model" in name or "Segmentation" in name}
    assert ui(panel).bonesTable.rowCount == 0


def test_a_saved_scene_shows_its_bones(slicer_app, panel, tmp_path):
    body = add(slicer_app, panel, "7")
    body.move(panel.anatomy, MOVED)
    body.locked = True
    ui(panel).restSelector.currentIndex = 1
    settle(slicer_app, panel)
    scene = save_scene(slicer_app.scene, tmp_path / "saved")
    load_scene(slicer_app.scene, scene)
    settle(slicer_app, panel)
    sections(panel)["Bones and X-rays"].button.collapsed = False
    settle(slicer_app, panel)
    (again,) = bones(panel)
    assert again.locked and np.allclose(again.motion(panel.anatomy), MOVED.matrix)
    assert ui(panel).bonesTable.rowCount == 1 and ui(panel).restSelector.currentIndex == 1


def test_handles_are_those_of_the_chosen_bone(slicer_app, panel):
    first, second = add(slicer_app, panel, "7"), add(slicer_app, panel, "8")
    ui(panel).showBoneHandles.click()
    settle(slicer_app, panel)
    assert second.node.GetDisplayNode().GetEditorVisibility()
    ui(panel).bonesTable.setCurrentCell(0, 1)
    settle(slicer_app, panel)
    assert first.node.GetDisplayNode().GetEditorVisibility()
    assert not second.node.GetDisplayNode().GetEditorVisibility()


def test_the_logic_does_the_same_from_a_script(slicer_app, panel):
    logic, ct, labels = panel.logic, panel.parameters.ct, panel.parameters.labels
    bone = logic.addBone(ct, labels, ["3"], "spine", (0.5, 0.5, 1.0))
    assert logic.bones(ct, labels) == [bone]
    logic.setBone(bone, name="back", locked=False)
    logic.setRest(ct, "stays")
    with pytest.raises(ValueError, match="A bone has no 'size'"):
        logic.setBone(bone, size=1)
    outcome = logic.register(panel.carm.node, ct, labels, target="bodies", sizes=(32,))
    assert [one.name for one in outcome.bones] == ["back", "all else"]
    (model,) = logic.showErrorMap(ct, labels)
    points = slicer.util.arrayFromModelPoints(model)[:3]
    wanted = slicer.util.arrayFromModelPointData(model, "Expected error (mm)")[:3]
    assert np.allclose(logic.expectedErrors(points, ct, labels, bone), wanted, rtol=1e-4)
    logic.hideErrorMap(ct, labels)
    logic.setView(panel.carm.node, weight=2.0)
    logic.removeBone(bone)
    assert logic.bones(ct, labels) == []
