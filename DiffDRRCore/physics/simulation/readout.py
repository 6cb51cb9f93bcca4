"""From the radiation behind the grid to counts: quantum noise, blur, electronic noise, gain, offset and bit depth."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from DiffDRRCore.errors import PhysicsError
from DiffDRRCore.geometry import Camera
from DiffDRRCore.physics.detector import Detector
from DiffDRRCore.physics.noise import compound_poisson, noisy, with_electronic
from DiffDRRCore.physics.simulation.effects import Effects, Exposure
from DiffDRRCore.physics.spectra import Spectrum


class Arrived(NamedTuple):
    """Images [H, W]; mean and spread over those of the open field in front of the grid.

    The spread is the variance, or the photons of each energy [E, H, W] where their numbers are to be drawn.
    """

    primary: Tensor
    scatter: Tensor
    mean: Tensor
    spread: Tensor | None


class Readout:
    """What detector and exposure make of the radiation.

    Args:
        spectrum: of the beam; `beam` is the same or one of fewer energies.
        passed: the share of the primary radiation that comes through the grid.

    Attributes: `first` and `second` [E], mean and variance of the signal per photon of each energy of `beam`.
    Raises PhysicsError for a detector with a bit depth or an offset but no exposure.
    """

    def __init__(
        self, spectrum: Spectrum, beam: Spectrum, detector: Detector, exposure: Exposure | None, effects: Effects
    ):
        if exposure is None and (detector.bits is not None or detector.offset):
            raise PhysicsError("A detector with a bit depth or an offset needs an exposure: give photons or air kerma.")
        self.spectrum, self.beam, self.detector, self.exposure, self.effects = (
            spectrum, beam, detector, exposure, effects,
        )  # fmt: skip
        self.first, self.second = detector.weights(beam.energies)

    @property
    def passed(self) -> float:
        """What the grid lets through of the primary radiation."""
        scatter = self.effects.scatter
        return 1.0 if scatter is None or scatter.grid is None else scatter.grid.primary

    @property
    def noise(self) -> bool:
        """Whether there is quantum noise."""
        return self.exposure is not None and self.exposure.noise

    @property
    def draws_photons(self) -> bool:
        """Whether the numbers of photons are drawn, for which the spread is that of each energy."""
        return self.noise and self.exposure.poisson

    def i0(self, camera: Camera) -> float:
        """The open field in the principal ray in the image's units, less the offset."""
        if self.exposure is None:
            return 1.0
        return self.detector.gain * self._photons(camera) * self._open_field[0] * self.passed

    def blurred(self, image: Tensor, camera: Camera) -> Tensor:
        """By the detector."""
        blur = self.effects.detector_blur(camera)
        return image if blur is None else blur(image)

    def signal(self, camera: Camera, arrived: Arrived, generator: torch.Generator) -> Tensor:
        """With quantum noise and blur, in keV or photons per pixel; without an exposure, over the open field."""
        if self.exposure is None:
            return self.blurred(arrived.mean, camera) / self.passed
        photons = self._photons(camera)
        first, second = (photons * level for level in self._open_field)
        if not self.noise:
            return self.blurred(first * arrived.mean, camera)
        options = {"swank": self.exposure.swank, "generator": generator, "blur": self.effects.detector_blur(camera)}
        if not self.draws_photons:
            return noisy(first * arrived.mean, second * arrived.spread, **options)
        absorbed = self.detector.absorbed(self.beam.energies)
        weights = torch.where(absorbed > 0, self.first / torch.where(absorbed > 0, absorbed, 1), 0)
        drawn = arrived.spread * (photons * absorbed).to(arrived.spread)[:, None, None]
        return compound_poisson(drawn, weights, **options)

    def counts(self, signal: Tensor, generator: torch.Generator) -> Tensor:
        """The image of a signal, which may have got lag: electronic noise, gain, offset and bits."""
        if self.exposure is None:
            return signal
        if self.noise:
            signal = with_electronic(signal, self.exposure.electronic, generator)
        return self.detector.read_out(signal)

    def _photons(self, camera: Camera) -> float:
        return self.exposure.photons_per_pixel(self.spectrum, camera)

    @property
    def _open_field(self) -> tuple[float, float]:
        """Mean and variance of the signal per photon that arrives in the open field."""
        share = self.beam.photons / self.beam.photons.sum()
        return float((share * self.first).sum()), float((share * self.second).sum())
