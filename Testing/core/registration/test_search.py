"""Motions tried around the start, subsets of pixels, and models of the CT that are kept."""

from __future__ import annotations

import gc
import math
import weakref

import pytest
import torch

from DiffDRRCore import Registration, Volume, register
from DiffDRRCore.errors import RegistrationError
from DiffDRRCore.pieces import finished
from DiffDRRCore.registration import Limits
from DiffDRRCore.registration.problem.models import making_renderers
from DiffDRRCore.registration.problem.motion import MotionFrame
from DiffDRRCore.registration.problem.options import Options
from DiffDRRCore.registration.problem.unknowns import Unknown, Unknowns
from DiffDRRCore.registration.starts.screening import best_apart, is_decisive, motions
from Testing.core.registration import scene

FRAME = MotionFrame(torch.tensor([10.0, 20, 30]).double(), torch.eye(3).double())
UNKNOWNS = Unknowns([Unknown("", FRAME.pivot, FRAME.axes, reach=100.0)])


def renderers(volume, options, pixels):
    return finished(making_renderers(volume, None, options, pixels))


@pytest.mark.parametrize(("views", "depth"), [(1, 60.0), (2, 20.0)])
def test_motions_spread_as_stated(views, depth):
    q = FRAME.coordinates(motions(FRAME, Limits(), 256, 200.0, views, seed=1))
    assert q.shape == (256, 6)
    expected = torch.tensor([math.radians(10)] * 3 + [20.0, 20.0, depth], dtype=torch.float64)
    assert torch.allclose(q.std(0), expected, rtol=0.05)
    assert bool((q.mean(0).abs() < 0.05 * expected).all())  # a random sample's would be off by 0.06 of one in three


def test_motions_stay_within_the_limits_and_depend_on_the_seed_alone():
    limits = Limits(bounds=(1.0, None, None, None, None, 5.0))
    first, again, other = (motions(FRAME, limits, 50, 200.0, 1, seed).matrix for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    q = FRAME.coordinates(motions(FRAME, limits, 50, 200.0, 1, seed=1))
    assert float(q[:, 0].abs().max()) <= math.radians(1) + 1e-9
    assert float(q[:, 5].abs().max()) <= 5 + 1e-9
    assert float(q[:, 3].abs().max()) > 20


def test_best_apart_by_hand():
    q = torch.zeros(5, 6, dtype=torch.float64)
    q[:, 3] = torch.tensor([0.0, 0.5, 10.0, 10.4, 30.0])
    chosen = best_apart(UNKNOWNS, UNKNOWNS.state(q), torch.tensor([3.0, 1, 2, 2.5, 9]), 3, 1.0)
    assert chosen.tolist() == [1, 2, 4]


def test_decisive_by_hand():
    tried = torch.tensor([0.5, 0.3, 0.9])
    assert is_decisive(torch.tensor(0.02), tried, 0.0)
    assert not is_decisive(torch.tensor(0.04), tried, 0.0)
    assert not is_decisive(torch.tensor(1.04), tried + 1, 1.0)


def test_a_search_finds_what_the_start_does_not_lead_to():
    """The start is tilted by 40 degrees."""
    xray = scene.xray()
    lost = scene.moved(xray.pose, (0.5, 0.5, 0.0, 0.0, 0.0, 0.0))
    options = {"sizes": (32,), "beyond_ends": True}
    alone = register(scene.ct(), xray, lost, search=0, **options)
    assert scene.error(alone.poses[0], xray.pose) > 20
    result = register(scene.ct(), xray, lost, **options)
    assert scene.error(result.poses[0], xray.pose) < 2
    assert result.history[-1]["start"] > 0
    assert result.alternatives
    assert all(other["similarity"] <= result.similarity + 1e-6 for other in result.alternatives)


def test_no_search_goes_on_beside_a_clear_optimum():
    xray = scene.xray()
    start = scene.moved(xray.pose)
    with_search, without = (register(scene.ct(), xray, start, sizes=(32,), search=n) for n in (128, 0))
    assert torch.equal(with_search.poses.matrix, without.poses.matrix)
    assert len(with_search.history) == len(without.history) + 1  # one look at 32 motions
    assert with_search.alternatives == []


def test_some_pixels_stand_for_all():
    xray = scene.xray()
    start = scene.moved(xray.pose)
    registration = Registration(scene.ct(), xray, start, sizes=(32, 64), pixels=128)
    thin, full = (level.objective.views[0] for level in registration.levels)
    assert full.uv is None
    assert 64 < len(thin.uv) <= 128
    assert thin.fixed.shape == (1, 1, 1, len(thin.uv))
    cells = (thin.uv // 3).long()
    assert len({tuple(cell) for cell in cells.tolist()}) == len(thin.uv)  # one in each cell of 3 x 3
    u, v = thin.uv.long().unbind(-1)
    whole = Registration(scene.ct(), xray, start, sizes=(32, 64)).levels[0].objective.views[0]
    assert torch.equal(thin.fixed[0, 0, 0], whole.fixed[0, 0, v, u])
    assert scene.error(register(scene.ct(), xray, start, sizes=(32, 64), pixels=128).poses[0], xray.pose) < 1.5


def test_some_pixels_are_no_patches():
    with pytest.raises(RegistrationError, match="compares neighbouring pixels"):
        Registration(scene.ct(), scene.xray(), similarity="lncc", pixels=100)


def test_models_are_kept_until_the_ct_changes():
    volume = Volume(scene.ct().hu.clone(), scene.ct().ijk_to_ras)
    options = Options()
    first = renderers(volume, options, [30.0, 15.0])
    assert [tuple(r.volume.shape) for r in first] == [(12, 10, 12), (24, 20, 24)]
    assert all(a is b for a, b in zip(renderers(volume, options, [30.0, 15.0]), first, strict=True))
    other = renderers(volume, options, [45.0, 15.0])
    assert other[1] is first[1]
    assert tuple(other[0].volume.shape) == (8, 7, 8)
    volume.hu[20, 20, 20] += 1000
    again = renderers(volume, options, [30.0, 15.0])
    assert again[0] is not first[0]
    assert not torch.equal(again[0].volume.attenuation, first[0].volume.attenuation)


def test_kept_models_do_not_keep_the_ct():
    volume = Volume(scene.ct().hu.clone(), scene.ct().ijk_to_ras)
    first = renderers(volume, Options(), [30.0, 5.0])
    assert first[1].volume.shape == volume.shape
    gone = weakref.ref(volume)
    del volume
    gc.collect()
    assert gone() is None


def test_coarse_models_keep_the_mass_of_the_ct():
    volume = scene.ct()
    for renderer in renderers(volume, Options(), [30.0, 15.0]):
        model = renderer.volume
        cell = float(torch.linalg.det(model.ijk_to_ras[:3, :3]).abs())
        mass = float(model.attenuation.double().sum()) * cell
        assert mass == pytest.approx(float(volume.attenuation.double().sum()) * 125, rel=1e-5)
