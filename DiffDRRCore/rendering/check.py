"""Does each backend give the right images on this machine? A small CT, held to the reference in float64."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from DiffDRRCore.geometry import CArm
from DiffDRRCore.imaging.volume import Volume
from DiffDRRCore.rendering.backends import INTEGRATORS, why_not
from DiffDRRCore.rendering.renderer import Renderer

IMAGE_TOLERANCE, DERIVATIVE_TOLERANCE = 1e-4, 1e-3
_FUSED = ("cpu", "cuda")


@dataclass(frozen=True)
class Check:
    """How far a backend is from the reference: largest differences, relative to the reference's largest value.

    Attributes:
        image, jacobian, gradient: of the image, of `linearize`, and of the gradient by the voxels.
        first_seconds: of the first image with its derivatives, compilation included.
    """

    backend: str
    integrator: str
    image: float
    jacobian: float
    gradient: float
    first_seconds: float

    @property
    def passed(self) -> bool:
        """Whether all is within 1e-4 (image) and 1e-3 (derivatives)."""
        return self.image < IMAGE_TOLERANCE and max(self.jacobian, self.gradient) < DERIVATIVE_TOLERANCE


def missing_backends() -> dict[str, str]:
    """The fused backends that cannot run here, and why."""
    reasons = {name: why_not(name, name) for name in _FUSED}
    return {name: reason for name, reason in reasons.items() if reason is not None}


def check_backends(progress: Callable[[str], None] | None = None) -> list[Check]:
    """Check every fused backend that can run here, with both integrators; this also compiles their kernels.

    Args:
        progress: called with a line of text before each check.
    """
    checks = []
    for backend in _FUSED:
        for integrator in INTEGRATORS if backend not in missing_backends() else ():
            if progress is not None:
                progress(f"checking {backend}, {integrator}")
            checks.append(_check(backend, integrator))
    return checks


def _check(backend: str, integrator: str) -> Check:
    voxels, ijk_to_ras = _small_ct()
    begun = time.perf_counter()
    found = _results(voxels.float().to(backend), ijk_to_ras, integrator, backend)
    seconds = time.perf_counter() - begun
    truth = _results(voxels, ijk_to_ras, integrator, "torch")
    errors = (float((a.cpu() - b).abs().max() / b.abs().max()) for a, b in zip(found, truth, strict=True))
    return Check(backend, integrator, *errors, seconds)


def _small_ct() -> tuple[Tensor, Tensor]:
    """Blocks of uneven attenuation on an oblique, left-handed, anisotropic grid: voxels [K, J, I], ijk_to_ras."""
    generator = torch.Generator().manual_seed(7)
    voxels = 0.02 * torch.rand(20, 24, 28, generator=generator, dtype=torch.float64)
    voxels[:, 8:12] = 0
    axes = torch.tensor([[1.9, 0.3, -0.2], [0.2, -2.1, 0.4], [0.1, 0.5, 3.2]], dtype=torch.float64)
    ijk_to_ras = torch.eye(4, dtype=torch.float64)
    ijk_to_ras[:3, :3], ijk_to_ras[:3, 3] = axes, torch.tensor([-31.0, 22.0, 17.0], dtype=torch.float64)
    return voxels, ijk_to_ras


def _results(voxels: Tensor, ijk_to_ras: Tensor, integrator: str, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    """Image, Jacobian by the pose, gradient by the voxels of a weighted sum of the pixels; float64."""
    voxels = voxels.clone().requires_grad_(True)
    volume = Volume.from_attenuation(voxels, ijk_to_ras)
    carm = CArm(600.0, 400.0, volume.center.cpu(), 23.0, 11.0)
    camera = carm.camera(36, 40, (3.0, 2.7))
    renderer = Renderer(volume, integrator, backend=backend)
    image = renderer(camera, carm.pose)
    weight = torch.linspace(-1, 1, image.numel(), dtype=voxels.dtype, device=voxels.device).reshape(image.shape)
    (gradient,) = torch.autograd.grad((image * weight).sum(), voxels)
    jacobian = renderer.linearize(camera, carm.pose, volume.center)[1]
    return tuple(x.detach().double() for x in (image, jacobian, gradient))
