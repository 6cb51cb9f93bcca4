"""From a move of the C-arm to the new overlay in the scene: `python -m Testing.benchmarks.interactive`.

The demo's chest CT (512 x 512 x 133, downloaded to .cache at first) in a real MRML scene, an X-ray of 256 x 256 pixels,
a fiducial list. Each turn writes the C-arm's transform and ticks the live view, which renders, draws the overlay,
projects the fiducials and moves the plane. Reduced is what is drawn while something moves, full what is drawn at rest.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from statistics import median

import numpy as np
import slicer
import slicer.util
import torch

from Testing.benchmarks.timing import seconds_of, use_threads

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "DiffDRRSlicer"))
SIDES = {"AP": (180.0, 0.0), "lateral": (90.0, 0.0), "oblique": (45.0, 20.0)}
SIZE, DRAG = 256, 128
DRAFT = 400.0 / DRAG * 720.0 / 1020.0  # mm, a pixel at the anatomy while something moves: smaller voxels are averaged
GOALS = {"full": 100.0, "reduced": 40.0}  # ms


class Room:
    """The scene, its C-arm and a live view; `first` holds the seconds of what is done once."""

    def __init__(self):
        from DiffDRRCore import CArm, Volume
        from DiffDRRCore.datasets.chest import fetch_chest_ct
        from DiffDRRSlicerLib.scene import anatomy, live, nodes, simulation, surfaces

        self.first, self.now, self.live = {}, 0.0, live
        self.scene = slicer.vtkMRMLScene()
        volume = Volume.read(fetch_chest_ct(ROOT / ".cache" / "chest_ct").ct)
        self.ct = self.scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "CT")
        nodes.set_image(self.ct, volume.hu.numpy().astype(np.int16), volume.ijk_to_ras.numpy())
        self.anatomy = anatomy.Anatomy(self.ct)
        arm = CArm(1020.0, 720.0, volume.center, *SIDES["AP"])
        camera = arm.camera(SIZE, SIZE, (400.0 / SIZE, 400.0 / SIZE))
        self.first["volume for the renderer"] = seconds_of(lambda: self.anatomy.volume.attenuation)
        self.first["first rendering, kernels loaded"] = seconds_of(lambda: self.anatomy.renderer()(camera, arm.pose))
        self.first["simulated X-ray"] = seconds_of(lambda: self._simulate(simulation, camera, arm))
        self.first["bone surface"] = seconds_of(lambda: surfaces.bone_surface(self.anatomy))
        self.fiducials = self.scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "F")
        for index in range(6):
            self.fiducials.AddControlPointWorld(*(volume.center.numpy() + 12.0 * index))
        self.view = live.LiveView(self.scene, drag_size=DRAG)

    def _simulate(self, simulation, camera, arm) -> None:
        self.carm = simulation.simulate_xray(self.scene, self.anatomy, camera, arm.pose)

    def look(self, mode: str, turns: int) -> dict:
        """{(side, kind): [ms]} of one overlay mode, and of the rendering alone."""
        from DiffDRRSlicerLib.scene.overlay import OverlayMode

        look = self.live.Look(mode=OverlayMode(mode), fiducials=(self.fiducials,))
        self.view.show(self.anatomy, self.carm, look)
        found = {}
        for side, angles in SIDES.items():
            for turn in range(turns + 1):
                primary, secondary = angles[0] + 1.3 * turn, angles[1] + 0.7 * turn
                times = self._turn(primary, secondary)
                if turn:
                    for kind, ms in times.items():
                        found.setdefault((side, kind), []).append(ms)
        return found

    def _turn(self, primary: float, secondary: float) -> dict[str, float]:
        began = time.perf_counter()
        self.carm.move_arm(primary=primary, secondary=secondary)
        self._tick(0.0)
        reduced = time.perf_counter() - began
        assert self._shape() == (DRAG, DRAG)
        full = seconds_of(lambda: self._tick(1.0))
        assert self._shape() == (SIZE, SIZE)
        idle = seconds_of(lambda: self.view.tick(self.now))
        alone = {name: self._alone(size) for name, size in (("reduced", DRAG), ("full", SIZE))}
        times = {"reduced": reduced, "full": full, "idle tick": idle}
        times |= {f"{name}, without rendering": times[name] - seconds for name, seconds in alone.items()}
        return {name: 1e3 * seconds for name, seconds in times.items()}

    def _tick(self, after: float) -> None:
        self.now += after
        assert self.view.tick(self.now) and self.view.error is None

    def _shape(self) -> tuple[int, int]:
        return slicer.util.arrayFromVolume(self.carm.referred("drr"))[0].shape

    def _alone(self, size: int) -> float:
        renderer = self.anatomy.renderer(finest=DRAFT if size == DRAG else 0.0)
        camera, pose = self.carm.camera.resized(size, size), self.anatomy.pose_in_volume(self.carm.pose)
        with torch.no_grad():
            return seconds_of(lambda: renderer(camera, pose))


def run(turns: int, modes: list[str]) -> dict:
    """{"first": seconds, "times": {mode: {side: {kind: median ms}}}}."""
    room, times = Room(), {}
    for mode in modes:
        for (side, kind), values in room.look(mode, turns).items():
            times.setdefault(mode, {}).setdefault(side, {})[kind] = median(values)
    return {"first": room.first, "times": times}


def table(result: dict) -> list[str]:
    """Lines of Markdown."""
    kinds = list(next(iter(next(iter(result["times"].values())).values())))
    lines = [
        "| overlay | view | " + " | ".join(f"{kind} [ms]" for kind in kinds) + " |",
        "|---" * (2 + len(kinds)) + "|",
    ]
    for mode, sides in result["times"].items():
        for side, values in sides.items():
            lines.append(f"| {mode} | {side} | " + " | ".join(f"{values[kind]:.1f}" for kind in kinds) + " |")
    lines += ["", *(f"Once: {name} {seconds:.2f} s." for name, seconds in result["first"].items())]
    lines += [f"Goal: {kind} below {goal:g} ms." for kind, goal in GOALS.items()]
    return lines


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=15, help="moves from each side; default: 15")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="default: all cores")
    parser.add_argument("--json", action="store_true", help="print JSON in place of the table")
    parser.add_argument("--modes", nargs="*", default=["blend", "checkerboard", "edges", "difference"])
    options = parser.parse_args()
    use_threads(options.threads)
    result = run(options.turns, options.modes)
    print(json.dumps(result, indent=1) if options.json else "\n".join(table(result)))


if __name__ == "__main__":
    main()
