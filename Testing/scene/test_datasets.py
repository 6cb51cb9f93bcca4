"""A dataset's X-ray in the scene: every node where the dataset says, in one world; nothing half loaded."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import slicer
import slicer.util
import torch

from DiffDRRCore import Camera, Pose, Volume
from DiffDRRCore.errors import DiffDRRError, ReadError
from DiffDRRSlicerLib.scene import datasets, labels, nodes, xrays
from DiffDRRSlicerLib.scene.accuracy import reference_errors
from DiffDRRSlicerLib.scene.anatomy import Anatomy
from DiffDRRSlicerLib.scene.carm import CArmNode, remove_carm
from DiffDRRSlicerLib.scene.errors import SceneError
from DiffDRRSlicerLib.scene.landmarks import points_in_world, reprojection_errors
from DiffDRRSlicerLib.scene.patient import place_patient
from Testing.core.samples import rigid
from Testing.scene import kit
from Testing.scene import small_dataset as small

SOURCE = "/data/small.h5"


def load(scene, view="one", subject="A", **options):
    return datasets.load_view(scene, small.Small().subjects[subject], view, SOURCE, **options)


def below(scene, loaded, seed=4):
    """Move the CT, its labels and landmarks under a transform above, as a user does in the Data module."""
    matrix = rigid(np.random.default_rng(seed), 80.0)
    transform = kit.add_transform(scene, matrix, name="above")
    for node in (loaded.ct, loaded.labels, loaded.landmarks):
        node.SetAndObserveTransformNodeID(transform.GetID())
    return matrix, transform


def test_ct_and_labels_are_exact_on_an_oblique_left_handed_grid(scene):
    loaded, volume = load(scene), small.ct()
    assert np.linalg.det(volume.ijk_to_ras.numpy()[:3, :3]) < 0
    assert np.array_equal(slicer.util.arrayFromVolume(loaded.ct), volume.hu.numpy())
    assert kit.to_world(loaded.ct) == pytest.approx(volume.ijk_to_ras.numpy(), abs=1e-9)
    numbers, names = labels.read_labels(loaded.labels, loaded.ct)
    assert np.array_equal(numbers, volume.labels.numpy())
    assert names == {number: volume.label_names[number] for number in volume.present_labels - {0}}
    assert loaded.ct.GetName() == "A" and loaded.new


def test_labels_without_names_and_none_at_all(scene, monkeypatch):
    whole = small.ct()
    monkeypatch.setattr(small, "ct", lambda: Volume(whole.hu, whole.ijk_to_ras, whole.labels, {3: "spine"}))
    loaded = load(scene)
    names = labels.read_labels(loaded.labels, loaded.ct)[1]
    assert names[3] == "spine" and names[7] == "7"
    monkeypatch.setattr(small, "ct", lambda: Volume(whole.hu, whole.ijk_to_ras))
    bare = load(scene, subject="B")
    assert bare.labels is None and Anatomy(bare.ct).structures == {}
    assert np.array_equal(slicer.util.arrayFromVolume(bare.segmentation)[0], small.segmentation())


def test_landmarks_lie_on_the_ct_and_on_the_x_ray(scene):
    loaded = load(scene)
    carm = CArmNode(loaded.carm)
    names = [loaded.landmarks.GetNthControlPointLabel(n) for n in range(loaded.landmarks.GetNumberOfControlPoints())]
    assert names == list(small.VOXELS)
    world = points_in_world(loaded.landmarks, range(4))
    assert world == pytest.approx(np.array(list(small.points().values())), abs=1e-9)
    assert loaded.xray_landmarks is carm.referred("landmarks")
    found = [loaded.xray_landmarks.GetNthControlPointLabel(n) for n in range(3)]
    assert found == names[:3] and loaded.xray_landmarks.GetNumberOfControlPoints() == 3
    clicked = points_in_world(loaded.xray_landmarks, range(3))  # on the plane of the images, along the points' rays
    plane = nodes.transformed(np.linalg.inv(small.pose(1).matrix.numpy()), clicked)
    assert plane[:, 2] == pytest.approx(carm.depth) and carm.depth == pytest.approx(small.DEPTH)
    assert small.pixels(small.pose(1).matrix.numpy(), clicked) == pytest.approx(
        small.pixels(small.pose(1).matrix.numpy(), world[:3]), abs=1e-6
    )
    assert reprojection_errors(carm, loaded.landmarks, loaded.xray_landmarks).rms_pixels < 1e-6


def test_the_x_ray_is_the_datasets_and_its_true_pose_is_kept(scene):
    loaded = load(scene)
    carm = CArmNode(loaded.carm)
    xray = xrays.core_xray(carm)
    assert torch.equal(xray.image, torch.from_numpy(small.image("one")))
    assert np.array_equal(xray.camera.K, small.CAMERA.K) and xray.camera.view_from == "detector"
    assert xray.meta == {"intensity": "transmission", "dataset": "Small"}
    assert carm.pose.matrix.numpy() == pytest.approx(small.pose(1).matrix.numpy(), abs=1e-9)
    assert carm.source_to_isocenter == pytest.approx(small.DEPTH)
    assert loaded.reference is carm.referred("reference") and carm.name == "A one"
    carm.move_arm(primary=float(carm.arm.primary) + 5.0)
    assert reference_errors(carm, Anatomy(loaded.ct))["rotation_deg"] > 1.0
    carm.pose = Pose(nodes.transform_to_world(loaded.reference))
    assert reference_errors(carm, Anatomy(loaded.ct))["mtre_mm"] < 1e-6


def test_the_segmentation_lies_on_the_x_rays_pixels_in_the_labels_colours(scene):
    loaded = load(scene)
    carm = CArmNode(loaded.carm)
    assert np.array_equal(slicer.util.arrayFromVolume(loaded.segmentation)[0], small.segmentation())
    assert np.array_equal(kit.to_world(loaded.segmentation), kit.to_world(carm.referred("xray")))
    table = loaded.segmentation.GetDisplayNode().GetColorNode()
    assert table is loaded.labels.GetDisplayNode().GetColorNode()
    assert table.GetColorName(7) == "hip_right"
    assert [one.GetID() for one in datasets.xray_segmentations(scene)] == [loaded.segmentation.GetID()]
    xrays.set_camera(carm, Camera(40, 50, (5.0, 5.5), 900.0, (20.0, 22.0), "source"))
    assert np.array_equal(kit.to_world(loaded.segmentation), kit.to_world(carm.referred("xray")))
    remove_carm(carm)
    assert datasets.xray_segmentations(scene) == [] and loaded.reference.GetScene() is scene


def test_structures_with_poses_of_their_own_keep_them(scene):
    loaded = load(scene)
    carm = CArmNode(loaded.carm)
    assert list(loaded.bodies) == [small.BODY] and datasets.body_references(carm) == loaded.bodies
    node = loaded.bodies[small.BODY]
    assert node.GetName() == f"A one true pose of {small.BODY}"
    assert nodes.transform_to_world(node) == pytest.approx(small.body_pose().matrix.numpy(), abs=1e-9)
    carm.pose = small.body_pose()
    assert reference_errors(carm, Anatomy(loaded.ct), node)["mtre_mm"] < 1e-6
    assert reference_errors(carm, Anatomy(loaded.ct))["mtre_mm"] > 1.0
    assert datasets.body_references(CArmNode(load(scene, "two").carm)) == {}


@pytest.mark.parametrize(("start", "expected"), [("reference", small.pose), ("header", None), ("center", None)])
def test_the_c_arm_starts_where_it_is_told(scene, start, expected):
    loaded = load(scene, start=start)
    carm, center = CArmNode(loaded.carm), small.ct().center.numpy()
    if start == "center":  # as a C-arm of the panel: the source 3/4 of the distance behind the centre, looking forward
        assert carm.to_world[:3, 3] == pytest.approx(center - (0, 0.75 * 1020.0, 0), abs=1e-6)
        assert carm.to_world[:3, 2] == pytest.approx((0, 1, 0), abs=1e-9)
    else:
        truth = small.pose(1) if expected else small.header_pose()
        assert carm.to_world == pytest.approx(truth.matrix.numpy(), abs=1e-9)
    assert nodes.transform_to_world(loaded.reference) == pytest.approx(small.pose(1).matrix.numpy(), abs=1e-9)
    moved = carm.to_world
    carm.move_arm(secondary=float(carm.arm.secondary) + 3.0)
    carm.reset()
    assert carm.to_world == pytest.approx(moved, abs=1e-9)


def test_a_second_x_ray_goes_with_the_ct_that_is_there(scene):
    first, before = load(scene), small.SmallSubject.reads
    second = load(scene, "two")
    assert small.SmallSubject.reads == before and not second.new
    assert (second.ct, second.labels, second.landmarks) == (first.ct, first.labels, first.landmarks)
    assert second.carm is not first.carm and second.xray_landmarks is None and second.segmentation is None
    assert second.landmarks.GetNumberOfControlPoints() == 4
    other, elsewhere = load(scene, subject="B"), datasets.load_view(scene, small.SmallSubject("A"), "two", "/other")
    assert len({node.ct.GetID() for node in (first, other, elsewhere)}) == 3
    assert load(scene, 1).ct is first.ct  # by place


def test_poses_follow_the_transforms_above_the_ct(scene):
    """The dataset's poses are relative to the CT: in the world they come after CT-to-world."""
    first = load(scene)
    above, _ = below(scene, first)
    second, again = load(scene, "two"), load(scene, "one")
    for loaded, truth in ((second, small.pose(2)), (again, small.pose(1))):
        expected = above @ truth.matrix.numpy()
        assert nodes.transform_to_world(loaded.carm) == pytest.approx(expected, abs=1e-6)
        assert nodes.transform_to_world(loaded.reference) == pytest.approx(expected, abs=1e-6)
        assert reference_errors(CArmNode(loaded.carm), Anatomy(loaded.ct))["mtre_mm"] < 1e-6
    body = again.bodies[small.BODY]
    assert nodes.transform_to_world(body) == pytest.approx(above @ small.body_pose().matrix.numpy(), abs=1e-6)
    carm = CArmNode(again.carm)
    assert reprojection_errors(carm, again.landmarks, again.xray_landmarks).rms_pixels < 1e-6
    place_patient(Anatomy(first.ct, first.labels), (5, 0, 0), (0, 12, 0), [first.landmarks])
    assert reference_errors(carm, Anatomy(first.ct))["mtre_mm"] > 5.0
    third = load(scene, "one")  # the patient lies elsewhere now, and its true pose with it
    assert reference_errors(CArmNode(third.carm), Anatomy(first.ct))["mtre_mm"] < 1e-6


