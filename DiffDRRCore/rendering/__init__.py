"""Rendering: the integrators, their backends, and the `Renderer` that everyone calls."""

from DiffDRRCore.rendering.renderer import Renderer

__all__ = ["Renderer"]
