"""The fused backends under autograd, torch.func and torch.compile; the choice of a backend."""

from __future__ import annotations

import locale
import logging
import pickle

import pytest
import torch

from DiffDRRCore import CArm, Renderer, Volume
from DiffDRRCore.errors import RenderError
from DiffDRRCore.rendering import backends
from DiffDRRCore.rendering.backends import choose_backend
from DiffDRRCore.rendering.check import check_backends, missing_backends
from Testing.core.rendering.fused_cases import difference, random_rays, random_volume

VOLUME = random_volume((8, 9, 10), seed=4)
CARM = CArm(300.0, 200.0, VOLUME.center, 12.0, 7.0)
CAMERA = CARM.camera(7, 8, (6.0, 5.0))
ZERO = torch.zeros(6, dtype=torch.float64)


def images(volume: Volume = VOLUME, integrator: str = "siddon", labels=None):
    """The image as a function of a small motion."""
    renderer = Renderer(volume, integrator)
    return lambda xi: renderer(CAMERA, CARM.pose.retract(xi, volume.center), labels).double()


@pytest.mark.parametrize("labels", [None, [1, 2]])
@pytest.mark.parametrize("integrator", ["siddon", "trilinear"])
def test_jacobians_in_reverse_and_forward_mode(integrator, labels):
    truth = torch.func.jacrev(images(VOLUME.to(dtype=torch.float64), integrator, labels))(ZERO)
    for jacobian in (torch.func.jacrev, torch.func.jacfwd):
        assert difference(jacobian(images(VOLUME, integrator, labels))(ZERO), truth) < 1e-4


