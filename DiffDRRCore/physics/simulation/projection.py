"""Areal densities: how much of each material every ray of an X-ray passes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from DiffDRRCore.errors import GeometryError
from DiffDRRCore.geometry import Camera, Pose, pixel_rays
from DiffDRRCore.imaging.volume import Volume
from DiffDRRCore.physics.decomposition import Composition
from DiffDRRCore.physics.materials import Material, material
from DiffDRRCore.physics.simulation.objects import BeamObject, crossed
from DiffDRRCore.physics.solids.crossings import Crossings, merge, subtract
from DiffDRRCore.rendering.renderer import Renderer, ray_blocks


class Projection(NamedTuple):
    """What each pixel's ray passes: areal densities [M, H, W] in g/cm2, and the M materials."""

    areal: Tensor
    materials: tuple[Material, ...]


class Projector:
    """Projects compositions and objects. Keeps a `Renderer` for each material of each composition.

    Args:
        compositions: of voxel volumes that do not share matter (`combined`); none is fine where there are objects.
        integrator, backend: as of `Renderer`. The trilinear one interpolates each material's density.
        device, dtype: of the result where there is no composition.
    """

    def __init__(
        self,
        compositions: Iterable[Composition] = (),
        integrator: str = "trilinear",
        backend: str = "auto",
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        self.renderers = [
            (one, Renderer(Volume.from_attenuation(density, composition.ijk_to_ras), integrator, backend))
            for composition in compositions
            for one, density in zip(composition.materials, composition.densities, strict=True)
            if density.requires_grad or bool(density.any())
        ]
        self.device, self.dtype = torch.device(device), dtype
        if self.renderers:
            self.device, self.dtype = self.renderers[0][1].volume.device, self.renderers[0][1].volume.dtype

    @property
    def materials(self) -> tuple[Material, ...]:
        """Those of the voxels."""
        return tuple(dict.fromkeys(one for one, _ in self.renderers))

    def __call__(self, camera: Camera, pose: Pose, objects: Sequence[BeamObject] = ()) -> Projection:
        """The areal densities of one view; gradients flow to pose, camera, densities and meshes.

        Where an object is, the voxels' matter is left out: rays that meet one are integrated along the rest alone.
        Raises GeometryError for a batch, PhysicsError where the source is inside an object.
        """
        if pose.matrix.numel() != 16 or camera.K.numel() != 9:
            raise GeometryError("A projection is of one camera and one pose; loop over a batch of views.")
        pose = Pose(pose.matrix.reshape(4, 4))
        solids = crossed(objects, camera, pose)
        union = merge(*(crossing for _, crossing in solids)) if solids else None
        rest = None if union is None or not len(union.ray) else _rest(union, camera, pose, self.device)
        areal: dict[Material, Tensor] = {}
        for (one, renderer), image in zip(self.renderers, self._images(camera, pose), strict=True):
            _add(areal, one, (image if rest is None else rest.replace(image, renderer)) / 10)
        for one in dict.fromkeys(one.material for one, _ in solids):
            length = sum(crossing.chord_lengths() for other, crossing in solids if other.material == one)
            _add(areal, one, length.to(self.device, self.dtype) * (one.density / 10))
        if not areal:
            areal[material("air")] = torch.zeros(camera.height, camera.width, dtype=self.dtype, device=self.device)
        return Projection(torch.stack(list(areal.values())), tuple(areal))

    def _images(self, camera: Camera, pose: Pose) -> list[Tensor]:
        """[H, W] of each renderer, g/cm3 mm. Rays take a good part of the time of an integral: they are made once."""
        if not self.renderers:
            return []
        blocks = [
            [renderer.trace(source.expand_as(target), target)[0, 0] for _, renderer in self.renderers]
            for source, target in ray_blocks(camera, pose, self.device)
        ]
        return [torch.cat(parts).reshape(camera.height, camera.width) for parts in zip(*blocks, strict=True)]


class _Rest(NamedTuple):
    """The parts of the rays that meet objects on which there is none.

    met             [R] the numbers of the rays that meet objects, rising
    part            [N] of which of these each part is
    source, target  [N, 3] the ends of the parts, world mm
    """

    met: Tensor
    part: Tensor
    source: Tensor
    target: Tensor

    def replace(self, image: Tensor, renderer: Renderer) -> Tensor:
        """The image [H, W] with the rays that meet objects integrated along these parts alone."""
        integrals = renderer.trace(self.source[None], self.target[None])[0, 0]
        sums = image.new_zeros(len(self.met)).index_add(0, self.part, integrals.to(image))
        return image.flatten().index_copy(0, self.met, sums).reshape(image.shape)


def _rest(union: Crossings, camera: Camera, pose: Pose, device: torch.device) -> _Rest:
    met = torch.unique_consecutive(union.ray)
    uv = torch.stack([met % camera.width, met // camera.width], dim=-1).double()
    source, target = torch.broadcast_tensors(*(end[0] for end in pixel_rays(camera, pose, uv, met.device)))
    length = torch.linalg.vector_norm(target - source, dim=-1)
    rest = subtract(Crossings(met, torch.zeros_like(length), length, union.shape), union)
    part = torch.searchsorted(met, rest.ray)
    along = ((target - source) / length[:, None])[part]
    ends = (source[part] + along * distance[:, None] for distance in (rest.entry, rest.exit))
    return _Rest(*(x.to(device) for x in (met, part, *ends)))


def _add(areal: dict[Material, Tensor], one: Material, image: Tensor) -> None:
    areal[one] = areal[one] + image if one in areal else image
