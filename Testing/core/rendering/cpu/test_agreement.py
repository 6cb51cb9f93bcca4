"""The cpu backend against the float64 reference and closed forms."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from DiffDRRCore import CArm, Renderer, Volume
from DiffDRRCore.errors import RenderError
from Testing.core.rendering.fused_cases import (
    LABELS,
    SHAPES,
    corner_rays,
    difference,
    random_rays,
    random_volume,
    traced,
)

INTEGRATORS = ("trilinear", "siddon")
ROUNDING = {"trilinear": 2e-5, "siddon": 2e-6}  # of 16 bits a voxel, and of float32


@pytest.mark.parametrize("labels, mode", LABELS)
@pytest.mark.parametrize("integrator", INTEGRATORS)
@pytest.mark.parametrize("number", range(len(SHAPES)))
def test_integrals_and_all_gradients_agree_with_the_reference(number, integrator, labels, mode):
    volume = random_volume(SHAPES[number], seed=number)
    rays = random_rays(volume, seed=number)
    found = traced(volume, integrator, "cpu", rays, labels, mode)
    truth = traced(volume.to(dtype=torch.float64), integrator, "torch", rays, labels, mode)
    limit = ROUNDING[integrator]
    assert difference(found[0], truth[0]) < limit
    assert all(difference(*values) < 5 * limit for values in zip(found[1:], truth[1:], strict=True))


def between_neighbours(volume: Volume, source, target) -> tuple[float, float]:
    """Least and largest integral of a ray to which every voxel that a segment touches, if only by a side, is right."""
    attenuation = volume.attenuation.numpy()
    inverse = np.linalg.inv(volume.ijk_to_ras.numpy())
    start, end = (inverse[:3, :3] @ point + inverse[:3, 3] for point in (source, target))
    planes = [np.arange(size + 1) - 0.5 for size in attenuation.shape[::-1]]
    cuts = [(plane - start[axis]) / (end - start)[axis] for axis, plane in enumerate(planes) if (end - start)[axis]]
    cuts = np.unique(np.clip(np.concatenate(cuts), 0, 1))
    padded, low, high = np.pad(attenuation, 2), 0.0, 0.0
    for first, last in itertools.pairwise(cuts):
        middle = start + (first + last) / 2 * (end - start)
        beside = [np.unique(np.floor(middle[axis] + 0.5 + np.array([-1e-6, 1e-6]))) for axis in (2, 1, 0)]
        inside = [np.clip(index.astype(int) + 2, 0, size - 1) for index, size in zip(beside, padded.shape, strict=True)]
        touched = padded[np.ix_(*inside)]
        low, high = low + (last - first) * touched.min(), high + (last - first) * touched.max()
    length = np.linalg.norm(target - source)
    return length * low, length * high


def test_siddons_rays_through_corners_and_edges():
    """On an edge every voxel at it is right, and rounding decides from segment to segment."""
    volume = random_volume((5, 6, 7), seed=3)
    rays = corner_rays(volume)
    found = traced(volume, "siddon", "cpu", rays)
    assert all(bool(torch.isfinite(values).all()) for values in found)
    limits = [between_neighbours(volume, *ends) for ends in zip(*(points.numpy() for points in rays), strict=True)]
    low, high = np.array(limits).T
    image, slack = found[0].numpy().ravel(), 1e-5 * high.max()
    assert (image >= low - slack).all() and (image <= high + slack).all()
    assert (low == high).sum() > 100 and (low < high).sum() > 100  # the limits bind, and there are edges


def test_trilinear_rays_through_corners_and_edges():
    """The interpolated field is continuous there."""
    volume = random_volume((5, 6, 7), seed=3)
    rays = corner_rays(volume)
    found = traced(volume, "trilinear", "cpu", rays)
    truth = traced(volume.to(dtype=torch.float64), "trilinear", "torch", rays)
    assert all(bool(torch.isfinite(values).all()) for values in found)
    assert difference(found[0], truth[0]) < ROUNDING["trilinear"]


@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_the_jacobian_agrees_with_the_reference(integrator):
    volume = random_volume((17, 13, 11), seed=5)
    carm = CArm(300.0, 200.0, volume.center, 33.0, -21.0)
    camera = carm.camera(19, 23, (3.1, 2.3))
    found = Renderer(volume, integrator, backend="cpu").linearize(camera, carm.pose, volume.center)
    truth = Renderer(volume.to(dtype=torch.float64), integrator).linearize(camera, carm.pose, volume.center)
    assert difference(found[0].double(), truth[0]) < ROUNDING[integrator]
    error = (found[1].double() - truth[1]).abs().amax(-1).flatten() / truth[1].abs().max()
    assert float(error.quantile(0.99)) < 5 * ROUNDING[integrator]
    assert float(error.max()) < 5e-3  # a sample within rounding of a voxel's plane has the slope of either side


@pytest.mark.parametrize("labels", [None, [1, 3]])
@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_the_adjoint_is_the_transpose(integrator, labels):
    """<A x, w> = <x, A^T w>, both sums in float64."""
    volume = random_volume((12, 14, 16), seed=6)
    rays = random_rays(volume, count=2000, seed=6)
    image, _, _, gradient = traced(volume, integrator, "cpu", rays, labels)
    weight = torch.linspace(-1, 1, image.numel(), dtype=torch.float64).reshape(image.shape)
    one, other = float((image * weight).sum()), float((gradient * volume.attenuation.double()).sum())
    assert one == pytest.approx(other, rel=1e-5, abs=1e-5 * float(image.abs().sum()) / len(image[0]) ** 0.5)


@pytest.mark.parametrize("share", [0.002, 0.02, 0.2])
@pytest.mark.parametrize("shape", [(40, 50, 60), (5, 3, 70), (33, 32, 31)])
def test_a_volume_that_is_mostly_empty(shape, share):
    """Stretches of columns without matter are not read; what lies at their ends must not be lost."""
    volume = random_volume(shape, seed=12)
    keep = torch.rand(shape, generator=torch.Generator().manual_seed(12)) < share
    volume = Volume.from_attenuation(volume.attenuation * keep, volume.ijk_to_ras)
    rays = random_rays(volume, count=1000, seed=12)
    found = traced(volume, "siddon", "cpu", rays)
    truth = traced(volume.to(dtype=torch.float64), "siddon", "torch", rays)
    assert all(difference(*values) < 1e-5 for values in zip(found, truth, strict=True))


@pytest.mark.parametrize("axis", range(3))
def test_a_box_is_exact_from_each_side(axis):
    """A uniform box on an anisotropic grid: mu times the chord, for rays of any main axis."""
    voxels, spacing = torch.full((10, 20, 30), 0.02), np.array([0.7, 1.1, 2.5])
    volume = Volume.from_attenuation(voxels, np.diag([*spacing, 1.0]))
    half = torch.tensor(spacing * [30, 20, 10]) / 2
    generator = torch.Generator().manual_seed(axis)
    source = volume.center + 20 * torch.randn(200, 3, generator=generator, dtype=torch.float64)
    source[:, axis] -= 400
    target = 2 * volume.center - source + 4 * torch.randn(200, 3, generator=generator, dtype=torch.float64)
    start, extent = source - volume.center, target - source
    near, far = (-half - start) / extent, (half - start) / extent
    chord = torch.minimum(near, far).amax(-1), torch.maximum(near, far).amin(-1)
    expected = 0.02 * (chord[1] - chord[0]).clamp(min=0) * extent.norm(dim=-1)
    found = Renderer(volume, "siddon", backend="cpu").trace(source, target)[0]
    assert torch.allclose(found.double(), expected, rtol=1e-5, atol=1e-6)
    assert float(expected.max()) > 0.2


def test_a_faint_voxel_behind_metal_keeps_its_value():
    """Running sums are integers: what stands before a voxel in its column does not blur it."""
    voxels = torch.zeros(2, 3, 400)
    voxels[0, 1, :300], voxels[0, 1, 350] = 0.5, 1e-4
    volume = Volume.from_attenuation(voxels, np.eye(4))
    source, target = torch.tensor([[345.0, 1.0, 0.0]]), torch.tensor([[355.0, 1.0, 0.0]])
    assert float(Renderer(volume, "siddon", backend="cpu").trace(source, target)[0, 0]) == pytest.approx(1e-4, rel=2e-3)


@pytest.mark.parametrize("place", [(0, 0, 0), (0, 0, 40), (0, 30, 0), (20, 30, 40), (7, 7, 7), (8, 8, 8), (15, 16, 17)])
def test_a_lone_voxel_is_never_skipped(place):
    """One voxel in an empty volume, seen by rays through it from many sides: bricks of air around it are skipped."""
    voxels = torch.zeros(21, 31, 41)
    voxels[place] = 0.05
    volume = Volume.from_attenuation(voxels, np.diag([1.0, 1.3, 0.8, 1.0]))
    centre = volume.ijk_to_ras[:3, :3] @ torch.tensor(place[::-1]).double()
    generator = torch.Generator().manual_seed(1)
    away = 100 * torch.nn.functional.normalize(torch.randn(64, 3, generator=generator, dtype=torch.float64), dim=-1)
    for integrator in INTEGRATORS:
        found = Renderer(volume, integrator, backend="cpu").trace(centre - away, centre + away)
        truth = Renderer(volume.to(dtype=torch.float64), integrator).trace(centre - away, centre + away)
        assert float(truth.min()) > 0
        assert difference(found.double(), truth) < 1e-5


def test_rounding_to_16_bits_has_no_bias():
    """A faint block beside metal, 26.66 units of 16 bits a voxel: plain rounding would make 27 of each, 1.3 % more."""
    voxels = torch.full((60, 60, 60), 0.0002034)
    voxels[0, 0, 0] = 0.5
    volume = Volume.from_attenuation(voxels, np.eye(4))
    source = torch.cartesian_prod(torch.linspace(10, 50, 9), torch.linspace(10, 50, 9), torch.tensor([-200.0])).double()
    target = torch.cartesian_prod(torch.linspace(12, 48, 9), torch.linspace(12, 48, 9), torch.tensor([200.0])).double()
    found = Renderer(volume, "trilinear", backend="cpu").trace(source, target)[0].double()
    truth = Renderer(volume.to(dtype=torch.float64), "trilinear").trace(source, target)[0]
    assert abs(float((found / truth - 1).mean())) < 1e-3
    assert float((found / truth - 1).abs().max()) < 1e-2


def test_an_empty_volume_and_no_rays():
    for integrator in INTEGRATORS:
        empty = Renderer(Volume.from_attenuation(torch.zeros(4, 5, 6), np.eye(4)), integrator, backend="cpu")
        assert float(empty.trace(torch.tensor([[-9.0, 2, 2]]), torch.tensor([[20.0, 2, 2]])).abs().max()) == 0
        full = Renderer(random_volume((4, 5, 6)), integrator, backend="cpu")
        assert full.trace(torch.zeros(0, 3), torch.zeros(0, 3)).shape == (1, 0)
        assert full.trace(torch.zeros(0, 3), torch.zeros(0, 3), labels=[1, 2]).shape == (2, 0)


@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_results_do_not_depend_on_the_number_of_threads(integrator):
    """Bit by bit: image, derivatives, channels and the adjoint."""
    volume = random_volume((40, 21, 19), seed=8)
    rays, threads, results = random_rays(volume, count=777, seed=8), torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            plain = traced(volume, integrator, "cpu", rays)
            results.append((*plain, *traced(volume, integrator, "cpu", rays, [1, 2])))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_what_was_prepared_follows_the_volume(integrator):
    """Voxels and labels that change in place are seen; the other renderers of the volume are not disturbed."""
    volume = random_volume((9, 8, 7), seed=9)
    rays, renderer = random_rays(volume, seed=9), Renderer(volume, integrator, backend="cpu")
    before = renderer.trace(*rays), renderer.trace(*rays, labels=[1])
    volume.attenuation.mul_(2)
    volume.labels[:] = 1
    after = renderer.trace(*rays), renderer.trace(*rays, labels=[1])
    assert torch.allclose(after[0], 2 * before[0], rtol=1e-5)
    assert torch.allclose(after[1], after[0], rtol=1e-4, atol=1e-6)
    assert not torch.allclose(after[1], 2 * before[1], rtol=1e-3)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e300])
@pytest.mark.parametrize("labels", [None, [1]])
@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_rays_that_are_no_rays_harm_nobody(integrator, labels, bad):
    """A ray of NaN or infinity spoils itself at most, not its fifteen neighbours, and not memory."""
    volume = random_volume((9, 8, 7), seed=10)
    source, target = random_rays(volume, seed=10)
    truth = traced(volume, integrator, "cpu", (source, target), labels)
    for ends, axis in ((source, 0), (target, 1), (source, 2)):
        ends[7 + 16 * axis, axis] = bad
    found = traced(volume, integrator, "cpu", (source, target), labels)
    keep = [n for n in range(len(source)) if n not in (7, 23, 39)]
    for spoiled, clean in zip(found[:1], truth[:1], strict=True):
        assert torch.equal(spoiled[:, keep], clean[:, keep])
    for spoiled, clean in zip(found[1:3], truth[1:3], strict=True):
        assert torch.equal(spoiled[keep], clean[keep])


def test_half_precision_volumes_are_computed_in_float32():
    volume = random_volume((9, 8, 7), seed=10)
    rays = random_rays(volume, seed=10)
    half = Renderer(volume.to(dtype=torch.float16), "siddon", backend="cpu").trace(*rays)
    assert half.dtype == torch.float16
    assert torch.allclose(half.float(), Renderer(volume, "siddon").trace(*rays), rtol=2e-3, atol=1e-4)


def test_two_threads_may_render_at_once():
    """Python threads that share a renderer, tables not yet made."""
    from concurrent.futures import ThreadPoolExecutor

    volume = random_volume((30, 31, 32), seed=11)
    rays = random_rays(volume, count=3000, seed=11)
    for integrator in INTEGRATORS:
        truth, shared = Renderer(volume, integrator).trace(*rays), Renderer(volume, integrator)
        with ThreadPoolExecutor(4) as pool:
            results = list(pool.map(lambda _, r=shared: r.trace(*rays), range(12)))
        assert all(torch.equal(result, truth) for result in results)


def test_negative_voxels_are_refused():
    """A volume that is optimised in place may slip below zero, which 16 bits and the box of matter do not know."""
    volume = random_volume((9, 8, 7), seed=10)
    for bad in (-1e-3, float("nan")):
        voxels = volume.attenuation.clone().requires_grad_(True)
        slipped = Volume.from_attenuation(voxels, volume.ijk_to_ras)
        with torch.no_grad():
            voxels[2, 3, 4] = bad
        for integrator in INTEGRATORS:
            with pytest.raises(RenderError, match="below 0"):
                Renderer(slipped, integrator, backend="cpu").trace(*random_rays(volume))


def test_a_stray_voxel_does_not_spoil_the_rest(caplog):
    """Its value would make the 16-bit unit larger than water."""
    volume = random_volume((9, 8, 7), seed=10)
    volume.attenuation[0, 0, 0] = 60.0
    found = traced(volume, "trilinear", "cpu", random_rays(volume))
    truth = traced(volume.to(dtype=torch.float64), "trilinear", "torch", random_rays(volume))
    ordinary = truth[0] < 1
    assert float(((found[0] - truth[0]).abs() / truth[0].clamp(min=1e-3))[ordinary].max()) < 1e-4
    assert all(difference(*pair) < 1e-4 for pair in zip(found, truth, strict=True))
    assert "float32" in caplog.text


def test_numba_that_does_not_load_is_a_reason_and_no_crash(monkeypatch):
    import builtins

    from DiffDRRCore.rendering import backends

    real = builtins.__import__

    def broken(name, *more):
        if name == "numba":
            raise ImportError("Numba needs NumPy 2.4 or less.")
        return real(name, *more)

    backends._numba_obstacle.cache_clear()
    monkeypatch.setattr(builtins, "__import__", broken)
    choice = backends.choose_backend("auto", "cpu")
    monkeypatch.undo()
    backends._numba_obstacle.cache_clear()
    assert choice.name == "torch" and "NumPy 2.4 or less" in choice.reason
