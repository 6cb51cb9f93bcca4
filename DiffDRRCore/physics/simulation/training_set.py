"""Simulated X-rays by the thousand, for training: a folder that grows until it has all of them.

    generate(setup, Ranges.read("ranges.yaml"), 10000, "folder", seed=1)

The folder holds

    training_set.json    setup, ranges and seed that made it
    images.jsonl         the manifest: one JSON object a line, one line an image that is finished
    images/000000.png    (or .tif, .nii.gz, .nrrd, .dcm) and its camera, pose and meta, 000000.json
    masks/000000/        ground truth: a mask (.png) and a depth map (.nrrd, mm) for each structure and implant

A line has "number", "seed" (of the noise), "values" (what was drawn), "setup" (what these and the fixed parameters make
together: angles, kVp, dose, ...), "pose" (camera_to_world), "image", "camera", "masks" (a file for each name), "i0",
"landmarks" ({name: {"pixel": [u, v], "visible": whether}}) and "failure", None or why there is no such image. An image
is written before its line, each at once or not at all: whenever a run is killed, the same call goes on from there.
Image n is the same, bit for bit, for any number of images and workers on one kind of machine.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from DiffDRRCore import __version__
from DiffDRRCore.errors import DiffDRRError, GeometryError, PhysicsError, ReadError, RenderError
from DiffDRRCore.files import LOCK, check_folder, locked, remove_leftovers, replacing
from DiffDRRCore.json_lines import JsonLines, read_lines
from DiffDRRCore.parallel import check_numbers, outcomes, terminable
from DiffDRRCore.physics.simulation.ranges import Ranges, noise_seed
from DiffDRRCore.physics.simulation.setup import Setup, check_hit
from DiffDRRCore.physics.simulation.simulator import Simulator
from DiffDRRCore.physics.simulation.writing import (
    SUFFIXES,
    check_suffix,
    plain,
    seen_landmarks,
    write_image,
    write_truth,
)

__all__ = ["SUFFIXES", "check_suffix", "generate", "read_manifest", "write_image", "write_truth"]

NAME, MANIFEST = "training_set.json", "images.jsonl"
FORMAT = "DiffDRRSlicer training set"
_REQUIRED = ("number", "failure")
_OF_WHAT_WAS_DRAWN = (PhysicsError, GeometryError, RenderError)  # a source in the patient, nothing in the beam
Progress = Callable[[int, int, "dict[str, Any] | None"], None]


@dataclass(frozen=True)
class _Job:
    setup: Setup
    ranges: Ranges
    folder: str
    seed: int
    suffix: str
    masks: bool
    threads: int


def generate(
    setup: Setup,
    ranges: Ranges,
    count: int,
    folder: str | Path,
    seed: int = 0,
    suffix: str = ".png",
    masks: bool = False,
    workers: int | None = None,
    threads: int = 1,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Make the images 0 to `count` - 1 that `folder` does not hold yet; returns the manifest's lines in order.

    A script calls it under `if __name__ == "__main__":`, because worker processes import the script again.

    Args:
        setup: what all images have in common.
        ranges: what varies.
        seed: of everything random; a whole number from 0.
        suffix: format of the images, one of `SUFFIXES`.
        masks: whether to write ground truth.
        workers: processes; None is cores / threads, 0 is this process itself.
        threads: of each worker.
        progress: called as progress(finished, all, line), with None as the line before the first.

    Raises:
        PhysicsError: bad numbers, a suffix that the setup's pixels do not fit.
        DiffDRRError: the folder holds another set, cannot be written to or is in use by another run, the disk is full,
            a worker died.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, with the number of finished images. They are kept in any case.
    """
    check_numbers(workers, threads)
    _check(setup, ranges, count, seed, suffix)
    folder = Path(folder)
    job = _Job(setup, ranges, str(folder), int(seed), suffix, masks, threads)
    check_folder(folder)
    with terminable(), locked(folder), _claimed(job) as lines:
        done = {line["number"] for line in lines.done}
        left = [number for number in range(count) if number not in done]
        try:
            _make(job, left, count, workers, lines, progress)
        except KeyboardInterrupt:
            message = f"interrupted: {len(lines.done)} of {count} images are finished and kept in '{folder}'"
            raise KeyboardInterrupt(f"{message}; the same command goes on from there") from None
        return sorted((line for line in lines.done if line["number"] < count), key=lambda line: line["number"])


def read_manifest(folder: str | Path) -> list[dict[str, Any]]:
    """The lines of a training set that are finished, by number. Raises ReadError where there are none."""
    return sorted(read_lines(Path(folder) / MANIFEST, _REQUIRED), key=lambda line: line["number"])


