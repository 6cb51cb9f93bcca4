"""Writing files so that a reader never meets half of one."""

from __future__ import annotations

import math
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from DiffDRRCore.errors import DiffDRRError


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
