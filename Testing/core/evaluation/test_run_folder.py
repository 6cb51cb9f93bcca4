"""The folder of a run: nothing in it is lost or mixed up, however the run ends."""

from __future__ import annotations

import errno
import json
import math
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

from DiffDRRCore import __version__
from DiffDRRCore.errors import DiffDRRError, DiffDRRWarning, ReadError
from DiffDRRCore.evaluation.protocol import Protocol
from DiffDRRCore.evaluation.running.records import NAME, open_records, read_records
from DiffDRRCore.evaluation.running.run import read_run, run
from DiffDRRCore.files import LOCK
from Testing.core.evaluation import protocols
from Testing.core.evaluation.protocols import lines_of, small, timeless

ROOT = Path(__file__).resolve().parents[3]
run_module = sys.modules[run.__module__]


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
    (tmp_path / "protocol.json").write_text("{}")
    with pytest.raises(ReadError, match="not the protocol of"):
        run(protocol, tmp_path, workers=0)
    (tmp_path / "protocol.json").unlink()
    with pytest.raises(DiffDRRError, match="unknown protocol"):
        run(protocol, tmp_path, workers=0)


def test_numbers_that_json_does_not_know(tmp_path):
    with open_records(tmp_path) as records:
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
    many = [{**record, "case": f"{record['case']}{number}"} for number in range(10) for record in reference]
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
        with open_records(disk) as records, pytest.raises(DiffDRRError, match="the disk is full"):
            for record in many:
                records.append(record)
        kept = len(records.done)
        assert kept >= 1
        assert read_records(disk) == many[:kept]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_every_run_is_kept_and_every_case_says_which_made_it(protocol, tmp_path, monkeypatch):
    def stop_after(count):
        def progress(finished, total, record):
            if finished == count:
                raise KeyboardInterrupt

        return progress

    with pytest.raises(KeyboardInterrupt):
        run(protocol, tmp_path, workers=0, solve=protocols.stay, progress=stop_after(2))
    first = read_run(tmp_path)["runs"]
    with monkeypatch.context() as change:
        change.setattr(run_module, "__version__", "0.0.1")
        with pytest.warns(DiffDRRWarning, match="other versions, threads"), pytest.raises(KeyboardInterrupt):
            run(protocol, tmp_path, workers=0, solve=protocols.stay, progress=stop_after(3))
    with pytest.warns(DiffDRRWarning, match="other versions, threads"):
        records = run(protocol, tmp_path, workers=0, solve=protocols.stay)
    assert [record["run"] for record in records] == [0, 0, 1, 2]
    runs = read_run(tmp_path)["runs"]
    assert runs[:1] == first
    assert [entry["versions"]["DiffDRRCore"] for entry in runs] == [__version__, "0.0.1", __version__]
    assert all(set(entry) == {"date", "versions", "machine", "threads", "device"} for entry in runs)
    with warnings.catch_warnings():  # nothing is run, so nothing differs
        warnings.simplefilter("error")
        run(protocol, tmp_path, workers=0, threads=2)
    assert read_run(tmp_path)["runs"] == runs


def test_a_case_that_is_there_twice_is_an_error(protocol, tmp_path):
    run(protocol, tmp_path, workers=0, solve=protocols.stay)
    lines = lines_of(tmp_path)
    (tmp_path / NAME).write_text("\n".join([*lines, lines[1]]) + "\n")
    for read in (read_records, lambda folder: run(protocol, folder, workers=0)):
        with pytest.raises(ReadError, match=r"Lines 2 and 5 of .* are both of case 'phantom/ap/1'"):
            read(tmp_path)


def test_two_runs_at_once_do_not_write_to_one_folder(protocol, tmp_path):
    """A second process, at work in the folder, is told of; when it was killed, the folder is taken over."""
    (tmp_path / "p.json").write_text(json.dumps(small()))
    script = (
        "import sys, time; from DiffDRRCore.evaluation.protocol import Protocol\n"
        "from DiffDRRCore.evaluation.running import run; from Testing.core.evaluation import protocols\n"
        "def slow(*a): time.sleep(1); return protocols.stay(*a)\n"
        f"run(Protocol.read({str(tmp_path / 'p.json')!r}), {str(tmp_path / 'run')!r}, workers=0, solve=slow)"
    )
    other = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT)
    try:
        limit = time.monotonic() + 120
        while not (tmp_path / "run" / NAME).exists() or not lines_of(tmp_path / "run"):
            assert other.poll() is None and time.monotonic() < limit
            time.sleep(0.05)
        with pytest.raises(DiffDRRError, match=rf"process {other.pid} on .* delete .*running\.lock"):
            run(protocol, tmp_path / "run", workers=0, solve=protocols.stay)
        assert (tmp_path / "run" / LOCK).exists()
    finally:
        other.kill()
        other.wait()
    records = run(protocol, tmp_path / "run", workers=0, solve=protocols.stay)
    assert [record["run"] for record in records][::3] == [0, 1]
    assert len(records) == len({record["case"] for record in records}) == 4
    assert not (tmp_path / "run" / LOCK).exists()