def _make(job: _Job, left: list[int], count: int, workers: int | None, lines: JsonLines, progress) -> None:
    finished = count - len(left)
    if progress is not None:
        progress(finished, count, None)
    finished_lines = outcomes(_one, job, left, workers, job.threads, job.setup.device, "images", _kept.clear)
    with closing(finished_lines):
        for number, line in enumerate(finished_lines, start=finished + 1):
            lines.append(line)
            if progress is not None:
                progress(number, count, line)


_kept: dict[str, Any] = {}  # of this process: the job, its volume, the last simulator and its setup


def _one(job: _Job, number: int) -> dict[str, Any]:
    """One image and its line. The numbers depend on nothing that ran before it."""
    torch.set_num_threads(job.threads)
    values = job.ranges.values(job.seed, number)
    line = {"number": number, "seed": noise_seed(job.seed, number), "values": values, "failure": None}
    if _kept.get("job") != job:
        _kept.clear()
        _kept.update(job=job, volume=job.setup.with_values({"bone_contrast": 1.0}).volume())
    try:
        with torch.no_grad():
            return line | _written(job, job.setup.with_values(values), number, line["seed"])
    except _OF_WHAT_WAS_DRAWN as error:
        return line | {"failure": str(error)}


def _written(job: _Job, setup: Setup, number: int, seed: int) -> dict[str, Any]:
    simulator, volume = _simulator(setup), _kept["volume"]
    camera, pose = setup.camera_model(), setup.camera_pose(volume)
    image = simulator(camera, pose, seed)
    check_hit(image)
    folder, stem = Path(job.folder), f"{number:06d}"
    path = folder / "images" / f"{stem}{job.suffix}"
    write_image(path, image, setup, setup.center(volume))
    seen = write_truth(folder / "masks" / stem, image) if job.masks else {}
    return {
        "image": f"images/{path.name}",
        "camera": f"images/{stem}.json",
        "masks": {name: f"masks/{stem}/{file}" for name, file in seen.items()},
        "pose": plain(pose),
        "i0": image.i0,
        "landmarks": seen_landmarks(image),
        "setup": _brief(setup),
    }


def _simulator(setup: Setup) -> Simulator:
    """Of the setup, out of the last one where the voxels are the same."""
    if "simulator" not in _kept or not setup.has_volume_of(_kept["setup"]):
        _kept.pop("simulator", None)
        _kept["simulator"] = setup.simulator(setup.contrasted(_kept["volume"]))
    _kept["setup"] = setup
    return setup.applied(_kept["simulator"], setup.camera_model())


def _brief(setup: Setup) -> dict[str, Any]:
    """Without what is the same for all and long."""
    left_out = ("ct", "labelmap", "label_names", "series", "labels", "pose", "landmarks")
    return {name: value for name, value in setup.to_dict().items() if name not in left_out}


def _check(setup: Setup, ranges: Ranges, count: int, seed: int, suffix: str) -> None:
    if count < 1 or seed < 0:
        raise PhysicsError(f"A training set has 1 image or more and a seed from 0, got {count} and {seed}.")
    check_suffix(suffix, setup)
    if "kvp" in ranges.of and not setup.has_tube:
        raise PhysicsError("A beam of one's own has no kVp that could vary: leave kvp out of the ranges.")
    fixed = {"dose": "photons", "photons": "dose"}
    for name in ranges.of.keys() & fixed.keys():
        if getattr(setup, fixed[name]) is not None or fixed[name] in ranges.of:
            raise PhysicsError("An exposure is either photons per pixel or air kerma in uGy: give or vary one of them.")
    setup.check()


def _claimed(job: _Job) -> JsonLines:
    """The manifest, beside training_set.json. Raises DiffDRRError where the folder holds anything else."""
    folder = Path(job.folder)
    content = {"format": FORMAT, "seed": job.seed, "suffix": job.suffix, "masks": job.masks, "threads": job.threads}
    content |= {"setup": job.setup.to_dict(), "ranges": job.ranges.to_dict()}
    content["fingerprint"] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
    path = folder / NAME
    remove_leftovers(folder, NAME)
    if path.exists():
        if _fingerprint(path) != content["fingerprint"]:
            raise DiffDRRError(f"'{folder}' holds a training set of other parameters: choose another folder.")
    elif any(other.name != LOCK for other in folder.iterdir()):
        raise DiffDRRError(f"'{folder}' is not empty and holds no training set: choose another folder.")
    else:
        with replacing(path) as temporary:
            text = json.dumps(content | {"version": __version__}, indent=1)
            temporary.write_text(text + "\n", encoding="utf-8")
    for place in (folder, folder / "images", *(folder / "masks").glob("*")):  # of a run that was killed
        remove_leftovers(place)
    return JsonLines(folder / MANIFEST, _REQUIRED, "image")


def _fingerprint(path: Path) -> str | None:
    try:
        return json.loads(path.read_text(encoding="utf-8")).get("fingerprint")
    except (OSError, ValueError, AttributeError) as error:
        raise ReadError(f"'{path}' is damaged: {error}.") from error
