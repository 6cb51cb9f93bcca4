"""MRML nodes in, MRML nodes out: everything the module does with a scene, without Qt.

Every function is given the scene or a node of it; nothing here knows the application. World is RAS in mm. The files
here load at first use (`scene.poses.nudge(...)`), because they load torch.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path


def __getattr__(name: str):
    folder = Path(__file__).parent
    if name.startswith("_") or not ((folder / f"{name}.py").is_file() or (folder / name / "__init__.py").is_file()):
        raise AttributeError(f"module '{__name__}' has no attribute {name!r}")
    return import_module(f"{__name__}.{name}")
