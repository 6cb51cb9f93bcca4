"""The display's steps against their formulas, CLAHE against its properties."""

from __future__ import annotations

import math

import pytest
import torch

from DiffDRRCore.errors import PhysicsError
from DiffDRRCore.physics.display import (
    Display,
    clahe,
    gamma,
    invert,
    line_integral,
    lookup,
    min_max,
    sigmoid,
    to_uint8,
    to_uint16,
    window,
)


def _random(*shape, seed=1):
    return torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_line_integrals_are_those_of_beer_and_lambert():
    depth = torch.tensor([[0.0, 1.0, 3.5]], dtype=torch.float64)
    torch.testing.assert_close(line_integral(2000.0)(2000 * torch.exp(-depth)), depth)
    assert float(line_integral(1.0)(torch.zeros(1, 1))) == pytest.approx(math.log(1e4))


def test_a_window_is_that_of_dicom():
    image = torch.tensor([0.0, 1.0, 2.0, 4.0, 9.0])
    assert window(3.0, 4.0)(image).tolist() == pytest.approx([0, 0, 0.25, 0.75, 1])
    ramp = torch.arange(1001.0)
    automatic = window(quantiles=(0.1, 0.9))(ramp)
    assert float(automatic[100]) == 0 and float(automatic[900]) == 1
    assert float(automatic[500]) == pytest.approx(0.5, abs=1e-3)


def test_gamma_sigmoid_table_and_inversion():
    x = torch.tensor([0.0, 0.25, 0.5, 1.0], dtype=torch.float64)
    assert gamma(0.5)(x).tolist() == pytest.approx([0, 0.5, math.sqrt(0.5), 1])
    assert invert(x).tolist() == [1, 0.75, 0.5, 0]
    s = sigmoid(slope=6.0)(x).tolist()
    raw = [1 / (1 + math.exp(-6 * (v - 0.5))) for v in x.tolist()]
    assert s == pytest.approx([(r - raw[0]) / (raw[-1] - raw[0]) for r in raw])
    assert lookup([0.0, 1.0, 0.5])(x).tolist() == pytest.approx([0, 0.5, 1, 0.5])


def test_min_max_is_deepdrrs_and_relative():
    image = 5 + 3 * _random(20, 20)
    shown = Display.deepdrr()(image)
    integral = -(image / image.max()).log()
    torch.testing.assert_close(
        shown, (integral - integral.min()) / (integral.max() - integral.min()), atol=1e-3, rtol=0
    )
    torch.testing.assert_close(Display.deepdrr()(image * 1000), shown)
    assert min_max(torch.full((3, 3), 4.0)).unique().tolist() == [0.5]


def test_displays_end_in_zero_to_one_with_the_right_polarity():
    depth = torch.linspace(0, 5, 4096, dtype=torch.float64).reshape(64, 64)
    image = 3e4 * torch.exp(-depth)
    for display, rising in ((Display.fluoroscopy(3e4), False), (Display.radiograph(3e4), True)):
        shown = display(image)
        assert 0 <= float(shown.min()) < 0.1 and 0.9 < float(shown.max()) <= 1
        assert (float(shown[60, 5]) > float(shown[3, 5])) == rising
    slopes = Display.fluoroscopy()(image).flatten().diff()
    assert float(slopes.max()) <= 1e-12
    assert Display(lambda x: 3 * x - 1)(torch.tensor([[0.0, 0.5, 1.0]])).tolist() == [[0, 0.5, 1]]


def test_integers_are_rounded():
    x = torch.tensor([-1.0, 0.0, 0.5, 1.0, 2.0])
    assert to_uint8(x).tolist() == [0, 0, 128, 255, 255] and to_uint8(x).dtype == torch.uint8
    assert to_uint16(x).tolist() == [0, 0, 32768, 65535, 65535] and to_uint16(x).dtype == torch.uint16


