"""Reading text; writing so that a reader never meets half of a file; folders that one process at a time writes to."""

from __future__ import annotations

import json
import math
import os
import platform
import re
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from DiffDRRCore.errors import DiffDRRError, ReadError

LOCK = "running.lock"
_TEMPORARY = re.compile(r"\.[0-9a-f]{12}-.")  # what `replacing` calls its files


def read_text(path: str | Path, what: str, largest: int | None = None) -> str:
    """The text of a file in UTF-8, with or without a byte order mark.

    Args:
        what: it is to be, for the sentence that says why it is not: "file of points".
        largest: bytes that such a file may have.

    Raises ReadError where it cannot be read, is larger, or is not text.
    """
    path = Path(path)
    try:
        if largest is not None and path.stat().st_size > largest:
            size = f"{largest >> 20} MiB" if largest >= 1 << 20 else f"{largest >> 10} KiB"
            raise ReadError(f"'{path}' is no {what}: it is larger than {size}.")
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ReadError(f"Cannot read the {what} '{path}': {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise ReadError(f"'{path}' is no {what}: it is not text.") from error


def format_of(path: str | Path) -> str | None:
    """What a JSON file says of itself in "format"; None where it says nothing, or is no such file."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8")).get("format")
    except (OSError, ValueError, AttributeError):
        return None


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary file beside `path`, with its suffixes, that becomes `path` when the block ends without an error.

    The old file, if any, stays untouched until then; the new one has the permissions of the user's umask. Raises
    DiffDRRError where the path is a folder or the folder cannot be written to.
    """
    path = Path(path)
    if path.is_dir():
        raise DiffDRRError(f"Cannot write '{path}': it is a folder; give a file name.")
    temporary = path.with_name(f".{uuid.uuid4().hex[:12]}-{path.name}".lower())  # writers know suffixes in lower case
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch(exist_ok=False)
        try:
            yield temporary
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise DiffDRRError(f"Cannot write '{path}': {error.strerror or error}.") from error


def remove_leftovers(folder: str | Path, name: str = "*") -> None:
    """Remove the temporary files of `replacing` that a killed process left in `folder`; of files called `name` only.

    Whoever calls it holds the folder's lock, so that nobody is writing them.
    """
    for path in Path(folder).glob(f".*-{name}"):
        if _TEMPORARY.match(path.name):
            path.unlink(missing_ok=True)


@contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """Keep `folder`, which need not be there yet, from being written to by two runs at once, on one machine or several.

    A file in it, running.lock, holds this machine's name and the process as long as the block lasts. One that a process
    of this machine left behind when it died is taken over. Raises DiffDRRError where another run is at work, or where
    the folder cannot be written to.
    """
    path, own = Path(folder) / LOCK, f"{platform.node()} {os.getpid()} {uuid.uuid4().hex}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not _took(path, own):
            _clear(path)
            if not _took(path, own):
                raise _in_use(path)
    except OSError as error:
        raise DiffDRRError(f"Cannot write '{path}': {error.strerror or error}.") from error
    _held.add(own)
    try:
        yield
    finally:
        _held.discard(own)
        with suppress(OSError):  # else the next run finds that this process is dead
            if _content(path) == own:
                path.unlink()


_held: set[str] = set()  # locks of this process


def _took(path: Path, content: str) -> bool:
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(content)
    except FileExistsError:
        return False
    return True


def _clear(path: Path) -> None:
    """Remove a lock whose process is dead; DiffDRRError for one that may be alive."""
    content = _content(path)
    if not path.exists():
        return
    host, number, *_ = [*content.split(), "", ""]
    if host != platform.node() or not number.isdecimal() or content in _held:
        raise _in_use(path, host)
    if int(number) != os.getpid() and is_alive(int(number)):
        raise _in_use(path, host, number)
    aside = path.with_name(f"{uuid.uuid4().hex[:12]}-{path.name}")
    try:
        path.rename(aside)
    except FileNotFoundError:
        return
    if _content(aside) == content:
        aside.unlink()
    else:  # another process was faster, and the lock is its own by now
        aside.rename(path)


def _in_use(path: Path, host: str = "", number: str = "") -> DiffDRRError:
    who = f" (process {number} on '{host}')" if number else f" on '{host}'" if host else ""
    return DiffDRRError(
        f"Another run{who} is writing to '{path.parent}': wait until it has ended; if there is none any more, delete "
        f"'{path}'."
    )


def _content(path: Path) -> str:
    with suppress(FileNotFoundError):
        return path.read_text(encoding="utf-8", errors="replace")
    return ""


def is_alive(process: int) -> bool:
    """Whether there is a process of this number on this machine."""
    if sys.platform == "win32":  # where os.kill would end it
        import ctypes

        synchronize, still_active, access_denied = 0x00100000, 258, 5
        handle = ctypes.windll.kernel32.OpenProcess(synchronize, False, process)
        if not handle:
            return ctypes.windll.kernel32.GetLastError() == access_denied
        state = ctypes.windll.kernel32.WaitForSingleObject(handle, 0)
        ctypes.windll.kernel32.CloseHandle(handle)
        return state == still_active
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def check_folder(folder: str | Path) -> None:
    """Raise DiffDRRError where files cannot be written to `folder`, which need not be there yet; creates nothing."""
    folder = Path(folder)
    nearest = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not nearest.is_dir():
        raise DiffDRRError(f"Cannot write to the folder '{folder}': '{nearest}' is a file.")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise DiffDRRError(f"Cannot write to the folder '{folder}': '{nearest}' is read-only for you.")


def finite(value: Any) -> Any:
    """The same lists and dictionaries with None for numbers that JSON does not know."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
