"""What is in a file (CT, X-ray, camera, pose, result, network, dataset), or, without one, what this machine can do.

Lengths are in mm, angles in degrees, positions in RAS; poses are camera_to_world.

Example:
  python -m DiffDRRCore info scan.nii.gz
  python -m DiffDRRCore info ljubljana.h5 --subject 0
  python -m DiffDRRCore info --check
"""

from __future__ import annotations

import argparse
import platform
import sys
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from tqdm import tqdm

from DiffDRRCore.cli import arguments, datasets, info_training, output
from DiffDRRCore.errors import ReadError, RenderError

_PACKAGES = ("torch", "numpy", "scipy", "SimpleITK", "pydicom", "roma", "numba", "warp-lang", "matplotlib")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `info`."""
    parser.add_argument(
        "path",
        type=Path,
        nargs="?",
        help="CT or X-ray file, DICOM folder, JSON camera or result, transform, dataset (HDF5, folder, dataset.json), "
        "network (model.safetensors), folder of `train` or `register`",
    )
    parser.add_argument(
        "--check", action="store_true", help="compare each backend's images with the reference (and compile it)"
    )
    parser.add_argument("--series", help="SeriesInstanceUID, where a DICOM folder holds several")
    parser.add_argument("--subject", help="dataset: name or place (from 0) of a subject, to be described in detail")
    arguments.add_json(parser)


def run(options: argparse.Namespace) -> None:
    """Describe, report."""
    if options.check:
        check(options)
        return
    trained = options.path is not None and info_training.is_training(options.path)
    if options.path is not None and not trained and datasets.is_dataset(options.path):
        values, lines = datasets.describe(options.path, options.subject)
        output.report(values, options.json, lines)
        return
    if options.subject is not None:
        raise ReadError("--subject is for datasets: give an HDF5 file, a folder of subjects or a dataset.json.")
    values = installation() if options.path is None else describe(options.path, options.series)
    width = max(22, *map(len, values))
    output.report(values, options.json, [f"{name:{width}} {shown(value)}" for name, value in values.items()])


_LONGEST = 16  # entries of a list that are shown


def shown(value) -> str:
    """For people: six digits, long lists folded."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {shown(one)}" for name, one in value.items())
    if not isinstance(value, (list, tuple)):
        return str(value)
    parts = [shown(one) for one in value]
    folded = [*parts[:4], f"... ({len(parts)} in all)"] if len(parts) > _LONGEST else parts
    return f"[{', '.join(folded)}]"