def test_clahe_of_one_tile_without_a_limit_is_the_cumulated_histogram():
    image = _random(100, 100) ** 3
    found = clahe((1, 1), clip=1e9)(image)
    counts = torch.histc(image, 256, 0, 1)
    share = torch.cat([torch.zeros(1), counts.cumsum(0)]) / 1e4  # of the pixels below each bin's edge
    level = (image * 256).long()
    low, high = share[level], share[level + 1]
    assert float((found - low).min()) > -1e-6 and float((high - found).min()) > -1e-6


@pytest.mark.parametrize("clip", [1.0, 1.5, 3.0])
def test_clahe_within_a_tile_rises_and_respects_the_limit(clip):
    image = (0.3 + 0.05 * torch.randn(128, 128, generator=torch.Generator().manual_seed(1)).double()).clamp(0, 1)
    found = clahe((1, 1), clip)(image).flatten()
    x, order = image.flatten().sort()
    rise, run = found[order].diff(), x.diff()
    assert float(rise.min()) >= 0
    assert float((rise - clip * run).max()) < 1e-9
    if clip == 1:
        torch.testing.assert_close(found, image.flatten(), rtol=0, atol=1e-9)
    else:
        assert float(found.std() / image.std()) > 0.9 * clip  # and the limit is reached where the histogram is high


def test_clahe_limits_the_gain_of_every_tile():
    image = 0.5 + 0.02 * _random(160, 200)
    found = clahe((4, 5), clip=2.0)(image)
    assert float(found.std()) < 2.05 * float(image.std())


@pytest.mark.parametrize("value", [0.0, 0.37, 1.0])
def test_clahe_leaves_one_value(value):
    assert torch.equal(clahe()(torch.full((64, 64), value)), torch.full((64, 64), value))


def test_clahe_takes_any_size_and_batch():
    batch = _random(2, 3, 37, 53)
    found = clahe((3, 4))(batch)
    assert found.shape == batch.shape and float(found.min()) >= 0 and float(found.max()) <= 1
    torch.testing.assert_close(found[1, 2], clahe((3, 4))(batch[1, 2]))


def test_clahe_has_no_side():
    image = _random(96, 128) ** torch.linspace(0.5, 3, 128, dtype=torch.float64)
    for axis in (0, 1):
        torch.testing.assert_close(clahe((4, 8))(image.flip(axis)).flip(axis), clahe((4, 8))(image))


def test_clahe_is_local():
    """Two halves of different brightness and one weak pattern: both get the same strong contrast."""
    pattern = 0.04 * _random(128, 128)
    image = pattern + torch.tensor([0.2, 0.7], dtype=torch.float64).repeat_interleave(64)
    found = clahe((2, 4), clip=8.0)(image)
    for columns in (slice(0, 24), slice(104, 128)):
        gain = float(found[:, columns].std() / image[:, columns].std())
        assert gain == pytest.approx(8, rel=0.15)


def test_display_is_differentiable():
    image = (0.1 + 0.8 * _random(8, 8)).requires_grad_()
    steps = (line_integral(1.0), window(1.0, 2.5), gamma(0.7), sigmoid(), lookup([0.0, 0.2, 1.0]), invert)
    assert torch.autograd.gradcheck(Display(*steps), (image,))
    clahe((2, 2))(image).sum().backward()
    assert torch.isfinite(image.grad).all() and float(image.grad.min()) >= 0


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: line_integral(0.0), "open beam"),
        (lambda: line_integral()(torch.zeros(4, 4)), "above zero"),
        (lambda: window(1.0), "both a center and a width"),
        (lambda: window(1.0, 0.0), "positive width"),
        (lambda: window(quantiles=(0.9, 0.1)), "rising quantiles"),
        (lambda: gamma(0.0), "Gamma"),
        (lambda: sigmoid(slope=-1.0), "slope"),
        (lambda: lookup([1.0]), "2 entries"),
        (lambda: clahe(clip=0.5), "clip limit"),
        (lambda: clahe((0, 8)), "tiles"),
        (lambda: clahe()(torch.rand(4, 4)), "more than it has pixels"),
        (lambda: Display("invert"), "functions"),
        (lambda: Display(invert)(torch.full((2, 2), torch.nan)), "finite"),
    ],
)
def test_bad_input_is_one_sentence(make, sentence):
    with pytest.raises(PhysicsError, match=sentence):
        make()
