"""Pose from corresponding points of the CT and the images (PnP)."""

from DiffDRRCore.registration.landmarks.fit import LandmarkFit, landmark_residuals, pose_from_landmarks

__all__ = ["LandmarkFit", "landmark_residuals", "pose_from_landmarks"]
