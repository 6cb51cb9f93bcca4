"""Registration end to end on a small phantom; the X-rays are the other integrator's, with noise, gain and offset."""

from __future__ import annotations

import math

import pytest
import SimpleITK as sitk
import torch

from DiffDRRCore import CArm, Pose, Registration, RegistrationResult, Renderer, Volume, XRay, register
from DiffDRRCore.datasets import phantom, phantom_landmarks
from DiffDRRCore.datasets.simulated import points_in_bone, simulated_xray
from DiffDRRCore.errors import DiffDRRWarning, ReadError, RegistrationError
from DiffDRRCore.evaluation import target_registration_error
from DiffDRRCore.geometry import project
from DiffDRRCore.registration import Landmarks, Limits
from DiffDRRCore.similarity import LNCC, GradientNCC, MutualInformation

SMALL = {"sizes": (32, 64)}
AWAY = [0.09, -0.06, 0.07, 7.0, -8.0, 6.0]


@pytest.fixture(scope="module")
def volume() -> Volume:
    return phantom(shape=(84, 64, 84), spacing=4.0)


def view(volume: Volume, primary=10.0, secondary=5.0, seed=0, view_from="detector") -> XRay:
    """66 x 64 pixels that are not square."""
    carm = CArm(1000.0, 700.0, volume.center, primary, secondary)
    return simulated_xray(volume, carm.camera(66, 64, (5.5, 6.0), view_from), carm.pose, seed=seed)


def error(volume: Volume, found: Pose, xray: XRay) -> float:
    return float(target_registration_error(found, xray.pose, points_in_bone(volume)))


def away(volume: Volume, xray: XRay, xi=AWAY) -> Pose:
    return xray.pose.retract(xi, about=volume.center)


@pytest.mark.parametrize(
    ("options", "limit"),
    [
        ({}, 2.0),
        ({"optimizer": "adam", "max_steps": 40}, 1.5),
        ({"similarity": LNCC(9)}, 1.5),
        ({"similarity": GradientNCC(), "sizes": (64,)}, 3.0),
        ({"similarity": MutualInformation(), "optimizer": "adam", "max_steps": 40}, 4.0),
        ({"integrator": "siddon", "beyond_ends": True}, 1.5),
    ],
    ids=["zncc", "adam", "lncc", "gradient_ncc", "mutual_information", "siddon"],
)
def test_finds_the_pose(volume, options, limit):
    """Noise of 10,000 photons, 4 mm voxels and 6 mm pixels, so a third of a pixel is 2 mm; the start is 12 mm away."""
    xray = view(volume)
    start = away(volume, xray)
    assert error(volume, start, xray) > 10
    result = register(volume, xray, start, **(SMALL | options))
    assert error(volume, result.poses[0], xray) < limit
    assert result.similarity > result.initial_similarity


@pytest.mark.parametrize("view_from", ["source", "detector"])
def test_in_the_patients_own_coordinates_on_an_oblique_left_handed_grid(volume, view_from):
    turn = Pose.from_parameters([0.3, -0.2, 0.4], [35.0, -60.0, 90.0], "axis_angle").matrix
    flip = torch.diag(torch.tensor([-1.0, 1.0, 1.0, 1.0]).double())
    flip[0, 3] = volume.shape[2] - 1
    oblique = Volume(volume.hu.flip(-1), turn @ volume.ijk_to_ras @ flip)
    assert torch.linalg.det(oblique.ijk_to_ras[:3, :3]) < 0
    xray = view(oblique, view_from=view_from)
    result = register(oblique, xray, away(oblique, xray), **SMALL)
    assert error(oblique, result.poses[0], xray) < 2.0


def test_two_views_share_one_patient_motion(volume):
    xrays = [view(volume, 0.0, 0.0, seed=1), view(volume, 80.0, 0.0, seed=2)]
    starts = [away(volume, xray) for xray in xrays]
    result = register(volume, xrays, starts, **SMALL)
    before = starts[0].inverse() @ starts[1]
    after = result.poses[0].inverse() @ result.poses[1]
    assert torch.allclose(before.matrix, after.matrix, atol=1e-9)
    assert max(error(volume, pose, xray) for pose, xray in zip(result.poses, xrays, strict=True)) < 0.5


