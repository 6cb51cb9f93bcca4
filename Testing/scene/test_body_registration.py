"""Bones registered in the scene: X-rays of bones that were moved by hand, and where the nodes end."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from DiffDRRCore import Pose, project
from Testing.scene import kit

slicer = pytest.importorskip("slicer")

from DiffDRRSlicerLib.scene import landmarks, nodes  # noqa: E402
from DiffDRRSlicerLib.scene.bodies import BodyNode, set_rest  # noqa: E402
from DiffDRRSlicerLib.scene.body_results import BONES, VIEWS, read_table, turns_and_shift  # noqa: E402
from DiffDRRSlicerLib.scene.carm import pixels_to_points  # noqa: E402
from DiffDRRSlicerLib.scene.errors import SceneError  # noqa: E402
from DiffDRRSlicerLib.scene.found_bodies import found_of  # noqa: E402
from DiffDRRSlicerLib.scene.handles import find_patient_transform  # noqa: E402
from DiffDRRSlicerLib.scene.registration import SceneRegistration  # noqa: E402
from DiffDRRSlicerLib.scene.view_settings import (  # noqa: E402
    ViewSettings,
    engine_options,
    set_view,
    used_carms,
    view_settings,
)
from Testing.scene.moved_bones import MOVED, OFF, QUICK, Case  # noqa: E402


@pytest.fixture
def case(scene):
    return Case(scene)


def test_a_bone_is_found_where_it_was_moved_and_all_else_stays(case):
    left, right = case.make_bones()
    left.locked = True
    before = [carm.pose.matrix for carm in case.carms]
    assert case.error(right) > 4
    progress, run = case.run(target="bodies")
    assert case.error(right) < 0.5 and not left.is_moved(case.anatomy)
    assert all(torch.equal(carm.pose.matrix, old) for carm, old in zip(case.carms, before, strict=True))
    assert progress[-1].text == "Done" and run.outcome.converged
    assert np.allclose(right.motion(case.anatomy)[:3, :3], MOVED.rotation, atol=0.02)


def test_a_bone_moves_step_by_step(case):
    _, right = case.make_bones()
    run, places = SceneRegistration(case.anatomy, case.carms, target="bodies", find_collimator=False, **QUICK), set()
    for _ in run.steps():
        places.add(right.motion(case.anatomy).tobytes())
    assert len(places) > 3


def test_the_search_begins_where_somebody_put_the_bone(scene):
    far = Pose.exp(torch.tensor([0.5, 0.3, -0.4, 20.0, -15.0, 25.0]).double())
    case = Case(scene, motions={0: Pose.identity(), 1: Pose.identity(), 2: far})
    left, right = case.make_bones()
    left.locked = True
    right.move(case.anatomy, OFF @ far)
    case.run(target="bodies")
    assert case.error(right) < 0.5


def test_the_c_arms_move_to_what_stays_and_the_bones_with_respect_to_it(case):
    left, right = case.make_bones()
    left.locked = True
    for carm in case.carms:
        carm.pose = OFF @ carm.pose
    assert case.error(left, number=1) > 2
    case.run(target="carm")
    assert not left.is_moved(case.anatomy)
    for view in (0, 1):
        assert case.error(right, view) < 0.5 and case.error(left, view, 1) < 0.5
        assert np.allclose(case.carms[view].pose.matrix, case.truths[view].matrix, atol=2.0)


def test_the_patient_moves_in_place_of_the_c_arms(case):
    left, right = case.make_bones()
    left.locked = True
    before = []
    for carm in case.carms:
        carm.pose = OFF @ carm.pose
        before.append(carm.pose.matrix)
    case.run(target="patient")
    assert all(torch.allclose(carm.pose.matrix, old) for carm, old in zip(case.carms, before, strict=True))
    patient = nodes.transform_to_world(find_patient_transform(case.anatomy))
    assert np.allclose(patient, OFF.matrix, atol=1.0) and not left.is_moved(case.anatomy)
    assert case.error(right) < 0.5 and case.error(left, number=1) < 0.5


@pytest.mark.parametrize("rest", ["first", "left out"])
def test_without_what_stays_the_first_bone_is_what_others_move_by(scene, rest):
    motions = {1: Pose.identity(), 2: MOVED} if rest == "left out" else None
    case = Case(scene, motions=motions)
    set_rest(case.anatomy.ct, rest)
    left, right = case.make_bones()
    for carm in case.carms:
        carm.pose = OFF @ carm.pose
    case.run(target="carm", similarity="zncc")
    assert not left.is_moved(case.anatomy)
    assert case.error(left, number=1) < 0.6 and case.error(right) < 0.6


def test_cancelling_keeps_the_best_place_so_far(case):
    _, right = case.make_bones()
    run = SceneRegistration(case.anatomy, case.carms, target="bodies", find_collimator=False, **QUICK)
    for progress in run.steps():
        if progress.level == 1 and right.is_moved(case.anatomy):
            run.cancel()
    assert right.is_moved(case.anatomy) and run.outcome is not None and "kept" in run.ending


def test_an_error_in_the_middle_puts_bones_and_c_arms_back(case, monkeypatch):
    _, right = case.make_bones()
    right.move(case.anatomy, OFF)
    before, places = case.carms[1].pose.matrix, []

    def fail(curve, *_):
        places.append(right.motion(case.anatomy))
        if len(places) == 4:
            raise SceneError("broken")

    monkeypatch.setattr("DiffDRRSlicerLib.scene.convergence.ConvergenceCurve.add", fail)
    with pytest.raises(SceneError, match="broken"):
        case.run()
    assert not np.allclose(places[-1], OFF.matrix, atol=1e-3)
    assert np.array_equal(right.motion(case.anatomy), OFF.matrix) and torch.equal(case.carms[1].pose.matrix, before)


def test_a_bone_that_is_deleted_ends_the_run(case):
    _, right = case.make_bones()
    run = SceneRegistration(case.anatomy, case.carms, target="bodies", find_collimator=False, **QUICK)
    for number, _ in enumerate(run.steps()):
        if number == 5:
            case.scene.RemoveNode(right.node)
    assert run.outcome is None and "deleted" in run.ending


def test_what_cannot_be_registered_is_a_sentence(case):
    with pytest.raises(SceneError, match="There are no bones to move"):
        case.run(target="bodies")
    left, right = case.make_bones()
    left.locked = right.locked = True
    with pytest.raises(SceneError, match="All bones are locked"):
        case.run(target="bodies")
    right.move(case.anatomy, OFF)
    with pytest.raises(SceneError, match="both stay, but have been moved apart"):
        case.run(target="carm")


def test_landmarks_go_with_what_is_in_no_bone(case):
    """The bone has moved, and the landmarks have not: a term for them leaves the bone alone and holds the C-arms."""
    case.make_bones()
    points = case.scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "on the CT")
    clicks = [landmarks.xray_landmarks(carm) for carm in case.carms]
    for number, offset in enumerate(([40, 0, 0], [-30, 40, 10], [0, -30, 40], [10, 20, -50])):
        place = case.anatomy.center + np.array(offset)
        points.AddControlPointWorld(*place, f"L{number}")
        for carm, truth, clicked in zip(case.carms, case.truths, clicks, strict=True):
            uv = project(carm.camera, truth, torch.from_numpy(place)[None])[0].numpy()
            clicked.AddControlPoint(*pixels_to_points(carm.camera, uv)[0], f"L{number}")
    for carm in case.carms:
        carm.pose = OFF @ carm.pose
    _, run = case.run(landmarks=(points, clicks))
    for view in run.outcome.views:
        assert view.landmarks.rms_anatomy_mm < 0.7
    assert case.error(BodyNode.of(case.anatomy)[1]) < 0.7


def test_files_of_a_result_have_the_motion_of_each_bone(case, tmp_path):
    left, right = case.make_bones()
    left.locked = True
    _, run = case.run(target="bodies")
    names = {path.name for path in run.outcome.save(tmp_path)}
    assert {"right_bone_motion.h5", "right_bone_motion.tfm", "left_bone_motion.h5", "all_else_motion.tfm"} <= names
    import SimpleITK

    # ITK's own reader: from points of the fixed to the moving image, in LPS
    saved = SimpleITK.ReadTransform(str(tmp_path / "right_bone_motion.tfm"))
    flip = np.array([-1.0, -1.0, 1.0])
    moved = flip * saved.GetInverse().TransformPoint((flip * (10.0, 20.0, 30.0)).tolist())
    assert np.allclose(moved, kit.apply(right.motion(case.anatomy), (10.0, 20.0, 30.0)), atol=1e-6)


def test_the_tables_say_where_bones_are_and_how_sure(case):
    left, right = case.make_bones()
    left.locked = True
    _, run = case.run(target="bodies")
    rows = {row["bone"]: row for row in read_table(case.carms[0], BONES)}
    assert list(rows) == ["right bone", "left bone", "all else"]
    assert rows["left bone"]["moved"] == rows["all else"]["moved"] == "held"
    assert rows["left bone"]["shift S, mm"] == 0 and rows["left bone"]["expected error worst, mm"] == 0
    row, found = rows["right bone"], run.outcome.result.body("right bone")
    # turns first about R, then A, then S, about the pivot: put together again by plain matrices
    turns = [np.deg2rad(row[f"turn about {axis}, deg"]) for axis in "RAS"]
    rotation = _about(2, turns[2]) @ _about(1, turns[1]) @ _about(0, turns[0])
    motion = right.motion(case.anatomy)
    assert np.allclose(rotation, motion[:3, :3], atol=1e-9)
    shift = kit.apply(motion, found.about.numpy()) - found.about.numpy()
    assert np.allclose([row[f"shift {axis}, mm"] for axis in "RAS"], shift, atol=1e-9)
    deviations = [row[f"deviation about {axis}, deg"] for axis in "RAS"]
    assert np.allclose(deviations, np.rad2deg(np.sqrt(np.diag(found.covariance.numpy())[:3])))
    points = [right.surface.GetPolyData().GetPoint(n) for n in range(right.surface.GetPolyData().GetNumberOfPoints())]
    errors = [_error(found, np.array(point)) for point in points[::7]]
    assert row["expected error median, mm"] == pytest.approx(np.median(errors), rel=0.05)
    assert max(errors) <= row["expected error worst, mm"] * 1.0001 <= 1.2 * max(errors)
    views = read_table(case.carms[0], VIEWS)
    assert [view["X-ray"] for view in views] == ["View 0", "View 80"]
    assert np.mean([view["similarity"] for view in views]) == pytest.approx(run.outcome.similarity[1], abs=0.01)
    for view in views:  # of a correlation r, gain and offset leave sqrt(1 - r^2)
        assert view["residual, %"] == pytest.approx(100 * np.sqrt(1 - view["similarity"] ** 2), rel=0.02)
    assert run.outcome.to_dict()["bones"][0]["name"] == "right bone"


def _about(axis, angle):
    a, b = [other for other in range(3) if other != axis]
    matrix = np.eye(3)
    matrix[a, a] = matrix[b, b] = np.cos(angle)
    matrix[a, b], matrix[b, a] = -np.sin(angle), np.sin(angle)
    return matrix if axis != 1 else matrix.T


def _error(found, point) -> float:
    """mm, from random draws of the covariance's square root; here exactly, by its columns."""
    arm, values, vectors = point - found.about.numpy(), *np.linalg.eigh(found.covariance.numpy())
    columns = vectors * np.sqrt(np.clip(values, 0, None))
    return float(np.sqrt(sum(np.sum((np.cross(c[:3], arm) + c[3:]) ** 2) for c in columns.T)))


