"""Handles: dragging them in the views moves the patient by what the mouse moved over."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from DiffDRRCore import project
from DiffDRRCore.datasets.phantom import phantom
from DiffDRRSlicerLib.scene import handles, layout, nodes, views
from DiffDRRSlicerLib.scene.anatomy import Anatomy
from DiffDRRSlicerLib.scene.carm import CArmNode
from DiffDRRSlicerLib.scene.errors import SceneError
from Testing.views import kit
from Testing.views.kit import HEIGHT, ROW, SDD, SETTINGS, SOD, Setting

SIZE = (420, 330)
each_setting = pytest.mark.parametrize("setting", SETTINGS, ids=str)


@pytest.fixture(scope="module")
def volume():
    return phantom(shape=(12, 9, 10), spacing=16.0)


def add_carm(scene, setting: Setting) -> CArmNode:
    carm = CArmNode.create(scene, setting.camera, setting.local_pose, SOD)
    if setting.parent:
        carm.node.SetAndObserveTransformNodeID(kit.add_transform(scene, kit.PARENT, "room").GetID())
    return carm


def anatomy_at(scene, volume, setting) -> Anatomy:
    """The CT with its middle at the isocentre, below a turned transform."""
    above = np.array([[0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    above[:3, 3] = setting.center - above[:3, :3] @ volume.center.numpy()
    return Anatomy(kit.add_ct(scene, volume, kit.add_transform(scene, above, "CT to room")))


@each_setting
def test_a_drag_in_the_x_ray_view_moves_the_patient_in_the_plane(app, volume, setting):
    layout.show_layout(app.layout_node)
    carm, anatomy = add_carm(app.scene, setting), anatomy_at(app.scene, volume, setting)
    shown = layout.view_nodes(app.scene)
    view = app.slice_view(shown.xray, SIZE)
    carm.look_at(anatomy.center)
    views.aim_xray_view(shown.xray, carm, setting.side)
    patient = handles.patient_transform(anatomy)
    handles.show_handles(patient, shown, anatomy.center)
    view.grab()
    start = view.to_view(anatomy.center)[:2]
    before = anatomy.center
    view.drag(start, np.add(start, (40, -25)))
    axes = setting.pose.rotation.numpy()
    right = axes[:, 0] if setting.side == "source" else -axes[:, 0]
    expected = (40 * right - 25 * axes[:, 1]) * setting.millimetres_a_pixel(SIZE)
    moved = anatomy.center - before
    assert np.linalg.norm(moved - expected) < 0.02 * np.linalg.norm(expected)
    assert np.allclose(nodes.transform_to_parent(patient)[:3, :3], np.eye(3))
    # which is what the DRR does below the mouse
    uv = [project(setting.camera, setting.pose, torch.from_numpy(point[None]))[0] for point in (before, anatomy.center)]
    shift = setting.to_picture(uv[1], SIZE) - setting.to_picture(uv[0], SIZE)
    np.testing.assert_allclose(shift[0], (40, -25), atol=0.6)


@each_setting
def test_a_drag_in_the_c_arm_view_moves_the_patient_beside_the_ray(app, volume, setting):
    layout.show_layout(app.layout_node)
    carm, anatomy = add_carm(app.scene, setting), anatomy_at(app.scene, volume, setting)
    shown = layout.view_nodes(app.scene)
    view = app.threed_view(shown.carm, SIZE)
    views.aim_carm_view(view.camera_node, carm, anatomy.center)
    views.lock_rotation(view.camera_widget)
    patient = handles.patient_transform(anatomy)
    handles.show_handles(patient, shown, anatomy.center)
    view.grab()
    start = view.to_view(anatomy.center)
    before = anatomy.center
    view.drag(start, np.add(start, (30, -20)))
    axes = setting.pose.rotation.numpy()
    expected = (30 * axes[:, 0] - 20 * axes[:, 1]) * HEIGHT * ROW / SIZE[1] * SOD / SDD
    assert np.linalg.norm(anatomy.center - before - expected) < 0.02 * np.linalg.norm(expected)
    np.testing.assert_allclose(view.to_view(anatomy.center), np.add(start, (30, -20)), atol=0.7)


def test_the_ring_in_the_x_ray_view_turns_the_patient_about_its_centre(app, volume):
    setting = Setting(20, 10)
    layout.show_layout(app.layout_node)
    carm, anatomy = add_carm(app.scene, setting), anatomy_at(app.scene, volume, setting)
    shown = layout.view_nodes(app.scene)
    view = app.slice_view(shown.xray, SIZE)
    carm.look_at(anatomy.center)
    views.aim_xray_view(shown.xray, carm)
    patient = handles.patient_transform(anatomy)
    handles.show_handles(patient, shown, anatomy.center)
    before = view.grab()
    middle = view.to_view(anatomy.center)[:2]
    handles.hide_handles(patient)
    drawn = np.argwhere((view.grab() != before).any(axis=-1))[:, ::-1]
    radius = np.linalg.norm(drawn - middle, axis=1).max() - 4
    handles.show_handles(patient, shown, anatomy.center)
    center = anatomy.center
    angle = np.deg2rad(20)
    view.drag(np.add(middle, (0, -radius)), middle + radius * np.array([np.sin(angle), -np.cos(angle)]), steps=10)
    turn = nodes.transform_to_parent(patient)[:3, :3]
    assert np.degrees(np.arccos((np.trace(turn) - 1) / 2)) == pytest.approx(20, abs=1)
    np.testing.assert_allclose(anatomy.center, center, atol=1e-6)
    axis = np.array([turn[2, 1] - turn[1, 2], turn[0, 2] - turn[2, 0], turn[1, 0] - turn[0, 1]])
    beam = setting.pose.rotation.numpy()[:, 2]
    assert axis @ beam / np.linalg.norm(axis) == pytest.approx(-1, abs=1e-6)  # clockwise as seen from the detector


def test_handles_are_in_the_given_views_alone_and_can_be_hidden(app, volume):
    layout.show_layout(app.layout_node)
    anatomy = anatomy_at(app.scene, volume, Setting())
    shown = layout.view_nodes(app.scene)
    patient = handles.patient_transform(anatomy)
    handles.hide_handles(patient)
    handles.hide_handles(None)
    red = app.slice_view("Red")
    red.node.JumpSliceByCentering(*anatomy.center)
    empty = red.grab()
    handles.show_handles(patient, shown, anatomy.center)
    assert (red.grab() == empty).all()
    display = patient.GetDisplayNode()
    assert display.GetEditorVisibility() and not display.GetEditorScalingEnabled()
    assert not display.GetEditorScalingSliceEnabled()
    handles.show_handles(patient, (), anatomy.center)
    assert (red.grab() != empty).any()
    handles.hide_handles(patient)
    assert (red.grab() == empty).all()


def test_showing_handles_again_is_no_event(app, volume):
    anatomy = anatomy_at(app.scene, volume, Setting())
    patient, events = handles.patient_transform(anatomy), []
    handles.show_handles(patient, (), anatomy.center)
    for node in (patient, patient.GetDisplayNode()):
        node.AddObserver("AnyEvent", lambda *_: events.append(1))
    handles.show_handles(patient, (), anatomy.center)
    assert not events


def test_the_patient_transform_moves_nothing_and_is_made_once(app, volume):
    scene = app.scene
    anatomy = anatomy_at(scene, volume, Setting(30))
    free, on_ct = (scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", name) for name in ("free", "on CT"))
    on_ct.SetAndObserveTransformNodeID(anatomy.ct.GetTransformNodeID())
    for markups in (free, on_ct):
        markups.AddControlPoint(10, 20, 30)
    labels = scene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "labels")
    labels.CopyOrientation(anatomy.ct)
    labels.SetAndObserveTransformNodeID(anatomy.ct.GetTransformNodeID())
    anatomy.labels = labels
    before = [world(node) for node in (free, on_ct)], anatomy.to_world.copy()
    assert handles.find_patient_transform(anatomy) is None
    patient = handles.patient_transform(anatomy, [free, on_ct])
    assert handles.patient_transform(anatomy, [free, on_ct]) is patient
    assert handles.find_patient_transform(anatomy) is patient
    assert patient.GetParentTransformNode() is None
    np.testing.assert_allclose([world(node) for node in (free, on_ct)], before[0])
    np.testing.assert_allclose(anatomy.to_world, before[1])
    assert on_ct.GetParentTransformNode() is anatomy.ct.GetParentTransformNode()
    shift = np.eye(4)
    shift[:3, 3] = 5, -6, 7
    nodes.set_transform_to_parent(patient, shift)
    np.testing.assert_allclose([world(node) for node in (free, on_ct)], np.add(before[0], (5, -6, 7)))
    np.testing.assert_allclose(anatomy.to_world, shift @ before[1])
    assert labels.GetParentTransformNode() is anatomy.ct.GetParentTransformNode()


def test_landmarks_that_come_after_a_motion_stay_where_they_are(app, volume):
    scene = app.scene
    anatomy = anatomy_at(scene, volume, Setting())
    patient = handles.patient_transform(anatomy)
    nodes.set_transform_to_parent(patient, kit.PARENT)
    late = scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "late")
    late.AddControlPoint(10, 20, 30)
    handles.patient_transform(anatomy, [late])
    np.testing.assert_allclose(world(late), (10, 20, 30), atol=1e-9)
    assert late.GetParentTransformNode() is patient


def test_x_ray_landmarks_and_the_room_stay_out_of_the_patient(app, volume):
    scene, setting = app.scene, Setting(parent=True)
    carm = add_carm(scene, setting)
    room = carm.node.GetParentTransformNode()
    ct = kit.add_ct(scene, volume, room)
    points = carm.below("landmarks", "vtkMRMLMarkupsFiducialNode", "landmarks")
    anatomy = Anatomy(ct)
    center = anatomy.center
    patient = handles.patient_transform(anatomy, [points])
    assert patient.GetParentTransformNode() is room and ct.GetParentTransformNode() is patient
    assert points.GetParentTransformNode() is carm.referred("plane")
    np.testing.assert_allclose(anatomy.center, center)
    ct.SetAndObserveTransformNodeID(carm.node.GetID())
    with pytest.raises(SceneError, match="below a C-arm"):
        handles.patient_transform(anatomy)


def world(markups) -> list[float]:
    position = [0.0, 0.0, 0.0]
    markups.GetNthControlPointPositionWorld(0, position)
    return position
