"""The six numbers of a motion, and limits on them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from scipy.spatial.transform import Rotation

from DiffDRRCore import Pose
from DiffDRRCore.errors import RegistrationError
from DiffDRRCore.registration import Limits
from DiffDRRCore.registration.problem.motion import MotionFrame
from Testing.core.samples import differences, rigid, rotation, seeds


def frame_of(rng: np.random.Generator) -> MotionFrame:
    return MotionFrame(torch.from_numpy(rng.normal(0, 200, 3)), torch.from_numpy(rotation(rng)))


@settings(max_examples=40, deadline=None)
@given(seeds)
def test_coordinates_and_motion_are_inverse(seed):
    rng = np.random.default_rng(seed)
    frame, motion = frame_of(rng), Pose(rigid(rng))
    again = frame.motion(frame.coordinates(motion))
    assert torch.allclose(again.matrix, motion.matrix, atol=1e-6)
    q = torch.from_numpy(np.concatenate([rng.uniform(-1, 1, 3), rng.normal(0, 50, 3)]))
    assert torch.allclose(frame.coordinates(frame.motion(q)), q, atol=1e-8)


def test_by_hand():
    """Camera of an AP view: x = right, y = down (-S), z = anterior. Depth is anterior; a turn is about that axis."""
    axes = torch.tensor([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]], dtype=torch.float64)
    pivot = torch.tensor([10.0, 20.0, 30.0], dtype=torch.float64)
    frame = MotionFrame(pivot, axes)
    deeper = frame.motion(torch.tensor([0, 0, 0, 0, 0, 7.0], dtype=torch.float64)).matrix
    assert torch.allclose(deeper[:3, 3], torch.tensor([0.0, 7.0, 0.0], dtype=torch.float64))
    down = frame.motion(torch.tensor([0, 0, 0, 0, 7.0, 0], dtype=torch.float64)).matrix
    assert torch.allclose(down[:3, 3], torch.tensor([0.0, 0.0, -7.0], dtype=torch.float64))
    turn = frame.motion(torch.tensor([0, 0, math.pi / 2, 0, 0, 0], dtype=torch.float64))
    assert torch.allclose(turn.transform(pivot[None])[0], pivot)
    expected = torch.from_numpy(Rotation.from_rotvec([0, math.pi / 2, 0]).as_matrix())
    assert torch.allclose(turn.rotation, expected, atol=1e-12)


def test_slope_of_coordinates_against_differences():
    """At rotations from zero to nearly half a turn, for a batch."""
    rng = np.random.default_rng(0)
    frame = frame_of(rng)
    axes = torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(5, 3))), dim=-1)
    angles = torch.tensor([0.0, 1e-3, 0.05, 1.5, 3.0], dtype=torch.float64)[:, None]
    motion = frame.motion(torch.cat([axes * angles, torch.from_numpy(rng.normal(0, 50, (5, 3)))], dim=-1))
    q, slope = frame.coordinates_and_slope(motion)
    assert torch.allclose(q, frame.coordinates(motion))
    numeric = differences(lambda xi: frame.coordinates(frame.moved(motion, xi)), torch.zeros(6).double(), 1e-6)
    assert torch.allclose(slope, numeric, atol=1e-6)


def test_moved_by_hand_and_to_first_order_as_retract():
    frame, motion = frame_of(np.random.default_rng(1)), Pose(rigid(np.random.default_rng(2)))
    xi = torch.tensor([0.0, 0.0, math.pi / 2, 1.0, 2.0, 3.0], dtype=torch.float64)
    point = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64) + frame.pivot
    moved = frame.moved(Pose.identity(), xi).transform(point)[0] - frame.pivot
    assert moved.tolist() == pytest.approx([1.0, 3.0, 3.0])
    small = torch.tensor([1e-4, -2e-4, 3e-4, 0.01, 0.02, -0.03], dtype=torch.float64)
    expected = motion.retract(small, about=frame.pivot)
    assert torch.allclose(frame.moved(motion, small).matrix, expected.matrix, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(seeds)
def test_no_point_within_reach_moves_further_than_the_displacement(seed):
    rng = np.random.default_rng(seed)
    frame, before = frame_of(rng), Pose(rigid(rng))
    xi = torch.from_numpy(np.concatenate([rng.uniform(-1.5, 1.5, 3), rng.normal(0, 20, 3)]))
    after = frame.moved(before, xi)
    inside = before.inverse().transform(frame.pivot[None])  # points that the first motion takes around the pivot
    directions = torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(200, 3))), dim=-1)
    points = before.inverse().transform(frame.pivot + 80.0 * directions)
    travel = (after.transform(points) - before.transform(points)).norm(dim=-1)
    assert float((after.transform(inside) - frame.pivot).norm()) == pytest.approx(float(xi[3:].norm()), rel=1e-6)
    angle = float(xi[:3].norm())
    assert float(travel.max()) <= float(xi[3:].norm()) + 80.0 * angle + 1e-9
    origin = float(
        (after.matrix - before.matrix)[:3, :].matmul(torch.cat([frame.pivot, torch.ones(1).double()])).norm()
    )
    assert float(frame.displacement(before, after, 80.0)) == pytest.approx(origin + 80.0 * angle, rel=1e-6)


@pytest.mark.parametrize(
    "values", [(1.0,) * 5, (1.0,) * 7, (0.0,) * 6, (-1.0,) + (None,) * 5, (math.nan,) + (None,) * 5]
)
@pytest.mark.parametrize("name", ["bounds", "deviations"])
def test_bad_limits(name, values):
    with pytest.raises(RegistrationError, match=f"{name} are six positive numbers"):
        Limits(**{name: values})


def test_bad_weight():
    with pytest.raises(RegistrationError, match="weight"):
        Limits(weight=-1.0)
