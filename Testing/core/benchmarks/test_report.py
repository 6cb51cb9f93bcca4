"""What the benchmarks say: agreement of images, targets, sections of the report, turns."""

from __future__ import annotations

import numpy as np
import pytest

from Testing.benchmarks import report
from Testing.benchmarks.agreement import agreement
from Testing.benchmarks.peers.client import PeerError
from Testing.benchmarks.report import Target
from Testing.benchmarks.timing import Times, interleave, ratio


class TestAgreement:
    reference = np.array([[1.0, 2.0], [3.0, 4.0]])

    def test_other_units_agree(self):
        found = agreement(self.reference / 10, self.reference)
        assert found.correlation == pytest.approx(1)
        assert found.error == pytest.approx(0, abs=1e-12)
        assert found.scale == pytest.approx(10)

    def test_by_hand(self):
        """image = (1, 0, 0, 0): factor 1, difference (0, -2, -3, -4)."""
        found = agreement(np.array([[1.0, 0.0], [0.0, 0.0]]), self.reference)
        assert found.scale == pytest.approx(1)
        assert found.error == pytest.approx(np.sqrt(29 / 30))
        assert found.median_error == pytest.approx(2.5 / 4)

    def test_mirrored_view_shows(self):
        image = np.random.default_rng(0).random((20, 20))
        assert agreement(image[:, ::-1], image).correlation < 0.5

    def test_other_size(self):
        with pytest.raises(ValueError, match="same"):
            agreement(np.ones((2, 3)), self.reference)


@pytest.mark.parametrize(
    ("measured", "higher", "verdict"),
    [
        *((7.0, True, "aim"), (6.0, True, "aim"), (3.0, True, "at least"), (2.0, True, "missed")),
        *((1.0, False, "aim"), (4.0, False, "at least"), (7.0, False, "missed"), (None, True, "not measured")),
    ],
)
def test_verdict(measured, higher, verdict):
    least, aim = (2.5, 6.0) if higher else (6.0, 2.5)
    assert Target("x", measured, least, aim, higher_is_better=higher).verdict() == verdict


class TestSections:
    def test_other_sections_stay(self, tmp_path):
        path = tmp_path / "RESULTS.md"
        report.write_section("Rendering", ["one", "## Part", "two"], path)
        report.write_section("Registration", ["three"], path)
        report.write_section("Rendering", ["four"], path)
        assert path.read_text(encoding="utf-8") == "# Rendering\n\nfour\n\n# Registration\n\nthree\n"

    def test_a_part_is_no_section(self):
        assert report.split_sections("# A\nx\n## B\ny\n# C\nz") == {"A": "x\n## B\ny", "C": "z"}

    def test_table(self):
        assert report.table(["a", "b"], [["1", "2"]]) == ["| a | b |", "| --- | --- |", "| 1 | 2 |", ""]


class TestTurns:
    def test_order_and_warm_up(self):
        called = []

        def call(name: str) -> float:
            called.append(name)
            return float(len(called))

        times = interleave({name: lambda n=name: call(n) for name in "AB"}, rounds=2, patience=1e9, what="")
        assert called == list("ABABAB")
        assert times["A"].first == 1.0
        assert times["A"].seconds == [3.0, 5.0]
        assert times["B"].median == 5.0

    def test_slow_call_gets_fewer_turns(self):
        times = interleave({"slow": lambda: 4.0, "fast": lambda: 0.1}, rounds=10, patience=9.0, what="")
        assert len(times["slow"].seconds) == 2  # the third turn would pass 9 s
        assert len(times["fast"].seconds) == 10

    def test_a_peer_that_fails_is_a_row(self):
        def fail() -> float:
            raise PeerError("not installed: no wheel")

        times = interleave({"peer": fail, "ours": lambda: 1.0}, rounds=3, patience=1e9, what="")
        assert times["peer"].text() == "not installed: no wheel"
        assert times["ours"].text() == "1000.0 (1000.0)"
        assert ratio(times["peer"], times["ours"]) is None
        assert ratio(Times([3.0]), Times([1.5])) == 2.0
