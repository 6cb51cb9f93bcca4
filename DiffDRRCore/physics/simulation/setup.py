"""A whole simulation as plain values: what the command line says, what a manifest keeps, what worker processes get."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from DiffDRRCore.errors import PhysicsError
from DiffDRRCore.geometry import Camera, CArm, Pose
from DiffDRRCore.imaging.camera_file import camera_from_dict, check_units
from DiffDRRCore.imaging.volume import Volume
from DiffDRRCore.imaging.xray_dicom_writing import Technique
from DiffDRRCore.physics.collimator import Collimator
from DiffDRRCore.physics.decomposition import SOFT_LIMIT_HU
from DiffDRRCore.physics.detector import Detector
from DiffDRRCore.physics.materials import material
from DiffDRRCore.physics.scatter import Grid, Scatter
from DiffDRRCore.physics.simulation.effects import Effects, Exposure, Heel
from DiffDRRCore.physics.simulation.objects import BeamObject
from DiffDRRCore.physics.simulation.simulator import SimulatedImage, Simulator
from DiffDRRCore.physics.solids.mesh import Mesh
from DiffDRRCore.physics.spectra import ANODE_ANGLE, FILTRATION, Spectrum
from DiffDRRCore.physics.tube import HIGHEST_KVP, LOWEST_KVP

DETECTORS = ("csi", "ideal", "counting")
_OPEN_FIELD = 0.8  # of the largest count: the heel effect makes the beam stronger than that towards the cathode
_LEAST_ATTENUATION = 1e-6
_VOLUME_FIELDS = ("ct", "series", "labelmap", "label_names", "labels", "bone_contrast")
_SIMULATOR_FIELDS = ("materials", "decomposition", "implants")


@dataclass(frozen=True)
class Implant:
    """A mesh file (mm), its material, and the file of its object_to_world transform (RAS), or None."""

    mesh: str
    material: str
    pose: str | None = None


@dataclass(frozen=True)
class Setup:
    """Everything that makes a simulated X-ray but the seed of its noise. Lengths in mm, angles in degrees.

    ct, series, labelmap, label_names: files of the CT, as of `Volume.read`
    labels:         the structures to image; None is everything
    camera:         as in a JSON camera
    pose:           camera_to_world [4][4], or None: then the C-arm of
    sod, isocenter, primary, secondary, roll: source to isocentre, RAS mm (None is the CT's centre), degrees
    shift_r, shift_a, shift_s: mm added to the isocentre
    kvp, filtration, anode_angle: the tube; filtration in mm of each filter, the tube's own included
    dose, photons:  uGy at the detector, or photons per pixel, in the open field; None for both is 1 uGy
    noise, electronic: quantum noise; read-out noise in keV or photons
    detector, csi_mm: "csi" (energy-integrating behind so much CsI), "ideal" (absorbs all), "counting" (so, and counts)
    bits:           bit depth; None leaves the counts unrounded
    gain:           counts per keV or photon; None puts the open field at 0.8 of what `bits` hold, or at 1
    focal_spot, blur: full width at half maximum in mm; 1/mm at which the detector's MTF is one half; None is no blur
    scatter, grid, air_gap: mm of air between patient and detector; None is what each view has
    heel:           the heel effect, weaker down the image
    collimator, aperture: (top, bottom, left, right) covered, and the radius of a round field, mm at the detector
    materials:      by label number or name
    implants:       in the beam
    decomposition:  as of `decompose`
    bone_contrast:  factor on what is above 100 HU: denser or thinner bone
    device, maker, model, modality: where to compute; what a DICOM header says
    """

    ct: str
    camera: Mapping[str, Any]
    series: str | None = None
    labelmap: str | None = None
    label_names: str | None = None
    labels: tuple[int | str, ...] | None = None
    pose: Any = None
    sod: float | None = None
    isocenter: tuple[float, float, float] | None = None
    primary: float = 0.0
    secondary: float = 0.0
    roll: float = 0.0
    shift_r: float = 0.0
    shift_a: float = 0.0
    shift_s: float = 0.0
    kvp: float = 80.0
    filtration: Mapping[str, float] = field(default_factory=lambda: dict(FILTRATION))
    anode_angle: float = ANODE_ANGLE
    dose: float | None = None
    photons: float | None = None
    noise: bool = True
    electronic: float = 0.0
    detector: str = "csi"
    csi_mm: float = 0.6
    bits: int | None = 16
    gain: float | None = None
    focal_spot: float = 0.0
    blur: float | None = None
    scatter: bool = False
    grid: bool = False
    air_gap: float | None = None
    heel: bool = False
    collimator: tuple[float, float, float, float] | None = None
    aperture: float | None = None
    materials: Mapping[str, str] = field(default_factory=dict)
    implants: tuple[Implant, ...] = ()
    decomposition: str = "continuous"
    bone_contrast: float = 1.0
    device: str = "cpu"
    maker: str = ""
    model: str = ""
    modality: str = "XA"

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON can hold."""
        return asdict(self)

    def check(self) -> None:
        """Raise PhysicsError or ReadError for what can be told to be wrong without the CT."""
        self.spectrum(), self.exposure(), self.detector_model(), self.effects(), self.objects(), self.camera_model()
        for name in self.materials.values():
            material(name)

    def volume(self) -> Volume:
        """The CT. Raises as `Volume.read` and `Volume.select` do, PhysicsError for a bone contrast below 0."""
        names = {} if self.label_names is None else {"label_names": Path(self.label_names)}
        labelmap = None if self.labelmap is None else Path(self.labelmap)
        volume = Volume.read(Path(self.ct), labelmap, series=self.series, **names)
        return self.contrasted(volume if self.labels is None else volume.select(list(self.labels)))

    def contrasted(self, volume: Volume) -> Volume:
        """With the bone contrast."""
        if not 0 <= self.bone_contrast <= 10:
            raise PhysicsError(f"The bone contrast is a factor from 0 to 10, got {self.bone_contrast:g}.")
        if self.bone_contrast == 1:
            return volume
        above = (volume.hu - SOFT_LIMIT_HU).clamp(min=0)
        hu = volume.hu + (self.bone_contrast - 1) * above
        return Volume(hu, volume.ijk_to_ras, volume.labels, volume.label_names)

    def spectrum(self) -> Spectrum:
        """The beam. Raises PhysicsError, with a hint where the kVp looks like a mean energy."""
        if 15 <= self.kvp < LOWEST_KVP:
            raise PhysicsError(
                f"The tube voltage must be {LOWEST_KVP:g} to {HIGHEST_KVP:g} kVp, not {self.kvp:g}; if that is a mean "
                "photon energy in keV, the kVp is about twice as much."
            )
        return Spectrum.tungsten(self.kvp, self.filtration, self.anode_angle)

    def exposure(self) -> Exposure:
        """Dose and noise."""
        dose = 1.0 if self.dose is None and self.photons is None else self.dose
        return Exposure(self.photons, dose, self.noise, self.electronic)

    def detector_model(self, gain: float = 1.0) -> Detector:
        """What the detector does."""
        if self.detector not in DETECTORS:
            raise PhysicsError(f"The detector is one of {', '.join(DETECTORS)}, not {self.detector!r}.")
        options = {"gain": gain, "bits": self.bits}
        if self.detector == "csi":
            return Detector.scintillating(material("CsI").mass_attenuation, self.csi_mm, **options)
        kind = "photon_counting" if self.detector == "counting" else "energy_integrating"
        return Detector(kind, **options)

    def effects(self) -> Effects:
        """Blur, scatter, heel, collimation."""
        grid = Grid() if self.grid else None
        if self.grid and not self.scatter:
            raise PhysicsError("A grid is there to stop scatter: switch that on as well.")
        blades = self.collimator is not None or self.aperture is not None
        return Effects(
            focal_spot_mm=self.focal_spot,
            detector_mtf=self.blur or None,
            scatter=Scatter(self.kvp, self.air_gap, grid) if self.scatter else None,
            heel=Heel(self.anode_angle, filtration=self.filtration) if self.heel else None,
            collimator=Collimator(self.collimator or (0.0,) * 4, self.aperture) if blades else None,
        )

    def objects(self) -> list[BeamObject]:
        """The implants. Two of one file get numbers."""
        found: list[BeamObject] = []
        for implant in self.implants:
            mesh, name = Mesh.read(implant.mesh), Path(implant.mesh).stem
            same = sum(other.name.split("#")[0] == name for other in found)
            pose = None if implant.pose is None else _transform(Path(implant.pose))
            found.append(BeamObject(mesh, implant.material, pose, name=f"{name}#{same + 1}" if same else name))
        return found

    def simulator(self, volume: Volume) -> Simulator:
        """Of a volume that `volume` gave."""
        return self._gained(
            Simulator(
                volume,
                self.spectrum(),
                self.detector_model(),
                self.objects(),
                self.decomposition,
                {_label(key): one for key, one in self.materials.items()},
                self.exposure(),
                self.effects(),
                device=self.device,
            )
        )

    def changed_simulator(self, simulator: Simulator) -> Simulator:
        """The same volumes and objects as in `simulator`, with everything else of this setup."""
        return self._gained(
            simulator.changed(
                spectrum=self.spectrum(),
                detector=self.detector_model(),
                exposure=self.exposure(),
                effects=self.effects(),
            )
        )

    def has_volume_of(self, other: Setup) -> bool:
        """Whether a simulator of `other` can be changed into one of this setup."""
        return all(getattr(self, name) == getattr(other, name) for name in (*_VOLUME_FIELDS, *_SIMULATOR_FIELDS))

    def _gained(self, simulator: Simulator) -> Simulator:
        gain = self.gain
        if gain is None and self.bits is not None:
            gain = _OPEN_FIELD * (2**self.bits - 1) / simulator.i0(self.camera_model())
        return simulator if gain is None else simulator.changed(detector=self.detector_model(gain))

    def camera_model(self) -> Camera:
        """The camera. Raises ReadError where its lengths cannot be mm."""
        camera = camera_from_dict(dict(self.camera), "The camera")
        check_units(camera, "The camera")
        return camera

    def center(self, volume: Volume) -> tuple[float, float, float]:
        """The isocentre, RAS mm."""
        base = volume.center.tolist() if self.isocenter is None else self.isocenter
        return tuple(float(x) + d for x, d in zip(base, (self.shift_r, self.shift_a, self.shift_s), strict=True))

    def arm(self, volume: Volume) -> CArm:
        """The C-arm. Raises PhysicsError where there is a pose in its place."""
        if self.sod is None:
            raise PhysicsError("C-arm angles need the source-to-isocentre distance in mm (--sod, or a device).")
        distance = float(self.camera_model().source_to_detector)
        return CArm(distance, self.sod, self.center(volume), self.primary, self.secondary, self.roll)

    def camera_pose(self, volume: Volume) -> Pose:
        """camera_to_world."""
        if self.pose is not None:
            return Pose(torch.tensor(self.pose, dtype=torch.float64))
        return self.arm(volume).pose

    def technique(self) -> Technique:
        """What a DICOM header says of the exposure."""
        spacing = self.camera_model().pixel_spacing.tolist()
        blades = self.collimator and tuple(
            mm / step for mm, step in zip(self.collimator, (spacing[0],) * 2 + (spacing[1],) * 2, strict=True)
        )
        middle = ((self.camera["height"] - 1) / 2, (self.camera["width"] - 1) / 2)
        aperture = self.aperture and (*middle, self.aperture / spacing[0])
        own = {"maker": self.maker, "model": self.model, "blades": blades or None, "aperture": aperture or None}
        return Technique(self.kvp, None, dict(self.filtration), self.grid, self.focal_spot or None, **own)

    def with_values(self, values: Mapping[str, Any]) -> Setup:
        """With other values of some fields."""
        return replace(self, **values)


def check_hit(image: SimulatedImage) -> None:
    """Raise PhysicsError where nothing is in the beam."""
    if float(1 - image.primary.min()) < _LEAST_ATTENUATION:
        raise PhysicsError("No ray meets the CT: check the pose and the isocentre (RAS, mm).")


def _label(key: str) -> int | str:
    return int(key) if str(key).lstrip("-").isdigit() else key


def _transform(path: Path) -> Pose:
    from DiffDRRCore.geometry.itk_transform import read_itk_transform

    return Pose(read_itk_transform(path))
