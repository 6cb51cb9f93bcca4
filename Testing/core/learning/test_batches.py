from __future__ import annotations

import pytest
import torch

from DiffDRRCore import Renderer
from DiffDRRCore.errors import LearningError
from DiffDRRCore.learning.appearance.appearance import Appearance
from DiffDRRCore.learning.appearance.augmentation import Augmentation
from DiffDRRCore.learning.data.subjects import Subject
from DiffDRRCore.learning.data.views import ViewSampler
from DiffDRRCore.learning.training.batches import Batch, batch
from Testing.core.learning import scene
from Testing.core.learning.scene import small

COUNT = 5


def made(seed: int = 0, step: int = 0, micro: int = 0, **options) -> Batch:
    parts = scene.subject(), scene.sampler(), Appearance.from_dict(), Augmentation.from_dict()
    return batch(*parts, seed, step, micro, **{"count": COUNT, **options})


def tensors(one: Batch) -> list[torch.Tensor]:
    return [one.input, one.clean, one.field, one.views.camera.K, one.views.pose.matrix]


def test_a_batch_is_made_again_bit_by_bit_whatever_was_made_before():
    first = made(3, 4, 1)
    made(3, 5, 1), torch.rand(7)
    for a, b in zip(tensors(first), tensors(made(3, 4, 1)), strict=True):
        assert torch.equal(a, b)
    for numbers in ((4, 4, 1), (3, 5, 1), (3, 4, 0)):
        other = made(*numbers)
        assert not torch.equal(other.views.pose.matrix, first.views.pose.matrix)
        assert not torch.equal(other.input, first.input)


def test_what_the_network_sees_is_standardized_and_the_truth_is_plain():
    one = made()
    assert one.input.shape == one.clean.shape == one.field.shape == (COUNT, 1, 32, 32)
    assert one.input.dtype == torch.float32
    assert bool((one.input[~one.field] == 0).all())
    for image, field in zip(one.input, one.field, strict=True):
        assert float(image[field].mean()) == pytest.approx(0, abs=1e-4)
        assert float(image[field].std(correction=0)) == pytest.approx(1, abs=1e-3)
    plain = Renderer(scene.ct())(one.views.camera, scene.subject().to_world(one.views.pose))
    torch.testing.assert_close(one.clean, plain, rtol=2e-3, atol=2e-3)
    assert not one.input.requires_grad


def test_images_show_what_the_truth_shows():
    """Without augmentation, what is seen follows the line integrals."""
    parts = scene.subject(), scene.sampler(), Appearance.from_dict({"blades": None, "aperture": None}), Augmentation({})
    one = batch(*parts, 0, 0, count=8)
    for image, clean in zip(one.input.flatten(1), one.clean.flatten(1), strict=True):
        assert float(torch.corrcoef(torch.stack([image, clean]))[0, 1]) > 0.8


def test_a_ct_without_anything_to_see():
    sampler = ViewSampler.from_dict({"sod": 600}, scene.camera())
    with pytest.raises(LearningError, match="Hardly any view"):
        batch(Subject(small(-1000.0)), sampler, Appearance.from_dict(), Augmentation.from_dict(), 0, 0)
