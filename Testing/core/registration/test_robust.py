"""Weights of pixels by their residuals, and a registration beside an implant that the CT does not hold."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from DiffDRRCore import register
from DiffDRRCore.errors import RegistrationError
from DiffDRRCore.similarity.robust import outlier_weights
from Testing.core.registration import scene


def image_and_noisy_copy() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(2, 1, 40, 50, generator=generator, dtype=torch.float64)
    fixed = 0.7 * image[:1] + 3 + 0.01 * torch.randn(1, 1, 40, 50, generator=generator, dtype=torch.float64)
    return image, fixed


@pytest.mark.parametrize("kind", ["huber", "tukey"])
def test_weights_by_hand_where_gain_and_offset_are_known(kind):
    """One pixel in ten is spoilt; the rest says what gain, offset and noise are."""
    image, fixed = image_and_noisy_copy()
    fixed[..., ::10] += 5
    weights = outlier_weights(image[:1], fixed, None, None, kind)
    residual = ((fixed - 0.7 * image[:1] - 3) / 0.01).numpy()
    cut = np.abs(residual)
    expected = np.minimum(1, 1.345 / cut) if kind == "huber" else np.clip(1 - (residual / 4.685) ** 2, 0, None) ** 2
    good = (cut < 5)[0, 0]
    assert np.abs(weights.numpy() - expected)[0, 0][good].mean() < 0.06
    assert float(weights[..., ::10].max()) < 0.02


def test_images_of_a_batch_do_not_share_weights_and_masks_stay():
    image, fixed = image_and_noisy_copy()
    mask = torch.ones(1, 1, 40, 50, dtype=torch.float64)
    mask[..., :5, :] = 0
    weights = outlier_weights(image, fixed, mask, None, "tukey")
    assert float(weights[:, :, :5].max()) == 0
    alone = torch.cat([outlier_weights(image[row : row + 1], fixed, mask, None, "tukey") for row in (0, 1)])
    assert torch.allclose(weights, alone)
    assert float(weights[0].mean()) > 0.7


def test_equal_images_count_whole():
    image, _ = image_and_noisy_copy()
    assert torch.allclose(outlier_weights(image, image[:1], None, None, "huber")[0], torch.ones(1, 40, 50).double())


@pytest.mark.parametrize("robust", ["huber", "tukey"])
def test_an_implant_that_the_ct_does_not_hold(robust):
    """A metal plate hides a tenth of the X-ray."""
    clean = scene.xray()
    image = clean.image.clone()
    image[20:44, 38:55] = 25.0
    spoilt, start = clean.with_image(image), scene.moved(clean.pose)
    plain = register(scene.ct(), spoilt, start, sizes=scene.SIZES)
    result = register(scene.ct(), spoilt, start, sizes=scene.SIZES, robust=robust)
    found, without = (scene.error(pose, clean.pose) for pose in (result.poses[0], plain.poses[0]))
    assert without > 5
    assert found < 1.5


def test_unknown_name():
    with pytest.raises(RegistrationError, match="robust is 'huber' or 'tukey', got 'median'"):
        register(scene.ct(), scene.xray(), robust="median")
