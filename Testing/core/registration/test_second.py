"""Outlines after grey values: where they go on, what that is worth, and what is said of negatives."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from DiffDRRCore import Registration, Volume, register
from DiffDRRCore.datasets.simulated import simulated_xray
from DiffDRRCore.errors import DiffDRRWarning, RegistrationError
from DiffDRRCore.registration import Body, Limits
from DiffDRRCore.registration.certainty.second import SecondOpinion
from DiffDRRCore.registration.problem.unknowns import State
from Testing.core.registration import scene
from Testing.protocol import adversities

NEAR = (0.02, -0.02, 0.02, 2.0, -2.0, 5.0)
OPTIONS = {"sizes": (64, 128), "search": 0}


@cache
def taken(real: bool):
    """128 x 128 pixels: polychromatic with scatter and blur, or with noise alone."""
    carm = scene.arm()
    camera = carm.camera(128, 128, (2.5, 2.5))
    if real:
        return adversities.taken(adversities.simulator(scene.ct(), camera), camera, carm.pose)[0]
    return simulated_xray(scene.ct(), camera, carm.pose)


def test_scatter_and_beam_hardening():
    xray = taken(True)
    start = scene.moved(xray.pose, NEAR)
    alone = register(scene.ct(), xray, start, second=None, **OPTIONS)
    result = register(scene.ct(), xray, start, **OPTIONS)
    before, after = (scene.error(one.poses[0], xray.pose) for one in (alone, result))
    assert after < 0.6 * before
    assert result.similarity == pytest.approx(alone.similarity, abs=0.01)  # both by grey values
    assert result.similarity < alone.similarity
    assert result.history[-1]["level"] == 2
    assert result.history[-1]["similarity"] == pytest.approx(result.similarity, abs=1e-4)
    assert result.converged
    xi = result.standard_deviations[3:]
    assert float(xi.norm()) > 0.3 * (before - after)


def test_a_single_level_of_a_ct_that_is_cut():
    """What lies beyond the ends is looked at once where there is one level, and outlines go on from it."""
    xray, whole = taken(True), scene.ct()
    quarter = whole.shape[0] // 4
    affine = whole.ijk_to_ras.clone()
    affine[:3, 3] += affine[:3, 2] * quarter
    ct = Volume(whole.hu[quarter:-quarter], affine)
    result = register(ct, xray, scene.moved(xray.pose, NEAR), sizes=(128,), search=0)
    assert result.converged
    assert scene.error(result.poses[0], xray.pose) < 5


def test_bodies_that_are_all_of_the_ct_call_for_one_as_the_ct_does():
    """Whether the rest is named by its labels or not."""
    xray, labels = taken(True), sorted(scene.ct().present_labels)
    for rest in (labels[1:], None):
        bodies = [Body("some", labels[:1], locked=True), Body("rest", rest)]
        registration = Registration(scene.ct(), xray, scene.moved(xray.pose, NEAR), bodies=bodies, **OPTIONS)
        assert registration.problem.everything
    with pytest.warns(DiffDRRWarning, match="Only some structures"):
        assert not Registration(scene.ct(), xray, xray.pose, labels=labels[1:2], **OPTIONS).problem.everything


def test_noise_alone_calls_for_no_second_opinion():
    xray = taken(False)
    registration = Registration(scene.ct(), xray, scene.moved(xray.pose, NEAR), **OPTIONS)
    for _ in registration.steps():
        pass
    assert len(registration.levels) == 2
    assert scene.error(registration.result().poses[0], xray.pose) < 1.5


ON_A_BOUND = {"limits": Limits(bounds=(None,) * 5 + (0.5,))}


@pytest.mark.parametrize("options", [{"similarity": "lncc"}, {"sizes": (32, 64)}, {"optimizer": "lbfgs"}, ON_A_BOUND])
def test_where_there_is_no_second_opinion(options):
    xray = taken(True)
    start = scene.moved(xray.pose, (0.0,) * 5 + (20.0,))
    registration = Registration(scene.ct(), xray, start, **(OPTIONS | {"max_steps": 4} | options))
    count = len(registration.levels)
    for _ in registration.steps():
        pass
    assert len(registration.levels) == count


def test_two_answers_by_hand():
    """4 mm along the beam and 3 mm across it."""
    xray = scene.xray()
    (level,) = Registration(scene.ct(), xray, xray.pose, sizes=(32,)).levels
    one, rotation = level.objective.unknowns.start(), xray.pose.rotation.double()
    xi = torch.zeros(1, 6, dtype=torch.float64)
    xi[0, 3:] = 4 * rotation[:, 2] + 3 * rotation[:, 0]
    other: State = level.objective.unknowns.moved(one, xi)
    second = SecondOpinion(level, one, level, other)
    assert second.apart(0) == [pytest.approx((3.0, 4.0))]
    deviation = second.spread()[3:, 3:]
    assert float(rotation[:, 2] @ deviation @ rotation[:, 2]) == pytest.approx(4.0)
    assert float(deviation.trace()) == pytest.approx(25 / 4)


def test_unknown_name():
    with pytest.raises(RegistrationError, match="second is 'auto' or None, got 'lncc'"):
        register(scene.ct(), scene.xray(), second="lncc")


def test_the_edges_of_the_beam_are_said():
    xray = scene.xray()
    spoilt = adversities.collimated(xray, adversities.turned_field(64, 64, 20.0, 0.75), scatter=1e-6)
    result = register(scene.ct(), spoilt, scene.moved(xray.pose), sizes=(32,), search=0)
    assert any(doubt.startswith("X-ray 1 shows the edges of the beam") for doubt in result.doubts)


@pytest.mark.parametrize("masked", [False, True])
def test_a_negative_is_said_and_a_positive_is_not(masked):
    xray = scene.xray()
    weights = None
    if masked:  # what does not count says nothing of the sign
        weights = [torch.ones(64, 64)]
        weights[0][:, :20] = 0
        xray = xray.with_image(torch.where(weights[0] > 0, xray.image, 40.0))
    start = scene.moved(xray.pose, NEAR) if masked else scene.moved(xray.pose)
    options = {"sizes": (32,), "search": 0, "weights": weights}
    negative = register(scene.ct(), xray.with_image(-xray.image), start, **options)
    assert negative.doubts[0].startswith("X-ray 1 looks like a negative")
    assert not any("negative" in doubt for doubt in register(scene.ct(), xray, start, **options).doubts)
