"""Training on one CT, and what it gives: `python -m Testing.benchmarks.learn`.

A network is trained for each CT on the CPU, from C-arm ranges of one clinical view, at 64 x 64 pixels, with all
augmentations, without the NCC of re-rendered images. Then views that it has not seen are taken by
`datasets.simulated.simulated_xray` (another integrator at four times the resolution, 10,000 photons a pixel, unknown
gain and offset), found by the network alone, and registered from there at 128 x 128.
With --write, puts the section "Learning" into RESULTS.md.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from tqdm import tqdm

from DiffDRRCore import Camera, Pose, register
from DiffDRRCore.datasets.phantom import phantom
from DiffDRRCore.datasets.simulated import simulated_xray
from DiffDRRCore.imaging.camera_file import camera_to_dict
from DiffDRRCore.learning import PoseModel, TrainingOptions
from DiffDRRCore.learning.training.batches import Batch, batch
from DiffDRRCore.learning.training.run_files import MODEL
from DiffDRRCore.learning.training.training import Training
from DiffDRRCore.learning.training.validation import CHI_SQUARED, squared_distances, target_errors, targets_of, validate
from Testing.benchmarks.peers import environment
from Testing.benchmarks.protocols import DATA
from Testing.benchmarks.report import machine, table, write_section
from Testing.benchmarks.timing import use_threads
from Testing.protocol.real import CT_FILES

FOLDER = environment.REPOSITORY / ".cache" / "learning"
SUCCESS = 2.0  # mm
LEARNING_RATE = 3e-3
SIZE, FIELD, SDD = 64, 400.0, 1020.0  # pixels, mm at the detector, mm
FINE = 128  # pixels of the X-rays that are registered
_UNSEEN = 777  # seed
VIEWS = {
    "primary": [-15, 15],
    "secondary": [-15, 15],
    "roll": [-5, 5],
    "shift_r": [-20, 20],
    "shift_a": [-20, 20],
    "shift_s": [-20, 20],
    "sod": [690, 730],
}


@dataclass(frozen=True)
class Found:
    """Target registration errors in mm, and seconds.

    `before` and `held_out` are medians of held-out training images, `network` and `refined` of unseen X-rays. `inside`
    is the share of 208 other held-out images whose true pose lies in the network's own 90 % ellipsoid.
    """

    before: float
    held_out: float
    inside: float
    network: list[float]
    refined: list[float]
    training_seconds: float
    processor_seconds: float
    seconds: list[float]


def options_for(path: Path, arguments: argparse.Namespace) -> TrainingOptions:
    """What is trained."""
    camera = Camera(SIZE, SIZE, (FIELD / SIZE,) * 2, SDD, view_from="detector")
    own = {"cts": [str(path)], "camera": camera_to_dict(camera), "views": VIEWS, "threads": arguments.threads}
    own |= {"steps": arguments.steps, "backbone": arguments.backbone, "validate_every": max(1, arguments.steps // 4)}
    own |= {"learning_rate": LEARNING_RATE, "losses": {"ncc": 0}, "checkpoint_every": arguments.steps}
    return TrainingOptions.from_dict(own)


def trained(name: str, path: Path, arguments: argparse.Namespace) -> tuple[Training, float, float, float]:
    """A training that has ended, the held-out error in mm before it, its seconds, and those of processors."""
    folder = FOLDER / name
    shutil.rmtree(folder, ignore_errors=True)
    training = Training(options_for(path, arguments), folder)
    before = validate(training.learner.net, training.learner.target, held_out_views(training, 64, 0)).mm
    began = time.perf_counter(), time.process_time()
    for _ in tqdm(training.steps(), name, arguments.steps, leave=False):
        pass
    return training, before, time.perf_counter() - began[0], time.process_time() - began[1]


def held_out_views(training: Training, count: int, first: int) -> list[tuple[Batch, torch.Tensor]]:
    """At least `count` images from batch `first` on (the training's own validation has those from 0 to 3)."""
    subject, size = training.subjects[0], training.options.batch
    numbers = range(first, first - (-count // size))
    return [(training.learner.held_out(subject, number), targets_of(subject)) for number in numbers]


def inside_ellipsoid(training: Training, model: PoseModel) -> float:
    """Of 208 images, the share whose error lies in the 90 % ellipsoid that the network tells."""
    found = [squared_distances(model.net, model.target, made) for made, _ in held_out_views(training, 208, 100)]
    return float((torch.cat(found) <= CHI_SQUARED).double().mean())


def found(name: str, path: Path, arguments: argparse.Namespace) -> Found:
    """Train, find unseen views, register."""
    training, before, seconds, processor = trained(name, path, arguments)
    model, volume = PoseModel.read(FOLDER / name / MODEL), training.subjects[0].volume
    points = volume_points(training)
    network, refined, spent = [], [], []
    for number, (camera, pose) in enumerate(unseen(training, arguments.views)):
        xray = simulated_xray(volume, camera, pose, seed=number)
        start = model.starts(volume, [xray])[0]
        began = time.perf_counter()
        result = register(volume, xray, start)
        spent.append(time.perf_counter() - began)
        network.append(float(target_errors(start, pose, points)))
        refined.append(float(target_errors(result.poses[0], pose, points)))
    inside = inside_ellipsoid(training, model)
    return Found(before, training.best["mm"], inside, network, refined, seconds, processor, spent)


def volume_points(training: Training) -> torch.Tensor:
    """The targets [N, 3], world mm."""
    subject = training.subjects[0]
    return subject.frame_to_world.transform(targets_of(subject))


def unseen(training: Training, count: int) -> Iterator[tuple[Camera, Pose]]:
    """Cameras of the X-rays and their poses camera_to_world, within the ranges of the training."""
    subject = training.subjects[0]
    views = training.learner.sampler.draw(subject, count, _UNSEEN)
    for pose in subject.to_world(views.pose):
        yield Camera(FINE, FINE, (FIELD / FINE,) * 2, SDD, view_from="detector"), pose


def speed(training: Training, rounds: int = 5) -> list[list[str]]:
    """ms per image of the parts of a step."""
    learner, subject = training.learner, training.subjects[0]
    count = learner.options.batch

    def images(step: int) -> None:
        batch(subject, learner.sampler, learner.appearance, learner.augmentation, 0, step, count=count)

    parts = {"a training image": images, "a whole step (images, network, losses, gradients)": learner.learn}
    rows = []
    for what, call in parts.items():
        times = []
        for step in range(1, rounds + 2):
            began = time.perf_counter()
            call(step)
            times.append((time.perf_counter() - began) / count)
        rows.append([what, f"{min(times[1:]) * 1e3:.1f}", f"{1 / min(times[1:]):.0f}"])
    return rows


def lines(results: dict[str, Found], rates: list[list[str]], arguments: argparse.Namespace) -> list[str]:
    """Markdown."""
    text = [
        "`python -m Testing.benchmarks.learn --write`. " + " ".join((__doc__ or "").split("\n\n")[1].split()),
        f"{arguments.backbone}, {arguments.steps} steps of 16 views; primary and secondary angle +-15 degrees,",
        "roll +-5, isocentre +-20 mm along each axis, source to isocentre 690 to 730 mm.",
        "Errors are medians of mTRE in mm over points of bone: of held-out images with all augmentations (untrained,",
        "held out), and of the unseen X-rays (network, refined). The ellipsoid is that of the covariance the network",
        "tells, for 208 held-out images that it was not fitted to. The machine was shared: the processor's time is",
        "what the training itself took.",
        "",
        "No GPU was at hand: nothing is said of training on one, nor of other programs, which train on GPUs only.",
        "",
    ]
    head = ["CT", "training [s]", "processor [s]", "untrained", "held out", "in the 90 % ellipsoid", "network"]
    head += ["refined", f"below {SUCCESS:g} mm", "registration [s]"]
    rows = []
    for name, one in results.items():
        good = sum(error < SUCCESS for error in one.refined)
        cells = [f"{number:.0f}" for number in (one.training_seconds, one.processor_seconds)]
        cells += [f"{one.before:.1f}", f"{one.held_out:.1f}", f"{one.inside:.0%}", f"{median(one.network):.1f}"]
        cells += [f"{median(one.refined):.2f}", f"{good} of {len(one.refined)}", f"{median(one.seconds):.2f}"]
        rows.append([name, *cells])
    text += table(head, rows)
    return [*text, *table(["part", "ms per image", "images per second"], rates)]


def main() -> None:
    """Measure, print, and write where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000, help="default: 1000")
    parser.add_argument("--views", type=int, default=20, help="unseen ones; default: 20")
    parser.add_argument("--backbone", default="resnet10", help="default: resnet10")
    parser.add_argument("--threads", type=int, default=2, help="default: 2")
    parser.add_argument("--cts", nargs="*", default=["phantom", "chest"], help="default: phantom chest")
    parser.add_argument("--write", action="store_true", help="put the tables into RESULTS.md")
    arguments = parser.parse_args()
    use_threads(arguments.threads)
    FOLDER.mkdir(parents=True, exist_ok=True)
    paths = {name: made_phantom() if name == "phantom" else DATA / CT_FILES[name] for name in arguments.cts}
    results = {name: found(name, path, arguments) for name, path in paths.items()}
    path = next(iter(paths.values()))
    shutil.rmtree(FOLDER / "speed", ignore_errors=True)
    rates = speed(Training(options_for(path, arguments), FOLDER / "speed"))
    text = [*machine(arguments.threads), *lines(results, rates, arguments)]
    print("\n".join(text))
    if arguments.write:
        write_section("Learning", text)


def made_phantom() -> Path:
    """The phantom as a file."""
    path = FOLDER / "phantom.nii.gz"
    phantom(shape=(120, 90, 105), spacing=3.2).write(path)
    return path


if __name__ == "__main__":
    main()
