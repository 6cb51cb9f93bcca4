"""A dataset in memory: a phantom on an oblique left-handed grid, X-rays with known poses, points projected by hand."""

from __future__ import annotations

from functools import cache, cached_property

import numpy as np
import torch

from DiffDRRCore import Camera, Pose, Volume, XRay
from DiffDRRCore.datasets.dataset import Dataset, Subject, View
from DiffDRRCore.datasets.phantom import phantom
from DiffDRRCore.errors import ReadError
from Testing.core.samples import looking_at
from Testing.scene import kit

SHAPE, SPACING = (48, 36, 42), 8.0
CAMERA = Camera(40, 50, (7.0, 6.0), 1020.0, (26.3, 17.8), "detector")
DEPTH = 760.0  # mm from the source to the CT's centre
NAMES = ("one", "two", "bare", "broken")
BODY = "femur_left"
VOXELS = {"top": (20.0, 17.0, 40.0), "left tip": (9.5, 20.0, 12.0), "right_tip": (33.0, 15.0, 11.0), "x": (21, 9, 24)}


@cache
def ct() -> Volume:
    """Whole HU, and labels with names; its centre is not the origin."""
    whole = phantom(shape=SHAPE, spacing=SPACING)
    grid = kit.grid(np.random.default_rng(3), SHAPE, left_handed=True, spacing=(6.0, 9.0))
    grid[:3, 3] += (30.0, -45.0, 120.0)
    return Volume(whole.hu.round(), grid, whole.labels, whole.label_names)


def points() -> dict[str, np.ndarray]:
    """Landmarks by name, RAS mm."""
    return {name: kit.apply(ct().ijk_to_ras.numpy(), ijk) for name, ijk in VOXELS.items()}


def pose(seed: int) -> Pose:
    """A reference pose that sees the CT's centre off the middle of the image."""
    rng = np.random.default_rng(seed)
    seen = looking_at(rng, ct().center.numpy(), DEPTH)
    shift = np.eye(4)
    shift[:3, 3] = seen.rotation.numpy() @ (11.0, -17.0, 0.0)
    return Pose(shift) @ seen


def pixels(pose_matrix, targets, K=None) -> np.ndarray:
    """(u, v) of RAS points by the pinhole equation alone."""
    local = kit.apply(np.linalg.inv(pose_matrix), np.atleast_2d(targets))
    homogeneous = local @ np.asarray(CAMERA.K if K is None else K, float).T
    return homogeneous[:, :2] / homogeneous[:, 2:]


def header_pose() -> Pose:
    """Near the reference of "one": 3 degrees and 9 mm away, about the CT's centre."""
    center = np.eye(4)
    center[:3, 3] = ct().center.numpy()
    motion = Pose.from_parameters([2.0, -2.0, 1.0], [4.0, -7.0, 4.0], "euler_angles", "ZYX", degrees=True)
    return Pose(center) @ motion @ Pose(np.linalg.inv(center)) @ pose(1)


def body_pose() -> Pose:
    """Of a femur that turned, in "one"."""
    turn = Pose.from_parameters([4.0, -7.0, 3.0], [2.0, 5.0, -6.0], "euler_angles", "ZYX", degrees=True)
    return turn @ pose(1)


def segmentation() -> np.ndarray:
    """[H, W] numbers without symmetry."""
    numbers = np.zeros((CAMERA.height, CAMERA.width), np.int16)
    numbers[5:20, 8:30], numbers[15:33, 25:44], numbers[30:35, 3:6] = 7, 10, 3
    return numbers


def image(name: str) -> np.ndarray:
    return np.random.default_rng(NAMES.index(name)).uniform(100, 200, (CAMERA.height, CAMERA.width)).astype(np.float32)


class SmallSubject(Subject):
    """Counts how often its CT is read."""

    reads = 0

    def __init__(self, name: str):
        self.name = name

    @cached_property
    def volume(self) -> Volume:
        SmallSubject.reads += 1
        return ct()

    @cached_property
    def landmarks(self):
        return {name: torch.from_numpy(point) for name, point in points().items()}

    @property
    def view_names(self):
        return NAMES

    def _view(self, name: str) -> View:
        if name == "broken":
            raise ReadError("The image 'broken' is damaged.")
        seen = {"one": pose(1), "two": pose(2)}.get(name)
        xray = XRay(image(name), CAMERA, seen, {"intensity": "transmission", "dataset": "Small"})
        if name != "one":
            return View(name, xray)
        projected = pixels(seen.matrix.numpy(), list(points().values()))
        found = {name: torch.from_numpy(uv) for name, uv in zip(points(), projected, strict=True)}
        found.pop("x")  # lies outside the image, say
        return View(name, xray, header_pose(), found, torch.from_numpy(segmentation()), {BODY: body_pose()})


class Small(Dataset):
    """Two subjects that look alike."""

    title = "Small"

    def __init__(self, path="small"):
        self.path = path

    @property
    def subject_names(self):
        return "A", "B"

    def _subject(self, name: str):
        return SmallSubject(name)
