"""Pasted matrices: projection matrices and K, in any writing, and text that is neither."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from DiffDRRCore import Camera, Pose, project
from DiffDRRCore.errors import DiffDRRError, GeometryError, ReadError
from DiffDRRSlicerLib.scene.errors import SceneError
from DiffDRRSlicerLib.scene.matrices import apply_matrix
from DiffDRRSlicerLib.scene.xrays import add_xray, xray_volume
from Testing.core.samples import looking_at, rigid
from Testing.scene import kit

K = np.array([[-2500.0, 12.5, 19.0], [0.0, 2400.0, 15.0], [0.0, 0.0, 1.0]])
CENTER = np.array([10.0, -20.0, 30.0])
TRUTH = looking_at(np.random.default_rng(5), CENTER, 680.0)
MISSING = [
    f"{word} (x assumed)"
    for word in ("source-to-detector distance", "pixel spacing", "primary angle", "patient position", "intensity")
]


def projection(pose=TRUTH):
    """By hand: K (R^T | -R^T source)."""
    rotation, source = pose.matrix.numpy()[:3, :3], pose.matrix.numpy()[:3, 3]
    return K @ np.column_stack([rotation.T, -rotation.T @ source])


@pytest.fixture
def carm(scene):
    camera = Camera(30, 40, (0.4, 0.4), 1000.0)
    pose = looking_at(np.random.default_rng(6), CENTER + 5, 700.0)
    return add_xray(scene, np.ones((30, 40)), camera, pose, {"missing": MISSING}, source_to_isocenter=700.0)


def numbers(matrix, between=" "):
    return between.join(repr(float(value)) for value in np.ravel(matrix))


def rows(matrix):
    return "\n".join(" ".join(f"{value:.17g}" for value in row) for row in matrix)


WRITINGS = {
    "rows": rows,
    "one line": numbers,
    "commas": lambda P: numbers(P, ", "),
    "semicolons": lambda P: "; ".join(numbers(row) for row in P),
    "Python": lambda P: str(P.tolist()),
    "MATLAB": lambda P: "[" + ";\n".join(numbers(row, ",\t") for row in P) + "]",
    "braces": lambda P: "{" + ",".join("{" + numbers(row, ",") + "}" for row in P) + "}",
    "scientific": lambda P: " ".join(f"{value:+.16E}" for value in P.ravel()),
    "Windows": lambda P: rows(P).replace("\n", "\r\n") + "\r\n",
    "scaled": lambda P: rows(-0.0037 * P),
    "4 x 4": lambda P: rows(np.vstack([P, [0, 0, 0, 1]])),
}


@pytest.mark.parametrize("writing", WRITINGS)
def test_a_projection_matrix_sees_every_point_where_it_says(carm, writing):
    apply_matrix(carm, WRITINGS[writing](projection()), CENTER)
    points = CENTER + np.random.default_rng(7).normal(0, 40, (20, 3))
    homogeneous = np.column_stack([points, np.ones(20)]) @ projection().T
    assert np.allclose(project(carm.camera, carm.pose, points)[0], homogeneous[:, :2] / homogeneous[:, 2:], atol=1e-6)
    assert np.allclose(carm.pose.matrix, TRUTH.matrix, atol=1e-8)
    assert (carm.camera.height, carm.camera.width) == (30, 40) and float(carm.camera.source_to_detector) == 1000
    assert carm.source_to_isocenter == pytest.approx(680) and carm.depth == pytest.approx(680)
    u, v = project(carm.camera, carm.pose, CENTER[None])[0, 0].tolist()
    assert np.allclose(kit.apply(kit.to_world(xray_volume(carm)), [u, v, 0]), CENTER, atol=1e-6)
    assert carm.meta["missing"] == [MISSING[0], MISSING[4]]


def test_without_a_point_the_isocentre_tells_the_side(carm):
    apply_matrix(carm, rows(-projection()))
    assert np.allclose(carm.pose.matrix, TRUTH.matrix, atol=1e-8)


def test_the_other_side_of_the_source(carm):
    """A point behind the source turns the camera round: then the pixel matrix needs a rotation by 180 degrees."""
    behind = TRUTH.translation.numpy() - 100 * TRUTH.rotation.numpy()[:, 2]
    apply_matrix(carm, rows(projection()), behind)
    assert np.allclose(carm.pose.rotation[:, 2], -TRUTH.rotation[:, 2])
    assert carm.source_to_isocenter == pytest.approx(100)


def test_a_source_to_detector_distance_beside_the_matrix(carm):
    apply_matrix(carm, rows(projection()), CENTER, source_to_detector=1250.0)
    assert float(carm.camera.source_to_detector) == 1250 and carm.meta["missing"] == [MISSING[4]]
    assert np.allclose(carm.camera.K, K)


def test_a_projection_below_a_transform(scene, carm):
    parent = rigid(np.random.default_rng(8))
    carm.node.SetAndObserveTransformNodeID(kit.add_transform(scene, parent).GetID())
    apply_matrix(carm, rows(projection()), CENTER)
    assert np.allclose(carm.pose.matrix, TRUTH.matrix, atol=1e-8)


@pytest.mark.parametrize("scale", [1.0, -2.5])
def test_a_K_leaves_the_pose(carm, scale):
    before = carm.pose.matrix.clone()
    apply_matrix(carm, numbers(scale * K, ";"))
    assert np.allclose(carm.camera.K, K) and float(carm.camera.source_to_detector) == 1000
    assert torch.equal(carm.pose.matrix, before) and carm.source_to_isocenter == 700
    assert carm.meta["missing"] == [MISSING[0], *MISSING[2:]]


POSE_TEXT = rows(TRUTH.matrix.numpy())
BAD = {
    "": (SceneError, "There is no matrix in the text"),
    " [ ; ] ": (SceneError, "There is no matrix in the text"),
    "P = 1 2 3": (SceneError, "'P' is not a number; paste the numbers"),
    "1 2 3 4,5x": (SceneError, "'5x' is not a number"),
    "1 2 nan 4 5 6 7 8 9": (SceneError, "'nan' is not a finite number"),
    "1 2 1e999 4 5 6 7 8 9": (SceneError, "'1e999' is not a finite number"),
    "1_0 2 3 4 5 6 7 8 9": (SceneError, "'1_0' is not a"),
    "1 2 3 4 5": (SceneError, "has 5 numbers; paste the 12"),
    "1 " * 13: (SceneError, "has 13 numbers"),
    "0 " * 12: (GeometryError, "singular"),
    numbers(np.vstack([projection(), [0, 0, 1, 1]])): (SceneError, "its last row must be 0 0 0 1"),
    numbers(np.vstack([projection(), [0, 0, 0, 0]])): (SceneError, "its last row must be 0 0 0 1"),
    POSE_TEXT: (SceneError, "is a pose"),
    numbers(np.diag([2.0, 2, 2, 1]) @ TRUTH.matrix.numpy()): (SceneError, "is a pose"),
    "0 0 1 0 1 0 1 0 0": (SceneError, "its last number must not be zero"),
    "100 0 20 50 100 15 0 0 1": (GeometryError, "upper triangular"),
    "0 0 20 0 100 15 0 0 1": (GeometryError, "focal lengths of K must not be zero"),
    "1 0 0.5 0 1 0.5 0 0 1": (ReadError, "pixel_spacing = 1000 mm is outside"),
}


@pytest.mark.parametrize("text", BAD, ids=range(len(BAD)))
def test_bad_text_changes_nothing(carm, text):
    error, message = BAD[text]
    before = carm.camera.K, carm.pose.matrix, carm.meta, carm.source_to_isocenter, carm.depth
    with pytest.raises(error, match=message):
        apply_matrix(carm, text, CENTER)
    after = carm.camera.K, carm.pose.matrix, carm.meta, carm.source_to_isocenter, carm.depth
    assert all(
        np.array_equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in zip(before, after, strict=True)
    )


def test_bad_points_and_distances(carm):
    text = rows(projection())
    with pytest.raises(GeometryError, match="plane of the source"):
        apply_matrix(carm, text, TRUTH.translation)
    with pytest.raises(GeometryError, match="must be positive"):
        apply_matrix(carm, text, CENTER, source_to_detector=-1.0)
    with pytest.raises(DiffDRRError, match="three numbers"):
        apply_matrix(carm, text, (0.0, 1.0))


def test_a_carm_below_a_scale(scene, carm):
    carm.node.SetAndObserveTransformNodeID(kit.add_transform(scene, np.diag([2.0, 1, 1, 1])).GetID())
    before = carm.camera.K
    with pytest.raises(SceneError, match="scaled, sheared or mirrored"):
        apply_matrix(carm, rows(projection()), CENTER)
    assert torch.equal(carm.camera.K, before)


def test_a_pose_of_a_matrix_is_proper(carm):
    apply_matrix(carm, rows(projection()), CENTER)
    assert isinstance(carm.pose, Pose) and np.linalg.det(carm.pose.rotation) == pytest.approx(1)
