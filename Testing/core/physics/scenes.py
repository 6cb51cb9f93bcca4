"""What the tests of the simulator look at."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from DiffDRRCore import Camera, Pose, Volume
from DiffDRRCore.physics import (
    Simulator,
    Spectrum,
    material,
)
from Testing.core import samples
from Testing.core.physics.solids import at

GOLDEN = json.loads(Path(__file__).with_name("golden.json").read_text(encoding="utf-8"))
BONE_HU = 1000 * float(
    material("cortical bone").linear_attenuation(70.0) / material("water").linear_attenuation(70.0) - 1
)
BEAM = Camera.parallel_beam(64, 64, (0.5, 0.5), 1000.0)
FROM_BELOW = at(0.0, 0.0, -500.0)


def spekpy_spectrum() -> Spectrum:
    """SpekPy's own spectrum: 90 kVp, 12 degrees, 4 mm Al."""
    table = GOLDEN["spectrum"]
    return Spectrum.from_table(table["kev"], table["photons"], table["kvp"])


def slab(mm: float, hu: float = 0.0, width: float = 800.0, dtype=torch.float32) -> Volume:
    """Across the z axis, faces on voxel faces; 20 voxels through."""
    affine = torch.diag(torch.tensor([width / 8, width / 8, mm / 20, 1.0], dtype=torch.float64))
    affine[:3, 3] = torch.tensor([-width / 16 * 7, -width / 16 * 7, -mm / 40 * 19])
    return Volume(torch.full((20, 8, 8), hu, dtype=dtype), affine)


def body(seed: int = 0, dtype=torch.float32) -> Volume:
    """A smooth blob of HU with labels, on an oblique, anisotropic grid, left-handed for odd seeds."""
    rng, shape = np.random.default_rng(seed), (19, 24, 22)
    axes = samples.rotation(rng) @ np.diag([2.1, 1.7, -3.0 if seed % 2 else 3.0])
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = axes, -axes @ ((np.array(shape[::-1]) - 1) / 2)
    coarse = torch.as_tensor(rng.normal(0.0, 1.0, (1, 1, 5, 6, 5)))
    smooth = torch.nn.functional.interpolate(coarse, shape, mode="trilinear", align_corners=True)[0, 0]
    hu = torch.where(smooth > -0.3, 900 * smooth, -1000.0).to(dtype)
    return Volume(hu, affine, (smooth > 0.8).short() + (smooth > 1.2).short(), {1: "shell", 2: "core"})


def view(seed: int = 0, height: int = 20, width: int = 24, side: str = "source") -> tuple[Camera, Pose]:
    pose = samples.looking_at(np.random.default_rng(seed), (0.0, 0.0, 0.0), 600.0)
    return Camera(height, width, (6.1, 5.3), 1000.0, view_from=side), pose


def simulated(volumes=(), spectrum=None, **options) -> Simulator:
    return Simulator(volumes, spectrum or Spectrum.tungsten(80), **options)
