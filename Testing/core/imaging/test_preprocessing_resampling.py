"""Resampling between cameras: block means, linear ramps, and a bright spot that stays where `project` says."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from DiffDRRCore.errors import XRayError
from DiffDRRCore.geometry import Camera, Pose, project
from DiffDRRCore.imaging.resampling import axis_weights, resample


def grid(height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    rows = torch.arange(height, dtype=torch.float64)[:, None].expand(height, width)
    columns = torch.arange(width, dtype=torch.float64).expand(height, width)
    return rows, columns


def camera(height: int, width: int, **options) -> Camera:
    return Camera(height, width, (0.3, 0.4), 1000.0, **options)


@pytest.mark.parametrize(("rows", "columns"), [(2, 2), (3, 4), (1, 5), (6, 1)])
def test_whole_blocks_are_averaged_exactly(rows, columns):
    image = torch.rand(12, 20, dtype=torch.float64)
    expected = image.reshape(12 // rows, rows, 20 // columns, columns).mean(dim=(1, 3))
    old = camera(12, 20)
    torch.testing.assert_close(resample(image, old, old.resized(12 // rows, 20 // columns)), expected)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(8, 40), st.integers(8, 40), st.floats(0.4, 6), st.floats(0.4, 6), st.floats(-2, 2), st.floats(-2, 2),
    st.booleans(), st.floats(500, 2000),
)  # fmt: skip
def test_ramps_are_reproduced_exactly(height, width, row_factor, column_factor, du, dv, mirrored, distance):
    old = camera(50, 60)
    spacing = (0.3 * row_factor * distance / 1000, 0.4 * column_factor * distance / 1000)
    point = ((width - 1) / 2 + du, (height - 1) / 2 + dv)
    new = Camera(height, width, spacing, distance, point, "detector" if mirrored else "source")
    rows, columns = grid(50, 60)
    new_rows, new_columns = grid(height, width)
    # the old pixel of a new one by the pinhole model: offset in new pixels x size ratio from the principal point
    side = -1 if mirrored else 1
    expected_columns = 29.5 + side * column_factor * (new_columns - point[0])
    expected_rows = 24.5 + row_factor * (new_rows - point[1])
    inside = (
        (expected_columns > row_margin(column_factor)) & (expected_columns < 59 - row_margin(column_factor))
        & (expected_rows > row_margin(row_factor)) & (expected_rows < 49 - row_margin(row_factor))
    )  # fmt: skip
    result = resample(3 * columns - 2 * rows + 7, old, new)
    error = result - (3 * expected_columns - 2 * expected_rows + 7)
    assert float(error[inside].abs().max() if inside.any() else 0) < 1e-9


def row_margin(factor: float) -> float:
    return max(factor / 2 + 1, 1)


@pytest.mark.parametrize(
    ("height", "width", "crop"), [(31, 40, (0, 0, 0, 0)), (48, 64, (3, 5, 7, 1)), (150, 170, (0, 0, 0, 0))]
)
@pytest.mark.parametrize("view_from", ["source", "detector"])
def test_a_bright_spot_moves_with_the_projected_point(height, width, crop, view_from):
    old = Camera(96, 128, (0.3, 0.4), 1000.0, (60.3, 50.7), view_from)
    new = old.cropped(*crop).resized(height, width)
    pose = Pose.exp(torch.tensor([0.2, -0.1, 0.05, 0.0, 0.0, -700.0], dtype=torch.float64))
    points = pose.transform(torch.tensor([[3.0, -4.0, 700.0]], dtype=torch.float64))
    u, v = project(old, pose, points)[0, 0].tolist()
    rows, columns = grid(96, 128)
    spot = torch.exp(-((columns - u) ** 2 + (rows - v) ** 2) / (2 * 4.0**2))
    result = resample(spot, old, new)
    rows, columns = grid(height, width)
    found = torch.stack([(result * columns).sum(), (result * rows).sum()]) / result.sum()
    torch.testing.assert_close(found, project(new, pose, points)[0, 0], atol=0.05, rtol=0)


def test_shrinking_does_not_alias():
    """Stripes of one pixel become grey at a quarter of the size, up to the part of a stripe that a pixel cuts."""
    _, columns = grid(8, 90)
    stripes = columns % 2
    old = camera(8, 90)
    assert float((resample(stripes, old, old.resized(8, 20)) - 0.5).abs().max()) < 0.2
    torch.testing.assert_close(
        resample(stripes, old, old.resized(4, 45)), torch.full((4, 45), 0.5, dtype=torch.float64)
    )


def test_the_same_camera_changes_nothing_and_a_flip_mirrors():
    image = torch.rand(2, 5, 7, dtype=torch.float64)
    old = camera(5, 7, principal_point=(1.25, 3.5))
    torch.testing.assert_close(resample(image, old, old), image)
    torch.testing.assert_close(resample(image, old, old.flipped()), image.flip(-1))


def test_outside_the_old_image_is_the_fill_value():
    old = camera(4, 4)
    wide = old.cropped(-1, -1, -2, -2)
    result = resample(torch.ones(4, 4), old, wide, fill=-3.0)
    assert torch.equal(result[1:-1, 2:-2], torch.ones(4, 4))
    assert set(result[0].tolist()) == {-3.0}
    assert set(resample(torch.ones(4, 4), old, wide)[0].tolist()) == {0.0}
    assert float(resample(torch.ones(4, 4), old, old.resized(9, 9)).min()) == pytest.approx(1)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.floats(-8, 8).filter(lambda s: abs(s) > 0.05), st.floats(-20, 40))
def test_weights_are_a_mean(old_size, new_size, scale, shift):
    weights = axis_weights(old_size, new_size, scale, shift)
    assert float(weights.min()) >= -1e-12
    sums = weights.sum(-1)
    assert bool((((sums - 1).abs() < 1e-9) | (sums == 0)).all())


def test_the_gradient_reaches_the_image():
    image = torch.rand(6, 8, dtype=torch.float64, requires_grad=True)
    old = camera(6, 8)
    resample(image, old, old.resized(3, 4)).sum().backward()
    torch.testing.assert_close(image.grad, torch.full((6, 8), 0.25, dtype=torch.float64))


def test_cameras_that_do_not_fit_are_refused():
    old = camera(4, 6)
    with pytest.raises(XRayError, match="6 x 4 pixels but its camera 4 x 6"):
        resample(torch.ones(6, 4), old, old)
    with pytest.raises(XRayError, match="parallel"):
        resample(torch.ones(4, 6), old, Camera.parallel_beam(4, 6, (0.3, 0.4), 1000.0))
    skewed = Camera.from_intrinsics([[2500, 100, 2], [0, 3000, 2], [0, 0, 1]], 4, 6, source_to_detector=1000.0)
    with pytest.raises(XRayError, match="skew"):
        resample(torch.ones(4, 6), old, skewed)
