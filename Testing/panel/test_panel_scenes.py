"""Scenes that are saved, loaded and closed, and the module reloaded, while the panel is in any state."""

from __future__ import annotations

import json

import numpy as np
import pytest
import slicer

from DiffDRRCore.geometry import project
from Testing.mrml.offscreen import can_render
from Testing.panel.kit import (
    SMALL,
    load_scene,
    node_count,
    open_all,
    picture,
    registered,
    reload,
    save_scene,
    sections,
    settle,
    simulated,
)

needs_views = pytest.mark.skipif(not can_render(), reason="no OpenGL to draw with")


@pytest.fixture
def widget(make_widget, slicer_app):
    made = make_widget("DiffDRRSlicer")
    simulated(slicer_app, made, labels=True, **SMALL)
    assert not slicer_app.messages
    return made


def place_landmarks(app, panel):
    """Four points on the CT and, a few pixels off, on the X-ray."""
    from DiffDRRSlicerLib.scene import carm, landmarks

    ct_list = app.scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "CT points")
    rng = np.random.default_rng(3)
    points = panel.anatomy.center + rng.uniform(-90, 90, (4, 3))
    for number, point in enumerate(points):
        ct_list.AddControlPoint(*point, f"tip {number}")
    panel.parameters.ctLandmarks = ct_list
    settle(app, panel)
    clicked = project(panel.carm.camera, panel.carm.pose, points)[0].numpy() + rng.normal(0, 2, (4, 2))
    for point in carm.pixels_to_points(panel.carm.camera, clicked):
        landmarks.xray_landmarks(panel.carm).AddControlPoint(*point)
        settle(app, panel)


def arrange(app, panel):
    """Every choice that a user can make, away from its default."""
    from DiffDRRSlicerLib import choices

    open_all(panel)
    sections(panel)["View"].ui.layoutButton.click()
    sections(panel)["Camera"].ui.principalU.value = 36.5
    quickly(panel)
    registered(app, panel)
    parameters = panel.parameters
    parameters.overlayMode, parameters.tint = choices.Overlay.CHECKERBOARD, choices.Tint.CYAN
    parameters.squares, parameters.overlayOpacity = 12.0, 0.7
    parameters.displaySide = choices.Side.SOURCE
    sections(panel)["View"].ui.invertDRR.click()
    parameters.showBone = parameters.showRays = parameters.showHandles = True
    parameters.structures = list(panel.anatomy.structures.values())[:2]
    parameters.preset, parameters.similarity = choices.Preset.ACCURATE, choices.Similarity.GRADIENT_NCC
    place_landmarks(app, panel)
    move = sections(panel)["Move"].ui
    move.primarySlider.value = 20
    settle(app, panel)
    move.poseName.text = "oblique"
    move.savePoseButton.click()
    move.secondarySlider.value = 10
    move.patientTranslationA.value = 15
    settle(app, panel)


def shown(app, panel):
    """What the user sees, in plain values that can be compared."""
    from DiffDRRSlicerLib import scene

    carm, parameters = panel.carm, panel.parameters
    kinds = (str, float, bool, list)
    values = {name: getattr(parameters, name) for name in parameters.allParameters}
    plain = {
        name: value if isinstance(value, kinds) else getattr(value, "name", None) for name, value in values.items()
    }
    nodes = {name: value.GetName() for name, value in values.items() if hasattr(value, "GetID") and value is not None}
    table = sections(panel)["Landmarks"].ui.pairsTable
    found = {
        "parameters": plain | nodes,
        "pose": carm.pose.matrix.numpy().round(6).tolist(),
        "patient": panel.anatomy.to_world.round(6).tolist(),
        "poses": list(scene.poses.named_poses(carm)),
        "structures": panel.anatomy.structures,
        "pairs": [[table.item(row, column).text() for column in range(4)] for row in range(table.rowCount)],
        "window": round(carm.referred("drr").GetDisplayNode().GetWindow(), 4),
        "detector": carm.referred("detector").GetDisplayNode().GetTextureImageDataConnection() is not None,
        "handles": bool(scene.handles.find_patient_transform(panel.anatomy).GetDisplayNode().GetEditorVisibility()),
        "chart": sections(panel)["Register"]._plot.node.GetPlotChartNode().GetName(),
        "table": carm.referred("overlay").GetDisplayNode().GetColorNode().GetName(),
    }
    views = scene.layout.view_nodes(app.scene)
    if views is not None:
        composite = scene.layout.composite_node(app.scene, views.xray)
        camera = slicer.modules.cameras.logic().GetViewActiveCameraNode(views.carm)
        found["plane"] = scene.nodes.from_vtk(views.xray.GetSliceToRAS()).round(3).tolist()
        found["front"] = app.scene.GetNodeByID(composite.GetForegroundVolumeID() or "").GetName()
        found["back"] = app.scene.GetNodeByID(composite.GetBackgroundVolumeID() or "").GetName()
        found["opacity"] = composite.GetForegroundOpacity()
        found["camera"] = np.round([*camera.GetPosition(), *camera.GetFocalPoint()], 2).tolist()
        found["shear"] = np.round(camera.GetCamera().GetViewShear(), 6).tolist()
        found["layout"] = slicer.app.layoutManager().layout
    return json.loads(json.dumps(found))


