"""How long a registration in the scene keeps the event loop waiting: `python -m Testing.benchmarks.responsiveness`.

Each piece of `SceneRegistration.steps()` is timed, preparation included, from a CT that was never rendered. Given are
wall-clock times, and processor times, which say the same on a machine that others use too (with one thread:
OMP_NUM_THREADS=1, the time that one core needs). Registered is everything, and the structures of a labelmap alone: that
beside the CT's file (mask.nii.gz), or else what is denser than 200 HU.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "DiffDRRSlicer"))
import DiffDRRSlicerLib  # noqa: F401, I001  # before torch, as in Slicer: it says how threads wait
import numpy as np
import slicer
import slicer.util
import torch

from DiffDRRCore import CArm, Volume
from DiffDRRCore.datasets.simulated import simulated_xray
from DiffDRRSlicerLib.scene import accuracy, anatomy, nodes
from DiffDRRSlicerLib.scene.registration import SceneRegistration
from DiffDRRSlicerLib.scene.xrays import add_xray
from Testing.protocol.real import CT_FILES

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"

AWAY = (0.06, -0.05, 0.07, 8.0, -6.0, 15.0)  # rad and mm, about the CT's centre
FIELD = 400.0  # mm of detector
BONE = 200.0  # HU


def make_scene(path: str, size: int):
    """(scene, Anatomy with structures, C-arm) of a CT on disk, and an X-ray of it that is some centimetres off."""
    mask = Path(path).parent / "mask.nii.gz"
    volume = Volume.read(path, mask if mask.is_file() else None)
    arm = CArm(1020.0, 850.0, volume.center)
    camera = arm.camera(size, size, (FIELD / size, FIELD / size))
    image = simulated_xray(volume, camera, arm.pose, oversampling=2)
    scene = slicer.vtkMRMLScene()
    ct = nodes.add_node(scene, "vtkMRMLScalarVolumeNode", "CT")
    nodes.set_image(ct, volume.hu.numpy().astype(np.int16), volume.ijk_to_ras.numpy())
    labels = nodes.add_node(scene, "vtkMRMLLabelMapVolumeNode", "structures")
    numbers = volume.hu > BONE if volume.labels is None else volume.labels
    nodes.set_image(labels, numbers.numpy().astype(np.int16), volume.ijk_to_ras.numpy())
    start = arm.pose.retract(torch.tensor(AWAY).double(), about=volume.center)
    carm = add_xray(scene, image.image, camera, start, image.meta, source_to_isocenter=850.0)
    reference = nodes.add_node(scene, "vtkMRMLLinearTransformNode", "true pose")
    nodes.set_transform_to_world(reference, arm.pose.matrix.numpy())
    carm.refer("reference", reference)
    return scene, anatomy.Anatomy(ct, labels), carm


def timed(registration: SceneRegistration) -> list[tuple[float, float, str]]:
    """(wall ms, processor ms, text before the piece) of each piece."""
    rows, steps, text = [], registration.steps(), "Starting"
    while True:
        wall, processor = time.perf_counter(), time.process_time()
        progress = next(steps, None)
        rows.append(((time.perf_counter() - wall) * 1e3, (time.process_time() - processor) * 1e3, text))
        if progress is None:
            return rows
        text = progress.text


def report(name: str, rows: list[tuple[float, float, str]], registration: SceneRegistration) -> None:
    """A line of the distribution, and the longest pieces."""
    for column, clock in enumerate(("wall", "processor")):
        times = [row[column] for row in rows]
        print(
            f"{name}: {len(rows)} pieces, {sum(times) / 1e3:.2f} s, {clock} ms: median {statistics.median(times):.1f}, "
            f"largest {max(times):.1f}, {sum(value > 100 for value in times)} above 100"
        )
    for wall, processor, text in sorted(rows, key=lambda row: -row[1])[:4]:
        print(f"    {wall:7.1f} wall {processor:7.1f} processor   after: {text}")
    errors = accuracy.reference_errors(registration.carms[0], registration.anatomy)
    print(f"    in plane {errors['mtre_in_plane_mm']:.3f} mm, depth {errors['mtre_depth_mm']:.3f} mm")
    print(f"    deviations {[float(f'{value:.2g}') for value in registration.outcome.deviations]}")
    print(f"    warnings: {registration.outcome.warnings or 'none'}")


def main() -> None:
    """Fast, accurate and structures, each twice: a CT that is new, and one that was registered before."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ct", default=DATA / CT_FILES["chest"], help="file; default: the shared data's chest CT")
    parser.add_argument("--size", type=int, default=512, help="of the X-ray in pixels; default: 512")
    parser.add_argument("--presets", nargs="*", default=["fast", "accurate"], help="default: fast accurate")
    arguments = parser.parse_args()
    _scene, subject, carm = make_scene(arguments.ct, arguments.size)
    start = carm.pose
    names = list(subject.structures.values())
    everything = anatomy.Anatomy(subject.ct)
    for preset, what in itertools.product(arguments.presets, ("everything", "structures")):
        anatomy.forget()
        for state in ("new CT", "again"):
            carm.pose = start
            chosen = (everything, None) if what == "everything" else (subject, names)
            registration = SceneRegistration(chosen[0], carm, preset, structures=chosen[1])
            report(f"{preset}, {what}, {state}", timed(registration), registration)


if __name__ == "__main__":
    main()
