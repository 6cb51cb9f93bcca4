"""The house: imports point down only, the logic library knows nothing of Slicer, and importing it costs nothing."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import DiffDRRCore
from DiffDRRCore import learning

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "DiffDRRCore"
FORBIDDEN = {"slicer", "qt", "ctk", "vtk", "PythonQt", "DiffDRRSlicer", "DiffDRRSlicerLib", "Testing"}


def layers() -> list[set[str]]:
    """Sets of names, top first, as pyproject.toml lists them for import-linter."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    block = re.search(r"layers = \[(.*?)\]", text, re.DOTALL).group(1)
    return [set(re.findall(r"DiffDRRCore\.(\w+)", line)) for line in block.splitlines() if "DiffDRRCore." in line]


def imported(path: Path) -> set[str]:
    """Full names of what a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def layer_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


SOURCES = sorted(
    path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.stem not in ("__init__", "__main__")
)


def test_every_part_of_the_package_has_its_layer():
    known = set().union(*layers())
    assert {layer_of(path) for path in SOURCES} <= known
    assert {"geometry", "imaging", "rendering"} <= known


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_point_down_only(path):
    height = {name: level for level, names in enumerate(reversed(layers())) for name in names}
    own = layer_of(path)
    home_of = {name: home for home, names in DiffDRRCore._HOMES.items() for name in names}
    for name in imported(path):
        package, _, rest = name.partition(".")
        assert package not in FORBIDDEN, f"{path.name} imports {name}"
        if package == "DiffDRRCore":
            home = home_of.get(rest, rest)  # a public name counts as the module that defines it
            other = home.partition(".")[0]
            lowest = other in ("", "__version__")
            assert lowest or height[other] <= height[own], f"{own} imports {other}, which lies above it"


def test_importing_the_package_loads_no_torch():
    script = (
        "import sys, DiffDRRCore, DiffDRRCore.learning.training.logs; "
        "dir(DiffDRRCore); dir(DiffDRRCore.learning); print(sorted({'torch', 'SimpleITK', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_every_public_name_loads():
    for name in DiffDRRCore.__all__:
        assert getattr(DiffDRRCore, name).__name__ == name
    for name in learning.__all__:
        assert getattr(learning, name).__name__ == name
    for package in (DiffDRRCore, learning):
        with pytest.raises(AttributeError, match="has no attribute 'Cathode'"):
            package.Cathode  # noqa: B018