def test_vmap_over_poses_is_a_batch():
    motions = 0.02 * torch.randn(3, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    together = torch.func.vmap(images())(motions)
    assert torch.equal(together, torch.stack([images()(xi) for xi in motions]))


def test_the_gradient_by_voxels_under_torch_func():
    rays = random_rays(VOLUME, count=50)

    def total(voxels):
        return Renderer(Volume.from_attenuation(voxels, VOLUME.ijk_to_ras), "trilinear").trace(*rays).sum()

    found = torch.func.grad(total)(VOLUME.attenuation)
    assert difference(found.double(), torch.func.grad(total)(VOLUME.attenuation.double())) < 1e-5


def test_a_transform_leaves_the_renderer_usable():
    """What torch.func computed inside its transform must not stay in the renderer's tables."""
    renderer = Renderer(VOLUME, "siddon")
    torch.func.jacrev(lambda xi: renderer(CAMERA, CARM.pose.retract(xi, VOLUME.center), [1]))(ZERO)
    assert torch.equal(renderer(CAMERA, CARM.pose), Renderer(VOLUME, "siddon")(CAMERA, CARM.pose))
    assert torch.equal(renderer(CAMERA, CARM.pose, [1]), Renderer(VOLUME, "siddon")(CAMERA, CARM.pose, [1]))


@pytest.mark.parametrize("labels", [None, [1]])
def test_a_second_derivative_is_refused_in_a_sentence(labels):
    xi = ZERO.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(images(labels=labels)(xi).sum(), xi, create_graph=True)
    with pytest.raises(RenderError, match="backend='torch'"):
        torch.autograd.grad(slope.sum(), xi)


def test_the_torch_backend_has_a_second_derivative():
    """Of the trilinear image by the pose, against a difference of first derivatives."""
    volume = VOLUME.to(dtype=torch.float64)
    renderer = Renderer(volume, "trilinear")

    def slope(xi, create_graph=False):
        image = renderer(CAMERA, CARM.pose.retract(xi, volume.center))
        return torch.autograd.grad(image.square().sum(), xi, create_graph=create_graph)[0]

    direction = torch.tensor([0.3, -0.2, 0.5, 0.1, 0.7, -0.4], dtype=torch.float64)
    xi = ZERO.clone().requires_grad_(True)
    (exact,) = torch.autograd.grad(slope(xi, create_graph=True) @ direction, xi)
    ahead, behind = (slope((sign * 1e-7 * direction).requires_grad_(True)) for sign in (1, -1))
    assert torch.allclose(exact, (ahead - behind) / 2e-7, rtol=1e-4, atol=1e-4 * float(exact.abs().max()))


def test_operators_hold_what_torch_asks_of_them():
    renderer, rays = Renderer(VOLUME, "siddon"), random_rays(VOLUME, count=20)
    number = renderer._tracer._problem(renderer.field()).number
    for derivatives in (False, True):
        arguments = (VOLUME.attenuation, *rays, number, 1, derivatives)
        torch.library.opcheck(torch.ops.diffdrr.integrals.default, arguments)
    weight = torch.ones(1, 20)
    torch.library.opcheck(torch.ops.diffdrr.ray_gradients.default, (VOLUME.attenuation, *rays, weight, number))
    torch.library.opcheck(torch.ops.diffdrr.voxel_gradients.default, (VOLUME.attenuation, *rays, weight, number))


@pytest.mark.skipif(
    "utf" not in locale.getpreferredencoding(False).lower(),
    reason="torch.compile reads its own files, which are UTF-8, in the locale's encoding",
)
def test_torch_compile():
    renderer, rays = Renderer(VOLUME, "siddon"), random_rays(VOLUME, count=20)

    def total(source, target):
        return 2 * renderer.trace(source, target).sum()

    compiled = torch.compile(total, backend="aot_eager")
    results = []
    for function in (compiled, total):
        source = rays[0].clone().requires_grad_(True)
        value = function(source, rays[1])
        results.append((value.detach(), torch.autograd.grad(value, source)[0]))
    assert torch.allclose(results[0][0], results[1][0]) and torch.allclose(results[0][1], results[1][1])


def test_the_choice_of_a_backend_has_a_reason(caplog, monkeypatch):
    assert choose_backend("auto", "cpu").name == "cpu"
    wide = choose_backend("auto", "cpu", torch.float64)
    assert wide.name == "torch" and "64 bit" in wide.reason
    assert choose_backend("auto", "mps").name == "torch" and "mps" in choose_backend("auto", "mps").reason
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        elsewhere = choose_backend("cuda", "cpu")
    assert elsewhere.name == "torch" and len(caplog.records) == 1 and "volume.to('cuda')" in caplog.text
    backends._numba_obstacle.cache_clear()
    monkeypatch.setattr(backends, "find_spec", lambda name: None)
    lacking = choose_backend("auto", "cpu")
    assert lacking.name == "torch" and "pip install" in lacking.reason
    renderer = Renderer(VOLUME)
    assert (renderer.backend, renderer.backend_reason) == lacking
    assert renderer(CAMERA, CARM.pose).dtype == torch.float32
    backends._numba_obstacle.cache_clear()


def test_the_self_test_passes_and_can_fail(monkeypatch):
    lines = []
    checks = check_backends(lines.append)
    assert {check.backend for check in checks} == {"cpu", "cuda"} - set(missing_backends())
    assert all(check.passed for check in checks) and len(lines) == len(checks) == 2 * len({c.backend for c in checks})
    from DiffDRRCore.rendering.backends.cpu import kernels

    exact = kernels.make_prefix
    monkeypatch.setattr(kernels, "make_prefix", lambda *a: exact(*a)._replace(unit=1.001 * exact(*a).unit))
    wrong = [check for check in check_backends() if not check.passed]
    assert [(check.backend, check.integrator) for check in wrong] == [("cpu", "siddon")]


@pytest.mark.parametrize("backend", ["cpu", "torch"])
def test_a_renderer_travels_to_other_processes(backend):
    renderer = Renderer(VOLUME, "siddon", backend=backend)
    copied = pickle.loads(pickle.dumps(renderer))
    assert torch.equal(copied(CAMERA, CARM.pose), renderer(CAMERA, CARM.pose))
    assert (copied.backend, copied.integrator, copied.step) == (backend, "siddon", renderer.step)
