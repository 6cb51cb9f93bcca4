"""Poses, cameras, C-arms and frames: the ground floor."""

from DiffDRRCore.geometry.camera import Camera
from DiffDRRCore.geometry.carm import CArm, CArmAngles
from DiffDRRCore.geometry.pose import Pose, stack_poses
from DiffDRRCore.geometry.projection import backproject, pixel_grid, pixel_rays, project
from DiffDRRCore.geometry.tensors import as_tensor
from DiffDRRCore.geometry.triangulation import Triangulation, triangulate

__all__ = [
    "CArm",
    "CArmAngles",
    "Camera",
    "Pose",
    "Triangulation",
    "as_tensor",
    "backproject",
    "pixel_grid",
    "pixel_rays",
    "project",
    "stack_poses",
    "triangulate",
]
