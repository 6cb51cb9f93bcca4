"""Landmark pairs, their errors by independent projection, and the pose they give."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from DiffDRRCore import Camera, CArm
from DiffDRRCore.errors import RegistrationError
from Testing.scene import kit

slicer = pytest.importorskip("slicer")

from DiffDRRSlicerLib.scene import landmarks, poses  # noqa: E402
from DiffDRRSlicerLib.scene.carm import CArmNode, pixels_to_points  # noqa: E402
from DiffDRRSlicerLib.scene.errors import SceneError  # noqa: E402

POINTS = np.array([[0, 0, 0], [60, 5, -20], [-50, 30, 10], [20, -40, 55], [-30, -25, -45], [45, 35, 30.0]])
LABELS = ["top", "left", "right", "tip", "base", "screw"]


def a_carm(scene, view_from="detector") -> CArmNode:
    arm = CArm(1000.0, 700.0, (5.0, -7.0, 11.0), 23.0, -12.0, 8.0)
    camera = Camera(400, 500, (0.9, 0.7), 1000.0, (240.0, 210.0), view_from)
    return CArmNode.create(scene, camera, arm.pose, 700.0)


def clicks(carm, points) -> np.ndarray:
    """Pixels by plain matrices."""
    local = kit.apply(np.linalg.inv(carm.pose.matrix.numpy()), points)
    return (local / local[:, 2:] @ carm.camera.K.numpy().T)[:, :2]


def fill(markups, labels, points, world=False):
    for label, point in zip(labels, points, strict=True):
        (markups.AddControlPointWorld if world else markups.AddControlPoint)(*point, label)
    return markups


def ct_list(scene, points=POINTS, labels=LABELS, parent=None):
    markups = scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "CT landmarks")
    if parent is not None:
        markups.SetAndObserveTransformNodeID(parent.GetID())
    return fill(markups, labels, points, world=True)


def case(scene, view_from="detector"):
    """A C-arm, six points below a moved patient, and exact clicks in another order."""
    carm = a_carm(scene, view_from)
    patient = kit.add_transform(scene, kit.rigid(np.random.default_rng(0)))
    inner = kit.add_transform(scene, kit.rigid(np.random.default_rng(1)), patient)
    ct = ct_list(scene, parent=inner)
    xray = landmarks.xray_landmarks(carm)
    order = [3, 0, 5, 1, 4, 2]
    fill(xray, [LABELS[n] for n in order], pixels_to_points(carm.camera, clicks(carm, POINTS)[order]))
    return carm, ct, xray


def test_the_list_of_an_xray_is_made_once_below_the_plane(scene):
    carm = a_carm(scene)
    markups = landmarks.xray_landmarks(carm)
    assert markups.GetParentTransformNode() is carm.referred("plane")
    assert landmarks.xray_landmarks(CArmNode(carm.node)) is markups
    markups.AddControlPoint(0, 0, 0)
    assert markups.GetNthControlPointLabel(0) == "L-1"


@pytest.mark.parametrize("view_from", ["source", "detector"])
def test_exact_clicks_have_no_error_and_stay_on_their_pixels(scene, view_from):
    carm, ct, xray = case(scene, view_from)
    assert landmarks.reprojection_errors(carm, ct, xray).rms_pixels < 1e-6
    clicked = landmarks.paired_points(carm, ct, xray)[2]
    carm.set_depth(333.0)
    poses.apply_preset(carm, "AP")
    assert np.allclose(landmarks.paired_points(carm, ct, xray)[2], clicked, atol=1e-6)


def test_errors_in_pixels_on_the_detector_and_at_the_anatomy(scene):
    carm, ct, xray = case(scene)
    pixels = clicks(carm, POINTS)
    off = pixels.copy()
    off[0] += (3.0, -4.0)  # columns of 0.7 mm, rows of 0.9 mm
    xray.RemoveAllControlPoints()
    fill(xray, LABELS, pixels_to_points(carm.camera, off))
    errors = landmarks.reprojection_errors(carm, ct, xray)
    depth = kit.apply(np.linalg.inv(carm.pose.matrix.numpy()), POINTS)[0, 2]
    on_detector = np.hypot(3 * 0.7, 4 * 0.9)
    first = errors.rows[0]
    assert first.label == "top" and first.pixels == pytest.approx(5, abs=1e-6)
    assert first.detector_mm == pytest.approx(on_detector, abs=1e-6)
    assert first.anatomy_mm == pytest.approx(on_detector * depth / 1000, abs=1e-6)
    assert errors.rms_pixels == pytest.approx(5 / np.sqrt(6), abs=1e-6)
    assert errors.rms_anatomy_mm == pytest.approx(first.anatomy_mm / np.sqrt(6), abs=1e-6)
    assert len(errors.rows) == 6 and all(row.pixels < 1e-6 for row in errors.rows[1:])


def test_no_pairs_no_errors(scene):
    carm = a_carm(scene)
    errors = landmarks.reprojection_errors(carm, ct_list(scene), landmarks.xray_landmarks(carm))
    assert errors.rows == [] and np.isnan(errors.rms_pixels)


def test_points_in_space_stand_for_their_rays(scene):
    carm, ct, _ = case(scene)
    source = carm.pose.translation.numpy()
    elsewhere = scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "free")
    elsewhere.SetAndObserveTransformNodeID(kit.add_transform(scene, kit.rigid(np.random.default_rng(5))).GetID())
    fill(elsewhere, LABELS, source + 0.6 * (POINTS - source), world=True)
    assert landmarks.reprojection_errors(carm, ct, elsewhere).rms_pixels < 1e-6
    elsewhere.SetNthControlPointPositionWorld(0, *(source - 0.1 * (POINTS[0] - source)))
    assert np.isnan(landmarks.reprojection_errors(carm, ct, elsewhere).rows[0].pixels)


def test_align_finds_the_pose_from_far_away(scene):
    carm, ct, xray = case(scene)
    truth = carm.pose.matrix
    poses.apply_preset(carm, "Left lateral")
    report = landmarks.align(carm, ct, xray)
    assert torch.allclose(carm.pose.matrix, truth, atol=1e-4)
    assert sorted(report.used) == sorted(LABELS) and report.wrong == [] and report.rms_pixels < 1e-3
    assert "Aligned to 6 landmarks" in report.text


def test_a_wrong_click_is_named_and_left_out(scene):
    carm, ct, xray = case(scene)
    truth = carm.pose.matrix
    wrong = next(n for n in range(6) if xray.GetNthControlPointLabel(n) == "tip")
    x, y, z = xray.GetNthControlPointPosition(wrong)
    xray.SetNthControlPointPosition(wrong, x + 40.0, y - 30.0, z)
    poses.apply_preset(carm, "AP")
    report = landmarks.align(carm, ct, xray)
    assert report.wrong == ["tip"] and "do not fit the others: tip" in report.text
    assert torch.allclose(carm.pose.matrix, truth, atol=1e-4)


def test_three_pairs_take_the_present_pose_as_prior(scene):
    carm, ct, xray = case(scene)
    truth = carm.pose
    for label in ("base", "screw", "tip"):
        xray.RemoveNthControlPoint([xray.GetNthControlPointLabel(n) for n in range(6)].index(label))
    carm.pose = truth.retract([0.05, -0.04, 0.03, 8.0, -6.0, 10.0], about=[0.0, 0, 0])
    report = landmarks.align(carm, ct, xray)
    assert torch.allclose(carm.pose.matrix, truth.matrix, atol=1e-3)
    assert "add a fourth" in report.text


def test_too_few_pairs_are_told_with_what_is_missing(scene):
    carm, ct, xray = case(scene)
    for _ in range(4):
        xray.RemoveNthControlPoint(0)
    fill(xray, ["extra"], [[0, 0, 1000.0]])
    before = carm.pose.matrix
    assert landmarks.missing_pairs(ct, xray) == (["top", "left", "tip", "screw"], ["extra"])
    with pytest.raises(SceneError, match=r"there are 2\. Not placed in the X-ray: top.*Not placed in the CT: extra"):
        landmarks.align(carm, ct, xray)
    assert torch.equal(carm.pose.matrix, before)


def test_landmarks_that_make_no_pose_move_nothing(scene):
    carm = a_carm(scene)
    line = np.outer(np.arange(4), [10.0, 5.0, 2.0])
    ct = ct_list(scene, line, LABELS[:4])
    xray = fill(landmarks.xray_landmarks(carm), LABELS[:4], pixels_to_points(carm.camera, clicks(carm, line)))
    before = carm.pose.matrix
    with pytest.raises(RegistrationError, match="one line"):
        landmarks.align(carm, ct, xray)
    assert torch.equal(carm.pose.matrix, before)


def test_points_that_are_not_placed_are_missing_not_zero(scene):
    _, ct, xray = case(scene)
    ct.SetNthControlPointPositionMissing(0)
    xray.UnsetNthControlPointPosition(1)
    assert "top" not in [pair.label for pair in landmarks.pairs(ct, xray)]
    assert len(landmarks.pairs(ct, xray)) == 5  # point 1 of the X-ray is "top" too
    assert landmarks.missing_pairs(ct, xray) == ([], [])


def test_a_label_twice_and_no_list_are_one_sentence(scene):
    carm, ct, xray = case(scene)
    xray.SetNthControlPointLabel(0, "top ")
    with pytest.raises(SceneError, match="'top' is used more than once in 'C-arm landmarks'"):
        landmarks.pairs(ct, xray)
    with pytest.raises(SceneError, match="landmarks in the X-ray first"):
        landmarks.pairs(ct, None)
    with pytest.raises(SceneError, match="landmarks in the CT first"):
        landmarks.align(carm, None, xray)
