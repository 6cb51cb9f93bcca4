"""From one camera's pixels to another's at the same place: what the renderer shows there, and exactly where."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from DiffDRRCore import Camera, Pose, Renderer, Volume, XRay
from DiffDRRCore.errors import LearningError
from DiffDRRCore.imaging.resampling import resample
from DiffDRRCore.learning.data.views import ARM
from DiffDRRCore.learning.inference.resampling import Field, resampled
from DiffDRRCore.physics.simulation.ranges import Ranges

TRAINING = Camera(48, 40, (8.0, 9.0), 1000.0)
XRAYS = {
    "larger": Camera(300, 280, (1.6, 1.6), 1000.0),
    "mirrored": Camera(300, 280, (1.6, 1.6), 1000.0, view_from="detector"),
    "off centre": Camera(300, 300, (1.6, 1.6), 1000.0, principal_point=(130.0, 171.0)),
    "mirrored and off centre": Camera(300, 300, (1.6, 1.6), 1000.0, (130.0, 171.0), view_from="detector"),
    "pixels not square": Camera(420, 220, (1.2, 2.1), 1000.0),
    "nearer detector": Camera(330, 300, (1.3, 1.3), 850.0),
}


@pytest.fixture(scope="module")
def blobs() -> Volume:
    """A smooth body without symmetry, some 200 mm long."""
    k, j, i = torch.meshgrid(*(torch.arange(40.0) for _ in range(3)), indexing="ij")
    mu = torch.zeros(40, 40, 40)
    for center, size, height in (((20, 20, 20), 8, 0.02), ((28, 15, 24), 3, 0.05), ((12, 25, 14), 4, 0.03)):
        square = sum((x - c) ** 2 for x, c in zip((k, j, i), center, strict=True))
        mu += height * torch.exp(-square / (2 * size**2))
    return Volume.from_attenuation(mu, np.diag([5.0, 5.0, 5.0, 1.0]))


@pytest.fixture(scope="module")
def pose(blobs) -> Pose:
    turn = Pose.from_parameters([0.4, -0.3, 0.2], [0.0, 0.0, 0.0], "axis_angle").rotation
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3, :3] = turn
    matrix[:3, 3] = blobs.center - 650 * turn[:, 2]
    return Pose(matrix)


@pytest.mark.parametrize("camera", XRAYS.values(), ids=XRAYS)
def test_the_image_is_what_the_other_camera_renders(blobs, pose, camera):
    renderer = Renderer(blobs)
    image, mask = resampled(renderer(camera, pose)[0, 0], camera, TRAINING)
    expected = renderer(TRAINING, pose)[0, 0]
    assert float(mask.float().mean()) > 0.8
    assert float((image - expected)[mask].abs().max()) < 0.01 * float(expected.max())
    assert not image[~mask].any()


def rays(camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    """(x / z, y / z) of every pixel [H, W]."""
    v, u = np.meshgrid(np.arange(camera.height), np.arange(camera.width), indexing="ij")
    K = camera.K.numpy()
    y = (v - K[1, 2]) / K[1, 1]
    return (u - K[0, 2] - K[0, 1] * y) / K[0, 0], y


def skewed(camera: Camera, skew: float) -> Camera:
    K = camera.K.clone()
    K[0, 1] = skew
    return Camera.from_intrinsics(K, camera.height, camera.width, source_to_detector=camera.source_to_detector)


PAIRS = {
    "mirrored": (Camera(60, 50, (5.0, 4.0), 1000.0, (20.3, 31.7), "detector"), TRAINING),
    "to a mirrored one": (Camera(60, 50, (5.0, 4.0), 900.0), Camera(30, 40, (9.0, 11.0), 1100.0, None, "detector")),
    "finer": (Camera(20, 25, (11.0, 12.0), 1000.0, (9.0, 12.0)), TRAINING),
    "skewed": (skewed(Camera(90, 80, (3.0, 4.0), 1000.0), 70.0), TRAINING),
    "both skewed": (skewed(Camera(90, 80, (3.0, 4.0), 1000.0, None, "detector"), 50.0), skewed(TRAINING, -12.0)),
}


@pytest.mark.parametrize(("old", "new"), PAIRS.values(), ids=PAIRS)
def test_the_mask_is_right_to_the_pixel_and_ramps_are_exact(old, new):
    """A pixel counts where its ray meets the old image's area; what is linear over the detector stays what it is."""
    x, y = rays(new)
    K = old.K.numpy()
    u, v = K[0, 0] * x + K[0, 1] * y + K[0, 2], K[1, 1] * y + K[1, 2]
    inside = (u >= -0.5) & (u <= old.width - 0.5) & (v >= -0.5) & (v <= old.height - 0.5)
    x_old, y_old = rays(old)
    image, mask = resampled(torch.from_numpy(2 + 30 * x_old - 15 * y_old), old, new)
    assert np.array_equal(mask.numpy(), inside)
    assert 0.1 < inside.mean() < 1
    deep = 2 * max(1.0, abs(float(K[0, 0] / new.K[0, 0])), float(K[1, 1] / new.K[1, 1]))
    whole = (u > deep) & (u < old.width - 1 - deep) & (v > deep) & (v < old.height - 1 - deep)
    assert whole.sum() > 50
    np.testing.assert_allclose(image.numpy()[whole], (2 + 30 * x - 15 * y)[whole], atol=1e-9)


