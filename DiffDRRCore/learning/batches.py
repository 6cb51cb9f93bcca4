"""A batch of training images: a function of the subject and of three whole numbers, and of nothing else."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from DiffDRRCore.learning.appearance import Appearance
from DiffDRRCore.learning.augmentation import Augmentation, standardized
from DiffDRRCore.learning.draws import Draws
from DiffDRRCore.learning.subjects import Subject, clean_image
from DiffDRRCore.learning.views import Views, ViewSampler


@dataclass(frozen=True, eq=False)
class Batch:
    """Images of one subject, on its device.

    input   [B, 1, H, W] what the network sees: mean 0 and deviation 1 in the field, 0 where there is no beam
    clean   [B, 1, H, W] the plain line integrals, as `subject.renderer` gives them
    field   [B, 1, H, W] bool, where the beam is
    views   cameras [B] and poses camera_to_frame [B]
    labels  [B, L, H, W] line integrals of the subject's structures, soft; or None
    subject of which they are; after a crop, the cropped one
    """

    input: Tensor
    clean: Tensor
    field: Tensor
    views: Views
    labels: Tensor | None
    subject: Subject


def batch(
    subject: Subject,
    sampler: ViewSampler,
    appearance: Appearance,
    augmentation: Augmentation,
    seed: int,
    step: int,
    micro: int = 0,
    count: int = 16,
    labels: bool = False,
) -> Batch:
    """Make `count` images.

    Everything random depends on `seed`, `step` and `micro` (the number of the batch in the step) alone, so the same
    numbers give the same batch again, whatever was made before. Parameters are the same on all devices, noise is not.

    Args:
        labels: whether to render the subject's structures.

    Raises LearningError where hardly any view shows the subject.
    """
    with torch.no_grad():
        views = sampler.draw(subject, count, seed, step, micro)
        draws = Draws(seed, step, micro)
        areal = subject.areal(views.camera, views.pose)
        image, field = appearance(areal, views, draws.within("appearance"))
        image = augmentation(image, field, views, draws.within("augmentation"))
        structures = None
        if labels and subject.labels:
            structures = subject.renderer(views.camera, subject.to_world(views.pose), subject.labels, "soft")
        return Batch(standardized(image, field), clean_image(areal), field, views, structures, subject)
