"""Where registrations start.

A start is one rigid motion of all C-arms together, away from the reference poses, as a registration looks for one back.
Offsets are (tilt about image x, tilt about image y, turn in the image) in degrees and (right, down, depth) in mm, along
the axes of the first view's reference camera and about the CT's centre: the coordinates of
`DiffDRRCore.registration.problem.motion`, in degrees.

Random numbers of a case come from the protocol's seed and from the names of the subject, the views and the start's
number alone: a case starts at the same place whatever else is run, in whatever order and on however many workers.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from DiffDRRCore import values
from DiffDRRCore.datasets.dataset import Subject, View
from DiffDRRCore.errors import DiffDRRError
from DiffDRRCore.evaluation.measures import target_registration_error
from DiffDRRCore.geometry import CArm, Pose
from DiffDRRCore.imaging.volume import Volume
from DiffDRRCore.imaging.xray import XRay
from DiffDRRCore.registration.landmarks import pose_from_landmarks
from DiffDRRCore.registration.problem.motion import MotionFrame
from DiffDRRCore.values import Key

_ROUNDS = 50
_FEWEST_LANDMARKS = 4
_EXACT = 1e-9  # relative error of a start's distance


def _rising(where: str, value: Any) -> list[float]:
    edges = values.several(values.number(least=0), least=2)(where, value)
    if any(low >= high for low, high in itertools.pairwise(edges)):
        raise DiffDRRError(f"{where} must rise from number to number, got {edges}.")
    return edges


_SPREAD = {
    "distribution": Key(values.choice("normal", "uniform"), "normal"),
    "degrees": Key(values.number(least=0), 5.0),
    "plane_mm": Key(values.number(least=0), 10.0),
    "depth_mm": Key(values.number(least=0), 30.0),
    "seed": Key(values.optional(values.whole()), None),
}
_BINS = {"bins_mm": Key(_rising), "per_bin": Key(values.whole(1), 20)}
_CLICKS = {
    "count": Key(values.whole(1), 1),
    "noise_px": Key(values.number(least=0), 0.0),
    "seed": Key(values.optional(values.whole()), None),
}
_LACKING = {
    "landmarks": "No view shows four landmarks that the CT has as well: a start by landmarks needs them.",
    "header": "The X-ray's header tells no pose to start from: choose another kind of starts.",
}
_ANGLES = {name: Key(values.number(), 0.0) for name in ("primary", "secondary", "roll")}
KEYS: dict[str, dict[str, Key]] = {
    "offsets": {"offsets": Key(values.several(values.several(values.number(), count=6)))},
    "sampled": {"count": Key(values.whole(1), 10), **_SPREAD},  # or with _BINS in place of the count
    "landmarks": _CLICKS,
    "header": {},
    "fixed": {"sod_mm": Key(values.number(above=0)), **_ANGLES},
    "model": {"path": Key(values.text)},
}


@dataclass(frozen=True)
class Situation:
    """What a start is made from: views with reference poses [V], the CT's centre [3] and landmarks, targets [N, 3].

    And, for starts by a network, the CT and the preprocessed X-rays.
    """

    views: list[View]
    truths: list[Pose]
    center: Tensor
    landmarks: dict[str, Tensor]
    targets: Tensor
    volume: Volume | None = None
    xrays: list[XRay] | None = None


def checked(where: str, content: Any) -> dict[str, Any]:
    """The `starts` of a protocol with all defaults; raises DiffDRRError."""
    kind = content.get("kind") if isinstance(content, dict) else None
    if not isinstance(content, dict) or "kind" not in content:
        raise DiffDRRError(f"{where} must be a section with a 'kind': one of {', '.join(KEYS)}.")
    if kind not in KEYS:
        raise values.unknown(f"{where}.kind", kind, KEYS)
    keys = KEYS[kind]
    if kind == "sampled" and content.get("bins_mm") is not None:
        if content.get("count") is not None:
            raise DiffDRRError(f"{where} has both 'count' and 'bins_mm': the number of starts is bins times 'per_bin'.")
        keys = {**_BINS, **_SPREAD}
    given = {key: value for key, value in content.items() if key != "kind"}
    return {"kind": kind, **values.section(where, given, keys)}


def count(starts: dict[str, Any]) -> int:
    """How many starts each group of views gets."""
    if starts["kind"] == "offsets":
        return len(starts["offsets"])
    if "bins_mm" in starts:
        return (len(starts["bins_mm"]) - 1) * starts["per_bin"]
    return starts.get("count", 1)


def generator(seed: int, subject: str, views: tuple[str, ...], start: int) -> np.random.Generator:
    """The random numbers of one case."""
    key = json.dumps([seed, subject, list(views), start]).encode()
    return np.random.default_rng(int.from_bytes(hashlib.sha256(key).digest()[:16], "big"))


def start_poses(starts: dict[str, Any], situation: Situation, index: int, random: np.random.Generator) -> list[Pose]:
    """The start's poses (camera_to_world), one per view. Raises DiffDRRError where it cannot be made."""
    make = _at_distance if "bins_mm" in starts else _MAKERS[starts["kind"]]
    motion = make(starts, situation, index, random)
    return [Pose._rigid((motion @ truth).matrix) for truth in situation.truths]