def test_deleted_nodes_come_back_where_the_others_are(scene):
    first = load(scene)
    above, transform = below(scene, first)
    scene.RemoveNode(first.ct)
    scene.RemoveNode(first.landmarks)
    again = load(scene, "one")
    assert again.new and again.labels is first.labels
    assert again.ct.GetParentTransformNode() is transform and again.landmarks.GetParentTransformNode() is transform
    assert kit.to_world(again.ct) == pytest.approx(above @ small.ct().ijk_to_ras.numpy(), abs=1e-6)
    carm = CArmNode(again.carm)
    assert reprojection_errors(carm, again.landmarks, again.xray_landmarks).rms_pixels < 1e-6
    scene.RemoveNode(again.labels)
    assert load(scene, "two").labels is None  # deleted on purpose; the CT is not read again for it


@pytest.mark.parametrize(
    ("view", "start", "error", "words"),
    [
        ("none", "reference", ReadError, "Subject A has no X-ray 'none'"),
        (17, "reference", ReadError, "17"),
        ("broken", "reference", ReadError, "damaged"),
        (
            "two",
            "header",
            SceneError,
            r"the pose in the header of X-ray 'two'; .* pose \('reference'\) or the CT's centre \('center'\)",
        ),
        ("bare", "reference", SceneError, "the reference pose of X-ray 'bare'; start from the CT's centre"),
        ("one", "sideways", SceneError, "sideways"),
    ],
)
def test_what_cannot_be_loaded_leaves_the_scene_as_it_was(scene, view, start, error, words):
    before = kit.node_ids(scene)
    with pytest.raises(error, match=words):
        load(scene, view, start=start)
    assert kit.node_ids(scene) == before


