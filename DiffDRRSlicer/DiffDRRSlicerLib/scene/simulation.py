"""X-rays simulated from the CT and the models in the scene, whose true pose is known."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from DiffDRRCore import Camera, CArm, Pose
from DiffDRRCore.physics import SimulatedImage, Simulator
from DiffDRRCore.physics.devices import Device
from DiffDRRCore.physics.devices import device as find_device
from DiffDRRCore.pieces import finished, said
from DiffDRRSlicerLib.scene import nodes
from DiffDRRSlicerLib.scene.accuracy import add_reference
from DiffDRRSlicerLib.scene.anatomy import Anatomy
from DiffDRRSlicerLib.scene.carm import CArmNode
from DiffDRRSlicerLib.scene.errors import SceneError
from DiffDRRSlicerLib.scene.implants import beam_objects
from DiffDRRSlicerLib.scene.simulation_settings import Settings, seen_by
from DiffDRRSlicerLib.scene.truth import add_masks, finding_masks, numbers_of, painted
from DiffDRRSlicerLib.scene.xrays import add_xray, all_or_nothing

_DISTANCE, _ISOCENTER, _PIXELS, _SPACING = 1020.0, 750.0, 256, 1.5  # mm and pixels of a C-arm that there is not
_kept: dict[tuple, Simulator] = {}  # the last one, by what it was made of: its renderers are costly


def forget() -> None:
    """Free the simulator that is kept for the next X-ray; a scene that closes calls it."""
    _kept.clear()


class Step(NamedTuple):
    """What is done just now, and how much of the images is."""

    text: str
    fraction: float = 0.0


@dataclass
class Scanned:
    """What the X-rays see, and how they are taken.

    Attributes:
        anatomy: the CT, with its structures.
        settings: tube, dose, detector.
        structures: names of structures to leave in the CT; None is all of it.
        materials: {structure: material} of structures that are not what their HU say.
        implants: {model node: material}, exact to each triangle; they displace the CT, and each other by
            `implants.implant_priority`.
        device: whose limits, anode and round field hold; None is none in particular.
    """

    anatomy: Anatomy
    settings: Settings = field(default_factory=Settings)
    structures: Sequence[str] | None = None
    materials: Mapping[str, str] = field(default_factory=dict)
    implants: Mapping[Any, str] = field(default_factory=dict)
    device: Device | None = None

    def preparing(self) -> Generator[Step, None, None]:
        """Everything that all X-rays share, in pieces. Raises as `simulate_xray`."""
        self._own = self.settings.on(self.device)
        self._own.check()
        if self._own.lag:
            raise SceneError(
                "X-rays in the scene are taken each by itself, without lag: leave it out, or use "
                "DiffDRRCore.physics.simulate_sequence."
            )
        yield Step("Reading the CT")
        volume = yield from said(Step("Reading the CT"), self.anatomy.preparing())
        yield Step("Looking at the models")
        self._place = nodes.parent_to_world(self.anatomy.ct)
        self._objects = beam_objects(self.implants, np.linalg.inv(self.anatomy.to_world))
        key = (
            self.anatomy.state,
            *(tuple(part) for part in self._made_of()),
            self.settings.decomposition,
            self.settings.integrator,
        )
        if key not in _kept:
            yield Step("Finding the materials")
            forget()
            _kept[key] = self._made(volume)
        self._base = _kept[key]

    def image(self, camera: Camera, pose: Pose, seed: int | None) -> SimulatedImage:
        """One image, its pose in the coordinates of `anatomy.volume`. `preparing` comes first."""
        simulator = self._own.applied(self._base, camera, objects=self._objects)
        return simulator(camera, self.anatomy.pose_in_volume(pose), seed)

    def check(self, scene) -> None:
        """Raises SceneError where the CT was removed or moved since `preparing`."""
        ct = self.anatomy.ct
        if ct.GetScene() is not scene:
            raise SceneError("The CT was removed from the scene; choose another one.")
        if not np.array_equal(self._place, nodes.parent_to_world(ct)):
            raise SceneError(f"The CT '{ct.GetName()}' was moved while it was X-rayed; try again, and let it lie.")

    def pixels(self, image: SimulatedImage) -> tuple[Tensor, dict[str, Any]]:
        """What a C-arm shows of an image [H, W], and what it keeps."""
        pixels, meta = self._own.pixels(image)
        return pixels, {**meta, "device": None if self.device is None else self.device.key}

    def _made_of(self) -> tuple[Sequence[str], Sequence[tuple[str, str]]]:
        """Structures, and materials of those that are there."""
        chosen = tuple(self.structures or ())
        return chosen, [item for item in self.materials.items() if not chosen or item[0] in chosen]

    def _made(self, volume) -> Simulator:
        chosen, materials = self._made_of()
        volume = volume.select(chosen) if chosen else volume
        numbers = {volume.label_id(name): material for name, material in materials}
        options = {"decomposition": self.settings.decomposition, "integrator": self.settings.integrator}
        return Simulator(volume, self.settings.spectrum(), materials=numbers, **options)


@dataclass(frozen=True)
class Shot:
    """Something scanned, and from where: a camera, a C-arm, and its camera_to_world."""

    scanned: Scanned
    camera: Camera
    arm: CArm
    pose: Pose

    @property
    def distance(self) -> float:
        """mm from the source to the isocentre."""
        return float(self.arm.source_to_isocenter)


def shot_of(
    anatomy: Anatomy,
    carm: CArmNode | None = None,
    structures: Sequence[str] | None = None,
    materials: Mapping[str, str] | None = None,
    implants: Mapping[Any, str] | None = None,
    device: str | None = None,
    size: int = 512,
    **settings,
) -> Shot:
    """What is to be X-rayed, as a C-arm sees it.

    Args:
        carm: None is one behind the CT, with 256 x 256 pixels.
        structures, materials, implants: as of `Scanned`.
        device: key of a device, whose camera and distances take the place of the C-arm's own.
        size: of the device's image at most, pixels.
        settings: of `Settings`.

    Raises PhysicsError for settings that there are not, an unknown device and beyond its limits.
    """
    own, chosen = Settings.from_dict(settings), None if device is None else find_device(device)
    scanned = Scanned(anatomy, own, structures, materials or {}, implants or {}, chosen)
    if carm is None:
        arm = CArm(_DISTANCE, _ISOCENTER, anatomy.center)
        camera, pose = arm.camera(_PIXELS, _PIXELS, (_SPACING, _SPACING), "detector"), arm.pose
    else:
        camera, arm, pose = carm.camera, carm.arm, carm.pose
    if chosen is not None:
        camera, arm = seen_by(chosen, arm, camera.view_from, size)
        pose = arm.pose
    return Shot(scanned, camera, arm, pose)


def simulate_xray(
    scene,
    scanned: Anatomy | Scanned,
    camera: Camera,
    pose: Pose,
    seed: int | None = 0,
    masks: bool = False,
    source_to_isocenter: float | None = None,
    name: str = "Simulated X-ray",
) -> CArmNode:
    """A C-arm at `pose` (camera_to_world) with an X-ray of what lies in the world now, as it lies.

    The image is a line integral, or counts (`Settings.logarithm`); the C-arm's meta has the open field's count i0, the
    seed and every parameter. The true pose is kept in a transform node of role "reference", in world coordinates and
    not below the C-arm, with the place of the CT at that time: moving either away shows how far a registration brings
    them back.

    Args:
        scanned: the CT, by default settings; or a `Scanned`.
        seed: of the noise; None draws one.
        masks: whether structures and implants are segmented on the X-ray (`truth.add_masks`).

    Raises PhysicsError for settings and materials that there cannot be, open models and a source inside the patient;
    otherwise as `Anatomy`. The scene is then as it was.
    """
    return finished(simulating_xray(scene, scanned, camera, pose, seed, masks, source_to_isocenter, name))


def simulating_xray(
    scene, scanned, camera, pose, seed=0, masks=False, source_to_isocenter=None, name="Simulated X-ray"
) -> Generator[Step, None, CArmNode]:
    """`simulate_xray` in pieces. Nothing is in the scene before the end; close it to cancel."""
    scanned = Scanned(scanned) if isinstance(scanned, Anatomy) else scanned
    yield from scanned.preparing()
    yield Step("Simulating")
    image = scanned.image(camera, pose, seed)
    found = (yield from said(Step("Finding the masks", 0.5), finding_masks(image))) if masks else {}
    scanned.check(scene)
    with all_or_nothing(scene):
        pixels, meta = scanned.pixels(image)
        carm = add_xray(scene, pixels, camera, pose, meta, name, source_to_isocenter)
        carm.refer("reference", add_reference(carm, carm.pose, scanned.anatomy.ct, f"{carm.name} true pose"))
        if found:
            numbers = numbers_of(found, scanned.anatomy)
            add_masks(carm, painted(found, numbers, image), numbers)
    return carm
