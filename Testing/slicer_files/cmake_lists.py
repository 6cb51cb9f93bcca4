"""Keeps the lists of files in the CMake files: a file that is not listed is not in the installed extension.

python -m Testing.slicer_files.cmake_lists            what is wrong, with the lists to paste
python -m Testing.slicer_files.cmake_lists --write    rewrite the lists
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = ("DiffDRRCore", "DiffDRRSlicer")
SCRIPTS, RESOURCES = "MODULE_PYTHON_SCRIPTS", "MODULE_PYTHON_RESOURCES"
_NOT_INSTALLED = {"CMakeLists.txt"}


def files(folder: Path) -> dict[str, list[str]]:
    """Paths below a module's folder as its CMake file should list them."""
    found = {SCRIPTS: [], RESOURCES: []}
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        hidden = any(part.startswith(".") or part == "__pycache__" for part in relative.parts)
        if path.is_file() and not hidden and path.suffix != ".pyc" and path.name not in _NOT_INSTALLED:
            found[SCRIPTS if path.suffix == ".py" else RESOURCES].append(relative.as_posix())
    return found


def listed(text: str) -> dict[str, list[str]]:
    """The lists in the text of a CMake file, with ${MODULE_NAME} filled in."""
    name = re.search(r"set\(MODULE_NAME (\w+)\)", text).group(1)
    return {
        key: _block(key).search(text).group(1).replace("${MODULE_NAME}", name).split() for key in (SCRIPTS, RESOURCES)
    }


def rewritten(text: str, lists: dict[str, list[str]]) -> str:
    """The text of a CMake file with these lists in place of its own."""
    for key, paths in lists.items():
        text = _block(key).sub(lambda _, key=key, paths=paths: as_cmake(key, paths), text)
    return text


def as_cmake(key: str, paths: list[str]) -> str:
    """The `set` command of a list, one path a line."""
    return "\n  ".join([f"set({key}", *paths, ")"])


def _block(key: str) -> re.Pattern:
    return re.compile(rf"set\({key}\b([^)]*)\)")


def main(arguments: list[str]) -> int:
    """Compare or rewrite all lists; 1 where they are wrong and were left so."""
    status = 0
    for folder in FOLDERS:
        path = ROOT / folder / "CMakeLists.txt"
        text, lists = path.read_text(encoding="utf-8"), files(ROOT / folder)
        if listed(text) == lists:
            continue
        if "--write" in arguments:
            path.write_text(rewritten(text, lists), encoding="utf-8")
        else:
            print(f"{path.relative_to(ROOT)} should have:", *(as_cmake(*item) for item in lists.items()), sep="\n")
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