def test_patient_motion_moves_the_anatomy_to_where_the_c_arm_at_its_start_sees_the_same(volume):
    xray = view(volume)
    start = away(volume, xray)
    result = register(volume, xray, start, **SMALL)
    moved = Volume(volume.hu, result.patient_motion.matrix @ volume.ijk_to_ras)
    with torch.no_grad():
        by_camera = Renderer(volume)(xray.camera, result.poses[0])
        by_patient = Renderer(moved)(xray.camera, start)
    assert torch.allclose(by_camera, by_patient, atol=2e-4)


def test_one_pose_for_two_views_is_the_first_ones(volume):
    xrays = [view(volume, 0.0), view(volume, 80.0)]
    registration = Registration(volume, xrays, away(volume, xrays[0]), **SMALL)
    next(registration.steps())
    poses = registration.result().poses
    expected = xrays[0].pose.inverse() @ xrays[1].pose
    assert torch.allclose((poses[0].inverse() @ poses[1]).matrix, expected.matrix, atol=1e-9)


class Finder:
    """Finds the start: what it is asked is kept."""

    def __init__(self, *poses: Pose):
        self.poses, self.asked = list(poses), None

    def starts(self, volume, xrays):
        self.asked = (volume, xrays)
        return self.poses


def test_what_finds_the_start_itself_is_asked(volume):
    xrays = [view(volume, 0.0), view(volume, 80.0)]
    finder = Finder(*(away(volume, xray) for xray in xrays))
    said = []
    preparing = Registration.preparing(volume, xrays, finder, **SMALL)
    try:
        while True:
            said.append(next(preparing))
    except StopIteration as end:
        registration = end.value
    assert said[0] == "Looking for the start"
    assert finder.asked[0] is volume
    assert finder.asked[1] == xrays
    next(registration.steps())
    result = registration.result()
    for pose, start in zip(result.poses, finder.poses, strict=True):
        assert torch.allclose((result.patient_motion @ pose).matrix, start.matrix, atol=1e-9)


def test_a_finder_of_too_few_starts_is_refused(volume):
    xrays = [view(volume, 0.0), view(volume, 80.0)]
    with pytest.raises(RegistrationError, match="2 X-rays but 1 start poses"):
        Registration(volume, xrays, Finder(away(volume, xrays[0])), **SMALL)
    with pytest.raises(RegistrationError, match="one Pose, or one per view"):
        Registration(volume, xrays, Finder("here", "there"), **SMALL)


def test_steps_can_be_stopped_and_leave_the_best_so_far(volume):
    xray = view(volume)
    registration = Registration(volume, xray, away(volume, xray), **SMALL)
    with pytest.raises(RegistrationError, match="has not made a step"):
        registration.result()
    seen = []
    for step in registration.steps():
        seen.append(step.similarity)
        if len(seen) == 4:
            break
    result = registration.result()
    assert len(result.history) == 4
    assert result.similarity == max(seen)
    assert not result.converged
    assert result.reason == "stopped before the end"
    assert torch.allclose(step.poses.matrix, result.poses.matrix)


def test_limits_of_steps_and_time(volume):
    xray = view(volume)
    start = away(volume, xray)
    assert register(volume, xray, start, sizes=(32,), max_steps=2).reason == "step limit reached"
    late = register(volume, xray, start, sizes=(32, 64), max_seconds=1e-9)
    assert late.reason == "time limit reached"
    assert len(late.history) == 1
    assert not late.converged
    assert register(volume, xray, start, **SMALL).converged


def test_bounds_hold_and_are_reported(volume):
    """The depth is 25 mm off, but may change by 5 mm only."""
    xray = view(volume)
    beam = xray.pose.rotation[:, 2]
    start = xray.pose.retract(torch.cat([torch.zeros(3).double(), 25.0 * beam]))
    result = register(volume, xray, start, limits=Limits(bounds=(None,) * 5 + (5.0,)), **SMALL)
    depth = (result.poses[0].translation - start.translation) @ beam
    assert float(depth) == pytest.approx(-5.0, abs=0.3)
    assert result.at_bound == ["depth"]
    assert register(volume, xray, start, **SMALL).at_bound == []


def test_a_strong_prior_holds_the_start(volume):
    xray = view(volume)
    start = away(volume, xray)
    tight = Limits(deviations=(1e-3,) * 3 + (1e-3,) * 3, weight=1.0)
    held = register(volume, xray, start, limits=tight, **SMALL)
    assert torch.allclose(held.poses[0].matrix, start.matrix, atol=0.05)


