"""Joint angles against turns made by hand, the vector formulas of Grood and Suntay, and SciPy's rotations."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from DiffDRRCore import Pose
from DiffDRRCore.errors import DiffDRRWarning, GeometryError
from DiffDRRCore.geometry.joints import (
    JointMotion,
    Keep,
    Side,
    body_frame,
    cardan_angles,
    distal_frame,
    joint_angles,
)
from Testing.core import samples
from Testing.core.samples import seeds

SIDES = pytest.mark.parametrize("side", list(Side))
AWAY = {Side.RIGHT: np.array([1.0, 0, 0]), Side.LEFT: np.array([-1.0, 0, 0])}  # from the midline, in RAS
FRONT, UP = np.array([0.0, 1, 0]), np.array([0.0, 0, 1])


def turned(axis, degrees: float, offset=(0.0, 0.0, 0.0)) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_rotvec(np.deg2rad(degrees) * np.asarray(axis)).as_matrix()
    matrix[:3, 3] = offset
    return matrix


def towards(start, end, degrees: float) -> np.ndarray:
    """The turn that takes the direction `start` by some degrees towards the direction `end`, perpendicular to it."""
    return turned(np.cross(start, end), degrees)


@SIDES
def test_what_positive_means_to_a_clinician(side):
    """The shank hangs down; what its far end (or its front) does decides the name of the turn."""
    cases = {
        "flexion": towards(-UP, -FRONT, 20),  # the foot goes to the back
        "abduction": towards(-UP, AWAY[side], 20),  # the foot goes away from the midline
        "rotation": towards(FRONT, AWAY[side], 20),  # the toes turn away from the midline
    }
    for name, matrix in cases.items():
        motion = joint_angles(np.eye(4), matrix, side)
        for other in ("flexion", "abduction", "rotation"):
            assert float(getattr(motion, other)) == pytest.approx(20 if other == name else 0, abs=1e-9), name
    moved = joint_angles(np.eye(4), turned(UP, 0, 3 * AWAY[side] + 4 * FRONT - 5 * UP), side)
    assert moved.translations.tolist() == [3.0, 4.0, 5.0]


@SIDES
@given(seed=seeds)
@settings(max_examples=40, deadline=None)
def test_the_formulas_of_the_paper(side, seed):
    """sin a = -e2.K, cos a = e2.J; cos b = I.k; sin c = -e2.i on the right; H along e1, e2 and -e3."""
    rng = np.random.default_rng(seed)
    proximal, distal = samples.rigid(rng), samples.rigid(rng)
    (_, J, K, origin), (i, j, k, other) = proximal[:3].T, distal[:3].T
    e1, e3, right = proximal[:3, 0], k, 1 if side is Side.RIGHT else -1
    e2 = np.cross(e3, e1) / np.linalg.norm(np.cross(e3, e1))
    flexion = np.arctan2(-e2 @ K, e2 @ J)
    adduction = right * (np.pi / 2 - np.arccos(e1 @ e3))
    external = right * np.arctan2(-e2 @ i, e2 @ j)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DiffDRRWarning)
        motion = joint_angles(proximal, distal, side)
    assert np.allclose(motion.angles, np.rad2deg([flexion, -adduction, external]), atol=1e-6)
    H = other - origin
    assert np.allclose(motion.translations, [right * H @ e1, H @ e2, -H @ e3], atol=1e-9)


@SIDES
def test_a_flexed_knee_by_hand(side):
    """90 degrees of flexion, then 10 of abduction about the axis that floats: it points down by then."""
    flexed = towards(-UP, -FRONT, 90)
    floating = flexed[:3, :3] @ FRONT
    assert np.allclose(floating, -UP, atol=1e-12)
    far_end = flexed[:3, :3] @ -UP  # to the back
    abducted = towards(far_end, AWAY[side], 10) @ flexed
    assert np.allclose(joint_angles(np.eye(4), abducted, side).angles, [90, 10, 0], atol=1e-9)


@given(seed=seeds, side=st.sampled_from(list(Side)))
@settings(max_examples=40, deadline=None)
def test_the_inverse(seed, side):
    rng = np.random.default_rng(seed)
    numbers = np.c_[
        rng.uniform(-170, 170, 5), rng.uniform(-80, 80, 5), rng.uniform(-170, 170, 5), rng.normal(0, 9, (5, 3))
    ]
    motion = JointMotion(*torch.from_numpy(numbers.T.copy()))
    proximal = np.stack([samples.rigid(rng) for _ in range(5)])
    distal = distal_frame(proximal, motion, side)
    found = joint_angles(proximal, distal, side, continuous=False)
    assert np.allclose(torch.cat([found.angles, found.translations], -1), numbers, atol=1e-7)


def test_angles_go_on_past_180_and_past_90_degrees():
    """Rotation of 10 degrees a frame through 400; then abduction of 10 a frame through 130, past gimbal lock."""
    turns = np.arange(0, 401, 10.0)
    frames = np.stack([towards(FRONT, AWAY[Side.RIGHT], angle) for angle in turns])
    assert np.allclose(joint_angles(np.eye(4), frames, Side.RIGHT).rotation, turns, atol=1e-6)
    jumping = joint_angles(np.eye(4), frames, Side.RIGHT, continuous=False).rotation
    assert float(jumping.abs().max()) <= 180
    wide = np.arange(0, 131, 20.0)
    frames = np.stack([towards(-UP, AWAY[Side.RIGHT], angle) for angle in wide])
    assert np.allclose(joint_angles(np.eye(4), frames, Side.RIGHT).angles, np.c_[0 * wide, wide, 0 * wide], atol=1e-6)


@pytest.mark.parametrize("order", ["XYZ", "zxy", "ZYZ", "xzx"])
def test_any_order_is_scipy_s_and_its_continuation_stays_the_same_rotation(order):
    """Smooth angles with the middle one far beyond its principal range come back as they were made."""
    time = np.linspace(0, 1, 60)
    made = np.c_[300 * time, 40 + 200 * time**2, -500 * time]
    frames = np.tile(np.eye(4), (60, 1, 1))
    frames[:, :3, :3] = Rotation.from_euler(order, made, degrees=True).as_matrix()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DiffDRRWarning)
        found = cardan_angles(np.eye(4), frames, order)
        jumping = cardan_angles(np.eye(4), frames, order, continuous=False)
    assert np.allclose(found, made, atol=1e-6)
    assert np.abs(jumping.numpy() - made).max() > 100
    again = Rotation.from_euler(order, found.numpy(), degrees=True).as_matrix()
    assert np.allclose(again, frames[:, :3, :3], atol=1e-9)


def test_frames_without_a_pose_are_nan_and_do_not_break_the_sequence():
    turns = np.arange(0, 400, 40.0)
    frames = np.stack([towards(FRONT, AWAY[Side.LEFT], angle) for angle in turns])
    frames[4:6] = np.nan
    motion = joint_angles(np.eye(4), frames, Side.LEFT)
    assert torch.isnan(motion.rotation).tolist() == [number in (4, 5) for number in range(10)]
    there = np.r_[0:4, 6:10]
    assert np.allclose(motion.rotation[there], turns[there], atol=1e-6)
    assert bool(torch.isnan(motion.translations[4:6]).all())


def test_gimbal_lock_is_told():
    with pytest.warns(DiffDRRWarning, match="within 5 degrees of gimbal lock") as caught:
        joint_angles(np.eye(4), towards(-UP, AWAY[Side.RIGHT], 86), Side.RIGHT)
    assert caught[0].filename == __file__
    frames = np.stack([turned(UP, 0), turned(UP, 20), turned(FRONT, 30)])
    with pytest.warns(DiffDRRWarning, match="first in frame 0 of"):
        cardan_angles(np.eye(4), frames, "ZYZ")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        joint_angles(np.eye(4), towards(-UP, AWAY[Side.RIGHT], 84), Side.RIGHT)
        cardan_angles(np.eye(4), turned(FRONT, 30), "ZYZ")


LANDMARKS = {
    "hip": (5.0, 10.0, 400.0),
    "medial": [-35.0, 11.0, 2.0],
    "lateral": np.array([45.0, 9.0, -2.0]),
    "ankle": torch.tensor([6.0, 10.0, -400.0]),
}
FEMUR = {"origin": ("medial", "lateral"), "up": (("medial", "lateral"), "hip"), "right": ("medial", "lateral")}


def test_a_frame_of_landmarks():
    """The midpoint of the condyles (5, 10, 0); z straight up to the hip; x = (80, -2, -4) made level."""
    pose = body_frame(LANDMARKS, **FEMUR).matrix.numpy()
    assert np.allclose(pose[:3, 3], [5, 10, 0])
    assert np.allclose(pose[:3, 2], [0, 0, 1], atol=1e-12)
    assert np.allclose(pose[:3, 0], np.array([80, -2, 0]) / np.hypot(80, 2))
    assert np.allclose(pose[:3, 1], np.array([2, 80, 0]) / np.hypot(80, 2))
    kept = body_frame(LANDMARKS, **FEMUR, keep=Keep.RIGHT).matrix.numpy()
    assert np.allclose(kept[:3, 0], np.array([80, -2, -4]) / np.sqrt(80**2 + 2**2 + 4**2))
    assert np.allclose(kept[:3, 1], pose[:3, 1])
    assert np.linalg.det(kept[:3, :3]) == pytest.approx(1)


@given(seed=seeds)
@settings(max_examples=20, deadline=None)
def test_a_frame_moves_with_its_landmarks(seed):
    motion = Pose(samples.rigid(np.random.default_rng(seed)))
    points = motion.transform(torch.stack([torch.as_tensor(point).double() for point in LANDMARKS.values()]))
    moved = body_frame(dict(zip(LANDMARKS, points, strict=True)), **FEMUR)
    assert torch.allclose(moved.matrix, (motion @ body_frame(LANDMARKS, **FEMUR)).matrix, atol=1e-9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"origin": "knee"}, "no landmark 'knee'; there are: ankle, hip, lateral, medial"),
        ({"origin": ()}, "at least one landmark"),
        ({"up": ("hip", "hip")}, "'hip' to 'hip' has no length"),
        ({"up": "hip"}, r"pair of landmarks \(from, to\), got 'hip'"),
        ({"right": ("ankle", "hip")}, "'medial-lateral' to 'hip' and 'ankle' to 'hip' are nearly parallel"),
    ],
)
def test_landmarks_that_make_no_frame(change, message):
    with pytest.raises(GeometryError, match=message):
        body_frame(LANDMARKS, **{**FEMUR, **change})


def test_a_landmark_is_three_finite_numbers():
    for point in ((1.0, 2.0), (1.0, 2.0, np.nan)):
        with pytest.raises(GeometryError, match="landmark 'hip' must be three finite numbers"):
            body_frame({**LANDMARKS, "hip": point}, **FEMUR)


def test_bad_frames_are_one_clear_error():
    eye = np.eye(4)
    with pytest.raises(GeometryError, match="3 and 2 frames"):
        joint_angles(np.stack([eye] * 3), np.stack([eye] * 2), Side.RIGHT)
    with pytest.raises(GeometryError, match="not rigid"):
        joint_angles(eye, np.diag([2.0, 1, 1, 1]), Side.RIGHT)
    with pytest.raises(GeometryError, match=r"\[4, 4\] or \[frames, 4, 4\], got shape \[3, 4\]"):
        joint_angles(eye, np.eye(4)[:3], Side.RIGHT)
    with pytest.raises(GeometryError, match=r"Side\.LEFT or Side\.RIGHT, got 'right'"):
        joint_angles(eye, eye, "right")
    with pytest.raises(GeometryError, match="order of axes"):
        cardan_angles(eye, eye, "XXZ")
    square = JointMotion(*torch.tensor([0.0, 90, 0, 1, 2, 3], dtype=torch.float64))
    with pytest.raises(GeometryError, match="axes are parallel"):
        distal_frame(eye, square, Side.RIGHT)
