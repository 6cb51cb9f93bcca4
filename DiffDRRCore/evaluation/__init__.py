"""Errors of poses, for tests and reports."""

from __future__ import annotations

from DiffDRRCore.evaluation.measures import (
    EXTRA_MEASURES,
    DoubleGeodesic,
    RotationErrors,
    TargetErrors,
    components,
    diffpose_target_registration_error,
    double_geodesic,
    pose_errors,
    reprojection_error,
    rotation_components,
    rotation_error,
    target_registration_error,
    translation_error,
    xvr_target_registration_error,
)

__all__ = [
    "EXTRA_MEASURES",
    "DoubleGeodesic",
    "RotationErrors",
    "TargetErrors",
    "components",
    "diffpose_target_registration_error",
    "double_geodesic",
    "pose_errors",
    "reprojection_error",
    "rotation_components",
    "rotation_error",
    "target_registration_error",
    "translation_error",
    "xvr_target_registration_error",
]
