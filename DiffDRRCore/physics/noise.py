"""Noise of X-ray images: quantum noise of both kinds of detector, gain fluctuations, electronic noise.

A pixel that N(E) photons reach has a signal of mean sum N m1 and variance sum N m2, with the weights (m1, m2) of
`Detector.weights`. For an energy-integrating detector that absorbs all photons, variance / mean^2 =
<E^2> / (<E>^2 N): more than the 1/N of a photon counter (Swank, J. Appl. Phys. 44 (1973) 4199). Signals are in keV or
photons per pixel, images [..., H, W]. Random numbers come from a `torch.Generator`, on the image's device: the same
seed gives the same image on the same kind of device, not the same one on CPU and GPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from DiffDRRCore.errors import PhysicsError
from DiffDRRCore.geometry.tensors import as_tensor

_WORD = 2**64 - 1


def seeded(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A random generator on `device` that starts from `seed`, any whole number from 0; neighbours are independent.

    The bits are mixed first (splitmix64: Steele et al., OOPSLA 2014), as PyTorch advises seeds with as many ones as
    zeros. Raises PhysicsError for a negative seed.
    """
    if seed < 0 or seed != int(seed):
        raise PhysicsError(f"A seed is a whole number from 0, got {seed}.")
    mixed = (int(seed) + 0x9E3779B97F4A7C15) & _WORD
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _WORD
    return torch.Generator(device).manual_seed((mixed ^ (mixed >> 31)) >> 1)


def signal_moments(photons: Tensor, weights: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """(mean, variance) [...] of the signal in a pixel that photons [E, ...] reach.

    weights: (first, second) [E] each, as `Detector.weights` gives them. Raises PhysicsError for negative photons.
    """
    photons = _not_negative(photons, "Photons per pixel")
    first, second = (as_tensor(weight).to(photons) for weight in weights)
    _check_energies(photons, first, second)
    return torch.tensordot(first, photons, dims=1), torch.tensordot(second, photons, dims=1)


def noisy(
    mean: Tensor,
    variance: Tensor,
    generator: torch.Generator | None = None,
    electronic: float = 0.0,
    swank: float = 1.0,
    blur: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """mean + sqrt(variance / swank) * normal: quantum noise in its Gaussian limit, differentiable in both arguments.

    Good from about 20 photons per pixel upwards; below it, the noise is skew and this gives negative signals:
    `compound_poisson` is exact there. Where the mean is the number of photons counted, the variance is the mean.

    Args:
        mean, variance: [..., H, W], signal and signal^2, without blur of the detector.
        electronic: standard deviation of the read-out's noise, in units of the signal, white.
        swank: the Swank factor of the scintillator, in (0, 1]: fluctuations of the light per photon divide the
            quantum variance by it. 0.85 to 0.95 is typical of CsI: replace it by one's own measurement.
        blur: the detector's blur, from [..., H, W] to the same, applied to signal and quantum noise alike, not to the
            electronic noise: the noise power spectrum becomes sigma^2 MTF^2 + electronic^2.

    Raises PhysicsError for a negative variance, missing values, and parameters out of range.
    """
    _check_parameters(electronic, swank)
    if not bool(torch.isfinite(mean.detach()).all()):
        raise PhysicsError("The mean signal has values that are not finite numbers.")
    variance = _not_negative(variance, "The variance of the signal")
    # sqrt has no slope at 0, where there is no noise either.
    dark = variance == 0
    deviation = torch.where(dark, 0, torch.where(dark, 1, variance / swank).sqrt())
    signal = mean + deviation * _normal(mean, generator)
    return with_electronic(signal if blur is None else blur(signal), electronic, generator)


def compound_poisson(
    photons: Tensor,
    weights: Tensor,
    generator: torch.Generator | None = None,
    electronic: float = 0.0,
    swank: float = 1.0,
    blur: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """A random signal [...] of photons absorbed [E, ...]: sum over E of weight * Poisson(photons), exact at any dose.

    Args:
        photons: [E, ...] mean number absorbed per pixel and energy bin (arriving photons times `Detector.absorbed`).
        weights: [E] signal per absorbed photon: its energy in keV (integrating) or 1 (counting).
        electronic, swank, blur: as for `noisy`; the fluctuations of the light are Gaussian for each energy.

    It has no gradient. Raises PhysicsError as `noisy` does.
    """
    _check_parameters(electronic, swank)
    photons = _not_negative(photons, "Photons per pixel").detach()
    weights = as_tensor(weights).to(photons)
    _check_energies(photons, weights)
    signal = torch.zeros_like(photons[0])
    for number, weight in zip(photons, weights, strict=True):
        counted = torch.poisson(number, generator=generator)
        signal = signal + weight * counted
        if swank < 1:
            spread = (counted * (1 / swank - 1)).sqrt()
            signal = signal + weight * spread * _normal(counted, generator)
    return with_electronic(signal if blur is None else blur(signal), electronic, generator)


def with_electronic(signal: Tensor, electronic: float, generator: torch.Generator | None = None) -> Tensor:
    """A signal with white noise of the standard deviation `electronic`, as the read-out adds it: after blur and lag."""
    return signal + electronic * _normal(signal, generator) if electronic else signal


def _normal(like: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randn(like.shape, dtype=like.dtype, device=like.device, generator=generator)


def _not_negative(values: Tensor, what: str) -> Tensor:
    values = as_tensor(values)
    known = values.detach()
    if not bool((torch.isfinite(known) & (known >= 0)).all()):
        raise PhysicsError(f"{what} must be 0 or more everywhere, and finite.")
    return values


def _check_energies(photons: Tensor, *weights: Tensor) -> None:
    for weight in weights:
        if photons.dim() == 0 or weight.shape != photons.shape[:1]:
            raise PhysicsError(
                f"Photons have one image for each of the {weight.numel()} energies first, got {list(photons.shape)}."
            )


def _check_parameters(electronic: float, swank: float) -> None:
    if not (math.isfinite(electronic) and electronic >= 0):
        raise PhysicsError(f"Electronic noise is a standard deviation of 0 or more, got {electronic}.")
    if not 0 < swank <= 1:
        raise PhysicsError(f"The Swank factor lies above 0 and up to 1, got {swank}.")
