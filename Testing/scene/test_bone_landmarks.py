"""Points of a bone: they go where it goes, and hold it in a registration."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from DiffDRRCore import project

slicer = pytest.importorskip("slicer")

from DiffDRRSlicerLib.scene import bone_landmarks, landmarks, nodes  # noqa: E402
from DiffDRRSlicerLib.scene.body_groups import groups_of  # noqa: E402
from DiffDRRSlicerLib.scene.body_parts import remove_body  # noqa: E402
from DiffDRRSlicerLib.scene.carm import pixels_to_points  # noqa: E402
from DiffDRRSlicerLib.scene.errors import SceneError  # noqa: E402
from Testing.scene import kit  # noqa: E402
from Testing.scene.moved_bones import MOVED, OFF, Case  # noqa: E402

PLACES = np.array([[40.0, 10, -20], [60.0, -20, 10], [30.0, 30, 30], [50.0, -10, -40]])


@pytest.fixture
def case(scene):
    return Case(scene)


def add_points(case, name="knee", labels="ABCD"):
    """Where the CT shows them, in the world."""
    markups = case.scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", name)
    for place, label in zip(kit.apply(case.first, PLACES), labels, strict=True):
        markups.AddControlPointWorld(*place, label)
    return markups


def world(markups):
    return landmarks.points_in_world(markups, range(markups.GetNumberOfControlPoints()))


def click(case, motion, labels="ABCD"):
    """Points on the X-rays where the truth shows them, by plain matrices."""
    lists = []
    for carm, truth in zip(case.carms, case.truths, strict=True):
        clicked = landmarks.xray_landmarks(carm)
        seen = kit.apply(case.first @ motion.matrix.numpy(), PLACES)
        uv = project(carm.camera, truth, torch.from_numpy(seen))[0].numpy()
        for label, point in zip(labels, pixels_to_points(carm.camera, uv), strict=True):
            clicked.AddControlPoint(*point, label)
        lists.append(clicked)
    return lists


def test_points_go_with_the_bone_and_stay_on_the_ct_when_it_is_gone(case):
    _, right = case.make_bones()
    markups = add_points(case)
    before = world(markups)
    bone_landmarks.attach(markups, right, case.anatomy)
    assert np.allclose(world(markups), before) and bone_landmarks.owner(markups) == right
    right.move(case.anatomy, MOVED)
    assert np.allclose(world(markups), kit.apply(case.first @ MOVED.matrix.numpy(), PLACES))
    found = bone_landmarks.points_in_ct(case.anatomy, markups, range(4))
    assert np.allclose(found, PLACES)
    bone_landmarks.detach(markups, case.anatomy)
    assert np.allclose(world(markups), before) and bone_landmarks.owner(markups) is None
    bone_landmarks.attach(markups, right, case.anatomy)  # that of a bone that has moved already
    assert np.allclose(world(markups), kit.apply(case.first @ MOVED.matrix.numpy(), PLACES))
    remove_body(right)
    assert np.allclose(world(markups), before)


def test_the_engine_is_told_whose_points_they_are(case):
    left, right = case.make_bones()
    ours, theirs = add_points(case), add_points(case, "hip", "EFGH")
    bone_landmarks.attach(ours, right, case.anatomy)
    right.move(case.anatomy, OFF)
    clicked = click(case, MOVED)
    for one, other in zip(click(case, MOVED, "EFGH"), clicked, strict=True):
        assert one is other
    groups = groups_of(case.anatomy, [left, right], "carm")
    lists = bone_landmarks.lists_with(theirs, [left, right])
    assert lists == [theirs, ours]
    term = bone_landmarks.landmark_term(case.anatomy, groups, case.carms, lists, clicked)
    assert term.bodies == ["all else"] * 4 + ["right bone"] * 4
    assert np.allclose(term.points_3d, np.concatenate([PLACES, PLACES]))
    alone = bone_landmarks.landmark_term(case.anatomy, [], case.carms, lists, clicked)
    assert alone.bodies is None and np.allclose(alone.points_3d, term.points_3d)


def test_landmarks_of_a_bone_bring_it_to_where_the_image_says_too(case):
    """Clicked where the bone has moved to: with a heavy weight they and the image agree, and the rest stays."""
    left, right = case.make_bones()
    left.locked = True
    markups = add_points(case)
    bone_landmarks.attach(markups, right, case.anatomy)
    clicked = click(case, MOVED)
    before = [carm.pose.matrix for carm in case.carms]
    _, run = case.run(target="bodies", landmarks=([markups], clicked), sizes=(32,), max_steps=10)
    assert case.error(right) < 0.5
    assert all(torch.equal(carm.pose.matrix, old) for carm, old in zip(case.carms, before, strict=True))
    for view in run.outcome.views:  # measured where the bone is now
        assert view.landmarks.rms_anatomy_mm < 0.5 and len(view.landmarks.rows) == 4


def test_a_label_in_two_lists_is_a_sentence(case):
    left, right = case.make_bones()
    ours, theirs = add_points(case), add_points(case, "hip")
    bone_landmarks.attach(ours, right, case.anatomy)
    with pytest.raises(SceneError, match="'A' is in 'hip' and in 'knee'"):
        case.run(target="bodies", landmarks=([theirs, ours], click(case, MOVED)))
    with pytest.raises(SceneError, match="has points on an X-ray"):
        bone_landmarks.attach(landmarks.xray_landmarks(case.carms[0]), left, case.anatomy)
    with pytest.raises(SceneError, match="Choose a list"):
        bone_landmarks.attach(None, left, case.anatomy)


def test_points_without_labels_are_in_no_two_lists(case):
    lists = add_points(case, labels=("A", "", " ", "B")), add_points(case, "hip", labels=("C", "", " ", "D"))
    bone_landmarks.check_labels(lists)
    lists[1].SetNthControlPointLabel(1, "A")
    with pytest.raises(SceneError, match="'A' is in"):
        bone_landmarks.check_labels(lists)


def test_points_under_a_scaled_ct_are_found_where_the_ct_shows_them(scene):
    case = Case(scene, (0.0,))
    _, right = case.make_bones()
    markups = add_points(case)
    scale = np.diag([1.3, 0.8, 1.0, 1.0])
    nodes.set_transform_to_parent(case.anatomy.ct.GetParentTransformNode(), scale)
    bone_landmarks.attach(markups, right, case.anatomy)
    rest = world(markups)
    right.move(case.anatomy, OFF)
    assert np.allclose(world(markups), kit.apply(OFF.matrix.numpy(), rest), atol=1e-6)
    assert np.allclose(bone_landmarks.points_in_ct(case.anatomy, markups, range(4)), rest, atol=1e-6)