def installation() -> dict:
    """Versions, devices, backends."""
    import torch

    from DiffDRRCore import __version__
    from DiffDRRCore.rendering.backends import choose_backend

    values = {"DiffDRRCore": __version__, "Python": platform.python_version(), "system": platform.platform()}
    for package in _PACKAGES:
        try:
            values[package] = version(package)
        except PackageNotFoundError:
            values[package] = "not installed"
    choice = choose_backend("auto", "cuda" if torch.cuda.is_available() else "cpu")
    devices = ["cpu"] + [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return values | {
        "threads": torch.get_num_threads(),
        "devices": ", ".join(devices),
        "backend": f"{choice.name} ({choice.reason.rstrip('.')})",
    }


def check(options: argparse.Namespace) -> None:
    """Compare the backends with the reference, report. Raises RenderError where one is wrong on this machine."""
    from DiffDRRCore.rendering.check import check_backends, missing_backends

    if options.path is not None:
        raise RenderError("--check looks at this installation, not at a file; leave out one of the two.")
    checks = check_backends(lambda line: tqdm.write(line, file=sys.stderr))
    rows = [
        [
            one.backend,
            one.integrator,
            *(f"{x:.1e}" for x in (one.image, one.jacobian, one.gradient)),
            f"{one.first_seconds:.1f} s",
            "ok" if one.passed else "WRONG",
        ]
        for one in checks
    ]
    head = ["backend", "integrator", "image", "jacobian", "voxel gradient", "first use", "result"]
    lines = output.table(head, rows) + [f"{name}: {reason}" for name, reason in missing_backends().items()]
    values = {"checks": [asdict(one) | {"passed": one.passed} for one in checks], "missing": missing_backends()}
    output.report(values, options.json, lines)
    if wrong := [one.backend for one in checks if not one.passed]:
        raise RenderError(f"The backend {wrong[0]!r} gives wrong images on this machine; use backend='torch'.")


def describe(path: Path, series: str | None = None) -> dict:
    """What a file holds, whichever kind it turns out to be."""
    from DiffDRRCore.registration.result import RegistrationResult

    if not path.exists():
        raise ReadError(f"'{path}' does not exist.")
    if info_training.is_training(path):
        return info_training.describe(path)
    if path.is_dir() and RegistrationResult.is_saved_at(path / "result.json"):
        path = path / "result.json"
    if path.suffix == ".json":
        return _describe_result(path) if RegistrationResult.is_saved_at(path) else _describe_camera_file(path)
    if path.suffix in (".tfm", ".h5", ".txt"):
        return {"kind": "pose", **_describe_pose(arguments.read_pose(path))}
    return _describe_xray(path) if _is_xray(path) else _describe_volume(path, series)


def _is_xray(path: Path) -> bool:
    """Planar DICOM modalities and flat picture formats; everything else is taken for a CT."""
    from DiffDRRCore.imaging.xray_reading import camera_path_beside

    if path.is_dir():
        return False
    if path.suffix.lower() in (".png", ".tif", ".tiff") or camera_path_beside(path).exists():
        return True
    import pydicom

    try:
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["Modality"])
    except (pydicom.errors.InvalidDicomError, OSError, ValueError):
        return False
    return header.get("Modality") in ("XA", "RF", "DX", "CR", "RG")


def _describe_volume(path: Path, series: str | None) -> dict:
    from DiffDRRCore import Volume

    volume = Volume.read(path, series=series)
    hu = volume.hu
    return {
        "kind": "CT",
        "size (i, j, k)": list(volume.shape[::-1]),
        "spacing (mm)": [round(x, 6) for x in volume.spacing.tolist()],
        "centre (RAS, mm)": [round(x, 3) for x in volume.center.tolist()],
        "ijk_to_ras": volume.ijk_to_ras.tolist(),
        "HU": [float(hu.min()), float(hu.max())],
    }


def _describe_xray(path: Path) -> dict:
    xray = arguments.read_xray(path)
    values = {"kind": "X-ray", **_describe_camera(xray.camera)}
    values["values"] = [float(xray.image.min()), float(xray.image.max())]
    return values | xray.meta | _describe_pose(xray.pose)


def _describe_camera_file(path: Path) -> dict:
    from DiffDRRCore.imaging.camera_file import read_camera

    content = read_camera(path)
    values = {"kind": "camera", **_describe_camera(content.camera), **content.meta, **_describe_pose(content.pose)}
    if content.distortion is not None:
        values["distortion (pixels, at most)"] = content.distortion.largest(content.camera)
    return values


def _describe_result(path: Path) -> dict:
    from DiffDRRCore.registration.result import RegistrationResult

    result = RegistrationResult.load(path)
    values = {"kind": "registration result", "converged": result.converged, "similarity": result.similarity}
    for number, pose in enumerate(result.poses, start=1):
        values |= {f"view {number}: {name}": value for name, value in _describe_pose(pose).items()}
    return values


def _describe_camera(camera) -> dict:
    return {
        "size (rows, columns)": [camera.height, camera.width],
        "source_to_detector (mm)": float(camera.source_to_detector),
        "pixel_spacing (mm)": camera.pixel_spacing.tolist(),
        "principal_point (u, v)": camera.principal_point.tolist(),
        "view_from": camera.view_from,
    }


def _describe_pose(pose) -> dict:
    from DiffDRRCore import CArm

    if pose is None:
        return {}
    angles = [round(float(angle), 4) + 0.0 for angle in CArm.angles_from(pose)]  # + 0.0: no "-0.0"
    return {"primary, secondary, roll (deg)": angles, "camera_to_world (RAS, mm)": pose.matrix.tolist()}
