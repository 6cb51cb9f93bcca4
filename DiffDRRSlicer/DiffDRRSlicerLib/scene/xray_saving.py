"""A C-arm's X-ray, or its sweep, as a DICOM file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from DiffDRRCore import Camera, Pose, XRay
from DiffDRRCore.imaging.xray_dicom_writing import Technique, write_xray_dicom, write_xray_run
from DiffDRRCore.physics.devices import device
from DiffDRRSlicerLib.scene import nodes, sweeps
from DiffDRRSlicerLib.scene.carm import CArmNode
from DiffDRRSlicerLib.scene.errors import SceneError
from DiffDRRSlicerLib.scene.simulation_settings import Settings, counts_of
from DiffDRRSlicerLib.scene.xrays import core_xray


def save_dicom(path: str | Path, carm: CArmNode, ct=None, whole_sweep: bool = True) -> Path:
    """Write an X-ray with its camera and pose; returns the file, which ends in .dcm.

    A sweep becomes one run (XA) with the angles of each frame. A simulated X-ray is written as the counts of its
    detector, also where the scene shows their logarithm; a single one as a DX image where it is of a radiography unit,
    else XA. Angles are those about the patient, with the C-arm as far from the true pose as it is now.

    Args:
        ct: CT volume node: transforms above it are where the patient lies. None: the world is the patient's RAS.
        whole_sweep: False writes of a sweep the X-ray that is shown.

    Raises SceneError where there is no X-ray, or a transform above the CT is not rigid; XRayError and DiffDRRError as
    `write_xray_dicom` and `write_xray_run`: a run has one roll and one distance to the isocentre.
    """
    path = Path(path)
    path = path if path.suffix.lower() in (".dcm", ".dicom") else path.with_name(f"{path.name}.dcm")
    to_patient, sweep = _to_patient(ct), sweeps.find_sweep(carm) if whole_sweep else None
    isocenter = to_patient.transform(carm.arm.isocenter.detach().double().reshape(1, 3))[0].tolist()
    options = {"isocenter": isocenter, "patient": "" if ct is None else ct.GetName(), "technique": technique_of(carm)}
    shown = _as_counts(core_xray(carm), to_patient)
    if sweep is None:
        kind = carm.meta.get("device")
        modality = device(kind).modality if kind and bool((shown.image == shown.image.round()).all()) else "XA"
        write_xray_dicom(path, shown, shown.pose, modality=modality, **options)
    else:
        frames = [_as_counts(one, to_patient) for one in sweeps.frames(carm, sweep)]
        write_xray_run(path, frames, frame_time=1000 / sweep.browser.GetPlaybackRateFps(), **options)
    return path


def technique_of(carm: CArmNode) -> Technique | None:
    """How a simulated X-ray was taken; None for another."""
    known = carm.meta.get("settings")
    if not known:
        return None
    settings, kind = Settings.kept(known), carm.meta.get("device")
    maker, model = (device(kind).maker, device(kind).name) if kind else ("", "")
    kvp, filters = (settings.kvp, dict(settings.filtration)) if settings.has_tube else (None, {})
    grid = settings.grid if settings.scatter else None
    own = {"maker": maker, "model": model, **_collimator(settings, carm.camera)}
    return Technique(kvp, filters=filters, grid=grid, focal_spot=settings.focal_spot or None, **own)


def _collimator(settings: Settings, camera: Camera) -> dict[str, tuple[float, ...] | None]:
    """Blades and round field in pixels of the image."""
    row, column = camera.pixel_spacing.detach().tolist()
    blades, radius = settings.collimator, settings.aperture
    if blades is not None:
        blades = tuple(mm / step for mm, step in zip(blades, (row, row, column, column), strict=True))
    middle = ((camera.height - 1) / 2, (camera.width - 1) / 2)
    return {"blades": blades, "aperture": None if radius is None else (*middle, radius / column)}


def _as_counts(xray: XRay, to_patient: Pose) -> XRay:
    image, meta = counts_of(xray.image, xray.meta)
    return XRay(image, xray.camera, to_patient @ xray.pose, meta)


def _to_patient(ct) -> Pose:
    matrix = np.eye(4) if ct is None else nodes.parent_to_world(ct)
    if not nodes.is_rigid(matrix):
        raise SceneError(
            f"The CT '{ct.GetName()}' is scaled, sheared or mirrored by a transform, so a DICOM file cannot say where "
            "the patient lies; take it out of that transform."
        )
    return Pose(torch.from_numpy(matrix)).inverse()
