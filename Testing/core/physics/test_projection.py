import numpy as np
import pytest
import torch
from torch.testing import assert_close

from DiffDRRCore import Camera, Pose, Renderer, Volume
from DiffDRRCore.datasets.shapes import Box, Cylinder, Sphere
from DiffDRRCore.errors import GeometryError, PhysicsError
from DiffDRRCore.geometry import pixel_rays
from DiffDRRCore.physics import BeamObject, Composition, Mesh, Projector, decompose, decompose_together, material
from Testing.core import samples
from Testing.core.physics.solids import icosphere_arrays
from Testing.core.rendering.fused_cases import random_volume
from Testing.core.rendering.reference import grid

BONE, TITANIUM = material("cortical bone"), material("titanium")
HALF = 20.0  # mm, of the block's edge


def block(one=BONE, dtype=torch.float64) -> Composition:
    """A cube of 40 mm in a larger grid, whose faces are those of voxels."""
    density = torch.zeros(24, 24, 24, dtype=dtype)
    density[2:22, 2:22, 2:22] = one.density
    return Composition((one,), (density,), torch.as_tensor(grid(2.0, (24, 24, 24))))


def view(seed: int = 0, side: str = "source", height: int = 24, width: int = 30) -> tuple[Camera, Pose]:
    """From a random direction; pixels that are not square, off the centre."""
    rng = np.random.default_rng(seed)
    camera = Camera(height, width, (2.9, 3.7), 1000.0, ((width - 1) / 2 + 3, (height - 1) / 2 - 2), side)
    return camera, samples.looking_at(rng, (0.0, 0.0, 0.0), 600.0)


def chord(shape, camera, pose) -> torch.Tensor:
    return shape.chord(*(end[0] for end in pixel_rays(camera, pose))).reshape(camera.height, camera.width)


def areal(projection, one) -> torch.Tensor:
    return projection.areal[projection.materials.index(material(one))]


@pytest.mark.parametrize("side", ["source", "detector"])
@pytest.mark.parametrize("seed", range(3))
def test_a_block_from_any_side(seed, side):
    camera, pose = view(seed, side)
    assert float(camera.K[0, 0]) * (1 if side == "source" else -1) > 0
    found = Projector([block()], "siddon", "torch")(camera, pose)
    expected = chord(Box((0, 0, 0), (40, 40, 40)), camera, pose) * BONE.density / 10
    assert float(expected.max()) > 7
    assert_close(areal(found, BONE), expected, rtol=1e-9, atol=1e-9)


def test_a_ball_of_triangles_of_voxels_and_in_closed_form():
    ball, (camera, pose) = Sphere((1.0, -2.0, 3.0), 15.0), view(4)
    expected = chord(ball, camera, pose) * TITANIUM.density / 10
    exact = Projector(dtype=torch.float64)(camera, pose, [BeamObject(ball, TITANIUM)])
    assert_close(areal(exact, TITANIUM), expected, rtol=1e-9, atol=1e-9)
    mesh = Mesh(*icosphere_arrays(15.0, 5, ball.center))
    meshed = Projector(dtype=torch.float64)(camera, pose, [BeamObject(mesh, TITANIUM)])
    assert float((areal(meshed, TITANIUM) - expected).abs().mean()) < 1e-3 * float(expected.max())
    inner = chord(Sphere(ball.center, 15.0 * 0.998), camera, pose) * TITANIUM.density / 10  # insphere of the triangles
    assert bool((areal(meshed, TITANIUM) <= expected + 1e-9).all() and (areal(meshed, TITANIUM) >= inner).all())
    affine = torch.as_tensor(grid(0.5, (70, 70, 70), ball.center))
    k, j, i = torch.meshgrid(*(torch.arange(70, dtype=torch.float64),) * 3, indexing="ij")
    centers = torch.stack([i, j, k], dim=-1) @ affine[:3, :3].T + affine[:3, 3]
    density = TITANIUM.density * (0.5 - ball.level(centers) / 0.5).clamp(0, 1)
    voxels = Projector([Composition((TITANIUM,), (density,), affine)])(camera, pose)
    assert float((areal(voxels, TITANIUM) - expected).abs().mean()) < 2e-3 * float(expected.max())


