"""What is a closed mesh, and what is not; volumes by formula; transforms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from scipy.spatial.transform import Rotation

from DiffDRRCore import Pose
from DiffDRRCore.errors import PhysicsError
from DiffDRRCore.physics.solids.mesh import Mesh
from Testing.core.physics.solids import box_arrays, hull_arrays, icosphere_arrays, joined
from Testing.core.samples import rigid, seeds


def test_a_box_has_its_volume_and_bounds():
    mesh = Mesh(*box_arrays((1, 2, 3), (4, 6, 9)), name="plate")
    assert float(mesh.volume) == pytest.approx(3 * 4 * 6, rel=1e-14)
    assert [x.tolist() for x in mesh.bounds] == [[1, 2, 3], [4, 6, 9]]
    assert mesh.vertices.dtype == torch.float64 and mesh.triangles.dtype == torch.int64
    assert mesh.corners.shape == (12, 3, 3) and "plate" in repr(mesh)


def test_volumes_of_finer_spheres_approach_the_formula():
    errors = [1 - float(Mesh(*icosphere_arrays(20.0, n)).volume) / (4 / 3 * math.pi * 20**3) for n in (2, 3, 4)]
    assert errors[2] > 0
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.05) and errors[1] / errors[2] == pytest.approx(4, rel=0.02)


def test_the_volume_far_from_the_origin_is_as_good():
    vertices, triangles = box_arrays((0, 0, 0), (1, 1, 1))
    assert float(Mesh(vertices + 1e6, triangles).volume) == pytest.approx(1, rel=1e-9)


@given(seeds)
@settings(max_examples=20, deadline=None)
def test_a_moved_mesh(seed):
    rng = np.random.default_rng(seed)
    mesh = Mesh(*hull_arrays(rng, 20)[:2])
    pose = Pose(rigid(rng))
    moved = mesh.transformed(pose)
    np.testing.assert_allclose(
        moved.vertices, mesh.vertices.numpy() @ pose.rotation.numpy().T + pose.translation.numpy()
    )
    assert float(moved.volume) == pytest.approx(float(mesh.volume), rel=1e-9)
    assert moved.name == mesh.name and torch.equal(moved.triangles, mesh.triangles)
    mirrored = mesh.transformed(np.diag([-2.0, 3.0, 0.5, 1.0]))
    assert float(mirrored.volume) == pytest.approx(3 * float(mesh.volume), rel=1e-9)
    Mesh(mirrored.vertices, mirrored.triangles)  # still the right way out


def test_gradients_reach_vertices_and_transforms():
    vertices = torch.tensor(box_arrays((0, 0, 0), (1, 2, 3))[0], requires_grad=True)
    matrix = torch.diag(torch.tensor([2.0, 1.0, 1.0, 1.0], dtype=torch.float64)).requires_grad_()
    Mesh(vertices, box_arrays((0, 0, 0), (1, 2, 3))[1]).transformed(matrix).volume.backward()
    assert matrix.grad[0, 0] == pytest.approx(6) and matrix.grad[1, 1] == pytest.approx(12)
    # The volume grows by the area of a face for each mm that its corners are moved.
    right = vertices.detach()[:, 0] == 1
    assert vertices.grad[right, 0].sum() == pytest.approx(2 * 6)


@pytest.mark.parametrize(
    "matrix", [np.eye(3), np.diag([1.0, 1, 0, 1]), np.diag([1.0, 1, np.nan, 1]), np.diag([1.0, 1, 1, 2])]
)
def test_transforms_that_are_none(matrix):
    with pytest.raises(PhysicsError, match=r"affine matrix|flattens"):
        Mesh(*box_arrays((0, 0, 0), (1, 2, 3))).transformed(matrix)


def test_an_open_mesh_is_refused():
    vertices, triangles = box_arrays((0, 0, 0), (1, 1, 1))
    with pytest.raises(PhysicsError, match="'stent' is not closed: 3 edges"):
        Mesh(vertices, triangles[1:], name="stent")


def test_a_triangle_turned_round_is_refused():
    vertices, triangles = box_arrays((0, 0, 0), (1, 1, 1))
    triangles[5] = triangles[5, ::-1]
    with pytest.raises(PhysicsError, match="not closed: 3 edges lack a neighbour of the same orientation"):
        Mesh(vertices, triangles)


def test_a_doubled_triangle_is_refused():
    vertices, triangles = box_arrays((0, 0, 0), (1, 1, 1))
    with pytest.raises(PhysicsError, match="not closed"):
        Mesh(vertices, np.concatenate([triangles, triangles[:1]]))


def test_an_inside_out_mesh_is_refused():
    vertices, triangles = box_arrays((0, 0, 0), (1, 1, 1))
    with pytest.raises(PhysicsError, match="inside out: flip its normals"):
        Mesh(vertices, triangles[:, ::-1])


def test_a_flat_mesh_is_refused():
    with pytest.raises(PhysicsError, match="flat"):
        Mesh([[0, 0, 0], [1, 0, 0.3], [0, 1, 0.1]], [[0, 1, 2], [2, 1, 0]])


@pytest.mark.parametrize(
    ("vertices", "triangles", "message"),
    [
        (np.zeros((0, 3)), np.zeros((0, 3), int), "no triangles"),
        (np.zeros((4, 3)), [[0, 1, 2]], "no triangles"),  # all in one point
        (np.zeros((4, 2)), [[0, 1, 2]], r"vertices \[V, 3\]"),
        (np.zeros((4, 3)), [[0, 1, 2, 3]], r"triangles \[M, 3\]"),
        ([[0, 0, 0], [1, 0, 0], [0, np.nan, 0]], [[0, 1, 2]], "not finite"),
        ([[0, 0, 0], [1, 0, 0], [0, np.inf, 0]], [[0, 1, 2]], "not finite"),
        (np.eye(3), [[0, 1, 3]], "vertices that it does not have"),
        (np.eye(3), [[0, 1, -1]], "vertices that it does not have"),
        (np.eye(3), [[0.0, 1.0, 2.0]], "integers"),
    ],
)
def test_arrays_that_make_no_mesh(vertices, triangles, message):
    with pytest.raises(PhysicsError, match=message):
        Mesh(vertices, triangles)


def test_copies_of_vertices_become_one_and_the_first_stays_in_its_place():
    vertices, triangles = box_arrays((0, 0, 0), (1, 1, 1))
    soup = Mesh(vertices[triangles].reshape(-1, 3), np.arange(36).reshape(-1, 3))
    assert len(soup.vertices) == 8 and len(soup.triangles) == 12
    np.testing.assert_array_equal(soup.corners, vertices[triangles])
    untouched = Mesh(vertices, triangles)
    np.testing.assert_array_equal(untouched.vertices, vertices)
    np.testing.assert_array_equal(untouched.triangles, triangles)


def test_negative_zero_is_zero():
    vertices, triangles = box_arrays((0, 0, 0), (1, 1, 1))
    soup = vertices[triangles].reshape(-1, 3)
    soup[::2] = np.where(soup[::2] == 0, -0.0, soup[::2])
    assert len(Mesh(soup, np.arange(36).reshape(-1, 3)).vertices) == 8


def test_degenerate_triangles_are_tolerated():
    vertices, triangles = box_arrays((0, 0, 0), (1, 1, 1))
    # An edge that is split on one side only: a triangle of no area, with three different corners, closes the gap.
    a, b, c = triangles[0]
    vertices = np.concatenate([vertices, [(vertices[a] + vertices[b]) / 2]])
    split = np.array([[a, 8, c], [8, b, c], [a, b, 8]])
    mesh = Mesh(vertices, np.concatenate([split, triangles[1:], [[0, 0, 1]]]))
    assert len(mesh.triangles) == 14 and float(mesh.volume) == pytest.approx(1)


def test_parts_that_touch_along_an_edge_are_closed():
    parts = joined(box_arrays((0, 0, 0), (1, 1, 1)), box_arrays((1, 1, 0), (2, 2, 1)))
    assert float(Mesh(*parts).volume) == pytest.approx(2)


def test_a_hundred_thousand_triangles_are_checked_quickly():
    mesh = Mesh(*icosphere_arrays(10.0, 6))
    turned = np.eye(4)
    turned[:3, :3] = Rotation.from_rotvec([1, 2, 3]).as_matrix()
    assert len(mesh.transformed(turned).triangles) == 20 * 4**6
