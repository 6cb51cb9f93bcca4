"""How much of a beam of many energies comes through: polychromatic Beer-Lambert."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from DiffDRRCore.errors import PhysicsError
from DiffDRRCore.geometry.tensors import as_tensor
from DiffDRRCore.physics.materials import Material, material
from DiffDRRCore.physics.spectra import Spectrum

RESPONSES = ("energy", "count")
_ROUNDING = 1e-3  # g/cm2 below 0 that a renderer's rounding may leave
_CHUNK = 2**20  # exponentials at a time: 4 MB of float32, which stays in the cache


def transmission(
    areal_densities: Tensor,
    materials: Sequence[Material | str],
    spectrum: Spectrum,
    response: Tensor | str = "energy",
) -> Tensor:
    """The share of the detector's signal that comes through: sum_E w exp(-sum_m (mu/rho)_m A_m) / sum_E w.

    w = photons(E) response(E), and mu/rho is the total attenuation with coherent scattering, so what is scattered does
    not arrive (narrow beam).

    Args:
        areal_densities: [..., M] in g/cm2: the integral of each material's partial density along the ray. A slab of
            t mm of density rho g/cm3 has rho t / 10.
        materials: the M materials.
        response: the detector's signal per photon of each of the spectrum's energies, [E]; "energy" for an ideal
            energy-integrating detector (signal = keV), "count" for an ideal photon counter (signal = 1).

    Returns [...], from 0 to 1, in the dtype and on the device of `areal_densities`; differentiable once by it. The cost
    grows with the number of energies: `Spectrum.compressed` makes 16 of 300 without a loss that matters.
    Raises PhysicsError for shapes that do not fit, densities below zero and responses that are not 0 or more.
    """
    return transmissions(areal_densities, materials, spectrum, (response,))[0]


def transmissions(
    areal_densities: Tensor,
    materials: Sequence[Material | str],
    spectrum: Spectrum,
    responses: Sequence[Tensor | str],
) -> Tensor:
    """`transmission` for R responses at once, [R, ...]: the exponentials, which take the time, are the same for all."""
    areal_densities = as_tensor(areal_densities)
    if areal_densities.ndim < 1 or areal_densities.shape[-1] != len(materials) or not len(materials):
        raise PhysicsError(
            f"Areal densities are [..., M] for {len(materials)} materials, not {list(areal_densities.shape)}."
        )
    if areal_densities.numel() and float(areal_densities.detach().amin()) < -_ROUNDING:
        raise PhysicsError(
            f"An areal density cannot be below zero, as {float(areal_densities.detach().amin()):g} g/cm2 is."
        )
    coefficients = torch.stack([material(one).mass_attenuation(spectrum.energies) for one in materials])
    weights = torch.stack([signal_weights(spectrum, response) for response in responses])
    flat = areal_densities.reshape(-1, len(materials))
    passed = _Transmission.apply(flat, coefficients.to(flat), weights.to(flat))
    return passed.T.unflatten(1, areal_densities.shape[:-1]) if areal_densities.ndim > 1 else passed[0]


def signal_weights(spectrum: Spectrum, response: Tensor | str = "energy") -> Tensor:
    """[E]: the share of each energy in the signal of the open field; they add up to 1. For `response`, see above."""
    if isinstance(response, str):
        if response not in RESPONSES:
            raise PhysicsError(f"The response is {' or '.join(map(repr, RESPONSES))} or numbers [E], not {response!r}.")
        response = spectrum.energies if response == "energy" else torch.ones_like(spectrum.energies)
    response = as_tensor(response).detach().to(spectrum.photons)
    if response.shape != spectrum.photons.shape or not bool((response >= 0).all()):
        raise PhysicsError(
            f"A response is one number, 0 or more, for each of the spectrum's {len(spectrum.energies)} energies."
        )
    weights = spectrum.photons * response
    if not float(weights.sum()) > 0:
        raise PhysicsError("The detector answers to none of the spectrum's energies.")
    return weights / weights.sum()


class _Transmission(torch.autograd.Function):
    """[N, M], [M, E], [R, E] to [N, R]. The slopes come with the values, so no exponentials are kept for later."""

    @staticmethod
    def forward(ctx, areal, coefficients, weights):
        needed = ctx.needs_input_grad[0]
        slopes = -(weights[:, None] * coefficients).flatten(0, 1) if needed else weights[:0]
        sums = torch.cat([weights, slopes]).T
        rows = max(1, _CHUNK // len(sums))
        results = areal.new_empty(len(areal), sums.shape[1])
        for start in range(0, len(areal), rows):
            exponent = torch.mm(areal[start : start + rows], coefficients).neg_()
            torch.mm(exponent.exp_(), sums, out=results[start : start + rows])
        if needed:
            ctx.save_for_backward(results[:, len(weights) :])
        return results[:, : len(weights)].clamp(max=1)  # which rounding may pass

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (slopes,) = ctx.saved_tensors
        return torch.einsum("nr,nrm->nm", grad, slopes.unflatten(1, (grad.shape[1], -1))), None, None