def test_a_screw_replaces_the_bone_exactly():
    camera, pose = view(5)
    screw = Cylinder((4.0, 3.0, -2.0), (1.0, 0.4, 0.3), 4.0, 25.0)  # in the bone from end to end
    found = Projector([block()], "siddon", "torch")(camera, pose, [BeamObject(screw, "titanium")])
    inside, through = chord(screw, camera, pose), chord(Box((0, 0, 0), (40, 40, 40)), camera, pose)
    assert int((inside > 0).sum()) > 50
    assert_close(areal(found, TITANIUM), inside * TITANIUM.density / 10, rtol=1e-9, atol=1e-9)
    assert_close(areal(found, BONE), (through - inside) * BONE.density / 10, rtol=1e-9, atol=1e-9)


def test_a_posed_object_is_where_its_pose_says():
    rng = np.random.default_rng(6)
    pose, (camera, view_pose) = Pose(samples.rigid(rng, 3.0)), view(6)
    center, axis = pose.transform(torch.tensor([[2.0, 1.0, 0.0]]).double())[0], pose.rotation[:, 2]
    there = Cylinder(center.tolist(), axis.tolist(), 5.0, 22.0)
    moved = BeamObject(Cylinder((2, 1, 0), (0, 0, 1), 5.0, 22.0), "Ti", pose)
    mesh = BeamObject(Mesh(*icosphere_arrays(8.0, 4)), "Ti", pose)
    found = Projector(dtype=torch.float64)(camera, view_pose, [moved])
    assert_close(areal(found, "Ti"), chord(there, camera, view_pose) * TITANIUM.density / 10, rtol=1e-8, atol=1e-8)
    found = Projector(dtype=torch.float64)(camera, view_pose, [mesh])
    expected = chord(Sphere(pose.translation.tolist(), 8.0), camera, view_pose) * TITANIUM.density / 10
    assert float((areal(found, "Ti") - expected).abs().max()) < 0.5
    assert float((areal(found, "Ti") - expected).abs().mean()) < 0.01


def spheres(*parts, disabled=()):
    return [
        BeamObject(Sphere((0, 0, 0), radius), one, priority=priority, name=one, enabled=one not in disabled)
        for radius, one, priority in parts
    ]


def test_a_ball_in_a_ball_replaces_and_does_not_add():
    camera, pose = view(7)
    big, small = (chord(Sphere((0, 0, 0), radius), camera, pose) for radius in (18.0, 9.0))
    for inner_first in (True, False):
        for priorities, shown in (((2, 1), True), ((1, 2), False)):
            pair = spheres((9.0, "Ti", priorities[0]), (18.0, "PMMA", priorities[1]))
            found = Projector(dtype=torch.float64)(camera, pose, pair if inner_first else pair[::-1])
            inner = small if shown else 0 * small
            assert_close(areal(found, "Ti"), inner * TITANIUM.density / 10, rtol=1e-9, atol=1e-9)
            assert_close(areal(found, "PMMA"), (big - inner) * material("PMMA").density / 10, rtol=1e-9, atol=1e-9)


def test_of_equal_priority_the_later_wins():
    camera, pose = view(7)
    small = chord(Sphere((0, 0, 0), 9.0), camera, pose) * TITANIUM.density / 10
    late = Projector(dtype=torch.float64)(camera, pose, spheres((18.0, "PMMA", 1), (9.0, "Ti", 1)))
    early = Projector(dtype=torch.float64)(camera, pose, spheres((9.0, "Ti", 1), (18.0, "PMMA", 1)))
    assert_close(areal(late, "Ti"), small, rtol=1e-9, atol=1e-9)
    assert not bool(areal(early, "Ti").any())


def test_a_disabled_object_is_absent_and_what_it_displaced_is_back():
    camera, pose = view(7)
    projector = Projector([block()], "siddon", "torch")
    alone = projector(camera, pose, spheres((9.0, "PMMA", 1)))
    both = spheres((9.0, "PMMA", 1), (7.0, "Ti", 2), disabled=("Ti",))
    found = projector(camera, pose, both)
    assert found.materials == alone.materials and torch.equal(found.areal, alone.areal)
    nothing = projector(camera, pose, spheres((9.0, "PMMA", 1), disabled=("PMMA",)))
    assert torch.equal(nothing.areal, projector(camera, pose).areal)


