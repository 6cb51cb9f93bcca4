"""Tables, figures, the 3D scene and the page, against numbers worked out by hand from known errors."""

from __future__ import annotations

import csv
import errno
import math
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from DiffDRRCore.datasets import phantom
from DiffDRRCore.datasets.simulated import simulated_xray
from DiffDRRCore.errors import DiffDRRError, ReadError
from DiffDRRCore.evaluation.report import load_cases, plots, scene3d, write_report
from DiffDRRCore.evaluation.report.summary import Criteria, label, summarize
from DiffDRRCore.evaluation.report.tables import error_table, success_table
from DiffDRRCore.files import replacing
from DiffDRRCore.imaging.volume import Volume
from Testing.core.evaluation import records as kit

SPECIAL = "<b>A|B</b> & $x$"


def known() -> list[dict]:
    """One method on two subjects: starts 5, 15, 25, 35 mm; ends 0.5, 1.5, 3 mm, failed; then 1 mm to 0.1 mm."""
    ends = [(5, 0.5), (15, 1.5), (25, 3), (35, None)]
    return [
        *(kit.record(start, end, index) for index, (start, end) in enumerate(ends)),
        kit.record(1, 0.1, 0, subject="B", covariance=np.eye(6).tolist(), deviation=[0.0] * 6),
    ]


def fewer(records: list[dict], *measures: str) -> list[dict]:
    """With few measures only: each costs a figure."""
    for record in records:
        for key in ("errors_start", "errors_end"):
            if record[key] is not None:
                record[key] = {name: record[key][name] for name in measures or ("mtre_mm",)}
    return records


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def no_drawing(monkeypatch):
    """Empty figures, where a test is not about what they show: drawing takes most of the time."""

    def save(figure, path):
        with replacing(path) as temporary:
            temporary.write_bytes(b"PNG")
        return path

    monkeypatch.setattr(plots, "save", save)


