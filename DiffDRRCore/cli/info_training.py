"""What `info` says of a training: its folder, its network, its files."""

from __future__ import annotations

import json
from pathlib import Path

from DiffDRRCore.learning.training.run_files import CHECKPOINT, FORMAT, MODEL, OPTIONS, STATE

_FRAMES = {
    "patient": "one patient: finds the pose in the CT that it was trained on",
    "template": "many patients, in the frame of a template: needs the CT's transform to it (--warp)",
    "own_center": "many patients, each in axes about its own centre",
}


def is_training(path: Path) -> bool:
    """Whether it is the folder of a training, or one of the files that it leaves."""
    if path.is_dir():
        return (path / OPTIONS).exists() and _content(path / OPTIONS).get("format") == FORMAT
    if path.suffix == ".safetensors":
        return path.exists()
    if path.suffix != ".json" or not path.exists():
        return False
    content = _content(path)
    return content.get("format") == FORMAT or {"status", "step", "steps", "pid"} <= content.keys()


def describe(path: Path) -> dict:
    """What it is and how it stands. Raises DiffDRRError for a file that is damaged or of others."""
    if path.is_dir():
        values = {"kind": "training", **_state(path / STATE), **_options(path / OPTIONS)}
        network = _network(path / MODEL) if (path / MODEL).exists() else {"network": "none yet"}
        return values | {name: value for name, value in network.items() if name not in ("kind", "camera", "ranges")}
    if path.name == CHECKPOINT:
        folder = f"what `restart {path.parent}` goes on from"
        return {"kind": "checkpoint of a training", "use": f"{folder}; the network to use is {MODEL} beside it"}
    if path.suffix == ".safetensors":
        return _network(path)
    if _content(path).get("format") == FORMAT:
        return {"kind": "options of a training (train --options takes them again)", **_options(path)}
    return {"kind": "how a training stands", **_state(path)}


def _network(path: Path) -> dict:
    from DiffDRRCore.learning import read_description

    content = read_description(path)
    frame, trained = content.get("frame") or {}, content.get("trained") or {}
    kind = frame.get("kind")
    values = {"kind": "network that finds poses", "network": str(path)}
    values |= {"frame": f"{kind} ({_FRAMES[kind]})" if kind in _FRAMES else kind}
    values |= {"backbone": (content.get("architecture") or {}).get("backbone")}
    values |= {"camera": content.get("camera"), "ranges": content.get("ranges"), "best at step": trained.get("step")}
    return values | _errors(trained)


def _errors(best: dict) -> dict:
    names = {"mm": "median (mm)", "mm_90": "90 % below (mm)", "degrees": "median (deg)", "center_mm": "centre (mm)"}
    return {f"held out, {text}": best[name] for name, text in names.items() if best.get(name) is not None}


def _options(path: Path) -> dict:
    content = _content(path)
    names = ("cts", "camera", "views", "backbone", "batch", "learning_rate", "seed")
    shown = {"cts": "CTs", "views": "ranges", "learning_rate": "learning rate"}
    values = {shown.get(name, name): content.get(name) for name in names if content.get(name) is not None}
    return values | {"steps in all": content.get("steps")}


def _state(path: Path) -> dict:
    content = _content(path) if path.exists() else {}
    if not content:
        return {"status": "not begun"}
    values = {"status": content.get("status"), "step": f"{content.get('step')} of {content.get('steps')}"}
    values |= {"message": content["message"]} if content.get("message") else {}
    best = content.get("best") or {}
    return values | ({"best at step": best["step"]} if "step" in best else {}) | _errors(best)


def _content(path: Path) -> dict:
    """Empty for what is no JSON object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
