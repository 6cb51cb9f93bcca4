"""What all similarity measures share: the call, the checks and the weighted normalisation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from DiffDRRCore.errors import DiffDRRError

IMAGE_DIMS = (-3, -2, -1)


class Similarity(ABC):
    """A measure of how alike two images are; larger is better.

    Call it with `moving` [B, 1, H, W] (the rendered images) and `fixed` [B or 1, 1, H, W] (the X-ray), and optionally
    `weight`, a boolean mask or weights >= 0 that broadcast to [B, 1, H, W]. Returns [B]. What lies where the weight is
    zero has no influence, NaN included, and only ratios of weights matter. Where every weight is zero, or an image has
    no contrast, the value and the gradient are zero. Images of 16 bit are computed, and answered, in float32.
    Raises DiffDRRError for images or weights of unsuitable shape or type.
    """

    pointwise = False
    """Whether the order of the pixels is without effect, so that some of them can stand for all."""
    local = False
    """Whether patches or edges are compared, which images of few pixels do not show."""

    @abstractmethod
    def __call__(self, moving: Tensor, fixed: Tensor, weight: Tensor | None = None) -> Tensor:
        """[B], one value per image."""

    def gradient(self, moving: Tensor, fixed: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The similarity [B] and its derivative by each pixel of `moving` [B, 1, H, W]."""
        return gradient(self, moving, fixed, weight)


