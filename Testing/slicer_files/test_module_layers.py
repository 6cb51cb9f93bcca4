"""The module's house: scene without Qt and without the application, panel without torch at import, thin module file."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULE = ROOT / "DiffDRRSlicer"
LIBRARY = MODULE / "DiffDRRSlicerLib"
SCENE, PANEL = sorted((LIBRARY / "scene").rglob("*.py")), sorted((LIBRARY / "panel").rglob("*.py"))
WIDGETS = {"qt", "ctk", "PythonQt", "PySide6"}
APPLICATION = {"mrmlScene", "app", "modules", "dicomDatabase"}
HEAVY = {"torch", "DiffDRRCore", "SimpleITK", "scipy", "pydicom", "numba"}


def imports(nodes) -> set[str]:
    """Names of the modules that these statements import."""
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def named(path: Path) -> str:
    return path.relative_to(MODULE).as_posix()


@pytest.mark.parametrize("path", SCENE, ids=named)
def test_the_scene_layer_knows_neither_widgets_nor_the_application(path):
    names = imports(ast.walk(tree(path)))
    assert not {name.partition(".")[0] for name in names} & WIDGETS
    assert not [name for name in names if name.startswith("DiffDRRSlicerLib.panel")]
    asked = {
        node.attr
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "slicer"
    }
    assert not asked & APPLICATION


@pytest.mark.parametrize("path", PANEL, ids=named)
def test_the_panel_loads_nothing_heavy_when_it_is_imported(path):
    names = imports(tree(path).body)
    assert not {name.partition(".")[0] for name in names} & HEAVY
    assert not [name for name in names if name.startswith("DiffDRRSlicerLib.scene.")]  # its files load torch


def test_files_stay_short():
    long = {named(path): len(path.read_text(encoding="utf-8").splitlines()) for path in MODULE.rglob("*.py")}
    assert not {path: lines for path, lines in long.items() if lines > 400}


def test_importing_the_libraries_loads_no_torch():
    """In a process of its own: nothing that the panel imports at file scope, and not `scene` itself, loads torch."""
    script = (
        "import sys\n"
        "from DiffDRRSlicerLib import choices, install, sample_data, scene\n"
        f"print(sorted({HEAVY!r} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=MODULE)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(("given", "expected"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_that_wait_leave_the_processor_before_torch_is_loaded(given, expected):
    """A core that another program keeps busy must not stop a registration; whoever has set it keeps it."""
    program = (
        f"import sys, os; sys.path.insert(0, {str(MODULE)!r}); from DiffDRRSlicerLib import scene; "
        "print('torch' in sys.modules, os.environ['OMP_WAIT_POLICY'])"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment |= {} if given is None else {"OMP_WAIT_POLICY": given}
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    assert run.stdout.split() == ["False", expected]
