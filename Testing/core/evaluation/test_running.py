"""Runs: the same numbers however they are run, and nothing lost however they end."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.linalg import expm

from DiffDRRCore import CArm, Pose
from DiffDRRCore.datasets.points import write_points
from DiffDRRCore.datasets.simulated import Simulated
from DiffDRRCore.errors import DiffDRRError, DiffDRRWarning, ReadError
from DiffDRRCore.evaluation import cases as cases_module
from DiffDRRCore.evaluation.cases import Loader, deviation, list_cases, run_case
from DiffDRRCore.evaluation.measures import pose_errors
from DiffDRRCore.evaluation.protocol import Protocol
from DiffDRRCore.evaluation.records import NAME, Records, read_records
from DiffDRRCore.evaluation.running import outcomes, read_run, run
from DiffDRRCore.evaluation.workers import Job, pin_gpu, visible_gpus
from Testing.core.evaluation import protocols
from Testing.core.evaluation.protocols import small


@pytest.fixture(scope="module")
def protocol() -> Protocol:
    return Protocol.from_dict(small())


@pytest.fixture(scope="module")
def reference(protocol, tmp_path_factory) -> list[dict]:
    """The records of an undisturbed run in this process."""
    return run(protocol, tmp_path_factory.mktemp("reference"), workers=0)


def timeless(records: list[dict]) -> list[dict]:
    return [{name: value for name, value in record.items() if name != "seconds"} for record in records]


def numbers(values: list) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def pose_of(matrix: list) -> Pose:
    return Pose(numbers(matrix))


def lines_of(folder: Path) -> list[str]:
    return (folder / NAME).read_text().splitlines()


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


@pytest.mark.slow
def test_the_numbers_do_not_depend_on_the_workers(protocol, reference, tmp_path):
    assert timeless(run(protocol, tmp_path / "one", workers=1)) == timeless(reference)
    assert timeless(run(protocol, tmp_path / "two", workers=2)) == timeless(reference)


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
    with pytest.raises(ReadError, match=r"no X-ray of subject phantom 'pa'; there are: ap, lat"):
        run(Protocol.from_dict(small(views=["pa"])), tmp_path / "a", workers=0)
    with pytest.raises(ReadError, match="does not exist"):
        run(Protocol.from_dict(small(dataset="nowhere.h5")), tmp_path / "a", workers=0)
    assert not (tmp_path / "a").exists()
    with pytest.raises(DiffDRRError, match="Workers are 0 or more"):
        run(Protocol.from_dict(small()), tmp_path / "a", workers=-1)


@pytest.mark.parametrize("half", [b'{"case": "phantom/lat/1", "fail', b"\x00\x00\x00\n", b'{"case": 1}\n'])
def test_half_a_last_line_is_dropped_with_a_note(protocol, reference, tmp_path, half):
    run(protocol, tmp_path, workers=0)
    whole = (tmp_path / NAME).read_bytes().splitlines(keepends=True)
    (tmp_path / NAME).write_bytes(b"".join(whole[:3]) + half)
    assert len(read_records(tmp_path)) == 3
    with pytest.warns(DiffDRRWarning, match="that case runs again"):
        assert timeless(run(protocol, tmp_path, workers=0)) == timeless(reference)
    assert (tmp_path / NAME).read_bytes().startswith(b"".join(whole[:3]))
    assert len(lines_of(tmp_path)) == 4


def test_a_damaged_line_in_the_middle_is_an_error(protocol, tmp_path):
    run(protocol, tmp_path, workers=0, solve=protocols.stay)
    lines = lines_of(tmp_path)
    before = "\n".join([lines[0], lines[1][:50], *lines[2:]]) + "\n"
    (tmp_path / NAME).write_text(before)
    with pytest.raises(ReadError, match=r"Line 2 of .* is damaged"):
        run(protocol, tmp_path, workers=0)
    assert (tmp_path / NAME).read_text() == before


def test_a_folder_belongs_to_one_protocol(protocol, tmp_path):
    run(protocol, tmp_path, workers=0, solve=protocols.stay)
    before = (tmp_path / "protocol.json").read_text()
    with pytest.raises(DiffDRRError, match="run of another protocol"):
        run(Protocol.from_dict(small(seed=1)), tmp_path, workers=0)
    assert (tmp_path / "protocol.json").read_text() == before
    run(Protocol.from_dict(small(thresholds_mm=[3])), tmp_path, workers=0)
    assert read_run(tmp_path)["thresholds_mm"] == [3.0]
    assert Protocol.read(tmp_path / "protocol.json").fingerprint == protocol.fingerprint
    with pytest.warns(DiffDRRWarning, match="other versions, threads"):
        run(protocol, tmp_path, workers=0, threads=2)
    (tmp_path / "protocol.json").write_text("{}")
    with pytest.raises(ReadError, match="not the protocol of"):
        run(protocol, tmp_path, workers=0)
    (tmp_path / "protocol.json").unlink()
    with pytest.raises(DiffDRRError, match="unknown protocol"):
        run(protocol, tmp_path, workers=0)


def test_numbers_that_json_does_not_know(tmp_path):
    with Records(tmp_path) as records:
        records.append({"case": "a", "failure": None, "errors_end": {"mrpe_detector_mm": math.nan}})
    assert read_records(tmp_path)[0]["errors_end"] == {"mrpe_detector_mm": None}


class NearlyFull:
    """A file on a disk with so many bytes left."""

    def __init__(self, file, left: int):
        self._file, self._left = file, left

    def write(self, data: bytes) -> int:
        if self._left == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = self._file.write(data[: self._left])
        self._left -= written
        return written

    def __getattr__(self, name):
        return getattr(self._file, name)


def test_a_full_disk_keeps_what_was_finished(protocol, reference, tmp_path, monkeypatch):
    opened, full = Path.open, []

    def open_on_full_disk(path, *arguments, **options):
        file = opened(path, *arguments, **options)
        if path.name != NAME or full or "a" not in arguments[0]:
            return file
        full.append(NearlyFull(file, len(json.dumps(reference[0])) + 500))
        return full[0]

    monkeypatch.setattr(Path, "open", open_on_full_disk)
    with pytest.raises(DiffDRRError, match=r"the disk is full; the 1 finished cases are kept"):
        run(protocol, tmp_path, workers=0)
    assert full[0]._left == 0  # half of the second line was on the disk
    assert timeless(read_records(tmp_path)) == timeless(reference[:1])
    assert (tmp_path / NAME).read_bytes().endswith(b"}\n")
    assert timeless(run(protocol, tmp_path, workers=0)) == timeless(reference)


def test_a_disk_that_is_really_full(protocol, reference, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=12k", "tmpfs", str(disk)]  # three pages: the folder's, two for files
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("mounting a small disk needs the rights to")
    try:
        with Records(disk) as records, pytest.raises(DiffDRRError, match="the disk is full"):
            for record in reference * 10:
                records.append(record)
        kept = len(records.done)
        assert kept >= 1
        assert read_records(disk) == (reference * 10)[:kept]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.slow
def test_workers_have_the_threads_they_are_told_and_the_parent_keeps_its_own(protocol, tmp_path):
    before = dict(os.environ), torch.get_num_threads()
    records = run(protocol, tmp_path, workers=1, threads=3, solve=protocols.stay)
    assert {record["reason"] for record in records} == {"3 3 3"}
    assert (dict(os.environ), torch.get_num_threads()) == before


@pytest.mark.slow
def test_a_worker_that_dies_is_one_sentence_and_the_others_cases_are_kept(protocol, tmp_path):
    with pytest.raises(DiffDRRError, match=r"A worker process died .*finished cases are kept"):
        run(protocol, tmp_path, workers=1, solve=protocols.die_at_the_second_view)
    assert [record["case"] for record in read_records(tmp_path)] == ["phantom/ap/0", "phantom/ap/1"]
    assert len(run(protocol, tmp_path, workers=0, solve=protocols.stay)) == 4


def test_cases_can_be_run_without_a_folder(protocol, reference):
    job, cases = Job(protocol), list_cases(protocol, protocol.open_dataset())
    assert timeless(outcomes(job, cases[3:], workers=0)) == timeless(reference[3:])
    assert timeless([run_case(Loader(protocol), cases[1])]) == timeless(reference[1:2])
    assert list(outcomes(job, [])) == []


@pytest.mark.slow
def test_a_dask_cluster_gives_the_same_numbers(protocol, reference, tmp_path):
    distributed = pytest.importorskip("distributed", reason="dask.distributed is not installed")
    options = {"n_workers": 1, "threads_per_worker": 1, "processes": True, "dashboard_address": None}
    with distributed.LocalCluster(**options) as cluster:
        records = run(protocol, tmp_path, scheduler=cluster.scheduler_address)
    assert timeless(records) == timeless(reference)
    assert len(lines_of(tmp_path)) == 4


def test_dask_that_is_not_there(protocol, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(DiffDRRError, match="pip install distributed"):
        run(protocol, tmp_path, scheduler="tcp://127.0.0.1:1")


def test_a_scheduler_that_does_not_answer(protocol, tmp_path, monkeypatch):
    distributed = pytest.importorskip("distributed", reason="dask.distributed is not installed")
    client = distributed.Client
    monkeypatch.setattr(distributed, "Client", lambda address, **options: client(address, **options | {"timeout": 1}))
    with pytest.raises(DiffDRRError, match=r"No Dask scheduler answers at 'tcp://127.0.0.1:1'"):
        run(protocol, tmp_path, scheduler="tcp://127.0.0.1:1")


def test_each_worker_sees_one_gpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, 5,7")
    gpus = visible_gpus()
    assert gpus == ("2", "5", "7")
    for rank, device in enumerate(["2", "5", "7", "2"]):
        pin_gpu(gpus, rank)
        assert os.environ["CUDA_VISIBLE_DEVICES"] == device
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    pin_gpu(visible_gpus(), 1)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


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
