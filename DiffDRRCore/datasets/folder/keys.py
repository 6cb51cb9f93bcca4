"""Values of a dataset.json by their keys, checked, and names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from DiffDRRCore.errors import ReadError


def check_keys(item: Any, where: str, known: tuple[str, ...], required: tuple[str, ...]) -> None:
    """Raise ReadError for no object, unknown and missing keys."""
    if not isinstance(item, dict):
        raise ReadError(f"{where} must be an object with {', '.join(required)}, not {str(item)[:60]!r}.")
    for key in item:
        if key not in known:
            close = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}."
            raise ReadError(f"{where} has the unknown key {key!r}; {hint}")
    if missing := [key for key in required if item.get(key) is None]:
        raise ReadError(f"{where} lacks {', '.join(missing)}.")


def text_of(item: dict, key: str, where: str, default: str | None = None) -> Any:
    """The text of `key`, or `default` where it is not there. Raises ReadError for anything else."""
    value = item.get(key)
    if value is None:
        return default
    if not isinstance(value, str) or not value.strip():
        raise ReadError(f"{where}: {key!r} must be text, not {value!r}.")
    return value


def path_of(item: dict, key: str, base: Path, where: str) -> Path | None:
    """The path of `key`, relative to `base`, or None."""
    text = text_of(item, key, where)
    return None if text is None else base / text


def list_of(item: dict, key: str, where: str) -> list:
    """The list of `key`; empty where it is not there."""
    value = item.get(key) or []
    if not isinstance(value, list):
        raise ReadError(f"{where}: {key!r} must be a list.")
    return value


def one_of(item: dict, key: str, allowed: tuple, where: str) -> Any:
    """The value of `key`, or None. Raises ReadError where it is none of `allowed`."""
    if item.get(key) is not None and item[key] not in allowed:
        raise ReadError(f"{where}: {key!r} is one of {list(allowed)}, not {item[key]!r}.")
    return item.get(key)


def check_unique(names: Iterable[str], what: str, where: str) -> None:
    """Raise ReadError for a name that comes twice."""
    names = list(names)
    if twice := [name for place, name in enumerate(names) if name in names[:place]]:
        raise ReadError(f"{where}: two {what} are called {twice[0]!r}; give each its own name.")


def stem(path: Path) -> str:
    """A file's name without its suffix, or both suffixes of .nii.gz."""
    return path.name[:-7] if path.name.lower().endswith(".nii.gz") else path.stem
