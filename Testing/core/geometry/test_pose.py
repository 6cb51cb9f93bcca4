"""Poses: exponential and logarithm against SciPy's matrix functions, retraction, composition, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from DiffDRRCore import Pose
from DiffDRRCore.errors import GeometryError
from DiffDRRCore.geometry import as_tensor, stack_poses
from Testing.core import samples
from Testing.core.samples import differences, jacobian, seeds

AXIS = np.array([0.36, -0.48, 0.8])
ANGLES = [0.0, 1e-12, 1e-9, 1e-5, 0.1, 0.4999, 0.5001, 1.0, 3.0, np.pi]
SHIFT = np.array([30.0, -200.0, 75.0])


def twist_matrix(xi: np.ndarray) -> np.ndarray:
    """The element [4, 4] of the Lie algebra se(3)."""
    matrix = np.zeros((4, 4))
    x, y, z = xi[:3]
    matrix[:3, :3] = [[0, -z, y], [z, 0, -x], [-y, x, 0]]
    matrix[:3, 3] = xi[3:]
    return matrix


def random_pose(seed: int) -> Pose:
    return Pose(samples.rigid(np.random.default_rng(seed)))


@pytest.mark.parametrize("angle", [*ANGLES, 5.0])
def test_exp_is_the_matrix_exponential(angle):
    xi = np.concatenate([angle * AXIS, SHIFT])
    expected = scipy.linalg.expm(twist_matrix(xi))
    assert np.allclose(Pose.exp(xi).matrix, expected, rtol=0, atol=1e-11)  # rounding of translations of hundreds of mm


@pytest.mark.parametrize("angle", ANGLES[:-1])
def test_log_is_the_matrix_logarithm(angle):
    matrix = scipy.linalg.expm(twist_matrix(np.concatenate([angle * AXIS, SHIFT])))
    expected = scipy.linalg.logm(matrix).real
    assert np.allclose(twist_matrix(Pose(matrix).log().numpy()), expected, rtol=0, atol=1e-10)


@given(seed=seeds)
@settings(max_examples=30, deadline=None)
def test_exp_undoes_log(seed):
    rng = np.random.default_rng(seed)
    turn = Rotation.from_rotvec(rng.choice([1e-9, 1e-4, 0.5, 1, np.pi - 1e-7, np.pi]) * AXIS).as_matrix()
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = turn, rng.normal(0, 300, 3)
    assert np.allclose(Pose.exp(Pose(matrix).log()).matrix, matrix, rtol=0, atol=1e-10)


@pytest.mark.parametrize("angle", [*ANGLES, 5.0])
def test_gradient_of_exp(angle):
    xi = torch.from_numpy(np.concatenate([angle * AXIS, SHIFT]))
    exp = lambda x: Pose.exp(x).matrix  # noqa: E731
    assert torch.allclose(jacobian(exp, xi), differences(exp, xi), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("angle", [0.0, 1e-12, 1e-9, 1e-5, 0.4999, 0.5001, 1.0, 3.0])
def test_gradient_of_log(angle):
    pose = Pose.exp(np.concatenate([angle * AXIS, SHIFT]))
    log = lambda x: (Pose.exp(x) @ pose).log()  # noqa: E731
    at = torch.zeros(6, dtype=torch.float64)
    assert torch.allclose(jacobian(log, at), differences(log, at), rtol=1e-5, atol=1e-5)


def test_gradient_of_log_is_finite_at_180_degrees():
    for axis in (AXIS, [1, 0, 0], [0, 1, 0], [0, 0, 1]):
        pose = Pose.exp(np.concatenate([np.pi * np.array(axis), SHIFT]))
        at = torch.zeros(6, dtype=torch.float64)
        assert torch.isfinite(jacobian(lambda x, pose=pose: (Pose.exp(x) @ pose).log(), at)).all()


@pytest.mark.parametrize("angle", [0.0, 1e-9, 0.5, np.pi])
def test_float32_exp_and_its_gradient_follow_float64(angle):
    xi = torch.from_numpy(np.concatenate([angle * AXIS, SHIFT]))
    exp = lambda x: Pose.exp(x).matrix  # noqa: E731
    assert exp(xi.float()).dtype == torch.float32
    assert torch.allclose(exp(xi.float()).double(), exp(xi), rtol=1e-5, atol=1e-5)
    assert torch.allclose(jacobian(exp, xi.float()).double(), jacobian(exp, xi), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("degrees", [False, True])
def test_se3_log_parameters_are_the_twist(degrees):
    xi = np.concatenate([0.7 * AXIS, SHIFT])
    rotation = np.degrees(xi[:3]) if degrees else xi[:3]
    pose = Pose.from_parameters(rotation, xi[3:], "se3_log", degrees=degrees)
    assert np.allclose(pose.matrix, scipy.linalg.expm(twist_matrix(xi)), atol=1e-12)
    found = pose.to_parameters("se3_log", degrees=degrees)
    assert np.allclose(found[0], rotation) and np.allclose(found[1], xi[3:])


@pytest.mark.parametrize("name, convention", [("axis_angle", None), ("euler_angles", "ZXY"), ("euler_angles", "xyx")])
def test_degrees_are_degrees_and_the_translation_is_the_last_column(name, convention):
    angles = np.array([[20.0, 30.0, 40.0], [-5.0, 60.0, 100.0]])
    expected = Rotation.from_rotvec(angles, degrees=True)
    if convention:
        expected = Rotation.from_euler(convention, angles, degrees=True)
    pose = Pose.from_parameters(angles, SHIFT, name, convention, degrees=True)
    assert np.allclose(pose.rotation, expected.as_matrix())
    assert np.allclose(pose.matrix[:, :3, 3], SHIFT)
    rotation, translation = pose.to_parameters(name, convention, degrees=True)
    assert np.allclose(rotation, angles)
    assert np.allclose(translation, SHIFT)


@given(seed=seeds)
@settings(max_examples=30, deadline=None)
def test_retract_is_a_motion_about_the_pivot(seed):
    rng = np.random.default_rng(seed)
    pose, pivot = Pose(samples.rigid(rng)), rng.normal(0, 200, 3)
    xi = np.concatenate([rng.normal(0, 1, 3), rng.normal(0, 50, 3)])
    there, back = np.eye(4), np.eye(4)
    there[:3, 3], back[:3, 3] = pivot, -pivot
    motion = scipy.linalg.expm(twist_matrix(xi))
    expected = there @ motion @ back @ pose.matrix.numpy()
    assert np.allclose(pose.retract(xi, about=pivot).matrix, expected, atol=1e-9)
    assert np.allclose(pose.retract(xi).matrix, motion @ pose.matrix.numpy(), atol=1e-9)
    assert np.allclose(pose.retract(np.zeros(6), about=pivot).matrix, pose.matrix, atol=1e-12)


@given(seed=seeds)
@settings(max_examples=30, deadline=None)
def test_the_pivot_stays_where_it_is_in_the_image_of_a_turning_camera(seed):
    """Pure rotation: a camera that is turned about p sees p at the same place; p is a fixed point of the motion."""
    rng = np.random.default_rng(seed)
    pose, pivot = Pose(samples.rigid(rng)), rng.normal(0, 200, 3)
    turned = pose.retract(np.concatenate([rng.normal(0, 1, 3), np.zeros(3)]), about=pivot)
    before = pose.inverse().transform(pivot[None])
    assert np.allclose(turned.inverse().transform(pivot[None]), before, atol=1e-9)
    assert not np.allclose(turned.matrix, pose.matrix)


def test_retract_in_batches():
    rng = np.random.default_rng(1)
    xi, pivots = rng.normal(0, 0.3, (4, 6)), rng.normal(0, 100, (4, 3))
    pose = random_pose(2)
    together = pose.retract(xi, about=pivots)
    for index in range(4):
        assert torch.allclose(together[index].matrix, pose.retract(xi[index], about=pivots[index]).matrix, atol=1e-12)
    poses = stack_poses([random_pose(seed) for seed in range(4)])
    assert torch.allclose(poses.retract(xi[0], about=pivots[0])[3].matrix, poses[3].retract(xi[0], pivots[0]).matrix)


@pytest.mark.parametrize("about", [None, (10.0, -20.0, 30.0)])
def test_gradient_of_retract_at_zero(about):
    pose = random_pose(5)
    retract = lambda x: pose.retract(x, about).matrix  # noqa: E731
    at = torch.zeros(6, dtype=torch.float64)
    assert torch.allclose(jacobian(retract, at), differences(retract, at), rtol=1e-6, atol=1e-6)


def test_compose_applies_the_right_one_first():
    quarter_turn_about_z = Pose([[0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    shift_along_x = Pose([[1, 0, 0, 5], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    points = [[1.0, 2.0, 3.0]]
    assert (quarter_turn_about_z @ shift_along_x).transform(points).tolist() == [[-2, 6, 3]]
    assert quarter_turn_about_z.compose(shift_along_x).transform(points).tolist() == [[-2, 6, 3]]
    assert (shift_along_x @ quarter_turn_about_z).transform(points).tolist() == [[3, 1, 3]]


@given(seed=st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_inverse_and_transform(seed):
    pose = random_pose(seed)
    points = np.random.default_rng(seed).normal(0, 100, (5, 3))
    expected = (pose.matrix.numpy() @ np.c_[points, np.ones(5)].T).T[:, :3]
    assert np.allclose(pose.transform(points), expected, atol=1e-10)
    assert np.allclose(pose.inverse().matrix, np.linalg.inv(pose.matrix), atol=1e-10)


def test_batches_are_sequences_of_poses():
    poses = [random_pose(seed) for seed in range(3)]
    batch = stack_poses(poses)
    assert len(batch) == 3
    assert all(torch.equal(one.matrix, other.matrix) for one, other in zip(batch, poses, strict=True))
    assert batch[1:].matrix.shape == (2, 4, 4)
    points = torch.randn(3, 7, 3, dtype=torch.float64)
    moved = batch.transform(points)
    assert all(torch.allclose(moved[i], poses[i].transform(points[i]), atol=1e-10) for i in range(3))
    assert batch.transform(points[0]).shape == (3, 7, 3)
    with pytest.raises(TypeError):
        len(poses[0])
    with pytest.raises(TypeError):
        poses[0][0]


def test_dtypes_are_kept():
    assert Pose.identity().matrix.dtype == torch.float64
    assert Pose(np.eye(4, dtype=np.float32)).matrix.dtype == torch.float32
    assert Pose(np.eye(4, dtype=int).tolist()).matrix.dtype == torch.float64
    assert Pose.identity().to(torch.float32).matrix.dtype == torch.float32
    assert Pose.identity(torch.float32).transform(torch.ones(1, 3)).dtype == torch.float32


def test_lists_of_tensors_stack_as_numpy_would_and_keep_their_graph():
    points = [torch.tensor([1.0, 2.0, 3.0]), torch.tensor([4.0, 5.0, 6.0]), torch.tensor([7.0, 8.0, 9.0])]
    assert torch.equal(as_tensor(points), torch.stack(points))
    focal = torch.tensor(7.0, requires_grad=True)
    matrix = as_tensor([[focal, 0], [0, focal]])
    assert torch.autograd.grad(matrix.sum(), focal)[0] == 2
    assert as_tensor(np.array([1.0, 2.0], dtype=">f8")).tolist() == [1, 2]
    for bad in ("abc", [[1, 2], [3]], None, [torch.ones(2), torch.ones(3)]):
        with pytest.raises(GeometryError, match="Expected numbers"):
            as_tensor(bad)


@pytest.mark.parametrize(
    "matrix, sentence",
    [
        (np.eye(3), "4 x 4"),
        (np.diag([1.0, 1, -1, 1]), "view_from='detector'"),
        (np.diag([2.0, 1, 1, 1]), "scales or shears"),
        (np.array([[1.0, 0.1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), "scales or shears"),
        (np.full((4, 4), np.nan), "not finite"),
        (np.eye(4)[[3, 1, 2, 0]], "last row"),
        (np.stack([np.eye(4), np.diag([1.0, 1, -1, 1])]), "reflection"),
    ],
)
def test_what_is_not_rigid_is_refused(matrix, sentence):
    with pytest.raises(GeometryError, match=sentence):
        Pose(matrix)


def test_a_matrix_typed_by_hand_is_kept_as_given():
    matrix = np.eye(4)
    matrix[:3, :3] = np.round(Rotation.from_euler("z", 30, degrees=True).as_matrix(), 4)
    assert np.array_equal(Pose(matrix).matrix, matrix)


def test_wrong_shapes_are_named():
    with pytest.raises(GeometryError, match="six numbers"):
        Pose.exp([1, 2, 3])
    with pytest.raises(GeometryError, match="six numbers"):
        Pose.identity().retract([1, 2, 3, 4])
    with pytest.raises(GeometryError, match="three numbers"):
        Pose.identity().transform([[1, 2]])
