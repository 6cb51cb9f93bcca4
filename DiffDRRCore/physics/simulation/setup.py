"""A whole simulation as plain values: what the command line says, what a manifest keeps, what worker processes get."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from DiffDRRCore.errors import PhysicsError
from DiffDRRCore.geometry import Camera, CArm, Pose
from DiffDRRCore.imaging.camera_file import camera_from_dict, check_units
from DiffDRRCore.imaging.volume import Volume
from DiffDRRCore.imaging.xray_dicom_writing import Technique
from DiffDRRCore.physics.decomposition import SOFT_LIMIT_HU
from DiffDRRCore.physics.materials import material
from DiffDRRCore.physics.simulation.objects import BeamObject
from DiffDRRCore.physics.simulation.settings import Settings
from DiffDRRCore.physics.simulation.simulator import SimulatedImage, Simulator
from DiffDRRCore.physics.solids.files import read_mesh

_LEAST_ATTENUATION = 1e-6
_VOLUME_FIELDS = ("ct", "series", "labelmap", "label_names", "labels", "bone_contrast")
_SIMULATOR_FIELDS = ("materials", "decomposition", "integrator", "implants", "landmarks", "device")


@dataclass(frozen=True)
class Implant:
    """A mesh file (mm) and what it is in the beam.

    mesh, material: file and material
    pose:     file of its object_to_world transform (RAS), or None
    frame:    "lps" or "ras", the axes of the file's coordinates; None is what the file says, and LPS where it does not
    priority: from 1; along each ray the higher replaces the lower, of equal ones the later the earlier
    """

    mesh: str
    material: str
    pose: str | None = None
    frame: str | None = None
    priority: int = 1


@dataclass(frozen=True, kw_only=True)
class Setup(Settings):
    """Everything that makes a simulated X-ray but the seed of its noise: `Settings`, what is in the beam, from where.

    ct, series, labelmap, label_names: files of the CT, as of `Volume.read`
    labels:         the structures to image; None is everything
    camera:         as in a JSON camera
    pose:           camera_to_world [4][4], or None: then the C-arm of
    sod, isocenter, primary, secondary, roll: source to isocentre, RAS mm (None is the CT's centre), degrees
    shift_r, shift_a, shift_s: mm added to the isocentre
    materials:      by label number or name
    implants:       in the beam
    landmarks:      {name: RAS mm}, whose pixels are told
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
    materials: Mapping[str, str] = field(default_factory=dict)
    implants: tuple[Implant, ...] = ()
    landmarks: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)
    bone_contrast: float = 1.0
    device: str = "cpu"
    maker: str = ""
    model: str = ""
    modality: str = "XA"

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Setup:
        """As of `Settings`."""
        setup = super().from_dict(content)
        try:
            implants = tuple(Implant(**one) if isinstance(one, Mapping) else one for one in setup.implants)
        except TypeError as error:
            raise PhysicsError(f"An implant is a mesh, a material and so on: {error}.") from error
        return setup.with_values({"implants": implants})

    def check(self) -> None:
        """Raise PhysicsError or ReadError for what can be told to be wrong without the CT."""
        super().check()
        self.objects(), self.camera_model()
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

    def objects(self) -> list[BeamObject]:
        """The implants. Two of one file get numbers."""
        found: list[BeamObject] = []
        for implant in self.implants:
            mesh, name = read_mesh(implant.mesh, implant.frame), Path(implant.mesh).stem
            same = sum(other.name.split("#")[0] == name for other in found)
            pose = None if implant.pose is None else _transform(Path(implant.pose))
            name = f"{name}#{same + 1}" if same else name
            found.append(BeamObject(mesh, implant.material, pose, implant.priority, name))
        return found

    def simulator(self, volume: Volume) -> Simulator:
        """Of a volume that `volume` gave."""
        made = Simulator(
            volume,
            self.spectrum(),
            self.detector_model(),
            self.objects(),
            self.decomposition,
            {_label(key): one for key, one in self.materials.items()},
            self.exposure(),
            self.effects(),
            self.landmarks,
            self.device,
            self.integrator,
        )
        return self.gained(made, self.camera_model())

    def has_volume_of(self, other: Setup) -> bool:
        """Whether a simulator of `other` can be changed into one of this setup."""
        return all(getattr(self, name) == getattr(other, name) for name in (*_VOLUME_FIELDS, *_SIMULATOR_FIELDS))

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
        aperture = self.aperture and (*middle, self.aperture / spacing[1])
        own = {"maker": self.maker, "model": self.model, "blades": blades or None, "aperture": aperture or None}
        kvp, filters = (self.kvp, dict(self.filtration)) if self.has_tube else (None, {})
        return Technique(kvp, None, filters, self.grid, self.focal_spot or None, **own)


def check_hit(image: SimulatedImage) -> None:
    """Raise PhysicsError where nothing is in the beam."""
    if float(1 - image.primary.min()) < _LEAST_ATTENUATION:
        raise PhysicsError("No ray meets the CT: check the pose and the isocentre (RAS, mm).")


def _label(key: str) -> int | str:
    return int(key) if str(key).lstrip("-").isdigit() else key


def _transform(path: Path) -> Pose:
    from DiffDRRCore.geometry.itk_transform import read_itk_transform

    return Pose(read_itk_transform(path))
