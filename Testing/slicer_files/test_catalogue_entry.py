"""DiffDRRSlicer.json, as the Extensions Index checks it (catalogue entry schema 1.0.2 and its own rules)."""

from __future__ import annotations

import json
import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest

ROOT = Path(__file__).parents[2]
PATH = ROOT / "DiffDRRSlicer.json"
SCHEMA = (
    "https://raw.githubusercontent.com/Slicer/Slicer/main/Schemas/slicer-extension-catalog-entry-schema-v1.0.2.json#"
)
TYPES = {
    "$schema": str,
    "category": str,
    "scm_url": str,
    "scm_revision": str,
    "scm_type": str,
    "build_dependencies": list,
    "dicom_support_rule": str,
    "build_subdirectory": str,
    "enabled": bool,
    "tier": int,
}
REQUIRED = {"$schema", "category", "scm_url"}
LICENCES = ("LICENSE", "LICENCE", "License.txt", "license.txt", "LICENSE.txt", "COPYING", "COPYING.txt")
COMPARISON = r"\w+ == '[\w.]+'"


def problems(name: str, entry: dict) -> list[str]:
    """What the index would refuse in an entry of that file name."""
    found = [f"{key} is missing" for key in REQUIRED - entry.keys()]
    found += [f"{key} is not known" for key in entry.keys() - TYPES.keys()]
    found += [
        f"{key} is not {kind.__name__}" for key, kind in TYPES.items() if type(entry.get(key, kind())) is not kind
    ]
    if found:
        return found
    url = urlsplit(entry["scm_url"])
    repository = Path(url.path).stem
    rules = {
        "schema": entry["$schema"] == SCHEMA,
        "name": not name.lower().startswith("slicer"),
        "category": entry["category"] == "Registration",
        "scheme": url.scheme in ("git", "https") and bool(url.netloc),
        "repository": repository.startswith("Slicer"),
        "revision": not re.fullmatch("[0-9a-f]{7,40}", entry.get("scm_revision", "")),  # a branch
        "dependencies": all(isinstance(one, str) for one in entry.get("build_dependencies", [])),
        "tier": 1 <= entry.get("tier", 1) <= 5,
        "rule": re.fullmatch(f"{COMPARISON}( (or|and) {COMPARISON})*", entry.get("dicom_support_rule", "")) is not None,
    }
    return [rule for rule, kept in rules.items() if not kept]


@pytest.fixture
def entry() -> dict:
    return json.loads(PATH.read_text(encoding="utf-8"))


def test_the_entry_is_accepted(entry):
    assert problems(PATH.stem, entry) == []


def test_it_says_what_the_extension_is(entry):
    assert entry["build_dependencies"] == ["PyTorch"]
    assert entry["build_subdirectory"] == "."
    assert entry["tier"] == 1


@pytest.mark.parametrize(("modality", "suggested"), [("XA", True), ("RF", True), ("CT", False), ("MR", False)])
def test_it_is_suggested_for_fluoroscopy(entry, modality, suggested):
    # for `==` and `or` between texts, rule-engine's language is Python's
    assert eval(entry["dicom_support_rule"], {"Modality": modality}) is suggested


def test_file_format():
    raw = PATH.read_bytes()
    assert b"\r" not in raw and raw.endswith(b"}\n")
    assert any((ROOT / name).is_file() for name in LICENCES)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"category": "Wonders"}, "category"),
        ({"scm_url": "https://github.com/someone/DiffDRR.git"}, "repository"),
        ({"scm_url": "ssh://github.com/someone/SlicerDiffDRR"}, "scheme"),
        ({"scm_revision": "79fbfe4"}, "revision"),
        ({"tier": 6}, "tier"),
        ({"tier": "1"}, "tier is not int"),
        ({"homepage": "https://x.org"}, "homepage is not known"),
        ({"dicom_support_rule": "Modality = 'XA'"}, "rule"),
        ({"build_dependencies": "PyTorch"}, "build_dependencies is not list"),
    ],
)
def test_mistakes_are_found(entry, change, problem):
    assert problems(PATH.stem, {**entry, **change}) == [problem]
    assert problems("SlicerDiffDRR", entry) == ["name"]