def test_the_ct_as_one_has_a_row_too_and_old_rows_go(scene):
    case = Case(scene, motions=dict.fromkeys(range(3), Pose.identity()))
    case.carms[0].pose = OFF @ case.carms[0].pose
    _, run = case.run(case.carms[0])
    (row,) = read_table(case.carms[0], BONES)
    assert row["bone"] == "CT" and row["moved"] == "free"
    motion = run.outcome.result.patient_motion
    assert np.allclose(
        [row[f"shift {axis}, mm"] for axis in "RAS"], turns_and_shift(motion, run.outcome.result.about)[1]
    )
    assert found_of(case.anatomy.ct) is not None
    _, right = case.make_bones()
    right.move(case.anatomy, OFF)
    case.run(target="bodies")
    assert found_of(case.anatomy.ct) is None and found_of(right.node) is not None
    assert torch.allclose(found_of(right.node).covariance.mT, found_of(right.node).covariance)


def test_x_rays_that_are_not_calibrated_are_found_one_by_one(scene):
    case = Case(scene, motions=dict.fromkeys(range(3), Pose.identity()))
    case.carms[0].pose = OFF @ case.carms[0].pose
    case.carms[1].pose = OFF.inverse() @ case.carms[1].pose
    set_view(case.carms[1], free=True, degrees=10.0, mm=30.0)
    _, run = case.run()
    for carm, truth in zip(case.carms, case.truths, strict=True):
        seen = [pose.inverse().transform(torch.from_numpy(case.anatomy.center)[None])[0] for pose in (carm.pose, truth)]
        assert float((seen[0] - seen[1])[:2].norm()) < 0.7
    assert [fit.free for fit in run.outcome.fits] == [False, True]


