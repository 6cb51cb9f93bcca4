"""What is trained on: CTs, ready to be rendered in a frame that all of them share in meaning.

The frame of the model is rigid, in mm, with its origin where the C-arm looks by default. Of a CT without a warp it has
the patient's axes (RAS) and begins at the CT's centre or at a given isocentre; with a warp it is the template's.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from DiffDRRCore.errors import DiffDRRWarning, LearningError
from DiffDRRCore.geometry import Camera, Pose
from DiffDRRCore.geometry.tensors import homogeneous, transform_points
from DiffDRRCore.imaging.coarsening import block_mean, coarse_grid
from DiffDRRCore.imaging.volume import Volume
from DiffDRRCore.learning.data.draws import Draws
from DiffDRRCore.learning.data.fingerprints import fingerprint, nearest_axes
from DiffDRRCore.learning.data.label_blocks import coarse_labels, counted
from DiffDRRCore.physics.decomposition import water_and_bone
from DiffDRRCore.physics.materials import Material, material
from DiffDRRCore.rendering import Renderer

CT_ENERGY = 70.0  # keV, as `AttenuationMap`: line integrals of a plain rendering are those of this energy
_SLAB = 2**22  # voxels that are decomposed at a time
_POINTS = 1000  # that stand for a structure


def materials() -> tuple[Material, Material]:
    """Water and bone: what a CT is made of here, in the order of areal densities."""
    return material("water"), material("cortical bone")


class Model(NamedTuple):
    """A CT as it is rendered: partial densities [2, K, J, I] of water and bone in g/cm3, labels [K, J, I] or None."""

    densities: Tensor
    labels: Tensor | None
    ijk_to_ras: Tensor

    def part(self, first: Sequence[int], counts: Sequence[int]) -> Model:
        """`counts` voxels (k, j, i) from voxel `first` on; shares memory."""
        where = tuple(slice(a, a + n) for a, n in zip(first, counts, strict=True))
        affine = self.ijk_to_ras.clone()
        affine[:3, 3] += affine[:3, :3] @ affine.new_tensor([*first][::-1])
        return Model(self.densities[(slice(None), *where)], None if self.labels is None else self.labels[where], affine)

    @property
    def center(self) -> Tensor:
        """[3] RAS mm of the middle of the grid."""
        middle = (self.ijk_to_ras.new_tensor(self.densities.shape[:0:-1]) - 1) / 2
        return self.ijk_to_ras[:3, :3] @ middle + self.ijk_to_ras[:3, 3]


class Subject:
    """A CT to train on. Everything is made at first use.

    Args:
        volume: the CT, or a function that reads it, for which `release` then makes room again.
        frame_to_world: of the model's frame, [4, 4]; None begins at the CT's centre, along the patient's axes.
        name: for messages and for the weights.
        labels: structures (numbers or names) that count, and that views must show; None is all that there are, none
            of which must be seen.
        voxel_mm: for rendering, voxels are averaged in blocks of about this size, and rays sampled so often; 0 leaves
            them.
        device: where it is rendered.

    Raises LearningError for a frame that is not one pose; when used, whatever `volume` does.
    """

    def __init__(
        self,
        volume: Volume | Callable[[], Volume],
        frame_to_world: Pose | None = None,
        name: str = "CT",
        labels: Sequence[int | str] | None = None,
        voxel_mm: float = 0.0,
        device: torch.device | str = "cpu",
    ):
        if frame_to_world is not None and frame_to_world.matrix.shape != (4, 4):
            raise LearningError("The frame of a model is one pose [4, 4], not a batch.")
        self.name, self.device, self._wanted, self._voxel_mm = name, torch.device(device), labels, voxel_mm
        self._load = volume if callable(volume) else None
        if self._load is None:
            self.volume = volume
        self._frame = frame_to_world

    @cached_property
    def volume(self) -> Volume:
        """The whole CT at full resolution."""
        return self._load()

    @cached_property
    def frame_to_world(self) -> Pose:
        """The model's frame in the CT's world, [4, 4] float64 on the CPU."""
        if self._frame is not None:
            return self._frame.to("cpu", torch.float64)
        return _centered(self.volume.center)

    @cached_property
    def labels(self) -> tuple[int, ...]:
        """The numbers of the structures that count; none where there is no labelmap."""
        if self._wanted is None:
            return tuple(sorted(self.volume.present_labels - {0}))
        if self.volume.labels is None:
            raise LearningError(f"Structures of the CT '{self.name}' were named, but it has no labelmap.")
        return tuple(self.volume.label_id(one) if isinstance(one, str) else int(one) for one in self._wanted)

    @cached_property
    def model(self) -> Model:
        """The CT as it is rendered, on the device."""
        volume, factors = self.volume.detached(), self._factors()
        slabs = max(1, _SLAB // (volume.shape[1] * volume.shape[2] * factors[0])) * factors[0]
        parts = [_decomposed(volume.hu[first : first + slabs], factors) for first in range(0, volume.shape[0], slabs)]
        labels = None
        if volume.labels is not None:
            self._check_labels()
            labels = coarse_labels(volume.labels, factors, self.labels).to(self.device)
        affine = coarse_grid(volume.ijk_to_ras, factors).to(self.device)
        return Model(torch.cat(parts, dim=1).to(self.device), labels, affine)

    @cached_property
    def renderer(self) -> Renderer:
        """Of plain line integrals (70 keV), with labels where there are some; world coordinates."""
        water, bone = self.model.densities
        return self._rendered(_attenuation(water, bone))

    @cached_property
    def structure(self) -> Tensor | None:
        """Some [N, 3] points, in world mm on the CPU, of the structures that were named, evenly; None without those.

        Raises LearningError where the CT has no voxel of them.
        """
        if self._wanted is None:
            return None
        _ = self.labels
        wanted = torch.tensor(self.labels, device=self.device, dtype=self.model.labels.dtype)
        voxels = torch.isin(self.model.labels, wanted).nonzero()
        if not len(voxels):
            raise LearningError(f"The CT '{self.name}' has no voxel of the structures that were named.")
        voxels = voxels[torch.linspace(0, len(voxels) - 1, min(_POINTS, len(voxels))).round().long().to(voxels.device)]
        return transform_points(self.model.ijk_to_ras.cpu().double(), voxels.flip(-1).cpu().double())

    @cached_property
    def projectors(self) -> tuple[Renderer | None, ...]:
        """Of water and of bone, with densities in place of attenuations; None where there is nothing of it."""
        return tuple(self._rendered(one) if bool(one.any()) else None for one in self.model.densities)

    def to_world(self, pose: Pose) -> Pose:
        """camera_to_world of camera_to_frame."""
        return self.frame_to_world @ pose

    def areal(self, camera: Camera, pose: Pose) -> Tensor:
        """Areal densities [2, B, H, W] of water and bone in g/cm2, seen from camera_to_frame poses [B]."""
        world = self.to_world(pose)
        images = [None if one is None else one(camera, world)[:, 0] / 10 for one in self.projectors]
        known = next((image for image in images if image is not None), None)
        if known is None:
            raise LearningError(f"There is nothing but air in the CT '{self.name}'.")
        return torch.stack([torch.zeros_like(known) if image is None else image for image in images])

    @cached_property
    def fingerprint(self) -> dict[str, Any]:
        """Of the whole CT: see `data.fingerprints`."""
        return fingerprint(self.volume)

    def cropped(self, size: Sequence[float], draws: Draws) -> Subject:
        """A random box of the CT, `size` (R, A, S) mm or as much as there is, as a subject of its own.

        It lies along the axes of the voxels, in whole ones; nothing is resampled. So that views show it, a random point
        of the structures that were named lies in it, else the frame's origin (or the CT's voxel nearest to that). The
        frame stays that of the whole CT.
        """
        affine = self.model.ijk_to_ras.cpu().double()
        shape, order, spacing = self.model.densities.shape[1:], nearest_axes(affine), affine[:3, :3].norm(dim=0)
        inside = transform_points(torch.linalg.inv(affine), self._point(draws)[None])[0].round().tolist()
        first, counts = [0, 0, 0], [0, 0, 0]
        for place, share in enumerate(draws.uniform("crop", 3).tolist()):  # i, j, k
            k = 2 - place
            counts[k] = min(shape[k], max(2, round(float(size[order[place]]) / float(spacing[place]))))
            here = min(max(int(inside[place]), 0), shape[k] - 1)
            least, most = max(0, here - counts[k] + 1), min(here, shape[k] - counts[k])
            first[k] = min(least + int(share * (most - least + 1)), most)
        return self._with_model(self.model.part(first, counts))

    def release(self) -> None:
        """Forget what can be read again. The frame, labels, structure's points and fingerprint stay."""
        if self._load is None:
            return
        for name in ("volume", "model", "renderer", "projectors"):
            self.__dict__.pop(name, None)

    def _point(self, draws: Draws) -> Tensor:
        """[3] world mm, which a crop has in it."""
        if self.structure is None:
            return self.frame_to_world.translation
        return self.structure[min(int(draws.uniform("around", 1) * len(self.structure)), len(self.structure) - 1)]

    def _check_labels(self) -> None:
        if self._wanted is None:
            return
        there = counted(self.volume.labels)
        for wanted, number in zip(self._wanted, self.labels, strict=True):
            if not there[number]:
                warnings.warn(f"The CT '{self.name}' has no voxel of label {wanted!r}.", DiffDRRWarning, stacklevel=2)

    def _with_model(self, model: Model) -> Subject:
        _ = self.labels, self.frame_to_world  # of the whole CT
        other = copy.copy(self)
        for name in ("renderer", "structure", "projectors"):
            other.__dict__.pop(name, None)
        other.model = model
        return other

    def _factors(self) -> tuple[int, int, int]:
        spacing = self.volume.spacing.flip(0).tolist()
        return tuple(max(1, round(self._voxel_mm / side)) for side in spacing)

    def _rendered(self, attenuation: Tensor) -> Renderer:
        volume = Volume.from_attenuation(attenuation, self.model.ijk_to_ras, self.model.labels)
        return Renderer(volume, step=max(float(volume.spacing.min()), self._voxel_mm))

    def __repr__(self) -> str:
        return f"Subject({self.name!r})"


def spread(subjects: Sequence[Subject], most: int) -> list[Subject]:
    """At most so many of them, evenly over their order."""
    count = min(most, len(subjects))
    return [subjects[number * len(subjects) // count] for number in range(count)]


def _centered(point: Tensor) -> Pose:
    return Pose._rigid(homogeneous(torch.eye(3, dtype=torch.float64), point.detach().cpu().double()))


def clean_image(areal: Tensor) -> Tensor:
    """Line integrals at 70 keV [B, 1, H, W] of areal densities [2, B, H, W]: what `Subject.renderer` shows."""
    factors = [float(one.mass_attenuation(CT_ENERGY)) for one in materials()]
    return (factors[0] * areal[0] + factors[1] * areal[1])[:, None]


def _decomposed(hu: Tensor, factors: tuple[int, int, int]) -> Tensor:
    parts = water_and_bone(hu)
    return torch.stack([block_mean(parts[one], factors) for one in materials()])


def _attenuation(water: Tensor, bone: Tensor) -> Tensor:
    """1/mm at 70 keV."""
    first, second = (float(one.mass_attenuation(CT_ENERGY)) / 10 for one in materials())
    return first * water + second * bone
