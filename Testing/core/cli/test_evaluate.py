"""`evaluate` with a protocol: from the file to the report, and stopped in every way."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from DiffDRRCore.evaluation.protocol import Protocol
from DiffDRRCore.evaluation.running import run as run_protocol
from DiffDRRCore.evaluation.running.records import NAME, read_records
from Testing.core.evaluation.protocols import small, timeless

ROOT = Path(__file__).resolve().parents[3]
PATIENCE = 180.0  # seconds, for what takes a few on a machine with nothing else to do


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory) -> Path:
    """A folder with a protocol and the run of it, by the command line."""
    from DiffDRRCore.cli import main

    folder = tmp_path_factory.mktemp("evaluate")
    (folder / "p.yaml").write_text(yaml.safe_dump(small()))
    assert main(["evaluate", str(folder / "p.yaml"), "--output", str(folder / "run"), "--workers", "0", "--json"]) == 0
    return folder


def test_a_run_leaves_cases_and_a_report(run, evaluated):
    assert len(read_records(evaluated / "run")) == 4
    for name in ("protocol.json", "report.md", "report.html", "summary.csv"):
        assert (evaluated / "run" / name).stat().st_size > 0
    before = (evaluated / "run" / NAME).read_bytes()
    (evaluated / "run" / "report.md").unlink()
    code, out, err = run("evaluate", "--report-only", "--output", evaluated / "run", "--json")
    assert code == 0, err
    told = json.loads(out)
    assert (told["cases"], told["failed"]) == (4, 0)
    assert str(evaluated / "run" / "report.md") in told["files"]
    assert (evaluated / "run" / "report.md").exists()
    assert (evaluated / "run" / NAME).read_bytes() == before
    assert any("worst" in name for name in told["files"])


def test_a_report_without_its_dataset_has_a_note(run, evaluated, tmp_path):
    shutil.copytree(evaluated / "run", tmp_path / "run")
    content = json.loads((tmp_path / "run" / "protocol.json").read_text())
    content["dataset"] = {"path": str(tmp_path / "gone.h5")}
    (tmp_path / "run" / "protocol.json").write_text(json.dumps(content))
    code, _, err = run("evaluate", "--report-only", "-o", tmp_path / "run")
    assert code == 0
    assert "warning: The report has no pictures of cases" in err
    assert "gone.h5' does not exist" in err
    assert (tmp_path / "run" / "report.html").exists()


def test_failed_cases_are_told_and_run_again_when_asked_for(run, tmp_path):
    content = small(targets={"bone": {"threshold": 9000}}, starts={"kind": "sampled", "count": 1}, views=["ap"])
    (tmp_path / "p.json").write_text(json.dumps(content))
    arguments = ("evaluate", tmp_path / "p.json", "-o", tmp_path / "run", "--workers", 0)
    code, out, err = run(*arguments)
    assert code == 1, err
    assert "1 cases, 1 failed" in out
    assert "No case could be solved; first failure: phantom/ap/0: The CT has nothing above 9000 HU" in err
    first = (tmp_path / "run" / NAME).read_bytes()
    assert run(*arguments)[0] == 1
    assert (tmp_path / "run" / NAME).read_bytes() == first
    run(*arguments, "--retry-failed")
    assert (tmp_path / "run" / NAME).read_bytes() != first  # another time in seconds
    assert len(read_records(tmp_path / "run")) == 1


def test_some_failed_cases_are_no_failure_of_the_run(run, evaluated, tmp_path):
    shutil.copytree(evaluated / "run", tmp_path / "run")
    first, *others = read_records(tmp_path / "run")
    records = [{**first, "failure": "Nothing to see.", "errors_end": None, "poses_end": None}, *others]
    (tmp_path / "run" / NAME).write_text("".join(json.dumps(record) + "\n" for record in records))
    code, out, err = run("evaluate", "--report-only", "-o", tmp_path / "run")
    assert (code, err) == (0, "")
    assert "first failure: phantom/ap/0: Nothing to see." in out


def test_starts_that_no_case_can_have_are_an_error_before_the_run(run, tmp_path):
    (tmp_path / "p.json").write_text(json.dumps(small(starts={"kind": "header"})))
    code, out, err = run("evaluate", tmp_path / "p.json", "-o", tmp_path / "run", "--workers", 0)
    assert (code, out) == (2, "")
    assert "header tells no pose to start from" in err
    assert not (tmp_path / "run").exists()


def test_a_disk_that_is_full_when_the_report_is_written(run, evaluated, tmp_path, monkeypatch):
    shutil.copytree(evaluated / "run", tmp_path / "run")
    before = (tmp_path / "run" / NAME).read_bytes()
    write = Path.write_text

    def refuse(path, *arguments, **options):
        if path.name.endswith("report.md"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, *arguments, **options)

    monkeypatch.setattr(Path, "write_text", refuse)
    code, out, err = run("evaluate", "--report-only", "-o", tmp_path / "run")
    assert (code, out) == (2, "")
    assert "report.md': No space left on device; the cases are kept; " in err
    assert "--report-only" in err
    assert (tmp_path / "run" / NAME).read_bytes() == before


def test_the_example_is_printed(run):
    code, out, _ = run("evaluate", "--example")
    assert code == 0
    assert Protocol.from_dict(yaml.safe_load(out)).dataset["simulated"]["ct"] == "phantom"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["evaluate"], "a protocol, or two poses"),
        (["evaluate", "p.yaml"], "give --output FOLDER"),
        (["evaluate", "p.tfm", "-o", "out"], "is no protocol"),
        (["evaluate", "nowhere.yaml", "-o", "out"], "No such file"),
        (["evaluate", "p.yaml", "-o", "out", "--ct", "ct.nii"], "--ct is for two poses"),
        (["evaluate", "a.json", "b.json", "--workers", "2"], "--workers is for a protocol"),
        (["evaluate", "a.json", "b.json", "--report-only"], "--report-only is for a protocol"),
        (["evaluate", "--report-only", "-o", "nowhere"], "holds no evaluation"),
        (["evaluate", "-o", "out"], "There is no protocol to run"),
    ],
)
def test_arguments_that_make_no_sense(run, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert words in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_another_protocol_does_not_touch_a_runs_folder(run, evaluated, tmp_path):
    (tmp_path / "p.json").write_text(json.dumps(small(seed=5)))
    code, _, err = run("evaluate", tmp_path / "p.json", "-o", evaluated / "run", "--workers", 0)
    assert code == 2
    assert "run of another protocol" in err


def wait_for_cases(folder: Path, count: int, process: subprocess.Popen) -> None:
    limit = time.monotonic() + PATIENCE
    while not (folder / NAME).exists() or (folder / NAME).read_bytes().count(b"\n") < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit, "no cases came"
        time.sleep(0.05)


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def are_gone(pids: list[int]) -> bool:
    """Ended, or waiting for their new parent to take notice."""
    states = [Path(f"/proc/{pid}/stat") for pid in pids]
    return all(not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z" for state in states)


def wait_until_gone(pids: list[int]) -> None:
    limit = time.monotonic() + PATIENCE
    while not are_gone(pids):
        assert time.monotonic() < limit, "workers outlive the run"
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="processes are looked at as Linux shows them")
def test_ctrl_c_and_kill_lose_nothing(tmp_path):
    """The run is interrupted, goes on, is killed, and goes on: as if it had never been disturbed."""
    content = small(starts={"kind": "sampled", "count": 15, "degrees": 3})
    (tmp_path / "p.json").write_text(json.dumps(content))
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "DiffDRRCore", "evaluate", tmp_path / "p.json", "-o", folder, "--workers", "1"]

    def begin() -> subprocess.Popen:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, cwd=ROOT, start_new_session=True, **pipes)

    process = begin()
    wait_for_cases(folder, 3, process)
    workers = children(process.pid)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers as well
    out, err = process.communicate(timeout=PATIENCE)
    kept = len(read_records(folder))
    assert (process.returncode, out) == (130, "")
    assert f"interrupted: {kept} of 30 cases are finished and kept" in err
    assert err.count("\n") == 1, err
    wait_until_gone(workers)

    process = begin()
    wait_for_cases(folder, kept + 2, process)
    workers = children(process.pid)
    assert workers
    process.kill()
    process.wait()
    wait_until_gone(workers)
    assert kept + 2 <= len(read_records(folder)) < 30
    resumed = run_protocol(Protocol.from_dict(content), folder, workers=0)
    undisturbed = run_protocol(Protocol.from_dict(content), tmp_path / "other", workers=0)
    assert timeless(resumed) == timeless(undisturbed)
    assert {record["run"] for record in resumed} == {0, 1, 2}
