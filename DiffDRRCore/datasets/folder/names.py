"""Names of files, subjects and X-rays."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from DiffDRRCore.errors import ReadError


def check_unique(names: Iterable[str], what: str, where: str) -> None:
    """Raise ReadError for a name that comes twice."""
    names = list(names)
    if twice := [name for place, name in enumerate(names) if name in names[:place]]:
        raise ReadError(f"{where}: two {what} are called {twice[0]!r}; give each its own name.")


def stem(path: Path) -> str:
    """A file's name without its suffix, or both suffixes of .nii.gz."""
    return path.name[:-7] if path.name.lower().endswith(".nii.gz") else path.stem
