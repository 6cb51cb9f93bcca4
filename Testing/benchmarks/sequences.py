"""Tracking of simulated runs: `python -m Testing.benchmarks.sequences`.

50 frames of 128 x 128 pixels with 2 mm and 1 degree between frames, in legs of ten frames that each go another way, so
that the motion turns sharply at their ends. X-rays by the exact voxel integrator with noise, gain and offset. Per run:
frames lost; mean, largest and last error in mm of points in bone (for one view also across the beam alone, which is
what one view shows); frames per second and CPU seconds a frame after the first frame. With the shared data also the
chest CT, and the two real frames of the wrist, 97 apart, against their reference.

With --write, puts the section "Sequences" into RESULTS.md; with --profile, says what the time goes into.
"""

from __future__ import annotations

import argparse
import cProfile
import math
import pstats
import time
from dataclasses import dataclass, field

import torch

from DiffDRRCore import CArm, Pose, Volume
from DiffDRRCore.datasets import phantom
from DiffDRRCore.datasets.simulated import points_in_bone, simulated_xray
from DiffDRRCore.registration.tracking import Tracking
from Testing.benchmarks.report import machine, table, write_section
from Testing.benchmarks.timing import use_threads
from Testing.conftest import SHARED_DATA
from Testing.protocol.real import WRIST_OPTIONS, wrist

LEG = 10


@dataclass
class Outcome:
    """Of a run: errors in mm of each frame, in space and across the first view's beam."""

    lost: dict[int, str]
    errors: list[float]
    across: list[float]
    seconds: float
    cpu: float
    frames: int
    smooth: list[float] = field(default_factory=list)
    shares: dict[str, float] = field(default_factory=dict)

    def row(self) -> list[str]:
        """Cells of the table."""
        count = len(self.errors)
        means = [sum(values) / count for values in (self.errors, self.smooth)]
        return [
            f"{len(self.lost)} of {count}",
            *(f"{value:.3f}" for value in (means[0], max(self.errors), self.errors[-1], max(self.across))),
            *(f"{value:.3f}" for value in (means[1], max(self.smooth))),
            f"{self.frames / self.seconds:.1f}",
            f"{self.cpu / self.frames:.3f}",
        ]

    def notes(self) -> list[str]:
        """Why frames are lost, and what the time goes into."""
        said = [f"lost {frame}: {why}" for frame, why in self.lost.items()]
        return said + [f"{name}: {share:.0%} of the time" for name, share in self.shares.items()]


def path(frames: int, about, degrees: float, mm: float, seed: int = 0) -> list[Pose]:
    """Motions with these steps from frame to frame, in legs; one that leads more than 60 mm away turns back."""
    rng = torch.Generator().manual_seed(seed)
    poses, motion, step = [], Pose.identity(), torch.zeros(6, dtype=torch.float64)
    for frame in range(frames):
        if frame % LEG == 0:
            turn, shift = torch.randn(2, 3, generator=rng, dtype=torch.float64)
            step = torch.cat([math.radians(degrees) * turn / turn.norm(), mm * shift / shift.norm()])
        poses.append(motion)
        away = (motion.transform(about[None])[0] - about).norm()
        step = -step if float(away) > 60.0 and frame % LEG == LEG // 2 else step
        motion = motion @ Pose.identity().retract(step, about=about)
    return poses


def simulated(volume: Volume, angles, frames: int, pixels: int):
    """(X-rays by frame, C-arm poses, true motions)."""
    arms = [CArm(1020.0, 850.0, volume.center, primary=angle) for angle in angles]
    truth, run = path(frames, volume.center.double(), 1.0, 2.0), []
    for number, motion in enumerate(truth):
        cameras = [arm.camera(pixels, pixels, (384.0 / pixels,) * 2) for arm in arms]
        poses = [motion.inverse() @ arm.pose for arm in arms]
        views = enumerate(zip(cameras, poses, strict=True))
        run.append([simulated_xray(volume, *view, oversampling=2, seed=2 * number + v) for v, view in views])
    return run, [arm.pose for arm in arms], truth


def follow(volume: Volume, run, starts, truth: list[Pose], profiled: bool = False, **options) -> Outcome:
    """Track, and time all frames but the first."""
    tracking = Tracking(volume, run, starts, **options)
    steps = tracking.steps()
    next(steps)
    profile = cProfile.Profile()
    began, cpu = time.perf_counter(), time.process_time()
    if profiled:
        profile.enable()
    done = len(list(steps))
    profile.disable()
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    result = tracking.result()
    points, first = points_in_bone(volume, 200).double(), starts[0]
    space, across = _errors(result.motions.matrix[:, 0], truth, points, first)
    smooth = _errors(result.smoothed().motions.matrix[:, 0], truth, points, first)[0]
    shares = _shares(profile) if profiled else {}
    return Outcome(result.lost, space, across, seconds, cpu, done, smooth, shares)


