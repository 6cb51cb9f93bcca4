"""DiffDRRCore: lay a CT over an X-ray. Differentiable X-ray rendering and 2D/3D registration on torch.

The world is the patient's RAS in mm; a pose is `camera_to_world`; pixel (u, v) is (column, row) with integer centres.
The names below load on first use, so that importing this package costs nothing.
"""

from __future__ import annotations

from DiffDRRCore.lazy import lazy

__version__ = "0.1.0"

_HOMES = {
    "geometry.camera": ("Camera",),
    "geometry.carm": ("CArm",),
    "geometry.pose": ("Pose",),
    "geometry.projection": ("project", "backproject"),
    "imaging.volume": ("Volume",),
    "imaging.xray": ("XRay",),
    "rendering.renderer": ("Renderer",),
    "registration.engine": ("register", "Registration"),
    "registration.result": ("RegistrationResult",),
    "registration.landmarks": ("pose_from_landmarks",),
    "errors": ("DiffDRRError", "DiffDRRWarning"),
}

__all__, __getattr__, __dir__ = lazy(__name__, _HOMES)
