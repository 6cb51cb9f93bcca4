"""Presets in anatomical directions, nudges seen in the picture, moves of the patient, named poses, undo."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from DiffDRRCore import Camera, CArm
from DiffDRRCore.geometry import project
from Testing.scene import kit

slicer = pytest.importorskip("slicer")

from DiffDRRSlicerLib.scene import nodes, patient, poses, xrays  # noqa: E402
from DiffDRRSlicerLib.scene.anatomy import Anatomy  # noqa: E402
from DiffDRRSlicerLib.scene.carm import CArmNode  # noqa: E402
from DiffDRRSlicerLib.scene.errors import SceneError  # noqa: E402

RIGHT, ANTERIOR, SUPERIOR = np.eye(3)
S40, C40 = np.sin(np.radians(40)), np.cos(np.radians(40))
S45 = np.sqrt(0.5)
BEAMS = {  # from source to detector; a lateral is named by the side that faces the detector, an oblique likewise
    "AP": -ANTERIOR,
    "PA": ANTERIOR,
    "Left lateral": -RIGHT,
    "Right lateral": RIGHT,
    "LAO 45": S45 * ANTERIOR - S45 * RIGHT,
    "RAO 45": S45 * ANTERIOR + S45 * RIGHT,
    "Inlet": C40 * ANTERIOR + S40 * SUPERIOR,
    "Outlet": C40 * ANTERIOR - S40 * SUPERIOR,
}


def ct(scene, rng, parent=None):
    shape = (12, 10, 14)
    return Anatomy(
        kit.add_volume(scene, rng.integers(-1000, 500, shape).astype(np.int16), kit.grid(rng, shape), parent)
    )


def a_carm(scene, view_from="source", isocenter=(5.0, -7.0, 11.0), primary=23.0, secondary=-12.0, roll=8.0) -> CArmNode:
    arm = CArm(1000.0, 700.0, isocenter, primary, secondary, roll)
    return CArmNode.create(scene, Camera(40, 50, (1.5, 1.2), 1000.0, None, view_from), arm.pose, 700.0)


@pytest.mark.parametrize("name", list(BEAMS))
def test_presets_point_where_their_names_say(scene, name):
    carm = a_carm(scene)
    poses.apply_preset(carm, name)
    pose, arm = carm.pose, carm.arm
    assert np.allclose(pose.rotation[:, 2], BEAMS[name], atol=1e-9)
    assert np.allclose(arm.isocenter, (5, -7, 11)) and float(arm.source_to_isocenter) == 700
    assert pose.rotation[2, 1] < -0.7  # the image's downward direction is the feet's
    assert abs(float(arm.roll)) < 1e-9


def test_an_unknown_preset_changes_nothing(scene):
    carm = a_carm(scene)
    before = carm.pose.matrix
    with pytest.raises(SceneError, match="the views are: AP, PA"):
        poses.apply_preset(carm, "sideways")
    assert torch.equal(carm.pose.matrix, before)


@pytest.mark.parametrize("side", poses.SIDES)
def test_nudges_move_the_picture_as_they_say(scene, side):
    rng = np.random.default_rng(0)
    parent = kit.add_transform(scene, kit.rigid(rng))
    anatomy, carm = ct(scene, rng, parent), a_carm(scene)
    mirror = 1 if side == "source" else -1

    def seen():
        """Where the anatomy's centre and a point beside it are, in camera mm."""
        points = anatomy.center + np.array([[0, 0, 0], [0, 0, 1.0]]) @ carm_axes
        return kit.apply(np.linalg.inv(carm.pose.matrix.numpy()), points)

    carm_axes = np.array([carm.pose.rotation[:, 2].numpy(), carm.pose.rotation[:, 1].numpy(), [0, 0, 0]])
    carm_axes[2] = carm.pose.rotation[:, 0].numpy()
    before = seen()
    poses.nudge(carm, anatomy, right=3.0, down=2.0, depth=-4.0, side=side)
    assert np.allclose(seen() - before, [mirror * 3.0, 2.0, -4.0], atol=1e-9)
    middle = seen()
    poses.nudge(carm, anatomy, turn=30.0, side=side)
    after = seen()
    assert np.allclose(after[0], middle[0], atol=1e-9)
    arm = np.diff(after, axis=0)[0]  # it pointed right; clockwise turns it down, seen from this side
    assert np.allclose(arm, [np.cos(np.pi / 6), mirror * 0.5, 0], atol=1e-9)


