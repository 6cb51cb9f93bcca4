"""Simulated X-rays by the thousand, for training: a folder that grows until it has all of them.

    generate(setup, Ranges.read("ranges.yaml"), 10000, "folder", seed=1)

The folder holds

    training_set.json    setup, ranges and seed that made it
    images.jsonl         the manifest: one JSON object a line, one line an image that is finished
    images/000000.png    (or .tif, .nii.gz, .nrrd, .dcm) and its camera, pose and meta, 000000.json
    masks/000000/        ground truth: a mask (.png) and a depth map (.nrrd, mm) for each structure and implant

A line has "number", "seed" (of the noise), "values" (what was drawn), "setup" (what these and the fixed parameters make
together: angles, kVp, dose, ...), "pose" (camera_to_world), "image", "camera", "masks" (a file for each name), "i0",
"landmarks" and "failure", None or why there is no such image. An image is written before its line, each at once or not
at all: whenever a run is killed, the same call goes on from there. Image n is the same, bit for bit, for any number of
images and workers on one kind of machine.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from DiffDRRCore import __version__
from DiffDRRCore.errors import DiffDRRError, GeometryError, PhysicsError, ReadError, RenderError
from DiffDRRCore.files import LOCK, check_folder, locked, replacing
from DiffDRRCore.geometry import Pose
from DiffDRRCore.imaging.camera_file import write_camera
from DiffDRRCore.imaging.xray_dicom_writing import write_xray_dicom
from DiffDRRCore.imaging.xray_writing import write_array
from DiffDRRCore.json_lines import JsonLines, read_lines
from DiffDRRCore.parallel import cores, in_processes, terminable, visible_gpus
from DiffDRRCore.physics.simulation.ranges import Ranges, noise_seed
from DiffDRRCore.physics.simulation.setup import Setup, check_hit
from DiffDRRCore.physics.simulation.simulator import SimulatedImage, Simulator

NAME, MANIFEST = "training_set.json", "images.jsonl"
FORMAT = "DiffDRRSlicer training set"
SUFFIXES = (".png", ".tif", ".nii.gz", ".nrrd", ".mha", ".dcm")
_REQUIRED = ("number", "failure")
_ONLY_WHOLE = (".png", ".dcm")
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
    _check(setup, count, seed, suffix, workers, threads)
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


def write_truth(folder: Path, image: SimulatedImage) -> dict[str, str]:
    """Masks (.png, 0 or 255) and depth maps (.depth.nrrd, mm from the source, 0 where there is nothing) of an image.

    Returns the mask's file for each name. Structures that no ray goes through are left out.
    """
    files: dict[str, str] = {}
    for name, mask in {**dict(image.labels), **dict(image.objects)}.items():
        if not bool(mask.any()):
            continue
        stem = _unused("".join(letter if letter.isalnum() or letter in "-_#." else "_" for letter in name), files)
        write_array(folder / f"{stem}.png", (255 * mask.cpu().numpy()).astype(np.uint8))
        depth = torch.nan_to_num(image.depth[name].float(), posinf=0.0).cpu().numpy()
        write_array(folder / f"{stem}.depth.nrrd", depth)
        files[name] = f"{stem}.png"
    return files


def _unused(stem: str, files: dict[str, str]) -> str:
    """Two names can have one file name, also where a disk does not tell small letters from capitals."""
    taken = {file.lower() for file in files.values()}
    numbered = (stem, *(f"{stem}-{number}" for number in range(2, len(files) + 3)))
    return next(one for one in numbered if f"{one}.png".lower() not in taken)


def write_image(path: Path, image: SimulatedImage, setup: Setup, isocenter) -> None:
    """The X-ray in the format of the path's suffix, and its camera, pose and meta as <stem>.json beside it."""
    xray = image.xray.to("cpu").with_image(image.xray.image.detach().cpu())
    if path.suffix.lower() != ".dcm":
        xray.write(path)
        return
    write_xray_dicom(
        path, xray, xray.pose, isocenter, "simulated", technique=setup.technique(), modality=setup.modality
    )
    meta = dict(xray.meta)
    write_camera(path.with_suffix(".json"), xray.camera, xray.pose, meta.pop("intensity"), meta)


