"""Cameras that a registration has found, on the C-arms of the scene."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from DiffDRRCore import Camera
from DiffDRRCore.imaging.distortion import RadialDistortion
from DiffDRRCore.imaging.xray_reading import UNDISTORTED
from DiffDRRCore.registration import FoundCamera
from DiffDRRSlicerLib.scene.carm import CArmNode
from DiffDRRSlicerLib.scene.errors import SceneError
from DiffDRRSlicerLib.scene.frustum import update_frustum
from DiffDRRSlicerLib.scene.undistortion import apply_camera, check_distortion
from DiffDRRSlicerLib.scene.view_settings import view_settings
from DiffDRRSlicerLib.scene.xrays import set_camera

_SOURCE = "registration"


def check_cameras(carms: Sequence[CArmNode]) -> None:
    """Raise SceneError, before the work begins, where a camera cannot be found or its distortion not be undone."""
    for carm in carms:
        settings = view_settings(carm)
        if settings.free_camera is None:
            continue
        if carm.camera.parallel:
            raise SceneError(f"The camera of '{carm.name}' is a parallel beam, of which nothing can be found.")
        if settings.radial:
            check_distortion(carm, carm.camera, True)
            if UNDISTORTED in carm.meta:
                raise SceneError(
                    f"The distortion of '{carm.name}' is undone already: let its radial distortion be known."
                )


def apply_found(carm: CArmNode, found: FoundCamera) -> None:
    """Give a C-arm the camera that was found; a distortion of its X-ray is undone, and points stay on their pixels."""
    distortion = distortion_of(carm.camera, float(found.changes[3]))
    if distortion is not None:
        apply_camera(carm, found.camera.detached(), distortion, _SOURCE)
    elif bool(found.changes.any()):
        set_camera(carm, found.camera.detached())
        update_frustum(carm)


def distortion_of(camera: Camera, corner: float) -> RadialDistortion | None:
    """What the engine's radial number, mm at the corner, says of images of the camera that it began with.

    With arms y from the principal point in units of the corner's and e = `corner` over that in mm, the engine takes an
    observed pixel y to the ideal x = y (1 + e y^2). This is its inverse, y = x (1 + k1 x^2 + k2 x^4), nearly.
    """
    if corner == 0:
        return None
    rows, columns = (float(side) for side in camera.pixel_spacing)
    center = camera.principal_point.detach().double()
    ends = torch.tensor([[u, v] for u in (-0.5, camera.width - 0.5) for v in (-0.5, camera.height - 0.5)]).double()
    reach = float(((ends - center) * torch.tensor([columns, rows])).norm(dim=-1).max())
    y = torch.linspace(0, 1, 101, dtype=torch.float64)
    x = y * (1 + corner / reach * y**2)
    k1, k2 = torch.linalg.lstsq(torch.stack([x**3, x**5], dim=1), (y - x)[:, None]).solution[:, 0].tolist()
    return RadialDistortion((k1, k2, 0.0, 0.0), center, (reach / columns, reach / rows))


def camera_rows(name: str, found: FoundCamera) -> Iterator[tuple[str, float, str]]:
    """(quantity, value, unit) of what was found of a view's camera, with standard deviations."""
    change, deviation = _in_image(found), found.deviations.tolist()
    if deviation[0]:
        yield f"{name}: source to detector", float(found.camera.source_to_detector), "mm"
        yield f"{name}: standard deviation, source to detector", deviation[0], "mm"
    rows = (("principal point, to the right", 1), ("principal point, down", 2), ("distortion at the corner", 3))
    for what, number in rows:
        if deviation[number]:
            yield f"{name}: {what}", change[number], "mm"
            yield f"{name}: standard deviation, {what}", deviation[number], "mm"


def camera_text(found: FoundCamera) -> str:
    """The same in a line; nothing where the camera was known."""
    change, deviation = _in_image(found), found.deviations.tolist()
    parts = []
    if deviation[0]:
        parts.append(f"source to detector {float(found.camera.source_to_detector):.1f} ± {deviation[0]:.1f} mm")
    if deviation[1]:
        parts.append(f"principal point moved by {change[1]:.2f}, {change[2]:.2f} ± {max(deviation[1:3]):.2f} mm")
    if deviation[3]:
        parts.append(f"distortion {change[3]:.2f} ± {deviation[3]:.2f} mm")
    return ", ".join(parts)


def _in_image(found: FoundCamera) -> list[float]:
    """The changes, with the principal point's to the right and down in the image: the engine's are along the camera's
    axes, and an image may be seen from the other side.
    """
    sides = torch.sign(found.camera.K.detach().diagonal()[:2]).to(found.changes)
    return torch.cat([found.changes[:1], found.changes[1:3] * sides, found.changes[3:]]).tolist()
