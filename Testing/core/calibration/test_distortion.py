"""Distortions against closed forms, numbers worked out by hand, and themselves inverted."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from scipy.interpolate import BSpline

from DiffDRRCore import Camera
from DiffDRRCore.calibration import GridDistortion, RadialDistortion, distortion_from_dict
from DiffDRRCore.errors import CalibrationError, ReadError

CAMERA = Camera(200, 300, (0.5, 0.4), 1000.0, (140.0, 110.0), view_from="detector")


def radial() -> RadialDistortion:
    return RadialDistortion.of_image(CAMERA, (0.08, -0.02, 0.004, -0.003))


def grid(seed: int = 0, size: float = 3.0) -> GridDistortion:
    values = np.random.default_rng(seed).normal(0, size, (6, 7, 2))
    return GridDistortion(200, 300, (3, 4), values)


def pixels(count: int = 200) -> torch.Tensor:
    return torch.rand(count, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * torch.tensor(
        [299.0, 199.0]
    )


@pytest.mark.parametrize("distortion", [radial(), grid()], ids=["radial", "grid"])
def test_undistort_is_the_exact_inverse(distortion):
    uv = pixels()
    observed = distortion.distort(uv)
    assert (observed - uv).norm(dim=-1).max() > 1
    torch.testing.assert_close(distortion.undistort(observed), uv, atol=1e-8, rtol=0)


@pytest.mark.parametrize("distortion", [radial(), grid()], ids=["radial", "grid"])
def test_jacobian_is_that_of_autograd(distortion):
    uv = pixels(20)
    expected = torch.stack([torch.autograd.functional.jacobian(distortion.distort, one) for one in uv])
    torch.testing.assert_close(distortion.jacobian(uv), expected, atol=1e-10, rtol=0)


def test_radial_is_opencvs_formula_in_normalised_coordinates():
    k1, k2, p1, p2 = 0.3, -0.1, 0.01, -0.02
    K = CAMERA.K.numpy()
    uv = pixels(5).numpy()
    for (u, v), seen in zip(uv, RadialDistortion.of_camera(CAMERA, (k1, k2, p1, p2)).distort(uv).numpy(), strict=True):
        x, y = (u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1]
        r2 = x * x + y * y
        xd = x * (1 + k1 * r2 + k2 * r2 * r2) + 2 * p1 * x * y + p2 * (r2 + 2 * x * x)
        yd = y * (1 + k1 * r2 + k2 * r2 * r2) + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y
        np.testing.assert_allclose(seen, [K[0, 0] * xd + K[0, 2], K[1, 1] * yd + K[1, 2]], atol=1e-10)


def test_k1_is_the_share_by_which_the_corner_moves():
    distortion = RadialDistortion.of_image(CAMERA, (0.05, 0.0, 0.0, 0.0))
    center, corner = np.array([149.5, 99.5]), np.array([299.5, 199.5])
    np.testing.assert_allclose(distortion.distort(corner).numpy() - center, 1.05 * (corner - center), atol=1e-9)


def test_grid_is_scipys_tensor_product_spline():
    distortion = grid()
    control = distortion.coefficients.numpy().reshape(6, 7, 2)
    uv = pixels(30).numpy()
    rows = BSpline(np.arange(-3, 7), np.eye(6), 3)((uv[:, 1] + 0.5) * 3 / 200)
    columns = BSpline(np.arange(-3, 8), np.eye(7), 3)((uv[:, 0] + 0.5) * 4 / 300)
    expected = uv + np.einsum("na,nb,abk->nk", rows, columns, control)
    np.testing.assert_allclose(distortion.distort(uv).numpy(), expected, atol=1e-10)


def test_shift_and_fields_agree():
    uv = pixels(9)
    for distortion in (radial(), grid()):
        torch.testing.assert_close(distortion.shift(uv), distortion.fields(uv) @ distortion.coefficients)


def test_undistorted_image_shows_what_an_ideal_detector_would():
    def pattern(uv):
        return torch.sin(uv[..., 0] / 9) * torch.cos(uv[..., 1] / 11) + 2

    v, u = torch.meshgrid(torch.arange(200.0), torch.arange(300.0), indexing="ij")
    ideal = torch.stack([u, v], dim=-1).double()
    for distortion in (radial(), grid()):
        observed = pattern(distortion.undistort(ideal)).nan_to_num(0.0)  # the pattern as the real detector sees it
        found = distortion.undistorted(observed, fill=float("nan"))
        inner = found[25:-25, 25:-25]
        assert inner.isfinite().all()
        assert (inner - pattern(ideal)[25:-25, 25:-25]).abs().max() < 1e-3


def test_a_folding_distortion_has_no_inverse_beyond_the_fold():
    distortion = RadialDistortion((-0.5, 0.0, 0.0, 0.0), (100.0, 100.0), (100.0, 100.0))
    top = math.sqrt(1 / 1.5)  # of r - r^3 / 2
    assert distortion.undistort([100 + 100 * (top - top**3 / 2) + 1.0, 100.0]).isnan().all()
    assert distortion.undistort([130.0, 100.0]).isfinite().all()


@pytest.mark.parametrize("distortion", [radial(), grid()], ids=["radial", "grid"])
def test_through_json(distortion):
    again = distortion_from_dict(json.loads(json.dumps(distortion.to_dict())))
    uv = pixels(7)
    assert torch.equal(again.distort(uv), distortion.distort(uv))
    assert distortion_from_dict(None) is None


@pytest.mark.parametrize(
    "content, says",
    [
        ({"model": "fisheye"}, "there is no 'fisheye'"),
        ({"model": "radial", "center": [0, 0]}, "lacks 'scale'"),
        ({"model": "radial", "k1": "x", "center": [0, 0], "scale": [1, 1]}, "k1 must be a number"),
        ({"model": "radial", "center": [0, 0], "scale": [0, 1]}, "the scale not zero"),
        ({"model": "grid", "height": 9, "width": 9, "cells": [2, 2], "coefficients": [[[0, 0]]]}, "5 x 5 x 2"),
        ([], "model"),
    ],
)
def test_damaged_json_is_told(content, says):
    with pytest.raises(ReadError, match=says):
        distortion_from_dict(content)


def test_bad_input():
    with pytest.raises(CalibrationError, match="not finite"):
        RadialDistortion((math.nan, 0, 0, 0), (0, 0), (1, 1))
    with pytest.raises(CalibrationError, match="k1, k2, p1, p2"):
        RadialDistortion((1.0, 0), (0, 0), (1, 1))
    with pytest.raises(CalibrationError, match="1 to 40 cells"):
        GridDistortion(10, 10, (0, 3))
    with pytest.raises(CalibrationError, match="An image is"):
        radial().undistorted(torch.zeros(3, 4, 5))
