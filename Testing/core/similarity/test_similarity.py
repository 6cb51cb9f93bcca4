"""The measures against closed forms, other packages and their own stated properties."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from DiffDRRCore.errors import DiffDRRError
from DiffDRRCore.similarity import (
    LNCC,
    SIMILARITIES,
    SSD,
    ZNCC,
    GradientCorrelation,
    GradientNCC,
    GradientOrientation,
    LeastSquaresSimilarity,
    MultiscaleNCC,
    MutualInformation,
    similarity,
)

NAMES = list(SIMILARITIES)
LEAST_SQUARES = [name for name in NAMES if issubclass(SIMILARITIES[name], LeastSquaresSimilarity)]
EXACT = ["zncc", "gradient_ncc", "gradient_correlation", "gradient_orientation"]
GAIN_FREE = [name for name in NAMES if name != "ssd"]


def smooth_image(seed: int, batch: int = 1, size: tuple[int, int] = (26, 31), sigma: float = 1.5) -> torch.Tensor:
    noise = np.random.default_rng(seed).standard_normal((batch, 1, *size))
    return torch.from_numpy(ndimage.gaussian_filter(noise, (0, 0, sigma, sigma), mode="wrap") * 4 + 5)


def weights(seed: int, shape=(26, 31)) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).uniform(0.1, 2.0, (1, 1, *shape)))


# --- values against independent computations ---------------------------------------------------------------------


def test_zncc_is_pearsons_correlation():
    a, b = smooth_image(0, 3), smooth_image(1)
    expected = [np.corrcoef(x.flatten(), b.flatten())[0, 1] for x in a.numpy()]
    np.testing.assert_allclose(ZNCC()(a, b), expected, atol=1e-12)


def test_weighted_zncc_is_the_correlation_of_repeated_pixels():
    a, b = smooth_image(0), smooth_image(1)
    counts = torch.from_numpy(np.random.default_rng(2).integers(0, 4, a.shape))
    repeated = [np.repeat(x.flatten(), counts.flatten()) for x in (a.numpy(), b.numpy())]
    assert ZNCC()(a, b, counts).item() == pytest.approx(np.corrcoef(*repeated)[0, 1], abs=1e-12)


def test_ssd_by_hand():
    a = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    b = torch.tensor([[[[1.0, 0.0], [3.0, 1.0]]]])
    assert SSD()(a, b).item() == pytest.approx(-(4 + 9) / 4)
    assert SSD()(a, b, torch.tensor([[1.0, 3.0], [1.0, 0.0]])).item() == pytest.approx(-3 * 4 / 5)


@pytest.mark.parametrize("size", [3, 9, 41])
@pytest.mark.parametrize("masked", [False, True])
def test_lncc_against_a_loop_over_windows(size, masked):
    a, b = smooth_image(0, size=(12, 15)), smooth_image(1, size=(12, 15))
    w = weights(2, (12, 15)) if masked else torch.ones(1, 1, 12, 15, dtype=torch.float64)
    if masked:
        w[..., 3:7, 4:6] = 0
    x, y, w2 = (image.numpy()[0, 0] for image in (a, b, w))
    x, y = ((image - np.average(image, weights=w2)) for image in (x, y))
    x, y = (image / np.sqrt(np.average(image**2, weights=w2)) for image in (x, y))
    total = 0.0
    for row in range(12):
        for column in range(15):
            window = np.s_[
                max(row - size // 2, 0) : row + size // 2 + 1, max(column - size // 2, 0) : column + size // 2 + 1
            ]
            if w2[row, column] > 0:
                covariance = np.cov(x[window].flatten(), y[window].flatten(), ddof=0, aweights=w2[window].flatten())
                scale = math.sqrt((covariance[0, 0] + 1e-4) * (covariance[1, 1] + 1e-4))
                total += w2[row, column] * covariance[0, 1] / scale
    assert LNCC(size)(a, b, w).item() == pytest.approx(total / w2.sum(), abs=1e-10)


def test_lncc_of_half_a_flat_image_counts_the_flat_half_as_zero():
    image = torch.zeros(1, 1, 40, 40, dtype=torch.float64)
    image[..., :20] = smooth_image(0, size=(40, 20), sigma=1.0)
    assert LNCC(5)(image, image).item() == pytest.approx(22 / 40, abs=2e-3)  # two more columns of windows see the edge


def test_multiscale_is_the_weighted_mean():
    a, b, w = smooth_image(0), smooth_image(1), weights(2)
    expected = 0.25 * ZNCC()(a, b, w) + 0.75 * LNCC(7)(a, b, w)
    torch.testing.assert_close(MultiscaleNCC((None, 7), (1, 3))(a, b, w), expected)


def test_gradient_measures_against_numpy():
    a, b = smooth_image(0), smooth_image(1)
    (gy_a, gx_a), (gy_b, gx_b) = (np.gradient(image.numpy()[0, 0]) for image in (a, b))
    inner = np.s_[1:-1, 1:-1]
    gx_a, gy_a, gx_b, gy_b = (g[inner].flatten() for g in (gx_a, gy_a, gx_b, gy_b))
    corr = 0.5 * (np.corrcoef(gx_a, gx_b)[0, 1] + np.corrcoef(gy_a, gy_b)[0, 1])
    assert GradientCorrelation(sigma=0)(a, b).item() == pytest.approx(corr, abs=1e-12)
    one = np.concatenate([gx_a - gx_a.mean(), gy_a - gy_a.mean()])
    two = np.concatenate([gx_b - gx_b.mean(), gy_b - gy_b.mean()])
    joint = one @ two / np.linalg.norm(one) / np.linalg.norm(two)
    assert GradientNCC(sigma=0)(a, b).item() == pytest.approx(joint, abs=1e-12)
    edge = 0.7
    n_a, n_b = (
        np.stack([x, y]) / np.sqrt(x**2 + y**2 + edge**2 * np.mean(x**2 + y**2))
        for x, y in ((gx_a, gy_a), (gx_b, gy_b))
    )
    square = ((n_a * n_b).sum(0) ** 2).sum()
    scale = math.sqrt(((n_a**2).sum(0) ** 2).sum() * ((n_b**2).sum(0) ** 2).sum())
    assert GradientOrientation(sigma=0, edge=edge)(a, b).item() == pytest.approx(square / scale, abs=1e-12)


def test_the_smoothing_is_scipys_gaussian_filter_away_from_the_border():
    image = smooth_image(0, size=(40, 40), sigma=0.8)
    blurred = ndimage.gaussian_filter(image.numpy()[0, 0], 2, truncate=3.0)
    ours = GradientCorrelation(sigma=2.0).features(image)[0, : 38 * 38].reshape(38, 38)[9:29, 9:29]
    theirs = (blurred[10:30, 11:31] - blurred[10:30, 9:29]) / 2
    assert np.corrcoef(ours.flatten(), theirs.flatten())[0, 1] == pytest.approx(1, abs=1e-12)


def test_gradient_correlation_of_stripes_sees_only_the_direction_that_is_there():
    u = torch.arange(32, dtype=torch.float32)
    stripes = torch.sin(u / 2).expand(1, 1, 32, 32)
    assert GradientCorrelation()(stripes, stripes).item() == pytest.approx(0.5, abs=1e-5)
    assert GradientNCC()(stripes, stripes).item() == pytest.approx(1, abs=1e-5)
    assert GradientNCC()(stripes, stripes.mT).item() == pytest.approx(0, abs=1e-5)
    assert GradientOrientation()(stripes, stripes.mT).item() == pytest.approx(0, abs=1e-5)


def test_mutual_information_scale():
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.float64):
        a, b = (torch.rand(2, 1, 96, 96, generator=generator, dtype=dtype) for _ in range(2))
        measure = MutualInformation()
        torch.testing.assert_close(measure(a, a), torch.ones(2, dtype=dtype))
        assert measure(a, b).abs().max() < 0.05
        assert measure(a, torch.cos(3 * a)).min() > 0.9  # any one-to-one relation of grey values
        partly = measure(a, torch.where(b > 0.5, a, b))
        assert ((partly > 0.1) & (partly < 0.9)).all()


def test_mutual_information_of_two_grey_values_is_log_two():
    """Black and white far apart in the histogram: I(a, a) = log 2, and for correlated bits the textbook formula."""
    a = torch.tensor([0.0, 0.0, 1.0, 1.0] * 64, dtype=torch.float64).reshape(1, 1, 16, 16)
    b = torch.tensor([0.0, 0.0, 0.0, 1.0] * 64, dtype=torch.float64).reshape(1, 1, 16, 16)
    joint = np.array([[0.5, 0.0], [0.25, 0.25]])
    product = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    information = np.sum(joint[joint > 0] * np.log(joint[joint > 0] / product[joint > 0]))
    entropy_b = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    expected = information / math.sqrt(math.log(2) * entropy_b)
    assert MutualInformation(bins=16)(a, b).item() == pytest.approx(expected, abs=1e-9)


def test_mutual_information_in_chunks_is_the_same(monkeypatch):
    a, b, w = smooth_image(0, 2).requires_grad_(), smooth_image(1), weights(3)
    whole = MutualInformation()(a, b, w)
    (gradient,) = torch.autograd.grad(whole.sum(), a)
    monkeypatch.setattr("DiffDRRCore.similarity.information.PIXELS_PER_CHUNK", 100)
    parts = MutualInformation()(a, b, w)
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(torch.autograd.grad(parts.sum(), a)[0], gradient)


# --- properties ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_an_image_matches_itself_best(name):
    image = smooth_image(0, sigma=2.0)
    measure = similarity(name)
    best = measure(image, image).item()
    shifted = [measure(image.roll(shift, dims=(-2, -1)), image).item() for shift in ((0, 1), (1, 0), (2, 2))]
    assert all(value < best - 1e-3 for value in shifted)
    assert best == pytest.approx(0 if name == "ssd" else 1, abs=2e-3)


@pytest.mark.parametrize("name", GAIN_FREE)
@given(gain=st.floats(0.01, 100), offset=st.floats(-20, 20))
@settings(max_examples=15, deadline=None)
def test_gain_and_offset_do_not_count(name, gain, offset):
    a, b, w = smooth_image(0), smooth_image(1), weights(2)
    measure = similarity(name)
    torch.testing.assert_close(measure(gain * a + offset, b, w), measure(a, b, w), atol=1e-8, rtol=0)
    torch.testing.assert_close(measure(a, gain * b + offset, w), measure(a, b, w), atol=1e-8, rtol=0)


@pytest.mark.parametrize("name", NAMES)
@given(seed=st.integers(0, 10_000))
@settings(max_examples=10, deadline=None)
def test_symmetry_bounds_and_scale_of_weights(name, seed):
    a, b, w = smooth_image(seed), smooth_image(seed + 1), weights(seed)
    measure = similarity(name)
    value = measure(a, b, w)
    torch.testing.assert_close(measure(b, a, w), value)
    torch.testing.assert_close(measure(a, b, 7.5 * w), value)
    torch.testing.assert_close(measure(a, b, torch.ones(26, 31)), measure(a, b))
    assert value.item() <= 1 + 1e-9
    assert name in ("ssd", "gradient_orientation", "mutual_information") or value.item() >= -1 - 1e-9


@pytest.mark.parametrize("name", NAMES)
def test_what_the_mask_hides_has_no_influence(name):
    a, b = smooth_image(0, 2), smooth_image(1)
    mask = torch.ones(1, 1, 26, 31, dtype=torch.bool)
    mask[..., 4:9, 10:20] = False
    mask[..., -3:, :] = False
    expected = similarity(name)(a, b, mask)
    for fill in (1e6, torch.nan):
        changed = torch.where(mask, a, fill).requires_grad_()
        value = similarity(name)(changed, torch.where(mask, b, fill), mask)
        torch.testing.assert_close(value, expected)
        value.sum().backward()
        assert torch.isfinite(changed.grad).all()
        assert (changed.grad[~mask.expand_as(changed)] == 0).all()
    assert (similarity(name)(a, b) - expected).abs().min() > 1e-4


@pytest.mark.parametrize("sigma", [0.0, 1.5])
def test_the_edge_of_a_mask_is_not_an_edge(sigma):
    image = torch.full((1, 1, 40, 40), 3.0, dtype=torch.float64)
    image[..., 18:22, 18:22] = 4.0
    mask = torch.zeros(40, 40, dtype=torch.bool)
    mask[5:35, 5:35] = True
    shown = GradientOrientation(sigma=sigma).features(image, mask).reshape(3, 38, 38).abs().sum(0)
    blob = torch.zeros(38, 38, dtype=torch.bool)
    blob[11:27, 11:27] = True
    assert shown[blob].max() > 0.1
    assert shown[~blob].max() < 1e-12


@pytest.mark.parametrize("name", NAMES)
def test_batches_broadcast(name):
    a, b, w = smooth_image(0, 3), smooth_image(1, 3), torch.cat([weights(s) for s in range(3)])
    measure = similarity(name)
    one_by_one = torch.cat([measure(a[n : n + 1], b[:1], w[n : n + 1]) for n in range(3)])
    torch.testing.assert_close(measure(a, b[:1], w), one_by_one)
    torch.testing.assert_close(measure(b[:1], a, w), one_by_one)
    assert measure(a, b).shape == (3,)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_float_type(name, dtype):
    a, b = (smooth_image(seed).to(dtype).requires_grad_() for seed in (0, 1))
    value = similarity(name)(a, b, weights(2))
    value.sum().backward()
    assert value.dtype == torch.promote_types(dtype, torch.float32)
    reference = similarity(name)(a.double(), b.double(), weights(2))
    assert value.item() == pytest.approx(reference.item(), abs=2e-4)
    assert torch.isfinite(a.grad).all() and a.grad.dtype == dtype


# --- gradients -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_gradient_against_finite_differences(name):
    a, b, w = (x[..., :9, :11].clone() for x in (smooth_image(0, 2), smooth_image(1, 2), weights(2)))
    w[..., 2, 3] = 0
    a.requires_grad_()
    b.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x, y: similarity(name)(x, y, w), (a, b), eps=1e-5, atol=1e-6, rtol=1e-4, fast_mode=True
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_nan_where_there_is_no_contrast(name, dtype):
    textured = smooth_image(1).to(dtype)
    patch = textured.clone()
    patch[..., :20, :20] = 3.3
    empty = torch.zeros(26, 31)
    for moving in (torch.zeros_like(textured), torch.full_like(textured, 5.3), patch):
        for fixed in (textured, patch, torch.full_like(textured, -0.7)):
            for weight in (None, empty):
                image = moving.clone().requires_grad_()
                value = similarity(name)(image, fixed, weight)
                value.sum().backward()
                assert torch.isfinite(value).all() and torch.isfinite(image.grad).all()
                flat = moving.std() < 1e-5 or fixed.std() < 1e-5 or weight is not None
                if flat and (name != "ssd" or weight is not None):
                    assert value.item() == 0 and (image.grad == 0).all()


# --- the least-squares view ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("weight", [None, weights(5)])
def test_squared_feature_distance_is_twice_one_minus_the_similarity(name, weight):
    a, b = smooth_image(0, 3), smooth_image(1)
    measure = similarity(name)
    squared = (measure.features(a, weight) - measure.features(b, weight)).square().sum(-1)
    torch.testing.assert_close(squared, 2 * (1 - measure(a, b, weight)))


def test_squared_feature_distance_of_ssd():
    a, b, w = smooth_image(0, 3), smooth_image(1), weights(5)
    squared = (SSD().features(a, w) - SSD().features(b, w)).square().sum(-1)
    torch.testing.assert_close(squared, -SSD()(a, b, w))


def test_lncc_features_are_the_locally_normalised_image_and_follow_lncc():
    image = smooth_image(0, size=(40, 40), sigma=2.0)
    x = image.numpy()[0, 0]
    x = (x - x.mean()) / x.std()
    mean = ndimage.uniform_filter(x, 9)
    local = (x - mean) / np.sqrt(ndimage.uniform_filter(x**2, 9) - mean**2 + 1e-4)
    features = LNCC(9).features(image).reshape(40, 40)[4:-4, 4:-4]
    assert np.corrcoef(features.flatten(), local[4:-4, 4:-4].flatten())[0, 1] == pytest.approx(1, abs=1e-12)
    assert LNCC(9).features(image).norm().item() == pytest.approx(1)
    pairs = [
        (LNCC(9)(other, image).item(), (LNCC(9).features(other) * LNCC(9).features(image)).sum().item())
        for other in (image.roll(n, -1) for n in range(6))
    ]
    lncc, r = np.array(pairs).T
    assert np.all(np.diff(lncc) < 0) and np.all(np.diff(r) < 0)
    assert np.abs(lncc - r)[:2].max() < 0.05


@pytest.mark.parametrize("name", LEAST_SQUARES)
def test_forward_mode_of_features_against_finite_differences(name):
    a, w = smooth_image(0, 2), weights(3)
    direction = smooth_image(7, 2) - 5
    features = similarity(name).features
    value, slope = torch.func.jvp(lambda image: features(image, w), (a,), (direction,))
    torch.testing.assert_close(value, features(a, w))
    step = 1e-5
    numeric = (features(a + step * direction, w) - features(a - step * direction, w)) / (2 * step)
    torch.testing.assert_close(slope, numeric, atol=1e-8, rtol=1e-5)


@pytest.mark.parametrize("name", LEAST_SQUARES)
def test_forward_mode_for_six_directions_at_once(name):
    """As Gauss-Newton does it: vmap of jvp over the columns of the image's Jacobian, flat images included."""
    directions = torch.stack([smooth_image(seed) - 5 for seed in range(6)])
    features = similarity(name).features
    for image in (smooth_image(9), torch.full((1, 1, 26, 31), 2.5, dtype=torch.float64)):
        columns = torch.func.vmap(lambda d, image=image: torch.func.jvp(features, (image,), (d,))[1])(directions)
        single = torch.stack([torch.func.jvp(features, (image,), (d,))[1] for d in directions])
        assert torch.isfinite(columns).all()
        torch.testing.assert_close(columns, single)


