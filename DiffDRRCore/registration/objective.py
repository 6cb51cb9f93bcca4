"""What is minimised at one level: how far the rendered images of all views are from the X-rays."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from DiffDRRCore.errors import RegistrationError
from DiffDRRCore.geometry import Camera, Pose
from DiffDRRCore.registration.landmarks import landmark_residuals
from DiffDRRCore.registration.motion import Limits, MotionFrame
from DiffDRRCore.registration.options import Landmarks
from DiffDRRCore.rendering import Renderer
from DiffDRRCore.similarity import ZNCC, LeastSquaresSimilarity

_LEAST_CURVATURE = 1e-10  # of the scaled Hessian, whose diagonal is 1: less is rounding
_LEAST_AGREEMENT = 0.05  # below this similarity the curvature says nothing of the distance to the optimum


@dataclass(frozen=True)
class View:
    """One X-ray at the size of a level.

    Attributes:
        fixed: [1, 1, H, W].  weight: [1, 1, H, W] or None.  camera: of this size.  start: the pose that motions act on.
        full_camera: of the full-size X-ray, in whose pixels landmarks are given.
    """

    fixed: Tensor
    weight: Tensor | None
    camera: Camera
    start: Pose
    full_camera: Camera


@dataclass(frozen=True)
class Linearization:
    """The objective and its derivatives by xi of `motion.retract(xi, about=frame.pivot)` at xi = 0, all float64.

    Attributes:
        motion: where.  similarity: mean over views.  cost: what is minimised, prior and landmarks included.
        gradient: [6] of the cost.
        hessian: [6, 6], its Gauss-Newton approximation; None for measures without features.
        variance: of the noise in one residual, which makes a covariance of the Hessian's inverse.
    """

    motion: Pose
    similarity: float
    cost: float
    gradient: Tensor
    hessian: Tensor | None
    variance: float


class Objective:
    """The cost of a motion at one level."""

    def __init__(
        self,
        renderer: Renderer,
        views: list[View],
        measure: Callable,
        frame: MotionFrame,
        limits: Limits,
        landmarks: Landmarks | None = None,
    ):
        self.renderer, self.views, self.measure = renderer, views, measure
        self.frame, self.limits, self.landmarks = frame, limits, landmarks
        self.least_squares = isinstance(measure, LeastSquaresSimilarity)
        self._targets = [measure.features(view.fixed, view.weight)[0] for view in views] if self.least_squares else None

    def linearize(self, motion: Pose) -> Linearization:
        """Similarity, cost and derivatives at a motion, from one rendering of each view."""
        images = [self._render(view, motion) for view in self.views]
        score, gradient = self._similarity(images)
        extra, extra_jacobian = self._beside_the_image(motion)
        gradient = gradient + extra_jacobian.T @ extra
        cost = 1 - score + 0.5 * float(extra @ extra)
        hessian, variance = None, math.nan
        if self.least_squares:
            terms = [self._curvature(index, *image) for index, image in enumerate(images)]
            hessian = sum(term[0] for term in terms) + extra_jacobian.T @ extra_jacobian
            variance = sum(term[1] for term in terms) / max(1, sum(term[2] for term in terms) - 6)
        if any(float(image.max()) == float(image.min()) for image, _ in images):
            cost = math.inf  # nothing in sight
        return Linearization(motion, score, cost, gradient, hessian, variance)

    @property
    def least_cost(self) -> float:
        """The cost where images agree: 0, but 1 for differences (SSD), whose best similarity is 0."""
        return 0.0 if not self.least_squares or self.measure.unit_features else 1.0

    def coordinates(self, motion: Pose) -> tuple[Tensor, Tensor]:
        """q [6] of a motion, and its derivatives [6, 6] by xi."""

        def moved(xi: Tensor) -> Tensor:
            return self.frame.coordinates(motion.retract(xi, about=self.frame.pivot))

        return self.frame.coordinates(motion), torch.autograd.functional.jacobian(moved, torch.zeros(6).double())

    def rigid_poses(self, motion: Pose) -> list[Pose]:
        """The pose of each view after the motion."""
        return [motion @ view.start for view in self.views]

    def _render(self, view: View, motion: Pose) -> tuple[Tensor, Tensor]:
        pose = motion @ view.start
        return self.renderer.linearize(view.camera, pose, about=self.frame.pivot)

    def _similarity(self, images: list[tuple[Tensor, Tensor]]) -> tuple[float, Tensor]:
        """Mean over the views, and minus its gradient by xi."""
        total, gradient = 0.0, torch.zeros(6, dtype=torch.float64)
        for view, (image, slope) in zip(self.views, images, strict=True):
            with torch.enable_grad():
                leaf = image.detach().requires_grad_(True)
                score = self.measure(leaf, view.fixed, view.weight).sum()
                (by_pixel,) = torch.autograd.grad(score, leaf)
            total += float(score.detach()) / len(self.views)
            gradient -= (by_pixel.reshape(-1) @ slope.reshape(-1, 6)).double().cpu() / len(self.views)
        return total, gradient

    def _curvature(self, index: int, image: Tensor, slope: Tensor) -> tuple[Tensor, float, int]:
        """A view's share of the Hessian [6, 6], its squared residual, and the number of residuals.

        With features f of the rendered image and g of the X-ray, 1 - similarity is |f - g|^2 / 2 (|f - g|^2 for SSD).
        For features of length one the Hessian of -f.g is (f.g) J^T J, where g is (f.g) f and noise, because f.f = 1
        gives f.f'' = -J^T J. Plain J^T J would make steps too short by f.g, the similarity, which is small where much
        of the X-ray is not in the CT (Evangelidis and Psarakis 2008 derive the same step for image alignment).
        """
        weight, target, count = self.views[index].weight, self._targets[index], len(self.views)

        def features(x: Tensor) -> Tensor:
            return self.measure.features(x, weight)[0]

        tangents = slope.movedim(-1, 0)[:, :, None]
        jacobian = torch.func.vmap(lambda v: torch.func.jvp(features, (image,), (v,))[1])(tangents).double().cpu()
        normal, found = jacobian @ jacobian.T / count, features(image)
        residuals = len(target) if weight is None else round(len(target) * float((weight > 0).double().mean()))
        if not self.measure.unit_features:
            return 2 * normal, 2 * float((found - target).square().sum()) / count, residuals
        agreement = float(found @ target)
        unexplained = float((target - agreement * found).square().sum()) / count
        agreement = max(agreement, _LEAST_AGREEMENT)
        return agreement * normal, unexplained / agreement, residuals

    def _beside_the_image(self, motion: Pose) -> tuple[Tensor, Tensor]:
        """Residuals of prior and landmarks [E], and their derivatives [E, 6]."""

        def residuals(xi: Tensor) -> Tensor:
            moved = motion.retract(xi, about=self.frame.pivot)
            return torch.cat([self.limits.residual(self.frame.coordinates(moved)), *self._landmark_terms(moved)])

        if self.limits.deviations is None and self.landmarks is None:
            return torch.zeros(0, dtype=torch.float64), torch.zeros(0, 6, dtype=torch.float64)
        zero = torch.zeros(6, dtype=torch.float64)
        return residuals(zero), torch.autograd.functional.jacobian(residuals, zero)

    def _landmark_terms(self, motion: Pose) -> list[Tensor]:
        marks = self.landmarks
        if marks is None:
            return []
        terms = []
        for view, points_2d in zip(self.views, marks.points_2d, strict=True):
            seen = torch.isfinite(points_2d).all(-1)
            pixels = landmark_residuals(view.full_camera, motion @ view.start, marks.points_3d[seen], points_2d[seen])
            count = max(1, int(seen.sum())) * len(self.views)
            terms.append(math.sqrt(2 * marks.weight / count) / marks.deviation * pixels.reshape(-1))
        return terms

    def covariance(self, at: Linearization) -> Tensor:
        """[6, 6] of xi: the residual's variance times the inverse of the Hessian, per rad and mm.

        The noise is taken as independent between pixels; for measures without features, the ZNCC's is given. What the
        images do not determine (depth in a parallel beam) gets a variance that is huge but finite.
        """
        if at.hessian is None:
            correlation = Objective(self.renderer, self.views, ZNCC(), self.frame, self.limits, self.landmarks)
            return correlation.covariance(correlation.linearize(at.motion))
        diagonal = at.hessian.diagonal()
        scale = torch.where(diagonal > 0, diagonal, 1.0).sqrt()
        curvatures, axes = torch.linalg.eigh(at.hessian / torch.outer(scale, scale))
        inverse = axes / curvatures.clamp(min=_LEAST_CURVATURE) @ axes.T
        return at.variance * inverse / torch.outer(scale, scale)

    def check_start(self, motion: Pose) -> None:
        """Raises RegistrationError where a view's rays miss the volume, or landmarks lie behind its source."""
        for number, (view, pose) in enumerate(zip(self.views, self.rigid_poses(motion), strict=True), start=1):
            with torch.no_grad():
                image = self.renderer(view.camera, pose)
            if float(image.max()) == 0:
                raise RegistrationError(
                    f"From the start pose of X-ray {number} no ray meets the CT: move the start closer, or check that "
                    "pose and CT are in the same coordinates (RAS, mm)."
                )
        if not bool(torch.isfinite(self._beside_the_image(motion)[0]).all()):
            raise RegistrationError("At the start pose a landmark lies behind the X-ray source: move the start closer.")
