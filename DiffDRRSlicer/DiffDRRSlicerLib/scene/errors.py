"""Errors of what is in the scene."""

from __future__ import annotations

from DiffDRRCore.errors import DiffDRRError


class SceneError(DiffDRRError, ValueError):
    """A node cannot be used for what was asked; the message says why and what to do."""
