"""The C-arm view is the X-ray's own perspective."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import vtk
from scipy import ndimage

from DiffDRRCore import Camera, Pose, Renderer, Volume, project
from DiffDRRCore.datasets.phantom import phantom
from DiffDRRSlicerLib.scene import layout, views
from DiffDRRSlicerLib.scene.anatomy import Anatomy
from DiffDRRSlicerLib.scene.carm import CArmNode
from DiffDRRSlicerLib.scene.surfaces import bone_surface
from Testing.views import kit
from Testing.views.kit import COLUMN, HEIGHT, ROW, SETTINGS, WIDTH, Setting

SIZE = (400, 300)
BONE = 200.0
FINER = 6  # voxels so much smaller than the CT's: a surface is smooth where voxels are boxes
each_setting = pytest.mark.parametrize("setting", SETTINGS, ids=str)


def add_carm(scene, setting: Setting) -> CArmNode:
    carm = CArmNode.create(scene, setting.camera, setting.local_pose, kit.SOD)
    if setting.parent:
        carm.node.SetAndObserveTransformNodeID(kit.add_transform(scene, kit.PARENT).GetID())
    return carm


def to_picture(setting: Setting, uv) -> np.ndarray:
    """Where a 3D view from the source draws what lies on pixels (u, v): its height is the detector's height."""
    right = 1 if setting.view_from == "source" else -1
    millimetres = (np.asarray(uv, float) - [(WIDTH - 1) / 2, (HEIGHT - 1) / 2]) * [right * COLUMN, ROW]
    return np.array(SIZE) / 2 + millimetres / (HEIGHT * ROW / SIZE[1]) - 0.5


@pytest.fixture
def carm_view(app):
    layout.show_layout(app.layout_node)
    return app.threed_view(layout.view_nodes(app.scene).carm, SIZE)


@pytest.fixture(scope="module")
def ct() -> Volume:
    """Spine and ribs with air around, so that their surface is closed and inside the image."""
    whole = phantom(shape=(14, 14, 16), spacing=8.0)
    hu = whole.hu.numpy().copy()
    hu[[0, -1]] = hu[:, [0, -1]] = hu[:, :, [0, -1]] = -1000
    return Volume(hu, whole.ijk_to_ras)


def finer(ct: Volume) -> tuple[np.ndarray, np.ndarray]:
    """HU on a finer grid, by trilinear interpolation, and its ijk_to_ras."""
    hu = ndimage.zoom(ct.hu.numpy(), FINER, order=1)
    steps = (np.array(ct.hu.shape[::-1]) - 1) / (np.array(hu.shape[::-1]) - 1)
    return hu, ct.ijk_to_ras.numpy() @ np.diag([*steps, 1.0])


@pytest.fixture(scope="module")
def bone(ct) -> Renderer:
    """A renderer of the bone alone."""
    hu, ijk_to_ras = finer(ct)
    return Renderer(Volume(np.where(hu > BONE, 1000, -1000).astype(np.float32), ijk_to_ras), integrator="siddon")


def add_surface(scene, ct: Volume, parent):
    """The module's own surface, in one flat colour."""
    model = bone_surface(Anatomy(kit.add_ct(scene, ct, parent)), threshold=BONE)
    display = model.GetDisplayNode()
    display.SetColor(1, 0, 0)
    display.SetAmbient(1)
    display.SetDiffuse(0)
    display.SetPower(1)
    display.SetSpecular(0)
    return model


@each_setting
def test_points_of_the_scene_are_drawn_on_their_pixels(app, carm_view, setting):
    carm = add_carm(app.scene, setting)
    points = kit.world_points(setting)
    views.aim_carm_view(carm_view.camera_node, carm, setting.center)
    uv = project(setting.camera, setting.pose, torch.from_numpy(points))[0].numpy()
    drawn = np.array([carm_view.to_view(point) for point in points])
    np.testing.assert_allclose(drawn, to_picture(setting, uv), atol=0.05)
    assert np.allclose(carm_view.camera_node.GetPosition(), setting.pose.translation)
    assert np.allclose(carm_view.camera_node.GetFocalPoint(), setting.center)


