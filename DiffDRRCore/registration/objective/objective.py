"""What is minimised at one level: how far the rendered images of all views are from the X-rays, at many places."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from DiffDRRCore.errors import RegistrationError
from DiffDRRCore.geometry import Pose
from DiffDRRCore.pieces import RAYS, finished
from DiffDRRCore.registration.objective.knowledge import Knowledge
from DiffDRRCore.registration.objective.linearization import Linearization
from DiffDRRCore.registration.objective.views import Images, Model, View
from DiffDRRCore.registration.problem.unknowns import State, Unknowns
from DiffDRRCore.similarity import LeastSquaresSimilarity, Similarity
from DiffDRRCore.similarity.base import gradient
from DiffDRRCore.similarity.robust import outlier_weights

_EVERY = 13  # th pixel is looked at first, where any will do
_LEAST_AGREEMENT = 0.05  # below this similarity the curvature says nothing of the distance to the optimum


class Objective:
    """The cost of states at one level.

    Args:
        models: the bodies.  views: the X-rays.  measure: the similarity.  unknowns: what states are made of.
        knowledge: what is known beside the images; None is the limits of the unknowns alone.
        robust: "huber" or "tukey" weighs every pixel by its residual (`robust.outlier_weights`); None does not.
        keeps_images: whether linearizations keep theirs, which the uncertainty is made of.
    """

    def __init__(
        self,
        models: list[Model],
        views: list[View],
        measure: Callable,
        unknowns: Unknowns,
        knowledge: Knowledge | None = None,
        robust: str | None = None,
        keeps_images: bool = False,
    ):
        self.models, self.views, self.measure, self.unknowns = models, views, measure, unknowns
        self.knowledge = Knowledge(unknowns) if knowledge is None else knowledge
        self.robust, self.keeps_images = robust, keeps_images
        self.images = Images(models, views, unknowns)
        self.least_squares = isinstance(measure, LeastSquaresSimilarity)
        self._targets = [measure.features(view.fixed, view.weight) for view in views] if self.least_squares else None

    @property
    def renderer(self):
        """Of the first body."""
        return self.models[0].renderer

    def only(self, motion: int) -> Objective:
        """The same, with all motions but one held where they are."""
        other = copy.copy(self)
        other.unknowns = self.unknowns.only(motion)
        other.images = Images(self.models, self.views, other.unknowns)
        other.knowledge = replace(self.knowledge, unknowns=other.unknowns)
        return other

    def linearize(self, state: State, weights: tuple[Tensor, ...] | None = None) -> Linearization:
        """Similarity, cost and derivatives at states [B], from one rendering of each body in each view.

        With `weights` of a robust linearization, pixels count as they did there; without, by their own residuals.
        """
        return finished(self.linearizing(state, weights))

    def linearizing(
        self, state: State, weights: tuple[Tensor, ...] | None = None
    ) -> Generator[None, None, Linearization]:
        """`linearize` in pieces, of which a small image has one."""
        images = []
        for view in self.views:
            images.append((yield from self.images.linearizing(view, state)))
        if self.robust is not None and weights is None:
            weights = self._outlier_weights(images, None)
        return (yield from self._assembled(state, images, weights))

    def reweighted(self, at: Linearization) -> Linearization:
        """The same place with pixels weighed by the residuals there; nothing is rendered."""
        if self.robust is None:
            return at
        return finished(self._assembled(at.state, at.images, self._outlier_weights(at.images, at.weights)))

    def foretelling(self, at: Linearization, state: State, xi: Tensor) -> Generator[None, None, Linearization]:
        """States a small step xi [B, P] on from `at`, by images that the slopes there foretell: nothing is rendered.

        For objectives that keep their images, or are robust.
        """
        images = [
            (image + torch.einsum("bp,bphw->bhw", xi.to(slopes), slopes)[:, None], slopes)
            for image, slopes in at.images
        ]
        return (yield from self._assembled(state, images, at.weights))

    def similarity(self, state: State) -> Tensor:
        """[B], mean over the views, from images without derivatives."""
        return finished(self.measuring(state))

    def measuring(self, state: State) -> Generator[None, None, Tensor]:
        """`similarity` in pieces."""
        images = []
        for view in self.views:
            images.append((yield from self.images.rendering(view, state)))
        return self.similarity_of(images)

    def similarity_of(self, images: Sequence[Tensor]) -> Tensor:
        """[B], mean over the views, of their images [B, 1, H, W]."""
        with torch.no_grad():
            scores = [
                self.measure(image, view.fixed, view.weight) for image, view in zip(images, self.views, strict=True)
            ]
        return self._mean(scores).double().cpu()

    def knowledge_cost(self, state: State) -> Tensor:
        """[B], what is known beside the images adds to the cost; infinite where a landmark lies behind the source."""
        if self.knowledge.is_empty:
            return torch.zeros(len(state), dtype=torch.float64)
        return _half_square(self.knowledge.residuals(state)[0])

    @property
    def least_cost(self) -> float:
        """The cost where images agree: 0, but 1 for differences (SSD), whose best similarity is 0."""
        return 0.0 if not self.least_squares or self.measure.unit_features else 1.0

    def poses(self, state: State, model: int = 0) -> Pose:
        """The poses [V, 4, 4] of the views as a body sees them, of a single candidate."""
        matrices = [self.images.poses(state, self.models[model], view).matrix[0] for view in self.views]
        return Pose._rigid(torch.stack(matrices))

    def _assembled(self, state: State, images, weights) -> Generator[None, None, Linearization]:
        """All views together, and what is known beside them."""
        parts = []
        for number, image in enumerate(images):
            parts.append((yield from self._of_view(number, *image, weights and weights[number])))
        score, gradient, hessian, squares, count = (self._mean(part) for part in zip(*parts, strict=True))
        cost = 1 - score
        if not self.knowledge.is_empty:
            residuals, slopes = self.knowledge.residuals(state)
            cost = cost + _half_square(residuals)
            gradient = gradient + (residuals[:, None] @ slopes)[:, 0]
            hessian = None if hessian is None else hessian + slopes.mT @ slopes
        free = int((~self.unknowns.locked).sum())
        variance = squares / (count * len(images) - free).clamp(min=1)
        kept = (tuple(images), weights) if self.robust is not None or self.keeps_images else (None, None)
        return Linearization(state, score, cost, gradient, hessian, variance, *kept)

    def _of_view(self, number: int, image: Tensor, slopes: Tensor, weight: Tensor | None):
        """Similarity [B], gradient [B, P] and Hessian [B, P, P] of the cost, squared residual [B], residuals [B]."""
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
        normal, slope = moments[:, :-2, :-2], moments[:, :-2, -2]
        square, along, length = moments[:, -2, -2], moments[:, -2, -1], moments[:, -1, -1]
        if not self.measure.unit_features:
            return -square, 2 * slope, 2 * normal, 2 * square
        agreement = torch.where(
            _is_unit(length) & _is_unit(length + 2 * along + square), 1 - square / 2, along + length
        )
        unexplained = length - agreement * (2 * (along + length) - agreement * (length + 2 * along + square))
        least = agreement.clamp(min=_LEAST_AGREEMENT)
        return agreement, slope, least[:, None, None] * normal, unexplained.clamp(min=0) / least

    def scores(self, view: View, image: Tensor, slopes: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
        """A view's Hessian [P, P], and what each feature contributes to its gradient, [P, M], for a single candidate.

        Of features of length one, that is what noise contributes: the X-ray's features less their part along the
        rendered ones.
        """
        features, tangents = self.measure.tangents(image, slopes, weight)
        features, tangents = features[0].double().cpu(), tangents[0].double().cpu()
        target = self.measure.features(view.fixed, weight)[0].double().cpu()
        if not self.measure.unit_features:
            return 2 * tangents @ tangents.mT, 2 * tangents * (features - target)
        agreement = float(features @ target)
        return max(agreement, _LEAST_AGREEMENT) * tangents @ tangents.mT, tangents * (agreement * features - target)

    def _by_pixel(self, view: View, image: Tensor, slopes: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
        """Similarity [B] and the gradient [B, P] of minus it, of any differentiable measure."""
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
        still = self.unknowns.start()
        for number, view in enumerate(self.views, start=1):
            if not (yield from _in_sight(self.images, view, still)):
                raise RegistrationError(
                    f"From the start pose of X-ray {number} no ray meets the CT: move the start closer, or check that "
                    "pose and CT are in the same coordinates (RAS, mm)."
                )
        yield from self._check_bodies(still)
        if not self.knowledge.is_empty and not bool(torch.isfinite(self.knowledge.residuals(still)[0]).all()):
            raise RegistrationError("At the start pose a landmark lies behind the X-ray source: move the start closer.")

    def _check_bodies(self, still: State) -> Generator[None, None, None]:
        """Raises RegistrationError for a body that is to be found, and that none of the views shows."""
        if len(self.models) == 1:
            return
        for model in self.models:
            if self.unknowns.motions[model.motion].locked:
                continue
            alone, seen = Images([model], self.views, self.unknowns), False
            for view in self.views:
                seen = seen or (yield from _in_sight(alone, view, still))
            if not seen:
                raise RegistrationError(
                    f"No view shows the body '{self.unknowns.motions[model.motion].name}' at the start: move the start "
                    "closer, or leave the body out."
                )

    def _mean(self, parts) -> Tensor | None:
        """Of the views, by their importance."""
        if parts[0] is None:
            return None
        weights = [view.importance for view in self.views]
        return sum(weight * part for weight, part in zip(weights, parts, strict=True)) / sum(weights)


def _in_sight(images: Images, view: View, state: State) -> Generator[None, None, bool]:
    """Whether any pixel of a view shows the bodies; a few rays say so most times."""
    for part in (view.some(_EVERY), view):
        if float((yield from images.rendering(part, state)).max()) > 0:
            return True
    return False


def _half_square(residuals: Tensor) -> Tensor:
    return (0.5 * residuals.square().sum(-1)).nan_to_num(nan=math.inf)


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
