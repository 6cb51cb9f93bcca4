"""A small dataset of beads with everything a subject can have, made in float64; nothing of ours projects here."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from DiffDRRCore import Camera, Pose, Volume, XRay
from DiffDRRCore.datasets.dataset import Subject, View
from Testing.core import samples

STRUCTURES = {1: "left femur", 3: "hip, right"}


def pinhole(K, camera_to_world, points) -> np.ndarray:
    """[N, 2] pixels (u, v) of world points [N, 3], in float64."""
    world_to_camera = np.linalg.inv(np.asarray(camera_to_world, np.float64))
    local = np.asarray(points) @ world_to_camera[:3, :3].T + world_to_camera[:3, 3]
    seen = local @ np.asarray(K, np.float64).T
    return seen[:, :2] / seen[:, 2:]


class Beads(Subject):
    """A CT with beads on an oblique, anisotropic, left-handed grid, and X-rays with a pixel of 1000 + n at each."""

    volume, landmarks, groups, view_names, name = None, None, None, None, "patient 1"  # replaced by plain values

    def __init__(self, volume: Volume, landmarks: dict[str, Tensor], views: dict[str, View], groups: tuple):
        self.volume, self.landmarks, self.groups = volume, landmarks, groups
        self.all_views, self.view_names = views, tuple(views)

    def _view(self, name: str) -> View:
        return self.all_views[name]


def grid(rng: np.random.Generator, shape) -> np.ndarray:
    """ijk_to_ras of a rotated, anisotropic, left-handed grid about the origin."""
    affine = np.eye(4)
    affine[:3, :3] = samples.rotation(rng) @ np.diag([-1.3, 2.1, 3.7])
    affine[:3, :3] *= np.sign(-np.linalg.det(affine[:3, :3]))
    affine[:3, 3] = rng.normal(0, 30, 3) - affine[:3, :3] @ ((np.array(shape[::-1]) - 1) / 2)
    assert np.linalg.det(affine[:3, :3]) < 0
    return affine


def beads(seed: int = 0, views: int = 3, fraction: float = 0.0) -> Beads:
    """The subject; `fraction` is added to each pixel, so that the pixels are no whole numbers."""
    rng = np.random.default_rng(seed)
    shape = (14, 20, 24)
    affine = grid(rng, shape)
    ijk = rng.integers(2, 12, (6, 3))
    hu, labels = np.full(shape, -1000.0, np.float32), np.zeros(shape, np.int16)
    hu += rng.normal(0, 3, shape).astype(np.float32)
    for number, (i, j, k) in enumerate(ijk):
        hu[k, j, i], labels[k, j, i] = 3000, 1 + 2 * (number % 2)
    points = ijk @ affine[:3, :3].T + affine[:3, 3]
    landmarks = {f"bead {n}": torch.from_numpy(point) for n, point in enumerate(points)}
    volume = Volume(hu, affine, labels, STRUCTURES)
    made = {}
    for number in range(views):
        made[f"run/{number}.a"] = _view(rng, f"run/{number}.a", points, ("detector", "source")[number % 2], fraction)
    names = list(made)
    groups = ((names[0], names[2]), (names[1],)) if views == 3 else tuple((name,) for name in names)
    return Beads(volume, landmarks, made, groups)


def _view(rng, name, points, view_from, fraction) -> View:
    camera = Camera(60, 90, (1.9, 2.7), 1130.25, (41.3, 32.7), view_from)
    pose = samples.looking_at(rng, points.mean(axis=0), 700.0)
    uv = pinhole(camera.K, pose.matrix, points)
    image = rng.integers(0, 900, (60, 90)).astype(np.float32)
    for number, (u, v) in enumerate(np.rint(uv).astype(int)):
        image[v, u] = 1000 + number
    image += fraction * rng.normal(0, 1, image.shape).astype(np.float32)
    meta = {"intensity": ("transmission", "attenuation")[view_from == "source"], "kvp": 71.5}
    xray = XRay(image, camera, pose, meta)
    header = Pose(samples.rigid(rng)) if view_from == "detector" else None
    segmentation = torch.from_numpy(rng.integers(0, 4, (60, 90)).astype(np.int16))
    seen = {f"bead {n}": torch.from_numpy(point) for n, point in enumerate(uv)}
    return View(name, xray, header, seen, segmentation, {STRUCTURES[1]: Pose(samples.rigid(rng))})