def quickly(panel):
    """A registration that takes a second."""
    from DiffDRRSlicerLib import choices

    panel.parameters.preset, panel.parameters.similarity = choices.Preset.FAST, choices.Similarity.ZNCC
    panel.parameters.structures, panel.parameters.findCollimator = [], False


def identifiers(scene):
    return {scene.GetNthNode(index).GetID() for index in range(scene.GetNumberOfNodes())}


def begin(app, panel, state):
    """Bring the panel into a state in which a scene is then closed."""
    register, move = sections(panel)["Register"], sections(panel)["Move"].ui
    if state == "dragging":
        for value in (3.0, 6.0, 9.0):  # the timer has not run in between
            move.primarySlider.value = value
        panel.tick()
        move.primarySlider.value = 12.0
    elif state == "placing":
        sections(panel)["Landmarks"].button.collapsed = False
        settle(app, panel)
        sections(panel)["Landmarks"].ui.xrayPlaceWidget.placeButton().click()
        assert app.kit.interaction_node.GetCurrentInteractionMode() == slicer.vtkMRMLInteractionNode.Place
    elif state.startswith("registering"):
        quickly(panel)
        register.ui.registerButton.click()
        if state != "registering":
            app.wait_until(lambda: register.ui.progressBar.value > 300, 60)


STATES = ["empty", "at rest", "dragging", "placing", "registering", "registering for a while"]


@pytest.mark.parametrize("state", STATES)
def test_a_scene_can_be_closed_in_any_state(make_widget, slicer_app, state):
    widget, scene = make_widget("DiffDRRSlicer"), slicer_app.scene
    panel, bare = widget.panel, identifiers(scene)
    if state != "empty":
        simulated(slicer_app, widget, **SMALL)
        begin(slicer_app, panel, state)
    tied = sum(scene.HasObserver(event) for event in (scene.NodeAddedEvent, scene.NodeAboutToBeRemovedEvent))
    scene.Clear(False)
    for _ in range(10):
        slicer_app.process_events()
        panel.tick()
    assert slicer_app.kit.interaction_node.GetCurrentInteractionMode() == slicer.vtkMRMLInteractionNode.ViewTransform
    assert panel.carm is None and panel.anatomy is None and panel.history is None
    left = [scene.GetNodeByID(identifier) for identifier in identifiers(scene) - bare]
    assert not [node.GetName() for node in left if not node.GetSingletonTag()] and not slicer_app.messages
    register = sections(panel)["Register"]
    assert register.running is None and not register.timer.active and panel.timer.active
    if state == "empty":
        return
    simulated(slicer_app, widget, **SMALL)
    assert tied == sum(scene.HasObserver(event) for event in (scene.NodeAddedEvent, scene.NodeAboutToBeRemovedEvent))
    panel.carm.move_arm(primary=3, isocenter=panel.carm.arm.isocenter + 4)
    settle(slicer_app, panel)
    quickly(panel)
    registered(slicer_app, panel)
    assert abs(float(panel.carm.arm.primary)) < 1 and not slicer_app.messages
    assert not sections(panel)["Move"].ui.redoButton.enabled and sections(panel)["Move"].ui.undoButton.enabled


def test_the_module_can_be_reloaded_before_during_and_after_a_registration(widget, slicer_app, fresh_modules):
    widget = reload(slicer_app, widget)
    settle(slicer_app, widget.panel)
    begin(slicer_app, widget.panel, "registering for a while")
    old = widget.panel
    for _ in range(2):
        widget = reload(slicer_app, widget)
        settle(slicer_app, widget.panel)
    panel = widget.panel
    assert panel is not old and old.parameters is None and not old.timer.active
    assert not sections(old)["Register"].timer.active
    assert panel.parameters.ct is not None and panel.carm is not None and not slicer_app.messages
    panel.carm.move_arm(primary=3, isocenter=panel.carm.arm.isocenter + 4)
    settle(slicer_app, panel)
    drr = picture(panel)
    sections(panel)["Move"].ui.secondarySlider.value = 4
    settle(slicer_app, panel)
    assert np.abs(picture(panel) - drr).max() > 0.01 * drr.max()
    quickly(panel)
    registered(slicer_app, panel)
    assert panel.outcome is not None and not slicer_app.messages
    widget = reload(slicer_app, widget)
    settle(slicer_app, widget.panel)
    assert not slicer_app.messages


