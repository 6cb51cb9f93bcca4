"""What becomes of frames that the motion does not lead to; X-rays that are cut; C-arms that are not quite known."""

from __future__ import annotations

import math

import pytest
import torch

from DiffDRRCore import Pose
from DiffDRRCore.registration import GlobalSearch, Limits
from DiffDRRCore.registration.tracking import Pass, Tracking, track
from DiffDRRCore.registration.tracking.fits import Fit
from DiffDRRCore.registration.tracking.motion_model import six
from Testing.core.registration.tracking.runs import SIZES, ct, error, frame, motion, seen, starts

SMALL = {"sizes": SIZES, "search": 32}


def blank(views: list) -> list:
    return [xray.with_image(torch.zeros_like(xray.image)) for xray in views]


def followed(frames, **options):
    """(result, [(frame, pass)])."""
    steps = []
    result = track(ct(), frames, starts(), progress=steps.append, **{**SMALL, **options})
    return result, [(step.frame, step.during) for step in steps]


def errors(result, path) -> list[float]:
    return [error(pose, motion(steps)) for pose, steps in zip(result.motions.matrix[:, 0], path, strict=True)]


def test_after_frames_that_show_nothing_the_run_goes_on():
    """Three in a row; those are interpolated, the rest is found where the motion leads."""
    path = range(9)
    frames = [blank(frame(float(n))) if n in (3, 4, 5) else frame(float(n), noise=n) for n in path]
    result, steps = followed(frames)
    assert list(result.lost) == [3, 4, 5]
    assert steps[-3:] == [(5, Pass.AGAIN), (4, Pass.AGAIN), (3, Pass.AGAIN)]
    assert max(errors(result, path)) < 0.5


def test_frames_at_the_end_that_show_nothing_stay_where_the_last_was():
    path = range(6)
    frames = [blank(frame(float(n))) if n > 3 else frame(float(n), noise=n) for n in path]
    result, _ = followed(frames)
    assert list(result.lost) == [4, 5]
    assert torch.equal(result.motions.matrix[5], result.motions.matrix[3])


def far(steps: float) -> Pose:
    """120 degrees away: no search around the neighbours leads there."""
    return motion(1.0, (0.0, 0.0, 120.0, 0.0, 0.0, 0.0)) @ motion(steps)


def frames_far(first: int, count: int) -> list:
    return [frame(float(n), noise=n) if n < first else seen(ct(), far(n), noise=n) for n in range(count)]


SEARCH = {"count": 96, "secondary": (-10, 10), "roll": (-5, 5), "isocenter": 20.0}


def anywhere() -> GlobalSearch:
    return GlobalSearch((-150, 150), about=ct().center.tolist(), **SEARCH)


def test_the_last_resort_finds_what_all_else_has_lost():
    """In frame 4 the patient lies turned by 120 degrees."""
    result, steps = followed(frames_far(4, 5), last_resort=anywhere())
    assert steps[-1] == (4, Pass.EVERYWHERE)
    assert result.lost == {}
    assert error(result.motions.matrix[4, 0], far(4)) < 0.5
    assert max(errors(result, range(5))[:4]) < 0.5


def test_the_last_resort_needs_the_view_whose_angles_it_searches():
    """All frames but the first lack it; the last one shows something else."""
    frames = [frame(0.0), *([None, frame(float(n), noise=n)[1]] for n in range(1, 5))]
    frames[4][1] = frames[4][1].with_image(frames[4][1].image.flip(0))
    result, steps = followed(frames, last_resort=anywhere())
    assert list(result.lost) == [4]
    assert Pass.EVERYWHERE not in [during for _, during in steps]


def scripted(truth: list[float], decoy: dict[int, float], keyframes: dict[int, float]):
    """(result, steps) where a registration from within 5 mm of the truth along x finds it, with similarity 0.95; else
    a decoy, if there is one as near, with 0.94; and does not converge otherwise.
    """
    about, spread = torch.zeros(1, 3).double(), torch.diag(six((0.05, 0.1)))[None]
    given = {number: Pose.identity().retract([0.0, 0, 0, x, 0, 0]) for number, x in keyframes.items()}
    tracking = Tracking(ct(), [starts_of_run()] * len(truth), starts(), keyframes=given)

    def fitting(number, motions, carms, wide=False):
        yield None
        places = [(truth[number], 0.95), (decoy.get(number, math.inf), 0.94)]
        for place, similarity in places:
            if abs(float(motions[0, 0, 3]) - place) < 5.0:
                moved = torch.eye(4, dtype=torch.float64)[None].clone()
                moved[0, 0, 3] = place
                return Fit(moved, spread, about, similarity, None, carms, (0, 1))
        return Fit(motions, spread, about, 0.1, "step limit reached", carms, (0, 1))

    tracking.single.fitting = fitting
    steps = [(step.frame, step.during) for step in tracking.steps()]
    return tracking.result(), steps


def starts_of_run() -> list:
    return frame(0.0)


