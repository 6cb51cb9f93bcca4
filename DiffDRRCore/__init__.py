"""DiffDRRCore: lay a CT over an X-ray. Differentiable X-ray rendering and 2D/3D registration on torch.

The world is the patient's RAS in mm; a pose is `camera_to_world`; pixel (u, v) is (column, row) with integer centres.
The names below load on first use, so that importing this package costs nothing.
"""

from __future__ import annotations

from importlib import import_module

__version__ = "0.1.0"

_HOMES = {
    "Camera": "geometry.camera",
    "CArm": "geometry.carm",
    "Pose": "geometry.pose",
    "project": "geometry.projection",
    "backproject": "geometry.projection",
    "Volume": "imaging.volume",
    "XRay": "imaging.xray",
    "Renderer": "rendering.renderer",
    "register": "registration.engine",
    "Registration": "registration.engine",
    "RegistrationResult": "registration.result",
    "pose_from_landmarks": "registration.landmarks",
    "DiffDRRError": "errors",
    "DiffDRRWarning": "errors",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'DiffDRRCore' has no attribute {name!r}")
    value = getattr(import_module(f"DiffDRRCore.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