def test_a_nudge_in_pixels_of_a_mirrored_image(scene):
    """In a radiological image columns run the other way: seen from the detector, right is right again."""
    rng = np.random.default_rng(1)
    anatomy, carm = ct(scene, rng), a_carm(scene, view_from="detector", isocenter=(0.0, 0.0, 0.0))
    before = project(carm.camera, carm.pose, anatomy.center[None])[0, 0]
    poses.nudge(carm, anatomy, right=6.0, side="radiological")
    after = project(carm.camera, carm.pose, anatomy.center[None])[0, 0]
    assert after[0] > before[0] + 4 and abs(after[1] - before[1]) < 1e-6


def test_a_side_that_there_is_not(scene):
    with pytest.raises(SceneError, match="'source' or 'radiological'"):
        poses.nudge(a_carm(scene), ct(scene, np.random.default_rng(0)), right=1, side="left")


def test_the_patient_turns_about_the_anatomys_centre_in_world_axes(scene):
    rng = np.random.default_rng(2)
    anatomy = ct(scene, rng, kit.add_transform(scene, kit.rigid(rng)))
    start, center = kit.to_world(anatomy.ct), anatomy.center
    for turns, shift in (((0, 0, 0), (40, -30, 20)), ((10, -20, 30), (1, 2, 3)), ((-50, 40, 160), (0, 9, -7))):
        patient.place_patient(anatomy, turns, shift)  # from wherever it is
        turn = Rotation.from_euler("xyz", turns, degrees=True).as_matrix()
        expected = turn @ (start[:3] - np.c_[np.zeros((3, 3)), center]) + np.c_[np.zeros((3, 3)), center + shift]
        assert np.allclose(kit.to_world(anatomy.ct)[:3], expected, atol=1e-8)
        found = patient.patient_placement(anatomy)
        assert np.allclose(found, (turns, shift), atol=1e-8)
    patient.reset_patient(anatomy)
    assert np.allclose(kit.to_world(anatomy.ct), start) and not np.any(patient.patient_placement(anatomy))


def test_named_poses(scene):
    carm = a_carm(scene)
    first = carm.pose.matrix
    poses.save_pose(carm, " before ")
    poses.apply_preset(carm, "AP")
    carm.source_to_isocenter = 650.0
    poses.save_pose(carm, "AP")
    poses.apply_pose(CArmNode(carm.node), "before")
    assert torch.allclose(carm.pose.matrix, first, atol=1e-9) and carm.source_to_isocenter == 700
    assert list(poses.named_poses(carm)) == ["before", "AP"]
    assert torch.allclose(poses.named_poses(carm)["before"].matrix, first)
    poses.delete_pose(carm, "before")
    with pytest.raises(SceneError, match="no saved pose 'before'; saved poses: AP"):
        poses.apply_pose(carm, "before")
    poses.delete_pose(carm, "AP")
    assert carm.node.GetAttribute("DiffDRR.Poses") is None
    with pytest.raises(SceneError, match="name"):
        poses.save_pose(carm, "  ")