def test_disjoint_objects_add():
    camera, pose = view(8)
    balls = [BeamObject(Sphere((x, 5.0, 0.0), 6.0), "Ti", name=str(x)) for x in (-12.0, 12.0)]
    projector = Projector(dtype=torch.float64)
    both = areal(projector(camera, pose, balls), "Ti")
    apart = sum(areal(projector(camera, pose, [ball]), "Ti") for ball in balls)
    assert_close(both, apart, rtol=1e-12, atol=1e-12)


def test_volumes_replace_volumes():
    camera, pose = view(9)
    hu = torch.full((24, 24, 24), -1000.0, dtype=torch.float64)
    outer, inner = hu.clone(), hu.clone()
    outer[2:22, 2:22, 2:22], inner[7:17, 7:17, 7:17] = 0.0, 100.0
    volumes = [Volume(one, grid(2.0, hu.shape)) for one in (outer, inner)]
    found = areal(Projector(decompose_together(volumes), "siddon", "torch")(camera, pose), "water")
    big, small = (chord(Box((0, 0, 0), (edge,) * 3), camera, pose) for edge in (40.0, 20.0))
    assert_close(found, (big - small + 1.1 * small) / 10, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("integrator", ["trilinear", "siddon"])
@pytest.mark.parametrize("seed", [1, 2])
def test_the_fused_backend_agrees_on_oblique_anisotropic_grids(integrator, seed):
    volume = random_volume((17, 13, 11), seed)  # sheared, of either hand
    volume = Volume(2000 * volume.attenuation / volume.attenuation.max() - 800, volume.ijk_to_ras)
    center = volume.center.tolist()
    camera = Camera(40, 50, (3.0, 2.0), 1000.0, view_from="detector")
    pose = samples.looking_at(np.random.default_rng(seed), center, 600.0)
    pin = BeamObject(Cylinder(center, (1.0, 0.2, 0.3), 6.0, 30.0), "steel")
    fused, torch_ = (
        Projector([decompose(volume)], integrator, backend)(camera, pose, [pin]).areal for backend in ("auto", "torch")
    )
    assert Renderer(volume).backend == "cpu"
    for one, other in zip(fused, torch_, strict=True):
        assert float((one - other).abs().max()) < 1e-4 * float(other.max())


@pytest.mark.parametrize("carved", [False, True])
def test_gradients_to_the_pose(carved):
    camera, pose = view(10, height=6, width=7)
    projector = Projector([block()], "trilinear", "torch")
    objects = [BeamObject(Mesh(*icosphere_arrays(9.0, 1, (1.0, 2.0, 3.0))), "Ti")] if carved else []
    weights = torch.randn(2 if carved else 1, 6, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def loss(xi):
        return (projector(camera, pose.retract(xi, about=(0.0, 0.0, 0.0)), objects).areal * weights).sum()

    zero = torch.zeros(6, dtype=torch.float64)
    assert_close(samples.jacobian(loss, zero), samples.differences(loss, zero, 1e-6), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"material": "unobtainium"}, "no material 'unobtainium'"),
        ({"priority": 0}, "whole number from 1"),
        ({"priority": 1.5}, "whole number from 1"),
        ({"solid": "screw.stl"}, "a Mesh or a shape"),
        ({"pose": Pose(torch.eye(4).repeat(2, 1, 1))}, "one pose, not a batch"),
    ],
)
def test_bad_objects(change, words):
    with pytest.raises(PhysicsError, match=words):
        BeamObject(**{"solid": Sphere((0, 0, 0), 1.0), "material": "Ti", **change})


def test_a_source_in_an_object_and_a_batch_of_views():
    camera, pose = view(0)
    with pytest.raises(PhysicsError, match=r"object 'tub'.*inside"):
        Projector()(camera, pose, [BeamObject(Sphere(pose.translation.tolist(), 30.0), "Ti", name="tub")])
    with pytest.raises(GeometryError, match="one camera and one pose"):
        Projector([block()])(camera, Pose(pose.matrix.repeat(2, 1, 1)))