class Page(HTMLParser):
    """Tags, what they refer to, and whether they close in order."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.references, self.text, self._open = [], [], "", []
        self.feed(text)
        self.close()
        assert not self._open, self._open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.references += [value for name, value in attrs if name in ("src", "href", "srcset", "action")]
        if tag not in ("meta", "img", "link", "br", "input"):
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] not in ("script", "style"):
            self.text += data


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    folder = kit.run(tmp_path_factory.mktemp("run"), fewer(known(), "mtre_mm", "mrpe_detector_mm", "rotation_deg"))
    files = write_report(folder)
    assert {path.name for path in files if path.parent == folder} == {
        "report.md",
        "report.html",
        "cases.csv",
        "summary.csv",
    }
    assert {path.name for path in files if path.parent != folder} == {
        "capture_range.png",
        "success.png",
        "errors_mtre_mm.png",
        "errors_mrpe_detector_mm.png",
        "errors_rotation_deg.png",
    }
    assert all(path.stat().st_size > 0 for path in files)
    return folder


def test_numbers_of_the_summary(written):
    whole, a, b = rows(written / "summary.csv")
    assert (whole["method"], whole["subject"], a["subject"], b["subject"]) == ("ours", "all", "A", "B")
    assert (whole["cases"], whole["failures"], a["cases"], b["failures"]) == ("5", "1", "4", "0")
    for limit, count in ((1, 2), (2, 3), (5, 4), (10, 4)):
        assert float(whole[f"success_{limit}_mm"]) == count / 5
        interval = binomtest(count, 5).proportion_ci(0.95, "wilson")
        assert float(whole[f"success_{limit}_mm_low"]) == pytest.approx(interval.low)
        assert float(whole[f"success_{limit}_mm_high"]) == pytest.approx(interval.high)
    # the failed case is infinitely wrong: 0.5, 1.5, 3, inf
    assert float(a["end_median_mtre_mm"]) == pytest.approx(2.25)
    assert float(a["end_p95_mtre_mm"]) == math.inf
    assert float(a["start_median_mtre_mm"]) == pytest.approx(20)
    assert float(a["start_p95_mtre_mm"]) == pytest.approx(25 + 0.85 * 10)
    # shifts in the plane; four targets at depth 850, one each at 800 and at 900
    magnified = 1020 * (4 / 850 + 1 / 800 + 1 / 900) / 6
    assert float(a["end_median_mrpe_detector_mm"]) == pytest.approx(2.25 * magnified)
    assert (float(a["median_seconds"]), float(a["median_steps"])) == (2, 21)
    assert (float(b["inside_50_percent"]), b["covariances_used"], b["covariances_missing"]) == (1, "1", "0")
    assert (a["inside_50_percent"], a["covariances_missing"]) == ("", "4")


def test_numbers_of_the_cases(written):
    found = rows(written / "cases.csv")
    assert [row["case"] for row in found] == ["A/000/0", "A/000/1", "A/000/2", "A/000/3", "B/000/0"]
    assert [float(row["start_mtre_mm"]) for row in found] == pytest.approx([5, 15, 25, 35, 1])
    assert [row["end_mtre_mm"] and round(float(row["end_mtre_mm"]), 9) for row in found] == [0.5, 1.5, 3, "", 0.1]
    assert found[3]["failure"] == "The registration left the image."


def test_markdown(written):
    text = (written / "report.md").read_text(encoding="utf-8")
    success = next(line for line in text.splitlines() if line.startswith("| ours | all |"))
    cells = [cell.strip() for cell in success.strip("|").split("|")]
    # Wilson intervals of 2, 3 and 4 of 5
    assert cells[2:8] == ["5", "1", "40 % (12–77)", "60 % (23–88)", "80 % (38–96)", "80 % (38–96)"]
    assert "| ours | B | 1 | 0 | 100 % (21–100) |" in text
    assert "| mTRE (mm) | 15 / 33 | 1.5 / ∞ |" in text
    assert "| ours | A/000/3 | The registration left the image. |" in text
    assert "a failed case counts as not successful" in text
    assert "needs the dataset" in text or "need the dataset" in text
    for name in re.findall(r"\]\((figures/[^)]+)\)", text):
        assert (written / name).is_file()
    assert "nan" not in text.lower()


def test_the_page_needs_nothing_else(written):
    text = (written / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.tags.count("img") == 5
    assert all(reference.startswith("data:image/png;base64,") for reference in page.references)
    assert "link" not in page.tags and "iframe" not in page.tags
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style and "@import" not in style and "prefers-color-scheme: dark" in style
    assert not re.search(r"<script[^>]+src=", text)
    for shown in ("60 % (23–88)", "A/000/3", "Cameras in space"):
        assert shown in page.text


def test_runs_that_differ_are_told(tmp_path, no_drawing):
    for number, threads in enumerate((1, 2)):
        runs = [{"date": "2020-02-03", "threads": 1}, {"date": "2020-02-04", "threads": threads}]
        folder = kit.run(tmp_path / str(number), fewer([kit.record(5, 1)]), {"runs": runs})
        write_report(folder)
        text = (folder / "report.md").read_text(encoding="utf-8")
        assert "2020-02-04" in text
        assert ("Not all cases were run with the same" in text) == (threads == 2)


def test_names_are_text_and_nothing_else(tmp_path, no_drawing):
    records = fewer(
        [kit.record(5, 1, subject=SPECIAL, method="<img src=x>"), kit.record(5, None, 1, failure="<i>a\nb</i>")]
    )
    versions = {"torch": "</script><script>alert(1)</script>"}
    folder = kit.run(tmp_path, records, {"runs": [{"date": "2020-02-03T04:05:06", "versions": versions}]})
    write_report(folder)
    text = (folder / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert "<img src=x>" not in text and SPECIAL not in text and "alert(1)</script>" not in text
    assert "<img src=x>" in page.text and "<i>a\nb</i>" in page.text
    assert "2 cases, 2 subjects; <img src=x>, ours. 2020-02-03. torch </script>" in page.text
    assert "i" not in page.tags and "b" not in page.tags
    assert r"| \<img src=x\> | all |" in (folder / "report.md").read_text(encoding="utf-8")
    assert rows(folder / "cases.csv")[0]["subject"] == SPECIAL


def test_plots_show_what_the_statistics_say():
    records, criteria = fewer(kit.usual(cases=12)), Criteria()
    summaries = summarize(records, criteria)
    axis = plots.capture_figure(summaries, criteria).axes[0]
    whole = [s for s in summaries if s.subject is None]
    curves = [line for line in axis.lines if line.get_marker() == "o"]
    assert len(curves) == len(whole) == 2
    for line, summary in zip(curves, whole, strict=True):
        known = [bin_ for bin_ in summary.bins if bin_.share.total]
        assert sum(bin_.share.total for bin_ in known) == 24
        np.testing.assert_allclose(line.get_xdata(), [bin_.center for bin_ in known])
        np.testing.assert_allclose(line.get_ydata(), [100 * bin_.share.value for bin_ in known])
    for band, summary in zip(axis.collections, whole, strict=True):
        drawn = band.get_paths()[0].vertices[:, 1]
        assert drawn.min() == pytest.approx(100 * min(b.share.low for b in summary.bins if b.share.total))
        assert drawn.max() == pytest.approx(100 * max(b.share.high for b in summary.bins if b.share.total))
    axis = plots.success_figure(records, criteria).axes[0]
    for line, summary in zip(axis.lines, whole, strict=False):
        for limit, rate in summary.success.items():
            at_limit = line.get_ydata()[np.searchsorted(line.get_xdata()[:-1], limit) - 1]
            assert at_limit == pytest.approx(100 * rate.value)


def test_histograms_count_every_case():
    records = fewer([*known(), kit.record(0, 0, 9)])
    axis = plots.histogram_figure(records, "mtre_mm").axes[0]
    heights = [sum(bar.get_height() for bar in container) for container in axis.containers]
    assert heights == [6, 5]
    names = [text.get_text() for text in axis.get_legend().get_texts()]
    assert names == ["start", "end (1 of 6 without a number)"]
    edges = plots.histogram_edges([0.0, 0.002, 50.0, math.inf])
    assert (edges[0], edges[-1]) == (pytest.approx(0.05, rel=0.01), pytest.approx(50, rel=0.01))


def test_capture_bins_of_the_protocol():
    criteria = Criteria.of({"thresholds_mm": [3, 1], "starts": {"kind": "sampled", "bins_mm": [0, 10, 40]}})
    assert (criteria.thresholds, criteria.capture_threshold) == ((1, 3), 1)
    bins = summarize(fewer(known()), criteria)[0].bins
    assert [(b.low, b.high, b.share.count, b.share.total) for b in bins] == [(0, 10, 2, 2), (10, 40, 0, 3)]
    assert Criteria.of({}) == Criteria()


def test_peers_without_a_measure():
    """Records of another program stand in the same tables, with a dash for what they lack."""
    records = [*fewer([kit.record(5, 1)], "mtre_mm", "rotation_deg"), *fewer([kit.record(5, 2, method="peer")])]
    table = error_table(summarize(records))
    assert table.header == ["measure", "ours: start", "ours: end", "peer: start", "peer: end"]
    assert table.rows[0] == ["mTRE (mm)", "5 / 5", "1 / 1", "5 / 5", "2 / 2"]
    assert table.rows[1][0] == "rotation (deg)" and table.rows[1][3:] == ["–", "–"]
    assert label("own_score") == "own (score)" and label("score") == "score"


def null_errors(**choices) -> dict:
    record = kit.record(5, 1, **choices)
    record["errors_end"]["mtre_mm"] = None
    return record


def bare() -> dict:
    """A case that failed before anything of it was known."""
    record = kit.record(5, None)
    return record | {"errors_start": None, "poses_start": None, "poses_true": None, "camera": None}


@pytest.mark.parametrize(
    ("records", "cells"),
    [
        ([kit.record(5, 1.5)], ["1", "0", "0 % (0–79)", "100 % (21–100)"]),
        ([kit.record(5, None, index) for index in range(3)], ["3", "3", "0 % (0–56)", "0 % (0–56)"]),
        ([null_errors(), kit.record(5, 0.5, 1)], ["2", "0", "50 % (9–91)", "50 % (9–91)"]),
        ([kit.record(5, 0.5, views=2), kit.record(5, 0.5, 1, views=2)], ["2", "0", "100 % (34–100)", "100 % (34–100)"]),
        ([bare()], ["1", "1", "0 % (0–79)", "0 % (0–79)"]),
    ],
    ids=["one", "all failed", "no number", "two views", "nothing known"],
)
def test_unusual_runs(tmp_path, records, cells):
    records = fewer(records)
    assert success_table(summarize(records), Criteria()).rows[0][2:6] == cells
    folder = kit.run(tmp_path, records)
    write_report(folder)
    Page((folder / "report.html").read_text(encoding="utf-8"))
    assert "nan" not in (folder / "report.md").read_text(encoding="utf-8").lower()


def test_frustums_stand_where_the_cameras_do():
    record = kit.record(0, 10)
    points = scene3d.frustum(record, record["poses_end"][0])
    # camera x is -R, y is -S, z is -A: 10 mm along x; 64 x 48 pixels of 4 mm, centres at the corners; 12 % of 1020 mm
    tip = kit.CENTER.numpy() + np.array([-10, 850, 0])
    np.testing.assert_allclose(points[0], tip, atol=1e-9)
    half = 0.12 * 4 * np.array([47, 0, 63]) / 2
    corners = {tuple(np.round(p, 6)) for p in points if np.isfinite(p).all()} - {tuple(np.round(tip, 6))}
    expected = [tip + np.array([s * half[0], -0.12 * 1020, t * half[2]]) for s in (-1, 1) for t in (-1, 1)]
    assert corners == {tuple(np.round(p, 6)) for p in expected}


def test_the_scene_shows_one_subject_at_a_time():
    figure = scene3d.scene_figure(known(), "mtre_mm")
    names = [(trace.name, trace.visible) for trace in figure.data]
    assert names == [(f"ours: {kind}", True) for kind in ("reference", "start", "end")] + [
        (f"ours: {kind}", False) for kind in ("reference", "start", "end")
    ]
    pieces = [np.isfinite(np.array(trace.x, dtype=float)).sum() // 12 for trace in figure.data]
    assert pieces == [1, 4, 3, 1, 1, 1]  # one reference for all starts; a failed case has no end
    assert [button.args[0]["visible"] for button in figure.layout.updatemenus[0].buttons] == [
        [True] * 3 + [False] * 3,
        [False] * 3 + [True] * 3,
    ]


def test_too_many_cases_are_left_out_and_said(monkeypatch):
    monkeypatch.setattr(scene3d, "_MOST_CASES", 2)
    assert scene3d.left_out(known()) == 2
    starts = scene3d.scene_figure(known()[:4], "mtre_mm").data[1]
    assert set(starts.text) == {"A/000/3: start", "A/000/2: start"}  # the failed one and the worst


def test_anatomy_of_a_cube():
    hu = torch.full((20, 24, 28), -1000.0)
    hu[5:15, 6:18, 7:21] = 800
    affine = np.array([[-2.0, 0, 0, 100], [0, 2, 0, -50], [0, 0, 3, 7], [0, 0, 0, 1]])
    anatomy = scene3d.Anatomy.of(Volume(hu, affine), torch.tensor([[1.0, 2.0, 3.0]]))
    low, high = [100 - 2 * 27.5, -51, 7 - 1.5], [101, -50 + 2 * 23.5, 7 + 3 * 19.5]
    np.testing.assert_allclose(anatomy.corners.min(0), low)
    np.testing.assert_allclose(anatomy.corners.max(0), high)
    assert len(anatomy.bone) == 10 * 12 * 14 - 8 * 10 * 12  # the outermost layer alone
    np.testing.assert_allclose(anatomy.bone.min(0), [100 - 2 * 20, -50 + 2 * 6, 7 + 3 * 5])
    np.testing.assert_allclose(anatomy.bone.max(0), [100 - 2 * 7, -50 + 2 * 17, 7 + 3 * 14])
    assert anatomy.targets.tolist() == [[1, 2, 3]]


@pytest.fixture(scope="module")
def dataset():
    volume = phantom(shape=(24, 18, 21), spacing=16.0)
    return volume, [simulated_xray(volume, kit.CAMERA, kit.true_pose(), oversampling=1)]


def test_worst_cases_are_drawn(tmp_path, no_drawing, dataset):
    def load(record):
        if record["subject"] == "B":
            raise ReadError("The disk with the CT is not there.")
        return (*dataset, kit.TARGETS)

    folder = kit.run(tmp_path, fewer(known()))
    drawn = [path.name for path in write_report(folder, load, worst=4) if path.name.startswith("worst")]
    assert drawn == ["worst_01.png", "worst_02.png", "worst_03.png"]
    text = (folder / "report.md").read_text(encoding="utf-8")
    assert text.index("from 25 to 3") < text.index("from 15 to 1.5") < text.index("from 5 to 0.5")
    assert "ours, B/000/0 could not be drawn: The disk with the CT is not there." in text
    assert '"name":"bone"' in (folder / "report.html").read_text(encoding="utf-8")


def test_each_view_of_a_case_is_drawn(tmp_path, dataset):
    volume, (xray,) = dataset
    files = plots.draw_case(tmp_path / "worst.png", kit.record(5, 1, views=2), volume, [xray, xray])
    assert [path.name for path in files] == ["worst-1.png", "worst-2.png"]
    assert all(path.is_file() for path in files)


def test_cases_are_loaded_as_the_protocol_says(tmp_path):
    simulated = {"shape": [24, 18, 21], "spacing": 16, "views": [{"name": "000"}], "size": 32}
    protocol = {"dataset": {"simulated": simulated}, "starts": {"kind": "offsets", "offsets": [[0, 0, 0, 5, 0, 0]]}}
    folder = kit.run(tmp_path, known(), protocol)
    from DiffDRRCore.evaluation.protocol import Protocol

    subject = Protocol.from_dict(protocol).open_dataset().subjects[0]
    volume, xrays, targets = load_cases(folder)(kit.record(5, 1, subject=subject.name))
    assert volume.shape == (24, 18, 21) and len(xrays) == 1 and targets.shape[-1] == 3


@pytest.mark.parametrize(("package", "missing"), [("matplotlib", "Pictures"), ("plotly", "3D scene")])
def test_without_optional_packages(tmp_path, no_drawing, monkeypatch, package, missing):
    for name in [name for name in sys.modules if name.split(".")[0] == package] + [f"{package}.figure", package]:
        monkeypatch.setitem(sys.modules, name, None)
    folder = kit.run(tmp_path, fewer(known()))
    write_report(folder)
    page = Page((folder / "report.html").read_text(encoding="utf-8"))
    assert re.search(f"{missing} need[s]? {package}; install it with: pip install {package}", page.text)
    assert "60 % (23–88)" in page.text


@pytest.mark.parametrize("name", ["report.html", "errors_mtre_mm.png", "summary.csv"])
def test_a_full_disk_leaves_no_half_files(tmp_path, no_drawing, monkeypatch, name):
    folder = kit.run(tmp_path, fewer(known()))
    (folder / "report.html").write_text("the one before", encoding="utf-8")
    replace = Path.replace

    def full(self, target):
        if Path(target).name == name:
            raise OSError(errno.ENOSPC, "No space left on device")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(DiffDRRError, match=rf"Cannot write '.*{re.escape(name)}': No space left on device\."):
        write_report(folder)
    assert (folder / "report.html").read_text(encoding="utf-8") == "the one before"
    assert not [path for path in folder.rglob("*") if path.name.startswith(".")]
    assert len(rows(folder / "cases.csv")) == 5
    if name != "summary.csv":
        assert "60 % (23–88)" in (folder / "report.md").read_text(encoding="utf-8")


def test_nothing_to_report_on(tmp_path):
    with pytest.raises(ReadError, match=r"protocol\.json"):
        write_report(tmp_path)
    with pytest.raises(ReadError, match="no finished case"):
        write_report(kit.run(tmp_path, []))
