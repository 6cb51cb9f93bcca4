"""Runs: what is in their records, and the same however often they are interrupted."""

from __future__ import annotations

import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.linalg import expm

from DiffDRRCore import CArm, Pose
from DiffDRRCore.datasets.points import write_points
from DiffDRRCore.datasets.simulated import Simulated, SimulatedSubject
from DiffDRRCore.errors import DiffDRRError, ReadError
from DiffDRRCore.evaluation.measures import pose_errors
from DiffDRRCore.evaluation.protocol import Protocol
from DiffDRRCore.evaluation.running import cases as cases_module
from DiffDRRCore.evaluation.running.cases import Loader, deviation, list_cases, run_case
from DiffDRRCore.evaluation.running.records import read_records
from DiffDRRCore.evaluation.running.run import outcomes, run
from DiffDRRCore.evaluation.running.workers import Job
from Testing.core.evaluation import protocols
from Testing.core.evaluation.protocols import lines_of, small, timeless


def numbers(values: list) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def pose_of(matrix: list) -> Pose:
    return Pose(numbers(matrix))


def test_records_hold_what_they_say(protocol, reference, tmp_path):
    """Errors and poses by another way: straight from the measures, at the simulation's own C-arms."""
    assert [record["case"] for record in reference] == [
        "phantom/ap/0",
        "phantom/ap/1",
        "phantom/lat/0",
        "phantom/lat/1",
    ]
    subject = protocol.open_dataset().subjects[0]
    targets = cases_module.points_in_bone(subject.volume)
    for record in reference:
        view = subject.views[record["views"][0]]
        carm = CArm(1020.0, 850.0, subject.volume.center, 90.0 if record["views"] == ["lat"] else 0.0)
        assert record["poses_true"] == [carm.pose.matrix.tolist()]
        for moment in ("start", "end"):
            errors = pose_errors(pose_of(record[f"poses_{moment}"][0]), carm.pose, view.xray.camera, targets)
            assert record[f"errors_{moment}"] == pytest.approx({name: float(x) for name, x in errors.items()}, abs=1e-9)
        assert record["errors_end"]["mtre_mm"] < record["errors_start"]["mtre_mm"]
        assert record["camera"]["height"] == 32
        assert (record["failure"], record["seed"], record["method"]) == (None, 0, "DiffDRRSlicer")
        assert record["steps"] >= 3 and record["seconds"] > 0 and record["reason"]
        estimate, about = pose_of(record["poses_end"][0]), numbers(record["covariance_about"])
        moved = estimate.retract(numbers(record["deviation"]), about=about)
        np.testing.assert_allclose(moved.matrix, carm.pose.matrix, atol=1e-9)
        assert np.array(record["covariance"]).shape == (6, 6)


def test_deviation_is_the_error_in_the_covariances_coordinates():
    """A known xi, moved by SciPy's matrix exponential about a pivot."""
    xi = np.array([0.02, -0.05, 0.03, 4.0, -7.0, 12.0])
    pivot = np.array([30.0, -40.0, 55.0])
    twist = np.zeros((4, 4))
    twist[:3, :3] = [[0, -xi[2], xi[1]], [xi[2], 0, -xi[0]], [-xi[1], xi[0], 0]]
    twist[:3, 3] = xi[3:]
    there, back = np.eye(4), np.eye(4)
    there[:3, 3], back[:3, 3] = pivot, -pivot
    estimate = CArm(1020.0, 850.0, pivot, 25.0, -15.0).pose
    truth = Pose(there @ expm(twist) @ back @ estimate.matrix.numpy())
    np.testing.assert_allclose(deviation(estimate, truth, torch.from_numpy(pivot)), xi, atol=1e-10)


def test_the_covariances_coordinates_are_those_of_the_registration():
    """A truth moved by xi is seen by `RegistrationResult.poses` as xi back: to first order, both have one meaning."""
    subject = Simulated(shape=(48, 36, 42), spacing=8.0, size=32, oversampling=1).subjects[0]
    xray = subject.xrays[0]
    registration = cases_module.register(subject.volume, xray, sizes=[16], max_steps=1, search=0)
    xi = torch.tensor([1e-4, -2e-4, 1e-4, 0.02, -0.01, 0.03], dtype=torch.float64)
    truth = registration.poses[0].retract(xi, about=registration.about)
    torch.testing.assert_close(deviation(registration.poses[0], truth, registration.about), xi, rtol=0, atol=1e-12)