def _errors(found: torch.Tensor, truth: list[Pose], points, carm: Pose) -> tuple[list[float], list[float]]:
    space, across = [], []
    for matrix, motion in zip(found, truth, strict=True):
        off = (Pose(matrix).transform(points) - motion.transform(points)) @ carm.rotation
        space.append(float(off.norm(dim=-1).mean()))
        across.append(float(off[:, :2].norm(dim=-1).mean()))
    return space, across


def _shares(profile: cProfile.Profile) -> dict[str, float]:
    """Of the time, by function: cumulative, so that they overlap no more than the functions do."""
    by_name: dict[str, float] = {}
    for (_, _, name), (_, _, _, cumulative, _) in pstats.Stats(profile).stats.items():
        by_name[name] = max(by_name.get(name, 0.0), cumulative)
    whole = by_name.get("_followed", 0.0) or 1.0
    parts = {"rays": "in_parallel", "moments and similarity": "_assembled", "levels of the frame": "build_levels"}
    return {what: by_name.get(name, 0.0) / whole for what, name in parts.items()}


def real_wrist() -> str:
    """Frame 2 from its reference 5 mm and 3 degrees off; frame 99 from frame 2; errors against the reference."""
    one, other = wrist(SHARED_DATA, 2), wrist(SHARED_DATA, 99)
    carms = one.truth
    truth = [Pose.identity(), Pose(carms[0].matrix @ torch.linalg.inv(other.truth[0].matrix))]
    frames = {2: one.xrays, 99: other.xrays}
    off = torch.tensor([0.03, -0.03, 0.03, 3.0, -3.0, 3.0], dtype=torch.float64)
    keyframes = {2: Pose.identity().retract(off, about=one.volume.center)}
    tracking = Tracking(one.volume, frames, carms, keyframes=keyframes, margin=30.0, **WRIST_OPTIONS)
    list(tracking.steps())
    result = tracking.result()
    space, _ = _errors(result.motions.matrix[:, 0], truth, one.targets.double(), carms[0])
    shift = float((truth[1].transform(one.targets.double()) - one.targets).norm(dim=-1).mean())
    words = "; ".join(f"frame {frame}: {why}" for frame, why in result.lost.items()) or "none lost"
    return f"{words}; frame 2 {space[0]:.2f} mm, frame 99 {space[1]:.2f} mm (it has moved by {shift:.0f} mm)"


HEAD = ["CT", "views", "lost", "error, mean", "largest", "last", "across the beam, largest"]
HEAD += ["smoothed, mean", "largest", "frames/s", "CPU s/frame"]


def runs(options: argparse.Namespace) -> list[str]:
    """The table of the simulated runs, in Markdown; each row is printed when it is there."""
    volumes = {"phantom": phantom, "chest CT": lambda: Volume.read(SHARED_DATA / "chest_ct" / "cxr.nii.gz")}
    rows, notes = [], []
    for name, make in volumes.items():
        if options.only not in (None, name.split()[0]) or (name == "chest CT" and not SHARED_DATA.is_dir()):
            continue
        volume = make()
        for angles in ((0.0, 90.0), (0.0,)):
            run, starts, truth = simulated(volume, angles, options.frames, options.pixels)
            outcome = follow(volume, run, starts, truth, options.profile)
            rows.append([name, str(len(angles)), *outcome.row()])
            notes += [f"{name}, {len(angles)} view(s): {note}" for note in outcome.notes()]
            print(", ".join(f"{head} {cell}" for head, cell in zip(HEAD, rows[-1], strict=True)), flush=True)
    text = f"{options.frames} frames of {options.pixels} x {options.pixels} pixels, 2 mm and 1 degree between frames:"
    return [text, "", *table(HEAD, rows), *notes, *([""] if notes else [])]


def main() -> None:
    """Measure, print, and write where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=50)
    parser.add_argument("--pixels", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--profile", action="store_true", help="say what the time goes into (slows it down)")
    parser.add_argument("--only", choices=("phantom", "chest", "wrist"))
    parser.add_argument("--write", action="store_true", help="put the tables into RESULTS.md")
    options = parser.parse_args()
    if options.write and (options.only or options.profile):
        parser.error("--write is for all runs, without --profile")
    use_threads(options.threads)
    text = ["`python -m Testing.benchmarks.sequences --write`. " + " ".join((__doc__ or "").split("\n\n")[1].split())]
    text += ["", *machine(options.threads)]
    if options.only != "wrist":
        text += runs(options)
    if options.only in (None, "wrist") and SHARED_DATA.is_dir():
        text += [f"Wrist, 2 views: {real_wrist()}.", ""]
    print("\n".join(text), flush=True)
    if options.write:
        write_section("Sequences", text)


if __name__ == "__main__":
    main()
