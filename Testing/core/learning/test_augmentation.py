from __future__ import annotations

import math

import pytest
import torch

from DiffDRRCore import Camera, CArm
from DiffDRRCore.errors import LearningError
from DiffDRRCore.learning.appearance.augmentation import (
    DEFAULTS,
    Augmentation,
    cylinders,
    standardized,
    stretched,
    tools,
)
from DiffDRRCore.learning.appearance.equalization import equalized
from DiffDRRCore.learning.data.draws import Draws
from DiffDRRCore.learning.data.views import Views
from DiffDRRCore.physics.display import clahe
from Testing.core.learning import scene

STEPS = [name for name in DEFAULTS if name != "tools"]


def image(count: int = 6, side: int = 40) -> torch.Tensor:
    """Something smooth with a gradient, an edge and a little noise."""
    y, x = torch.linspace(-1, 1, side)[:, None], torch.linspace(-1, 1, side)
    scale = torch.linspace(1, 2, count)[:, None, None]
    noise = torch.randn(count, side, side, generator=torch.Generator().manual_seed(0))
    return (scale * (2 + x + 0.5 * y + (x.square() + y.square() < 0.3)) + 0.02 * noise)[:, None]


def disc(count: int = 6, side: int = 40) -> torch.Tensor:
    y, x = torch.linspace(-1, 1, side)[:, None], torch.linspace(-1, 1, side)
    return (x.square() + y.square() < 0.9).expand(count, 1, side, side)


def some_views(count: int, spacing: float = 2.0, side: int = 40, sod: float = 500.0) -> Views:
    one = torch.ones(count, dtype=torch.float64)
    camera = Camera(side, side, torch.full((count, 2), spacing, dtype=torch.float64), 1000.0 * one)
    return Views(camera, CArm(1000.0, sod, (0, 0, 0), primary=10 * one).pose)


def test_standardized_images_have_mean_0_and_deviation_1_in_the_field_and_0_outside():
    field, made = disc(), standardized(image(), disc())
    assert bool((made[~field] == 0).all())
    for one, inside in zip(made, field, strict=True):
        assert float(one[inside].mean()) == pytest.approx(0, abs=1e-5)
        assert float(one[inside].std(correction=0)) == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(standardized(3 * image() + 5, field), made, atol=1e-4, rtol=0)
    assert not standardized(torch.full((1, 1, 8, 8), 3.0), torch.ones(1, 1, 8, 8, dtype=torch.bool)).any()
    assert not standardized(image(1), torch.zeros(1, 1, 40, 40, dtype=torch.bool)).any()


def test_stretched_images_fill_0_to_1_over_the_field_and_ignore_single_pixels_far_away():
    flat, inside = image()[:, 0], disc()[:, 0]
    made = stretched(flat, inside)
    assert float(made.amin()) == 0
    assert float(made.amax()) == 1
    outlier = flat.clone()
    outlier[:, 20, 20] = 1000.0
    outlier[:, 0, 0] = -1000.0  # beyond the field
    assert float(stretched(outlier, inside)[0].max()) == 1
    assert float(stretched(outlier, torch.ones_like(inside)).min()) == 0


@pytest.mark.parametrize(("tiles", "clip"), [(1, 64.0), (1, 2.0), (4, 2.5), (4, 1.0)])
def test_equalisation_is_that_of_the_display(tiles, clip):
    flat = stretched(image(3)[:, 0], torch.ones(3, 40, 40, dtype=torch.bool))
    made = equalized(flat, torch.ones_like(flat, dtype=torch.bool), torch.full((3,), clip), tiles, 64)
    torch.testing.assert_close(made, clahe((tiles, tiles), clip, 64)(flat), atol=1e-3, rtol=0)


def test_equalisation_counts_the_field_alone_and_each_image_for_itself():
    inside = disc(4)[:, 0]
    flat = stretched(image(4)[:, 0], inside)
    clip = torch.tensor([64.0, 64.0, 2.0, 1.0])
    made = equalized(flat, inside, clip)
    values = made[0][inside[0]].sort().values
    torch.testing.assert_close(values, torch.linspace(0, 1, len(values)), atol=0.03, rtol=0)
    for n in range(4):
        torch.testing.assert_close(equalized(flat[n : n + 1], inside[n : n + 1], clip[n : n + 1])[0], made[n])


