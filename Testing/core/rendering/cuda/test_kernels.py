"""The cuda backend's kernels against autograd through the torch backend in float64."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("warp", reason="the cuda backend needs the package warp-lang")

from DiffDRRCore.rendering.backends.cuda import KERNELS, launch
from DiffDRRCore.rendering.backends.fused.grid import Grid
from DiffDRRCore.rendering.field import Field
from Testing.core.rendering.cuda import cases

INTEGRATORS = ("trilinear", "siddon")


@pytest.mark.parametrize("pieces", [1, 5])
@pytest.mark.parametrize("channels", cases.CHANNELS)
@pytest.mark.parametrize("linear", cases.LINEAR)
@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_random_rays(integrator, linear, channels, pieces, monkeypatch):
    monkeypatch.setattr(launch, "piece_count", lambda *_: pieces)
    of = cases.field(linear, channels=channels)
    s, t = cases.rays(of)
    weight = cases.weights(of, s)
    want = cases.expected(of, integrator, s, t, weight)
    assert (want.integral > 0).sum() > 100 * of.count
    cases.assert_close(cases.found(of, integrator, s, t, weight), want)


@pytest.mark.parametrize("pieces", [2, 64])
def test_a_plane_right_between_two_pieces_counts_once(pieces, monkeypatch):
    """Rays through two voxels along i cross the plane between them in their middle."""
    of = cases.field("sheared", (1, 1, 2))
    of.attenuation[:] = torch.tensor([0.01, 0.05])
    offsets = torch.rand(200, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.6 - 0.3
    starts, ends = torch.full((200, 3), -9.0).double(), torch.full((200, 3), 10.0).double()
    starts[:, 1:], ends[:, 1:] = offsets[:, :2], offsets[:, 2:]
    s, t = cases.world(of, starts), cases.world(of, ends)
    weight = cases.weights(of, s)
    monkeypatch.setattr(launch, "piece_count", lambda *_: pieces)
    cases.assert_close(cases.found(of, "siddon", s, t, weight), cases.expected(of, "siddon", s, t, weight))


@pytest.mark.parametrize("channels", cases.CHANNELS)
@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_image_and_derivatives_in_one_pass(integrator, channels):
    of = cases.field("sheared", channels=channels)
    s, t = cases.rays(of)
    want = cases.expected(of, integrator, s, t, torch.ones(of.count, len(s)))
    got = KERNELS.integrals_with_derivatives(cases.grid(of, integrator), s, t)
    assert cases.error(got.integral, want.integral.sum(0)) < 1e-5
    assert cases.error(got.by_source, want.by_s) < 1e-4
    assert cases.error(got.by_target, want.by_t) < 1e-4
    assert all(x.is_contiguous() for x in got)


@pytest.mark.parametrize("axes", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)])
@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_rays_parallel_to_planes(integrator, axes):
    """Directions whose components along `axes` are exactly zero."""
    of = cases.field("aligned")
    s, t = cases.rays(of)
    s, t = s * 4096 // 1 / 4096, t * 4096 // 1 / 4096  # so that voxel coordinates are exact
    t[:, list(axes)] = s[:, list(axes)]
    weight = cases.weights(of, s)
    want = cases.expected(of, integrator, s, t, weight)
    assert (want.integral > 0).sum() > 50
    cases.assert_close(cases.found(of, integrator, s, t, weight), want)


@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_rays_through_corners_and_along_edges_and_faces(integrator):
    """Where the derivative jumps, it must be finite; the integral must be the reference's."""
    of = cases.field("aligned")
    i, j, k = (float(n) for n in of.size)
    starts = [[-5.5, -5.5, -5.5], [-0.5, -0.5, -9.0], [2.5, 3.5, -9.0], [2.5, -9.0, 4.0], [3.0, 3.0, -9.0]]
    ends = [[29.5, 29.5, 29.5], [-0.5, -0.5, 30.0], [2.5, 3.5, 30.0], [2.5, 40.0, 4.0], [3.0, 3.0, 30.0]]
    starts += [[-1.0, 3.0, -9.0], [-0.5, 3.0, -9.0], [i - 0.5, 3.0, -9.0], [i, 3.0, -9.0], [2.5, 2.5, 2.5]]
    ends += [[-1.0, 3.0, 30.0], [-0.5, 3.0, 30.0], [i - 0.5, 3.0, 30.0], [i, 3.0, 30.0], [2.5, 2.5, 5.5]]
    starts += [[-2.0, 0.0, 4.0], [-1.5, 0.5, 4.0], [i, j, k], [-0.5, -0.5, -0.5]]
    ends += [[0.0, -2.0, 4.0], [0.5, -1.5, 4.0], [-1.0, -1.0, -1.0], [i - 0.5, j - 0.5, k - 0.5]]
    s, t = cases.world(of, starts), cases.world(of, ends)
    s, t = torch.cat([s, t]), torch.cat([t, s])
    weight = cases.weights(of, s)
    want, got = (trace(of, integrator, s, t, weight) for trace in (cases.expected, cases.found))
    assert cases.error(got.integral, want.integral) < 1e-5
    assert cases.error(got.by_voxel, want.by_voxel) < 1e-4
    assert got.by_s.isfinite().all() and got.by_t.isfinite().all()


@pytest.mark.parametrize("channels", cases.CHANNELS)
@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_rays_that_miss_or_have_no_length(integrator, channels):
    of = cases.field("oblique", channels=channels)
    starts = [[-50.0, -50, -50], [30, 3, 3], [-9, 3, 3], [5, 5, 4], [99, 99, 99]]
    ends = [[-50.0, 50, -50], [90, 4, 5], [-3, 4, 4], [5, 5, 4], [99, 99, 99]]
    s, t = cases.world(of, starts), cases.world(of, ends)
    for part in cases.found(of, integrator, s, t, cases.weights(of, s)):
        assert torch.equal(part, torch.zeros_like(part))