def test_without_skew_it_is_the_resampling_of_x_rays():
    old, new = PAIRS["mirrored"]
    image = torch.rand(60, 50, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(resampled(image, old, new)[0], resample(image, old, new))


def test_the_grid_of_the_training_camera_itself_is_that_camera():
    for camera in (TRAINING, TRAINING.flipped(), TRAINING.resized(200, 170)):
        grid = Field(TRAINING, (0.5, 2.0), (-50, 50), (-50, 50)).grid(camera)
        torch.testing.assert_close(grid.K, TRAINING.K)
    torch.testing.assert_close(Field(TRAINING.flipped()).grid(TRAINING).K, TRAINING.K)
    torch.testing.assert_close(Field(TRAINING).grid(XRAYS["off centre"]).K, TRAINING.K)


def test_the_grid_fills_with_the_x_ray_as_far_as_the_training_reached():
    """By hand: 48 x 40 pixels of 8 x 9 mm are 384 x 360 mm. An X-ray of 200 mm, its middle 30 mm right, 80 mm up."""
    camera = Camera(400, 400, (0.5, 0.5), 1000.0, principal_point=(199.5 - 60, 199.5 + 160))
    ranges = Ranges.from_dict({"field": [0.6, 1.2], "offset_u": [-100, 100], "offset_v": [-20, 50]}, ARM)
    field = Field.of(TRAINING, ranges)
    assert field.zoom == pytest.approx((1 / 1.2, 1 / 0.6))
    half = [math.degrees(math.atan(180 / 1000 * zoom)) for zoom in (0.6, 1.2)]
    assert field.degrees == pytest.approx([2 * angle for angle in half])
    grid = field.grid(camera)
    assert grid.K[0, 0] == pytest.approx(1000 / 9 / 0.6)  # the smallest field, larger than the X-ray
    assert grid.K[0, 2] == pytest.approx(19.5 - 30 / (9 * 0.6))
    assert grid.K[1, 2] == pytest.approx(23.5 + 50 / (8 * 0.6))  # 80 mm are more than it has seen
    x, y = rays(field.grid(Camera(400, 400, (0.8, 0.8), 1000.0)))
    assert 1000 * max(np.ptp(x) * 40 / 39, np.ptp(y) * 48 / 47) <= 320 + 1e-9
    mirrored = Field(TRAINING.flipped(), field.zoom, (-100, 100), (-50, 20)).grid(camera.flipped())
    assert mirrored.K[0, 2] == pytest.approx(float(grid.K[0, 2]))


def test_sdd_and_normal_ranges_count():
    ranges = Ranges.from_dict({"sdd": [900, 1200], "field": {"normal": [1.0, 0.1], "within": [0.9, 2.0]}}, ARM)
    assert Field.of(TRAINING, ranges).zoom == pytest.approx((0.9 / 1.2, 1.2 / 0.9))


def test_what_cannot_be_resampled():
    parallel = Camera.parallel_beam(20, 20, (1.0, 1.0), 1000.0)
    with pytest.raises(LearningError, match="parallel"):
        Field(TRAINING).grid(parallel)
    with pytest.raises(LearningError, match="point sources"):
        resampled(torch.zeros(20, 20), parallel, TRAINING)
    with pytest.raises(LearningError, match="camera 48 x 40"):
        resampled(torch.zeros(20, 20), TRAINING, TRAINING)


def test_x_rays_keep_their_type():
    image, mask = resampled(XRay(torch.ones(48, 40), TRAINING).image, TRAINING, TRAINING)
    assert image.dtype == torch.float32
    assert bool(mask.all())
