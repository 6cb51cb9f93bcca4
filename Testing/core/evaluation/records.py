"""Records of runs that never took place, computed from known poses, lawful in every key."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch

from DiffDRRCore.evaluation import pose_errors
from DiffDRRCore.evaluation.running.run import FORMAT
from DiffDRRCore.geometry import Camera, Pose
from DiffDRRCore.imaging.camera_file import camera_to_dict

CAMERA = Camera(64, 48, (4.0, 4.0), 1020.0)
CENTER = torch.tensor([10.0, -20.0, 30.0], dtype=torch.float64)
TARGETS = CENTER + 50 * torch.cat([torch.eye(3), -torch.eye(3)]).double()


def true_pose(view: int = 0) -> Pose:
    """Source 850 mm from the centre, anterior; for further views turned about S by 60 degrees each."""
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3] = torch.tensor([[-1.0, 0, 0], [0, 0, -1], [0, -1, 0]])
    matrix[:3, 3] = CENTER + torch.tensor([0, 850.0, 0])
    return Pose(matrix).retract(torch.tensor([0, 0, view * math.pi / 3, 0, 0, 0], dtype=torch.float64), about=CENTER)


def shifted(pose: Pose, mm: float) -> Pose:
    """Moved by so many mm along its own x: every target is displaced by exactly that."""
    return pose @ Pose.exp(torch.tensor([0, 0, 0, mm, 0, 0], dtype=torch.float64))


def record(
    start_mm: float,
    end_mm: float | None,
    index: int = 0,
    subject: str = "A",
    method: str = "ours",
    views: int = 1,
    covariance: list | None = None,
    deviation: list | None = None,
    failure: str | None = None,
) -> dict:
    """A case that starts `start_mm` and ends `end_mm` (None: it failed) from the truth."""
    true = [true_pose(view) for view in range(views)]
    start = [shifted(pose, start_mm) for pose in true]
    end = None if end_mm is None else [shifted(pose, end_mm) for pose in true]
    names = [f"{view:03d}" for view in range(views)]
    return {
        "case": f"{subject}/{'+'.join(names)}/{index}",
        "subject": subject,
        "views": names,
        "start": index,
        "seed": 7,
        "poses_start": _lists(start),
        "poses_end": None if end is None else _lists(end),
        "poses_true": _lists(true),
        "errors_start": _errors(start, true),
        "errors_end": None if end is None else _errors(end, true),
        "converged": end is not None and end_mm < 5,
        "reason": "small steps" if end is not None else "",
        "similarity": None if end is None else 0.9,
        "similarity_start": 0.5,
        "steps": None if end is None else 20 + index,
        "seconds": None if end is None else 1.5 + 0.5 * index,
        "covariance": covariance,
        "covariance_about": CENTER.tolist() if covariance is not None else None,
        "deviation": deviation,
        "camera": camera_to_dict(CAMERA),
        "method": method,
        "failure": failure if end is not None else failure or "The registration left the image.",
    }


def run(folder: Path, records: list[dict], protocol: dict | None = None) -> Path:
    """A run's folder with these records."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "protocol.json").write_text(json.dumps({"format": FORMAT, **(protocol or {})}), encoding="utf-8")
    lines = "".join(json.dumps(entry) + "\n" for entry in records)
    (folder / "cases.jsonl").write_text(lines, encoding="utf-8")
    return folder


def usual(methods=("ours", "peer"), subjects=("A", "B"), cases: int = 24, seed: int = 0) -> list[dict]:
    """Starts from 1 to 40 mm; near ones end within a millimetre, far ones mostly do not, and one fails."""
    generator = torch.Generator().manual_seed(seed)
    records = []
    for rank, method in enumerate(methods):
        for subject in subjects:
            for index in range(cases):
                start = 1 + 39 * index / max(cases - 1, 1)
                lost = float(torch.rand((), generator=generator)) < (start / 45) ** (3 - rank)
                draws = torch.randn(6, generator=generator, dtype=torch.float64)
                end = (
                    None
                    if index == cases - 1
                    else start * 0.9
                    if lost
                    else 0.2 + 0.5 * abs(float(draws[0])) * (1 + rank)
                )
                scale = torch.tensor([0.01] * 3 + [0.5] * 3, dtype=torch.float64)
                known = {"covariance": torch.diag(scale**2).tolist(), "deviation": (draws * scale).tolist()}
                records.append(record(start, end, index, subject, method, **known))
    return records


def _lists(poses: list[Pose]) -> list:
    return [pose.matrix.tolist() for pose in poses]


def _errors(estimates: list[Pose], true: list[Pose]) -> dict[str, float]:
    each = [pose_errors(a, b, CAMERA, TARGETS) for a, b in zip(estimates, true, strict=True)]
    return {name: sum(float(errors[name]) for errors in each) / len(each) for name in each[0]}
