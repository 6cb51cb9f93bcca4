"""How sure an optimum is: a covariance from the linearised images and what they leave unexplained."""

from __future__ import annotations

from collections.abc import Generator

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from DiffDRRCore.registration.objective.linearization import Linearization
from DiffDRRCore.registration.objective.objective import Objective
from DiffDRRCore.registration.objective.views import View
from DiffDRRCore.similarity import ZNCC

WINDOW = 5  # pixels, within which residuals may go together
_LEAST_CURVATURE = 1e-10  # of the scaled Hessian, whose diagonal is 1: less is rounding


def estimating_covariance(
    objective: Objective, at: Linearization
) -> Generator[None, None, tuple[Tensor, list[Tensor]]]:
    """[P, P] of xi at the first place of `at`, per rad and mm, and the images [1, 1, H, W] there. In pieces.

    With H the Hessian and s_i what pixel i contributes to the gradient, the covariance is H^-1 M H^-1, where M is the
    sum of s_i s_j^T over pixels that are near each other: what is left of an X-ray is not only noise, independent from
    pixel to pixel and larger where less light comes through, but also shapes that the CT does not explain. Overlapping
    windows weigh pairs by Bartlett's kernel, so M is positive.
    (T. G. Conley, "GMM estimation with cross sectional dependence", Journal of Econometrics 92(1), 1999.)

    What is known beside the images counts as much as it does in the Hessian. For measures without features, the ZNCC's
    is given. What the images do not determine (depth in a parallel beam) gets a variance that is huge but finite, what
    is locked none.
    """
    if at.hessian is None:
        objective = Objective(objective.models, objective.views, ZNCC(), objective.unknowns, objective.knowledge)
        at = yield from objective.linearizing(at.state)
    at = at[:1]
    seen, noise, images = yield from _of_views(objective, at)
    inverse, unseen = _inverse(at.hessian[0])
    beside = at.variance[0] * (at.hessian[0] - seen)
    free = (~objective.unknowns.locked).double()
    covariance = inverse @ (noise + beside) @ inverse + at.variance[0] * unseen
    return covariance * free[:, None] * free, images


def _of_views(objective: Objective, at: Linearization) -> Generator[None, None, tuple[Tensor, Tensor, list[Tensor]]]:
    """[P, P] the images' part of the Hessian, M, and the images."""
    size = objective.unknowns.size
    seen, noise = torch.zeros(2, size, size, dtype=torch.float64)
    total, images = sum(view.importance for view in objective.views), []
    for number, view in enumerate(objective.views):
        kept = at.images and at.images[number]
        image, slopes = kept or (yield from objective.images.linearizing(view, at.state))
        weight = view.weight if at.weights is None else at.weights[number][:1]
        hessian, scores = objective.scores(view, image, slopes, weight)
        yield
        images.append(image)
        share = view.importance / total
        seen = seen + share * hessian
        noise = noise + share**2 * _clustered(scores, view)
        yield
    return seen, noise, images


def _clustered(scores: Tensor, view: View) -> Tensor:
    """[P, P] of scores [P, M], summed over windows where M is one or several images."""
    height, width = view.fixed.shape[-2:]
    if scores.shape[-1] % (height * width) or min(height, width) < WINDOW:
        return scores @ scores.mT
    images = scores.reshape(len(scores), -1, height, width)
    sums = avg_pool2d(images, WINDOW, stride=1, padding=WINDOW // 2) * WINDOW**2
    sums = sums.flatten(1)
    return sums @ sums.mT / WINDOW**2


def _inverse(hessian: Tensor) -> tuple[Tensor, Tensor]:
    """[P, P] the inverse in the directions that the images determine, and in those that they do not."""
    diagonal = hessian.diagonal()
    scale = torch.where(diagonal > 0, diagonal, 1.0).sqrt()
    scales = scale[:, None] * scale
    curvatures, axes = torch.linalg.eigh(hessian / scales)
    seen = curvatures > _LEAST_CURVATURE
    parts = (torch.where(which, 1 / curvatures.clamp(min=_LEAST_CURVATURE), 0.0) for which in (seen, ~seen))
    return tuple(axes * part @ axes.mT / scales for part in parts)
