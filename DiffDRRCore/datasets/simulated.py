"""Fluoroscopies simulated from a CT, for demonstrations, tests and benchmarks of registration.

The image is made by another route than the one a registration renders by: the exact voxel integrator at several times
the resolution, averaged down as intensities, with Poisson noise, and a gain and an offset that nobody tells the
registration.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from DiffDRRCore.geometry import Camera, Pose
from DiffDRRCore.imaging.volume import Volume
from DiffDRRCore.imaging.xray import XRay
from DiffDRRCore.rendering import Renderer


def simulated_xray(
    volume: Volume,
    camera: Camera,
    pose: Pose,
    photons: float = 10_000,
    gain: float = 0.7,
    offset: float = 3.0,
    oversampling: int = 4,
    seed: int = 0,
) -> XRay:
    """A noisy X-ray of `volume`, in attenuation: gain * ln(photons / counts) + offset.

    Args:
        photons: mean number that reach a pixel with nothing in the way; at least half a count is left in each pixel.
        oversampling: rays along each side of a pixel.
        seed: of the Poisson noise.
    """
    generator = torch.Generator(device=volume.device).manual_seed(seed)
    fine = camera.resized(camera.height * oversampling, camera.width * oversampling)
    with torch.no_grad():
        integrals = Renderer(volume, integrator="siddon")(fine, pose)
    transmitted = avg_pool2d(torch.exp(-integrals.double()), oversampling)[0, 0]
    counts = torch.poisson(photons * transmitted, generator=generator).clamp(min=0.5)
    image = gain * torch.log(photons / counts) + offset
    return XRay(image.float(), camera, pose, {"intensity": "attenuation", "simulated": True})


def points_in_bone(volume: Volume, count: int = 200, threshold: float = 150.0, seed: int = 0) -> Tensor:
    """Random voxel centres [N, 3] (RAS mm) above `threshold` HU, to measure registration errors at; N <= count."""
    kji = torch.nonzero(volume.hu > threshold)
    order = torch.randperm(len(kji), generator=torch.Generator().manual_seed(seed))
    ijk = kji[order[:count].to(kji.device)].flip(-1).double()
    return ijk @ volume.ijk_to_ras[:3, :3].T + volume.ijk_to_ras[:3, 3]
