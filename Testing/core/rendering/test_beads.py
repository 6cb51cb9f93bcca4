"""Does the renderer put things where `project` says? One bright voxel, and the centroid of its shadow."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from DiffDRRCore import Camera, Pose, Renderer, project
from Testing.core import samples
from Testing.core.rendering import reference

SHAPE = (7, 8, 9)
PARTS = {"trilinear": 2, "siddon": 4}
TOLERANCE = 0.03  # px; the specification says 0.05


def centroid(image: torch.Tensor) -> torch.Tensor:
    """Intensity centroid (u, v) of an image [H, W]."""
    v, u = torch.meshgrid(*(torch.arange(n, dtype=image.dtype) for n in image.shape), indexing="ij")
    return torch.stack([(u * image).sum(), (v * image).sum()]) / image.sum()


def bead(rng: np.random.Generator, spacing=(0.6, 1.2)):
    """A volume with one bright voxel, and that voxel's centre in world mm."""
    affine = samples.oblique_grid(rng, SHAPE, shear=0.1, spacing=spacing)
    k, j, i = (int(rng.integers(size)) for size in SHAPE)
    mu = np.zeros(SHAPE)
    mu[k, j, i] = 1.0
    return reference.double(mu, affine), affine[:3, :3] @ [i, j, k] + affine[:3, 3]


def window_about(camera: Camera, pixel: torch.Tensor, half: int = 16) -> tuple[Camera, torch.Tensor]:
    """The camera of a window about a pixel, perhaps outside the image, and the window's first pixel."""
    left, top = (round(float(value)) - half for value in pixel)
    size = 2 * half + 1
    part = camera.cropped(top, camera.height - top - size, left, camera.width - left - size)
    return part, torch.tensor([left, top], dtype=torch.float64)


def shadow(renderer: Renderer, window: Camera, pose: Pose, parts: int) -> torch.Tensor:
    """Pixels as means of parts x parts rays: by single rays the sharp edges of a shadow fall between pixels."""
    fine = renderer(window.resized(parts * window.height, parts * window.width), pose)
    return torch.nn.functional.avg_pool2d(fine, parts)[0, 0]


@pytest.mark.parametrize("integrator", ["trilinear", "siddon"])
@pytest.mark.parametrize("view_from", ["source", "detector"])
@pytest.mark.parametrize("seed", range(6))
def test_a_bead_lands_where_project_says(integrator, view_from, seed):
    """Random poses, oblique anisotropic sheared grids of both hands, non-square pixels, off-centre principal points."""
    rng = np.random.default_rng(seed)
    volume, point = bead(rng)
    camera = Camera(
        64,
        80,
        pixel_spacing=rng.uniform(0.25, 0.5, 2),
        source_to_detector=1000,
        principal_point=rng.uniform(10, 60, 2),
        view_from=view_from,
    )
    pose = samples.looking_at(rng, volume.center.numpy() + rng.normal(0, 10, 3), rng.uniform(500, 900))
    expected = project(camera, pose, point[None])[0, 0]
    window, first = window_about(camera, expected)
    found = centroid(shadow(Renderer(volume, integrator, step=0.3), window, pose, PARTS[integrator])) + first
    assert float((found - expected).abs().max()) < TOLERANCE


@pytest.mark.parametrize("integrator", ["trilinear", "siddon"])
def test_a_bead_under_a_parallel_beam(integrator):
    rng = np.random.default_rng(11)
    volume, point = bead(rng)
    camera = Camera.parallel_beam(64, 80, (0.2, 0.25), 1000, view_from="detector")
    pose = samples.looking_at(rng, volume.center.numpy(), 500)
    expected = project(camera, pose, point[None])[0, 0]
    window, first = window_about(camera, expected)
    found = centroid(shadow(Renderer(volume, integrator, step=0.3), window, pose, PARTS[integrator])) + first
    assert float((found - expected).abs().max()) < TOLERANCE


@pytest.mark.parametrize("integrator", ["trilinear", "siddon"])
def test_resized_images_keep_a_bead_in_its_place(integrator):
    """The same bead in an image of half the size: (u + 0.5) / 2 - 0.5."""
    rng = np.random.default_rng(12)
    volume, point = bead(rng, spacing=(3.0, 4.0))
    camera = Camera(30, 32, (1.2, 1.0), 1000, view_from="detector")
    pose = samples.looking_at(rng, point, 700)
    renderer = Renderer(volume, integrator, step=0.5)
    large = centroid(shadow(renderer, camera, pose, PARTS[integrator]))
    small = centroid(shadow(renderer, camera.resized(15, 16), pose, 2 * PARTS[integrator]))
    assert float((large - project(camera, pose, point[None])[0, 0]).abs().max()) < TOLERANCE
    assert float(((large + 0.5) / 2 - 0.5 - small).abs().max()) < TOLERANCE


def test_left_and_right_front_and_back_by_hand():
    """Three beads with no symmetry, a camera at the world's origin along +z: (u, v) by similar triangles."""
    mu = np.zeros((3, 60, 60))
    affine = reference.grid(1.0, mu.shape, (0.5, 0.5, 500))
    beads = [(20.0, 5.0), (-11.0, 17.0), (3.0, -20.0)]
    for x, y in beads:
        mu[1, int(y + 29), int(x + 29)] = 1
    camera = Camera(101, 101, (1, 1), 1000)
    image = Renderer(reference.double(mu, affine), "siddon")(camera, Pose.identity())[0, 0]
    for x, y in beads:
        u, v = 50 + 2 * x, 50 + 2 * y
        patch = image[int(v) - 5 : int(v) + 6, int(u) - 5 : int(u) + 6]
        assert torch.allclose(centroid(patch), torch.tensor([5.0, 5.0], dtype=torch.float64), atol=TOLERANCE)
        assert patch.max() > 0.99