@pytest.mark.parametrize("shape", [(1, 12, 13), (11, 1, 1), (1, 1, 1), (2, 1, 30)])
@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_volumes_of_a_single_slice_row_or_voxel(integrator, shape):
    of = cases.field("sheared", shape, seed=5)
    of.attenuation.clamp_(min=0.01)
    s, t = cases.rays(of)
    weight = cases.weights(of, s)
    cases.assert_close(cases.found(of, integrator, s, t, weight), cases.expected(of, integrator, s, t, weight))


@pytest.mark.parametrize("channels", cases.CHANNELS)
@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_a_long_volume_keeps_samples_on_their_side_of_a_face(integrator, channels):
    """At voxel 3000, float32 positions would be wrong by 2e-4 voxel, and some labels with them."""
    of = cases.field("anisotropic", (3, 4, 3000), channels, seed=7)
    s, t = cases.rays(of, 500)
    weight = cases.weights(of, s)
    cases.assert_close(cases.found(of, integrator, s, t, weight), cases.expected(of, integrator, s, t, weight))


@pytest.mark.parametrize("channels", cases.CHANNELS)
@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_an_empty_volume_still_has_gradients_by_its_voxels(integrator, channels):
    of = cases.field("oblique", channels=channels)
    of.attenuation.zero_()
    s, t = cases.rays(of)
    weight = cases.weights(of, s)
    want, got = (trace(of, integrator, s, t, weight) for trace in (cases.expected, cases.found))
    assert got.integral.abs().max() == got.by_s.abs().max() == got.by_t.abs().max() == 0
    assert cases.error(got.by_voxel, want.by_voxel) < 1e-4


@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_no_ray_and_one_ray(integrator):
    of = cases.field("oblique", channels="soft")
    s, t = cases.rays(of)
    weight = cases.weights(of, s)
    one = cases.found(of, integrator, s[:1], t[:1], weight[:, :1])
    cases.assert_close(one, cases.expected(of, integrator, s[:1], t[:1], weight[:, :1]))
    none = cases.found(of, integrator, s[:0], t[:0], weight[:, :0])
    assert [part.shape for part in none] == [(3, 0), (0, 3), (0, 3), cases.SHAPE]
    assert none.by_voxel.abs().max() == 0


@pytest.mark.parametrize("channels", cases.CHANNELS)
@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_dot_product_of_integrals_and_adjoint(integrator, channels):
    of = cases.field("left-handed", channels=channels, seed=3)
    s, t = cases.rays(of, 400)
    weight = cases.weights(of, s).abs()
    got = cases.found(of, integrator, s, t, weight)
    forward = float((got.integral.double() * weight).sum())
    backward = float((got.by_voxel.double() * of.attenuation).sum())
    assert forward > 1
    assert backward == pytest.approx(forward, rel=1e-5)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_labels_asked_for_twice_or_absent(integrator, soft):
    one = cases.field("oblique", channels="soft")
    of = Field(one.attenuation, one.ras_to_ijk, one.labels, (2, 99, 1, 2, -3), soft)
    s, t = cases.rays(of)
    weight = cases.weights(of, s)
    want, got = (trace(of, integrator, s, t, weight) for trace in (cases.expected, cases.found))
    cases.assert_close(got, want)
    assert torch.equal(got.integral[0], got.integral[3])
    assert got.integral[[1, 4]].abs().max() == 0


@pytest.mark.parametrize("backwards", [False, True])
def test_a_sample_half_way_between_voxels_is_the_upper_ones(backwards):
    """Two voxels, one sample: 3 mm of the mean of 1/4 and 3/4 per mm."""
    labels = torch.tensor([[[1, 2]]])
    of = Field(labels.double() / 2 - 0.25, torch.eye(4, dtype=torch.float64), labels, (1, 2))
    ends = (torch.tensor([[x, 0.0, 0.0]], dtype=torch.float64) for x in ((9.0, -9.0) if backwards else (-9.0, 9.0)))
    grid = Grid(Field(of.attenuation.float(), of.ras_to_ijk, labels, (1, 2)), "trilinear", parts=1)
    assert KERNELS.integrals(grid, *ends).flatten().tolist() == pytest.approx([0, 1.5])


@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_a_homogeneous_cube_by_hand(integrator):
    """16 voxels of 2 mm at 1/64 per mm: 32 mm through the middle; trilinear ramps add what they take at the faces."""
    mu = torch.full((16, 16, 16), 1 / 64, dtype=torch.float64)
    of = Field(mu, torch.diag(torch.tensor([0.5, 0.5, 0.5, 1.0], dtype=torch.float64)))
    s = torch.tensor([[15.0, 15.0, -500.0], [15.0, 15.0, 15.0]], dtype=torch.float64)
    t = torch.tensor([[15.0, 15.0, 500.0], [15.0, 23.0, 15.0]], dtype=torch.float64)
    got = KERNELS.integrals_with_derivatives(cases.grid(of, integrator), s, t)
    assert got.integral.tolist() == pytest.approx([0.5, 0.125], rel=1e-3 if integrator == "trilinear" else 1e-6)
    assert got.by_source[1].tolist() == pytest.approx([0, -1 / 64, 0], abs=1e-7)
    assert got.by_target[1].tolist() == pytest.approx([0, 1 / 64, 0], abs=1e-7)