def test_landmarks_beside_the_image_bring_it_home(volume):
    xray = view(volume)
    points = torch.stack(list(phantom_landmarks().values())).double()
    uv = project(xray.camera, xray.pose, points)[0]
    seen = torch.isfinite(uv).all(-1) & (uv > 0).all(-1) & (uv < 62).all(-1)
    marks = Landmarks(points[seen], [uv[seen]])
    assert int(seen.sum()) >= 4
    far = away(volume, xray, [0.5, 0.3, -0.4, 20.0, 10.0, 30.0])
    result = register(volume, xray, far, landmarks=marks, **SMALL)
    assert error(volume, result.poses[0], xray) < 2.0


def test_several_starts_are_deterministic_and_better_than_one(volume):
    xray = view(volume)
    lost = away(volume, xray, [0.0, 0.9, 0.9, 0.0, 0.0, 0.0])
    options = {"starts": 6, "start_spread": (30.0, 10.0, 10.0), "sizes": (16, 32), "max_steps": 15, "seed": 4}
    options |= {"search": 0, "beyond_ends": True}  # the same pixels in all, whose similarities are compared
    first, second = (register(volume, xray, lost, **options) for _ in range(2))
    assert torch.equal(first.poses.matrix, second.poses.matrix)
    one = register(volume, xray, lost, **(options | {"starts": 1}))
    assert first.similarity >= one.similarity - 1e-3  # both may end at the optimum, within 15 steps of each other
    assert first.history[0]["candidates"] == 6
    assert max(entry["candidates"] for entry in first.history if entry["level"] == 1) <= 2


def test_labels_and_weights(volume):
    """A tool hides a corner; only vertebrae, hips and ribs are rendered."""
    xray = view(volume)
    weight = torch.ones(66, 64)
    weight[:25, :25] = 0
    hidden = xray.image.clone()
    hidden[:25, :25] = 40.0
    spoilt = xray.with_image(hidden)
    masked = register(volume, spoilt, away(volume, xray), weights=[weight], **SMALL)
    assert error(volume, masked.poses[0], xray) < 2.5
    assert error(volume, register(volume, spoilt, away(volume, xray), **SMALL).poses[0], xray) > 3


def test_structures_alone_want_a_local_measure(volume):
    xray = view(volume)
    bones = {"labels": ["vertebrae", "hip_left", "hip_right", "sacrum"], "sizes": (64,), "search": 0}
    with pytest.warns(DiffDRRWarning, match="easily misled"):
        Registration(volume, xray, xray.pose, **bones)
    near = away(volume, xray, [0.03, -0.02, 0.03, 3.0, -2.0, 3.0])
    result = register(volume, xray, near, similarity=LNCC(9), **bones)
    assert error(volume, result.poses[0], xray) < error(volume, near, xray)


def test_result_round_trip_and_transform_for_slicer(volume, tmp_path):
    xray = view(volume)
    result = register(volume, xray, away(volume, xray), sizes=(32,))
    again = RegistrationResult.load(result.save(tmp_path / "result.json"))
    assert again.to_dict() == result.to_dict()
    for suffix in (".tfm", ".h5"):
        transform = sitk.ReadTransform(str(result.save(tmp_path / f"carm{suffix}")))
        source_lps = [-1, -1, 1] * result.poses[0].translation.numpy()
        at_origin = transform.TransformPoint(source_lps.tolist())  # from parent, in LPS: the source becomes the origin
        assert math.hypot(*at_origin) < 1e-6
    with pytest.raises(RegistrationError, match="saved as"):
        result.save(tmp_path / "result.xml")
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ReadError, match="not a registration result"):
        RegistrationResult.load(tmp_path / "other.json")


def test_bad_input(volume):
    xray = view(volume)
    without_pose = xray.with_pose(None)
    cases = [
        (lambda: register(volume, []), "no X-ray"),
        (lambda: register(volume, without_pose), "no pose to start from"),
        (lambda: register(volume, [xray, xray], [xray.pose]), "2 X-rays but 1 start"),
        (lambda: register(volume, xray, similarty="zncc"), "options are"),
        (lambda: register(volume, xray.with_image(xray.image, intensity="transmission")), "transmitted"),
        (lambda: register(volume, xray, away(volume, xray, [0, 0, 0, 5000.0, 0, 0])), "no ray meets the CT"),
        (lambda: register(volume, xray.with_image(torch.ones(66, 64))), "no contrast"),
        (lambda: register(volume, xray, optimizer="newton"), "optimizer is"),
        (lambda: register(volume, xray, sizes=(4,)), "sizes are"),
        (lambda: Limits(bounds=(1.0, 2.0)), "bounds are six"),
    ]
    for call, words in cases:
        with pytest.raises(RegistrationError, match=words):
            call()
