"""C-arms in the scene: where their images are, parents above them, several of them, and saving."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import vtk

from DiffDRRCore import Camera, CArm, Pose, project
from DiffDRRCore.errors import GeometryError, ReadError
from DiffDRRSlicerLib.scene.carm import CArmNode, pixels_to_points, points_to_pixels, remove_carm
from DiffDRRSlicerLib.scene.errors import SceneError
from DiffDRRSlicerLib.scene.nodes import get_image
from DiffDRRSlicerLib.scene.xrays import add_xray
from Testing.core.samples import rigid
from Testing.scene import kit
from Testing.scene.conftest import new_scene

SKEW = [[900.0, 25.0, 14.0], [0.0, 750.0, 11.0], [0.0, 0.0, 1.0]]
CAMERAS = {
    "source": Camera(30, 40, (0.8, 1.3), 950.0, (21.5, 12.25)),
    "detector": Camera(30, 40, (0.8, 1.3), 950.0, (21.5, 12.25), "detector"),
    "skewed": Camera.from_intrinsics(SKEW, 30, 40, source_to_detector=1100.0),
    "parallel": Camera.parallel_beam(30, 40, (0.8, 1.3), 900.0, (21.5, 12.25), "detector"),
}


def pose_at(seed=0):
    return Pose(rigid(np.random.default_rng(seed)))


def add_image(carm, seed=0):
    volume = carm.below("xray", "vtkMRMLScalarVolumeNode", "image")
    camera = carm.camera
    carm.place_image(volume, np.random.default_rng(seed).random((camera.height, camera.width), np.float32))
    return volume


def above_carm(scene, carm, array):
    parent = kit.add_transform(scene, array, name="table")
    carm.node.SetAndObserveTransformNodeID(parent.GetID())
    return parent


@pytest.mark.parametrize("kind", CAMERAS)
@pytest.mark.parametrize("below", [False, True])
def test_in_the_plane_through_a_point_its_pixel_lies_on_it(scene, kind, below):
    """What makes a parallel slice view and the X-ray agree, for points anywhere before the source."""
    rng = np.random.default_rng(1)
    carm = CArmNode.create(scene, CAMERAS[kind], pose_at())
    if below:
        above_carm(scene, carm, rigid(rng))
    volume = add_image(carm)
    for depth in (0.3, 0.75, 1.0, 1.2):
        local = [*rng.uniform(-10, 10, 2), depth * 900.0]
        point = kit.apply(carm.pose.matrix.numpy(), local)
        carm.look_at(point)
        u, v = project(CAMERAS[kind], carm.pose, point[None])[0, 0].tolist()
        assert np.allclose(kit.apply(kit.to_world(volume), [u, v, 0]), point, atol=1e-6)
        assert carm.depth == pytest.approx(depth * 900.0)


@pytest.mark.parametrize(
    ("kind", "place"), [("source", (7.5, 0, -15)), ("detector", (-7.5, 0, -15)), ("parallel", (10, 0, -20))]
)
def test_a_hand_worked_pixel(scene, kind, place):
    """From behind: camera x = R, y = inferior, z = A. 10 columns and 20 rows of 1 mm off the centre, at 750 of 1000."""
    if kind == "parallel":
        camera = Camera.parallel_beam(101, 101, (1.0, 1.0), 1000.0)
    else:
        camera = Camera(101, 101, (1.0, 1.0), 1000.0, None, kind)
    carm = CArmNode.create(scene, camera, CArm(1000.0, 750.0).pose)
    volume = add_image(carm)
    assert np.allclose(kit.apply(kit.to_world(volume), [60, 70, 0]), place, atol=1e-9)
    assert carm.depth == pytest.approx(750.0) and carm.source_to_isocenter == 750.0


@pytest.mark.parametrize("kind", CAMERAS)
def test_pixels_and_points_below_the_plane(scene, kind):
    camera = CAMERAS[kind]
    uv = np.random.default_rng(2).uniform(-5, 45, (6, 2))
    points = pixels_to_points(camera, uv)
    distance = float(camera.source_to_detector)
    assert np.allclose(points[:, 2], distance)
    pose = pose_at()
    world = kit.apply(pose.matrix.numpy(), points)
    assert np.allclose(project(camera, pose, world)[0], uv, atol=1e-6)
    nearer = points.copy() if camera.parallel else points * 0.6  # along their rays
    nearer[:, 2] = 0.6 * distance
    assert np.allclose(points_to_pixels(camera, nearer), uv, atol=1e-6)


@pytest.mark.parametrize("kind", CAMERAS)
def test_the_camera_is_kept_to_the_last_bit(scene, kind):
    carm = CArmNode.create(scene, CAMERAS[kind], pose_at())
    again, camera = carm.camera, CAMERAS[kind]
    assert torch.equal(again.K, camera.K.double()) and again.parallel == camera.parallel
    assert (again.height, again.width) == (30, 40)
    assert float(again.source_to_detector) == float(camera.source_to_detector)


def test_an_image_on_a_smaller_grid_covers_the_same_detector(scene):
    carm = CArmNode.create(scene, CAMERAS["detector"], pose_at())
    full, small = add_image(carm), carm.below("drr", "vtkMRMLScalarVolumeNode", "DRR")
    carm.place_image(small, np.zeros((15, 20), np.float32), CAMERAS["detector"].resized(15, 20))
    for corner in ((-0.5, -0.5), (39.5, -0.5), (39.5, 29.5)):  # edges of the outer pixels
        u, v = corner
        there = kit.apply(kit.to_world(small), [(u + 0.5) / 2 - 0.5, (v + 0.5) / 2 - 0.5, 0])
        assert np.allclose(there, kit.apply(kit.to_world(full), [u, v, 0]))


def test_the_third_axis_of_an_image_makes_it_right_handed(scene):
    for kind, camera in CAMERAS.items():
        volume = add_image(CArmNode.create(scene, camera, pose_at(), name=kind))
        assert np.linalg.det(kit.to_world(volume)[:3, :3]) > 0
        assert min(volume.GetSpacing()) > 0


def test_a_parent_above_the_carm_moves_its_pose_and_its_image(scene):
    rng = np.random.default_rng(3)
    carm = CArmNode.create(scene, CAMERAS["source"], pose_at())
    volume, own, parent = add_image(carm), carm.pose.matrix.numpy(), rigid(rng)
    before = kit.to_world(volume)
    table = above_carm(scene, carm, parent)
    assert np.allclose(carm.pose.matrix, parent @ own)
    assert np.allclose(kit.to_world(volume), parent @ before)
    carm.pose = pose_at(9)
    assert np.allclose(carm.pose.matrix, pose_at(9).matrix)
    local = vtk.vtkMatrix4x4()
    table.GetMatrixTransformToParent(local)
    assert np.allclose([local.GetElement(0, c) for c in range(4)], parent[0])


def test_a_parent_that_is_no_motion(scene):
    carm = CArmNode.create(scene, CAMERAS["source"], pose_at(), name="arm")
    table = above_carm(scene, carm, np.diag([2.0, 1, 1, 1]))
    with pytest.raises(SceneError, match="'arm' is scaled, sheared or mirrored"):
        _ = carm.pose
    table.SetMatrixTransformToParent(kit.matrix(np.diag([-1.0, 1, 1, 1])))
    with pytest.raises(SceneError, match="can only be moved"):
        carm.look_at((0, 0, 0))
    carm.node.SetAndObserveTransformNodeID(kit.add_bend(scene).GetID())
    with pytest.raises(SceneError, match="'bend' above 'arm' is not linear"):
        _ = carm.arm


def test_angles_turn_the_carm_about_its_isocentre(scene):
    arm = CArm(1000.0, 700.0, (10.0, 20.0, 30.0), 0.0, 0.0)
    carm = CArmNode.create(scene, Camera(20, 20, (1, 1), 1000.0), arm.pose, 700.0)
    carm.move_arm(primary=90.0)  # LAO 90: the detector on the patient's left (-R), the source on the right
    assert np.allclose(carm.pose.translation, (710.0, 20.0, 30.0))
    assert np.allclose(carm.pose.rotation[:, 2], (-1, 0, 0), atol=1e-12)
    carm.move_arm(primary=0.0, secondary=90.0)  # CRA: the detector at the head
    assert np.allclose(carm.pose.rotation[:, 2], (0, 0, 1), atol=1e-12)
    carm.move_arm(secondary=0.0, isocenter=(1.0, 2.0, 3.0), source_to_isocenter=650.0)
    assert np.allclose(carm.pose.translation, (1.0, -648.0, 3.0))
    now = carm.arm
    assert np.allclose(now.isocenter, (1, 2, 3)) and float(now.source_to_isocenter) == 650.0
    assert [round(float(a), 9) for a in (now.primary, now.secondary, now.roll)] == [0, 0, 0]


def test_two_carms_know_nothing_of_each_other(scene):
    first, second = (CArmNode.create(scene, CAMERAS["source"], pose_at(i), name="view") for i in range(2))
    assert first != second and len({first.name, second.name}) == 2
    assert list(CArmNode.all(scene)) == [first, second]
    images = add_image(first, 0), add_image(second, 1)
    before = kit.to_world(images[1]), get_image(images[1])
    first.pose, first.meta = pose_at(5), {"intensity": "attenuation"}
    first.set_depth(123.0)
    first.camera = CAMERAS["detector"]
    assert np.array_equal(kit.to_world(images[1]), before[0]) and np.array_equal(get_image(images[1]), before[1])
    assert second.meta == {} and second.camera.view_from == "source"
    remove_carm(first)
    assert list(CArmNode.all(scene)) == [second] and second.referred("xray") is images[1]
    assert {n for n in kit.node_ids(scene) if "LinearTransform" in n} == {
        second.node.GetID(),
        second.referred("plane").GetID(),
    }


def test_renaming_changes_nothing(scene):
    carm = CArmNode.create(scene, CAMERAS["source"], pose_at())
    volume = add_image(carm)
    carm.node.SetName("left")
    volume.SetName("right")
    assert carm.referred("xray") is volume and carm.name == "left"
    assert CArmNode(carm.node).referred("plane") is not None


def test_deleted_images_are_gone_and_made_anew(scene):
    carm = CArmNode.create(scene, CAMERAS["source"], pose_at())
    scene.RemoveNode(add_image(carm))
    assert carm.referred("xray") is None
    assert add_image(carm).GetParentTransformNode() is carm.referred("plane")


def test_a_deleted_plane_is_made_anew(scene):
    carm = CArmNode.create(scene, CAMERAS["source"], pose_at(), 600.0)
    volume = add_image(carm)
    scene.RemoveNode(carm.referred("plane"))
    assert carm.depth == pytest.approx(600.0)
    carm.look_at(carm.arm.isocenter)
    add_image(carm)
    u, v = project(carm.camera, carm.pose, carm.arm.isocenter[None])[0, 0].tolist()
    assert np.allclose(kit.apply(kit.to_world(volume), [u, v, 0]), carm.arm.isocenter, atol=1e-6)


def test_the_plane_stops_before_the_source(scene):
    carm = CArmNode.create(scene, CAMERAS["source"], pose_at())
    for depth in (0.0, -500.0):
        carm.set_depth(depth)
        assert carm.depth == pytest.approx(9.5)  # one per cent of 950


def test_the_carm_writes_only_what_changes(scene):
    carm = CArmNode.create(scene, CAMERAS["source"], pose_at())
    carm.meta = {"intensity": "attenuation"}

    def written():
        return carm.node.GetMTime(), carm.node.GetTransformToWorldMTime(), carm.plane.GetTransformToWorldMTime()

    before = written()
    carm.pose = carm.pose
    carm.meta, carm.camera = carm.meta, carm.camera
    carm.set_depth(carm.source_to_isocenter)
    carm.set_depth(carm.source_to_isocenter * (1 + 1e-14))
    assert written() == before
    carm.set_depth(carm.source_to_isocenter + 1e-5)
    assert written()[:2] == before[:2] and written()[2] > before[2]


def test_a_camera_is_read_once_and_follows_its_attribute(scene):
    carms = [CArmNode.create(scene, CAMERAS[kind], pose_at()) for kind in ("source", "detector")]
    assert all(carm.camera is CArmNode(carm.node).camera for carm in carms)
    assert carms[0].camera.view_from == "source" and carms[1].camera.view_from == "detector"
    carms[0].node.SetAttribute("DiffDRR.Camera", carms[1].node.GetAttribute("DiffDRR.Camera"))
    assert torch.equal(carms[0].camera.K, CAMERAS["detector"].K)
    for _ in range(2):
        carms[0].node.SetAttribute("DiffDRR.Camera", "{broken")
        with pytest.raises(SceneError, match=r"'DiffDRR.Camera' of 'C-arm' is damaged"):
            _ = carms[0].camera
        carms[0].node.SetAttribute("DiffDRR.Camera", '{"height": 3}')
        with pytest.raises(ReadError, match="The camera of 'C-arm' lacks"):
            _ = carms[0].camera


def filled_scene(scene):
    table = kit.add_transform(scene, rigid(np.random.default_rng(8)), name="table")
    carms = []
    for number, kind in enumerate(("detector", "skewed")):
        image = np.random.default_rng(number).random((30, 40), np.float32)
        carm = add_xray(scene, image, CAMERAS[kind], pose_at(number), {"intensity": "attenuation"}, kind, 612.5)
        carm.node.SetAndObserveTransformNodeID(table.GetID())
        carm.set_depth(555.0)
        carms.append(carm)
    carms[0].meta = {**carms[0].meta, "missing": ["pixel spacing (0.3 mm assumed)"], "kvp": 70.0}
    return carms


def check_reopened(carms, again):
    assert [carm.name for carm in again] == [carm.name for carm in carms]
    for old, new in zip(carms, again, strict=True):
        assert torch.equal(new.camera.K, old.camera.K) and new.meta == old.meta
        assert new.source_to_isocenter == 612.5 and new.depth == pytest.approx(555.0)
        assert np.allclose(new.pose.matrix, old.pose.matrix, atol=1e-9)
        assert new.node.GetParentTransformNode().GetName() == "table"
        volume, old_volume = new.referred("xray"), old.referred("xray")
        assert volume.GetScene() is new.scene and volume.GetParentTransformNode() is new.referred("plane")
        assert np.allclose(kit.to_world(volume), kit.to_world(old_volume), atol=1e-4)
        assert np.array_equal(get_image(volume), get_image(old_volume))
        display, old_display = volume.GetDisplayNode(), old_volume.GetDisplayNode()
        assert display.GetWindow() == pytest.approx(old_display.GetWindow())
        assert new.referred("plane").GetHideFromEditors()


def test_a_saved_scene_reopens_in_the_same_state(scene, tmp_path):
    carms = filled_scene(scene)
    (tmp_path / "bundle").mkdir()
    assert scene.SaveSceneToSlicerDataBundleDirectory(str(tmp_path / "bundle"), None)
    other, logics = new_scene()
    other.SetURL(str(next((tmp_path / "bundle").glob("*.mrml"))))
    assert other.Connect()
    check_reopened(carms, list(CArmNode.all(other)))
    other.Clear(True)
    del logics


def test_a_saved_scene_is_added_to_another_one_with_carms(scene, tmp_path):
    """Importing gives nodes new identifiers; the references follow."""
    carms = filled_scene(scene)
    (tmp_path / "bundle").mkdir()
    assert scene.SaveSceneToSlicerDataBundleDirectory(str(tmp_path / "bundle"), None)
    other, logics = new_scene()
    filled_scene(other)
    other.SetURL(str(next((tmp_path / "bundle").glob("*.mrml"))))
    assert other.Import()
    check_reopened(carms, list(CArmNode.all(other))[2:])
    other.Clear(True)
    del logics


def test_what_is_no_carm(scene):
    with pytest.raises(SceneError, match="Nothing is not a C-arm; add an X-ray"):
        CArmNode(None)
    with pytest.raises(SceneError, match="'plain' is not a C-arm"):
        CArmNode(kit.add_transform(scene, np.eye(4), name="plain"))


def test_bad_values(scene):
    carm = CArmNode.create(scene, CAMERAS["source"], pose_at(), name="arm")
    with pytest.raises(GeometryError, match="must be positive"):
        carm.source_to_isocenter = -1.0
    with pytest.raises(SceneError, match="30 x 41 pixels but its camera 30 x 40"):
        carm.place_image(carm.below("xray", "vtkMRMLScalarVolumeNode", "image"), np.zeros((30, 41)))
    batch = Camera.from_intrinsics(CAMERAS["source"].K.expand(2, 3, 3), 30, 40, source_to_detector=900.0)
    with pytest.raises(SceneError, match="one camera, not a batch"):
        carm.camera = batch
    carm.node.SetAttribute("DiffDRR.Camera", "{")
    with pytest.raises(SceneError, match=r"'DiffDRR.Camera' of 'arm' is damaged"):
        _ = carm.camera
    carm.node.RemoveAttribute("DiffDRR.Camera")
    with pytest.raises(ReadError, match="The camera of 'arm' must be one JSON object"):
        _ = carm.camera
    with pytest.raises(SceneError, match="has no image yet"):
        get_image(carm.referred("xray"))
