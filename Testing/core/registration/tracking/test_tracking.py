"""Tracking end to end on a small phantom, whose true motion is known; X-rays are another integrator's, with noise."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch

from DiffDRRCore import Pose
from DiffDRRCore.errors import RegistrationError
from DiffDRRCore.registration import Body, GlobalSearch
from DiffDRRCore.registration.tracking import Pass, Tracking, TrackingResult, track
from Testing.core.registration.tracking.runs import SIZES, apart, arms, ct, error, frame, motion, seen, starts

SMALL = {"sizes": SIZES, "search": 32}
PATH = (0, 1, 2, 3, 4, 5, 6, 7)


def xrays(path=PATH) -> list:
    return [frame(float(steps), noise=number) for number, steps in enumerate(path)]


def errors(result: TrackingResult, path=PATH) -> list[float]:
    return [error(pose, motion(steps)) for pose, steps in zip(result.motions.matrix[:, 0], path, strict=True)]


@cache
def plain() -> tuple[TrackingResult, list]:
    steps = []
    return track(ct(), xrays(), starts(), progress=steps.append, **SMALL), steps


def test_a_run_of_two_views():
    result, steps = plain()
    assert max(errors(result)) < 0.5
    assert result.frames == tuple(range(8))
    assert result.lost == {}
    assert not bool(result.interpolated.any())
    assert [step.during for step in steps] == [Pass.KEYFRAME] + [Pass.FORWARDS] * 7
    assert [step.done for step in steps] == list(range(1, 9))
    assert steps[-1].total == 8


def test_poses_are_those_that_made_the_images():
    result, _ = plain()
    truth = torch.stack([(motion(5).inverse() @ pose).matrix for pose in starts()])
    assert torch.allclose(result.poses.matrix[5], truth, atol=0.5)


def test_the_covariance_foretells_the_error():
    """Distances of a target in units of the stated deviation: no more than a few, as the error is more than noise."""
    result, _ = plain()
    target = ct().center.double()[None] + 30.0
    for number in PATH:
        found = result.found(number, "CT")
        off = found.motion.transform(target) - motion(number).transform(target)
        assert float(off.norm()) < 10 * float(found.target_error(target)[0])


def test_smoothed_motions_are_no_worse_and_the_others_are_kept():
    result, _ = plain()
    smooth = result.smoothed((0.2, 0.2))
    assert max(errors(smooth)) < max(errors(result)) + 0.02
    assert torch.equal(smooth.unsmoothed.matrix, result.motions.matrix)
    assert smooth.acceleration == pytest.approx((0.2, 0.2))
    with pytest.raises(RegistrationError, match="smoothed already"):
        smooth.smoothed()


def test_missing_views_and_frames():
    """Frames 2 and 3 lack a view each, frame 5 both, and it lies where its neighbours lead."""
    frames = xrays()
    frames[2] = [None, frames[2][1]]
    frames[3] = [frames[3][0], None]
    frames[5] = None, None
    result = track(ct(), frames, starts(), **SMALL)
    found = errors(result)
    assert found[5] < 0.5
    assert max(found[frame] for frame in (0, 1, 4, 6, 7)) < 0.5
    assert max(found[2:4]) < 6.0  # a single view hardly sees the depth
    assert result.lost == {}
    assert result.interpolated.tolist() == [False] * 5 + [True] + [False] * 2
    assert result.seen.tolist()[1:4] == [[True, True], [False, True], [True, False]]
    assert math.isnan(float(result.similarity[5]))
    assert not math.isnan(float(result.smoothed((1.0, 1.0)).covariances[5].sum()))


def test_a_frame_of_something_else_is_lost_and_said_so():
    frames = xrays()
    frames[5] = [xray.with_image(xray.image.flip(0)) for xray in frames[5]]
    result = track(ct(), frames, starts(), **SMALL)
    assert list(result.lost) == [5]
    assert "similarity" in result.lost[5]
    assert result.interpolated.tolist() == [False] * 5 + [True] + [False] * 2
    assert max(errors(result)) < 0.5


def test_a_blank_frame_is_lost():
    frames = xrays()
    frames[2] = [xray.with_image(torch.zeros_like(xray.image)) for xray in frames[2]]
    result = track(ct(), frames, starts(), **SMALL)
    assert list(result.lost) == [2]
    assert "no contrast" in result.lost[2]
    assert max(errors(result)) < 0.5


def test_a_leap_is_found_by_a_search():
    """12 mm and 6 degrees at once, far from where the motion leads."""
    path = (0, 1, 2, 3, -4, -3, -2, -1)
    result = track(ct(), xrays(path), starts(), acceleration=(0.3, 0.6), sizes=SIZES)
    assert result.lost == {}
    assert max(errors(result, path)) < 0.5


def test_numbers_are_the_time():
    """Frames 10, 11 and 15: the motion leads on by four steps."""
    path = {10: 0, 11: 1, 12: 2, 16: 6}
    frames = {number: frame(float(steps)) for number, steps in path.items()}
    tracking = Tracking(ct(), frames, starts(), **SMALL)
    list(tracking.steps())
    expected = tracking.course.expected(3, 1, [0, 1, 2])
    assert float((expected.pose[0, :3, 3] - motion(6).transform(ct().center[None].double())[0]).norm()) < 1.0
    assert tracking.result().frames == (10, 11, 12, 16)
    assert max(errors(tracking.result(), path.values())) < 0.5


def test_keyframes_at_both_ends_need_no_start():
    """Set by hand, 3 mm off; the frames in between start on the way from one to the other."""
    path = (0, 2.5, 5, 7.5, 10)
    keyframes = {0: motion(0.3), 4: {"CT": motion(10.5)}}
    steps = []
    result = track(ct(), xrays(path), starts(), progress=steps.append, keyframes=keyframes, **SMALL)
    assert [step.during for step in steps] == [Pass.KEYFRAME] * 2 + [Pass.FORWARDS] * 3
    assert max(errors(result, path)) < 0.5
    assert result.keyframes == (0, 4)


def test_a_keyframe_in_the_middle_leads_both_ways():
    keyframes = {3: motion(3.4)}
    steps = []
    result = track(ct(), xrays(), starts(), progress=steps.append, keyframes=keyframes, **SMALL)
    assert [step.frame for step in steps] == [3, 4, 5, 6, 7, 2, 1, 0]
    assert [step.during for step in steps[-3:]] == [Pass.BACKWARDS] * 3
    assert max(errors(result)) < 0.5


def test_c_arms_that_move_as_is_known():
    """Each frame has its own cameras: only what the body does itself is found, and stated in the room."""
    turned = [Pose.identity().retract([0.0, 0, 0.02 * n, 3.0 * n, 0, 0], about=ct().center) for n in range(3)]
    known = {n: [turn @ pose for pose in starts()] for n, turn in enumerate(turned)}
    frames = [seen(ct(), motion(n), noise=n, room=turn) for n, turn in enumerate(turned)]
    result = track(ct(), frames, known, **SMALL)
    assert result.lost == {} and max(errors(result, range(3))) < 0.5
    stood = torch.stack([torch.stack([pose.matrix for pose in known[n]]) for n in range(3)])
    assert torch.allclose(result.carms.matrix, stood)
    with pytest.raises(RegistrationError, match="Frame 2 needs the pose of each of the 2 C-arms"):
        Tracking(ct(), frames, {0: known[0], 1: known[1], 2: known[2][:1]}, **SMALL)


def test_two_bones():
    """The right hip bone and femur swing on their own; the rest stays."""
    labels = ["hip_right", "femur_right"]
    pivot = torch.tensor([60.0, 0.0, -80.0])
    path = [motion(steps, (2.0, 0.0, 1.0, 1.0, 0.5, 0.5), pivot) for steps in range(4)]
    frames = [apart(ct(), dict.fromkeys(labels, pose)) for pose in path]
    bodies = [Body("leg", labels), Body("rest", locked=True)]
    result = track(ct(), frames, starts(), bodies=bodies, **SMALL)
    assert result.bodies == ("leg", "rest")
    points = torch.tensor([[60.0, 0.0, -80.0], [80.0, 10.0, -100.0]]).double()
    for number, pose in enumerate(path):
        found = result.found(number, "leg").motion
        assert float((found.transform(points) - pose.transform(points)).norm(dim=-1).max()) < 1.0
        assert torch.equal(result.motions.matrix[number, 1], torch.eye(4, dtype=torch.float64))


def test_stopping_keeps_the_frames_so_far():
    tracking = Tracking(ct(), xrays(), starts(), **SMALL)
    with pytest.raises(RegistrationError, match="run steps"):
        tracking.result()
    pieces = 0
    for step in tracking.work():
        pieces += step is None
        if step is not None and step.frame == 2:
            break
    result = tracking.result()
    assert pieces > 5
    assert list(result.lost) == [3, 4, 5, 6, 7]
    assert set(result.lost.values()) == {"not reached: the tracking was stopped"}
    assert max(errors(result)[:3]) < 0.5


def test_the_start_is_searched_for():
    """By a global search in the first frame with both views; motions are from there."""
    frames = [[xray.with_pose(pose) for xray, pose in zip(views, starts(), strict=True)] for views in xrays((0, 1, 2))]
    frames[0] = [frames[0][0], None]
    search = GlobalSearch((-20, 20), (-10, 10), (-5, 5), count=64, about=ct().center.tolist())
    result = track(ct(), frames, search, **SMALL)
    truth = (motion(1).inverse() @ arms()[0].pose).inverse()
    away = result.poses[1, 0] @ truth
    assert float(away.translation.norm()) < 1.0


def one_view() -> list:
    return [views[:1] for views in xrays((0, 1))]


@pytest.mark.parametrize(
    ("frames", "keywords", "words"),
    [
        (lambda: xrays((0,)), {}, "two frames with X-rays or more, this one has 1"),
        (list, {}, "this one has 0"),
        (lambda: [*xrays((0,)), *one_view()], {}, "another number of views"),
        (lambda: [[*views, None] for views in xrays((0, 1))], {}, "View 3 has no X-ray"),
        (lambda: [["a.png"], ["b.png"]], {}, "an XRay or None for each view"),
        (lambda: xrays((0, 1)), {"keyframes": {7: Pose.identity()}}, "no frame 7 to be a keyframe"),
        (lambda: [*xrays((0, 1)), (None, None)], {"keyframes": {2: Pose.identity()}}, "Frame 2 has no X-ray"),
        (lambda: xrays((0, 1)), {"keyframes": {0: {"femur": Pose.identity()}}}, "the bodies are CT"),
        (lambda: xrays((0, 1)), {"keyframes": {0: {"CT": 3}}}, r"one Pose \[4, 4\]"),
        (lambda: xrays((0, 1)), {"acceleration": (0.0, 1.0)}, "two positive numbers"),
        (lambda: xrays((0, 1)), {"view_weights": [1.0]}, "2 views but 1 view_weights"),
        (lambda: xrays((0, 1)), {"margin": -1.0}, "margin is a positive number"),
        (lambda: xrays((0, 1)), {"speed": 3}, "Unknown option speed"),
    ],
)
def test_bad_input(frames, keywords, words):
    with pytest.raises(RegistrationError, match=words):
        Tracking(ct(), frames(), starts(), **{**SMALL, **keywords})


def test_no_start_at_all():
    with pytest.raises(RegistrationError, match="X-ray 1, 2 has no pose to start from"):
        Tracking(ct(), xrays((0, 1)))


def test_a_start_that_misses_the_ct_is_an_error_not_a_lost_frame():
    away = [Pose.identity().retract([0.0, 0, 0, 3000.0, 3000.0, 0]) @ pose for pose in starts()]
    with pytest.raises(RegistrationError, match="no ray meets the CT"):
        track(ct(), xrays((0, 1)), away, **SMALL)
