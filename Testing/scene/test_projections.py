import numpy as np
import pytest
import slicer
import torch
from vtk.util.numpy_support import vtk_to_numpy

from DiffDRRCore import Camera, CArm
from DiffDRRCore.geometry import project
from DiffDRRSlicerLib.scene import projections
from DiffDRRSlicerLib.scene.carm import CArmNode
from Testing.core.samples import rigid
from Testing.scene import kit

CAMERAS = {
    "non-square pixels, off centre": Camera(300, 440, (0.9, 0.6), 1000.0, (190.3, 161.1)),
    "from the detector": Camera(300, 440, (0.9, 0.6), 1000.0, (190.3, 161.1), "detector"),
    "parallel": Camera.parallel_beam(300, 440, (0.9, 0.6), 1000.0, (190.3, 161.1)),
}
POINTS = np.array([[0.0, 0, 0], [30, -20, 25], [-40, 15, -35], [10, 45, 5]])


@pytest.fixture(params=list(CAMERAS))
def camera(request):
    return CAMERAS[request.param]


def c_arm(scene, camera, primary=20.0, secondary=10.0, parent=True, name="C-arm"):
    carm = CArmNode.create(scene, camera, CArm(1000.0, 700.0, torch.zeros(3), primary, secondary).pose, name=name)
    if parent:
        above = kit.add_transform(scene, rigid(np.random.default_rng(9), 5.0))
        carm.node.SetAndObserveTransformNodeID(above.GetID())
    carm.look_at([3.0, 4.0, 5.0])
    return carm


def fiducials(scene, points, name="F", parent=None):
    node = scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", name)
    if parent is not None:
        node.SetAndObserveTransformNodeID(parent.GetID())
    for index, point in enumerate(points):
        node.AddControlPointWorld(*map(float, point), f"{name}{index + 1}")
    return node


def on_image(carm, world):
    """[N, 2] pixels of world points, by `project`."""
    world = torch.as_tensor(np.asarray(world, float))
    return project(carm.camera, carm.pose, world)[0].numpy()


def world_points(node):
    return np.array([node.GetNthControlPointPositionWorld(index) for index in range(node.GetNumberOfControlPoints())])


def segments(model, world=True):
    points = vtk_to_numpy(model.GetPolyData().GetPoints().GetData()).astype(float)
    if world:
        found = []
        for point in points:
            moved = [0.0, 0.0, 0.0]
            model.TransformPointToWorld(point, moved)
            found.append(moved)
        points = np.array(found).reshape(-1, 3)
    return points.reshape(-1, 2, 3)


def test_projected_fiducials_lie_on_their_pixels_in_the_images_plane(scene, camera):
    carm = c_arm(scene, camera)
    above = kit.add_transform(scene, rigid(np.random.default_rng(3), 30.0))
    node = projections.project_fiducials(carm, fiducials(scene, POINTS, parent=above))
    found = world_points(node)
    assert np.abs(on_image(carm, found) - on_image(carm, POINTS)).max() < 1e-6
    depth = kit.apply(np.linalg.inv(carm.pose.matrix.numpy()), found)[:, 2]
    assert np.abs(depth - carm.depth).max() < 1e-6
    assert node.GetParentTransformNode() is carm.plane


def test_labels_are_the_lists_own_and_follow_it(scene):
    carm, source = c_arm(scene, CAMERAS["from the detector"]), fiducials(scene, POINTS)
    node = projections.project_fiducials(carm, source)
    assert [node.GetNthControlPointLabel(index) for index in range(4)] == ["F1", "F2", "F3", "F4"]
    assert node.GetLocked() and not node.GetSelectable() and node.GetDisplayNode().GetPointLabelsVisibility()
    source.SetNthControlPointLabel(2, "hip")
    source.SetNthControlPointPositionWorld(0, 9.0, 8.0, 7.0)
    source.AddControlPointWorld(1.0, 2.0, 3.0, "new")
    assert projections.project_fiducials(carm, source) is node
    assert [node.GetNthControlPointLabel(index) for index in range(5)] == ["F1", "F2", "hip", "F4", "new"]
    expected = on_image(carm, [[9.0, 8, 7], *POINTS[1:], [1.0, 2, 3]])
    assert np.abs(on_image(carm, world_points(node)) - expected).max() < 1e-6


def test_several_lists_and_c_arms_do_not_mix(scene):
    arms = [c_arm(scene, CAMERAS["parallel"], primary) for primary in (0.0, 90.0)]
    lists = [fiducials(scene, POINTS[:2], "A"), fiducials(scene, POINTS[2:], "B")]
    found = {(i, j): projections.project_fiducials(arms[i], lists[j]) for i in range(2) for j in range(2)}
    assert len({node.GetID() for node in found.values()}) == 4
    for (i, j), node in found.items():
        assert projections.project_fiducials(arms[i], lists[j]) is node
        assert np.abs(on_image(arms[i], world_points(node)) - on_image(arms[i], POINTS[2 * j : 2 * j + 2])).max() < 1e-6
    lists[0].SetName("renamed")
    assert projections.project_fiducials(arms[0], lists[0]) is found[0, 0]


