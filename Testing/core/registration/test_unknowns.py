"""The list of unknowns: limits by hand, coordinates there and back, slopes against differences."""

from __future__ import annotations

import math

import pytest
import torch

from DiffDRRCore import Camera, Pose, project
from DiffDRRCore.geometry import pixel_rays
from DiffDRRCore.registration import FreeCamera, Limits
from DiffDRRCore.registration.problem.lens import Lens
from DiffDRRCore.registration.problem.motion import carried_slope
from DiffDRRCore.registration.problem.unknowns import State, Unknown, Unknowns
from Testing.core.samples import differences

AXES = Pose.exp(torch.tensor([0.3, -0.2, 0.5, 0, 0, 0]).double()).rotation


def made(*limits: Limits, cameras=(), **changes) -> Unknowns:
    pivots = torch.tensor([[10.0, 20, 30], [-40, 5, 60]]).double()
    return Unknowns(
        [Unknown(f"bone {n}", pivots[n], AXES, 100.0, one, **changes) for n, one in enumerate(limits)], cameras
    )


def drawn(unknowns: Unknowns, count: int = 3) -> State:
    q = torch.randn(count, unknowns.size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return unknowns.state(q * unknowns.unit * 20)


def test_clamp_at_bound_and_held():
    unknowns = made(Limits(bounds=(10.0, None, None, None, None, 20.0)), Limits())
    q = torch.tensor([[0.5, 3.0, 0.0, 900.0, 0.0, -25.0] * 2], dtype=torch.float64)
    clamped = unknowns.clamp(q)
    assert clamped[0, :6].tolist() == pytest.approx([math.radians(10), 3.0, 0.0, 900.0, 0.0, -20.0])
    assert torch.equal(clamped[0, 6:], q[0, 6:])
    assert unknowns.at_bound(clamped[0]) == ["bone 0: tilt about image x", "bone 0: depth"]
    assert unknowns.at_bound(clamped[0] * 0.99) == []
    outwards_then_back = torch.tensor([[1.0, 0, 0, 1, 0, 1] * 2], dtype=torch.float64)
    assert unknowns.held(clamped, outwards_then_back)[0].tolist() == [True] + [False] * 11


def test_one_deviation_costs_the_weight():
    limits = Limits(deviations=(2.0, None, None, None, None, 30.0), weight=0.25)
    camera = FreeCamera(source_to_detector=10.0, principal_point=math.inf, weight=0.5)
    stiffness = made(limits, cameras=[camera]).stiffness
    for q in ([math.radians(2), 9, 9, 9, 9, 0], [0, 9, 9, 9, 9, -30.0]):
        residual = stiffness * torch.tensor([*q, 0, 0, 0, 0], dtype=torch.float64)
        assert float(residual @ residual) / 2 == pytest.approx(0.25)
    residual = stiffness * torch.tensor([0.0] * 6 + [-10, 7, 8, 0], dtype=torch.float64)
    assert float(residual @ residual) / 2 == pytest.approx(0.5)


def test_what_is_known_of_a_camera_is_locked():
    unknowns = made(Limits(), cameras=[FreeCamera(source_to_detector=10.0)])
    assert unknowns.locked.tolist() == [False] * 7 + [True] * 3
    assert unknowns.names[6:] == [
        *("source-to-detector distance", "principal point right", "principal point down", "radial distortion")
    ]


def test_coordinates_there_and_back():
    unknowns = made(Limits(), Limits(), cameras=[FreeCamera(source_to_detector=10.0)])
    state = drawn(unknowns)
    again = unknowns.state(unknowns.coordinates(state))
    assert torch.allclose(again.motions.matrix, state.motions.matrix, atol=1e-9)
    assert torch.equal(again.cameras, state.cameras)


def test_slope_of_coordinates():
    unknowns = made(Limits(), Limits(), cameras=[FreeCamera(source_to_detector=10.0)])
    state = drawn(unknowns, 1)
    q, slope = unknowns.coordinates_and_slope(state)
    assert torch.allclose(q, unknowns.coordinates(state))
    for row in range(unknowns.size):
        expected = differences(
            lambda xi, row=row: unknowns.coordinates(unknowns.moved(state, xi[None]))[0, row],
            torch.zeros(unknowns.size).double(),
        )
        assert torch.allclose(slope[0, row], expected, atol=1e-6)


def test_displacement_is_that_of_the_part_that_moves_most():
    unknowns = made(Limits(), Limits(), cameras=[FreeCamera(source_to_detector=10.0)])
    q = torch.zeros(1, unknowns.size, dtype=torch.float64)
    q[0, 9], q[0, 3], q[0, 12] = 7.0, 3.0, 10.0
    assert float(unknowns.displacement(unknowns.start(), unknowns.state(q))) == pytest.approx(7.0)


def test_moved_together_but_for_what_is_locked():
    first, second = (Unknown(name, torch.zeros(3).double(), AXES, 50.0, locked=name == "b") for name in "ab")
    unknowns = Unknowns([first, second])
    motion = Pose.exp(torch.tensor([[0.1, 0.2, 0.3, 4, 5, 6]]).double())
    state = unknowns.together(motion)
    assert torch.allclose(state.motions.matrix[0, 0], motion.matrix[0])
    assert torch.equal(state.motions.matrix[0, 1], torch.eye(4).double())


def test_carried_slope():
    """M exp(xi) = exp(S xi) M, by matrices."""
    random = torch.Generator().manual_seed(1)
    motion = Pose.exp(torch.randn(6, generator=random, dtype=torch.float64))
    pivot, about, xi = 100 * torch.randn(3, 3, generator=random, dtype=torch.float64)
    xi = torch.cat([xi / 1e7, pivot / 1e4])
    before = motion @ Pose.identity().retract(xi, about=about)
    slope = carried_slope(motion, pivot, about)
    assert torch.allclose(before.matrix, motion.retract(slope @ xi, about=pivot).matrix, atol=1e-6)


CAMERA = Camera(30, 40, (2.0, 3.0), 1000.0, principal_point=(18.0, 16.0), view_from="detector")


@pytest.mark.parametrize("numbers", [(25.0, 0, 0, 0), (0, 4.0, -6.0, 0), (-30.0, 2.0, 1.0, 0)])
def test_a_lens_sees_the_rays_of_the_other_camera(numbers):
    """Rays of the nominal camera through `seen` are those of the camera with those numbers."""
    numbers = torch.tensor(numbers, dtype=torch.float64)
    spacing, (right, down) = CAMERA.pixel_spacing, numbers[1:3].tolist()
    moved = (18.0 - right / float(spacing[1]), 16.0 + down / float(spacing[0]))  # its columns run along -x
    other = Camera(30, 40, (2.0, 3.0), 1000.0 + float(numbers[0]), principal_point=moved, view_from="detector")
    uv = torch.tensor([[0.0, 0], [39, 29], [7, 21]]).double()
    seen, _ = Lens(CAMERA).seen(numbers[None], uv)
    rays = [
        torch.nn.functional.normalize(end - start, dim=-1)
        for start, end in (pixel_rays(CAMERA, Pose.identity(), seen), pixel_rays(other, Pose.identity(), uv))
    ]
    assert torch.allclose(*rays, atol=1e-12)
    assert torch.allclose(Lens(CAMERA).camera(CAMERA, numbers).K, other.K, atol=1e-9)


def test_radial_displaces_the_farthest_corner_by_its_millimetres():
    lens, numbers = Lens(CAMERA), torch.tensor([[0, 0, 0, 5.0]]).double()
    corners = torch.tensor([[-0.5, -0.5], [39.5, -0.5], [-0.5, 29.5], [39.5, 29.5]]).double()
    shift = (lens.seen(numbers, corners)[0][0] - corners) * torch.tensor([3.0, 2.0]).double()
    assert float(shift.norm(dim=-1).max()) == pytest.approx(5.0)
    half = (corners + torch.tensor([18.0, 16.0])) / 2
    assert float(((lens.seen(numbers, half)[0][0] - half) * torch.tensor([3.0, 2.0])).norm(dim=-1).max()) == (
        pytest.approx(5.0 / 8)
    )


def test_slope_of_a_lens():
    lens, uv = Lens(CAMERA), torch.tensor([[3.0, 4.0], [31.0, 20.0]]).double()
    numbers = torch.tensor([12.0, 3.0, -5.0, 4.0]).double()
    slope = lens.seen(numbers[None], uv)[1][0]
    for point in range(2):
        for axis in range(2):
            expected = differences(lambda n, p=point, a=axis: lens.seen(n[None], uv)[0][0, p, a], numbers)
            assert torch.allclose(slope[point, axis], expected, atol=1e-6)


def test_turns_of_a_lens_move_the_ray_by_a_pixel():
    lens, uv = Lens(CAMERA), torch.tensor([[3.0, 4.0], [31.0, 20.0]]).double()
    turns = lens.turns(uv)
    for point in range(2):
        start, end = pixel_rays(CAMERA, Pose.identity(), uv[point : point + 1])
        for axis in range(2):
            small = 1e-4 * turns[point, axis]
            turned = (end - start)[0, 0] + torch.linalg.cross(small, (end - start)[0, 0])
            landed = project(CAMERA, Pose.identity(), turned[None])[0, 0]
            expected = uv[point] + 1e-4 * torch.eye(2).double()[axis]
            assert torch.allclose(landed, expected, atol=1e-7)
