"""Plain values that people write into a YAML or JSON file: reading and checking them.

Whatever is wrong is said in a sentence, with its place. A check is a function (where, value) -> value: it gives the
value back as it is kept, or raises DiffDRRError.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from DiffDRRCore.errors import DiffDRRError, ReadError

Check = Callable[[str, Any], Any]
REQUIRED = object()
_TOP = "The top level"


def parse_json(text: str) -> Any:
    """The values of a JSON text. Raises ValueError for what is no JSON, and for a key that is twice in one object."""
    return json.loads(text, object_pairs_hook=_without_duplicates)


def parse_yaml(text: str) -> Any:
    """The values of a YAML text, of plain types only.

    Raises ValueError for what is no YAML, and for a key that comes twice in one section, ReadError without PyYAML.
    """
    try:
        import yaml
    except ImportError as error:
        raise ReadError("YAML needs PyYAML: pip install pyyaml, or write the same as JSON.") from error

    class Loader(yaml.SafeLoader):
        def compose_mapping_node(self, anchor):
            node = super().compose_mapping_node(anchor)
            first: dict[tuple[str, str], int] = {}
            for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
                line, name = key.start_mark.line + 1, (key.tag, key.value)
                if name in first:
                    raise ValueError(f"'{key.value}' in line {line} is there already, in line {first[name]}")
                first[name] = line
            return node

    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        raise ValueError(error) from error


def read_values(path: str | Path) -> Any:
    """The values of a .json file, or of a YAML one. Raises ReadError where it cannot be read or is damaged."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        return parse_json(text) if path.suffix.lower() == ".json" else parse_yaml(text)
    except UnicodeDecodeError as error:
        raise ReadError(f"Cannot read '{path}': {error}.") from error
    except OSError as error:
        raise ReadError(f"Cannot read '{path}': {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        raise ReadError(f"'{path}' is damaged: {' '.join(str(error).split())}.") from error


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key '{twice}' comes twice in one object")
    return content


@dataclass(frozen=True)
class Key:
    """What a key may hold, and what it is where it is left out."""

    check: Check
    default: Any = REQUIRED


def section(where: str, content: Any, keys: Mapping[str, Key]) -> dict[str, Any]:
    """The entries of a section, checked, in the order of `keys`; what is left out, or empty, has its default."""
    if not isinstance(content, Mapping):
        raise DiffDRRError(f"{where or _TOP} must have keys and values, not {_shown(content)}.")
    for name in content:
        if name not in keys:
            raise unknown(_within(where, name), name, keys)
    missing = [name for name, key in keys.items() if key.default is REQUIRED and name not in content]
    if missing:
        raise DiffDRRError(f"{where or _TOP} lacks {', '.join(map(repr, missing))}.")
    return {
        name: key.check(_within(where, name), content[name]) if _is_given(content, name, key) else key.default
        for name, key in keys.items()
    }


def unknown(where: str, name: object, known) -> DiffDRRError:
    """The error for a word that means nothing there, with the nearest of those that do."""
    known = [str(other) for other in known]
    near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'?" if near else f"choose from {', '.join(known)}."
    return DiffDRRError(f"{where}: there is no '{name}'; {hint}")


def number(least: float = -math.inf, above: float = -math.inf) -> Check:
    """A finite number, at least `least` and larger than `above`; kept as a float."""

    def check(where: str, value: Any) -> float:
        value = _exponent(value)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise DiffDRRError(f"{where} must be a number, got {_shown(value)}.")
        if value < least or value <= above:
            limit = f"above {above:g}" if value <= above else f"{least:g} or more"
            raise DiffDRRError(f"{where} must be {limit}, got {value:g}.")
        return float(value)

    return check


def whole(least: int | None = None) -> Check:
    """A whole number, at least `least`."""

    def check(where: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or (least is not None and value < least):
            limit = "" if least is None else f" of {least} or more"
            raise DiffDRRError(f"{where} must be a whole number{limit}, got {_shown(value)}.")
        return value

    return check


def text(where: str, value: Any) -> str:
    """A word."""
    if not isinstance(value, str) or not value.strip():
        hint = ": put it in quotes" if isinstance(value, (int, float)) else ""
        raise DiffDRRError(f"{where} must be text, got {_shown(value)}{hint}.")
    return value


def flag(where: str, value: Any) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise DiffDRRError(f"{where} must be true or false, got {_shown(value)}.")
    return value


def choice(*known: str) -> Check:
    """One of these words."""

    def check(where: str, value: Any) -> str:
        if value not in known:
            raise unknown(where, value, known)
        return value

    return check


def optional(inner: Check) -> Check:
    """The same, or nothing (null)."""
    return lambda where, value: None if value is None else inner(where, value)


def either(*checks: Check) -> Check:
    """What the first of them takes; where none does, the last one says why."""

    def check(where: str, value: Any) -> Any:
        for attempt in checks[:-1]:
            try:
                return attempt(where, value)
            except DiffDRRError:
                continue
        return checks[-1](where, value)

    return check


def word_or(other: Check, *known: str) -> Check:
    """One of these words; or what is no text, and `other` takes."""
    word = choice(*known)
    return lambda where, value: (word if isinstance(value, str) else other)(where, value)


def several(inner: Check, least: int = 1, count: int | None = None) -> Check:
    """A list of such items: `count` of them, or at least `least`."""

    def check(where: str, value: Any) -> list:
        items = "item" if (least if count is None else count) == 1 else "items"
        wanted = f"{count} {items}" if count is not None else f"{least} {items} or more" if least else items
        is_list = isinstance(value, Sequence) and not isinstance(value, str)
        if not is_list or len(value) < least or (count is not None and len(value) != count):
            raise DiffDRRError(f"{where} must be a list of {wanted}, got {_shown(value)}.")
        return [inner(f"{where}[{place}]", item) for place, item in enumerate(value)]

    return check


def of(keys: Mapping[str, Key]) -> Check:
    """A section of these keys."""
    return lambda where, value: section(where, value, keys)


def each(inner: Check, least: int = 0) -> Check:
    """A section of such values under names of one's own, at least `least`; names are kept as text."""

    def check(where: str, value: Any) -> dict[str, Any]:
        if not isinstance(value, Mapping) or len(value) < least:
            names = "names" if least == 0 else f"{least} name{'s' * (least > 1)} or more"
            raise DiffDRRError(f"{where} must be a section of {names} with values, got {_shown(value)}.")
        return {str(name): inner(_within(where, name), item) for name, item in value.items()}

    return check


def anything(where: str, value: Any) -> Any:
    """No check."""
    return value


def _is_given(content: Mapping, name: str, key: Key) -> bool:
    """YAML has null for a key without a value."""
    return key.default is REQUIRED or content.get(name) is not None


def _within(where: str, name: object) -> str:
    return f"{where}.{name}" if where else str(name)


def _exponent(value: Any) -> Any:
    """YAML takes 1e-3, without a point, for text."""
    if isinstance(value, str) and "e" in value.lower():
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _shown(value: Any) -> str:
    shown = repr(value)
    return "nothing" if value is None else shown if len(shown) <= 60 else f"{shown[:57]}..."
