"""What is in a file (CT, labelmap, X-ray, pose), or, without one, what this installation can do.

Example:
  python -m DiffDRRCore info scan.nii.gz
"""

from __future__ import annotations

import argparse
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from DiffDRRCore.cli import arguments, output
from DiffDRRCore.errors import DiffDRRError, ReadError

_PACKAGES = ("torch", "numpy", "scipy", "SimpleITK", "pydicom", "roma", "matplotlib")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `info`."""
    parser.add_argument(
        "path", type=Path, nargs="?", help="CT or X-ray file, DICOM folder, JSON camera or result, transform"
    )
    parser.add_argument("--series", help="SeriesInstanceUID, where a DICOM folder holds several")
    arguments.add_json(parser)


def run(options: argparse.Namespace) -> None:
    """Describe, report."""
    values = installation() if options.path is None else describe(options.path, options.series)
    output.report(values, options.json, [f"{name:22} {value}" for name, value in values.items()])


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
    devices = ["cpu"] + [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return values | {
        "threads": torch.get_num_threads(),
        "devices": ", ".join(devices),
        "backend": choose_backend("auto"),
    }


def describe(path: Path, series: str | None = None) -> dict:
    """What a file holds: a pose, a CT or an X-ray, whichever it turns out to be."""
    if not path.exists():
        raise ReadError(f"'{path}' does not exist.")
    if path.suffix in (".json", ".tfm", ".h5", ".txt"):
        return {"kind": "pose", "camera_to_world (RAS, mm)": arguments.read_pose(path).matrix.tolist()}
    try:
        return _describe_xray(path) if _is_xray(path) else _describe_volume(path, series)
    except DiffDRRError as error:
        raise ReadError(f"'{path}' is neither a CT nor an X-ray that can be used: {error}") from error


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
    from DiffDRRCore import CArm, XRay

    xray = XRay.read(path)
    values = {
        "kind": "X-ray",
        "size (rows, columns)": list(xray.image.shape),
        "source_to_detector (mm)": float(xray.camera.source_to_detector),
        "pixel_spacing (mm)": xray.camera.pixel_spacing.tolist(),
        "principal_point (u, v)": xray.camera.principal_point.tolist(),
        "view_from": xray.camera.view_from,
        "values": [float(xray.image.min()), float(xray.image.max())],
        **xray.meta,
    }
    if xray.pose is not None:
        angles = CArm.angles_from(xray.pose)
        values["primary, secondary, roll (deg)"] = [round(float(angle), 4) for angle in angles]
        values["camera_to_world (RAS, mm)"] = xray.pose.matrix.tolist()
    return values
