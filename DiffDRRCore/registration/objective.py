"""What is minimised at one level: how far the rendered images of all views are from the X-rays, for many motions."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from DiffDRRCore.errors import RegistrationError
from DiffDRRCore.geometry import Camera, Pose, pixel_grid, pixel_rays
from DiffDRRCore.registration.knowledge import Knowledge
from DiffDRRCore.registration.motion import Limits, MotionFrame
from DiffDRRCore.registration.options import Landmarks
from DiffDRRCore.registration.pieces import RAYS, finished, ranges
from DiffDRRCore.registration.robust import outlier_weights
from DiffDRRCore.rendering import Renderer
from DiffDRRCore.similarity import ZNCC, LeastSquaresSimilarity, Similarity
from DiffDRRCore.similarity.base import gradient

_LEAST_CURVATURE = 1e-10  # of the scaled Hessian, whose diagonal is 1: less is rounding
_LEAST_AGREEMENT = 0.05  # below this similarity the curvature says nothing of the distance to the optimum


@dataclass(frozen=True)
class View:
    """One X-ray at the size of a level.

    Attributes:
        fixed: [1, 1, H, W].  weight: [1, 1, H, W] or None.  camera: of this size.  start: the pose that motions act on.
        full_camera: of the full-size X-ray, in whose pixels landmarks are given.
        uv: [N, 2] the pixels that are compared, and `fixed` and `weight` are theirs, [1, 1, 1, N]; None is all.
    """

    fixed: Tensor
    weight: Tensor | None
    camera: Camera
    start: Pose
    full_camera: Camera
    uv: Tensor | None = None


@dataclass(frozen=True)
class Linearization:
    """The objective at B motions, and its derivatives by the xi of `MotionFrame.moved` at xi = 0; float64 on the CPU.

    Attributes:
        motion: [B, 4, 4] where.  similarity: [B] mean over views.
        cost: [B] what is minimised, prior and landmarks included; infinite where nothing is in sight.
        gradient: [B, 6] of the cost.
        hessian: [B, 6, 6], its Gauss-Newton approximation; None for measures without features.
        variance: [B] of the noise in one residual, which makes a covariance of the Hessian's inverse.
        images: of each view image [B, 1, H, W] and slopes [B, 6, H, W], where pixels are weighed by their residuals.
        weights: [B, 1, H, W] of each view's pixels, or None.
    """

    motion: Pose
    similarity: Tensor
    cost: Tensor
    gradient: Tensor
    hessian: Tensor | None
    variance: Tensor
    images: tuple[tuple[Tensor, Tensor], ...] | None = None
    weights: tuple[Tensor, ...] | None = None

    def __len__(self) -> int:
        return len(self.cost)

    def __getitem__(self, rows: Tensor | slice) -> Linearization:
        """Those of some motions, still a batch."""
        return Linearization(*(_rows(getattr(self, field.name), rows) for field in fields(self)))

    def replaced(self, rows: Tensor, other: Linearization) -> Linearization:
        """With `rows` taken from `other`, in order."""
        names = [field.name for field in fields(self)]
        return Linearization(*(_replaced(getattr(self, name), rows, getattr(other, name)) for name in names))

    def joined(self, other: Linearization) -> Linearization:
        """These motions, then the other ones."""
        names = [field.name for field in fields(self)]
        return Linearization(*(_joined(getattr(self, name), getattr(other, name)) for name in names))


class Objective:
    """The cost of motions at one level.

    Args:
        robust: "huber" or "tukey" weighs every pixel by its residual (`robust.outlier_weights`); None does not.
    """

    def __init__(
        self,
        renderer: Renderer,
        views: list[View],
        measure: Callable,
        frame: MotionFrame,
        limits: Limits,
        landmarks: Landmarks | None = None,
        robust: str | None = None,
    ):
        self.renderer, self.views, self.measure = renderer, views, measure
        self.frame, self.limits, self.robust = frame, limits, robust
        starts, cameras = [view.start for view in views], [view.full_camera for view in views]
        self.knowledge = Knowledge(frame, limits, landmarks, cameras, starts)
        self.least_squares = isinstance(measure, LeastSquaresSimilarity)
        self._starts = torch.stack([start.matrix for start in starts])
        self._targets = [measure.features(view.fixed, view.weight) for view in views] if self.least_squares else None

    def linearize(self, motion: Pose, weights: tuple[Tensor, ...] | None = None) -> Linearization:
        """Similarity, cost and derivatives at motions [B, 4, 4], from one rendering of each view.

        With `weights` of a robust linearization, pixels count as they did there; without, by their own residuals.
        """
        return finished(self.linearizing(motion, weights))

    def linearizing(
        self, motion: Pose, weights: tuple[Tensor, ...] | None = None
    ) -> Generator[None, None, Linearization]:
        """`linearize` in pieces, of which a small image has one."""
        images = []
        for view in self.views:
            images.append((yield from self._linearized(view, motion)))
        if self.robust is not None and weights is None:
            weights = self._outlier_weights(images, None)
        return (yield from self._assembled(motion, images, weights))

    def reweighted(self, at: Linearization) -> Linearization:
        """The same place with pixels weighed by the residuals there; nothing is rendered."""
        if self.robust is None:
            return at
        return finished(self._assembled(at.motion, at.images, self._outlier_weights(at.images, at.weights)))

    def similarity(self, motion: Pose) -> Tensor:
        """[B], mean over the views, from images without derivatives."""
        return finished(self.measuring(motion))

    def measuring(self, motion: Pose) -> Generator[None, None, Tensor]:
        """`similarity` in pieces."""
        scores = []
        for view in self.views:
            image = yield from self._rendered(view, motion)
            with torch.no_grad():
                scores.append(self.measure(image, view.fixed, view.weight))
        return (sum(scores) / len(scores)).double().cpu()

    def knowledge_cost(self, motion: Pose) -> Tensor:
        """[B], what prior and landmarks add to the cost; infinite where a landmark lies behind the source."""
        if self.knowledge.is_empty:
            return torch.zeros(len(motion), dtype=torch.float64)
        return _half_square(self.knowledge.residuals(motion)[0])

    @property
    def least_cost(self) -> float:
        """The cost where images agree: 0, but 1 for differences (SSD), whose best similarity is 0."""
        return 0.0 if not self.least_squares or self.measure.unit_features else 1.0

    def poses(self, motion: Pose) -> Pose:
        """The poses [V, 4, 4] of the views after one motion."""
        return Pose._rigid(motion.matrix.reshape(4, 4) @ self._starts)

    def _linearized(self, view: View, motion: Pose) -> Generator[None, None, tuple[Tensor, Tensor]]:
        """Image [B, 1, H, W] and slopes [B, 6, H, W]."""
        pose, parts = motion @ view.start, []
        for uv in _pixel_pieces(view, len(motion)):
            if parts:
                yield
            image, jacobian = self.renderer.linearize(view.camera, pose, about=self.frame.pivot, uv=uv)
            parts.append((image.flatten(2), jacobian.flatten(1, -2)))
        image, jacobian = (torch.cat(part, dim) for part, dim in zip(zip(*parts, strict=True), (2, 1), strict=True))
        shape = view.fixed.shape[-2:]
        return image.unflatten(2, shape), jacobian.unflatten(1, shape).movedim(-1, 1)

    def _rendered(self, view: View, motion: Pose) -> Generator[None, None, Tensor]:
        """Image [B, 1, H, W]."""
        pose, parts = motion @ view.start, []
        for uv in _pixel_pieces(view, len(motion)):
            if parts:
                yield
            with torch.no_grad():
                parts.append(self.renderer.trace(*pixel_rays(view.camera, pose, uv, self.renderer.volume.device)))
        return torch.cat(parts, dim=-1)[0].unflatten(-1, view.fixed.shape[-3:])

    def _assembled(self, motion: Pose, images, weights) -> Generator[None, None, Linearization]:
        """All views together, and what is known beside them."""
        parts = []
        for number, image in enumerate(images):
            parts.append((yield from self._of_view(number, *image, weights and weights[number])))
        score, gradient, hessian, squares, count = (_mean(part) for part in zip(*parts, strict=True))
        cost = 1 - score
        if not self.knowledge.is_empty:
            residuals, slopes = self.knowledge.residuals(motion)
            cost = cost + _half_square(residuals)
            gradient = gradient + (residuals[:, None] @ slopes)[:, 0]
            hessian = None if hessian is None else hessian + slopes.mT @ slopes
        variance = squares / (count * len(images) - 6).clamp(min=1)
        kept = (tuple(images), weights) if self.robust is not None else (None, None)
        return Linearization(motion, score, cost, gradient, hessian, variance, *kept)

    def _of_view(self, number: int, image: Tensor, slopes: Tensor, weight: Tensor | None):
        """Similarity [B], gradient [B, 6] and Hessian [B, 6, 6] of the cost, squared residual [B], residuals [B]."""
        view, large = self.views[number], image.numel() > RAYS
        if large:
            yield
        target = self._targets[number] if self.least_squares and weight is None else None
        if self.least_squares and target is None:
            target = self.measure.features(view.fixed, weight)
        weight = view.weight if weight is None else weight
        nothing = _nothing_in_sight(image)
        if not self.least_squares:
            score, gradient = self._by_pixel(view, image, slopes, weight)
            return score - nothing, gradient, None, torch.full_like(score, math.nan), torch.ones_like(score)
        features, tangents = self.measure.tangents(image, slopes, weight)
        if large:
            yield
        score, gradient, hessian, square = self._gauss_newton(features, tangents, target)
        if not self.measure.exact:
            if large:
                yield
            score, gradient = self._by_pixel(view, image, slopes, weight)
        count = _counted(weight, features.shape[-1], len(score))
        return score - nothing, gradient, hessian, square, count

    def _gauss_newton(self, features: Tensor, tangents: Tensor, target: Tensor) -> tuple[Tensor, ...]:
        """Similarity, gradient and Hessian of 1 - similarity, squared residual, from moments of the features.

        With features f of the rendered image and g of the X-ray, 1 - similarity is |f - g|^2 / 2 (|f - g|^2 for SSD).
        For features of length one the Hessian of -f.g is (f.g) J^T J, where g is (f.g) f and noise, because f.f = 1
        gives f.f'' = -J^T J. Plain J^T J would make steps too short by f.g, the similarity, which is small where much
        of the X-ray is not in the CT (Evangelidis and Psarakis 2008 derive the same step for image alignment).
        """
        residual = (features - target)[:, None]
        rows = torch.cat([tangents, residual, target[:, None].expand_as(residual)], dim=1)
        moments = (rows @ rows.mT).double().cpu()
        normal, slope = moments[:, :6, :6], moments[:, :6, 6]
        square, along, length = moments[:, 6, 6], moments[:, 6, 7], moments[:, 7, 7]
        if not self.measure.unit_features:
            return -square, 2 * slope, 2 * normal, 2 * square
        agreement = torch.where(
            _is_unit(length) & _is_unit(length + 2 * along + square), 1 - square / 2, along + length
        )
        unexplained = length - agreement * (2 * (along + length) - agreement * (length + 2 * along + square))
        least = agreement.clamp(min=_LEAST_AGREEMENT)
        return agreement, slope, least[:, None, None] * normal, unexplained.clamp(min=0) / least

    def _by_pixel(self, view: View, image: Tensor, slopes: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
        """Similarity [B] and the gradient [B, 6] of minus it, of any differentiable measure."""
        own = isinstance(self.measure, Similarity)
        pair = (image, view.fixed, weight)
        score, by_pixel = self.measure.gradient(*pair) if own else gradient(self.measure, *pair)
        along = (slopes.flatten(2) @ by_pixel.to(slopes).flatten(1)[..., None])[..., 0]
        return score.double().cpu(), -along.double().cpu()

    def _outlier_weights(self, images, weights) -> tuple[Tensor, ...]:
        weights = [None] * len(images) if weights is None else weights
        rows = zip(self.views, images, weights, strict=True)
        return tuple(
            outlier_weights(image, view.fixed, view.weight, old, self.robust) for view, (image, _), old in rows
        )

    def covariance(self, at: Linearization) -> Tensor:
        """[B, 6, 6] of xi: the residual's variance times the inverse of the Hessian, per rad and mm.

        The noise is taken as independent between pixels; for measures without features, the ZNCC's is given. What the
        images do not determine (depth in a parallel beam) gets a variance that is huge but finite.
        """
        return finished(self.estimating_covariance(at))

    def estimating_covariance(self, at: Linearization) -> Generator[None, None, Tensor]:
        """`covariance` in pieces."""
        if at.hessian is None:
            landmarks = self.knowledge.landmarks
            correlation = Objective(self.renderer, self.views, ZNCC(), self.frame, self.limits, landmarks)
            at = yield from correlation.linearizing(at.motion)
        diagonal = at.hessian.diagonal(dim1=-2, dim2=-1)
        scale = torch.where(diagonal > 0, diagonal, 1.0).sqrt()
        scales = scale[..., :, None] * scale[..., None, :]
        curvatures, axes = torch.linalg.eigh(at.hessian / scales)
        inverse = axes / curvatures.clamp(min=_LEAST_CURVATURE)[..., None, :] @ axes.mT
        return at.variance[..., None, None] * inverse / scales

    def check_contrast(self) -> None:
        """Raises RegistrationError where the pixels of a view that count are too few, or all equal."""
        for number, view in enumerate(self.views, start=1):
            counted = view.fixed if view.weight is None else view.fixed[view.weight > 0]
            if counted.numel() <= 6 or float(counted.max()) == float(counted.min()):
                raise RegistrationError(
                    f"Of X-ray {number}, the pixels that count at {view.camera.width} x {view.camera.height} are too "
                    "few or all equal: nothing to register to. Widen the weight, or use larger sizes."
                )

    def check_start(self) -> Generator[None, None, None]:
        """Raises RegistrationError where a view's rays miss the volume, or landmarks lie behind its source.

        In pieces, as it makes an image.
        """
        still = Pose._rigid(torch.eye(4, dtype=torch.float64)[None])
        for number, view in enumerate(self.views, start=1):
            image = yield from self._rendered(view, still)
            if float(image.max()) == 0:
                raise RegistrationError(
                    f"From the start pose of X-ray {number} no ray meets the CT: move the start closer, or check that "
                    "pose and CT are in the same coordinates (RAS, mm)."
                )
        if not self.knowledge.is_empty and not bool(torch.isfinite(self.knowledge.residuals(still)[0]).all()):
            raise RegistrationError("At the start pose a landmark lies behind the X-ray source: move the start closer.")


def _pixel_pieces(view: View, batch: int) -> Iterator[Tensor | None]:
    """Pixels [N, 2] of pieces of a view that together have no more than `RAYS` rays; None for all pixels at once."""
    count = view.fixed[0].numel()
    size = max(1, RAYS // batch)
    if count <= size:
        yield view.uv
        return
    for first, last in ranges(count, size):
        yield pixel_grid(view.camera, first, last) if view.uv is None else view.uv[first:last]


def _half_square(residuals: Tensor) -> Tensor:
    return (0.5 * residuals.square().sum(-1)).nan_to_num(nan=math.inf)


def _rows(value, rows):
    if isinstance(value, tuple):
        return tuple(_rows(item, rows) for item in value)
    return value if value is None else value[rows]


def _replaced(value, rows: Tensor, new):
    if value is None:
        return None
    if isinstance(value, tuple):
        return tuple(_replaced(item, rows, other) for item, other in zip(value, new, strict=True))
    if isinstance(value, Pose):
        return Pose._rigid(_replaced(value.matrix, rows, new.matrix))
    return value.index_copy(0, rows.to(value.device), new)


def _joined(value, other):
    if value is None:
        return None
    if isinstance(value, tuple):
        return tuple(_joined(a, b) for a, b in zip(value, other, strict=True))
    if isinstance(value, Pose):
        return Pose._rigid(torch.cat([value.matrix, other.matrix]))
    return torch.cat([value, other])


def _mean(parts: tuple[Tensor | None, ...]) -> Tensor | None:
    return None if parts[0] is None else sum(parts) / len(parts)


def _is_unit(square: Tensor) -> Tensor:
    """Whether a squared length is one but for rounding; it is zero where an image has no contrast."""
    return (square - 1).abs() < 1e-3


def _nothing_in_sight(image: Tensor) -> Tensor:
    """[B] float64: infinite where all pixels are equal, else zero."""
    least, most = image.flatten(1).aminmax(dim=1)
    return torch.where(least == most, math.inf, 0.0).double().cpu()


def _counted(weight: Tensor | None, residuals: int, batch: int) -> Tensor:
    """[B] float64, the residuals of pixels that count."""
    share = 1.0 if weight is None else (weight > 0).double().mean(dim=(-3, -2, -1)).cpu()
    return (torch.ones(batch, dtype=torch.float64) * share * residuals).round()