def test_tools_are_one_to_three_wires_and_screws_of_steel():
    """Of 8 mm and 1 per mm at most; they look larger the nearer they are to the source."""
    near, far = (tools(some_views(200, 4.0, 48, sod), (48, 48), Draws(0), torch.zeros(1)) for sod in (400, 900))
    assert near.shape == (200, 48, 48)
    assert bool((near >= 0).all())
    assert 8.0 < float(near.max()) <= 24.0
    assert float((near.flatten(1).amax(dim=1) > 0.1).double().mean()) > 0.8  # the others' ends miss the pixels
    assert float((near > 0).double().mean()) > 1.3 * float((far > 0).double().mean())


@pytest.mark.parametrize(("radius", "degrees"), [(0.3, 0.0), (0.3, 25.0), (4.0, 90.0), (6.5, 40.0)])
def test_a_cylinder_has_its_volume_and_place(radius, degrees):
    """Lengths add up to pi r^2 times its length; in pixels of 1, where a thin one is averaged."""
    numbers = (torch.tensor([one], dtype=torch.float64) for one in (radius, 70.0, 60.0, math.radians(degrees), 40.0))
    made = cylinders(*numbers, (128, 128))[0]
    assert float(made.sum()) == pytest.approx(math.pi * radius**2 * 80, rel=0.02)
    assert float(made.max()) <= 2 * radius
    y, x = torch.meshgrid(*(torch.arange(128, dtype=torch.float64),) * 2, indexing="ij")
    assert [float((one * made).sum() / made.sum()) for one in (x, y)] == pytest.approx([70, 60], abs=0.1)
    spread = [float(((one - c).square() * made).sum() / made.sum()) for one, c in ((x, 70), (y, 60))]
    assert spread[0] - spread[1] == pytest.approx(
        (80**2 / 12 - radius**2 / 4) * math.cos(math.radians(2 * degrees)), abs=12
    )


@pytest.mark.parametrize("name", STEPS)
def test_each_step_changes_some_images_and_leaves_others(name):
    count = 60
    flat, field = image(1, 24).expand(count, 1, 24, 24), torch.ones(count, 1, 24, 24, dtype=torch.bool)
    made = Augmentation({name: 0.5})(flat, field, some_views(count, side=24), Draws(4))
    plain = stretched(flat[:, 0], field[:, 0])[:, None]
    changed = (made - plain).abs().flatten(1).amax(dim=1) > 1e-6
    assert float(changed.double().mean()) == pytest.approx(0.5, abs=0.25)
    assert bool(torch.isfinite(made).all())
    assert torch.equal(made[~changed], plain[~changed])
    assert len({tuple(one.flatten().tolist()) for one in made[changed]}) > (1 if name in FIXED else 10) - 1


FIXED = ("inversion", "equalization")


def test_inverted_images_are_negatives_and_gamma_keeps_the_order():
    flat, field, views = image(), disc(), some_views(6)
    plain = stretched(flat[:, 0], field[:, 0])[:, None]
    torch.testing.assert_close(Augmentation({"inversion": 1.0})(flat, field, views, Draws(0)), 1 - plain)
    curved = Augmentation({"gamma": 1.0, "sigmoid": 1.0})(flat, field, views, Draws(0))
    for a, b in zip(plain.flatten(1), curved.flatten(1), strict=True):
        assert bool((b[a.argsort()].diff() >= -1e-6).all())


def test_nothing_is_done_where_nothing_is_asked_for():
    assert torch.equal(Augmentation({})(image(), disc(), some_views(6), Draws(0)), image())


def test_all_together_are_the_same_for_the_same_numbers():
    everything = Augmentation(dict.fromkeys(DEFAULTS, 1.0))
    flat, field, views = image(), disc(), some_views(6)
    first, again, other = (everything(flat, field, views, Draws(n)) for n in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert bool(torch.isfinite(first).all())
    assert torch.equal(flat, image())


def test_erased_parts_have_one_value_each():
    flat = image(20, 40)
    made = Augmentation({"erasing": 1.0})(flat, torch.ones_like(flat, dtype=torch.bool), some_views(20), Draws(0))
    plain = stretched(flat[:, 0], torch.ones(20, 40, 40, dtype=torch.bool))[:, None]
    for before, after in zip(plain, made, strict=True):
        changed = before != after
        assert 1 <= len(after[changed].unique()) <= 3
        assert float(changed.double().mean()) < 3 * 0.09 + 0.02


@pytest.mark.parametrize("content", [{"blurry": 0.5}, {"gamma": 1.5}, {"gamma": -0.1}])
def test_probabilities_that_cannot_be(content):
    with pytest.raises(LearningError, match="probability"):
        Augmentation.from_dict(content)


def test_what_is_left_out_has_its_default():
    assert Augmentation.from_dict({"gamma": 0.0}).probabilities == {**DEFAULTS, "gamma": 0.0}
    assert scene.views(1).camera.width == 32
