"""What is known beside the images: limits, landmarks, and how bodies stand to each other. Residuals and derivatives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from DiffDRRCore.geometry import Camera, Pose, as_tensor, project
from DiffDRRCore.geometry.se3 import hat
from DiffDRRCore.registration.objective.views import Model, View
from DiffDRRCore.registration.problem import lens as lenses
from DiffDRRCore.registration.problem.bodies import Joint
from DiffDRRCore.registration.problem.motion import MotionFrame, carried_slope, in_radians
from DiffDRRCore.registration.problem.options import Landmarks
from DiffDRRCore.registration.problem.unknowns import State, Unknowns

_Term = tuple[Tensor, Tensor]  # residuals [B, E] and their derivatives [B, E, P]


@dataclass(frozen=True)
class Knowledge:
    """Residuals of states, half of whose squared sum is their cost.

    Attributes:
        models, views: those of the objective; landmarks are given in the pixels of the views' full cameras.
        owners: for each landmark the number of its body among the models.
        joints: with the numbers of their bodies among the models.
    """

    unknowns: Unknowns
    models: Sequence[Model] = ()
    views: Sequence[View] = ()
    landmarks: Landmarks | None = None
    owners: Sequence[int] = ()
    joints: Sequence[tuple[Joint, int, int]] = ()

    @property
    def is_empty(self) -> bool:
        """Whether there is neither a prior nor a landmark."""
        return self.landmarks is None and not self.joints and not bool(self.unknowns.stiffness.any())

    def residuals(self, state: State) -> _Term:
        """[B, E] and their derivatives [B, E, P] by the xi of `Unknowns.moved`, at states [B]."""
        parts = [self._prior(state)] if bool(self.unknowns.stiffness.any()) else []
        for joint, first, second in self.joints:
            parts.append(self._of_joint(state, joint, self.models[first], self.models[second]))
        if self.landmarks is not None:
            for view, clicked in zip(self.views, self.landmarks.points_2d, strict=True):
                parts += self._of_view(state, view, clicked)
        residuals, slopes = zip(*parts, strict=True)
        return torch.cat(residuals, dim=1), torch.cat(slopes, dim=1) * (~self.unknowns.locked)

    def _prior(self, state: State) -> _Term:
        q, slope = self.unknowns.coordinates_and_slope(state)
        told = self.unknowns.stiffness > 0
        stiffness = self.unknowns.stiffness[told]
        return stiffness * q[:, told], stiffness[:, None] * slope[:, told]

    def _of_joint(self, state: State, joint: Joint, first: Model, second: Model) -> _Term:
        """With A and B the C-arms' motions as two bodies see them, the second moves by A B^-1 as the first sees it."""
        one, other = (_whole(state, model) for model in (first, second))
        pivots = [self.unknowns.frame.pivot[model.motion] for model in (first, second)]
        relative, frame = one @ other.inverse(), _frame_of(joint, pivots)
        q, by_xi = frame.coordinates_and_slope(relative)
        still = Pose._rigid(torch.eye(4, dtype=torch.float64).expand(len(state), 4, 4))
        slope = q.new_zeros(len(state), 6, self.unknowns.size)
        slope[..., _columns(first)] = by_xi @ carried_slope(still, frame.pivot, pivots[0])
        slope[..., _columns(second)] = -by_xi @ carried_slope(relative, frame.pivot, pivots[1])
        return _of_relation(joint, q, slope)

    def _of_view(self, state: State, view: View, clicked: Tensor) -> list[_Term]:
        """u and v of each landmark that the view shows: projected minus clicked, in deviations."""
        marks, shown = self.landmarks, torch.isfinite(clicked).all(-1)
        scale = math.sqrt(2 * marks.weight / max(1, int(shown.sum()) * len(self.views))) / marks.deviation
        owners = torch.tensor(self.owners or [0] * len(shown))
        terms = []
        for number in sorted(set(owners[shown].tolist())):
            rows = shown & (owners == number)
            term = self._of_body(state, view, self.models[number], marks.points_3d[rows], clicked[rows])
            terms.append((scale * term[0], scale * term[1]))
        return terms

    def _of_body(self, state: State, view: View, model: Model, points: Tensor, clicked: Tensor) -> _Term:
        """Moving the camera by xi moves a point X in its frame as the point itself moved by -xi would:
        dX = -w x (X - pivot) - v.
        """
        pivot, whole = self.unknowns.frame.pivot, _whole(state, model)
        own = view.start if view.motion is None else state.motion(view.motion) @ view.start
        uv, by_point = _projection(view.full_camera, whole @ own, points)
        arms = points - pivot[model.motion]
        by_motion = by_point @ torch.cat([hat(arms), -torch.eye(3, dtype=arms.dtype).expand(len(arms), 3, 3)], dim=-1)
        slope = uv.new_zeros(*uv.shape, self.unknowns.size)
        slope[..., _columns(model)] = by_motion
        if view.motion is not None:
            carried = carried_slope(whole, pivot[model.motion], pivot[view.motion])
            slope[..., 6 * view.motion : 6 * view.motion + 6] = by_motion @ carried[:, None]
        if view.lens is not None:
            cut = 6 * len(self.unknowns.motions) + lenses.COUNT * view.number
            lens = lenses.Lens(view.full_camera)
            clicked, by_number = lens.seen(state.cameras[:, view.number], clicked)
            slope[..., cut : cut + lenses.COUNT] = -by_number
        return (uv - clicked).flatten(1), slope.flatten(1, 2)


def _of_relation(joint: Joint, q: Tensor, slope: Tensor) -> _Term:
    """A deviation's worth for each deviation, and for each degree or mm beyond a bound."""
    weight, parts = math.sqrt(2 * joint.weight), []
    if joint.deviations is not None:
        stiffness = weight / in_radians(joint.deviations, math.inf)
        parts.append((stiffness * q, stiffness[:, None] * slope))
    if joint.bounds is not None:
        beyond = q.abs() - in_radians(joint.bounds, math.inf)
        stiffness = weight / in_radians((1.0,) * 6, math.inf)
        outside = (beyond > 0).double() * q.sign() * stiffness
        parts.append((outside.abs() * beyond.clamp(min=0), outside[..., None] * slope))
    residuals, slopes = zip(*parts, strict=True)
    return torch.cat(residuals, dim=1), torch.cat(slopes, dim=1)


def _frame_of(joint: Joint, pivots: Sequence[Tensor]) -> MotionFrame:
    center = sum(pivots) / 2 if joint.center is None else as_tensor(joint.center).double()
    axes = torch.eye(3, dtype=torch.float64) if joint.axes is None else as_tensor(joint.axes).double()
    return MotionFrame(center, axes)


def _whole(state: State, model: Model) -> Pose:
    """[B, 4, 4] the C-arms' motion as the body sees it."""
    return state.motion(model.motion) @ model.start


def _columns(model: Model) -> slice:
    return slice(6 * model.motion, 6 * model.motion + 6)


def _projection(camera: Camera, pose: Pose, points: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels [B, N, 2] of points [N, 3], and their derivatives [B, N, 2, 3] by the points."""
    with torch.enable_grad():
        leaf = points.expand(len(pose), -1, 3).detach().clone().requires_grad_(True)
        uv = project(camera, pose, leaf)
        slopes = [torch.autograd.grad(uv[..., axis].sum(), leaf, retain_graph=True)[0] for axis in (0, 1)]
    return uv.detach(), torch.stack(slopes, dim=-2)