def test_a_failure_halfway_takes_everything_back(scene, monkeypatch):
    wrong = torch.zeros((3, 3), dtype=torch.int16)
    right = small.SmallSubject._view
    monkeypatch.setattr(small.SmallSubject, "_view", lambda self, name: replace(right(self, name), segmentation=wrong))
    before = kit.node_ids(scene)
    with pytest.raises(DiffDRRError, match="3 x 3 pixels"):
        load(scene)
    assert kit.node_ids(scene) == before


def test_a_ct_of_another_size_or_bent_is_refused(scene):
    first = load(scene)
    for parent in (kit.add_transform(scene, kit.scaled(np.random.default_rng(0))), kit.add_bend(scene)):
        first.ct.SetAndObserveTransformNodeID(parent.GetID())
        before = kit.node_ids(scene)
        with pytest.raises(SceneError, match="'A'"):
            load(scene, "two")
        assert kit.node_ids(scene) == before


def test_an_x_ray_without_a_reference_pose_can_still_be_loaded(scene):
    loaded = load(scene, "bare", start="center")
    assert loaded.reference is None and CArmNode(loaded.carm).referred("reference") is None
    assert reference_errors(CArmNode(loaded.carm), Anatomy(loaded.ct)) is None


def test_a_saved_scene_goes_on_as_before(scene, tmp_path):
    from Testing.scene.conftest import new_scene

    first = load(scene)
    above, _ = below(scene, first)
    (tmp_path / "scene").mkdir()
    assert scene.SaveSceneToSlicerDataBundleDirectory(str(tmp_path / "scene"), None)
    again, logics = new_scene()
    again.SetURL(str(next((tmp_path / "scene").glob("*.mrml"))))
    assert again.Connect()
    before = small.SmallSubject.reads
    second = load(again, "two")
    assert small.SmallSubject.reads == before and not second.new
    assert nodes.transform_to_world(second.carm) == pytest.approx(above @ small.pose(2).matrix.numpy(), abs=1e-5)
    numbers, names = labels.read_labels(second.labels, second.ct)
    flip = np.diag([1.0, 1.0, -1.0, 1.0])  # Slicer makes left-handed grids right-handed when it reads a file
    flip[2, 3] = numbers.shape[0] - 1
    assert kit.to_world(second.ct) == pytest.approx(above @ small.ct().ijk_to_ras.numpy() @ flip, abs=1e-4)
    assert np.array_equal(numbers, small.ct().labels.numpy()[::-1])
    assert {names[number] for number in (7, 10)} == {"hip_right", "femur_left"}
    carm = next(carm for carm in CArmNode.all(again) if carm.name == "A one")
    assert list(datasets.body_references(carm)) == [small.BODY]
    (segmentation,) = datasets.xray_segmentations(again)
    assert np.array_equal(slicer.util.arrayFromVolume(segmentation)[0], small.segmentation())
    assert segmentation is carm.referred("segmentation")
    assert reference_errors(carm, Anatomy(second.ct))["mtre_mm"] > 10.0  # the CT was moved after this one was loaded
    carm.pose = Pose(above) @ small.pose(1)
    assert reference_errors(carm, Anatomy(second.ct))["mtre_mm"] < 1e-3
    assert reprojection_errors(carm, second.landmarks, carm.referred("landmarks")).rms_pixels < 1e-3
    again.Clear(True)
    del logics


def test_structures_are_outlined_in_the_x_ray_view_and_other_labelmaps_stay(scene):
    view, composite = slicer.vtkMRMLSliceNode(), slicer.vtkMRMLSliceCompositeNode()
    view.SetLayoutName("X")
    composite.SetLayoutName("X")
    scene.AddNode(view)
    scene.AddNode(composite)
    one, two = (CArmNode(load(scene, name).carm) for name in ("one", "two"))
    datasets.show_outlines(view, composite, one)
    assert composite.GetLabelVolumeID() == one.referred("segmentation").GetID() and view.GetUseLabelOutline()
    datasets.show_outlines(view, composite, two)
    assert composite.GetLabelVolumeID() is None
    datasets.show_outlines(view, composite, one)
    datasets.show_outlines(view, composite, one, visible=False)
    assert composite.GetLabelVolumeID() is None
    mine = load(scene, "two").labels.GetID()
    composite.SetLabelVolumeID(mine)
    datasets.show_outlines(view, composite, two)
    assert composite.GetLabelVolumeID() == mine
    datasets.show_outlines(view, None, one)
