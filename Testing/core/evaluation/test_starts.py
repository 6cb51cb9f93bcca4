"""Starts: where they are meant to be, and the same whatever else is run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from DiffDRRCore import CArm, Pose
from DiffDRRCore.datasets import View, phantom
from DiffDRRCore.errors import DiffDRRError
from DiffDRRCore.evaluation.measures import components, rotation_error, target_registration_error
from DiffDRRCore.evaluation.protocol import starts
from DiffDRRCore.geometry import project
from DiffDRRCore.imaging.xray import XRay

CENTER = torch.tensor([5.0, -30.0, 60.0], dtype=torch.float64)
OFFSETS = torch.tensor(
    [[40.0, 0, 0], [0, 50, 10], [-60, 20, 30], [10, -35, 70], [25, 30, -40], [-15, 12, -66]]
).double()
LANDMARKS = {f"p{row}": CENTER + offset for row, offset in enumerate(OFFSETS)}
TARGETS = CENTER + torch.cat([OFFSETS, -OFFSETS])


def situation(angles=((20.0, 10.0),), header=None, landmarks=LANDMARKS) -> starts.Situation:
    """Views of C-arms about CENTER; an image is not needed."""
    views, truths = [], []
    for number, (primary, secondary) in enumerate(angles):
        carm = CArm(1020.0, 850.0, CENTER, primary, secondary, roll=7.0)
        camera = carm.camera(60, 60, (6.0, 6.0), view_from="detector")
        seen = {name: project(camera, carm.pose, point[None])[0, 0] for name, point in landmarks.items()}
        xray = XRay(torch.zeros(60, 60), camera, carm.pose)
        views.append(View(f"view {number}", xray, header if number == 0 else None, seen))
        truths.append(carm.pose)
    return starts.Situation(views, truths, CENTER, LANDMARKS, TARGETS)


def made(content, where=None, index=0, seed=0, names=("v",)) -> list[Pose]:
    where = where or situation()
    content = starts.checked("starts", content)
    return starts.start_poses(content, where, index, starts.generator(seed, "s", tuple(names), index))


def offset_of(start: Pose, truth: Pose) -> np.ndarray:
    """Degrees and mm along the reference camera's axes about the centre, by another route (SciPy, NumPy)."""
    motion = start.matrix.numpy() @ np.linalg.inv(truth.matrix.numpy())
    axes, center = truth.rotation.numpy(), CENTER.numpy()
    turn = axes.T @ Rotation.from_matrix(motion[:3, :3]).as_rotvec(degrees=True)
    return np.concatenate([turn, axes.T @ (motion[:3, :3] @ center + motion[:3, 3] - center)])


def test_a_model_is_asked_once_for_all_cases_and_not_told_where_the_views_are(monkeypatch, tmp_path):
    """It says where the first view is; the second keeps its place to it."""
    from DiffDRRCore.learning import PoseModel

    where = situation(((20.0, 10.0), (80.0, 0.0)))
    volume = phantom((12, 10, 8), 20.0)
    where = replace(where, volume=volume, xrays=[view.xray.with_pose(None) for view in where.views])
    said = Pose.from_parameters([0.1, 0.2, -0.1], [10.0, -20.0, 30.0], "axis_angle") @ where.truths[0]
    reads = []

    class Model:
        def starts(self, asked, xrays):
            assert asked is volume
            torch.testing.assert_close(xrays[0].pose.matrix, torch.eye(4, dtype=torch.float64))
            between = where.truths[0].inverse() @ where.truths[1]
            torch.testing.assert_close(xrays[1].pose.matrix, between.matrix)
            return [said, where.truths[1]]

    monkeypatch.setattr(PoseModel, "read", lambda path, device: reads.append((path, device)) or Model())
    for index in range(2):
        first, second = made({"kind": "model", "path": str(tmp_path / "m.safetensors")}, where, index)
    assert reads == [(tmp_path / "m.safetensors", "cpu")]
    torch.testing.assert_close(first.matrix, said.matrix)
    torch.testing.assert_close((first.inverse() @ second).matrix, (where.truths[0].inverse() @ where.truths[1]).matrix)


