"""Rotation parameterizations against SciPy and NumPy, and their gradients where formulas are singular."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from scipy.spatial.transform import Rotation

from DiffDRRCore import Pose
from DiffDRRCore.errors import GeometryError
from DiffDRRCore.geometry.rotations import PARAMETERIZATIONS, rotation_matrix, rotation_parameters
from DiffDRRCore.geometry.se3 import exp_so3
from Testing.core.samples import differences, jacobian, seeds

ORDERS = [
    "".join(axes)
    for letters in ("XYZ", "xyz")
    for axes in itertools.product(letters, repeat=3)
    if axes[0] != axes[1] and axes[1] != axes[2]
]
TAIT_BRYAN = [order for order in ORDERS if len(set(order)) == 3]
CONVENTIONS = {"euler_angles": "ZXY"}

AXIS = np.array([0.36, -0.48, 0.8])
SPECIAL = {
    "identity": np.zeros(3),
    "1e-9 rad": 1e-9 * AXIS,
    "1e-5 rad": 1e-5 * AXIS,
    "1 rad": AXIS,
    "180 degrees": np.pi * AXIS,
    "180 degrees about x": np.array([np.pi, 0, 0]),
    "180 degrees about y": np.array([0, np.pi, 0]),
    "180 degrees about z": np.array([0, 0, np.pi]),
    "ZXY gimbal lock": 2 * np.pi / 3 / np.sqrt(3) * np.ones(3),  # all components of its quaternion are equal
}
# Every parameterization at every special rotation, but where the four columns of the adjugate are equally long: which
# one is read, and so the gradient, changes there.
CASES = [
    (name, where)
    for name, where in itertools.product(PARAMETERIZATIONS, SPECIAL)
    if (name, where) != ("quaternion_adjugate", "ZXY gimbal lock")
]


def scipy_rotations(seed: int, count: int = 6) -> Rotation:
    return Rotation.random(count, rng=np.random.default_rng(seed))


def tensor(array) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def test_all_twelve_orders_of_both_kinds_are_tested():
    assert len(ORDERS) == 24


@pytest.mark.parametrize("order", ORDERS)
def test_euler_angles_agree_with_scipy_both_ways(order):
    rotations = scipy_rotations(3)
    angles = rotations.as_euler(order)
    assert np.allclose(rotation_matrix(tensor(angles), "euler_angles", order), rotations.as_matrix(), atol=1e-14)
    found = rotation_parameters(tensor(rotations.as_matrix()), "euler_angles", order)
    assert np.allclose(found, angles, atol=1e-12)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("first, last", [(0.0, 0.0), (0.4, -1.1), (np.pi, 0.3)])
def test_euler_angles_in_gimbal_lock_compose_to_the_matrix_and_have_finite_gradients(order, first, last):
    middles = (np.pi / 2, -np.pi / 2) if order in TAIT_BRYAN else (0.0, np.pi)
    for middle, nudge in itertools.product(middles, (0.0, 1e-15, 1e-12, 1e-9, 1e-5)):
        matrix = tensor(Rotation.from_euler(order, [first, middle + nudge, last]).as_matrix())
        angles = rotation_parameters(matrix, "euler_angles", order)
        again = Rotation.from_euler(order, angles.numpy()).as_matrix()
        assert np.allclose(again, matrix, atol=3e-15)
        gradient = jacobian(lambda m: rotation_parameters(m, "euler_angles", order), matrix)
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("order", ORDERS)
def test_the_free_angle_is_zero_in_gimbal_lock(order):
    middle = np.pi / 2 if order in TAIT_BRYAN else 0.0
    matrix = tensor(Rotation.from_euler(order, [0.4, middle, -1.1]).as_matrix())
    angles = rotation_parameters(matrix, "euler_angles", order)
    assert abs(angles[2 if order.isupper() else 0]) < 1e-15


@pytest.mark.parametrize("order", ORDERS)
def test_gradients_of_euler_angles_in_gimbal_lock(order):
    middle = np.pi / 2 if order in TAIT_BRYAN else 0.0
    for angles in ([0.4, middle, -1.1], [0.0, middle, 0.0], [0.4, middle + 1e-9, -1.1]):
        angles = torch.tensor(angles, dtype=torch.float64)
        to_matrix = lambda a: rotation_matrix(a, "euler_angles", order)  # noqa: E731
        assert torch.allclose(jacobian(to_matrix, angles), differences(to_matrix, angles), atol=1e-8)


def test_rotation_vectors_and_quaternions_agree_with_scipy():
    rotations = scipy_rotations(4)
    matrices = tensor(rotations.as_matrix())
    assert np.allclose(rotation_parameters(matrices, "axis_angle"), rotations.as_rotvec(), atol=1e-13)
    assert np.allclose(rotation_matrix(tensor(rotations.as_rotvec()), "axis_angle"), matrices, atol=1e-14)
    for convention, scalar_first in ((None, False), ("xyzw", False), ("wxyz", True)):
        quaternions = rotations.as_quat(scalar_first=scalar_first)
        assert np.allclose(rotation_matrix(tensor(2.5 * quaternions), "quaternion", convention), matrices, atol=1e-14)
        found = rotation_parameters(matrices, "quaternion", convention).numpy()
        assert np.allclose(np.abs((found * quaternions).sum(-1)), 1, atol=1e-14)


def test_quaternion_adjugate_is_the_outer_product():
    rotations = scipy_rotations(5)
    q = rotations.as_quat()
    rows, columns = np.triu_indices(4)
    outer = q[:, rows] * q[:, columns]
    matrices = tensor(rotations.as_matrix())
    assert np.allclose(rotation_parameters(matrices, "quaternion_adjugate"), outer, atol=1e-14)
    assert np.allclose(rotation_matrix(tensor(-3.0 * outer), "quaternion_adjugate"), matrices, atol=1e-13)


def test_6d_is_gram_schmidt_of_the_first_two_columns():
    values = np.random.default_rng(6).normal(size=(5, 6))
    x = values[:, :3] / np.linalg.norm(values[:, :3], axis=1, keepdims=True)
    y = values[:, 3:] - (values[:, 3:] * x).sum(1, keepdims=True) * x
    y /= np.linalg.norm(y, axis=1, keepdims=True)
    expected = np.stack([x, y, np.cross(x, y)], axis=-1)
    assert np.allclose(rotation_matrix(tensor(values), "rotation_6d"), expected, atol=1e-14)


def test_9d_is_the_nearest_rotation():
    values = np.random.default_rng(7).normal(size=(5, 9))
    for row, found in zip(values, rotation_matrix(tensor(values), "rotation_9d"), strict=True):
        u, _, vt = np.linalg.svd(row.reshape(3, 3))
        expected = u @ np.diag([1, 1, np.linalg.det(u @ vt)]) @ vt
        assert np.allclose(found, expected, atol=1e-13)


def test_10d_is_the_eigenvector_of_the_smallest_eigenvalue():
    values = np.random.default_rng(8).normal(size=(5, 10))
    for row, found in zip(values, rotation_matrix(tensor(values), "rotation_10d"), strict=True):
        symmetric = np.zeros((4, 4))
        symmetric[np.triu_indices(4)] = row
        symmetric = symmetric + symmetric.T - np.diag(np.diag(symmetric))
        q = np.linalg.eigh(symmetric).eigenvectors[:, 0]
        assert np.allclose(found, Rotation.from_quat(q).as_matrix(), atol=1e-12)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-6), (torch.float64, 2e-14)])
@pytest.mark.parametrize("name", PARAMETERIZATIONS)
def test_every_parameterization_goes_both_ways(name, dtype, tolerance):
    special = Rotation.from_rotvec(np.stack(list(SPECIAL.values()))).as_matrix()
    random = scipy_rotations(9, 9).as_matrix()
    matrices = tensor(np.stack([special, random])).to(dtype)
    for convention in ORDERS if name == "euler_angles" else [None]:
        values = rotation_parameters(matrices, name, convention)
        assert values.dtype == dtype
        assert values.shape == (2, 9, *PARAMETERIZATIONS[name].shape)
        again = rotation_matrix(values, name, convention)
        assert again.dtype == dtype
        assert (again - matrices).abs().max() < tolerance


@pytest.mark.parametrize("name, where", CASES)
def test_gradients_from_numbers_to_matrix(name, where):
    values = rotation_parameters(exp_so3(tensor(SPECIAL[where])), name, CONVENTIONS.get(name))
    to_matrix = lambda v: rotation_matrix(v, name, CONVENTIONS.get(name))  # noqa: E731
    assert torch.allclose(jacobian(to_matrix, values), differences(to_matrix, values), atol=1e-8)


@pytest.mark.parametrize("where", SPECIAL)
@pytest.mark.parametrize("name", PARAMETERIZATIONS)
def test_gradients_from_matrix_to_numbers(name, where):
    """Along rotations of the matrix, the directions in which it can move; finite where the map itself jumps."""
    matrix = exp_so3(tensor(SPECIAL[where]))

    def to_values(omega):
        values = rotation_parameters(exp_so3(omega) @ matrix, name, CONVENTIONS.get(name))
        return torch.cat([values.sin(), values.cos()]) if name == "euler_angles" else values  # pi and -pi are one angle

    at = torch.zeros(3, dtype=torch.float64)
    gradient = jacobian(to_values, at)
    assert torch.isfinite(gradient).all()
    jumps = {"axis_angle": "180", "euler_angles": "ZXY"}
    if not where.startswith(jumps.get(name, "nowhere")):
        assert torch.allclose(gradient, differences(to_values, at), atol=1e-6)


@pytest.mark.parametrize("angle", [1e-12, 1e-9, 1e-7, 1e-4, 0.499, 0.501, 3.0, np.pi - 1e-4])
def test_gradient_of_the_rotation_vector_near_its_singular_angles(angle):
    matrix = tensor(Rotation.from_rotvec(angle * AXIS).as_matrix())
    to_vector = lambda w: rotation_parameters(exp_so3(w) @ matrix, "axis_angle")  # noqa: E731
    at = torch.zeros(3, dtype=torch.float64)
    assert torch.allclose(jacobian(to_vector, at), differences(to_vector, at), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name, where", CASES)
def test_float32_gradients_are_those_of_float64(name, where):
    values = rotation_parameters(exp_so3(tensor(SPECIAL[where])), name, CONVENTIONS.get(name))
    to_matrix = lambda v: rotation_matrix(v, name, CONVENTIONS.get(name))  # noqa: E731
    assert torch.allclose(jacobian(to_matrix, values.float()).double(), jacobian(to_matrix, values), atol=1e-5)


@given(seed=seeds)
@settings(max_examples=30, deadline=None)
def test_exp_agrees_with_scipy_at_any_angle(seed):
    rng = np.random.default_rng(seed)
    vector = rng.normal(size=3) * 10 ** rng.uniform(-12, 1)
    assert np.allclose(exp_so3(tensor(vector)), Rotation.from_rotvec(vector).as_matrix(), atol=1e-14)


def test_bad_numbers_are_refused_in_one_sentence():
    pose = Pose.identity()
    with pytest.raises(GeometryError, match=r"choose from axis_angle, .*se3_log"):
        pose.to_parameters("euler")
    with pytest.raises(GeometryError, match="'ZXY'"):
        pose.to_parameters("euler_angles")
    for order in ("XXY", "XyZ", "XY", "ABC"):
        with pytest.raises(GeometryError, match=order):
            pose.to_parameters("euler_angles", order)
    with pytest.raises(GeometryError, match="xyzw"):
        pose.to_parameters("quaternion", "wzyx")
    with pytest.raises(GeometryError, match=r"axis_angle takes \[..., 3\] numbers, got shape \[4\]"):
        Pose.from_parameters([0, 0, 0, 1], [0, 0, 0], "axis_angle")
    with pytest.raises(GeometryError, match="norm zero"):
        Pose.from_parameters([0, 0, 0, 0], [0, 0, 0], "quaternion")
    with pytest.raises(GeometryError, match="not finite"):
        Pose.from_parameters([1, 0, 0, 2, 0, 0], [0, 0, 0], "rotation_6d")
    with pytest.raises(GeometryError, match="reflection"):
        Pose.from_parameters(np.diag([1.0, 1.0, -1.0]), [0, 0, 0], "matrix")
    with pytest.raises(GeometryError, match="three numbers"):
        Pose.from_parameters([0, 0, 0], [0, 0], "axis_angle")