def test_a_keyframe_that_the_way_does_not_lead_to_is_met_backwards():
    """After frame 3 the body leaps by 30 mm; where it would have gone, something looks much like it."""
    truth = [3.0 * n + (30.0 if n > 3 else 0.0) for n in range(9)]
    decoy = {n: 3.0 * n for n in range(4, 8)}
    result, steps = scripted(truth, decoy, {0: 0.0, 8: 54.0})
    assert steps[2:9] == [(n, Pass.FORWARDS) for n in range(1, 8)]
    assert steps[9:13] == [(n, Pass.BACKWARDS) for n in (7, 6, 5, 4)]
    assert result.motions.matrix[:, 0, 0, 3].tolist() == truth
    assert result.lost == {}


def test_the_way_back_ends_where_it_meets_the_way_there():
    """The leap is between frames 5 and 6, and frames 4 and 5 are found from both sides."""
    truth = [3.0 * n + (4.0 if n > 5 else 0.0) for n in range(9)]
    result, steps = scripted(truth, {}, {0: 0.0, 8: 28.0})
    assert result.motions.matrix[:, 0, 0, 3].tolist() == truth
    assert (1, Pass.BACKWARDS) not in steps


def test_lost_frames_are_tried_from_the_keyframe_behind_them():
    """A leap too far to be searched for after frame 3: the frames behind it are found from the last one."""
    truth = [3.0 * n + (200.0 if n > 3 else 0.0) for n in range(9)]
    result, steps = scripted(truth, {}, {0: 0.0, 8: 224.0})
    assert [number for number, during in steps if during is Pass.AGAIN or during is Pass.BACKWARDS][:4] == [7, 6, 5, 4]
    assert result.motions.matrix[:, 0, 0, 3].tolist() == truth
    assert result.lost == {}


@pytest.mark.filterwarnings("ignore:Only some structures")
def test_margin_cuts_off_what_lies_beside_the_body():
    """A leg, and in the X-rays' upper corner something bright that does not move along."""
    labels = ["hip_right", "femur_right"]
    leg, pivot = ct().select(labels), torch.tensor([60.0, 0.0, -80.0])
    path = [motion(steps, (2.0, 0.0, 1.0, 1.0, 0.5, 0.5), pivot) for steps in range(3)]
    frames = []
    for pose in path:
        images = [xray.image.clone() for xray in seen(leg, pose)]
        for image in images:
            image[:12, 20:50] += float(image.max())
        pairs = zip(seen(leg, pose), images, strict=True)
        frames.append([xray.with_image(image) for xray, image in pairs])
    points = torch.tensor([[60.0, 0.0, -80.0], [80.0, 10.0, -100.0]]).double()
    worst = {}
    for margin in (None, 15.0):
        result, _ = followed(frames, margin=margin, labels=labels)
        pairs = zip(result.motions.matrix[:, 0], path, strict=True)
        worst[margin] = max(
            float((Pose(m).transform(points) - p.transform(points)).norm(dim=-1).max()) for m, p in pairs
        )
    assert worst[15.0] < 1.0 < worst[None]


def test_a_free_view_goes_on_from_where_it_was_found():
    """The second C-arm stands 2 degrees and 6 mm from where it is told; frame 2 lacks it, and the search for it is not
    begun anew: the third frame starts as the first ended.
    """
    off = Pose.identity().retract(torch.tensor([0.02, -0.02, 0.02, 3.0, 4.0, -3.0]).double(), about=ct().center)
    frames = [list(frame(float(n), noise=n)) for n in range(4)]
    frames[2][1] = None
    told = [starts()[0], off @ starts()[1]]
    begun, tracking = [], Tracking(ct(), frames, told, free_views=[None, Limits()], **SMALL)
    fitting = tracking.single.fitting

    def watched(number, motions, carms, wide=False):
        begun.append((number, carms[1]))
        return fitting(number, motions, carms, wide)

    tracking.single.fitting = watched
    list(tracking.steps())
    result = tracking.result()
    assert result.lost == {}
    truth, center = starts()[1], starts()[1].inverse().transform(ct().center[None].double())

    def away(carm) -> float:
        return float((Pose(carm).transform(center) - truth.transform(center)).norm())

    assert max(away(result.carms.matrix[number, 1]) for number in (0, 1, 3)) < 1.0
    starts_of = dict(begun)
    assert away(starts_of[0]) > 4.0
    assert torch.allclose(starts_of[3], result.carms.matrix[1, 1])
    assert torch.allclose(result.carms.matrix[2, 1], result.carms.matrix[1, 1]) or away(result.carms.matrix[2, 1]) < 1.0
    assert max(errors(result, range(4))[n] for n in (0, 1, 3)) < 1.0


def test_views_that_come_and_go():
    """Each frame lacks one view or the other."""
    frames = [
        [xray if (n + view) % 2 or n == 0 else None for view, xray in enumerate(frame(float(n), noise=n))]
        for n in range(6)
    ]
    result, _ = followed(frames)
    assert result.lost == {}
    across = [error(result.motions.matrix[n, 0], motion(n)) for n in range(6)]
    assert max(across) < 4.0  # one view hardly sees depth
    smooth = result.smoothed((0.1, 0.2))
    found = [error(smooth.motions.matrix[n, 0], motion(n)) for n in range(6)]
    assert sum(found) < sum(across)  # depths of one view are across the other