def test_an_interrupted_run_goes_on_where_it_stopped(protocol, reference, tmp_path):
    seen = []

    def stop_after_two(finished, total, record):
        seen.append((finished, total, record and record["case"]))
        if finished == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match=r"interrupted: 2 of 4 cases are finished and kept in .*goes on"):
        run(protocol, tmp_path, workers=0, progress=stop_after_two)
    assert seen == [(0, 4, None), (1, 4, "phantom/ap/0"), (2, 4, "phantom/ap/1")]
    assert len(read_records(tmp_path)) == 2
    first = lines_of(tmp_path)
    assert timeless(run(protocol, tmp_path, workers=0)) == timeless(reference)
    assert lines_of(tmp_path)[:2] == first
    finished = lines_of(tmp_path)
    run(protocol, tmp_path, workers=0, solve=protocols.fail_once_each_way)  # nothing left to solve
    assert lines_of(tmp_path) == finished


def test_sigterm_stops_a_run_as_ctrl_c_does(protocol, tmp_path):
    before = signal.getsignal(signal.SIGTERM)

    def stop_after_one(finished, total, record):
        if finished == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt, match="interrupted: 1 of 4 cases"):
        run(protocol, tmp_path, workers=0, progress=stop_after_one, solve=protocols.stay_slowly)
    assert len(read_records(tmp_path)) == 1
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_view_alone_is_the_same_case(reference, tmp_path):
    alone = Protocol.from_dict(small(views=["lat"]))
    assert timeless(run(alone, tmp_path, workers=0)) == timeless(reference[2:])


def test_views_together(tmp_path):
    records = run(Protocol.from_dict(small(views="groups")), tmp_path, workers=0)
    assert [record["case"] for record in records] == ["phantom/ap+lat/0", "phantom/ap+lat/1"]
    for record in records:
        assert [len(record[f"poses_{when}"]) for when in ("start", "end", "true")] == [2, 2, 2]
        assert record["errors_end"]["mtre_mm"] < record["errors_start"]["mtre_mm"]
        ends, truths = (numbers(record[f"poses_{when}"]) for when in ("end", "true"))
        motions = truths @ torch.linalg.inv(ends)
        torch.testing.assert_close(motions[0], motions[1], rtol=0, atol=1e-8)  # C-arms that are fixed to each other


def test_preprocessing_margin_and_other_measures(tmp_path):
    method = {**small()["method"], "crop_margin_mm": 5.0}
    measures = {"targets": "landmarks", "measures": ["xvr_mtre_mm", "diffpose_mtre_mm"]}
    seen = []

    def look(volume, xrays, starts, options):
        seen.append(xrays[0])
        return protocols.stay(volume, xrays, starts, options)

    content = small(method=method, preprocessing={"crop": [8, 0, 0, 4], "smoothing": 1}, **measures)
    record = run(Protocol.from_dict(content), tmp_path, workers=0, solve=look)[0]
    assert seen[0].meta["preprocessing"]["crop"] == [8, 0, 0, 4]
    assert seen[0].image.shape[0] <= 24 and seen[0].image.shape[1] <= 28
    assert record["camera"]["height"] == 32
    assert record["failure"] is None
    assert record["covariance"] is record["deviation"] is None
    assert record["errors_end"] == record["errors_start"]  # `stay` moves nothing
    assert {"xvr_mtre_mm", "diffpose_mtre_mm"} <= set(record["errors_end"])


def test_failed_cases_are_records_and_can_be_run_again(protocol, reference, tmp_path):
    records = run(protocol, tmp_path, workers=0, solve=protocols.fail_once_each_way)
    assert {record["failure"] for record in records} == {"Nothing to see.", "ZeroDivisionError: by nothing"}
    for record, good in zip(records, reference, strict=True):
        assert record["errors_end"] is record["poses_end"] is None
        assert not record["converged"]
        assert (record["poses_start"], record["errors_start"]) == (good["poses_start"], good["errors_start"])
    assert run(protocol, tmp_path, workers=0) == records
    assert timeless(run(protocol, tmp_path, workers=0, retry_failed=True)) == timeless(reference)
    assert len(lines_of(tmp_path)) == 4