def test_offsets_are_about_the_centre_and_along_the_cameras_axes():
    wanted = [3.0, -4.0, 5.0, 10.0, -20.0, 30.0]
    where = situation()
    content = {"kind": "offsets", "offsets": [[0] * 6, wanted]}
    assert starts.count(starts.checked("starts", content)) == 2
    torch.testing.assert_close(made(content, where, 0)[0].matrix, where.truths[0].matrix, rtol=0, atol=1e-12)
    np.testing.assert_allclose(offset_of(made(content, where, 1)[0], where.truths[0]), wanted, atol=1e-9)


def test_a_shift_in_depth_and_a_turn_by_hand():
    """30 mm of depth misplaces every target by 30 mm of depth, and a tilt leaves the centre where it is."""
    where = situation()
    deep = made({"kind": "offsets", "offsets": [[0, 0, 0, 0, 0, 30]]}, where)[0]
    error = components(deep, where.truths[0], TARGETS)
    assert error.depth.item() == pytest.approx(30.0, abs=1e-9)
    assert error.in_plane.item() == pytest.approx(0.0, abs=1e-9)
    tilted = made({"kind": "offsets", "offsets": [[2, 0, 0, 0, 0, 0]]}, where)[0]
    assert rotation_error(tilted, where.truths[0]).item() == pytest.approx(2.0, abs=1e-9)
    assert target_registration_error(tilted, where.truths[0], CENTER[None]).item() == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize(
    "content",
    [
        {"kind": "sampled", "count": 2},
        {"kind": "offsets", "offsets": [[1, 2, 3, 4, 5, 6]]},
        {"kind": "landmarks", "noise_px": 1},
        {"kind": "header"},
        {"kind": "fixed", "sod_mm": 800},
        {"kind": "sampled", "bins_mm": [10, 20], "per_bin": 1},
    ],
)
def test_several_views_move_together(content):
    where = situation([(0.0, 0.0), (90.0, 5.0)], header=CArm(1020.0, 800.0, CENTER, 3.0).pose)
    moved = made(content, where)
    first, second = (start @ truth.inverse() for start, truth in zip(moved, where.truths, strict=True))
    torch.testing.assert_close(first.matrix, second.matrix, rtol=0, atol=1e-9)
    assert target_registration_error(moved[0], where.truths[0], TARGETS) > 0.1


def test_a_case_starts_at_the_same_place_whatever_else_is_run():
    few, many = ({"kind": "sampled", "count": count} for count in (4, 40))
    alone = made(few, index=3)[0].matrix
    for index in range(4):
        again = made(many, index=index)[0].matrix
    assert torch.equal(alone, again)


def test_the_random_numbers_follow_all_of_seed_subject_views_and_start():
    keys = [(0, "s", ("v",), 0), (1, "s", ("v",), 0), (0, "t", ("v",), 0), (0, "s", ("w",), 0), (0, "s", ("v",), 1)]
    keys += [(0, "s", ("v", "w"), 0), (0, "sv", (), 0)]
    drawn = [starts.generator(*key).standard_normal() for key in keys]
    assert len(set(drawn)) == len(keys)
    assert drawn == [starts.generator(*key).standard_normal() for key in keys]


@pytest.mark.parametrize(("distribution", "deviation"), [("normal", 1.0), ("uniform", 1 / 3**0.5)])
def test_spread(distribution, deviation):
    """4000 starts: the standard deviation of a sample is known to 1 / sqrt(2 N) = 1.1 %, five times that is allowed."""
    content = {"kind": "sampled", "count": 4000, "degrees": 2, "plane_mm": 10, "depth_mm": 40}
    content = starts.checked("starts", content | {"distribution": distribution})
    drawn = np.array([starts._drawn(content, starts.generator(0, "s", ("v",), index)) for index in range(4000)])
    wanted = np.array([2, 2, 2, 10, 10, 40])
    np.testing.assert_allclose(drawn.std(axis=0), deviation * wanted, rtol=0.056)
    assert (np.abs(drawn.mean(axis=0)) < 5 * deviation * wanted / 4000**0.5).all()
    if distribution == "uniform":
        assert (np.abs(drawn) <= wanted).all()


