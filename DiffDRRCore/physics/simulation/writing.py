"""Simulated X-rays on disk: images, DICOM runs, ground truth, each file at once or not at all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from DiffDRRCore.errors import PhysicsError
from DiffDRRCore.geometry import Pose
from DiffDRRCore.imaging.camera_file import write_camera
from DiffDRRCore.imaging.xray import XRay
from DiffDRRCore.imaging.xray_dicom_writing import write_xray_dicom, write_xray_run
from DiffDRRCore.imaging.xray_writing import write_array
from DiffDRRCore.physics.simulation.setup import Setup
from DiffDRRCore.physics.simulation.simulator import SimulatedImage

SUFFIXES = (".png", ".tif", ".nii.gz", ".nrrd", ".mha", ".dcm")
_ONLY_WHOLE = (".png", ".dcm")
_PATIENT = "simulated"
_DARK = 0.01  # of the open field: less is behind a blade


def check_suffix(suffix: str, setup: Setup) -> None:
    """Raise PhysicsError for a format that is not known, or that holds whole numbers where the pixels are none."""
    if suffix not in SUFFIXES:
        raise PhysicsError(
            f"Simulated X-rays are written as {', '.join(SUFFIXES)}, not {suffix or 'without a suffix'!r}."
        )
    if suffix in _ONLY_WHOLE and not 1 <= (setup.bits or 0) <= 16:
        raise PhysicsError(f"{suffix} holds whole numbers of up to 16 bits: give 1 to 16 bits, not {setup.bits}.")


def write_image(path: Path, image: SimulatedImage, setup: Setup, isocenter) -> None:
    """The X-ray in the format of the path's suffix, and its camera, pose and meta as <stem>.json beside it.

    isocenter: [3] RAS mm. The meta has "landmarks" as of `seen_landmarks`, where there are any.
    """
    xray = _on_cpu(image)
    if path.suffix.lower() != ".dcm":
        xray.write(path)
        return
    how = {"technique": setup.technique(), "modality": setup.modality}
    write_xray_dicom(path, xray, xray.pose, isocenter, _PATIENT, **how)
    meta = dict(xray.meta)
    write_camera(path.with_suffix(".json"), xray.camera, xray.pose, meta.pop("intensity"), meta)


def write_run(path: Path, images: Sequence[SimulatedImage], setup: Setup, isocenter) -> None:
    """X-rays of one camera as the frames of a DICOM XA run, and their camera and meta as <stem>.json beside it.

    The JSON is a camera without a pose, because each frame has its own: its meta has "poses", camera_to_world [4][4]
    of each frame, and "landmarks" of each frame where there are any; i0, seed and all parameters are those of the run.
    """
    xrays = [_on_cpu(image) for image in images]
    write_xray_run(path, xrays, isocenter, _PATIENT, technique=setup.technique())
    first = xrays[0]
    meta = {name: value for name, value in first.meta.items() if name not in ("intensity", "landmarks")}
    meta["simulation"] = {name: value for name, value in meta["simulation"].items() if name != "frame"}
    meta["poses"] = [plain(xray.pose) for xray in xrays]
    if "landmarks" in first.meta:
        meta["landmarks"] = [xray.meta["landmarks"] for xray in xrays]
    write_camera(path.with_suffix(".json"), first.camera, None, first.intensity, meta)


def _on_cpu(image: SimulatedImage) -> XRay:
    xray, landmarks = image.xray.to("cpu"), seen_landmarks(image)
    return xray.with_image(xray.image.detach(), **({"landmarks": landmarks} if landmarks else {}))


def seen_landmarks(image: SimulatedImage) -> dict[str, dict[str, Any]]:
    """{name: {"pixel": [u, v], "visible": whether}} of the landmarks.

    Visible are those between source and detector whose pixel is in the image and not behind the collimator. Points
    behind the source have no pixel: None.
    """
    if not image.landmarks:
        return {}
    xray = image.xray
    places = torch.tensor(list(xray.meta["simulation"]["landmarks"].values()), dtype=torch.float64)
    depths = xray.pose.detach().to("cpu").to(torch.float64).inverse().transform(places)[:, 2].tolist()
    lit = (image.open_field > _DARK * image.open_field.max()).cpu()
    found = {}
    for (name, pixel), mm in zip(image.landmarks.items(), depths, strict=True):
        known = all(map(math.isfinite, pixel))
        in_beam = known and 0 < mm < float(xray.camera.source_to_detector.detach()) and _is_lit(lit, pixel)
        found[name] = {"pixel": list(pixel) if known else None, "visible": in_beam}
    return found


def _is_lit(lit: Tensor, pixel: tuple[float, float]) -> bool:
    column, row = (round(x) for x in pixel)
    height, width = lit.shape
    return 0 <= row < height and 0 <= column < width and bool(lit[row, column])


def plain(pose: Pose) -> list[list[float]]:
    """camera_to_world [4][4]."""
    return pose.matrix.detach().double().tolist()


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