def test_points_not_placed_and_behind_the_source_are_left_out(scene):
    carm = c_arm(scene, CAMERAS["from the detector"])
    pose = carm.pose.matrix.numpy()
    behind, at_source = kit.apply(pose, [[5.0, 5.0, -50.0], [0.0, 0.0, 0.0]])
    source = fiducials(scene, [POINTS[0], behind, at_source, POINTS[1], POINTS[2]])
    source.UnsetNthControlPointPosition(4)
    assert source.GetNthControlPointPositionStatus(4) != slicer.vtkMRMLMarkupsNode.PositionDefined
    node = projections.project_fiducials(carm, source)
    assert [node.GetNthControlPointLabel(index) for index in range(node.GetNumberOfControlPoints())] == ["F1", "F4"]
    assert np.abs(on_image(carm, world_points(node)) - on_image(carm, POINTS[:2])).max() < 1e-6


def test_an_empty_list(scene):
    carm, source = c_arm(scene, CAMERAS["parallel"]), fiducials(scene, [])
    assert projections.project_fiducials(carm, source).GetNumberOfControlPoints() == 0
    assert len(segments(projections.show_rays(carm, source))) == 0
    other = c_arm(scene, CAMERAS["parallel"], 90.0)
    assert len(segments(projections.show_epipolar_lines(carm, source, other))) == 0


def test_rays_go_from_the_source_through_the_pixel_to_the_detector(scene, camera):
    carm = c_arm(scene, camera)
    landmarks = projections.project_fiducials(carm, fiducials(scene, POINTS))
    model = projections.show_rays(carm, landmarks)
    assert model.GetParentTransformNode() is carm.node
    rays = segments(model)
    start, end = rays[:, 0], rays[:, 1]
    local = kit.apply(np.linalg.inv(carm.pose.matrix.numpy()), rays)
    assert np.allclose(local[:, 0, 2], 0, atol=1e-6) and np.allclose(local[:, 1, 2], 1000, atol=1e-6)
    direction = (end - start) / np.linalg.norm(end - start, axis=1, keepdims=True)
    beside = np.cross(POINTS - start, direction)
    assert np.abs(beside).max() < 1e-6  # the points of the CT lie on their rays
    if not camera.parallel:
        assert np.allclose(local[:, 0], 0, atol=1e-6)
    display = model.GetDisplayNode()
    assert display.GetSliceDisplayModeAsString(display.GetSliceDisplayMode()) == "projection"
    assert display.GetVisibility2D()
    landmarks.RemoveNthControlPoint(0)
    assert projections.show_rays(carm, landmarks) is model and len(segments(model)) == 3


def projection_matrix(carm):
    """[3, 4] world to pixels, by hand."""
    world_to_camera = np.linalg.inv(carm.pose.matrix.numpy())
    K = carm.camera.K.numpy()
    if carm.camera.parallel:
        return K @ np.vstack([world_to_camera[:2], [0, 0, 0, 1]])
    return K @ world_to_camera[:3]


def fundamental(first, second):
    """[3, 3] with x2' F x1 = 0, from the two matrices alone (Hartley and Zisserman 9.2.2)."""
    center = np.linalg.svd(first)[2][-1]
    epipole = second @ center
    cross = np.cross(np.eye(3), epipole)
    return -cross.T.T @ second @ np.linalg.pinv(first)


@pytest.mark.parametrize("second", list(CAMERAS))
def test_epipolar_lines_obey_the_fundamental_matrix_and_meet_the_point(scene, camera, second):
    first = c_arm(scene, camera, 10.0, 5.0, name="first")
    other = c_arm(scene, CAMERAS[second], 80.0, -10.0, name="second")
    landmarks = projections.project_fiducials(first, fiducials(scene, POINTS))
    model = projections.show_epipolar_lines(first, landmarks, other)
    assert model.GetParentTransformNode() is other.plane
    lines = segments(model)
    assert len(lines) == len(POINTS)
    ends = on_image(other, lines.reshape(-1, 3)).reshape(-1, 2, 2)
    F = fundamental(projection_matrix(first), projection_matrix(other))
    for uv, pair, seen in zip(on_image(first, POINTS), ends, on_image(other, POINTS), strict=True):
        a, b, c = F @ [*uv, 1.0]
        assert np.abs(pair @ [a, b] + c).max() / np.hypot(a, b) < 1e-4  # px from the line
        along = pair[1] - pair[0]
        offset = seen - pair[0]
        assert abs(along[0] * offset[1] - along[1] * offset[0]) / np.hypot(*along) < 1e-4
        at_edge = np.abs(np.abs(pair - [219.5, 149.5]) - [220, 150]) < 1e-4
        assert at_edge.any(1).all() and (np.abs(pair - [219.5, 149.5]) <= np.array([220, 150]) + 1e-4).all()


def test_a_line_beside_the_image_is_left_out(scene):
    camera = CAMERAS["from the detector"]
    assert projections.clip_to_image((0.0, 1.0, 5.0), camera) is None  # v = -5
    assert projections.clip_to_image((0.0, 0.0, 1.0), camera) is None
    found = projections.clip_to_image((1.0, 0.0, -10.0), camera)  # u = 10
    assert np.allclose(sorted(found.tolist()), [[10.0, -0.5], [10.0, 299.5]])


def test_a_deleted_list_is_known(scene):
    carm, source = c_arm(scene, CAMERAS["parallel"]), fiducials(scene, POINTS)
    node = projections.project_fiducials(carm, source)
    assert projections.companions(carm, "fiducials") == [(node, source)]
    scene.RemoveNode(source)
    assert projections.companions(carm, "fiducials") == [(node, None)]
