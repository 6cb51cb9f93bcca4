"""Intervals on rays against brute force: each ray a row of small boxes that are inside or not."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from DiffDRRCore import Camera, Pose
from DiffDRRCore.errors import PhysicsError
from DiffDRRCore.physics.solids.crossings import Crossings, by_priority, from_steps, merge, subtract
from DiffDRRCore.physics.solids.mesh import Mesh
from DiffDRRCore.physics.solids.rays import crossings
from Testing.core.physics.solids import box_arrays
from Testing.core.samples import seeds

RAYS, CELLS = 7, 12


def from_cells(cells: np.ndarray) -> Crossings:
    """Intervals whose ends are whole numbers, of rows of cells."""
    rows = [(r, *ends) for r, row in enumerate(cells) for ends in runs(row)]
    ray, entry, leave = np.array(rows, float).reshape(-1, 3).T
    return Crossings(torch.tensor(ray, dtype=torch.int64), torch.tensor(entry), torch.tensor(leave), (len(cells),))


def runs(row: np.ndarray) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(np.concatenate([[0], row.astype(int), [0]])))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]


def check(found: Crossings, cells: np.ndarray) -> None:
    expected = from_cells(cells)
    assert torch.equal(found.ray, expected.ray)
    assert torch.equal(found.entry, expected.entry) and torch.equal(found.exit, expected.exit)
    assert found.chord_lengths().tolist() == cells.sum(1).tolist()
    assert found.mask().tolist() == cells.any(1).tolist()
    assert found.depth().tolist() == [float(np.argmax(row)) if row.any() else math.inf for row in cells]


@given(seeds)
@settings(max_examples=60, deadline=None)
def test_algebra_against_brute_force(seed):
    rng = np.random.default_rng(seed)
    a, b, c = rng.random((3, RAYS, CELLS)) < rng.uniform(0, 1, (3, 1, 1))
    x, y, z = (from_cells(cells) for cells in (a, b, c))
    check(merge(x, y, z), a | b | c)
    check(merge(x), a)
    check(subtract(x, y), a & ~b)
    check(subtract(x, y, z), a & ~b & ~c)
    check(subtract(x), a)
    first, second, third = by_priority([x, y, z])
    check(first, a)
    check(second, b & ~a)
    check(third, c & ~a & ~b)
    near, far = sorted(rng.integers(0, CELLS + 1, 2).tolist())
    window = (np.arange(CELLS) >= near) & (np.arange(CELLS) < far)
    check(x.between(near, far), a & window)


def test_a_window_for_each_interval():
    x = from_cells(np.ones((3, 5), bool))
    far = torch.tensor([0.0, 2.5, 9.0])
    assert x.between(1.0, far[x.ray]).chord_lengths().tolist() == [0, 1.5, 4]


def test_an_object_in_an_object_replaces_and_a_disabled_one_is_absent():
    bone, screw, marrow = ([0, 1, 1, 1, 1, 0], [0, 0, 1, 1, 0, 0], [0, 0, 0, 1, 1, 0])
    solids = {name: from_cells(np.array([row], bool)) for name, row in zip("bsm", (bone, screw, marrow), strict=True)}
    lengths = [float(part.chord_lengths()) for part in by_priority([solids[name] for name in "smb"])]
    assert lengths == [2, 1, 1] and sum(lengths) == float(merge(*solids.values()).chord_lengths())
    assert [float(part.chord_lengths()) for part in by_priority([solids[name] for name in "mb"])] == [2, 2]
    assert by_priority([]) == []


def test_levels_that_go_below_zero_or_above_one():
    ray = torch.tensor([1, 0, 0, 0, 1, 0])
    distance = torch.tensor([5.0, 1.0, 4.0, 2.0, 3.0, 3.0])
    step = torch.tensor([1, 1, -1, 1, -1, -1])
    found = from_steps(ray, distance, step, (2, 1))
    assert found.ray.tolist() == [0, 1] and found.entry.tolist() == [1, 3] and found.exit.tolist() == [4, 5]
    assert found.chord_lengths().tolist() == [[3], [2]]


def test_intervals_of_convex_solids():
    near, far = torch.tensor([[1.0, 5.0], [math.inf, 2.0]]), torch.tensor([[2.0, 5.0], [-math.inf, 4.0]])
    found = Crossings.of_convex(near, far)
    assert found.ray.tolist() == [0, 3] and found.chord_lengths().tolist() == [[1, 0], [0, 2]]
    assert found.depth().tolist() == [[1, math.inf], [math.inf, 2]]


def test_solids_of_different_rays():
    with pytest.raises(PhysicsError, match="crossed by the same rays"):
        merge(from_cells(np.ones((2, 3), bool)), from_cells(np.ones((3, 3), bool)))
    with pytest.raises(PhysicsError, match="crossed by the same rays"):
        merge()


def test_a_hole_drilled_through_a_plate():
    camera, pose = Camera(9, 9, (1, 1), 100), Pose(np.eye(4))
    plate = crossings(Mesh(*box_arrays((-50, -50, 40), (50, 50, 60))), camera, pose)
    peg = crossings(Mesh(*box_arrays((-1.1, -1.1, 30), (1.1, 1.1, 55))), camera, pose)
    left, taken = subtract(plate, peg), by_priority([peg, plate])
    assert float(left.chord_lengths()[4, 4]) == pytest.approx(5, abs=1e-12)
    assert float(left.depth()[4, 4]) == pytest.approx(55, abs=1e-12)
    assert float(left.chord_lengths()[0, 0]) == pytest.approx(20 * math.sqrt(100**2 + 32) / 100, abs=1e-12)
    whole = merge(plate, peg).chord_lengths()
    np.testing.assert_allclose(sum(part.chord_lengths() for part in taken), whole, atol=1e-12)


def test_gradients_pass_through_the_algebra():
    entry = torch.tensor([1.0, 4.0], dtype=torch.float64, requires_grad=True)
    leave = torch.tensor([3.0, 9.0], dtype=torch.float64, requires_grad=True)
    cut = Crossings(torch.tensor([0]), torch.tensor([2.0]).double(), torch.tensor([5.0]).double(), (1,))
    subtract(Crossings(torch.tensor([0, 0]), entry, leave, (1,)), cut).chord_lengths().sum().backward()
    assert entry.grad.tolist() == [-1, 0] and leave.grad.tolist() == [0, 1]
