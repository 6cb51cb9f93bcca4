"""The X-ray detector: from photons that arrive at a pixel to the numbers in the image.

An energy-integrating detector (a flat panel) gives each photon the weight of its energy, a photon-counting one the
weight 1; both see only the fraction of the photons that they absorb. Signals are in keV per pixel (integrating) or
photons per pixel (counting), images in counts = gain * signal + offset.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from DiffDRRCore.errors import PhysicsError
from DiffDRRCore.geometry.camera import Camera
from DiffDRRCore.geometry.tensors import as_tensor

KINDS = ("energy_integrating", "photon_counting")
CSI_DENSITY = 4.51  # g/cm3, crystalline
CSI_PACKING = 0.75  # of that, in the needles of a flat panel's layer; typical, replace it by what the maker states
_LARGEST_THICKNESS = 10.0  # mm; the scintillators of flat panels are 0.1 to 1 mm thick
_MOST_BITS = 24  # what float32 counts exactly


@dataclass(frozen=True, eq=False)
class Detector:
    """What a detector does with the photons that arrive.

    kind:         "energy_integrating" or "photon_counting"
    absorption:   the fraction of photons absorbed, 0..1: None (ideal: all), an array [E] for the energies used, or a
                  function of energies [E] in keV; `Detector.scintillating` makes one from a scintillator's thickness
    gain:         counts per keV absorbed (integrating) or per photon absorbed (counting), > 0
    offset:       counts of an unexposed pixel
    bits:         bit depth of the image, 1 to 24; None leaves the counts unrounded and without a lower limit
    saturation:   the largest count; None is the largest that `bits` can hold, or no limit without `bits`
    scintillator, thickness: name and mm, for records only

    Raises PhysicsError for values out of these ranges.
    """

    kind: str = "energy_integrating"
    absorption: Callable[[Tensor], Tensor] | Tensor | None = None
    gain: float = 1.0
    offset: float = 0.0
    bits: int | None = None
    saturation: float | None = None
    scintillator: str = "ideal"
    thickness: float | None = None

    def __post_init__(self):
        if self.kind not in KINDS:
            raise PhysicsError(f"A detector is {KINDS[0]!r} or {KINDS[1]!r}, not {self.kind!r}.")
        if not (math.isfinite(self.gain) and self.gain > 0 and math.isfinite(self.offset)):
            raise PhysicsError(f"Gain must be positive and offset a number (counts), got {self.gain}, {self.offset}.")
        if self.bits is not None:
            _check_bits(self.bits)
        if self.saturation is not None and not self.saturation > max(self.offset, 0):
            raise PhysicsError(
                f"A detector saturates above its offset of {self.offset:g} counts, not at {self.saturation:g}."
            )

    @classmethod
    def scintillating(
        cls,
        mass_attenuation: Callable[[Tensor], Tensor],
        thickness: float = 0.6,
        density: float = CSI_DENSITY,
        packing: float = CSI_PACKING,
        scintillator: str = "CsI",
        **options,
    ) -> Detector:
        """A detector behind a scintillator of `thickness` mm; see `absorbed_fraction` for the other arguments.

        mass_attenuation: mu/rho in cm2/g as a function of energies [E] in keV. options: the fields of `Detector`.
        """
        absorbed_fraction(1.0, thickness, density, packing)  # raises here rather than at first use

        def absorption(energies: Tensor) -> Tensor:
            return absorbed_fraction(mass_attenuation(energies), thickness, density, packing)

        return cls(absorption=absorption, scintillator=scintillator, thickness=thickness, **options)

    def absorbed(self, energies) -> Tensor:
        """The fraction [E] of photons absorbed at energies [E] in keV.

        Raises PhysicsError where the detector's array is of another length or a fraction is not in 0..1.
        """
        energies = _energies(energies)
        if self.absorption is None:
            return torch.ones_like(energies)
        fraction = as_tensor(self.absorption(energies) if callable(self.absorption) else self.absorption)
        if fraction.shape != energies.shape:
            raise PhysicsError(
                f"Absorption is given for {fraction.numel()} energies but {energies.numel()} are used: give one each."
            )
        if not bool(((fraction >= 0) & (fraction <= 1)).all()):
            raise PhysicsError("The absorbed fraction of photons must lie between 0 and 1 at every energy.")
        return fraction.to(energies)

    def weights(self, energies) -> tuple[Tensor, Tensor]:
        """(first, second), [E] each: mean and variance of the signal per photon of each energy that arrives.

        With N(E) photons on a pixel, mean = sum N first and variance = sum N second (compound Poisson: the absorbed
        photons are Poisson, each of weight q, so the variance is sum N a q^2). q is the energy in keV (integrating) or
        1 (counting), a the absorbed fraction. These are the moments of R. K. Swank, "Absorption and noise in x-ray
        phosphors", J. Appl. Phys. 44 (1973), without the fluctuations of the light per photon: see `noise` for those.
        """
        energies = _energies(energies)
        weight = energies if self.kind == "energy_integrating" else torch.ones_like(energies)
        absorbed = self.absorbed(energies)
        return absorbed * weight, absorbed * weight.square()

    def read_out(self, signal: Tensor) -> Tensor:
        """The image in counts, [..., H, W], of a signal in keV or photons per pixel (see the module's text).

        Gain and offset, then saturation, then rounding to `bits`; gradients pass the rounding as if it were not there.
        """
        counts = self.gain * signal + self.offset
        if self.saturation is not None:
            counts = counts.clamp(max=self.saturation)
        return counts if self.bits is None else quantised(counts, self.bits)


def absorbed_fraction(
    mass_attenuation, thickness: float, density: float = CSI_DENSITY, packing: float = CSI_PACKING
) -> Tensor:
    """1 - exp(-mu/rho * density * packing * thickness): the photons that interact in a layer (Beer-Lambert).

    Every photon that interacts is taken to leave all its energy: the K fluorescence that escapes (up to about 15 % of
    the energy just above the K edges of CsI, 33 and 36 keV) is not modelled.

    Args:
        mass_attenuation: mu/rho in cm2/g, of any shape.
        thickness: mm.
        density: g/cm3 of the solid. packing: the fraction of the layer that is solid, 0..1.

    Raises PhysicsError for values that are not positive, a packing above 1, and a layer thicker than 10 mm.
    """
    if not 0 < thickness <= _LARGEST_THICKNESS:
        raise PhysicsError(f"A scintillator is up to {_LARGEST_THICKNESS:g} mm thick, got {thickness} mm.")
    if not (math.isfinite(density) and density > 0 and 0 < packing <= 1):
        raise PhysicsError(f"Density must be positive (g/cm3) and packing in 0..1, got {density} and {packing}.")
    coefficients = as_tensor(mass_attenuation)
    if not bool((coefficients >= 0).all()):
        raise PhysicsError("The scintillator's mass attenuation (cm2/g) has negative or missing values.")
    return -torch.expm1(-coefficients * (density * packing * thickness / 10))


def quantised(image: Tensor, bits: int) -> Tensor:
    """[..., H, W] rounded to whole counts between 0 and 2^bits - 1, in the image's own dtype.

    The gradient is that of the clamp alone (straight-through). Raises PhysicsError for bits not in 1 to 24.
    """
    _check_bits(bits)
    kept = image.clamp(0, 2**bits - 1)
    return kept + (kept.round() - kept).detach()


def pixel_solid_angle(camera: Camera) -> Tensor:
    """The solid angle in sr of each pixel as seen from the source, [..., H, W], float64; exact.

    Each pixel is two triangles of tan(Omega / 2) = |a . b x c| / (abc + (a.b)c + (a.c)b + (b.c)a) (A. Van Oosterom and
    J. Strackee, "The solid angle of a plane triangle", IEEE Trans. Biomed. Eng. 30(2), 1983). For a small pixel of area
    A this is A cos^3(theta) / SDD^2: it holds the inverse square law and the obliquity both, so apply neither again. A
    source of I photons/sr sends I * Omega of them to the pixel. Raises PhysicsError for a parallel beam, which has no
    source.
    """
    if camera.parallel:
        raise PhysicsError("A parallel beam has no source, hence no solid angles: leave out the inverse square law.")
    x, y = _plane(camera, camera.height + 1, camera.width + 1, -0.5)
    # In the plane z = 1 a x b . c is twice the triangle's area, which is the same for all pixels.
    volume = 1 / torch.linalg.det(camera.K.double()).abs()[..., None, None]
    corner = [(part[..., :-1, :-1], part[..., :-1, 1:], part[..., 1:, 1:], part[..., 1:, :-1]) for part in (x, y)]
    a, b, c, d = zip(*corner, strict=True)
    return _triangle_angle(volume, a, b, c) + _triangle_angle(volume, a, c, d)


def heel_map(camera: Camera, angles, profile, toward: tuple[float, float] = (0.0, 1.0)) -> Tensor:
    """A profile of the beam over the angle, seen by each pixel: [..., H, W], float64. For the heel effect of the anode.

    Args:
        angles: [n] degrees, rising; the angle of a ray from the principal ray, measured in the plane of the principal
            ray and `toward`.
        profile: [n] relative intensity at those angles, >= 0, interpolated linearly; it is not normalised.
        toward: (x, y) in the camera frame, where positive angles lie; (0, 1) is down the image.

    Raises PhysicsError for a profile that is not one, and where the image reaches beyond its angles.
    """
    angles, profile = as_tensor(angles).double(), as_tensor(profile).double()
    if angles.dim() != 1 or angles.shape != profile.shape or len(angles) < 2 or not bool((angles.diff() > 0).all()):
        raise PhysicsError("A heel profile is two lists of one length: rising angles in degrees, and intensities.")
    if not bool((torch.isfinite(profile) & (profile >= 0)).all()):
        raise PhysicsError("A heel profile has only intensities of 0 or more.")
    axis = as_tensor(toward).double().to(camera.K.device)
    if axis.shape != (2,) or not bool(axis.norm() > 0):
        raise PhysicsError(f"toward is a direction (x, y) of the camera frame, got {toward}.")
    x, y = _plane(camera, camera.height, camera.width, 0.0)
    angle = torch.rad2deg(torch.atan((x * axis[0] + y * axis[1]) / axis.norm()))
    low, high = float(angle.min()), float(angle.max())
    if low < float(angles[0]) or high > float(angles[-1]):
        raise PhysicsError(
            f"The heel profile covers {float(angles[0]):g} to {float(angles[-1]):g} degrees but the image reaches "
            f"from {low:.1f} to {high:.1f}: give a longer profile, or turn it with `toward`."
        )
    return _interpolated(angle, angles.to(angle), profile.to(angle))


def photons_from_kerma(kerma, pixel_area: float, per_kerma) -> Tensor:
    """Photons per pixel at an air kerma of `kerma` uGy at the detector: kerma * per_kerma * area.

    Args:
        kerma: uGy, of any shape, >= 0.
        pixel_area: mm2.
        per_kerma: photons per cm2 and uGy of this beam: `spectrum.photons.sum() / spectrum.air_kerma`. IEC 62220-1 has
            2.1759e6, 3.0174e6, 3.2362e6 and 3.1077e6 for RQA3, 5, 7 and 9.

    Raises PhysicsError for a negative or missing kerma, and for areas and conversions that are not positive.
    """
    kerma, per_kerma = as_tensor(kerma), as_tensor(per_kerma)
    if not bool((torch.isfinite(kerma) & (kerma >= 0)).all()):
        raise PhysicsError("Air kerma at the detector must be 0 uGy or more everywhere.")
    if not (math.isfinite(pixel_area) and pixel_area > 0 and bool((per_kerma > 0).all())):
        raise PhysicsError(f"Pixel area (mm2) and photons per kerma must be positive, got {pixel_area}, {per_kerma}.")
    return kerma * per_kerma.to(kerma) * (pixel_area / 100)


def _check_bits(bits: int) -> None:
    if bits != int(bits) or not 1 <= bits <= _MOST_BITS:
        raise PhysicsError(f"Bit depth is a whole number from 1 to {_MOST_BITS}, got {bits}.")


def _energies(energies) -> Tensor:
    energies = as_tensor(energies)
    if energies.dim() != 1 or not bool((torch.isfinite(energies) & (energies > 0)).all()):
        raise PhysicsError("Energies are a list of positive numbers in keV.")
    return energies


def _plane(camera: Camera, rows: int, columns: int, first: float) -> tuple[Tensor, Tensor]:
    """x and y in the plane z = 1 of the camera, [..., rows, columns], of the pixels first, first + 1, ... both ways."""
    inverse = torch.linalg.inv(camera.K.double())[..., None, None]
    v = torch.arange(rows, dtype=torch.float64, device=inverse.device)[:, None] + first
    u = torch.arange(columns, dtype=torch.float64, device=inverse.device) + first
    x, y = (inverse[..., i, 0, :, :] * u + inverse[..., i, 1, :, :] * v + inverse[..., i, 2, :, :] for i in (0, 1))
    return x, y


def _triangle_angle(volume: Tensor, *corners: tuple[Tensor, Tensor]) -> Tensor:
    """The solid angle of triangles in the plane z = 1, whose corners are (x, y) each."""
    (ax, ay), (bx, by), (cx, cy) = corners
    na, nb, nc = (torch.sqrt(1 + x * x + y * y) for x, y in corners)
    below = na * nb * nc + (1 + ax * bx + ay * by) * nc + (1 + ax * cx + ay * cy) * nb + (1 + bx * cx + by * cy) * na
    return 2 * torch.atan2(volume.expand_as(below), below)


def _interpolated(at: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Linear interpolation of y [n] over rising x [n]; `at` lies within."""
    right = torch.searchsorted(x, at.detach().contiguous()).clamp(1, len(x) - 1)
    fraction = (at - x[right - 1]) / (x[right] - x[right - 1])
    return torch.lerp(y[right - 1], y[right], fraction)