def test_a_case_without_what_it_needs_is_a_record_too(tmp_path):
    content = small(targets={"bone": {"threshold": 9000}})
    record = run(Protocol.from_dict(content), tmp_path, workers=0)[0]
    assert "nothing above 9000 HU" in record["failure"]
    assert record["poses_start"] is record["errors_start"] is None


def test_what_is_not_there_is_an_error_before_the_run(tmp_path):
    with pytest.raises(ReadError, match=r"no subject 'x'"):
        run(Protocol.from_dict(small(subjects=["x"])), tmp_path / "a", workers=0)
    with pytest.raises(ReadError, match=r"Subject phantom has no X-ray 'pa'; there are: ap, lat"):
        run(Protocol.from_dict(small(views=["pa"])), tmp_path / "a", workers=0)
    with pytest.raises(ReadError, match="does not exist"):
        run(Protocol.from_dict(small(dataset="nowhere.h5")), tmp_path / "a", workers=0)
    assert not (tmp_path / "a").exists()
    with pytest.raises(DiffDRRError, match="Workers are 0 or more"):
        run(Protocol.from_dict(small()), tmp_path / "a", workers=-1)


def test_cases_can_be_run_without_a_folder(protocol, reference):
    job, cases = Job(protocol), list_cases(protocol, protocol.open_dataset())
    assert timeless(outcomes(job, cases[3:], workers=0)) == timeless(reference[3:])
    assert timeless([run_case(Loader(protocol), cases[1])]) == timeless(reference[1:2])
    assert list(outcomes(job, [])) == []


def test_simulated_subjects_from_files(tmp_path):
    """A CT of one's own with landmarks: named as the file, seen where they project."""
    volume = Simulated(shape=(48, 36, 42), spacing=8.0).subjects[0].volume
    volume.write(tmp_path / "mine.nii.gz")
    point = volume.center + torch.tensor([10.0, 0.0, 20.0])
    far = volume.center + torch.tensor([0.0, 0.0, 900.0])
    write_points(tmp_path / "points.csv", {"near": point, "far": far})
    options = {"ct": tmp_path / "mine.nii.gz", "landmarks": tmp_path / "points.csv", "oversampling": 1, "size": 32}
    subject = Simulated(**options, views=[{"secondary": 30}]).subjects["mine"]
    view = subject.views["primary 0, secondary 30"]
    assert set(view.landmarks) == {"near"}
    camera = view.xray.pose.inverse().transform(point[None])[0]
    wanted = 15.5 + camera[:2] / camera[2] * 1020.0 / (400.0 / 32)
    torch.testing.assert_close(view.landmarks["near"], wanted, rtol=0, atol=1e-9)
    with pytest.raises(DiffDRRError, match="same name or angles"):
        Simulated(views=[{}, {"primary": 0}])
    with pytest.raises(DiffDRRError, match="has its own"):
        Simulated(ct=tmp_path / "mine.nii.gz", spacing=2.0)


@pytest.mark.parametrize(
    ("kind", "words"), [("header", "header tells no pose to start from"), ("landmarks", "No view shows four landmarks")]
)
def test_starts_that_no_case_can_have_are_an_error_before_the_run(tmp_path, kind, words):
    simulated = {**small()["dataset"]["simulated"], "field_mm": 5, "size": 8}  # too small for four landmarks
    protocol = Protocol.from_dict(small(dataset={"simulated": simulated}, starts={"kind": kind}))
    with pytest.raises(DiffDRRError, match=words):
        run(protocol, tmp_path / "a", workers=0)
    assert not (tmp_path / "a").exists()


def test_starts_that_one_case_can_have_are_no_error(tmp_path, monkeypatch):
    """Of the two views, the second has landmarks: the first fails by itself."""
    see = SimulatedSubject._view
    monkeypatch.setattr(
        SimulatedSubject,
        "_view",
        lambda self, name: replace(see(self, name), **({"landmarks": {}} if name == "ap" else {})),
    )
    records = run(Protocol.from_dict(small(starts={"kind": "landmarks"})), tmp_path, workers=0, solve=protocols.stay)
    assert [record["failure"] is None for record in records] == [False, True]
    assert "No view shows four landmarks" in records[0]["failure"]
