"""Intervals, capture range, quantiles and calibration against numbers worked out by hand or by another program."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, chi2

from DiffDRRCore.evaluation.statistics import (
    Bound,
    CaptureBin,
    bin_edges,
    capture_bins,
    capture_range,
    chi_square_quantile,
    coverage,
    mahalanobis_squared,
    quantile,
    success_rate,
    wilson,
)


def curve(*shares: tuple[float, float, int, int]) -> list[CaptureBin]:
    return [CaptureBin(low, high, wilson(count, total)) for low, high, count, total in shares]


def test_wilson_intervals_of_the_literature():
    """R. G. Newcombe, Statistics in Medicine 17, 1998, table I, method 3 (without continuity correction)."""
    for count, total, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        share = wilson(count, total)
        assert (share.low, share.high) == pytest.approx((low, high), abs=5e-5)


@given(total=st.integers(1, 400), part=st.floats(0, 1), confidence=st.sampled_from([0.68, 0.9, 0.95, 0.99]))
@settings(max_examples=60, deadline=None)
def test_wilson_intervals_of_scipy(total, part, confidence):
    count = round(part * total)
    expected = binomtest(count, total).proportion_ci(confidence, method="wilson")
    share = wilson(count, total, confidence)
    assert (share.low, share.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert share.value == count / total


def test_no_cases_say_nothing():
    share = wilson(0, 0)
    assert (share.low, share.high) == (0, 1) and math.isnan(share.value)
    with pytest.raises(ValueError, match="3 of 2"):
        wilson(3, 2)


def test_what_is_no_number_is_no_success():
    share = success_rate([0.5, 1.999, 2.0, math.nan, math.inf], 2)
    assert (share.count, share.total) == (2, 5)
    assert success_rate([], 2).total == 0


@pytest.mark.parametrize(
    ("errors", "q", "expected"),
    [
        ([3, 1, 2], 0.5, 2),
        ([1, 2, 3, 4], 0.5, 2.5),
        ([1, 2, 3, 4], 0.95, 3.85),
        ([1, 2, math.nan], 0.5, 2),
        ([1, 2, math.inf], 0.95, math.inf),
        ([1, math.inf, math.inf, math.inf], 0.6, math.inf),
        ([5], 0.95, 5),
    ],
)
def test_quantiles(errors, q, expected):
    assert quantile(errors, q) == pytest.approx(expected)


def test_quantiles_of_nothing():
    assert math.isnan(quantile([], 0.5))


def test_bins_hold_the_cases_from_their_low_edge_on():
    start = [0, 4.9, 5, 9, 12, 30, math.nan]
    end = [1, 3, 1, math.inf, 0.1, 0.1, 0.1]
    bins = capture_bins(start, end, 2, edges=[0, 5, 10, 20, 25])
    assert [(b.low, b.high, b.share.count, b.share.total) for b in bins] == [
        (0, 5, 1, 2),
        (5, 10, 1, 2),
        (10, 20, 1, 1),
        (20, 25, 0, 0),
    ]


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        ([40.0], [0, 5, 10, 15, 20, 25, 30, 35, 40, 45]),
        ([39.0, 1.0, math.inf, math.nan], [0, 5, 10, 15, 20, 25, 30, 35, 40]),
        ([100.0], [*range(0, 111, 10)]),
        ([0.7], [0.1 * k for k in range(9)]),
        ([0.0], [0.1 * k for k in range(12)]),
        ([], []),
    ],
)
def test_edges_of_even_bins(start, expected):
    edges = bin_edges(start)
    assert edges == pytest.approx(expected)
    counted = sum(b.share.total for b in capture_bins(start, start, 1, edges))
    assert counted == sum(map(math.isfinite, start))


def test_capture_range_is_where_the_share_first_falls_below():
    bins = curve((0, 10, 10, 10), (10, 20, 9, 10), (20, 30, 0, 0), (30, 40, 4, 10), (40, 50, 10, 10))
    # from 100 % at 5 to 90 % at 15: 95 % at 10; from 90 % at 15 to 40 % at 35: 50 % at 31
    assert capture_range(bins, 0.95) == (pytest.approx(10), "=")
    assert capture_range(bins, 0.5) == (pytest.approx(31), "=")
    assert capture_range(bins, 0.9).value == pytest.approx(15)


def test_capture_range_beyond_the_starts():
    assert capture_range(curve((0, 10, 9, 10), (10, 20, 8, 10), (20, 30, 0, 0)), 0.5) == Bound(15, ">")
    assert capture_range(curve((0, 10, 0, 0), (10, 20, 4, 10), (20, 30, 9, 10)), 0.5) == Bound(15, "<")
    for nothing in ([], curve((0, 10, 0, 0))):
        assert math.isnan(capture_range(nothing, 0.5).value)


@pytest.mark.parametrize("p", [0.5, 0.9, 0.95])
def test_chi_square_quantiles(p):
    # tabulated for 6 degrees of freedom
    assert chi_square_quantile(p) == pytest.approx({0.5: 5.348, 0.9: 10.645, 0.95: 12.592}[p], abs=5e-4)
    assert chi_square_quantile(p, 3) == pytest.approx(chi2.ppf(p, 3), rel=1e-12)


def test_mahalanobis_by_hand():
    assert mahalanobis_squared(np.diag([4.0, 1e-8]), [2.0, 3e-4]) == pytest.approx(1 + 9)
    assert mahalanobis_squared([[2, 1], [1, 2]], [1, 1]) == pytest.approx(2 / 3)


def gaussians(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A covariance in (rad, mm) with correlations, and draws from it."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(6, 6)) * np.array([0.002] * 3 + [1.5] * 3)[:, None]
    return mix @ mix.T, rng.normal(size=(count, 6)) @ mix.T


def test_a_calibrated_covariance_holds_what_it_promises():
    covariance, draws = gaussians(4000)
    found = coverage([covariance.tolist()] * len(draws), draws.tolist())
    assert (found.used, found.unusable, found.missing) == (4000, 0, 0)
    for p, share in found.levels.items():
        assert share.low < p < share.high
        assert share.high - share.low < 0.035


@pytest.mark.parametrize("factor", [0.25, 4.0])
def test_a_covariance_of_the_wrong_size_is_found_out(factor):
    covariance, draws = gaussians(4000, seed=1)
    found = coverage([covariance * factor] * len(draws), list(draws), confidence=0.999)
    for p, share in found.levels.items():
        expected = chi2.cdf(factor * chi2.ppf(p, 6), 6)
        assert share.low < expected < share.high
        assert not share.low < p < share.high


def test_unusable_covariances_are_counted_and_judge_nothing():
    good, broken = np.eye(6), np.eye(6)
    broken[0, 0] = -1
    unknown = [[None] * 6, *np.eye(6).tolist()[1:]]  # NaN, as JSON keeps it
    covariances = [good, broken, np.ones((6, 6)), np.full((6, 6), np.inf), np.zeros((6, 6)), unknown, None, good]
    deviations = [np.zeros(6)] * 7 + [None]
    found = coverage(covariances, deviations)
    assert (found.used, found.unusable, found.missing) == (1, 5, 2)
    assert found.levels[0.5].count == 1
    nothing = coverage([None], [None])
    assert nothing.levels[0.9].total == 0 and nothing.missing == 1
