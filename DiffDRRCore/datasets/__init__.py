"""Synthetic data: an anatomy-like CT and shapes with known line integrals."""

from __future__ import annotations

from DiffDRRCore.datasets.phantom import phantom, phantom_landmarks
from DiffDRRCore.datasets.shapes import Box, Cylinder, Shape, Sphere, voxelize

__all__ = ["Box", "Cylinder", "Shape", "Sphere", "phantom", "phantom_landmarks", "voxelize"]
