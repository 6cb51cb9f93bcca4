"""A batch of training images: a function of the subject and of three whole numbers, and of nothing else."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from DiffDRRCore.learning.appearance.appearance import Appearance
from DiffDRRCore.learning.appearance.augmentation import Augmentation, standardized
from DiffDRRCore.learning.data.draws import Draws
from DiffDRRCore.learning.data.subjects import Subject, clean_image
from DiffDRRCore.learning.data.views import Views, ViewSampler


@dataclass(frozen=True, eq=False)
class Batch:
    """Images of one subject, on its device.

    input   [B, 1, H, W] what the network sees: mean 0 and deviation 1 in the field, 0 where there is no beam. Images
            of a camera that sees from the detector (K[0, 0] < 0) are flipped along the columns here, and here only: a
            network sees all images as from the source (`network.targets`, `inference.resampling`).
    clean   [B, 1, H, W] the plain line integrals, as `subject.renderer` gives them
    field   [B, 1, H, W] bool, where the beam is, in the pixels of `clean`
    views   cameras [B] and poses camera_to_frame [B]
    subject of which they are; after a crop, the cropped one
    """

    input: Tensor
    clean: Tensor
    field: Tensor
    views: Views
    subject: Subject

    def first(self, count: int) -> Batch:
        """The first `count` images."""
        kept = slice(0, count)
        return Batch(self.input[kept], self.clean[kept], self.field[kept], self.views[kept], self.subject)


def batch(
    subject: Subject,
    sampler: ViewSampler,
    appearance: Appearance,
    augmentation: Augmentation,
    seed: int,
    step: int,
    micro: int = 0,
    count: int = 16,
) -> Batch:
    """Make `count` images.

    Everything random depends on `seed`, `step` and `micro` (the number of the batch in the step) alone, so the same
    numbers give the same batch again, whatever was made before. Parameters are the same on all devices, noise is not.

    Raises LearningError where hardly any view shows the subject.
    """
    with torch.no_grad():
        views = sampler.draw(subject, count, seed, step, micro)
        draws = Draws(seed, step, micro)
        areal = subject.areal(views.camera, views.pose)
        image, field = appearance(areal, views, draws.within("appearance"))
        image = augmentation(image, field, views, draws.within("augmentation"))
        seen = standardized(image, field)
        if float(sampler.camera.K[0, 0]) < 0:
            seen = seen.flip(-1)
        return Batch(seen, clean_image(areal), field, views, subject)
