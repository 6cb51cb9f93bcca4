"""A small CT and C-arm for the tests of learning."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch

from DiffDRRCore import Camera, Volume
from DiffDRRCore.datasets import phantom
from DiffDRRCore.learning.data.subjects import Subject
from DiffDRRCore.learning.data.views import Views, ViewSampler

VIEWS = {"primary": [-30, 30], "secondary": [-20, 20], "roll": [-10, 10], "shift_s": [-20, 20], "sod": [550, 650]}
NAMES = [
    ("axis_angle", None),
    ("euler_angles", "ZXY"),
    ("quaternion", None),
    ("quaternion", "wxyz"),
    ("quaternion_adjugate", None),
    ("rotation_6d", None),
    ("rotation_9d", None),
    ("rotation_10d", None),
    ("matrix", None),
    ("se3_log", None),
]


@cache
def ct() -> Volume:
    """The phantom in 6 mm voxels, moved off the world's origin."""
    volume = phantom((40, 32, 40), 6.0, seed=2)
    affine = volume.ijk_to_ras.clone()
    affine[:3, 3] += torch.tensor([31.0, -17.0, 120.0])
    return Volume(volume.hu, affine, volume.labels, volume.label_names)


@cache
def subject() -> Subject:
    return Subject(ct())


def camera(side: int = 32, view_from: str = "source") -> Camera:
    return Camera(side, side, (320.0 / side,) * 2, 1000.0, view_from=view_from)


@cache
def sampler() -> ViewSampler:
    return ViewSampler.from_dict(VIEWS, camera())


def views(count: int = 3, step: int = 0) -> Views:
    return sampler().draw(subject(), count, seed=0, step=step)


def small(value: float = 0.0) -> Volume:
    """A box of one HU in air, 5 mm voxels."""
    hu = torch.full((4, 5, 6), -1000.0)
    hu[1:3, 1:4, 1:5] = value
    return Volume(hu, np.diag([5.0, 5.0, 5.0, 1.0]))
