"""Errors of poses, for tests and reports."""

from __future__ import annotations

from DiffDRRCore.evaluation.measures import (
    DoubleGeodesic,
    TargetErrors,
    components,
    double_geodesic,
    pose_errors,
    reprojection_error,
    rotation_error,
    target_registration_error,
    translation_error,
)

__all__ = [
    "DoubleGeodesic",
    "TargetErrors",
    "components",
    "double_geodesic",
    "pose_errors",
    "reprojection_error",
    "rotation_error",
    "target_registration_error",
    "translation_error",
]