def test_free_c_arms_stay_where_only_bones_move_but_for_their_own_motion(scene):
    case = Case(scene)
    left, right = case.make_bones()
    left.locked = True
    first = case.carms[0].pose.matrix
    case.carms[1].pose = OFF @ case.carms[1].pose
    set_view(case.carms[1], free=True)
    case.run(target="bodies")
    assert torch.equal(case.carms[0].pose.matrix, first)
    assert case.error(right, 0) < 1.5 and case.error(right, 1) < 1.5


def test_settings_of_x_rays_are_kept_and_checked(scene):
    case = Case(scene)
    one, two = case.carms
    assert view_settings(one) == ViewSettings() and used_carms(one) == [one] and engine_options(case.carms) == {}
    set_view(two, use=True, weight=2.5, free=True, degrees=0.0)
    assert view_settings(two) == ViewSettings(True, 2.5, True, 0.0, 20.0)
    assert used_carms(one) == [one, two] and used_carms(two) == [two]
    options = engine_options(case.carms)
    assert options["view_weights"] == [1.0, 2.5] and options["free_views"][0] is None
    assert options["free_views"][1].deviations == (None, None, None, 20.0, 20.0, 20.0)
    with pytest.raises(SceneError, match="above 0"):
        set_view(two, weight=0.0)
    with pytest.raises(SceneError, match="0 or more degrees"):
        set_view(two, mm=-1.0)
    with pytest.raises(SceneError, match="no setting 'colour'"):
        set_view(two, colour=1)
    assert view_settings(two).weight == 2.5


def test_a_single_x_ray_leaves_the_depth_of_each_bone_in_doubt(scene):
    case = Case(scene, (0.0,))
    left, right = case.make_bones()
    set_rest(case.anatomy.ct, "left out")
    _, run = case.run(target="bodies")
    doubts = [text for text in run.outcome.warnings if "The images determine" in text]
    depths = {found.name: _depth(found, case) for found in run.outcome.result.bodies}
    assert {name for name, depth in depths.items() if depth > 2} == {text.split("'")[1] for text in doubts}
    assert set(depths) == {left.name, right.name}


def _depth(found, case) -> float:
    """mm, standard deviation along the beam."""
    beam = case.anatomy.pose_in_volume(case.carms[0].pose).rotation[:, 2]
    return float((beam @ found.covariance[3:, 3:] @ beam).sqrt())
