"""The peers' own Python environment, `.cache/peers` below the repository."""

from __future__ import annotations

import json
import os
import subprocess
import venv
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[3]
FOLDER = REPOSITORY / ".cache" / "peers"
# Each line is one call of pip. torch comes first and pinned, so that the others find it: where pip's index offers no
# CPU build, PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu adds it. diffdrr asks for VTK, timm and
# torchvision, which its renderer never imports.
_TORCH = ["torch==2.13.0"]
RECIPES = {
    "rtk": [["itk-rtk==2.7.0"]],
    "plastimatch": [["plastimatch==1.10.0"]],
    "nanodrr": [_TORCH, ["nanodrr==0.1.7"]],
    "diffdrr": [
        _TORCH,
        ["torchio>=1.0", "fastcore", "pandas", "einops", "scipy"],
        ["--no-deps", "diffdrr==0.6.1"],
    ],
}
SHOWN = ("itk-rtk", "plastimatch", "diffdrr", "nanodrr", "torch", "numpy")


def python() -> Path:
    """The peers' interpreter."""
    return FOLDER / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def install(names: list[str]) -> dict[str, str]:
    """Install what is missing; of each peer that could not be installed, the reason in one line."""
    state_file = FOLDER / "installed.json"
    state = json.loads(state_file.read_text(encoding="utf-8")) if state_file.exists() else {}
    todo = [name for name in names if state.get(name) != RECIPES[name]]
    if not todo:
        return {}
    print(f"Installing {', '.join(todo)} with pip into {FOLDER} (some hundred megabytes, once).", flush=True)
    if not python().exists():
        venv.create(FOLDER, with_pip=True)
    failed = {}
    for name in todo:
        reason = _install(RECIPES[name])
        if reason is None:
            state[name] = RECIPES[name]
            state_file.write_text(json.dumps(state, indent=1), encoding="utf-8")
        else:
            failed[name] = f"not installed: {reason}"
    return failed


def _install(recipe: list[list[str]]) -> str | None:
    """None, or why pip failed."""
    for arguments in recipe:
        command = [str(python()), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["pip failed"]
            return lines[-1].removeprefix("ERROR: ")
    return None


def versions() -> str:
    """'itk-rtk 2.7.0, ...' of the peers' environment."""
    if not python().exists():
        return "none installed"
    command = [str(python()), "-m", "pip", "list", "--format=json", "--disable-pip-version-check"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = {package["name"]: package["version"] for package in json.loads(done.stdout)}
    return ", ".join(f"{name} {found[name]}" for name in SHOWN if name in found)
