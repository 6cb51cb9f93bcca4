"""Trials of Autoscoper (.cfg): which calibrations, folders of X-rays and volumes belong together.

Text with a key and its values in each line; # begins a comment. A mayaCam_csv (`calibration_file`) and a CameraRootDir
(a folder of numbered images: `xray_run`) for each camera, in order; for each bone a VolumeFile (a TIFF stack) with
VoxelSize x y z (mm) and VolumeFlip x y z (0 or 1: `geometry.motion_files.autoscoper`); and settings of the program.
From version 1.1 on, paths are relative to the file. (Autoscoper: Trial::parse and Trial::save.)
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from DiffDRRCore.errors import ReadError
from DiffDRRCore.files import replacing

_SETTINGS = ("FilterFolder", "TrackingFolder", "RenderResolution", "OptimizationOffsets")
_DEFAULTS = "xParameters", "Tracking", "512 512", "0.1 0.1 0.1 0.1 0.1 0.1"
_LARGEST_FILE = 1 << 16


@dataclass(frozen=True)
class TrialVolume:
    """A bone: TIFF stack, voxel size (x, y, z) in mm, and which axes Autoscoper flips."""

    path: Path
    spacing: tuple[float, float, float]
    flip: tuple[bool, bool, bool] = (False, False, False)


@dataclass(frozen=True)
class Trial:
    """Calibrations and folders of X-rays, one for each camera, and the volumes."""

    calibrations: tuple[Path, ...]
    runs: tuple[Path, ...]
    volumes: tuple[TrialVolume, ...]


def read_trial(path: str | Path) -> Trial:
    """Read a trial; its files need not be there.

    Raises ReadError: cannot be read, no camera or volume, or another number of calibrations than of folders, or of
    voxel sizes than of volumes.
    """
    path = Path(path)
    values = _values(path)
    relative = _version(path, values.get("Version", ["1.0"])[-1]) >= (1, 1)
    base = path.parent if relative else Path()
    calibrations, runs, files = (
        tuple(base / text.replace("\\", "/") for text in values.get(key, []))
        for key in ("mayaCam_csv", "CameraRootDir", "VolumeFile")
    )
    sizes, flips = values.get("VoxelSize", []), values.get("VolumeFlip", [])
    if not calibrations or len(calibrations) != len(runs):
        raise ReadError(f"'{path}' has {len(calibrations)} mayaCam_csv and {len(runs)} CameraRootDir: one per camera.")
    if not files or len(files) != len(sizes):
        raise ReadError(f"'{path}' has {len(files)} VolumeFile and {len(sizes)} VoxelSize: one per volume.")
    volumes = []
    for number, (file, size) in enumerate(zip(files, sizes, strict=True)):
        flip = _three(path, "VolumeFlip", flips[number]) if number < len(flips) else (0.0, 0.0, 0.0)
        volumes.append(TrialVolume(file, _three(path, "VoxelSize", size), tuple(bool(value) for value in flip)))
    return Trial(calibrations, runs, tuple(volumes))


def write_trial(path: str | Path, trial: Trial) -> None:
    """Write a trial of version 1.1, its paths relative to the file where they are on the same drive."""
    path = Path(path)
    settings = dict(zip(_SETTINGS, _DEFAULTS, strict=True))
    lines = ["Version 1.1", *(f"{key} {settings[key]}" for key in _SETTINGS[:2])]
    lines += [f"mayaCam_csv {_relative(file, path.parent)}" for file in trial.calibrations]
    lines += [f"CameraRootDir {_relative(folder, path.parent)}" for folder in trial.runs]
    for volume in trial.volumes:
        lines.append(f"VolumeFile {_relative(volume.path, path.parent)}")
        lines.append("VolumeFlip " + " ".join(str(int(flip)) for flip in volume.flip))
        lines.append("VoxelSize " + " ".join(repr(float(size)) for size in volume.spacing))
    lines += [f"{key} {settings[key]}" for key in _SETTINGS[2:]]
    with replacing(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")


def _values(path: Path) -> dict[str, list[str]]:
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise ReadError(f"'{path}' is no trial of Autoscoper: it is larger than 64 KiB.")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ReadError(f"Cannot read the trial '{path}': {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise ReadError(f"'{path}' is no trial of Autoscoper: it is not text.") from error
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        key, _, value = line.strip().partition(" ")
        if key and not key.startswith("#"):
            found.setdefault(key, []).append(value.strip())
    return found


def _version(path: Path, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split("."))
    except ValueError as error:
        raise ReadError(f"'{path}': the version is '{text}', not like 1.1.") from error


def _three(path: Path, key: str, text: str) -> tuple[float, float, float]:
    try:
        x, y, z = (float(part) for part in text.split())
    except ValueError as error:
        raise ReadError(f"'{path}': {key} must be three numbers, got '{text}'.") from error
    return x, y, z


def _relative(path: Path, base: Path) -> str:
    try:
        return Path(os.path.relpath(path, base)).as_posix()
    except ValueError:  # another drive
        return path.as_posix()
