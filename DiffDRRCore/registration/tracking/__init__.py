"""Sequences: bodies followed through a run of X-rays, smoothed over time, and kept in files."""

from DiffDRRCore.registration.tracking.joint_angles import joint_motion, write_joint_motion
from DiffDRRCore.registration.tracking.result import TrackingResult
from DiffDRRCore.registration.tracking.steps import Pass, TrackStep
from DiffDRRCore.registration.tracking.tracker import Tracking, track

__all__ = ["Pass", "TrackStep", "Tracking", "TrackingResult", "joint_motion", "track", "write_joint_motion"]
