"""Smoothing against a linear Kalman smoother, on screw motions, and on paths drawn from its own model."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from DiffDRRCore.geometry.se3 import exp_se3
from DiffDRRCore.registration.tracking.motion_model import between, difference, noise, six
from DiffDRRCore.registration.tracking.smoothing import estimated, smoothed

ACCELERATION = torch.tensor([1e-10] * 3 + [0.3, 0.5, 0.8], dtype=torch.float64)


def kalman_smoother(numbers, measured, variances, known, acceleration):
    """Positions and their variances [F] of one axis: Kalman filter and Rauch-Tung-Striebel smoother, textbook form."""
    state, spread = np.array([measured[0], 0.0]), np.diag([1e9, 1e9])
    kept = []
    for place, number in enumerate(numbers):
        before, wide, step = state, spread, number - numbers[place - 1] if place else 0
        change = np.array([[1.0, step], [0.0, 1.0]])
        if place:
            added = acceleration * np.array([[step**3 / 3, step**2 / 2], [step**2 / 2, step]])
            before, wide = change @ state, change @ spread @ change.T + added
        state, spread = before, wide
        if known[place]:
            gain = wide[:, 0] / (wide[0, 0] + variances[place])
            state = before + gain * (measured[place] - before[0])
            spread = wide - np.outer(gain, wide[0])
        kept.append((before, wide, change, state, spread))
    found = [(state, spread)]
    for place in range(len(numbers) - 2, -1, -1):
        before, wide, change, _, _ = kept[place + 1]
        _, _, _, state, spread = kept[place]
        share = spread @ change.T @ np.linalg.inv(wide)
        state, spread = state + share @ (found[0][0] - before), spread + share @ (found[0][1] - wide) @ share.T
        found.insert(0, (state, spread))
    return np.array([state[0] for state, _ in found]), np.array([spread[0, 0] for _, spread in found])


@pytest.mark.parametrize("numbers", [range(12), [0, 1, 2, 5, 6, 9, 10, 30, 31, 33, 34, 35]])
def test_translations_are_a_linear_kalman_smoothers(numbers):
    rng = np.random.default_rng(0)
    path = np.cumsum(rng.normal(0, 3, (12, 3)), axis=0)
    variances = rng.uniform(0.2, 2.0, (12, 3))
    known = np.ones(12, dtype=bool)
    known[[3, 4, 8]] = False
    poses = torch.eye(4, dtype=torch.float64).repeat(12, 1, 1)
    poses[:, :3, 3] = torch.from_numpy(path)
    covariances = torch.diag_embed(torch.cat([torch.full((12, 3), 1e-10), torch.from_numpy(variances)], dim=1))
    found, spread = smoothed(list(numbers), poses, covariances, torch.from_numpy(known), ACCELERATION)
    for axis in range(3):
        own = float(ACCELERATION[3 + axis])
        truth = kalman_smoother(list(numbers), path[:, axis], variances[:, axis], known, own)
        assert np.allclose(found[:, axis, 3].numpy(), truth[0], atol=1e-5)
        assert np.allclose(spread[:, 3 + axis, 3 + axis].numpy(), truth[1], rtol=1e-5)
    assert torch.allclose(found[:, :3, :3], torch.eye(3, dtype=torch.float64), atol=1e-9)


def test_a_hinge_stays_as_it_is_and_fills_its_gaps():
    twist = torch.tensor([0.05, -0.02, 0.03, 3.0, -1.0, 2.0], dtype=torch.float64)
    truth = exp_se3(torch.arange(20)[:, None] * twist)
    known = torch.ones(20, dtype=torch.bool)
    known[5:9] = False
    given = truth.clone()
    given[5:9] = between(truth[4], truth[9], 0.9)
    covariances = torch.diag(six((0.5, 0.5))).repeat(20, 1, 1)
    found, spread = smoothed(range(20), given, covariances, known, six((0.1, 0.1)))
    assert float(difference(truth, found).abs().max()) < 1e-7
    assert float(spread[7].diagonal().sum()) > float(spread[2].diagonal().sum())


def drawn(frames: int, acceleration, deviations, seed: int):
    """A path of the model itself, in small steps, and measurements of it."""
    rng, steps = torch.Generator().manual_seed(seed), 5
    pose, twist, path = torch.eye(4, dtype=torch.float64), torch.zeros(6, dtype=torch.float64), []
    for number in range(frames * steps):
        if number % steps == 0:
            path.append(pose)
        twist = twist + (six(acceleration) / steps).sqrt() * torch.randn(6, generator=rng, dtype=torch.float64)
        pose = pose @ exp_se3(twist / steps)
    truth = torch.stack(path)
    error = six(deviations).sqrt() * torch.randn(frames, 6, generator=rng, dtype=torch.float64)
    return truth, truth @ exp_se3(error), torch.diag(six(deviations)).repeat(frames, 1, 1)


def test_the_error_is_as_large_as_stated_and_smaller_than_before():
    squares, gains = [], []
    for seed in range(4):
        truth, measured, covariances = drawn(60, (0.4, 0.5), (0.8, 1.5), seed)
        known = torch.ones(60, dtype=torch.bool)
        found, spread = smoothed(range(60), measured, covariances, known, six((0.4, 0.5)))
        off = difference(found, truth)
        squares.append((off[:, None] @ torch.linalg.inv(spread) @ off[..., None])[:, 0, 0].mean() / 6)
        gains.append(off.norm() / difference(measured, truth).norm())
    assert 0.8 < sum(squares) / 4 < 1.25
    assert max(gains) < 0.8


def test_acceleration_and_noise_are_estimated():
    """To about the accuracy that 300 frames allow; the stated deviations are three times too small."""
    _, measured, covariances = drawn(300, (0.6, 0.9), (0.5, 0.6), 1)
    own, factors = estimated(range(300), measured, covariances / 9, torch.ones(300, dtype=torch.bool))
    assert math.degrees(float(own[0]) ** 0.5) == pytest.approx(0.6, rel=0.25)
    assert float(own[3]) ** 0.5 == pytest.approx(0.9, rel=0.25)
    assert torch.allclose(factors, torch.full((6,), 3.0, dtype=torch.float64), rtol=0.2)


def test_one_sudden_turn_is_an_acceleration_and_no_noise():
    """Factors stay near 1, so that the turn is not rounded off."""
    path = torch.eye(4, dtype=torch.float64).repeat(40, 1, 1)
    path[:, 0, 3] = 2.0 * (20 - torch.arange(40)).abs()
    _, _, covariances = drawn(40, (0.1, 0.1), (0.02, 0.05), 0)
    own, factors = estimated(range(40), path, covariances, torch.ones(40, dtype=torch.bool))
    assert float(factors.max()) < 1.01
    found, _ = smoothed(range(40), path, covariances, torch.ones(40, dtype=torch.bool), own)
    assert float((found - path)[:, :3, 3].abs().max()) < 0.2


def test_too_short_to_estimate_and_a_single_frame():
    _, measured, covariances = drawn(6, (0.3, 0.6), (0.6, 0.9), 1)
    assert estimated(range(6), measured, covariances, torch.ones(6, dtype=torch.bool)) is None
    found, spread = smoothed([3], measured[:1], covariances[:1], torch.ones(1, dtype=torch.bool), six((1.0, 1.0)))
    assert torch.allclose(found, measured[:1])
    assert torch.allclose(spread, covariances[:1], rtol=1e-6)


def test_noise_of_two_steps_is_that_of_one_long_one():
    change = torch.eye(12, dtype=torch.float64)
    change[:6, 6:] = 2.0 * torch.eye(6)
    twice = change @ noise(ACCELERATION, 3.0) @ change.mT + noise(ACCELERATION, 2.0)
    assert torch.allclose(twice, noise(ACCELERATION, 5.0))
