"""What happens to an X-ray image beside attenuation; all of it off by default."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from DiffDRRCore.errors import DiffDRRWarning, PhysicsError
from DiffDRRCore.geometry import Camera
from DiffDRRCore.physics.blur import MTF, Blur, focal_spot_mtf, lorentzian_mtf, measured_mtf
from DiffDRRCore.physics.collimator import Collimator
from DiffDRRCore.physics.detector import heel_map, photons_from_kerma, pixel_solid_angle
from DiffDRRCore.physics.materials import Material, material
from DiffDRRCore.physics.scatter import Scatter
from DiffDRRCore.physics.spectra import Spectrum, heel_factor

_MOST_PHOTONS = 1e9  # per pixel
_MOST_KERMA = 1e4  # uGy; a frame of fluoroscopy has 0.02 to 0.5, a radiograph 2 to 10
_LARGEST_SPOT = 5.0  # mm; those of C-arms are 0.3 to 1.4
_HEEL_ANGLES = 51
_MOST_SAMPLES = 16
_VOLTAGE_TOLERANCE = 5.0  # kV
_ANGLE_TOLERANCE = 1.0  # degrees
_LAYER_TOLERANCE = 0.05  # of the half-value layer
_WIDEST = 45.0  # degrees, as of `heel_factor`


@dataclass(frozen=True)
class Exposure:
    """How much radiation reaches the detector in the open field, at the foot of the principal ray, without a grid.

    photons:    per pixel; or
    kerma:      air kerma in uGy (not nGy, not mGy) - one of the two
    noise:      False for the expected image
    electronic: standard deviation of the read-out's noise, in keV (energy-integrating) or photons (counting)
    swank:      Swank factor of the scintillator, in (0, 1]
    poisson:    True draws the number of photons of each energy: exact at any dose, slower, and without gradients.
                False is its Gaussian limit, good from 20 photons per pixel behind the patient.

    Raises PhysicsError for values out of range.
    """

    photons: float | None = None
    kerma: float | None = None
    noise: bool = True
    electronic: float = 0.0
    swank: float = 1.0
    poisson: bool = False

    def __post_init__(self):
        if (self.photons is None) == (self.kerma is None):
            raise PhysicsError("An exposure is either photons per pixel or air kerma in uGy: give one of the two.")
        _check_range("The exposure in photons per pixel", self.photons, _MOST_PHOTONS, "")
        _check_range("The air kerma at the detector", self.kerma, _MOST_KERMA, " uGy (is it in nGy?)")
        if not (math.isfinite(self.electronic) and self.electronic >= 0):
            raise PhysicsError(f"Electronic noise is a standard deviation of 0 or more, got {self.electronic}.")
        if not 0 < self.swank <= 1:
            raise PhysicsError(f"The Swank factor lies above 0 and up to 1, got {self.swank}.")

    def photons_per_pixel(self, spectrum: Spectrum, camera: Camera) -> float:
        """Photons that arrive at a pixel of the open field."""
        if self.photons is not None:
            return float(self.photons)
        area = float(camera.pixel_spacing.detach().prod())
        per_kerma = float(spectrum.photons.sum()) / spectrum.air_kerma
        return float(photons_from_kerma(float(self.kerma), area, per_kerma))


@dataclass(frozen=True)
class Heel:
    """The heel effect: the beam is weaker towards the anode (`spectra.heel_factor`). Its hardness stays the same.

    anode_angle: degrees; None is that of the spectrum
    toward:      (x, y) in the camera frame: the side of the anode; (0, 1) is down the image
    filtration:  mm of each filter; None is that of the spectrum
    """

    anode_angle: float | None = None
    toward: tuple[float, float] = (0.0, 1.0)
    filtration: Mapping[Material | str, float] | None = field(default=None, hash=False)

    def tube(self, spectrum: Spectrum) -> tuple[float, float, Mapping[Material | str, float]]:
        """kVp, anode angle and filtration. Raises PhysicsError where neither this nor the spectrum states them."""
        if spectrum.kvp is None:
            raise PhysicsError("The heel effect is that of a tube: give a spectrum with a kVp, or leave it out.")
        angle = spectrum.anode_angle if self.anode_angle is None else self.anode_angle
        filtration = spectrum.filtration if self.filtration is None else self.filtration
        if angle is None or filtration is None:
            raise PhysicsError(
                "The heel effect depends on the anode's angle and the filters, which this spectrum does not state: "
                "give Heel(anode_angle=..., filtration=...)."
            )
        return spectrum.kvp, angle, filtration

    def check(self, spectrum: Spectrum) -> None:
        """Raises PhysicsError as `tube`; warns where the values are clearly not those of the spectrum."""
        kvp, angle, filtration = self.tube(spectrum)
        _compare("anode angle of the heel effect", angle, spectrum.anode_angle, _ANGLE_TOLERANCE, "degrees")
        given = {material(one): mm for one, mm in filtration.items()}
        if spectrum.filtration is not None and given != spectrum.filtration:
            layer, own = Spectrum.tungsten(kvp, given, angle).half_value_layer(), spectrum.half_value_layer()
            what = "half-value layer behind the filters of the heel effect"
            _compare(what, layer, own, _LAYER_TOLERANCE * own, "mm Al")

    def field(self, camera: Camera, spectrum: Spectrum) -> Tensor:
        """The factor on the beam in each pixel, [H, W], 1 in the principal ray. Raises PhysicsError as `tube`."""
        kvp, anode_angle, filtration = self.tube(spectrum)
        # Each angle takes some ms, so those that the image has, no more. The angle itself is a profile as well.
        ends = torch.tensor([-_WIDEST, _WIDEST], dtype=torch.float64)
        seen = heel_map(camera, ends, ends + _WIDEST, self.toward) - _WIDEST
        low, high = float(seen.min()) - 0.01, float(seen.max()) + 0.01
        angles = torch.linspace(max(low, -_WIDEST), min(high, _WIDEST), _HEEL_ANGLES, dtype=torch.float64)
        return heel_map(camera, angles, heel_factor(kvp, anode_angle, angles, filtration), self.toward)


@dataclass(frozen=True)
class Lag:
    """What sequences keep of earlier frames (`blur.lagged`): weights, retentions, and the state before the first.

    It acts on the signal with its quantum noise; the electronic noise is added to each frame afterwards.
    """

    weights: Sequence[float]
    retentions: Sequence[float]
    state: str = "steady"


@dataclass(frozen=True)
class Effects:
    """Everything beside attenuation, detector and exposure; each is off by default.

    focal_spot_mm:     size, one number or (rows, columns)
    focal_spot_shape:  "gaussian" (that full width at half maximum) or "uniform"
    magnification:     at which the focal spot blurs; None is that of the middle of the volumes and objects
    detector_mtf:      the half frequency of a Lorentzian MTF in 1/mm, or (frequencies, values) as measured, or a
                       function as in `blur`
    scatter:           a `Scatter` model
    heel:              the heel effect of the anode
    solid_angle:       whether pixels far from the principal ray get less: inverse square law and obliquity, exact
    collimator:        blades and apertures
    lag:               of sequences
    samples:           n: each pixel is the mean intensity of n x n rays, evenly spread over its area, in n^2 times the
                       time. With one ray thin wires and edges are jagged, and brighter or darker than they should be
                       where they fall between the rays. Ground truth stays that of the middle of each pixel.

    Raises PhysicsError for values out of range.
    """

    focal_spot_mm: float | tuple[float, float] = 0.0
    focal_spot_shape: str = "gaussian"
    magnification: float | None = None
    detector_mtf: float | tuple[Sequence[float], Sequence[float]] | MTF | None = None
    scatter: Scatter | None = None
    heel: Heel | None = None
    solid_angle: bool = False
    collimator: Collimator | None = None
    lag: Lag | None = None
    samples: int = 1

    def __post_init__(self):
        if self.samples not in range(1, _MOST_SAMPLES + 1):
            raise PhysicsError(
                f"The rays along each side of a pixel are a whole number from 1 to {_MOST_SAMPLES}, got "
                f"{self.samples!r}."
            )
        object.__setattr__(self, "samples", int(self.samples))
        sizes = _pair(self.focal_spot_mm)
        if not all(0 <= size <= _LARGEST_SPOT for size in sizes):
            raise PhysicsError(f"A focal spot is 0 to {_LARGEST_SPOT:g} mm wide, got {self.focal_spot_mm} mm.")
        focal_spot_mtf(sizes, self.magnification or 1.0, self.focal_spot_shape)  # raises for what is wrong
        self._detector_mtf()

    def check(self, spectrum: Spectrum) -> None:
        """Raises PhysicsError where scatter or heel need what the spectrum does not state; warns of contradictions."""
        if self.scatter is not None:
            if self.scatter.kvp is None and spectrum.kvp is None:
                raise PhysicsError(
                    "Scatter depends on the tube voltage, which this spectrum does not state: give Scatter(kvp=...)."
                )
            _compare("tube voltage of the scatter", self.scatter.kvp, spectrum.kvp, _VOLTAGE_TOLERANCE, "kV")
        if self.heel is not None:
            self.heel.check(spectrum)

    def focal_spot_blur(self, magnification: float, camera: Camera) -> Blur | None:
        """The blur by the focal spot, or None."""
        sizes = _pair(self.focal_spot_mm)
        magnification = magnification if self.magnification is None else self.magnification
        if not any(sizes) or camera.parallel:
            return None
        return Blur((focal_spot_mtf(sizes, magnification, self.focal_spot_shape),), _spacing(camera))

    def detector_blur(self, camera: Camera) -> Blur | None:
        """The blur by the detector, or None."""
        mtf = self._detector_mtf()
        return None if mtf is None else Blur((mtf,), _spacing(camera))

    def field(self, camera: Camera, spectrum: Spectrum, dtype: torch.dtype, device: torch.device) -> Tensor | None:
        """The open field [H, W], 1 in the principal ray, of heel, solid angle and collimator; None without these."""
        parts = []
        if self.heel is not None:
            parts.append(self.heel.field(camera, spectrum))
        if self.solid_angle:
            parts.append(pixel_solid_angle(camera) * (camera.K[..., 0, 0] * camera.K[..., 1, 1]).double().abs())
        if self.collimator is not None:
            parts.append(self.collimator.field(camera.height, camera.width, _spacing(camera)))
        return math.prod(part.to(device, torch.float64) for part in parts).to(dtype) if parts else None

    def _detector_mtf(self) -> MTF | None:
        if self.detector_mtf is None or callable(self.detector_mtf):
            return self.detector_mtf
        if isinstance(self.detector_mtf, (int, float)):
            return lorentzian_mtf(float(self.detector_mtf))
        if len(self.detector_mtf) != 2:
            raise PhysicsError("A measured detector MTF is two lists: frequencies (1/mm) and values.")
        return measured_mtf(*self.detector_mtf)


def _pair(size) -> tuple[float, float]:
    sizes = (size, size) if isinstance(size, (int, float)) else tuple(size)
    if len(sizes) != 2:
        raise PhysicsError(f"A focal spot has one size in mm, or one for rows and one for columns, not {size!r}.")
    return float(sizes[0]), float(sizes[1])


def _compare(what: str, given: float | None, stated: float | None, tolerance: float, unit: str) -> None:
    if given is not None and stated is not None and abs(given - stated) > tolerance:
        warnings.warn(
            f"The {what} is {given:.3g} {unit}, that of the spectrum {stated:.3g} {unit}: leave it out to take the "
            "spectrum's.",
            DiffDRRWarning,
            stacklevel=6,  # whoever makes or changes a simulator
        )


def _spacing(camera: Camera) -> tuple[float, float]:
    row, column = camera.pixel_spacing.detach().reshape(-1, 2)[0].tolist()
    return row, column


def _check_range(what: str, value: float | None, most: float, hint: str) -> None:
    if value is not None and not 0 < value <= most:
        raise PhysicsError(f"{what} must be above 0 and up to {most:g}, got {value:g}{hint}.")
