"""Registration in pieces, for event loops: the same numbers, and no piece that is large."""

from __future__ import annotations

import pytest
import torch

from DiffDRRCore import Registration, Renderer, Volume, register
from DiffDRRCore.errors import RegistrationError, VolumeError
from DiffDRRCore.pieces import RAYS, finished, ranges
from DiffDRRCore.registration.objective import objective, views
from DiffDRRCore.registration.starts import screening
from Testing.core.registration import scene

OPTIONS = {"sizes": (32, 64), "search": 64}


def start():
    return scene.moved(scene.xray().pose)


@pytest.fixture
def small_pieces(monkeypatch):
    """Pieces of 500 rays, so that small images have many."""
    for module in (objective, views, screening):
        monkeypatch.setattr(module, "RAYS", 500)


@pytest.mark.parametrize(
    "options", [{}, {"similarity": "lncc"}, {"optimizer": "adam", "max_steps": 10}, {"pixels": 300}]
)
def test_small_pieces_give_the_same_result(monkeypatch, options):
    whole = register(scene.ct(), scene.xray(), start(), **(OPTIONS | options))
    for module in (objective, views, screening):
        monkeypatch.setattr(module, "RAYS", 500)
    registration = Registration(scene.ct(), scene.xray(), start(), **(OPTIONS | options))
    work = list(registration.work())
    assert sum(step is None for step in work) > 2 * len(registration.history)
    assert [step.index for step in work if step is not None] == [entry["step"] for entry in registration.history]
    result = finished(registration.finishing())
    assert torch.allclose(result.poses.matrix, whole.poses.matrix, atol=1e-3)
    assert abs(result.similarity - whole.similarity) < 1e-6
    assert torch.allclose(result.covariance, whole.covariance, rtol=1e-2, atol=1e-12)


def test_no_piece_has_more_rays_than_it_should(small_pieces, monkeypatch):
    traced = []
    linearize, trace = Renderer.linearize, Renderer.trace

    def counted(self, camera, pose, about=None, uv=None):
        traced.append(len(pose) * (camera.height * camera.width if uv is None else uv.shape[-2]))
        return linearize(self, camera, pose, about, uv)

    def counted_trace(self, source, target, *rest):
        traced.append(target[..., 0].numel())
        return trace(self, source, target, *rest)

    monkeypatch.setattr(Renderer, "linearize", counted)
    monkeypatch.setattr(Renderer, "trace", counted_trace)
    registration = Registration(scene.ct(), scene.xray(), start(), starts=6, **OPTIONS)
    pieces = 0
    for _ in registration.work():
        pieces += 1
    assert len(traced) < 2 * pieces  # a few of them beside each other at most
    registration.result()
    assert max(traced) <= 500 and len(traced) > 100


def test_steps_come_without_what_lies_between_them(small_pieces):
    registration = Registration(scene.ct(), scene.xray(), start(), **OPTIONS)
    assert all(step.size[0] in (32, 64) for step in registration.steps())


def test_preparing_says_what_comes_and_returns_the_registration(monkeypatch):
    said, compiled = [], []
    volume = Volume(scene.ct().hu, scene.ct().ijk_to_ras)
    preparing = Renderer.preparing
    monkeypatch.setattr(Renderer, "must_compile", property(lambda self: not compiled))
    monkeypatch.setattr(Renderer, "preparing", lambda self: compiled.append(len(said)) or preparing(self))
    work = Registration.preparing(volume, scene.xray(), start(), **OPTIONS)
    while True:
        try:
            said.append(next(work))
        except StopIteration as end:
            registration = end.value
            break
    assert said.index("Compiling for this processor: some seconds, once") < compiled[0]
    assert sum("Compiling" in text for text in said) == 1
    assert "Preparing the CT" in said and "Preparing level 2 of 2" in said
    assert registration.history == [] and len(list(registration.steps())) > 3
    with pytest.raises(RegistrationError, match="Unknown option"):
        next(Registration.preparing(volume, scene.xray(), start(), colour="red"))


def labelled() -> Volume:
    ct = scene.ct()
    labels = torch.where(ct.hu > 300, 2, torch.where(ct.hu > 0, 1, 0))
    return Volume(ct.hu, ct.ijk_to_ras, labels, {1: "soft", 2: "bone"})


@pytest.mark.parametrize("factor", [1, 2, (3, 2, 1), (1, 5, 7)])
@pytest.mark.parametrize("slab", [1, 3000, 10**9])
def test_coarsening_is_coarsened_without_the_whole_attenuation(monkeypatch, factor, slab):
    monkeypatch.setattr("DiffDRRCore.imaging.volume._SLAB", slab)
    for labels in (None, [2], [1, 2]):
        volume = labelled()
        found = finished(volume.coarsening(factor, labels))
        assert volume._cache is None
        whole = labelled() if labels is None else labelled().select(labels)
        expected = whole.coarsened(factor)
        assert torch.allclose(found.attenuation, expected.attenuation, rtol=1e-6)
        assert torch.allclose(found.ijk_to_ras, expected.ijk_to_ras) and found.labels is None


def test_coarsening_asks_for_labels_that_are_there():
    with pytest.raises(VolumeError, match="No voxel has the label 5"):
        finished(labelled().coarsening(2, [2, 5]))
    with pytest.raises(VolumeError, match="no labels"):
        finished(Volume(scene.ct().hu, scene.ct().ijk_to_ras).coarsening(2, [2]))
    with pytest.raises(VolumeError, match="at least one label"):
        finished(labelled().coarsening(2, []))


def test_a_piece_covers_everything_once():
    assert list(ranges(10, 4)) == [(0, 4), (4, 8), (8, 10)] and list(ranges(0, 4)) == []
    assert RAYS >= 64 * 64  # images of small levels are one piece


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_one_voxel_that_is_not_finite_is_found(bad):
    hu = scene.ct().hu.clone()
    hu[3, 4, 5] = bad
    with pytest.raises(VolumeError, match="1 of the"):
        Volume(hu, scene.ct().ijk_to_ras)


@pytest.mark.parametrize("slab", [1, 3000])
def test_the_tables_of_the_cpu_kernels_are_the_same_in_pieces(monkeypatch, slab):
    pytest.importorskip("numba")
    from DiffDRRCore.rendering.backends.cpu import kernels, rimmed

    attenuation = scene.ct().attenuation.numpy()
    whole, unit = rimmed.rimmed(attenuation)
    fits = list(kernels._fitting(attenuation))
    monkeypatch.setattr(rimmed, "_PIECE", slab)
    monkeypatch.setattr(kernels, "_PIECE", slab)
    *between, (voxels, same) = rimmed.rimming(attenuation)
    deep = max(1, slab // attenuation[0].size)
    assert len(between) == 1 + -(-len(attenuation) // deep) and not any(between)
    assert (voxels == whole).all() and same == unit and whole.any()
    again = list(kernels._fitting(attenuation))
    assert len(again) > len(fits) and again[-1] is fits[-1] is True


@pytest.mark.parametrize("integrator", ["trilinear", "siddon"])
@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_a_prepared_renderer_gives_the_same_image_and_has_nothing_to_compile(integrator, backend):
    prepared, fresh = (Renderer(scene.ct(), integrator, backend) for _ in range(2))
    for _ in prepared.preparing():
        pass
    assert not prepared.must_compile
    xray = scene.xray()
    assert torch.equal(prepared(xray.camera, xray.pose), fresh(xray.camera, xray.pose))
