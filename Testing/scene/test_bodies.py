"""Bones in the scene: their nodes, what hangs below them, and what the C-arm sees of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import vtk

from DiffDRRCore import CArm, Pose, Renderer, Volume
from Testing.scene import bones, kit

slicer = pytest.importorskip("slicer")

from DiffDRRSlicerLib.scene import nodes, reassembly  # noqa: E402
from DiffDRRSlicerLib.scene.anatomy import Anatomy  # noqa: E402
from DiffDRRSlicerLib.scene.bodies import BodyNode, free_structures, rest_of, set_rest  # noqa: E402
from DiffDRRSlicerLib.scene.body_parts import add_body, remove_body, show_beside_xray  # noqa: E402
from DiffDRRSlicerLib.scene.carm import CArmNode  # noqa: E402
from DiffDRRSlicerLib.scene.drr import render_drr  # noqa: E402
from DiffDRRSlicerLib.scene.errors import SceneError  # noqa: E402
from DiffDRRSlicerLib.scene.handles import patient_transform  # noqa: E402
from DiffDRRSlicerLib.scene.live import LiveView  # noqa: E402
from DiffDRRSlicerLib.scene.poses import PoseHistory  # noqa: E402

MOTION = Pose.exp(torch.tensor([0.1, -0.2, 0.15, 8.0, -6.0, 5.0]).double()).matrix.numpy()


@pytest.fixture(params=["labelmap", "segmentation"])
def anatomy(scene, request):
    above = kit.add_transform(scene, kit.rigid(np.random.default_rng(5)), name="above")
    labels = bones.add_labelmap if request.param == "labelmap" else bones.add_segmentation
    return Anatomy(bones.add_ct(scene, above), labels(scene, above))


@pytest.fixture
def labelled(scene):
    return Anatomy(bones.add_ct(scene), bones.add_labelmap(scene))


def middle_of(node) -> np.ndarray:
    """World mm of a model's points' mean, as MRML transforms them."""
    points = [node.GetPolyData().GetPoint(n) for n in range(node.GetPolyData().GetNumberOfPoints())]
    world = []
    for point in points:
        moved = [0.0, 0.0, 0.0]
        node.TransformPointToWorld(point, moved)
        world.append(moved)
    return np.mean(world, axis=0)


def voxels_of(segmentation) -> np.ndarray:
    """World mm [N, 3] of the voxels of the first segment."""
    image = slicer.vtkOrientedImageData()
    identifier = segmentation.GetSegmentation().GetNthSegmentID(0)
    assert segmentation.GetBinaryLabelmapRepresentation(identifier, image)
    from vtk.util.numpy_support import vtk_to_numpy

    array = vtk_to_numpy(image.GetPointData().GetScalars()).reshape(image.GetDimensions()[::-1])
    to_local = vtk.vtkMatrix4x4()
    image.GetImageToWorldMatrix(to_local)
    kji = np.argwhere(array > 0)[:, ::-1] + np.array(image.GetExtent()[::2])
    local = kit.apply(nodes.from_vtk(to_local), kji)
    return kit.apply(nodes.parent_to_world(segmentation), local)


def test_a_bone_is_a_transform_above_its_surface_and_its_segments(anatomy):
    body = add_body(anatomy, ["right bone"], "Femur")
    assert body.name == "Femur" and body.structures == ["right bone"] and not body.locked and body.visible
    assert body.node.GetParentTransformNode() is anatomy.ct.GetParentTransformNode()
    for part in (body.surface, body.segments):
        assert part.GetParentTransformNode() is body.node and part.GetName().startswith("Femur ")
    inside = kit.apply(kit.to_world(anatomy.ct), np.argwhere(bones.voxels()[1] == 2)[:, ::-1])
    assert np.linalg.norm(middle_of(body.surface) - inside.mean(axis=0)) < 4
    there = voxels_of(body.segments)
    assert len(there) == len(inside)
    assert np.abs(np.sort(there, axis=0) - np.sort(inside, axis=0)).max() < 1e-3
    assert body.segments.GetSegmentation().GetNthSegment(0).GetName() == "right bone"
    assert not body.is_moved(anatomy) and free_structures(anatomy) == ["left bone"]


def test_parts_follow_the_transform_and_the_labels_stay(anatomy):
    body = add_body(anatomy, ["left bone"])
    before, inside = middle_of(body.surface), voxels_of(body.segments)
    labels = anatomy.volume.labels.clone()
    body.move(anatomy, Pose(MOTION))
    world = anatomy.to_world @ MOTION @ np.linalg.inv(anatomy.to_world)
    assert np.allclose(middle_of(body.surface), kit.apply(world, before), atol=1e-3)
    assert np.allclose(voxels_of(body.segments), kit.apply(world, inside), atol=1e-3)
    assert np.allclose(body.motion(anatomy), MOTION) and body.is_moved(anatomy)
    assert torch.equal(anatomy.volume.labels, labels)


def test_removing_a_bone_leaves_the_scene_as_it_was(anatomy, scene):
    before = kit.node_ids(scene)
    shown = segments_shown(anatomy.labels)
    body = add_body(anatomy, ["left bone"])
    if shown:
        assert segments_shown(anatomy.labels) == [False, True]
    mark = scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "mark")
    mark.SetAndObserveTransformNodeID(body.node.GetID())
    remove_body(body)
    assert segments_shown(anatomy.labels) == shown
    assert mark.GetParentTransformNode() is anatomy.ct.GetParentTransformNode()
    left = {scene.GetNodeByID(one).GetClassName() for one in kit.node_ids(scene) - before}
    assert left <= {"vtkMRMLMarkupsFiducialNode", "vtkMRMLMarkupsDisplayNode", "vtkMRMLMarkupsFiducialDisplayNode"}
    assert BodyNode.of(anatomy) == []


def segments_shown(labels) -> list[bool]:
    if not labels.IsA("vtkMRMLSegmentationNode"):
        return []
    identifiers = [labels.GetSegmentation().GetNthSegmentID(index) for index in range(2)]
    return [labels.GetDisplayNode().GetSegmentVisibility(one) for one in identifiers]


def test_a_segmentation_below_another_transform_is_copied_to_where_it_is(scene):
    rng = np.random.default_rng(8)
    ct = bones.add_ct(scene, kit.add_transform(scene, kit.rigid(rng), name="of the CT"))
    labels = bones.add_segmentation(scene)
    labels.SetAndObserveTransformNodeID(ct.GetTransformNodeID())
    other = kit.add_transform(scene, np.eye(4), ct.GetParentTransformNode(), "other")
    labels.SetAndObserveTransformNodeID(other.GetID())
    shift = np.eye(4)
    shift[:3, 3] = 12, -6, 9
    other.SetMatrixTransformToParent(kit.matrix(shift))
    inside = voxels_of(labels)
    body = add_body(Anatomy(ct, labels), ["left bone"])
    assert np.allclose(voxels_of(body.segments), inside, atol=1e-3)


def test_color_visibility_lock_and_name_are_in_the_nodes(anatomy):
    body = add_body(anatomy, ["left bone"], "Femur", (0.1, 0.2, 0.3))
    other = add_body(anatomy, ["right bone"])
    assert np.allclose(body.surface.GetDisplayNode().GetColor(), (0.1, 0.2, 0.3)) and other.color != body.color
    assert np.allclose(body.segments.GetSegmentation().GetNthSegment(0).GetColor(), (0.1, 0.2, 0.3))
    body.visible, body.locked, body.name = False, True, "Tibia"
    again = BodyNode(body.node)
    assert not again.visible and again.locked and not body.surface.GetDisplayNode().GetVisibility()
    assert (body.surface.GetName(), body.segments.GetName()) == ("Tibia surface", "Tibia segments")
    with pytest.raises(SceneError, match="There is a bone 'right bone' already"):
        body.name = "right bone"
    with pytest.raises(SceneError, match="Give the bone a name"):
        body.name = " "


def test_a_scene_that_is_saved_and_loaded_has_its_bones(labelled, scene, tmp_path):
    body = add_body(labelled, ["left bone"], "Femur", (0.2, 0.4, 0.6))
    body.locked = True
    body.move(labelled, Pose(MOTION))
    set_rest(labelled.ct, "first")
    (tmp_path / "saved").mkdir()
    assert scene.SaveSceneToSlicerDataBundleDirectory(str(tmp_path / "saved"), None)
    scene.Clear(True)
    scene.SetURL(str(next((tmp_path / "saved").glob("*.mrml"))))
    assert scene.Connect()
    (again,) = BodyNode.all(scene)
    loaded = Anatomy(scene.GetFirstNodeByName("CT"), scene.GetFirstNodeByName("labels"))
    assert BodyNode.of(loaded) == [again] and rest_of(loaded.ct) == "first"
    assert again.name == "Femur" and again.structures == ["left bone"] and again.locked
    assert np.allclose(again.motion(loaded), MOTION) and np.allclose(again.color, (0.2, 0.4, 0.6), atol=1e-4)
    assert again.surface.GetPolyData().GetNumberOfPoints() > 100
    assert again.segments.GetSegmentation().GetNumberOfSegments() == 1


@pytest.mark.parametrize(
    ("structures", "text"),
    [
        ([], "choose at least one"),
        (["hip"], "There is no structure 'hip' in the CT; there are: left bone, right bone"),
        (["left bone"], "'left bone' is in the bone 'Femur' already"),
    ],
)
def test_what_no_bone_can_be_made_of(labelled, scene, structures, text):
    add_body(labelled, ["left bone"], "Femur")
    before = kit.node_ids(scene)
    with pytest.raises(SceneError, match=text):
        add_body(labelled, structures)
    assert kit.node_ids(scene) == before


def test_bones_need_labels_and_a_bone_node(labelled, scene):
    with pytest.raises(SceneError, match="choose a labelmap or a segmentation"):
        add_body(Anatomy(labelled.ct), ["left bone"])
    with pytest.raises(SceneError, match="is not a bone"):
        BodyNode(labelled.ct)
    with pytest.raises(SceneError, match="not 'gone'"):
        set_rest(labelled.ct, "gone")


def test_bones_are_those_of_the_labels_in_use(labelled, scene):
    add_body(labelled, ["left bone"])
    assert BodyNode.of(Anatomy(labelled.ct, bones.add_segmentation(scene))) == []
    assert BodyNode.of(Anatomy(labelled.ct)) == []


def camera_and_pose(anatomy):
    arm = CArm(1000.0, 600.0, anatomy.center, 20.0, 5.0)
    return arm.camera(36, 40, (9.0, 9.0)), arm.pose


def expected(anatomy, camera, pose, motions) -> np.ndarray:
    """By moving grids of voxels instead of the camera. `motions`: {number: [4, 4]}."""
    hu, labels = (torch.from_numpy(one) for one in bones.voxels())
    total, seen = 0.0, anatomy.pose_in_volume(pose)
    for number, motion in motions.items():
        part = torch.where(labels == number, hu.float(), torch.tensor(-1000.0))
        volume = Volume(part, motion @ bones.grid())
        total = total + Renderer(volume, integrator="siddon")(camera, seen)[0, 0]
    return total.numpy()


@pytest.mark.parametrize(
    ("rest", "motions"),
    [
        ("stays", {0: np.eye(4), 1: np.eye(4), 2: MOTION}),
        ("left out", {1: np.eye(4), 2: MOTION}),
        ("first", {0: np.eye(4), 1: np.eye(4), 2: MOTION}),
    ],
)
def test_the_drr_shows_bones_where_they_are(anatomy, rest, motions):
    camera, pose = camera_and_pose(anatomy)
    carm = CArmNode.create(anatomy.ct.GetScene(), camera, pose, 600.0)
    add_body(anatomy, ["left bone"])
    add_body(anatomy, ["right bone"]).move(anatomy, Pose(MOTION))
    set_rest(anatomy.ct, rest)
    image = slicer.util.arrayFromVolume(render_drr(carm, anatomy))[0]
    wanted = expected(anatomy, camera, pose, motions)
    assert wanted.max() > 1 and np.abs(image - wanted).max() < 2e-3


def test_the_rest_goes_with_the_first_bone(labelled):
    camera, pose = camera_and_pose(labelled)
    add_body(labelled, ["left bone"]).move(labelled, Pose(MOTION))
    set_rest(labelled.ct, "first")
    image = reassembly.rendered(labelled, camera, pose).numpy()
    wanted = expected(labelled, camera, pose, {0: MOTION, 1: MOTION, 2: MOTION})
    assert np.abs(image - wanted).max() < 2e-3


def test_bones_where_the_ct_shows_them_cost_nothing_more(labelled):
    add_body(labelled, ["left bone"])
    assert reassembly.pieces(labelled) == [reassembly.Piece(None, None)]
    assert reassembly.pieces(labelled, ["right bone"]) == [reassembly.Piece((1, 2), None)]


def test_a_bone_of_a_structure_that_was_renamed_is_an_error_with_its_name(scene):
    anatomy = Anatomy(bones.add_ct(scene), bones.add_segmentation(scene))
    body = add_body(anatomy, ["left bone"], "Femur")
    body.move(anatomy, Pose(MOTION))
    anatomy.labels.GetSegmentation().GetNthSegment(0).SetName("other")
    with pytest.raises(SceneError, match="The bone 'Femur' is made of 'left bone', which 'segmentation' does not have"):
        reassembly.pieces(anatomy)


def test_the_picture_follows_a_bone_that_is_dragged(labelled, scene):
    camera, pose = camera_and_pose(labelled)
    carm = CArmNode.create(scene, camera, pose, 600.0)
    live = LiveView(scene, rest_after=0.0)
    live.show(labelled, carm)
    body = add_body(labelled, ["right bone"])
    for now in range(3):
        live.tick(float(now))
    before = np.array(slicer.util.arrayFromVolume(carm.referred("drr")))
    assert not live.tick(3.0)
    body.node.SetMatrixTransformToParent(kit.matrix(MOTION))
    assert live.tick(4.0) and live.error is None
    assert np.abs(slicer.util.arrayFromVolume(carm.referred("drr")) - before).max() > 0.1


def test_a_drag_does_not_look_through_the_labels_again(labelled, monkeypatch):
    """That takes ten times as long as the picture."""
    camera, pose = camera_and_pose(labelled)
    body = add_body(labelled, ["right bone"])
    body.move(labelled, Pose(MOTION))
    reassembly.rendered(labelled, camera, pose)
    monkeypatch.setattr(Volume, "present_labels", property(lambda volume: pytest.fail("counted again")))
    body.move(labelled, Pose(MOTION).inverse())
    assert reassembly.rendered(labelled, camera, pose).max() > 1


def test_undo_takes_a_bone_back(labelled, scene):
    body = add_body(labelled, ["right bone"])
    history = PoseHistory(scene)
    body.move(labelled, Pose(MOTION))
    history.rest("registration")
    assert history.undo() == "registration" and not body.is_moved(labelled)
    history.redo()
    assert np.allclose(body.motion(labelled), MOTION)


def test_bones_go_with_the_patient(anatomy):
    body = add_body(anatomy, ["left bone"])
    body.move(anatomy, Pose(MOTION))
    before = middle_of(body.surface)
    patient = patient_transform(anatomy)
    assert np.allclose(middle_of(body.surface), before, atol=1e-4)
    shift = np.eye(4)
    shift[:3, 3] = 10, 20, 30
    nodes.set_transform_to_parent(patient, shift)
    assert np.allclose(middle_of(body.surface), before + np.array([10, 20, 30]), atol=1e-4)
    assert np.allclose(body.motion(anatomy), MOTION, atol=1e-9)


def test_below_a_scaling_transform_a_bone_moves_rigidly_in_the_world(scene):
    above = kit.add_transform(scene, np.diag([1.1, 0.9, 1.0, 1.0]))
    anatomy = Anatomy(bones.add_ct(scene, above), bones.add_labelmap(scene, above))
    body = add_body(anatomy, ["left bone"])
    before = middle_of(body.surface)
    body.move(anatomy, Pose(MOTION))
    assert np.allclose(body.motion(anatomy), MOTION, atol=1e-9)
    assert np.allclose(middle_of(body.surface), kit.apply(MOTION, before), atol=1e-3)
    body.node.SetMatrixTransformToParent(kit.matrix(np.diag([2.0, 1, 1, 1])))
    with pytest.raises(SceneError, match="scaled"):
        body.motion(anatomy)


def test_segments_do_not_hide_the_x_ray(labelled, scene):
    body = add_body(labelled, ["left bone"])
    red, xray = (scene.AddNode(_slice_view(name)) for name in ("Red", "X"))
    display = body.segments.GetDisplayNode()
    for view, shown in ((xray, (True, False)), (None, (True, True))):
        show_beside_xray(body, view)
        assert (display.IsDisplayableInView(red.GetID()), display.IsDisplayableInView(xray.GetID())) == shown


def _slice_view(name):
    node = slicer.vtkMRMLSliceNode()
    node.SetLayoutName(name)
    node.SetSingletonTag(name)
    return node
