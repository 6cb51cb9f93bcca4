"""Files appear whole or not at all."""

from __future__ import annotations

import os
import platform
import stat
import subprocess
import sys

import pytest

from DiffDRRCore.errors import DiffDRRError, ReadError
from DiffDRRCore.files import LOCK, check_folder, locked, read_text, replacing


def test_text_with_and_without_a_byte_order_mark(tmp_path):
    for name, start in (("plain", b""), ("marked", b"\xef\xbb\xbf")):
        (tmp_path / name).write_bytes(start + "\u00e4 = 1".encode())
        assert read_text(str(tmp_path / name), "table", largest=9) == "\u00e4 = 1"


@pytest.mark.parametrize(
    "content, largest, says",
    [
        (None, None, "^Cannot read the table '.*t.csv': No such file or directory.$"),
        (b"\xff\xfe\x00\x80", None, "^'.*t.csv' is no table: it is not text.$"),
        (b"0" * 1025, 1 << 10, "^'.*t.csv' is no table: it is larger than 1 KiB.$"),
        (b"0" * ((1 << 20) + 1), 1 << 20, "^'.*t.csv' is no table: it is larger than 1 MiB.$"),
    ],
)
def test_what_is_no_text(tmp_path, content, largest, says):
    if content is not None:
        (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(ReadError, match=says):
        read_text(tmp_path / "t.csv", "table", largest)


def test_the_file_appears_when_the_block_ends(tmp_path):
    path = tmp_path / "new" / "folder" / "a.txt"
    with replacing(path) as temporary:
        temporary.write_text("content")
        assert not path.exists()
    assert path.read_text() == "content"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, MemoryError, KeyboardInterrupt])
def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(error), replacing(path) as temporary:
        temporary.write_text("half of the n")
        raise error("stop")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_os_error_becomes_one_sentence(tmp_path):
    path = tmp_path / "a.txt"
    with pytest.raises(DiffDRRError, match=r"Cannot write '.*a\.txt': No space left"), replacing(path) as temporary:
        temporary.write_text("half")
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
def test_permissions_are_the_users(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        with replacing(tmp_path / "a.txt") as temporary:
            temporary.write_text("content")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == mode


@pytest.mark.parametrize(("name", "end"), [("ct.nii.gz", ".nii.gz"), ("CT.NII.GZ", ".nii.gz"), ("a.1.5.h5", ".h5")])
def test_the_temporary_name_ends_like_the_path(tmp_path, name, end):
    """Image writers choose the format by it."""
    with replacing(tmp_path / name) as temporary:
        assert temporary.name.endswith(end)
        assert temporary.parent == tmp_path
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_places_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("in the way")
    for path in (tmp_path / "file" / "a.txt", tmp_path / "file" / "b" / "a.txt", tmp_path):
        with pytest.raises(DiffDRRError, match="Cannot write"), replacing(path):
            pytest.fail("the block must not run")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "in the way"


def test_check_folder_creates_nothing(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    check_folder(tmp_path)
    check_folder(tmp_path / "new" / "folder")
    monkeypatch.chdir(tmp_path)
    check_folder("relative")
    for folder in (tmp_path / "file", tmp_path / "file" / "folder", "file"):
        with pytest.raises(DiffDRRError, match="is a file"):
            check_folder(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(DiffDRRError, match="read-only"):
        check_folder(tmp_path / "new")


def test_a_folder_is_locked_as_long_as_the_block_lasts(tmp_path):
    folder = tmp_path / "new"
    with locked(folder):
        assert (folder / LOCK).read_text().split()[:2] == [platform.node(), str(os.getpid())]
        with (
            pytest.raises(DiffDRRError, match=r"Another run .* is writing to .*new'.* delete '.*running\.lock'"),
            locked(folder),
        ):
            pass
        assert (folder / LOCK).exists()
    assert list(folder.iterdir()) == []
    with pytest.raises(KeyError), locked(folder):
        raise KeyError
    assert list(folder.iterdir()) == []


def test_the_lock_of_a_dead_process_is_taken_over(tmp_path):
    done = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    for dead in (int(done.stdout), os.getpid()):  # our own number: of one before us, as happens in containers
        (tmp_path / LOCK).write_text(f"{platform.node()} {dead} 0123")
        with locked(tmp_path):
            assert (tmp_path / LOCK).read_text().split()[:2] == [platform.node(), str(os.getpid())]
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content", ["elsewhere 1 0123", "", f"{platform.node()} x", f"{platform.node()} {os.getppid()} 0"]
)
def test_a_lock_that_may_be_alive_stays(tmp_path, content):
    """On another machine, damaged, or of a living process."""
    (tmp_path / LOCK).write_text(content)
    with pytest.raises(DiffDRRError, match=r"delete '.*running\.lock'") as caught, locked(tmp_path):
        pass
    assert ("on 'elsewhere'" in str(caught.value)) == content.startswith("elsewhere")
    assert (tmp_path / LOCK).read_text() == content


def test_a_folder_that_cannot_be_locked(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DiffDRRError, match=r"Cannot write '.*running\.lock'"), locked(tmp_path / "file"):
        pass