# --- looking up and refusing ---------------------------------------------------------------------------------------


def test_lookup():
    assert similarity("lncc", size=7) == LNCC(7)
    measure = ZNCC()
    assert similarity(measure) is measure
    with pytest.raises(DiffDRRError, match="zncc, lncc, multiscale_ncc, gradient_ncc"):
        similarity("ncc")
    with pytest.raises(DiffDRRError, match="patch"):
        similarity("zncc", patch=3)
    with pytest.raises(DiffDRRError, match="choose one of"):
        similarity(3)


@pytest.mark.parametrize(
    "build",
    [
        lambda: LNCC(8),
        lambda: LNCC(1),
        lambda: LNCC(9, eps=0),
        lambda: MultiscaleNCC(()),
        lambda: MultiscaleNCC((None, 8)),
        lambda: MultiscaleNCC((None, 9), (1.0,)),
        lambda: GradientNCC(sigma=-1),
        lambda: GradientNCC(sigma=math.nan),
        lambda: GradientOrientation(edge=0),
        lambda: MutualInformation(bins=4),
    ],
)
def test_bad_parameters(build):
    with pytest.raises(DiffDRRError):
        build()


@pytest.mark.parametrize("name", NAMES)
def test_bad_images(name):
    measure, image = similarity(name), smooth_image(0, 2)
    for moving, fixed, weight in (
        (image[0], image, None),
        (image, image[..., 1:], None),
        (image, torch.cat([image, image[:1]]), None),
        (image.expand(2, 3, -1, -1), image, None),
        (image.int(), image, None),
        (image, image, torch.ones(31, 26)),
        (image, image, torch.ones(3, 1, 26, 31)),
        (image.numpy(), image, None),
        (image[..., :0], image[..., :0], None),
    ):
        with pytest.raises(DiffDRRError):
            measure(moving, fixed, weight)
