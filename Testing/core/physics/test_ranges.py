"""What varies in a training set: the distributions by their moments, and values that depend on nothing else."""

from __future__ import annotations

import json

import numpy as np
import pytest

from DiffDRRCore.errors import PhysicsError, ReadError
from DiffDRRCore.physics.simulation.ranges import Ranges, noise_seed

COUNT = 4000


def drawn(content, seed=3) -> np.ndarray:
    ranges = Ranges.from_dict({"kvp": content})
    return np.array([ranges.values(seed, number)["kvp"] for number in range(COUNT)])


def test_distributions_by_their_moments():
    """Mean and deviation of the textbook formulas, within five standard errors."""
    even = drawn([60, 120])
    assert 60 <= even.min() < 60.2 and 119.8 < even.max() <= 120
    assert even.mean() == pytest.approx(90, abs=5 * even.std() / COUNT**0.5)
    assert even.std() == pytest.approx(60 / 12**0.5, rel=0.05)
    normal = drawn({"normal": [80, 5]})
    assert (normal.mean(), normal.std()) == (pytest.approx(80, abs=0.4), pytest.approx(5, rel=0.06))
    cut = drawn({"normal": [80, 5], "within": [80, 200]})  # half a Gaussian: mean + sigma sqrt(2 / pi)
    assert cut.min() >= 80 and cut.mean() == pytest.approx(80 + 5 * (2 / np.pi) ** 0.5, abs=0.3)
    logs = np.log(drawn({"log_uniform": [1, np.e**2]}))
    assert (logs.mean(), logs.std()) == (pytest.approx(1, abs=0.05), pytest.approx(2 / 12**0.5, rel=0.05))
    chosen, counts = np.unique(drawn({"choice": [50, 60, 70]}), return_counts=True)
    assert chosen.tolist() == [50, 60, 70] and (abs(counts - COUNT / 3) < 150).all()
    assert set(drawn(71)) == {71}


def test_a_value_depends_on_seed_number_and_name_alone():
    one = Ranges.from_dict({"kvp": [60, 120]})
    more = Ranges.from_dict({"dose": [1, 2], "kvp": [60, 120], "primary": [60, 120]})
    first = [one.values(1, number)["kvp"] for number in range(5)]
    assert [more.values(1, number)["kvp"] for number in reversed(range(5))] == first[::-1]
    assert len({*first, *(one.values(2, number)["kvp"] for number in range(5))}) == 10
    assert more.values(1, 0)["kvp"] != more.values(1, 0)["primary"]
    assert len({noise_seed(seed, number) for seed in range(20) for number in range(20)}) == 400


def test_ranges_are_read_and_written_the_same(tmp_path):
    content = {"primary": {"uniform": [-30.0, 30.0]}, "kvp": {"normal": [80.0, 5.0], "within": [60.0, 100.0]}}
    (tmp_path / "r.json").write_text(json.dumps(content))
    (tmp_path / "r.yaml").write_text("primary: [-30, 30]\nkvp: {normal: [80, 5], within: [60, 100]}\n")
    for name in ("r.json", "r.yaml"):
        ranges = Ranges.read(tmp_path / name)
        assert ranges.to_dict() == content
        assert Ranges.from_dict(ranges.to_dict()) == ranges


@pytest.mark.parametrize(
    "content, reason",
    [
        ({"kpv": [60, 80]}, "no parameter 'kpv' to vary; there are: primary"),
        ({"kvp": [80, 60]}, "smaller to the larger"),
        ({"kvp": [80]}, "two numbers"),
        ({"kvp": [80, float("nan")]}, "finite"),
        ({"kvp": "80"}, "is a number, \\[least, most\\]"),
        ({"kvp": {"uniform": [60, 80], "within": [60, 70]}}, "with one of uniform"),
        ({"kvp": {"normal": [80, -1]}}, "deviation"),
        ({"kvp": {"normal": [80, 1], "within": [200, 300]}}, "limits about them"),
        ({"dose": {"log_uniform": [0, 1]}}, "above 0"),
        ({"kvp": {"choice": []}}, "finite numbers"),
        ({"kvp": {"choice": ["a"]}}, "lists of numbers"),
        ([1], "object of parameters"),
    ],
)
def test_what_is_no_range_is_refused(content, reason):
    with pytest.raises(PhysicsError, match=reason):
        Ranges.from_dict(content)


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "bad.yaml").write_text("a: [")
    (tmp_path / "twice.json").write_text('{"kvp": [60, 80], "kvp": [70, 90]}')
    (tmp_path / "twice.yaml").write_text("kvp: [60, 80]\nkvp: [70, 90]\n")
    wrong = {"bad.json": "damaged", "bad.yaml": "damaged", "none.json": "Cannot read"}
    wrong |= {"twice.json": "'kvp' comes twice", "twice.yaml": "'kvp' in line 2 is there already"}
    for name, reason in wrong.items():
        with pytest.raises(ReadError, match=reason):
            Ranges.read(tmp_path / name)
