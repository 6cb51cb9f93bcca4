"""Realistic X-ray images of CTs and objects, absolute, in the geometry of the renderer.

What happens, in this order: areal densities of the materials along each ray (`projection`); polychromatic attenuation
weighted by the detector's response (`transmission`); mean over the rays of each pixel; blur by the focal spot; heel,
solid angle and collimator; scatter and grid; quantum noise; blur by the detector; lag of sequences; electronic noise;
gain, offset and bit depth (`readout`).
"""

from __future__ import annotations

import copy
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from DiffDRRCore.errors import PhysicsError
from DiffDRRCore.geometry import Camera, Pose
from DiffDRRCore.imaging.volume import Volume
from DiffDRRCore.imaging.xray import XRay
from DiffDRRCore.physics.blur import lagged
from DiffDRRCore.physics.decomposition import METHODS, decompose_together
from DiffDRRCore.physics.detector import Detector
from DiffDRRCore.physics.materials import Material
from DiffDRRCore.physics.noise import seeded
from DiffDRRCore.physics.scatter import Scatter, effective_attenuation, water_thickness
from DiffDRRCore.physics.simulation.effects import Effects, Exposure, Lag
from DiffDRRCore.physics.simulation.image import SimulatedImage
from DiffDRRCore.physics.simulation.objects import BeamObject, unique_names
from DiffDRRCore.physics.simulation.placement import air_gap, check_distance, check_placement, magnification
from DiffDRRCore.physics.simulation.projection import Projection, Projector
from DiffDRRCore.physics.simulation.readout import Arrived, Readout
from DiffDRRCore.physics.simulation.records import parameters, record, scintillator
from DiffDRRCore.physics.simulation.truth import LabelTruth
from DiffDRRCore.physics.spectra import Spectrum
from DiffDRRCore.physics.transmission import transmissions

_ENERGIES = 24  # in place of the spectrum's some hundred: 1e-4 of the transmission (`Spectrum.compressed`)
_CHANGEABLE = ("spectrum", "detector", "objects", "exposure", "effects", "landmarks")