def needs_annotation(starts: dict[str, Any]) -> bool:
    """Whether there may be datasets without what starts of this kind are made from."""
    return starts["kind"] in _LACKING


def is_possible(starts: dict[str, Any], view: View, subject: Subject) -> bool:
    """Whether a view has what starts that `needs_annotation` are made from."""
    if starts["kind"] == "header":
        return view.header_pose is not None
    return len(set(view.landmarks) & set(subject.landmarks)) >= _FEWEST_LANDMARKS


def why_impossible(starts: dict[str, Any]) -> str:
    """A sentence for where none of the views `is_possible`."""
    return _LACKING[starts["kind"]]


def _moved(situation: Situation, offset: np.ndarray) -> Pose:
    """The motion of (degrees, degrees, degrees, mm, mm, mm)."""
    q = torch.from_numpy(np.concatenate([np.radians(offset[:3]), offset[3:]]))
    return MotionFrame(situation.center, situation.truths[0].rotation).motion(q)


def _offset(starts: dict, situation: Situation, index: int, random: np.random.Generator) -> Pose:
    return _moved(situation, np.array(starts["offsets"][index]))


def _drawn(starts: dict, random: np.random.Generator) -> np.ndarray:
    draw = random.standard_normal(6) if starts["distribution"] == "normal" else random.uniform(-1, 1, 6)
    return draw * ([starts["degrees"]] * 3 + [starts["plane_mm"]] * 2 + [starts["depth_mm"]])


def _sampled(starts: dict, situation: Situation, index: int, random: np.random.Generator) -> Pose:
    return _moved(situation, _drawn(starts, random))


def _at_distance(starts: dict, situation: Situation, index: int, random: np.random.Generator) -> Pose:
    """A drawn motion, made larger or smaller until the targets are misplaced by what the start's bin asks for."""
    place, within = divmod(index, starts["per_bin"])
    low, high = starts["bins_mm"][place : place + 2]
    wanted = low + (high - low) * (within + 0.5) / starts["per_bin"]
    offset = _drawn(starts, random)
    truth = situation.truths[0]
    for _ in range(_ROUNDS):  # the error grows nearly in proportion to the motion
        motion = _moved(situation, offset)
        error = float(target_registration_error(motion @ truth, truth, situation.targets))
        if abs(error - wanted) <= _EXACT * wanted:
            return motion
        if not (error > 0 and np.abs(offset[:3]).max() < 180):
            break
        offset = offset * (wanted / error)
    raise DiffDRRError(f"No start of this kind misplaces the targets by {wanted:g} mm: give the starts more spread.")


def _by_landmarks(starts: dict, situation: Situation, index: int, random: np.random.Generator) -> Pose:
    """By the first view that shows four landmarks of the CT, with clicks `noise_px` beside them."""
    for view, truth in zip(situation.views, situation.truths, strict=True):
        names = sorted(set(view.landmarks) & set(situation.landmarks))
        if len(names) < _FEWEST_LANDMARKS:
            continue
        clicks = torch.stack([view.landmarks[name] for name in names]).double().cpu()
        clicks = clicks + torch.from_numpy(starts["noise_px"] * random.standard_normal(clicks.shape))
        points = torch.stack([situation.landmarks[name] for name in names])
        return pose_from_landmarks(points, clicks, view.xray.camera).pose @ truth.inverse()
    raise DiffDRRError(_LACKING["landmarks"])


def _by_header(starts: dict, situation: Situation, index: int, random: np.random.Generator) -> Pose:
    for view, truth in zip(situation.views, situation.truths, strict=True):
        if view.header_pose is not None:
            return view.header_pose.to(truth.matrix) @ truth.inverse()
    raise DiffDRRError(_LACKING["header"])


def _fixed(starts: dict, situation: Situation, index: int, random: np.random.Generator) -> Pose:
    distance = float(situation.views[0].xray.camera.source_to_detector)
    if not math.isfinite(distance):
        distance = starts["sod_mm"]
    angles = (starts["primary"], starts["secondary"], starts["roll"])
    return CArm(distance, starts["sod_mm"], situation.center, *angles).pose @ situation.truths[0].inverse()


def _by_model(starts: dict, situation: Situation, index: int, random: np.random.Generator) -> Pose:
    """By a network; of the reference poses it is told only how the views lie to the first one."""
    truths = situation.truths
    into = truths[0].inverse()
    xrays = [xray.with_pose(into @ truth) for xray, truth in zip(situation.xrays, truths, strict=True)]
    path, volume = Path(starts["path"]), situation.volume
    model = _model(path, str(volume.device), path.stat().st_mtime_ns if path.is_file() else 0)
    return model.starts(volume, xrays)[0] @ truths[0].inverse()


@lru_cache(maxsize=1)
def _model(path: Path, device: str, changed: int):
    """Read once for all cases, and again where the file has changed."""
    from DiffDRRCore.learning import PoseModel

    return PoseModel.read(path, device)


_MAKERS: dict[str, Callable[..., Pose]] = {
    "offsets": _offset,
    "sampled": _sampled,
    "landmarks": _by_landmarks,
    "header": _by_header,
    "fixed": _fixed,
    "model": _by_model,
}