@pytest.mark.parametrize("patient_moved", [False, True])
@each_setting
def test_the_bone_outline_is_the_drrs(app, carm_view, ct, bone, setting, patient_moved):
    carm = add_carm(app.scene, setting)
    motion = np.eye(4)
    motion[:3, :3] = turn(25, (1, 2, 3)) if patient_moved else np.eye(3)
    motion[:3, 3] = setting.center - motion[:3, :3] @ ct.center.numpy() + (8 if patient_moved else 0)
    add_surface(app.scene, ct, kit.add_transform(app.scene, motion))
    views.aim_carm_view(carm_view.camera_node, carm, setting.center)
    picture = carm_view.grab()
    pose = torch.from_numpy(np.linalg.inv(motion)) @ setting.pose.matrix
    drr = bone(setting.camera, Pose(pose))[0, 0].numpy() > 1e-4
    v, u = np.mgrid[:HEIGHT, :WIDTH]
    places = to_picture(setting, np.column_stack([u.ravel(), v.ravel()]))
    outline = kit.red(picture).astype(float)
    seen = ndimage.map_coordinates(outline, places[:, ::-1].T, order=1).reshape(HEIGHT, WIDTH) > 0.5
    assert drr.sum() > 1500
    assert (seen & drr).sum() / (seen | drr).sum() > 0.95


def turn(degrees, axis) -> np.ndarray:
    transform = vtk.vtkTransform()
    transform.RotateWXYZ(degrees, axis)
    return kit.array(transform.GetMatrix())[:3, :3]


def test_parallel_beams_make_a_parallel_view(app, carm_view):
    setting = Setting(30, 20)
    camera = Camera.parallel_beam(HEIGHT, WIDTH, (ROW, COLUMN), kit.SDD, (70.3, 66.8))
    carm = CArmNode.create(app.scene, camera, setting.pose, kit.SOD)
    points = kit.world_points(setting)
    views.aim_carm_view(carm_view.camera_node, carm, setting.center)
    uv = project(camera, setting.pose, torch.from_numpy(points))[0].numpy()
    drawn = np.array([carm_view.to_view(point) for point in points])
    np.testing.assert_allclose(drawn, to_picture(setting, uv), atol=0.05)


def test_a_point_behind_the_source_still_gives_a_view(app, carm_view):
    setting = Setting()
    carm = add_carm(app.scene, setting)
    behind = setting.pose.translation.numpy() - 100 * setting.pose.rotation.numpy()[:, 2]
    views.aim_carm_view(carm_view.camera_node, carm, behind)
    assert carm_view.camera_node.GetCamera().GetDistance() == pytest.approx(0.01 * kit.SDD)


def test_the_mouse_turns_the_view_only_while_it_is_not_locked(app, carm_view):
    carm = add_carm(app.scene, Setting())
    views.aim_carm_view(carm_view.camera_node, carm, Setting().center)
    before, up = carm_view.camera_node.GetPosition(), carm_view.camera_node.GetViewUp()
    angle = carm_view.camera_node.GetViewAngle()
    views.lock_rotation(carm_view.camera_widget)
    for button in ("left", "middle", "right"):
        carm_view.drag((200, 150), (240, 120), button)
        assert carm_view.camera_node.GetPosition() == before
    carm_view.drag((200, 150), (240, 120), shift=True)
    carm_view.drag((200, 150), (240, 120), control=True)
    carm_view.wheel((200, 150))
    assert carm_view.camera_node.GetPosition() == before
    assert carm_view.camera_node.GetViewAngle() == angle and carm_view.camera_node.GetViewUp() == up
    views.lock_rotation(carm_view.camera_widget, False)
    carm_view.wheel((200, 150))
    zoomed = carm_view.camera_node.GetPosition()
    assert zoomed != before
    carm_view.drag((200, 150), (240, 120))
    assert carm_view.camera_node.GetPosition() != zoomed
