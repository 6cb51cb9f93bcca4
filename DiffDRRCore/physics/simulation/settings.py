"""How a simulated X-ray is taken, as plain values: tube, dose, detector, effects; one set of names and defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from DiffDRRCore import values
from DiffDRRCore.errors import DiffDRRError, PhysicsError
from DiffDRRCore.geometry import Camera
from DiffDRRCore.physics.blur import lagged
from DiffDRRCore.physics.collimator import Collimator
from DiffDRRCore.physics.decomposition import METHODS
from DiffDRRCore.physics.detector import Detector
from DiffDRRCore.physics.materials import material
from DiffDRRCore.physics.scatter import Grid, Scatter
from DiffDRRCore.physics.simulation.effects import Effects, Exposure, Heel, Lag
from DiffDRRCore.physics.spectra import ANODE_ANGLE, FILTRATION, Spectrum
from DiffDRRCore.physics.tube import HIGHEST_KVP, LOWEST_KVP

if TYPE_CHECKING:
    from DiffDRRCore.physics.simulation.simulator import Simulator

DETECTORS = ("csi", "ideal", "counting")
INTEGRATORS = ("trilinear", "siddon")
DOSE = 1.0  # uGy
OPEN_FIELD = 0.8  # of the largest count: room for a heel effect towards the cathode, and for scatter beside the patient
HEADROOM = 5.0  # standard deviations of the open field's noise: one pixel in a million is beyond
_KINDS = {
    "bool": values.flag,
    "int": values.whole(),
    "int | None": values.optional(values.whole()),
    "float": values.number(),
    "float | None": values.optional(values.number()),
}
Own = TypeVar("Own", bound="Settings")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How an X-ray is taken. All of it is plain values that JSON can hold; lengths in mm, angles in degrees.

    kvp, filtration, anode_angle: the tube; filtration in mm of each filter, the tube's own included
    energy:         keV of a beam of one energy, in place of the tube
    spectrum_file:  table of keV and photons (`Spectrum.read`), in place of the tube
    dose, photons:  uGy at the detector, or photons per pixel, in the open field; None for both is 1 uGy
    noise, electronic: quantum noise; read-out noise in keV or photons
    swank:          Swank factor of the scintillator, (0, 1]
    poisson:        draws the number of photons of each energy: exact at any dose, and slower
    detector, csi_mm: "csi" (energy-integrating behind so much CsI), "ideal" (absorbs all), "counting" (so, and counts)
    bits:           bit depth; None leaves the counts unrounded
    gain:           counts per keV or photon; None is what `gained` finds, or 1 without `bits`
    focal_spot:     full width at half maximum
    blur:           1/mm at which the detector's MTF is one half, or the MTF itself, (frequencies, values); None is none
    scatter, grid, air_gap: mm of air between patient and detector; None is what each view has
    heel:           the heel effect, weaker down the image
    solid_angle:    less for pixels far from the principal ray: inverse square law and obliquity
    collimator, aperture: (top, bottom, left, right) covered, and the radius of a round field, mm at the detector
    lag:            ((weight, retention), ...) of what sequences keep of earlier frames, as of `blur.lagged`
    samples:        rays a pixel along each side, averaged; 1 is the one through its centre
    decomposition:  of the HU to materials, as of `decompose`
    integrator:     through the voxels, as of `Renderer`
    """

    kvp: float = 80.0
    filtration: Mapping[str, float] = field(default_factory=lambda: dict(FILTRATION))
    anode_angle: float = ANODE_ANGLE
    energy: float | None = None
    spectrum_file: str | None = None
    dose: float | None = None
    photons: float | None = None
    noise: bool = True
    electronic: float = 0.0
    swank: float = 1.0
    poisson: bool = False
    detector: str = "csi"
    csi_mm: float = 0.6
    bits: int | None = 16
    gain: float | None = None
    focal_spot: float = 0.0
    blur: float | tuple[tuple[float, ...], tuple[float, ...]] | None = None
    scatter: bool = False
    grid: bool = False
    air_gap: float | None = None
    heel: bool = False
    solid_angle: bool = False
    collimator: tuple[float, float, float, float] | None = None
    aperture: float | None = None
    lag: tuple[tuple[float, float], ...] = ()
    samples: int = 1
    decomposition: str = METHODS[0]
    integrator: str = INTEGRATORS[0]

    @classmethod
    def from_dict(cls: type[Own], content: Mapping[str, Any]) -> Own:
        """Of values by name, as `to_dict` gives them; what is left out has its default.

        Raises PhysicsError for a name that there is not, one that is missing, and a value of another kind.
        """
        where, known = "The settings of a simulated X-ray", {one.name: one for one in fields(cls)}
        for name in content:
            if name not in known:
                raise PhysicsError(str(values.unknown(where, name, known)))
        needed = [one.name for one in known.values() if one.default is MISSING and one.default_factory is MISSING]
        missing = [name for name in needed if name not in content]
        if missing:
            raise PhysicsError(f"{where} lack {', '.join(missing)}.")
        return cls(**{name: _checked(name, known[name].type, value) for name, value in content.items()})

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold."""
        return asdict(self)

    def with_values(self: Own, changed: Mapping[str, Any]) -> Own:
        """With other values of some fields."""
        return replace(self, **changed)

    def check(self) -> None:
        """Raise PhysicsError or ReadError for values that cannot be."""
        for name, known in (("decomposition", METHODS), ("integrator", INTEGRATORS)):
            _check_word(name, getattr(self, name), known)
        for name in ("noise", "poisson", "scatter", "grid", "heel", "solid_angle"):
            if not isinstance(getattr(self, name), bool):  # "none" would count as true
                raise PhysicsError(f"The setting {name} is True or False, not {getattr(self, name)!r}.")
        self.spectrum(), self.exposure(), self.detector_model(), self.effects()

    @property
    def has_tube(self) -> bool:
        """Whether the beam is that of a tube of `kvp`."""
        return self.energy is None and self.spectrum_file is None

    def spectrum(self) -> Spectrum:
        """The beam. Raises PhysicsError, with a hint where the kVp looks like a mean energy; ReadError for a file."""
        if self.energy is not None and self.spectrum_file is not None:
            raise PhysicsError("A beam has one energy or the spectrum of a file: give one of the two.")
        if self.energy is not None:
            return Spectrum.monochromatic(self.energy)
        if self.spectrum_file is not None:
            return Spectrum.read(Path(self.spectrum_file))
        if 15 <= self.kvp < LOWEST_KVP:
            raise PhysicsError(
                f"The tube voltage must be {LOWEST_KVP:g} to {HIGHEST_KVP:g} kVp, not {self.kvp:g}; if that is a mean "
                "photon energy in keV, the kVp is about twice as much."
            )
        return Spectrum.tungsten(self.kvp, self.filtration, self.anode_angle)

    def exposure(self) -> Exposure:
        """Dose and noise."""
        dose = DOSE if self.dose is None and self.photons is None else self.dose
        return Exposure(self.photons, dose, self.noise, self.electronic, self.swank, self.poisson)

    def detector_model(self, gain: float = 1.0) -> Detector:
        """What the detector does."""
        _check_word("detector", self.detector, DETECTORS)
        options = {"gain": gain, "bits": self.bits}
        if self.detector == "csi":
            return Detector.scintillating(material("CsI").mass_attenuation, self.csi_mm, **options)
        kind = "photon_counting" if self.detector == "counting" else "energy_integrating"
        return Detector(kind, **options)

    def effects(self) -> Effects:
        """Blur, scatter, heel, collimation and so on."""
        if self.grid and not self.scatter:
            raise PhysicsError("A grid is there to stop scatter: switch that on as well.")
        if not self.has_tube and (self.scatter or self.heel):
            what = "Scatter is known for" if self.scatter else "The heel effect is that of"
            raise PhysicsError(f"{what} tubes with a kVp: leave it out, or the beam of one's own.")
        blades = self.collimator is not None or self.aperture is not None
        return Effects(
            focal_spot_mm=self.focal_spot,
            detector_mtf=self.blur or None,
            scatter=Scatter(self.kvp, self.air_gap, Grid() if self.grid else None) if self.scatter else None,
            heel=Heel() if self.heel else None,
            solid_angle=self.solid_angle,
            collimator=Collimator(self.collimator or (0.0,) * 4, self.aperture) if blades else None,
            lag=self._lag(),
            samples=self.samples,
        )

    def _lag(self) -> Lag | None:
        if not self.lag:
            return None
        if not all(len(part) == 2 for part in self.lag):
            raise PhysicsError(f"Lag is pairs of a weight and a retention, not {self.lag}.")
        weights, retentions = zip(*self.lag, strict=True)
        lagged(torch.zeros(1, 1, 1), weights, retentions)  # raises for numbers that cannot be
        return Lag(weights, retentions)

    def applied(self, simulator: Simulator, camera: Camera, **changes) -> Simulator:
        """The volumes of `simulator` under these settings, its gain included; changes as of `Simulator.changed`.

        Decomposition and integrator stay those of `simulator`.
        """
        own = {"spectrum": self.spectrum(), "exposure": self.exposure(), "effects": self.effects()}
        return self.gained(simulator.changed(**own, detector=self.detector_model(), **changes), camera)

    def gained(self, simulator: Simulator, camera: Camera) -> Simulator:
        """A `simulator` of these settings, whose gain is 1, with the gain that they want.

        Where they have bits and no gain, the open field is put at 0.8 of the largest count; lower where the heel effect
        or the noise of a low dose needs more room: its brightest pixel and 5 standard deviations stay below that count.
        """
        gain = self.gain
        if gain is None and self.bits is not None:
            gain = (2**self.bits - 1) / _largest_signal(simulator, camera)
        return simulator if gain is None else simulator.changed(detector=self.detector_model(gain))


def _largest_signal(simulator: Simulator, camera: Camera) -> float:
    """In keV or photons: what the open field may reach."""
    mean, shape = simulator.i0(camera), simulator.field(camera)
    brightest = mean * (1.0 if shape is None else float(shape.max()))
    exposure, beam = simulator.exposure, simulator.beam
    if not exposure.noise:
        return max(mean / OPEN_FIELD, brightest)
    first, second = (float((beam.photons * one).sum()) for one in simulator.detector.weights(beam.energies))
    variance = brightest * second / first / exposure.swank + exposure.electronic**2
    return max(mean / OPEN_FIELD, brightest + HEADROOM * variance**0.5)


def _check_word(name: str, value: Any, known: tuple[str, ...]) -> None:
    if value not in known:
        raise PhysicsError(f"The {name} is one of {', '.join(known)}, not {value!r}.")


def _checked(name: str, kind: Any, value: Any) -> Any:
    """A value of that annotation; JSON's lists are tuples."""
    try:
        return _KINDS[kind](f"The setting {name}", value) if kind in _KINDS else _tuples(value)
    except DiffDRRError as error:
        raise PhysicsError(str(error)) from error


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value
