"""The peers' own registration recipes on our starts and our image."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np
import torch
from tqdm import tqdm

from DiffDRRCore import Pose
from DiffDRRCore.geometry.converters import from_diffdrr, from_nanodrr
from Testing.benchmarks.peers import views
from Testing.benchmarks.peers.client import Peer, PeerError, open_peers
from Testing.benchmarks.register_rows import SUCCESS, Runs
from Testing.protocol.simulated import Case, errors

RECIPES = {
    "nanodrr": "nanodrr's tutorial: Adam (0.05 rad, 10 mm), global NCC",
    "diffdrr": "DiffDRR's tutorial: SGD (0.05 rad, 100 mm), global NCC, trilinear",
}
STEPS = 250
STEPS_TO_TIME = 10
HEADER = [
    "recipe",
    "starts",
    "mTRE < 2 mm",
    "end mTRE, median mm",
    "s per step",
    "s per registration",
    "time over ours",
]


@dataclass
class PeerRuns:
    """Errors (mm, of whole runs only) and seconds of each step; `failure`: why there are none."""

    total: list[float] = field(default_factory=list)
    step_seconds: list[float] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    failure: str | None = None

    @property
    def seconds(self) -> float | None:
        """Of one registration: the median, or that of STEPS steps where only a few were timed."""
        if not self.step_seconds:
            return None
        steps = self.steps if self.total else [STEPS] * len(self.step_seconds)
        return median(step * count for step, count in zip(self.step_seconds, steps, strict=True))


def peer_runs(case: Case, starts: list[Pose], count: int, threads: int) -> dict[str, PeerRuns]:
    """Whole runs from the first `count` starts; none: only the time of a few steps."""
    found = {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        views.write_volume(case.volume, Path(folder))
        np.save(Path(folder) / "target.npy", case.xray.image.numpy())
        peers, failed = open_peers(list(RECIPES), Path(folder), threads)
        for name in RECIPES:
            found[name] = PeerRuns(failure=failed[name]) if name in failed else PeerRuns()
            if name in peers:
                _run(found[name], peers[name], case, starts, count, Path(folder) / "target.npy")
                peers[name].close()
    return found


def _run(runs: PeerRuns, peer: Peer, case: Case, starts: list[Pose], count: int, image: Path) -> None:
    steps = STEPS if count else STEPS_TO_TIME
    for start in tqdm(starts[: max(count, 1)], desc=peer.name, leave=False):
        view = views.view(case.xray.camera, start, case.volume.center)
        try:
            answer = peer.ask("register", view=view, image=str(image), steps=steps)
        except PeerError as error:
            runs.failure = str(error)
            return
        runs.step_seconds.append(answer["seconds"] / answer["steps"])
        runs.steps.append(answer["steps"])
        if count:
            runs.total.append(errors(case, found_pose(peer.name, view, answer, case))["mtre_mm"])


def found_pose(name: str, view: dict, answer: dict, case: Case) -> Pose:
    """The peer's answer as our pose; its float32 rotation made exact."""
    if name == "nanodrr":
        numbers = view["nanodrr"]
        rt_inv = _rigid(answer["rt_inv"])
        return from_nanodrr(
            torch.tensor(numbers["k_inv"]).double(), rt_inv, numbers["sdd"], view["height"], view["width"]
        )[1]
    numbers = {key: value for key, value in view["diffdrr"].items() if key != "matrix"}
    return from_diffdrr(_rigid(answer["matrix"]), **numbers, volume_center=case.volume.center)[1]


def _rigid(matrix) -> torch.Tensor:
    """[4, 4] float64 with the nearest orthogonal matrix in place of the rotation."""
    matrix = torch.tensor(matrix).double().reshape(4, 4)
    u, _, v = torch.linalg.svd(matrix[:3, :3])
    matrix[:3, :3] = u @ v
    return matrix


def row(name: str, runs: PeerRuns, ours: Runs) -> list[str]:
    """Cells under HEADER."""
    if runs.failure:
        return [RECIPES[name], runs.failure, *["-"] * 5]
    whole = f"{sum(error < SUCCESS for error in runs.total)}/{len(runs.total)}" if runs.total else "not run"
    end = f"{median(runs.total):.2f}" if runs.total else "-"
    estimated = "" if runs.total else f" ({STEPS} steps, estimated)"
    return [
        *(f"{RECIPES[name]}, {STEPS} steps", str(len(runs.step_seconds)), whole, end),
        *(f"{median(runs.step_seconds):.2f}", f"{runs.seconds:.0f}{estimated}"),
        f"{runs.seconds / median(ours.seconds):.0f} x",
    ]