def test_starts_at_distances():
    content = {"kind": "sampled", "bins_mm": [0, 20, 60], "per_bin": 2}
    assert starts.count(starts.checked("starts", content)) == 4
    where = situation()
    found = [made(content, where, index)[0] for index in range(4)]
    errors = [target_registration_error(start, where.truths[0], TARGETS).item() for start in found]
    assert errors == pytest.approx([5.0, 15.0, 30.0, 50.0], rel=1e-8)  # a quarter and three quarters of each bin
    small = offset_of(made({"kind": "sampled", "bins_mm": [0, 1e-3], "per_bin": 1}, where)[0], where.truths[0])
    drawn = starts._drawn(starts.checked("starts", content), starts.generator(0, "s", ("v",), 0))
    np.testing.assert_allclose(small / np.linalg.norm(small), drawn / np.linalg.norm(drawn), atol=1e-5)


def test_a_distance_that_no_start_has():
    content = {"kind": "sampled", "bins_mm": [500, 600], "plane_mm": 0, "depth_mm": 0}
    with pytest.raises(DiffDRRError, match=r"misplaces the targets by 502\.5 mm"):
        made(content)
    with pytest.raises(DiffDRRError, match="more spread"):
        made(content | {"degrees": 0, "bins_mm": [0, 1]})


def test_landmarks_without_noise_are_the_truth():
    where = situation()
    start = made({"kind": "landmarks"}, where)[0]
    assert target_registration_error(start, where.truths[0], TARGETS).item() < 1e-5


def test_noisy_clicks():
    where = situation()
    content = {"kind": "landmarks", "noise_px": 0.5, "count": 20}
    found = [made(content, where, index)[0] for index in range(20)]
    errors = [components(start, where.truths[0], TARGETS).in_plane.item() for start in found]
    assert len(set(errors)) == 20
    # half a pixel of 6 mm is 2.5 mm at the centre; six landmarks average it
    assert 0.3 < np.mean(errors) < 5.0


def test_the_second_view_helps_where_the_first_shows_too_few():
    where = situation([(0.0, 0.0), (90.0, 0.0)])
    few = View("few", where.views[0].xray, None, {name: where.views[0].landmarks[name] for name in ("p0", "p1", "p2")})
    where = starts.Situation([few, where.views[1]], where.truths, CENTER, LANDMARKS, TARGETS)
    start = made({"kind": "landmarks"}, where)[0]
    assert target_registration_error(start, where.truths[0], TARGETS).item() < 1e-5


@pytest.mark.parametrize(("kind", "words"), [("landmarks", "four landmarks"), ("header", "header tells no pose")])
def test_what_a_dataset_does_not_have(kind, words):
    with pytest.raises(DiffDRRError, match=words):
        made({"kind": kind}, situation(landmarks={}))


def test_header_and_fixed():
    header = CArm(1020.0, 700.0, (1.0, 2.0, 3.0), 40.0, -10.0).pose
    where = situation(header=header)
    torch.testing.assert_close(made({"kind": "header"}, where)[0].matrix, header.matrix, rtol=0, atol=1e-9)
    fixed = {"kind": "fixed", "primary": 30, "secondary": -20, "roll": 5, "sod_mm": 700}
    wanted = CArm(1020.0, 700.0, CENTER, 30.0, -20.0, 5.0).pose
    torch.testing.assert_close(made(fixed, where)[0].matrix, wanted.matrix, rtol=0, atol=1e-9)