class LeastSquaresSimilarity(Similarity):
    """A measure that Gauss-Newton can climb: it falls with the squared distance between feature vectors.

    `unit_features` says whether feature vectors have length one, so that the distance is that of two directions;
    `exact`, whether the squared distance of the features is 2 (1 - similarity) (for SSD: - similarity) exactly, or only
    follows it.
    """

    unit_features = True
    exact = True

    @abstractmethod
    def features(self, image: Tensor, weight: Tensor | None = None) -> Tensor:
        """[B, M] from an image [B, 1, H, W]; differentiable in the image by reverse and forward mode."""

    def tangents(self, image: Tensor, slopes: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The features [B, M], and their derivatives [B, D, M] as the image moves along each of `slopes` [B, D, H, W].

        Here by forward-mode differentiation; measures override it where a closed form is faster.
        """

        def along(slope: Tensor) -> tuple[Tensor, Tensor]:
            return torch.func.jvp(lambda x: self.features(x, weight), (image,), (slope[:, None],))

        features, tangents = torch.func.vmap(along, in_dims=1, out_dims=(None, 1))(slopes)
        return features, tangents


class FeatureCorrelation(LeastSquaresSimilarity):
    """The inner product s of unit feature vectors, so that |features(a) - features(b)|^2 = 2 (1 - s).

    The feature vector of an image without contrast is zero, and so is its similarity to any image.
    """

    def __call__(self, moving: Tensor, fixed: Tensor, weight: Tensor | None = None) -> Tensor:
        """[B]; see `Similarity`."""
        moving, fixed = checked_pair(moving, fixed)
        return (self.features(moving, weight) * self.features(fixed, weight)).sum(dim=-1)


def gradient(measure: Callable, moving: Tensor, fixed: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """The value [B] of a measure and its derivative by each pixel of `moving` [B, 1, H, W], by autograd."""
    with torch.enable_grad():
        leaf = moving.detach().requires_grad_(True)
        value = measure(leaf, fixed, weight)
        (by_pixel,) = torch.autograd.grad(value.sum(), leaf)
    return value.detach(), by_pixel


def checked(image: Tensor) -> Tensor:
    """`image` in at least float32, once its shape [B, 1, H, W] and type are seen to be right."""
    if not isinstance(image, Tensor) or image.ndim != 4 or image.shape[1] != 1 or image.numel() == 0:
        found = list(image.shape) if isinstance(image, Tensor) else type(image).__name__
        raise DiffDRRError(f"A similarity measure takes images as tensors [B, 1, H, W], got {found}.")
    if not image.is_floating_point():
        raise DiffDRRError(
            f"A similarity measure takes floating-point images, got {image.dtype}: convert with .float()."
        )
    return image.to(torch.promote_types(image.dtype, torch.float32))


def checked_pair(moving: Tensor, fixed: Tensor) -> tuple[Tensor, Tensor]:
    """Both images in their common type, once their shapes are seen to fit each other."""
    moving, fixed = checked(moving), checked(fixed)
    batches = {len(moving), len(fixed)} - {1}
    if moving.shape[-2:] != fixed.shape[-2:] or len(batches) > 1:
        raise DiffDRRError(
            f"The moving images {list(moving.shape)} and the fixed images {list(fixed.shape)} differ in size: "
            "resample one to the other, with its camera."
        )
    dtype = torch.promote_types(moving.dtype, fixed.dtype)
    return moving.to(dtype), fixed.to(dtype)


def weighted(image: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """The image, zero where the weight is, and the weights scaled to a sum of one per image; both [B, 1, H, W]."""
    image = checked(image)
    if weight is None:
        return image, torch.full_like(image, 1 / image[0].numel())
    if weight.ndim > 4 or weight.shape[-2:] != image.shape[-2:] or (weight.ndim > 2 and weight.shape[-3] != 1):
        raise DiffDRRError(
            f"The weight {list(weight.shape)} does not fit the images {list(image.shape)}: it must broadcast to them."
        )
    if weight.ndim == 4 and 1 not in (len(weight), len(image)) and len(weight) != len(image):
        raise DiffDRRError(f"There are {len(weight)} weights for {len(image)} images: give one, or one for each.")
    weight = weight.to(image)
    batch = max(len(image), len(weight) if weight.ndim == 4 else 1)
    image, weight = (x.expand(batch, 1, *image.shape[-2:]) for x in (image, weight))
    total = weight.sum(dim=IMAGE_DIMS, keepdim=True)
    return torch.where(weight > 0, image, 0), weight / torch.where(total > 0, total, 1)


def total(values: Tensor) -> Tensor:
    """The sum over each image, [B, 1, 1, 1]."""
    return values.sum(dim=IMAGE_DIMS, keepdim=True)


def divided_by_root(values: Tensor, square: Tensor, floor: Tensor | float) -> Tensor:
    """values / sqrt(square), and zero with zero gradient where square <= floor (nothing but rounding error)."""
    return values / torch.where(square > floor, square, torch.inf).sqrt()


def rounding(dtype: torch.dtype) -> float:
    """The mean square of the error that centring and filtering leave in an image of mean square one."""
    return (16 * torch.finfo(dtype).eps) ** 2


def standardized(image: Tensor, weight: Tensor) -> Tensor:
    """The image with weighted mean 0 and weighted variance 1 (weights sum to one); zero where it has no contrast."""
    centred = image - total(weight * image)
    floor = rounding(image.dtype) * total(weight * image.square())
    return divided_by_root(centred, total(weight * centred.square()), floor)


def centred(slopes: Tensor, weight: Tensor) -> Tensor:
    """[B, D, H, W] less the weighted mean of each channel (weights [B, 1, H, W] sum to one)."""
    return slopes - (weight * slopes).sum(dim=(-2, -1), keepdim=True)


def scale_to_unit(image: Tensor, weight: Tensor) -> Tensor:
    """[B, 1, 1, 1] 1 / standard deviation; zero where there is no contrast."""
    floor = rounding(image.dtype) * total(weight * image.square())
    variance = total(weight * (image - total(weight * image)).square())
    return torch.where(variance > floor, variance, torch.inf).rsqrt()


def unit_tangents(vector: Tensor, slopes: Tensor, floor: Tensor | float) -> tuple[Tensor, Tensor]:
    """The unit vector f [B, M] of `vector` v, and its derivatives [B, D, M] as v moves along `slopes` [B, D, M].

    df = (I - f f^T) dv / |v|; both are zero where |v|^2 <= floor (nothing but rounding error).
    """
    square = vector.square().sum(dim=-1, keepdim=True)
    scale = torch.where(square > floor, square, torch.inf).rsqrt()
    unit, moved = vector * scale, slopes * scale[..., None]
    along = moved @ unit[..., None]
    return unit, torch.baddbmm(moved, along, unit[:, None], alpha=-1)
