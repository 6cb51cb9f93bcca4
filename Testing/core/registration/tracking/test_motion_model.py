"""What is expected of a motion: screws, filters, and what makes a frame lost."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from scipy.spatial.transform import Rotation, Slerp

from DiffDRRCore.geometry.se3 import exp_se3
from DiffDRRCore.registration.tracking.fits import Fit, apart, doubt
from DiffDRRCore.registration.tracking.motion_model import (
    Expectation,
    adjoint,
    between,
    centred,
    difference,
    six,
    uncentred,
)

XI = torch.tensor([0.3, -0.5, 0.2, 20.0, 5.0, -9.0], dtype=torch.float64)


def test_between_is_a_screw():
    """A bone on a hinge stays at its distance from the hinge; the rotation is SciPy's slerp."""
    hinge = torch.tensor([30.0, -20.0, 10.0], dtype=torch.float64)
    turned = torch.eye(4, dtype=torch.float64)
    turned[:3, :3] = exp_se3(torch.tensor([0.9, 0.4, 0, 0, 0, 0], dtype=torch.float64))[:3, :3]
    turned[:3, 3] = hinge - turned[:3, :3] @ hinge
    for share in (0.25, 0.7):
        found = between(torch.eye(4, dtype=torch.float64), turned, share)
        assert torch.allclose(found[:3, :3] @ hinge + found[:3, 3], hinge)
        truth = Slerp([0, 1], Rotation.from_matrix([torch.eye(3).numpy(), turned[:3, :3].numpy()]))(share)
        assert torch.allclose(found[:3, :3], torch.from_numpy(truth.as_matrix()))


def test_centred_and_back():
    pivot = torch.tensor([100.0, 50.0, -30.0], dtype=torch.float64)
    motion = exp_se3(XI)
    assert torch.allclose(centred(motion, pivot)[:3, 3], (motion @ torch.cat([pivot, torch.ones(1)]))[:3])
    assert torch.allclose(uncentred(centred(motion, pivot), pivot), motion)


def test_adjoint_moves_a_twist_to_the_other_side():
    pose, xi = exp_se3(XI), 0.3 * XI.flip(0) / 20
    assert torch.allclose(pose @ exp_se3(xi), exp_se3(adjoint(pose) @ xi) @ pose)


def test_an_expectation_follows_a_constant_screw():
    step = torch.tensor([[0.02, -0.01, 0.01, 2.0, -1.0, 0.5]], dtype=torch.float64)
    sure = torch.diag(six((0.01, 0.01)))[None]
    known = Expectation.first(exp_se3(0 * step), sure)
    for frame in range(1, 6):
        known = known.later(1.0, six((1.0, 2.0))).seen(exp_se3(frame * step), sure)
    after = known.later(3.0, six((1.0, 2.0)))
    assert float(difference(after.pose, exp_se3(8 * step)).abs().max()) < 0.05
    assert torch.allclose(known.twist, step, atol=0.02)


def test_the_covariance_is_that_of_many_noisy_runs():
    """The stated spread of the expectation holds over runs drawn at random (translations)."""
    rng, known = torch.Generator().manual_seed(0), None
    noisy = six((0.3, 1.0))
    for frame in range(6):
        pose, spread = torch.eye(4, dtype=torch.float64).repeat(400, 1, 1), torch.diag(noisy).repeat(400, 1, 1)
        pose[:, :3, 3] = 2.0 * frame + torch.randn(400, 3, generator=rng, dtype=torch.float64)
        if known is None:
            known = Expectation.first(pose, spread)
        else:
            known = known.later(1.0, six((0.01, 0.01))).seen(pose, spread)
    off = known.pose[:, :3, 3] - 10.0
    assert torch.allclose(off.var(0), known.covariance[0].diagonal()[3:6], rtol=0.25)


def fit(shift: float = 0.0, similarity: float = 0.95, views=(0, 1), reason=None) -> Fit:
    motion = torch.eye(4, dtype=torch.float64)[None].clone()
    motion[0, 0, 3] = shift
    about = torch.zeros(1, 3, dtype=torch.float64)
    return Fit(motion, torch.diag(six((0.05, 0.1)))[None], about, similarity, reason, motion, views)


OTHERS = [fit(similarity=0.95 + 0.002 * (number % 3)) for number in range(9)]


def test_a_usual_frame_is_not_doubted():
    assert doubt(fit(similarity=0.945), OTHERS, None) is None


@pytest.mark.parametrize(
    ("one", "words"),
    [
        (fit(similarity=0.7), "similarity drops to 0.700, where 0.952 is usual"),
        (fit(similarity=-math.inf), "nothing of the CT is in sight"),
        (fit(reason="step limit reached"), "did not converge: step limit reached"),
    ],
)
def test_reasons_to_doubt(one, words):
    assert words in doubt(one, OTHERS, None)


def test_similarity_is_only_compared_between_the_same_views():
    assert doubt(fit(similarity=0.7, views=(0,)), OTHERS, None) is None


def test_a_jump_is_told_in_mm_and_degrees():
    expected = Expectation.first(fit().centred, fit().covariances)
    expected = replace(expected, covariance=torch.diag(six((1.0, 2.0)).repeat(2))[None])
    assert doubt(fit(5.0), OTHERS, expected) is None
    assert "it lies 30.0 mm and 0.0 degrees from where the motion leads" in doubt(fit(30.0), OTHERS, expected)


def test_apart():
    assert apart(fit(0.0), fit(2.0))
    assert not apart(fit(0.0), fit(0.5))
