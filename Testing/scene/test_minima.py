"""Other answers of a registration to go to; what is stale after bones were moved, renamed or deleted; bad input."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import slicer.util
import torch

from DiffDRRCore import Pose
from DiffDRRSlicerLib.scene import nodes
from DiffDRRSlicerLib.scene.body_groups import groups_of
from DiffDRRSlicerLib.scene.body_parts import remove_body
from DiffDRRSlicerLib.scene.body_results import BONES, follow_bones, read_table
from DiffDRRSlicerLib.scene.error_map import expected_errors, has_errors, show_error_map
from DiffDRRSlicerLib.scene.errors import SceneError
from DiffDRRSlicerLib.scene.found_bodies import is_found
from DiffDRRSlicerLib.scene.minima import minima_of
from DiffDRRSlicerLib.scene.placement import Placement
from DiffDRRSlicerLib.scene.view_settings import set_view
from DiffDRRSlicerLib.scene.xrays import add_xray
from Testing.scene.moved_bones import OFF, Case

pytest.importorskip("slicer")

OTHER = Pose.exp(torch.tensor([0.2, -0.1, 0.3, 12.0, -8.0, 20.0]).double())


class Answers:
    """A run's result with one alternative, where the nodes were at the start."""

    def __init__(self, case, target, **options):
        self.case = case
        self.groups = groups_of(case.anatomy, case.bodies, target) if case.bodies else []
        self.placement = Placement(case.anatomy, case.carms, self.groups, target)
        _, run = case.run(target=target, sizes=(32,), max_steps=3, **options)
        self.result = replace(run.outcome.result, alternatives=[{"similarity": 0.75, "motion": OTHER.matrix.tolist()}])

    def minima(self):
        return minima_of(self.result, self.groups, self.placement)


@pytest.fixture
def case(scene):
    case = Case(scene)
    case.bodies = []
    return case


def in_camera(case, node_matrix):
    """The rest of the CT [4, 4] in the first camera."""
    return np.linalg.inv(case.carms[0].pose.matrix.numpy()) @ node_matrix


def test_another_answer_is_the_start_seen_by_a_c_arm_that_moved_so(case):
    """A motion G of the C-arms from where they began, in the CT's coordinates; by plain matrices."""
    starts = [carm.pose.matrix.numpy() for carm in case.carms]
    answers = Answers(case, "carm")
    there = [carm.pose.matrix.numpy() for carm in case.carms]
    found, other = answers.minima()
    assert all(np.allclose(c.pose.matrix, m, atol=1e-6) for c, m in zip(case.carms, there, strict=True))
    assert found.similarity is None and found.turn == found.shift == 0 and other.similarity == 0.75
    other.apply(case.scene)
    for carm, start in zip(case.carms, starts, strict=True):
        wanted = case.first @ OTHER.matrix.numpy() @ np.linalg.inv(case.first) @ start
        assert np.allclose(carm.pose.matrix, wanted, atol=1e-6)
    change = there[0] @ np.linalg.inv(starts[0])
    between = np.linalg.inv(case.first @ OTHER.matrix.numpy() @ np.linalg.inv(case.first)) @ change
    assert other.turn == pytest.approx(np.degrees(np.arccos((np.trace(between[:3, :3]) - 1) / 2)), abs=1e-6)
    found.apply(case.scene)
    assert all(np.allclose(c.pose.matrix, m, atol=1e-6) for c, m in zip(case.carms, there, strict=True))


@pytest.mark.parametrize("target", ["bodies", "patient"])
def test_another_answer_moves_what_the_registration_moves(case, target):
    """Seen from the C-arm, all that is free stands to it as in the CT to a C-arm that moved by G."""
    case.bodies = left, right = case.make_bones()
    if target == "bodies":
        left.locked = True
    carms = [carm.pose.matrix for carm in case.carms]
    start = in_camera(case, case.first)
    answers = Answers(case, target)
    answers.minima()[1].apply(case.scene)
    assert all(torch.allclose(c.pose.matrix, old) for c, old in zip(case.carms, carms, strict=True))
    wanted = start @ np.linalg.inv(OTHER.matrix.numpy())
    assert np.allclose(in_camera(case, nodes.transform_to_world(right.node)), wanted, atol=1e-5)
    if target == "bodies":
        assert not left.is_moved(case.anatomy)
    else:
        assert np.allclose(in_camera(case, nodes.parent_to_world(case.anatomy.ct)), wanted, atol=1e-5)


def test_another_answer_is_not_gone_to_when_the_ct_was_moved_or_hangs_elsewhere(case):
    answers = Answers(case, "carm")
    other, above = answers.minima()[1], case.anatomy.ct.GetParentTransformNode()
    places = [carm.to_world for carm in case.carms]
    place = nodes.transform_to_parent(above)
    nodes.set_transform_to_parent(above, OTHER.matrix.numpy() @ place)
    with pytest.raises(SceneError, match="'CT' hangs below was moved or changed since"):
        other.apply(case.scene)
    nodes.set_transform_to_parent(above, place)
    case.carms[1].node.SetAndObserveTransformNodeID(above.GetID())
    with pytest.raises(SceneError, match="'View 80' hangs below was moved or changed since"):
        other.apply(case.scene)
    case.carms[1].node.SetAndObserveTransformNodeID(None)
    assert all(np.allclose(carm.to_world, old) for carm, old in zip(case.carms, places, strict=True))
    other.apply(case.scene)
    assert not np.allclose(case.carms[0].to_world, places[0], atol=1.0)
    case.scene.RemoveNode(case.anatomy.ct)
    with pytest.raises(SceneError, match="CT of that answer was deleted"):
        other.apply(case.scene)


