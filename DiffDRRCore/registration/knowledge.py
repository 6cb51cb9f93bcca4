"""What is known beside the images: a prior on the motion, and landmarks. Residuals and their derivatives."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from DiffDRRCore.geometry import Camera, Pose, project
from DiffDRRCore.geometry.se3 import hat
from DiffDRRCore.registration.motion import Limits, MotionFrame
from DiffDRRCore.registration.options import Landmarks


@dataclass(frozen=True)
class Knowledge:
    """Residuals of motions, half of whose squared sum is their cost.

    Attributes:
        cameras: of the full-size X-rays.  starts: the pose of each view that motions act on.
    """

    frame: MotionFrame
    limits: Limits
    landmarks: Landmarks | None
    cameras: list[Camera]
    starts: list[Pose]

    @property
    def is_empty(self) -> bool:
        """Whether there is neither a prior nor a landmark."""
        return self.limits.deviations is None and self.landmarks is None

    def residuals(self, motion: Pose) -> tuple[Tensor, Tensor]:
        """[B, E] and their derivatives [B, E, 6] by the xi of `MotionFrame.moved`, of motions [B]."""
        parts = [] if self.limits.deviations is None else [self._prior(motion)]
        if self.landmarks is not None:
            views = zip(self.cameras, self.starts, self.landmarks.points_2d, strict=True)
            parts += [self._of_view(motion, *view) for view in views]
        residuals, slopes = zip(*parts, strict=True)
        return torch.cat(residuals, dim=1), torch.cat(slopes, dim=1)

    def _prior(self, motion: Pose) -> tuple[Tensor, Tensor]:
        q, slope = self.frame.coordinates_and_slope(motion)
        stiffness = self.limits.stiffness.to(q)
        return stiffness * q, stiffness[:, None] * slope

    def _of_view(self, motion: Pose, camera: Camera, start: Pose, clicked: Tensor) -> tuple[Tensor, Tensor]:
        """u and v of each landmark that the view shows: projected minus clicked, in deviations.

        Moving the camera by xi moves a point X in its frame as the point itself moved by -xi would:
        dX = -w x (X - pivot) - v.
        """
        marks, shown = self.landmarks, torch.isfinite(clicked).all(-1)
        points = marks.points_3d[shown]
        uv, by_point = _projection(camera, motion @ start, points)
        arms = points - self.frame.pivot
        by_motion = torch.cat([hat(arms), -torch.eye(3, dtype=arms.dtype).expand(len(arms), 3, 3)], dim=-1)
        scale = math.sqrt(2 * marks.weight / max(1, len(points) * len(self.starts))) / marks.deviation
        return scale * (uv - clicked[shown]).flatten(1), scale * (by_point @ by_motion).flatten(1, 2)


def _projection(camera: Camera, pose: Pose, points: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels [B, N, 2] of points [N, 3], and their derivatives [B, N, 2, 3] by the points."""
    with torch.enable_grad():
        leaf = points.expand(len(pose), -1, 3).detach().clone().requires_grad_(True)
        uv = project(camera, pose, leaf)
        slopes = [torch.autograd.grad(uv[..., axis].sum(), leaf, retain_graph=True)[0] for axis in (0, 1)]
    return uv.detach(), torch.stack(slopes, dim=-2)
