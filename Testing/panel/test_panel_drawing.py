"""Regions and handles: what a user draws and drags in the views."""

from __future__ import annotations

import numpy as np
import pytest
import slicer

from Testing.mrml.offscreen import can_render
from Testing.panel.kit import SMALL, draw_region, open_all, picture, registered, sections, settle, simulated

needs_views = pytest.mark.skipif(not can_render(), reason="no OpenGL to draw with")


@pytest.fixture
def panel(make_widget, slicer_app):
    widget = make_widget("DiffDRRSlicer")
    simulated(slicer_app, widget, **SMALL)
    open_all(widget.panel)
    return widget.panel


@pytest.mark.parametrize("kind", ["vtkMRMLMarkupsROINode", "vtkMRMLMarkupsClosedCurveNode"])
def test_a_region_drawn_on_the_x_ray_is_what_is_registered(panel, slicer_app, monkeypatch, kind):
    from DiffDRRSlicerLib.scene import registration

    truth, masks, kept = panel.carm.arm, [], registration.combined_mask
    monkeypatch.setattr(registration, "combined_mask", lambda *given: masks.append(kept(*given)) or masks[-1])
    panel.parameters.findCollimator = False
    region = draw_region(slicer_app, panel, kind)
    assert panel.parameters.region is region
    panel.carm.move_arm(primary=2, isocenter=truth.isocenter + 3)
    settle(slicer_app, panel)
    registered(slicer_app, panel)
    assert masks[0].sum() == 21 * 31 and masks[0][15:46, 20:41].all()
    assert abs(float(panel.carm.arm.primary)) < 2 and not slicer_app.messages
    register = sections(panel)["Register"]
    register.ui.registerButton.click()
    slicer_app.wait_until(lambda: register.ui.progressBar.value > 320, 60)
    slicer_app.scene.RemoveNode(region)
    slicer_app.wait_until(lambda: register.running is None, 60)
    settle(slicer_app, panel)
    assert panel.parameters.region is None and len(slicer_app.messages) <= 1
    registered(slicer_app, panel)
    assert masks[-1] is None and panel.outcome is not None


@needs_views
@pytest.mark.parametrize("kind", ["vtkMRMLMarkupsROINode", "vtkMRMLMarkupsClosedCurveNode"])
def test_a_new_region_is_drawn_by_the_next_clicks_in_the_x_ray_view(panel, slicer_app, kind):
    from DiffDRRSlicerLib.scene import layout, regions

    sections(panel)["View"].ui.layoutButton.click()
    sections(panel)["Move"].ui.laoButton.click()
    settle(slicer_app, panel)
    view = slicer.app.layoutManager().views[layout.view_nodes(slicer_app.scene).xray.GetID()]
    view.render()
    region = sections(panel)["Register"].ui.regionSelector.addNode(kind)
    settle(slicer_app, panel)
    corners = [(150, 100), (250, 100), (250, 200), (150, 200)]
    for corner in corners[::2] if kind.endswith("ROINode") else corners:
        view.click(corner)
        view.render()
    slicer_app.kit.interaction_node.SetCurrentInteractionMode(slicer.vtkMRMLInteractionNode.ViewTransform)
    settle(slicer_app, panel)
    if not kind.endswith("ROINode"):
        region.SetCurveTypeToLinear()
    before = regions.region_mask(panel.carm, region)
    assert before.sum() == pytest.approx(100 * 100 * (64 / 300) ** 2, rel=0.1)  # the picture is 300 pixels high
    rows, columns = np.flatnonzero(before.any(axis=1)), np.flatnonzero(before.any(axis=0))
    assert before[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()  # upright as the image
    sections(panel)["Move"].ui.inletButton.click()
    sections(panel)["Move"].ui.isocenterA.value += 40
    settle(slicer_app, panel)
    assert np.array_equal(regions.region_mask(panel.carm, region), before) and not slicer_app.messages


def handles_are_shown(panel):
    from DiffDRRSlicerLib.scene.handles import find_patient_transform

    node = find_patient_transform(panel.anatomy)
    return node is not None and node.GetDisplayNode() is not None and bool(node.GetDisplayNode().GetEditorVisibility())


@needs_views
def test_the_patient_is_dragged_by_its_handle_in_the_x_ray_view(panel, slicer_app):
    from DiffDRRSlicerLib.scene.layout import view_nodes

    sections(panel)["View"].ui.layoutButton.click()
    settle(slicer_app, panel)
    before, center, boxed = picture(panel), panel.anatomy.center, sections(panel)["Move"].ui.handlesCheckBox
    boxed.checked = True
    settle(slicer_app, panel)
    views = view_nodes(slicer_app.scene)
    view = slicer.app.layoutManager().views[views.xray.GetID()]
    start = view.to_view(center)[:2]
    assert handles_are_shown(panel) and view.grab().max() > 0
    view.drag(start, np.add(start, (30, 0)))
    settle(slicer_app, panel)
    moved = view.to_view(panel.anatomy.center)[:2] - start
    assert moved[0] == pytest.approx(30, abs=3) and abs(moved[1]) < 3
    assert np.abs(picture(panel) - before).max() > 0.05 * before.max()
    sections(panel)["Move"].ui.undoButton.click()
    settle(slicer_app, panel)
    assert picture(panel) == pytest.approx(before, abs=1e-3 * float(before.max()))
    boxed.checked = False
    settle(slicer_app, panel)
    assert not handles_are_shown(panel) and not slicer_app.messages
