"""Our volume, camera and pose in the files and numbers that the peers take."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from DiffDRRCore import Camera, Pose, Volume
from DiffDRRCore.geometry.converters import lps_to_ras, to_diffdrr, to_nanodrr, to_rtk

VOLUME_FILE = "attenuation.mha"


def write_volume(volume: Volume, folder: Path) -> Path:
    """The attenuation (1/mm, float32) as a MetaImage whose axes run along +L, +P, +S: one file for all peers."""
    values, spacing, origin = along_lps(volume.attenuation.numpy(), volume.ijk_to_ras.numpy())
    image = sitk.GetImageFromArray(np.ascontiguousarray(values, dtype=np.float32))
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(origin.tolist())
    path = folder / VOLUME_FILE
    sitk.WriteImage(image, str(path))
    return path


def along_lps(values: np.ndarray, ijk_to_ras: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """[K, J, I] turned round so that i, j, k grow along +L, +P, +S; spacing (x, y, z) and LPS origin in mm.

    Raises ValueError for a grid whose axes are not the patient's: turning that round would take interpolation.
    """
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ ijk_to_ras
    steps = np.diag(affine)[:3].copy()
    if np.abs(affine[:3, :3] - np.diag(steps)).max() > 1e-6:
        raise ValueError("The peers' file needs a volume whose i, j, k run along the patient's x, y, z axes.")
    origin = affine[:3, 3].copy()
    for axis in np.flatnonzero(steps < 0):
        origin[axis] += steps[axis] * (values.shape[2 - axis] - 1)
        values = np.flip(values, 2 - axis)
    return values, np.abs(steps), origin


def view(camera: Camera, pose: Pose, center) -> dict:
    """One image in every peer's numbers, ready for JSON; `center`: RAS mm of the middle of the grid (`Volume.center`).

    The camera's image is seen from the source.
    """
    row_mm, col_mm = camera.pixel_spacing.tolist()
    diffdrr = asdict(to_diffdrr(camera, pose, "AP", center))
    k_inv, rt_inv, sdd = to_nanodrr(camera, pose)
    return {
        "height": camera.height,
        "width": camera.width,
        "spacing": [row_mm, col_mm],
        "rtk": asdict(to_rtk(camera.flipped(), pose)),
        "plastimatch": plastimatch_view(camera, pose, center),
        "diffdrr": {**diffdrr, "matrix": diffdrr["matrix"].tolist()},
        "nanodrr": {"k_inv": k_inv.tolist(), "rt_inv": rt_inv.tolist(), "sdd": float(sdd)},
    }


def plastimatch_view(camera: Camera, pose: Pose, center) -> dict[str, list[float]]:
    """Options of `plastimatch drr`: nrm (from detector to source), vup (to the image's top row), isocenter; LPS, mm.

    The isocentre is the point of the central ray level with `center`, and sad its distance from the source.
    """
    beam, source = pose.rotation[:, 2], pose.translation
    sad = float((center.to(source) - source) @ beam)
    u0, v0 = camera.principal_point.tolist()
    row_mm, col_mm = camera.pixel_spacing.tolist()
    return {
        "nrm": lps_to_ras(-beam).tolist(),
        "vup": lps_to_ras(-pose.rotation[:, 1]).tolist(),
        "isocenter": lps_to_ras(source + sad * beam).tolist(),
        "sad": [sad],
        "sid": [float(camera.source_to_detector)],
        "dim": [camera.height, camera.width],
        "detector-size": [camera.height * row_mm, camera.width * col_mm],
        "image-center": [v0, u0],
    }
