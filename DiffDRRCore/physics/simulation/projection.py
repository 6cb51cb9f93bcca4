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
from DiffDRRCore.rendering.renderer import Renderer


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
        for one, renderer in self.renderers:
            image = renderer(camera, pose)[0, 0]
            _add(areal, one, (image if rest is None else rest.replace(image, renderer)) / 10)
        for one, crossing in solids:
            length = crossing.chord_lengths().to(self.device, self.dtype)
            _add(areal, one.material, length * (one.material.density / 10))
        if not areal:
            areal[material("air")] = torch.zeros(camera.height, camera.width, dtype=self.dtype, device=self.device)
        return Projection(torch.stack(list(areal.values())), tuple(areal))


class _Rest(NamedTuple):
    """The parts of the rays that meet objects on which there is none: their ends [N, 3], world mm."""

    crossings: Crossings
    hit: Tensor
    source: Tensor
    target: Tensor

    def replace(self, image: Tensor, renderer: Renderer) -> Tensor:
        """The image [H, W] with the rays that meet objects integrated along these parts alone."""
        integrals = renderer.trace(self.source[None], self.target[None])[0, 0]
        sums = image.new_zeros(image.numel()).index_add(0, self.crossings.ray.to(image.device), integrals.to(image))
        return torch.where(self.hit, sums.reshape(image.shape), image)


def _rest(union: Crossings, camera: Camera, pose: Pose, device: torch.device) -> _Rest:
    source, target = torch.broadcast_tensors(*(end[0] for end in pixel_rays(camera, pose, None, union.ray.device)))
    length = torch.linalg.vector_norm(target - source, dim=-1)
    ray = torch.unique(union.ray)
    whole = Crossings(ray, torch.zeros_like(length[ray]), length[ray], union.shape)
    rest = subtract(whole, union)
    along = (target - source)[rest.ray] / length[rest.ray, None]
    ends = (source[rest.ray] + along * distance[:, None] for distance in (rest.entry, rest.exit))
    return _Rest(rest, union.mask().to(device), *(end.to(device) for end in ends))


def _add(areal: dict[Material, Tensor], one: Material, image: Tensor) -> None:
    areal[one] = areal[one] + image if one in areal else image
