"""Saying beforehand that a kernel has to be compiled: some seconds, once on each machine."""

from __future__ import annotations

import logging
from pathlib import Path

_log = logging.getLogger(__name__)
_known: set[str] = set()


def announce(kernel) -> None:
    """Log one line, before the first call of a numba function that numba does not find compiled on disk."""
    name = _name(kernel)
    if name in _known:
        return
    _known.add(name)
    if not _on_disk(kernel, name):
        _log.warning("Compiling %s for this processor: some seconds, once (kept in %s).", name, kernel.stats.cache_path)


def is_compiled(kernel) -> bool:
    """Whether a numba function has been called in this process, or numba finds it compiled on disk."""
    name = _name(kernel)
    return name in _known or _on_disk(kernel, name)


def _name(kernel) -> str:
    function = kernel.py_func
    return f"{function.__module__.rpartition('.')[2]}.{function.__qualname__}"


def _on_disk(kernel, name: str) -> bool:
    folder = kernel.stats.cache_path
    return folder is not None and any(Path(folder).glob(f"{name}-*.nbi"))