class TestHistory:
    def test_undo_and_redo_over_all_c_arms_and_the_patient(self, scene):
        rng = np.random.default_rng(3)
        first, second = a_carm(scene), a_carm(scene, primary=80.0)
        anatomy = ct(scene, rng)
        above = kit.add_transform(scene, np.eye(4))
        history = poses.PoseHistory(scene, lambda: above)

        def now():
            return first.pose.matrix, second.pose.matrix, nodes.transform_to_parent(above)

        places = [now()]
        poses.nudge(first, anatomy, right=5)
        first.source_to_isocenter = 640.0
        history.rest("Nudge")
        places.append(now())
        nodes.set_transform_to_parent(above, kit.rigid(rng))
        poses.apply_preset(second, "AP")
        history.rest("Move patient")
        places.append(now())

        def is_at(place):
            return all(np.allclose(a, b, atol=1e-12) for a, b in zip(now(), place, strict=True))

        assert history.undo_text == "Move patient" and history.redo_text is None
        assert history.undo() == "Move patient" and is_at(places[1])
        assert history.undo() == "Nudge" and is_at(places[0]) and first.source_to_isocenter == 700
        assert history.undo() is None and is_at(places[0])
        assert history.redo() == "Nudge" and is_at(places[1]) and first.source_to_isocenter == 640
        assert history.redo() == "Move patient" and is_at(places[2]) and history.redo() is None

    def test_a_new_move_ends_redo_and_rest_without_a_move_is_no_step(self, scene):
        carm = a_carm(scene)
        history = poses.PoseHistory(scene)
        poses.apply_preset(carm, "AP")
        history.rest("one")
        history.rest("nothing")
        assert history.undo() == "one" and history.redo_text == "one"
        poses.apply_preset(carm, "PA")
        history.rest("two")
        assert history.redo() is None and history.undo() == "two"

    def test_deleted_and_added_c_arms(self, scene):
        kept, lost = a_carm(scene), a_carm(scene)
        history, start = poses.PoseHistory(scene), kept.pose.matrix
        poses.apply_preset(kept, "AP")
        history.rest("move")
        scene.RemoveNode(lost.node)
        new = a_carm(scene, primary=1.0)
        there = new.pose.matrix
        assert history.undo() == "move"
        assert torch.allclose(kept.pose.matrix, start) and torch.equal(new.pose.matrix, there)
        scene.RemoveNode(kept.node)
        assert history.redo() is None

    def test_a_patient_transform_made_by_the_move_goes_back_to_nothing(self, scene):
        made = []
        history = poses.PoseHistory(scene, lambda: made[0] if made else None)
        made.append(kit.add_transform(scene, kit.rigid(np.random.default_rng(4))))
        history.rest("Move patient")
        assert history.undo() == "Move patient" and np.array_equal(nodes.transform_to_parent(made[0]), np.eye(4))
        assert history.redo() == "Move patient" and not np.array_equal(nodes.transform_to_parent(made[0]), np.eye(4))

    def test_cameras_come_back_with_what_is_assumed_of_them(self, scene):
        carm, other = a_carm(scene), a_carm(scene)
        carm.meta = {"missing": ["pixel spacing (1 mm assumed)"]}
        before, history = carm.camera, poses.PoseHistory(scene)
        history.rest("nothing")
        assert history.undo_text is None
        xrays.set_camera(carm, Camera(40, 50, (2.5, 2.0), 1000.0))
        after = carm.camera
        history.rest("camera")
        carm.node.SetName("renamed")
        history.rest("a name")
        assert history.undo_text == "camera" and carm.meta["missing"] == []
        assert history.undo() == "camera" and torch.equal(carm.camera.K, before.K)
        assert carm.meta["missing"] and torch.equal(other.camera.K, before.K) and history.undo_text is None
        assert history.redo() == "camera" and torch.equal(carm.camera.K, after.K) and carm.meta["missing"] == []

    def test_is_bounded(self, scene):
        carm = a_carm(scene)
        history = poses.PoseHistory(scene, most=3)
        for number in range(5):
            carm.move_arm(primary=float(number))
            history.rest(str(number))
        assert [history.undo() for _ in range(4)] == ["4", "3", "2", None]
