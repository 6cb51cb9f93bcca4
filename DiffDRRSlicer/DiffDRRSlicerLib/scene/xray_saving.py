"""A C-arm's X-ray as a DICOM file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from DiffDRRCore import Pose, XRay
from DiffDRRCore.imaging.xray_dicom_writing import Technique, write_xray_dicom
from DiffDRRCore.physics.devices import device
from DiffDRRSlicerLib.scene import nodes
from DiffDRRSlicerLib.scene.carm import CArmNode
from DiffDRRSlicerLib.scene.errors import SceneError
from DiffDRRSlicerLib.scene.simulation_settings import Settings, counts_of
from DiffDRRSlicerLib.scene.xrays import core_xray


def save_dicom(path: str | Path, carm: CArmNode, ct=None) -> Path:
    """Write an X-ray with its camera and pose; returns the file, which ends in .dcm.

    A simulated X-ray is written as the counts of its detector, also where the scene shows their logarithm; as a DX
    image where it is of a radiography unit, else XA. Angles are those about the patient.

    Args:
        ct: CT volume node: transforms above it are where the patient lies. None: the world is the patient's RAS.

    Raises SceneError where there is no X-ray, or a transform above the CT is not rigid; XRayError and DiffDRRError as
    `write_xray_dicom`.
    """
    path = Path(path)
    path = path if path.suffix.lower() in (".dcm", ".dicom") else path.with_name(f"{path.name}.dcm")
    xray, to_patient = core_xray(carm), _to_patient(ct)
    image, meta = counts_of(xray.image, xray.meta)
    xray = XRay(image, xray.camera, xray.pose, meta)
    isocenter = to_patient.transform(carm.arm.isocenter.detach().double().reshape(1, 3))[0].tolist()
    kind = carm.meta.get("device")
    modality = device(kind).modality if kind and bool((xray.image == xray.image.round()).all()) else "XA"
    technique, name = technique_of(carm), "" if ct is None else ct.GetName()
    write_xray_dicom(path, xray, to_patient @ carm.pose, isocenter, name, technique=technique, modality=modality)
    return path


def technique_of(carm: CArmNode) -> Technique | None:
    """How a simulated X-ray was taken; None for another."""
    known = carm.meta.get("settings")
    if not known:
        return None
    settings, kind = Settings(**known), carm.meta.get("device")
    maker, model = (device(kind).maker, device(kind).name) if kind else ("", "")
    grid = settings.grid if settings.scatter else None
    spot = settings.focal_spot or None
    return Technique(settings.kvp, filters=settings.filters, grid=grid, focal_spot=spot, maker=maker, model=model)


def _to_patient(ct) -> Pose:
    matrix = np.eye(4) if ct is None else nodes.parent_to_world(ct)
    if not nodes.is_rigid(matrix):
        raise SceneError(
            f"The CT '{ct.GetName()}' is scaled, sheared or mirrored by a transform, so a DICOM file cannot say where "
            "the patient lies; take it out of that transform."
        )
    return Pose(torch.from_numpy(matrix)).inverse()