class Simulator:
    """Makes X-ray images of voxel volumes and objects.

    Args:
        volumes: CTs in world coordinates, any number; a later one replaces the earlier where it has matter or a label
            (`decomposition.decompose_together`). None, (), where there are only objects.
        spectrum: of the beam that meets the patient.
        detector: None is an ideal energy-integrating one.
        objects: implants and tools; each replaces the voxels and the objects of lower priority where it is.
        decomposition: of the HU to materials: "continuous" or "thresholds".
        materials: material of labelled structures by label number or name (`decomposition.decompose`).
        exposure: photons or air kerma at the detector, and its noise. None is the image without noise, gain and bits,
            relative to the open field.
        effects: blur, scatter, heel and more; None is none of them.
        landmarks: points in world RAS mm by name, whose pixels the images give.
        device: where the volumes go and the images are computed.
        integrator, backend: as of `Renderer`.

    Poses, cameras, voxels and meshes may require gradients, which reach `project`, `primary`, `expected` and the noisy
    image (its noise is a function of the expected image and random numbers that are held fixed).

    Raises PhysicsError for an unknown material or decomposition, nothing in the beam, two objects of one name, a
    detector with a bit depth or an offset but no exposure, and effects that need to know of the tube what the spectrum
    does not state; when called, for a source inside the patient or an object, and a detector inside the patient.
    """

    def __init__(
        self,
        volumes: Volume | Sequence[Volume],
        spectrum: Spectrum,
        detector: Detector | None = None,
        objects: Sequence[BeamObject] = (),
        decomposition: str = METHODS[0],
        materials: Mapping[int | str, Material | str] | None = None,
        exposure: Exposure | None = None,
        effects: Effects | None = None,
        landmarks: Mapping[str, Sequence[float]] | None = None,
        device: torch.device | str = "cpu",
        integrator: str = "trilinear",
        backend: str = "auto",
    ):
        volumes = (volumes,) if isinstance(volumes, Volume) else tuple(volumes)
        self.volumes = tuple(volume.to(device) for volume in volumes)
        self.decomposition, self.materials = decomposition, dict(materials or {})
        self.compositions = decompose_together(self.volumes, decomposition, self.materials)
        self._projector = Projector(self.compositions, integrator, backend, device)
        self._truth: list[LabelTruth] = []
        self.backend = backend
        self._set(spectrum, detector, objects, exposure, effects, landmarks)

    def _set(self, spectrum, detector, objects, exposure, effects, landmarks) -> None:
        self.spectrum, self.detector, self.objects = spectrum, detector or Detector(), tuple(objects)
        self.exposure, self.effects = exposure, effects or Effects()
        self.landmarks = {name: tuple(float(x) for x in point) for name, point in (landmarks or {}).items()}
        self._check()
        # An absorption given as numbers is that of the spectrum's own energies.
        callable_or_none = self.detector.absorption is None or callable(self.detector.absorption)
        seen = [*self._projector.materials, *(one.material for one in self.objects), *scintillator(self.detector)]
        self.beam = spectrum.compressed(_ENERGIES, seen) if callable_or_none else spectrum
        self._readout = Readout(spectrum, self.beam, self.detector, exposure, self.effects)
        self._fields: dict[tuple, Tensor | None] = {}
        self._parameters: dict[str, Any] | None = None

    def changed(self, **changes) -> Simulator:
        """A simulator of the same volumes with another spectrum, detector, objects, exposure, effects or landmarks.

        It shares the volumes' renderers, so it costs next to nothing. Raises PhysicsError for other keywords.
        """
        if not set(changes) <= set(_CHANGEABLE):
            wrong = sorted(set(changes) - set(_CHANGEABLE))[0]
            raise PhysicsError(f"{wrong!r} is set when a simulator is made; one can change {', '.join(_CHANGEABLE)}.")
        other = copy.copy(self)
        other._set(**{name: changes.get(name, getattr(self, name)) for name in _CHANGEABLE})
        if not {"spectrum", "effects"} & set(changes):
            other._fields = dict(self._fields)  # a heel effect takes a moment
        return other

    def project(self, camera: Camera, pose: Pose) -> Projection:
        """The areal density of each material, [M, H, W] in g/cm2, and the M materials; differentiable.

        Along one ray through the middle of each pixel, whatever the `samples` of the effects.
        """
        check_distance(camera)
        check_placement(self.compositions, camera, pose)
        return self._projector(camera, pose, self.objects)

    def primary(self, camera: Camera, pose: Pose) -> Tensor:
        """The detector's signal over that of the open field, 0 to 1, [H, W]: attenuation alone; differentiable."""
        return self._per_pixel(self._transmitted(self._sampled(camera, pose), self._readout.first))[0]

    def expected(self, camera: Camera, pose: Pose) -> Tensor:
        """The image [H, W] that the mean of many noisy ones would be, over the open field, with all effects but lag."""
        arrived = self._arrived(camera, pose, False)
        return self._readout.blurred(arrived.mean, camera) / self._readout.passed

    def __call__(self, camera: Camera, pose: Pose, seed: int | None = None) -> SimulatedImage:
        """One image. The same seed gives the same image on the same machine; None draws a seed, which the image keeps.

        Lag has no part in it: that is for `simulate_sequence`.
        """
        return self._frames(camera, [pose], seed, None)[0]

    def _frames(self, camera: Camera, poses: Iterable[Pose], seed: int | None, lag: Lag | None) -> list[SimulatedImage]:
        seed = secrets.randbits(32) if seed is None else seed
        generator = seeded(seed, self._projector.device)
        poses, held = [_single(pose) for pose in poses], lag and lag.state
        images = []
        for number, pose in enumerate(poses):
            arrived = self._arrived(camera, pose, self._readout.noise)
            signal = self._readout.signal(camera, arrived, generator)
            if lag is not None:
                (signal,), held = lagged(signal[None], lag.weights, lag.retentions, held)
            meta = record(self, camera, seed, number, len(poses))
            xray = XRay(self._readout.counts(signal, generator), camera, pose, meta)
            images.append(SimulatedImage(self, xray, arrived.primary, arrived.scatter))
        return images

    def _sampled(self, camera: Camera, pose: Pose) -> Projection:
        """As `project`, with the effects' n x n rays a pixel: [M, n H, n W]."""
        n = self.effects.samples
        return self.project(camera if n == 1 else camera.resized(n * camera.height, n * camera.width), pose)

    def _per_pixel(self, rays: Tensor) -> Tensor:
        """The mean over the rays of each pixel, [..., n H, n W] to [..., H, W]."""
        n = self.effects.samples
        return rays if n == 1 else rays.unflatten(-1, (-1, n)).unflatten(-3, (-1, n)).mean(dim=(-3, -1))

    def _transmitted(self, projection: Projection, *responses: Tensor) -> Tensor:
        """An image for each response, [R, H, W]."""
        areal = projection.areal.clamp(min=0).movedim(0, -1)
        return transmissions(areal, projection.materials, self.beam, responses)

    def _photons(self, projection: Projection) -> Tensor:
        """The share of the open field's photons that come through at each energy, [E, H, W]."""
        coefficients = torch.stack([one.mass_attenuation(self.beam.energies) for one in projection.materials], dim=1)
        lines = torch.tensordot(coefficients.to(projection.areal), projection.areal.clamp(min=0), dims=1)
        return self._shares(lines) * torch.exp(-lines)

    def _shares(self, like: Tensor) -> Tensor:
        """Of each energy in the photons of the open field, [E, 1, 1]."""
        return (self.beam.photons / self.beam.photons.sum()).to(like)[:, None, None]

    def _arrived(self, camera: Camera, pose: Pose, noise: bool) -> Arrived:
        """What reaches the detector behind the grid."""
        projection, readout = self._sampled(camera, pose), self._readout
        gaussian = noise and not readout.draws_photons
        responses = (readout.first, readout.second) if gaussian else (readout.first,)
        primary, *second = self._per_pixel(self._transmitted(projection, *responses))
        mean, spread = self._in_field(primary, camera, pose), None
        if noise:
            each = second[0] if gaussian else self._per_pixel(self._photons(projection))
            spread = self._in_field(each, camera, pose)
        model = self._scatter(camera, pose)
        if model is None:
            return Arrived(primary, torch.zeros_like(primary), mean, spread)
        spacing = tuple(camera.pixel_spacing.detach().flatten().tolist())
        thickness = water_thickness(primary, effective_attenuation(model.kvp))
        behind = 1.0 if model.grid is None else model.grid.scatter
        scatter = behind * model.scattered(mean, thickness, spacing)
        if spread is not None:  # scattered photons are taken to have the energies of the open beam
            spread = readout.passed * spread + scatter * (self._shares(scatter) if readout.draws_photons else 1)
        return Arrived(primary, scatter / readout.passed, readout.passed * mean + scatter, spread)

    def _scatter(self, camera: Camera, pose: Pose) -> Scatter | None:
        """The model with what it does not say: the spectrum's kVp, and the smallest air gap of the volumes here."""
        model = self.effects.scatter
        if model is not None and model.kvp is None:
            model = replace(model, kvp=self.spectrum.kvp)
        if model is None or model.air_gap is not None or not self.volumes:
            return model
        return replace(model, air_gap=min(air_gap(camera, pose, volume) for volume in self.volumes))

    def _in_field(self, image: Tensor, camera: Camera, pose: Pose) -> Tensor:
        blur = self.effects.focal_spot_blur(magnification(self.volumes, self.objects, camera, pose), camera)
        image = image if blur is None else blur(image).clamp(min=0)
        field = self.field(camera)
        return image if field is None else image * field.to(image)

    def field(self, camera: Camera) -> Tensor | None:
        """The open field [H, W] over that in the principal ray; None where it is 1 throughout."""
        place = (camera.height, camera.width, camera.parallel, float(camera.source_to_detector))
        key = (*place, *camera.K.detach().flatten().tolist())
        if key not in self._fields:
            self._fields.clear()
            with torch.no_grad():
                device, dtype = self._projector.device, self._projector.dtype
                self._fields[key] = self.effects.field(camera.detached(), self.spectrum, dtype, device)
        return self._fields[key]

    def i0(self, camera: Camera) -> float:
        """The open field in the principal ray in the image's units, less the offset."""
        return self._readout.i0(camera)

    @property
    def parameters(self) -> dict[str, Any]:
        """Everything that it was made with but the voxels, as plain values that JSON can hold."""
        if self._parameters is None:
            self._parameters = parameters(self)
        return self._parameters

    def truth(self) -> LabelTruth:
        """What makes masks and depths of labels; made at first use."""
        if not self._truth:
            self._truth.append(LabelTruth([volume.detached() for volume in self.volumes], self.backend))
        return self._truth[0]

    def _check(self) -> None:
        if not self.volumes and not any(one.enabled for one in self.objects):
            raise PhysicsError("There is nothing in the beam: give a volume or an object.")
        unique_names(self.objects)
        self.effects.check(self.spectrum)


def simulate_sequence(
    simulator: Simulator, camera: Camera, poses: Iterable[Pose], seed: int | None = None
) -> list[SimulatedImage]:
    """An image for each pose (a list of them, or a batched `Pose`), with the lag of the effects.

    One seed is for the whole sequence; its first frame, where the lag starts "steady" or there is none, is the image of
    that seed. Raises PhysicsError for no poses.
    """
    poses = list(poses)
    if not poses:
        raise PhysicsError("A sequence needs at least one pose.")
    return simulator._frames(camera, poses, seed, simulator.effects.lag)


def _single(pose: Pose) -> Pose:
    if pose.matrix.numel() != 16:
        raise PhysicsError("An image has one pose, not a batch: use `simulate_sequence`.")
    return pose if pose.matrix.ndim == 2 else Pose(pose.matrix.reshape(4, 4))