def _make(job: _Job, left: list[int], count: int, workers: int | None, lines: JsonLines, progress) -> None:
    finished = count - len(left)
    if progress is not None:
        progress(finished, count, None)
    with closing(_outcomes(job, left, workers)) as outcomes:
        for number, line in enumerate(outcomes, start=finished + 1):
            lines.append(line)
            if progress is not None:
                progress(number, count, line)


def _outcomes(job: _Job, left: list[int], workers: int | None) -> Iterator[dict[str, Any]]:
    if workers is None:
        workers = max(1, cores() // job.threads)
    if not left:
        return
    if workers > 0:
        gpus = visible_gpus() if job.setup.device == "cuda" else ()
        yield from in_processes(_one, job, left, workers, job.threads, gpus, "images")
        return
    threads = torch.get_num_threads()
    try:
        for number in left:
            yield _one(job, number)
    finally:
        torch.set_num_threads(threads)
        _kept.clear()


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
    except (
        PhysicsError,
        GeometryError,
        RenderError,
    ) as error:  # of what was drawn: a source in the patient, nothing in the beam
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
        "pose": _plain(pose),
        "i0": image.i0,
        "landmarks": {name: list(point) for name, point in image.landmarks.items()},
        "setup": _brief(setup),
    }


def _simulator(setup: Setup) -> Simulator:
    """Of the setup, out of the last one where the voxels are the same."""
    if "simulator" not in _kept or not setup.has_volume_of(_kept["setup"]):
        _kept.pop("simulator", None)
        _kept["simulator"] = setup.simulator(setup.contrasted(_kept["volume"]))
    _kept["setup"] = setup
    return setup.changed_simulator(_kept["simulator"])


def _plain(pose: Pose) -> list[list[float]]:
    return pose.matrix.detach().double().tolist()


def _brief(setup: Setup) -> dict[str, Any]:
    """Without what is the same for all and long."""
    left_out = ("ct", "labelmap", "label_names", "series", "labels", "pose")
    return {name: value for name, value in setup.to_dict().items() if name not in left_out}


def _check(setup: Setup, count: int, seed: int, suffix: str, workers: int | None, threads: int) -> None:
    if count < 1 or seed < 0:
        raise PhysicsError(f"A training set has 1 image or more and a seed from 0, got {count} and {seed}.")
    if threads < 1 or (workers is not None and workers < 0):
        raise PhysicsError(f"Workers are 0 or more and threads 1 or more, got {workers} and {threads}.")
    check_suffix(suffix, setup)
    setup.check()


def check_suffix(suffix: str, setup: Setup) -> None:
    """Raise PhysicsError for a format that is not known, or that holds whole numbers where the pixels are none."""
    if suffix not in SUFFIXES:
        raise PhysicsError(
            f"Simulated X-rays are written as {', '.join(SUFFIXES)}, not {suffix or 'without a suffix'!r}."
        )
    if suffix in _ONLY_WHOLE and not 1 <= (setup.bits or 0) <= 16:
        raise PhysicsError(f"{suffix} holds whole numbers of up to 16 bits: give 1 to 16 bits, not {setup.bits}.")


def _claimed(job: _Job) -> JsonLines:
    """The manifest, beside training_set.json. Raises DiffDRRError where the folder holds anything else."""
    folder = Path(job.folder)
    content = {"format": FORMAT, "seed": job.seed, "suffix": job.suffix, "masks": job.masks, "threads": job.threads}
    content |= {"setup": job.setup.to_dict(), "ranges": job.ranges.to_dict()}
    content["fingerprint"] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
    path = folder / NAME
    if path.exists():
        if _fingerprint(path) != content["fingerprint"]:
            raise DiffDRRError(f"'{folder}' holds a training set of other parameters: choose another folder.")
    elif any(other.name != LOCK for other in folder.iterdir()):
        raise DiffDRRError(f"'{folder}' is not empty and holds no training set: choose another folder.")
    else:
        with replacing(path) as temporary:
            text = json.dumps(content | {"version": __version__}, indent=1)
            temporary.write_text(text + "\n", encoding="utf-8")
    return JsonLines(folder / MANIFEST, _REQUIRED, "image")


def _fingerprint(path: Path) -> str | None:
    try:
        return json.loads(path.read_text(encoding="utf-8")).get("fingerprint")
    except (OSError, ValueError, AttributeError) as error:
        raise ReadError(f"'{path}' is damaged: {error}.") from error
