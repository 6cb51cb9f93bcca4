"""What the X-ray view shows is where the geometry says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from DiffDRRCore import project
from DiffDRRSlicerLib.scene import layout, nodes, projections, views
from DiffDRRSlicerLib.scene.carm import CArmNode, pixels_to_points, points_to_pixels
from DiffDRRSlicerLib.scene.errors import SceneError
from Testing.views import kit
from Testing.views.kit import HEIGHT, SETTINGS, WIDTH, Setting

SIZE = (420, 330)
each_setting = pytest.mark.parametrize("setting", SETTINGS, ids=str)


def add_carm(scene, setting: Setting) -> CArmNode:
    carm = CArmNode.create(scene, setting.camera, setting.local_pose, kit.SOD)
    if setting.parent:
        carm.node.SetAndObserveTransformNodeID(kit.add_transform(scene, kit.PARENT).GetID())
    return carm


def add_image(carm, image):
    volume = carm.below("xray", "vtkMRMLScalarVolumeNode", "image")
    carm.place_image(volume, np.asarray(image, np.float32))
    volume.CreateDefaultDisplayNodes()
    volume.GetDisplayNode().SetAutoWindowLevel(False)
    volume.GetDisplayNode().SetWindowLevelMinMax(0, 255)
    return volume


def show_as_dots(points, color=(1, 0, 0)):
    display = points.GetDisplayNode()
    display.SetPointLabelsVisibility(False)
    display.SetPropertiesLabelVisibility(False)
    display.SetSelectedColor(color)
    display.SetGlyphType(display.Circle2D)
    display.SetGlyphScale(2)


def add_points(carm, uv, color=(1, 0, 0)):
    points = carm.below("landmarks", "vtkMRMLMarkupsFiducialNode", "landmarks")
    points.CreateDefaultDisplayNodes()
    show_as_dots(points, color)
    for position in pixels_to_points(carm.camera, uv):
        points.AddControlPoint(*position)
    return points


@pytest.fixture
def xray_view(app):
    return app.slice_view(layout.XRAY_VIEW, SIZE)


@each_setting
def test_projected_fiducials_are_drawn_where_project_puts_them(app, xray_view, setting):
    carm = add_carm(app.scene, setting)
    points = kit.world_points(setting)
    markups = app.scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "on the patient")
    for point in points:
        markups.AddControlPoint(*point)
    markups.SetDisplayVisibility(False)
    show_as_dots(projections.project_fiducials(carm, markups))
    views.aim_xray_view(xray_view.node, carm, setting.side)
    found = kit.blobs(kit.red(xray_view.grab()))
    uv = project(setting.camera, setting.pose, torch.from_numpy(points))[0].numpy()
    expected = setting.to_picture(uv, SIZE)
    assert kit.nearest(found, expected).max() < 1
    assert kit.nearest(expected, found).max() < 1


@each_setting
def test_a_bright_pixel_is_where_it_belongs(app, xray_view, setting):
    carm = add_carm(app.scene, setting)
    image = np.full((HEIGHT, WIDTH), 40.0)
    for u, v in ((30, 20), (120, 25), (40, 100)):  # three corners: a mirrored picture has none of them
        image[v, u] = 255
    volume = add_image(carm, image)
    views.aim_xray_view(xray_view.node, carm, setting.side)
    views.show_layers(xray_view.composite, volume)
    picture = xray_view.grab()[..., 0]
    found = kit.blobs(picture > 150)
    assert kit.nearest(found, setting.to_picture([(30, 20), (120, 25), (40, 100)], SIZE)).max() < 1
    # and the frame of the image is where its outermost pixels end
    rows, columns = np.nonzero(picture > 20)
    corners = setting.to_picture([(-0.5, -0.5), (WIDTH - 0.5, HEIGHT - 0.5)], SIZE)
    low, high = corners.min(axis=0), corners.max(axis=0)
    assert np.abs([columns.min() - low[0] - 0.5, rows.min() - low[1] - 0.5]).max() <= 1.01
    assert np.abs([columns.max() - high[0] + 0.5, rows.max() - high[1] + 0.5]).max() <= 1.01


@each_setting
def test_points_of_the_plane_itself_are_drawn_at_their_pixels(app, xray_view, setting):
    """Markups of the patient, which a slice view draws by parallel projection: right in the plane of the anatomy."""
    carm = add_carm(app.scene, setting)
    carm.look_at(setting.center)
    rng = np.random.default_rng(4)
    axes = setting.pose.rotation.numpy()
    points = setting.center + rng.uniform(-50, 50, (5, 2)) @ axes[:, :2].T
    markups = app.scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "on the patient")
    markups.CreateDefaultDisplayNodes()
    markups.GetDisplayNode().SetSelectedColor(1, 0, 0)
    markups.GetDisplayNode().SetPointLabelsVisibility(False)
    for point in points:
        markups.AddControlPoint(*point)
    views.aim_xray_view(xray_view.node, carm, setting.side)
    found = kit.blobs(kit.red(xray_view.grab()))
    uv = project(setting.camera, setting.pose, torch.from_numpy(points))[0].numpy()
    assert kit.nearest(found, setting.to_picture(uv, SIZE)).max() < 1


@each_setting
def test_a_click_in_place_mode_puts_a_point_on_its_pixel(app, xray_view, setting):
    carm = add_carm(app.scene, setting)
    points = add_points(carm, np.empty((0, 2)))
    views.aim_xray_view(xray_view.node, carm, setting.side)
    xray_view.render()
    app.place(points, once=False)
    clicks = [(120, 90), (300, 200), (210, 165)]
    for click in clicks:
        xray_view.click(click)
    assert points.GetNumberOfDefinedControlPoints() == len(clicks)
    local = [points.GetNthControlPointPosition(index) for index in range(len(clicks))]
    uv = points_to_pixels(carm.camera, local)
    # half a pixel: Slicer takes the mouse for the corner of the pixel below it, and draws pixels about their middles
    assert np.abs(setting.to_picture(uv, SIZE) - clicks).max() < 0.51


def test_the_view_follows_a_moved_c_arm_with_zoom_and_pan_kept(app, xray_view):
    setting = Setting(20, 10)
    carm = add_carm(app.scene, setting)
    uv = [(60, 50), (90, 80)]
    add_points(carm, uv)
    views.aim_xray_view(xray_view.node, carm)
    node = xray_view.node
    node.SetFieldOfView(*(0.5 * np.array(node.GetFieldOfView())[:2]), node.GetFieldOfView()[2])
    node.SetXYZOrigin(8, -5, 0)
    before = kit.blobs(kit.red(xray_view.grab()))
    carm.move_arm(primary=-40, isocenter=torch.tensor([50.0, 20.0, -30.0]))
    carm.set_depth(500)
    assert len(kit.blobs(kit.red(xray_view.grab()))) == 0  # the plane has moved away from the view
    views.aim_xray_view(node, carm, keep_zoom=True)
    assert kit.nearest(kit.blobs(kit.red(xray_view.grab())), before).max() < 1
    assert nodes.is_rigid(kit.array(node.GetSliceToRAS()))


def test_aiming_twice_is_one_event_and_never_moves_the_c_arm(app, xray_view):
    carm = add_carm(app.scene, SETTINGS[3])
    before, events = carm.pose.matrix.clone(), []
    views.aim_xray_view(xray_view.node, carm)
    tag = xray_view.node.AddObserver("ModifiedEvent", lambda *_: events.append(1))
    views.aim_xray_view(xray_view.node, carm, keep_zoom=True)
    assert not events
    views.aim_xray_view(xray_view.node, carm, "source")
    assert len(events) == 1
    xray_view.node.RemoveObserver(tag)
    assert torch.equal(carm.pose.matrix, before)


def test_another_c_arm_is_fitted_in_spite_of_keep_zoom(app, xray_view):
    first, second = (add_carm(app.scene, Setting(primary=angle)) for angle in (0, 60))
    views.aim_xray_view(xray_view.node, first)
    fitted = xray_view.node.GetFieldOfView()
    xray_view.node.SetFieldOfView(10, 10, 1)
    views.aim_xray_view(xray_view.node, second, keep_zoom=True)
    np.testing.assert_allclose(xray_view.node.GetFieldOfView()[:2], fitted[:2])


def test_an_unknown_side_is_refused(app, xray_view):
    with pytest.raises(SceneError, match="radiological, source"):
        views.aim_xray_view(xray_view.node, add_carm(app.scene, Setting()), "left")


def test_layers_are_kept_when_another_volume_is_loaded(app, xray_view):
    carm = add_carm(app.scene, Setting())
    volume = add_image(carm, np.zeros((HEIGHT, WIDTH)))
    views.show_layers(xray_view.composite, volume, None, 0.3)
    other = app.scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "other")
    app.selection_node.SetActiveVolumeID(other.GetID())
    app.logic.PropagateVolumeSelection()
    assert xray_view.composite.GetBackgroundVolumeID() == volume.GetID()
    assert xray_view.composite.GetForegroundOpacity() == 0.3
    views.show_layers(xray_view.composite, None, volume, 1)
    assert not xray_view.composite.GetBackgroundVolumeID()


def test_angles_are_written_in_clinical_words(app, xray_view):
    carm = add_carm(app.scene, Setting(20, 30))
    assert views.angle_text(carm) == "LAO 20.0°  CRA 30.0°"
    carm.move_arm(primary=-20.04, secondary=-5, roll=3)
    assert views.angle_text(carm) == "RAO 20.0°  CAU 5.0°  roll 3.0°"
    carm.move_arm(primary=-0.04, secondary=-0.01, roll=0.01)
    assert views.angle_text(carm) == "LAO 0.0°  CRA 0.0°"


def test_the_angle_text_is_drawn_and_removable(app, xray_view):
    carm = add_carm(app.scene, Setting(20, 30))
    empty = xray_view.grab()
    text = views.AngleText(xray_view.renderer)
    text.show(carm)
    with_text = xray_view.grab()
    rows, columns = np.nonzero((with_text != empty).any(axis=-1))
    assert rows.max() < SIZE[1] * 0.2 and columns.min() > SIZE[0] * 0.4 and columns.max() < SIZE[0] - 3
    text.show(None)
    assert (xray_view.grab() == empty).all()
    text.show(carm)
    assert (xray_view.grab() == with_text).all()
    text.remove()
    assert (xray_view.grab() == empty).all()
