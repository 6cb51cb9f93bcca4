"""Bead phantoms and their X-rays, made without the code under test."""

from __future__ import annotations

import numpy as np
import torch

from DiffDRRCore import Camera, CArm, Pose, XRay, project
from DiffDRRCore.calibration import BeadPhantom
from DiffDRRCore.datasets.shapes import Sphere
from DiffDRRCore.physics.simulation.effects import Effects, Exposure
from DiffDRRCore.physics.simulation.objects import BeamObject
from DiffDRRCore.physics.simulation.simulator import Simulator
from DiffDRRCore.physics.spectra import Spectrum

SDD = 1020.0


def camera(size: int = 1024, spacing: float = 0.3, principal_point=(520.0, 505.0), sdd: float = SDD, **more) -> Camera:
    return Camera(size, size, (spacing, spacing), sdd, principal_point, **more)


def poses(rng: np.random.Generator, count: int, shift: float = 10.0) -> list[Pose]:
    return [
        CArm(
            SDD,
            rng.uniform(580, 660),
            rng.normal(0, shift, 3),
            rng.uniform(-90, 90),
            rng.uniform(-40, 40),
            rng.uniform(-30, 30),
        ).pose
        for _ in range(count)
    ]


def observed(camera: Camera, poses, points, rng, noise: float = 0.2, distort=None) -> list[np.ndarray]:
    """Noisy pixels [N, 2] of each image; NaN outside of it."""
    images = []
    for pose in poses:
        uv = project(camera, pose, points)[0].numpy()
        uv = uv if distort is None else distort(uv)
        uv = uv + rng.normal(0, noise, uv.shape)
        inside = ((uv >= 0) & (uv <= [camera.width - 1, camera.height - 1])).all(-1, keepdims=True)
        images.append(np.where(inside, uv, np.nan))
    return images


def xray(phantom: BeadPhantom, camera: Camera, pose: Pose, seed: int = 0, photons: float = 2e4) -> XRay:
    """Steel balls in a polychromatic beam, with focal spot, pixels of finite size and quantum noise."""
    objects = [
        BeamObject(Sphere(tuple(position), radius), "steel", name=str(number))
        for number, (position, radius) in enumerate(
            zip(phantom.positions.tolist(), phantom.radii.tolist(), strict=True)
        )
    ]
    simulator = Simulator(
        (),
        Spectrum.tungsten(80.0),
        objects=objects,
        exposure=Exposure(photons=photons),
        effects=Effects(focal_spot_mm=0.6, samples=3),
    )
    with torch.no_grad():
        return simulator(camera, pose, seed=seed).xray
