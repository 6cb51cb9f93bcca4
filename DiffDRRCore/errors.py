"""The exceptions and the warning of DiffDRRCore.

Each message is one sentence for the person in front of the screen: what is wrong, and what to do about it. Code that
shows messages (command line, Slicer panel) catches `DiffDRRError`; anything else that escapes is a defect of ours.
"""

from __future__ import annotations

from collections.abc import Iterable


class DiffDRRError(Exception):
    """Root of the family."""


class GeometryError(DiffDRRError, ValueError):
    """A pose, camera, C-arm or matrix is not what it must be."""


class ReadError(DiffDRRError, ValueError):
    """A file, folder or header cannot be used."""


class MissingGeometryError(ReadError):
    """A file lacks values that the geometry needs; `missing` names them."""

    def __init__(self, message: str, missing: Iterable[str] = ()):
        super().__init__(message)
        self.missing = tuple(missing)


class VolumeError(DiffDRRError, ValueError):
    """A CT volume or labelmap is unusable."""


class XRayError(DiffDRRError, ValueError):
    """An X-ray image is unusable."""


class RenderError(DiffDRRError, ValueError):
    """A rendering was asked for that cannot be made."""


class PhysicsError(DiffDRRError, ValueError):
    """A spectrum, material, detector or dose is not what it must be."""


class RegistrationError(DiffDRRError, ValueError):
    """A registration cannot start from what it was given."""


class CalibrationError(DiffDRRError, ValueError):
    """A camera cannot be calibrated from what was given."""


class LearningError(DiffDRRError, ValueError):
    """A network cannot be trained, read or used as asked."""


class DiffDRRWarning(UserWarning):
    """Something was read or decided that the user should know of, though work goes on."""
