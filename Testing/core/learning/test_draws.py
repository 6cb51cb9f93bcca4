from __future__ import annotations

import pytest
import torch
from scipy import stats

from DiffDRRCore.learning.data.draws import Draws
from DiffDRRCore.physics.simulation.ranges import Range

COUNT = 4000


@pytest.mark.parametrize(
    ("one", "law"),
    [
        (Range("a", "uniform", (-3.0, 5.0)), stats.uniform(-3, 8)),
        (Range("a", "log_uniform", (0.5, 8.0)), stats.loguniform(0.5, 8.0)),
        (Range("a", "normal", (2.0, 3.0)), stats.norm(2, 3)),
        (Range("a", "normal", (2.0, 3.0), (1.0, 4.0)), stats.truncnorm(-1 / 3, 2 / 3, 2, 3)),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_ranges_have_their_distributions(one, law):
    assert stats.kstest(Draws(1, 2, 3).of(one, COUNT).numpy(), law.cdf).pvalue > 1e-3


def test_choices_come_equally_often_and_a_normal_range_without_spread_is_its_mean():
    drawn = Draws(5).of(Range("a", "choice", (1.0, 2.0, 2.0, 7.0)), COUNT)
    shares = [(drawn == value).double().mean().item() for value in (1.0, 2.0, 7.0)]
    assert shares == pytest.approx([0.25, 0.5, 0.25], abs=0.03)
    assert Draws(5).of(Range("a", "normal", (4.0, 0.0)), 2).tolist() == [4.0, 4.0]


def test_numbers_depend_on_key_and_name_alone():
    first = Draws(1, 2).uniform("a", 8)
    Draws(1, 2).uniform("b", 100), torch.rand(3)
    assert torch.equal(Draws(1, 2).uniform("a", 8), first)
    assert torch.equal(Draws(1).within(2).uniform("a", 8), first)
    for other in (Draws(1, 3).uniform("a", 8), Draws(1, 2).uniform("b", 8), Draws(12).uniform("a", 8)):
        assert not torch.equal(other, first)
    many = torch.stack([Draws(0, step).uniform("a", 1)[0] for step in range(2000)])
    assert stats.kstest(many.numpy(), "uniform").pvalue > 1e-3
    assert abs(torch.corrcoef(torch.stack([many[:-1], many[1:]]))[0, 1]) < 0.1


def test_events_happen_as_often_as_asked_and_noise_is_normal():
    assert Draws(3).happens("x", COUNT, 0.2).double().mean() == pytest.approx(0.2, abs=0.03)
    assert not Draws(3).happens("x", COUNT, 0.0).any()
    assert Draws(3).happens("x", COUNT, 1.0).all()
    noise = Draws(3).normal("n", torch.zeros(COUNT))
    assert noise.dtype == torch.float32
    assert stats.kstest(noise.numpy(), "norm").pvalue > 1e-3