@needs_views
def test_a_saved_scene_comes_back_as_it_was_and_goes_on(widget, slicer_app, tmp_path):
    panel, scene = widget.panel, slicer_app.scene
    arrange(slicer_app, panel)
    before, drr = shown(slicer_app, panel), picture(panel)
    assert abs(before["shear"][0]) > 0.01 and before["chart"]
    xray = np.array(slicer.util.arrayFromVolume(panel.carm.referred("xray")))
    path = save_scene(scene, tmp_path / "first")
    load_scene(scene, path)
    settle(slicer_app, panel)
    after = shown(slicer_app, panel)
    assert {key: after[key] for key in after if after[key] != before[key]} == {}
    assert np.array_equal(slicer.util.arrayFromVolume(panel.carm.referred("xray")), xray)
    assert np.abs(picture(panel) - drr).max() < 1e-3 * drr.max()
    assert not slicer_app.messages
    counts = node_count(scene)
    load_scene(scene, save_scene(scene, tmp_path / "second"))
    settle(slicer_app, panel)
    assert node_count(scene) == counts and shown(slicer_app, panel) == before
    sections(panel)["Move"].ui.primarySlider.value = -30
    settle(slicer_app, panel)
    assert np.abs(picture(panel) - drr).max() > 0.1 * drr.max()
    quickly(panel)
    registered(slicer_app, panel)
    assert panel.outcome is not None and not slicer_app.messages


def remove(app, panel, what):
    """Delete a node as in the Data module."""
    carm, parameters = panel.carm, panel.parameters
    chosen = {"ct": parameters.ct, "labels": parameters.labels, "ct list": parameters.ctLandmarks}
    chosen |= {"region": parameters.region, "patient": None, "c-arm": carm.node}
    node = chosen[what] if what in chosen else carm.referred(what)
    assert node is not None, what
    app.scene.RemoveNode(node)


DELETED = ["labels", "drr", "overlay", "plane", "frustum", "detector", "landmarks", "ct list", "region", "reference"]
LAST = ["xray", "ct", "c-arm"]


def test_any_node_can_be_deleted_and_the_panel_goes_on(widget, slicer_app):
    from DiffDRRSlicerLib import choices

    panel = widget.panel
    panel.parameters.overlayMode, panel.parameters.showRays = choices.Overlay.EDGES, True
    place_landmarks(slicer_app, panel)
    panel.parameters.region = slicer_app.scene.AddNewNodeByClass("vtkMRMLMarkupsClosedCurveNode")
    carm, given = panel.carm, panel.parameters
    for node in (carm.node, carm.referred("xray"), carm.referred("landmarks"), given.ct, given.ctLandmarks):
        node.SetName("one name for all")
    settle(slicer_app, panel)
    for what in DELETED:
        remove(slicer_app, panel, what)
        settle(slicer_app, panel)
        assert not slicer_app.messages, (what, [message.text for message in slicer_app.messages])
        before = picture(panel)
        sections(panel)["Move"].ui.rollSlider.value += 15
        settle(slicer_app, panel)
        assert np.abs(picture(panel) - before).max() > 0.01 * before.max(), what
        assert panel.carm.referred("overlay") is not None and panel.carm.referred("frustum") is not None, what
        assert panel.carm.referred("xray").GetParentTransformNode() is panel.carm.referred("plane"), what
    quickly(panel)
    registered(slicer_app, panel)
    assert panel.outcome is not None and not slicer_app.messages
    for what in LAST:
        remove(slicer_app, panel, what)
        settle(slicer_app, panel)
        assert not sections(panel)["Register"].ui.registerButton.enabled
    assert not slicer_app.messages
    simulated(slicer_app, widget, **SMALL)
    assert panel.carm.referred("drr") is not None and not slicer_app.messages


@pytest.mark.parametrize("what", ["ct", "xray", "plane", "c-arm", "drr", "labels"])
def test_nodes_can_be_deleted_while_a_registration_runs(widget, slicer_app, what):
    panel = widget.panel
    begin(slicer_app, panel, "registering for a while")
    remove(slicer_app, panel, what)
    register = sections(panel)["Register"]
    slicer_app.wait_until(lambda: register.running is None, 60)
    settle(slicer_app, panel)
    assert len(slicer_app.messages) <= 1 and not register.timer.active
    assert sections(panel)["Move"].root.enabled
    if what in ("drr", "labels"):
        assert panel.outcome is not None and not slicer_app.messages
    else:
        assert panel.outcome is None
        assert "deleted" in register.ui.progressText.text


def test_a_second_scene_is_none_of_the_panels_business(widget, slicer_app):
    from DiffDRRSlicerLib import scene as lib
    from Testing.panel.kit import add_phantom

    panel, other, drr = widget.panel, slicer.vtkMRMLScene(), picture(widget.panel)
    counts, events = node_count(slicer_app.scene), panel.carm.node.GetMTime()
    anatomy = lib.anatomy.Anatomy(add_phantom(other, shape=(24, 18, 21), spacing=16.0))
    carm = lib.simulation.simulate_xray(other, anatomy, panel.carm.camera, panel.carm.pose)
    carm.move_arm(primary=30)
    lib.drr.render_drr(carm, anatomy)
    lib.live.LiveView(other).tick(0.0)
    settle(slicer_app, panel)
    assert node_count(slicer_app.scene) == counts and panel.carm.node.GetMTime() == events
    assert np.array_equal(picture(panel), drr)
    other.Clear(True)
    sections(panel)["Move"].ui.primarySlider.value = 5
    settle(slicer_app, panel)
    assert np.abs(picture(panel) - drr).max() > 0 and not slicer_app.messages
