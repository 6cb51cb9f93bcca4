"""Joints of bones in the scene: kept, checked, given to the engine, and what they do to a registration."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from DiffDRRCore import Pose
from DiffDRRCore.errors import DiffDRRError

slicer = pytest.importorskip("slicer")

from DiffDRRSlicerLib.scene import bone_landmarks, joints, nodes  # noqa: E402
from DiffDRRSlicerLib.scene.anatomy import Anatomy  # noqa: E402
from DiffDRRSlicerLib.scene.bodies import BodyNode, set_rest  # noqa: E402
from DiffDRRSlicerLib.scene.body_groups import groups_of  # noqa: E402
from DiffDRRSlicerLib.scene.body_parts import remove_body  # noqa: E402
from DiffDRRSlicerLib.scene.errors import SceneError  # noqa: E402
from DiffDRRSlicerLib.scene.joints import JointNode, add_joint, engine_joints  # noqa: E402
from Testing.scene.moved_bones import MOVED, OFF, Case  # noqa: E402


@pytest.fixture
def case(scene):
    return Case(scene, (0.0,))


def points(scene, *places, parent=None):
    markups = scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "centre")
    if parent is not None:
        markups.SetAndObserveTransformNodeID(parent.GetID())
    for place in places:
        markups.AddControlPoint(*place)
    return markups


def test_a_joint_is_what_it_was_made_of(case):
    left, right = case.make_bones()
    joint = add_joint(case.anatomy, left, right, weight=0.01)
    assert JointNode.of(case.anatomy) == [joint] and joint.name == "left bone – right bone"
    assert joint.settings.deviations == (None, None, None, 2.0, 2.0, 2.0) and joint.settings.bounds is None
    joint.change(bounds=joints.six([10.0], [0.0]), deviations=joints.six([5.0, 0.0, 60.0], [1.0]))
    (engine,) = engine_joints(case.anatomy, groups_of(case.anatomy, [left, right], "bodies"))
    assert engine.bodies == ("left bone", "right bone") and engine.weight == 0.01 and engine.center is None
    assert engine.deviations == (5.0, None, 60.0, 1.0, 1.0, 1.0)
    assert engine.bounds == (10.0, 10.0, 10.0, None, None, None)
    left.name = "pelvis"
    assert joint.name == "pelvis – right bone"


def test_what_is_no_joint_is_a_sentence_and_changes_nothing(case):
    left, right = case.make_bones()
    with pytest.raises(SceneError, match="between two bones"):
        add_joint(case.anatomy, left, left)
    with pytest.raises(DiffDRRError, match="says something"):
        add_joint(case.anatomy, left, right, deviations=None)
    assert JointNode.of(case.anatomy) == []
    joint = add_joint(case.anatomy, left, right)
    with pytest.raises(SceneError, match="have a joint already"):
        add_joint(case.anatomy, right, left)
    with pytest.raises(DiffDRRError, match="weight"):
        joint.change(weight=-1.0)
    with pytest.raises(SceneError, match="no 'colour'"):
        joint.change(colour=1)
    assert joint.settings == joints.JointSettings()


def test_the_centre_is_the_middle_of_points_where_the_ct_shows_them(case):
    """In a CT below a turned transform, with a list in the world, and one that went with a bone that has moved."""
    left, right = case.make_bones()
    joint = add_joint(case.anatomy, left, right)
    places = np.array([[10.0, 20.0, 30.0], [20.0, 0.0, 10.0]])
    world = [nodes.transformed(case.first, place) for place in places]
    joint.center = points(case.scene, *world)
    groups = groups_of(case.anatomy, [left, right], "bodies")
    assert np.allclose(engine_joints(case.anatomy, groups)[0].center, (15.0, 10.0, 20.0))
    bone_landmarks.attach(joint.center, right, case.anatomy)
    right.move(case.anatomy, OFF)
    assert np.allclose(engine_joints(case.anatomy, groups)[0].center, (15.0, 10.0, 20.0))
    joint.center.RemoveAllControlPoints()
    with pytest.raises(SceneError, match="'centre', which has no point"):
        engine_joints(case.anatomy, groups)


def test_a_centre_whose_list_was_deleted_is_a_sentence(case, tmp_path):
    left, right = case.make_bones()
    joint = add_joint(case.anatomy, left, right, center=points(case.scene, (10.0, 20.0, 30.0)))
    groups = groups_of(case.anatomy, [left, right], "bodies")
    case.scene.RemoveNode(joint.center)
    assert joint.center is None and joint.lost_center == "centre"
    with pytest.raises(SceneError, match="had its centre in 'centre', which was deleted"):
        engine_joints(case.anatomy, groups)
    joint.center = points(case.scene, (1.0, 2.0, 3.0))
    assert engine_joints(case.anatomy, groups)[0].center is not None and joint.lost_center is None
    joint.center = None
    assert engine_joints(case.anatomy, groups)[0].center is None


def test_a_joint_within_what_stays_is_none_and_goes_with_its_bone(case):
    left, right = case.make_bones()
    add_joint(case.anatomy, left, right)
    left.locked = right.locked = True
    assert engine_joints(case.anatomy, groups_of(case.anatomy, [left, right], "carm")) == []
    left.locked = False
    (engine,) = engine_joints(case.anatomy, groups_of(case.anatomy, [left, right], "carm"))
    assert engine.bodies == ("left bone", "all else")  # what stays has one name for the engine
    before = case.scene.GetNumberOfNodesByClass("vtkMRMLScriptedModuleNode")
    remove_body(right)
    assert JointNode.of(case.anatomy) == []
    assert case.scene.GetNumberOfNodesByClass("vtkMRMLScriptedModuleNode") == before - 1


def test_joints_are_saved_with_the_scene(case, tmp_path):
    left, right = case.make_bones()
    joint = add_joint(case.anatomy, left, right, deviations=(1.0, 2.0, 3.0, None, None, 4.0), weight=0.5)
    joint.center = points(case.scene, (1, 2, 3))
    path = tmp_path / "scene.mrml"
    case.scene.SetURL(str(path))
    case.scene.SetRootDirectory(str(tmp_path))
    assert case.scene.Commit()
    case.scene.Clear(True)
    assert case.scene.Connect()
    again = list(BodyNode.all(case.scene))
    anatomy = _without_files(again[0])
    (joint,) = JointNode.of(anatomy)
    assert joint.name == "left bone – right bone" and joint.center.GetName() == "centre"
    assert joint.settings == joints.JointSettings((1.0, 2.0, 3.0, None, None, 4.0), weight=0.5)


def _without_files(body) -> Anatomy:
    """Of a scene whose volumes were not written: nothing asks for their voxels here."""
    anatomy = object.__new__(Anatomy)
    anatomy.ct, anatomy.labels = body.node.GetNodeReference("DiffDRR.ct"), body.labels
    return anatomy


def test_a_stiff_joint_keeps_the_bones_together_in_a_registration(scene):
    """The X-ray shows one bone moved; with 0.01 mm and degrees nothing but both together may move."""
    case = Case(scene, (0.0,), motions={1: Pose.identity(), 2: MOVED})
    set_rest(case.anatomy.ct, "left out")
    left, right = case.make_bones()
    joint = add_joint(case.anatomy, left, right, deviations=(0.01,) * 6, weight=1.0)
    _, run = case.run(target="bodies", similarity="zncc")
    change = left.pose(case.anatomy).inverse() @ right.pose(case.anatomy)
    assert float(change.translation.norm()) < 0.3 and torch.rad2deg(change.log()[:3].norm()) < 0.2
    nodes.remove_node(joint.node)
    for body in (left, right):
        body.put_back(case.anatomy)
    _, run = case.run(target="bodies", similarity="zncc")
    change = left.pose(case.anatomy).inverse() @ right.pose(case.anatomy)
    assert torch.rad2deg(change.log()[:3].norm()) > 2
    assert run.outcome.bones[0].name == "left bone"