def test_bones_that_began_apart_have_other_answers_of_the_first(case):
    case.bodies = left, right = case.make_bones()
    right.move(case.anatomy, OFF)
    answers = Answers(case, "bodies")
    answers.minima()[1].apply(case.scene)
    assert np.allclose(left.motion(case.anatomy), OTHER.inverse().matrix, atol=1e-6)
    assert np.allclose(right.motion(case.anatomy), OFF.matrix, atol=1e-6)
    other = answers.minima()[1]
    case.scene.RemoveNode(right.node)
    with pytest.raises(SceneError, match="was deleted"):
        other.apply(case.scene)


def test_without_alternatives_there_is_one_answer_which_is_not_listed(case):
    _, run = case.run(sizes=(32,), max_steps=3)
    expected = len(run.outcome.result.alternatives)
    assert len(run.outcome.minima) == (expected + 1 if expected else 0)


def test_the_error_map_is_of_where_things_were_found(case):
    left, right = case.make_bones()
    left.locked = True
    case.run(target="bodies", sizes=(32,), max_steps=3)
    assert is_found(right.node) and not is_found(left.node) and has_errors(case.anatomy)
    assert show_error_map(case.anatomy) == [right.surface]
    motion = right.pose(case.anatomy)
    right.move(case.anatomy, OFF @ motion)
    assert not has_errors(case.anatomy)
    with pytest.raises(SceneError, match="'right bone' or a C-arm was moved since"):
        expected_errors(case.anatomy, np.zeros((1, 3)), right)
    right.move(case.anatomy, motion)
    assert has_errors(case.anatomy)
    above = case.anatomy.ct.GetParentTransformNode()  # bone and C-arms together: nothing has changed
    turn = OTHER.matrix.numpy()
    nodes.set_transform_to_parent(above, turn @ nodes.transform_to_parent(above))
    assert not has_errors(case.anatomy)
    for carm in case.carms:
        carm.pose = OTHER @ carm.pose
    assert has_errors(case.anatomy)
    case.scene.RemoveNode(case.carms[1].node)
    assert not has_errors(case.anatomy)


def test_results_follow_names_and_say_what_is_gone(case):
    left, right = case.make_bones()
    _, run = case.run(target="bodies", sizes=(32,), max_steps=3)
    carm, outcome = case.carms[0], run.outcome
    right.name = "tibia"
    follow_bones(carm)
    assert [row["bone"] for row in read_table(carm, BONES)] == ["left bone", "tibia", "all else"]
    now = outcome.following(case.scene)
    assert [bone.name for bone in now.bones] == ["left bone", "tibia", "all else"] and now.holds(carm, case.anatomy.ct)
    assert now.following(case.scene) is now
    right.move(case.anatomy, OFF)
    assert not now.holds(carm, case.anatomy.ct)
    remove_body(left)
    for _ in range(2):
        follow_bones(carm)
    assert [row["bone"] for row in read_table(carm, BONES)] == ["left bone (removed)", "tibia", "all else"]
    assert not outcome.holds(carm, case.anatomy.ct)


def test_views_that_cannot_be_registered_are_a_sentence_with_their_names(case):
    one, two = case.carms
    start = one.pose.matrix
    again = add_xray(case.scene, nodes.get_image(one.referred("xray")), one.camera, two.pose, one.meta, "Copy", 600.0)
    with pytest.raises(SceneError, match="'View 0' and 'Copy' are the same X-ray"):
        case.run([one, again])
    with pytest.raises(SceneError, match="'View 0' and 'View 0' are the same X-ray"):
        case.run([one, one])
    two.pose = one.pose
    with pytest.raises(SceneError, match="'View 0' and 'View 80' are different X-rays, but their C-arms stand at"):
        case.run()
    for carm in case.carms:
        set_view(carm, free=True)
    with pytest.raises(SceneError, match="All C-arms are free"):
        case.run()
    assert torch.equal(one.pose.matrix, start)


def test_bones_that_cannot_be_registered_are_a_sentence_with_their_names(case):
    left, right = case.make_bones()
    right.move(case.anatomy, Pose.exp(torch.tensor([0.0, 0, 0, 900.0, 0, 0]).double()))
    with pytest.raises(SceneError, match="'right bone' lies outside of all X-rays where it is now"):
        case.run(target="bodies")
    with pytest.raises(SceneError, match="'right bone' lies outside of the X-ray"):
        case.run(case.carms[:1], target="bodies")
    right.put_back(case.anatomy)
    voxels = slicer.util.arrayFromVolume(case.anatomy.labels)
    voxels[voxels == 2] = 0
    slicer.util.arrayFromVolumeModified(case.anatomy.labels)
    with pytest.raises(SceneError, match="'right bone' is made of 'right bone', which 'labels' does not have"):
        case.run(target="bodies")
    assert not left.is_moved(case.anatomy)


def test_a_locked_bone_may_lie_outside_of_the_x_rays(case):
    left, right = case.make_bones()
    left.move(case.anatomy, Pose.exp(torch.tensor([0.0, 0, 0, 900.0, 0, 0]).double()))
    with pytest.raises(SceneError, match="'left bone' lies outside"):
        case.run(target="bodies")
    left.locked = True
    _, run = case.run(target="bodies", sizes=(32,), max_steps=3)
    assert run.outcome is not None and right.is_moved(case.anatomy)
