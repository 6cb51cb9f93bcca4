"""What a registration of bones and cameras leaves in the panel: the camera found, other answers, stale results."""

from __future__ import annotations

import numpy as np
import pytest
import slicer
import torch

from DiffDRRCore import Pose
from DiffDRRSlicerLib.choices import Moves
from Testing.panel.bones_kit import add, bones_panel, cell, texts, ui
from Testing.panel.kit import registered, sections, settle


@pytest.fixture
def widget(make_widget):
    return make_widget("DiffDRRSlicer")


@pytest.fixture
def panel(widget, slicer_app):
    return bones_panel(slicer_app, widget)


AWAY = Pose.exp(torch.tensor([0.0, 0.0, 0.0, 2000.0, 0.0, 0.0]).double())


def test_the_camera_of_an_x_ray_is_found_shown_and_undone(slicer_app, panel):
    from DiffDRRSlicerLib.scene.view_settings import view_settings
    from DiffDRRSlicerLib.scene.xrays import set_camera
    from Testing.scene.test_found_cameras import shifted

    carm = panel.carm
    wrong = shifted(carm.camera, (12.0, -8.0))
    set_camera(carm, wrong)
    settle(slicer_app, panel)
    assert texts(ui(panel).viewsTable)[0][3] == "known" and not ui(panel).viewDegreesSpinBox.enabled
    ui(panel).viewPointSpinBox.value = 20.0
    settle(slicer_app, panel)
    assert view_settings(carm).principal_point == 20.0 and texts(ui(panel).viewsTable)[0][3] == "point"
    assert carm.name in ui(panel).viewGroup.title
    registered(slicer_app, panel)
    assert not slicer_app.messages
    register = sections(panel)["Register"].ui
    rows = {row[0]: row[1] for row in texts(register.resultTable)}
    found = float(rows[f"{carm.name}: principal point, to the right"])
    columns = float(carm.camera.pixel_spacing[1])
    moved = float(carm.camera.principal_point[0] - wrong.principal_point[0]) * columns
    assert found == pytest.approx(moved, rel=1e-3)
    assert not torch.allclose(carm.camera.principal_point, wrong.principal_point, atol=1e-3)
    assert "principal point moved by" in register.viewsResultTable.item(0, 0).toolTip()
    sections(panel)["Move"].ui.undoButton.click()
    settle(slicer_app, panel)
    assert torch.allclose(carm.camera.principal_point, wrong.principal_point)


def test_other_answers_are_listed_and_can_be_gone_to(slicer_app, panel, monkeypatch):
    other = Pose.exp(torch.tensor([0.2, 0.0, 0.1, 10.0, 5.0, 0.0]).double()).matrix.tolist()

    def two(*_):
        yield
        return [{"similarity": 0.8125, "motion": other}]

    monkeypatch.setattr("DiffDRRCore.registration.engine.finding_alternatives", two)
    register = sections(panel)["Register"].ui
    assert not register.minimaTable.visible
    registered(slicer_app, panel)
    found = panel.carm.pose.matrix
    table = texts(register.minimaTable)
    assert [row[:2] for row in table] == [["found", ""], ["other 1", "0.8125"]] and float(table[1][3]) > 5
    ct, panel.parameters.ct = panel.parameters.ct, None
    settle(slicer_app, panel)
    assert texts(register.minimaTable) == []  # they are of that CT
    panel.parameters.ct = ct
    settle(slicer_app, panel)
    assert texts(register.minimaTable) == table
    register.minimaTable.setCurrentCell(-1, 0)
    register.goToMinimumButton.click()
    assert "Choose one of the answers first" in slicer_app.messages[-1].text
    slicer_app.messages.clear()
    register.minimaTable.setCurrentCell(1, 0)
    register.goToMinimumButton.click()
    settle(slicer_app, panel)
    assert not np.allclose(panel.carm.pose.matrix, found, atol=1.0)
    sections(panel)["Move"].ui.undoButton.click()
    settle(slicer_app, panel)
    assert np.allclose(panel.carm.pose.matrix, found)


def test_results_are_not_told_of_what_has_changed_since(slicer_app, panel):
    body = add(slicer_app, panel, "3")
    panel.parameters.moves = Moves.BODIES
    registered(slicer_app, panel)
    ui(panel).showErrors.click()
    settle(slicer_app, panel)
    display, register = body.surface.GetDisplayNode(), sections(panel)["Register"].ui
    assert display.GetScalarVisibility()
    cell(ui(panel).bonesTable, 0, 0).setText("spine")
    settle(slicer_app, panel)
    assert texts(register.bonesResultTable)[0][0] == "spine" and panel.outcome.bones[0].name == "spine"
    place = body.pose(panel.anatomy)
    body.move(panel.anatomy, Pose.exp(torch.tensor([0.1, 0, 0, 5.0, 0, 0]).double()))
    settle(slicer_app, panel)
    assert not display.GetScalarVisibility() and not ui(panel).showErrors.enabled
    assert not panel.outcome.holds(panel.carm, panel.parameters.ct)
    body.move(panel.anatomy, place)
    settle(slicer_app, panel)
    assert display.GetScalarVisibility() and ui(panel).showErrors.enabled
    slicer.mrmlScene.RemoveNode(body.node)
    settle(slicer_app, panel)
    assert texts(register.bonesResultTable)[0][0] == "spine (removed)" and not slicer_app.messages
