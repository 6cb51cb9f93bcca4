"""X-ray images of a CT."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from DiffDRRCore.errors import RenderError
from DiffDRRCore.geometry import Camera, Pose, as_tensor, pixel_grid, pixel_rays
from DiffDRRCore.rendering.backends import choose_backend, make_tracer
from DiffDRRCore.rendering.field import Field

if TYPE_CHECKING:
    from DiffDRRCore.imaging.volume import Volume

DEFAULT_MEMORY = 64 * 2**20
_RAYS_AT_A_TIME = 2**16
_FIELDS_KEPT = 4  # everything, and a few selections of labels: what backends derive from each stays with it


class Renderer:
    """Renders digitally reconstructed radiographs (DRRs): line integrals of attenuation, dimensionless and absolute.

    A pixel is the integral of mu (1/mm) along the segment from the source to the pixel's centre on the detector, so
    exp(-pixel) is the transmitted fraction. Nothing is normalised. The image has the volume's dtype and device, and its
    gradients reach the pose, the camera (K, source_to_detector) and the volume. The torch backend computes in the
    volume's dtype; the fused ones in float32, within 1e-4 of that (relative to the image's largest value).

    Args:
        volume: the CT.
        integrator: "trilinear" (interpolated field, midpoint rule; smooth in the pose) or "siddon" (voxels of constant
            attenuation, exact).
        backend: "auto", "torch", "cpu" or "cuda"; `Renderer.backend` says which one runs, `backend_reason` why. "auto"
            is the fused backend of the volume's device, where its package is installed and the volume is not float64.
        step: largest distance in mm between samples on a ray (trilinear); None is the smallest voxel spacing.
        max_memory: bytes of working memory of the torch backend for a chunk of rays, beside the volume, the result and
            some ten MB. Where gradients are asked for, the graph of the rays takes a few hundred bytes a pixel more.

    Raises:
        RenderError: unknown integrator or backend, step or memory not positive.
    """

    def __init__(
        self,
        volume: Volume,
        integrator: str = "trilinear",
        backend: str = "auto",
        step: float | None = None,
        max_memory: int = DEFAULT_MEMORY,
    ):
        if not max_memory > 0:
            raise RenderError(f"max_memory must be positive (bytes), got {max_memory}.")
        self.volume = volume
        self.integrator = integrator
        self.backend, self.backend_reason = choose_backend(backend, volume.device.type, volume.dtype)
        self.step = float(volume.spacing.min()) if step is None else float(step)
        self.max_memory = max_memory
        self._prepare()

    def _prepare(self) -> None:
        """What is made from the arguments, and not carried to other processes."""
        self._fields: dict[tuple, tuple] = {}
        self._inverse: tuple[Tensor, int, Tensor] | None = None
        self._tracer = make_tracer(self.backend, self.integrator, self.step, self.max_memory)
        self.field()  # made here, because what torch.func computes inside a transform is of no use outside

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if not name.startswith("_")}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._prepare()

    @property
    def must_compile(self) -> bool:
        """Whether the first image has to wait until kernels are compiled: some seconds, once on each machine."""
        return getattr(self._tracer, "must_compile", False)

    def preparing(self) -> Iterator[None]:
        """Make what the first image would have to wait for, in pieces; at the end, one ray across the volume."""
        yield from getattr(self._tracer, "preparing", lambda field: ())(self.field())
        reach = self.volume.ijk_to_ras[:3, 0].detach() * self.volume.shape[2]
        center = self.volume.center.detach()
        with torch.no_grad():
            self._tracer.derivatives(self.field(), *self._rays((center - reach)[None], (center + reach)[None]))

    def __call__(self, camera: Camera, pose: Pose, labels=None, label_mode: str = "nearest") -> Tensor:
        """Render [B, C, H, W]; batches of cameras and poses are broadcast against each other.

        Args:
            labels: label numbers or names, each of which becomes a channel; None is one channel of everything. The sum
                over all labels, background included, is the plain image.
            label_mode: "nearest" gives a trilinear sample to the nearest voxel's label; "soft" gives each of its eight
                neighbours to that neighbour's label, which is differentiable in the pose. "siddon" takes both alike.
        """
        field = self.field(labels, label_mode)
        inputs = (camera.K, camera.source_to_detector, pose.matrix, field.attenuation, field.ras_to_ijk)
        keeps_graph = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
        device = self.volume.device
        blocks = [pixel_rays(camera, pose, None, device)] if keeps_graph else ray_blocks(camera, pose, device)
        integrals = torch.cat([self._trace(field, *rays) for rays in blocks], dim=-1)
        return integrals.transpose(0, 1).unflatten(-1, (camera.height, camera.width))

    def trace(self, source, target, labels=None, label_mode: str = "nearest") -> Tensor:
        """Integrals [C, ..., N] along segments from `source` to `target` [..., N, 3] in world mm, of any geometry."""
        return self._trace(self.field(labels, label_mode), source, target)

    def _trace(self, field: Field, source, target) -> Tensor:
        source, target = self._rays(source, target)
        integrals = self._tracer.trace(field, source.reshape(-1, 3), target.reshape(-1, 3))
        return integrals.unflatten(-1, target.shape[:-1])

    def linearize(self, camera: Camera, pose: Pose, about=None, uv=None) -> tuple[Tensor, Tensor]:
        """The image and its derivatives by a small rigid motion: d image / d xi of `pose.retract(xi, about)` at xi = 0.

        Args:
            about: the pivot [3] or [B, 3], as in `Pose.retract`: world mm; None is the world's origin.
            uv: [N, 2] pixels to compute; None is all of them.

        Returns:
            image [B, 1, H, W] and jacobian [B, H, W, 6] (per rad, then per mm); with `uv`, [B, 1, N] and [B, N, 6].

        Raises RenderError for an empty `uv`.
        """
        field = self.field()
        pivot = as_tensor((0.0, 0.0, 0.0) if about is None else about).detach()[..., None, :]
        blocks = ray_blocks(camera.detached(), pose.detach(), self.volume.device, uv)
        parts = [self._linearize_rays(field, *self._rays(*rays), pivot) for rays in blocks]
        if not parts:
            raise RenderError("There are no pixels to linearize: uv is empty.")
        image, jacobian = (torch.cat(part, dim=1) for part in zip(*parts, strict=True))
        if uv is None:
            image, jacobian = (x.unflatten(1, (camera.height, camera.width)) for x in (image, jacobian))
        return image[:, None], jacobian

    def _linearize_rays(self, field: Field, source: Tensor, target: Tensor, pivot: Tensor) -> tuple[Tensor, Tensor]:
        """Integrals [B, N] and their derivatives [B, N, 6] by a motion of both ends about the pivot."""
        integral, *slopes = self._tracer.derivatives(field, source.reshape(-1, 3), target.reshape(-1, 3))
        by_source, by_target = (slope.reshape(source.shape) for slope in slopes)
        arms = ((end - pivot.to(end)).to(by_source.dtype) for end in (source, target))
        turn = sum(torch.linalg.cross(arm, slope) for arm, slope in zip(arms, (by_source, by_target), strict=True))
        jacobian = torch.cat([turn, by_source + by_target], dim=-1).to(integral.dtype)
        return integral.reshape(target.shape[:-1]), jacobian

    def field(self, labels=None, label_mode: str = "nearest") -> Field:
        """What the backends integrate: everything, or one channel for each of `labels` (numbers or names).

        Raises RenderError where labels are asked of a volume that has none, VolumeError for a name it does not know.
        """
        if label_mode not in ("nearest", "soft"):
            raise RenderError(f"label_mode is 'nearest' or 'soft', got {label_mode!r}.")
        channels = () if labels is None else self._channels(labels)
        volume, soft = self.volume, label_mode == "soft"
        parts = (volume.attenuation, volume.labels if channels else None, volume.ijk_to_ras)
        if any(part is not None and (part.requires_grad or part.is_inference()) for part in parts):
            return Field(parts[0], self._grid(), parts[1], channels, soft)
        key = (channels, soft, *(None if part is None else (part.data_ptr(), part._version) for part in parts))
        # The parts stay with the field: while they live, no other tensor can have their addresses.
        field, _ = self._fields.pop(key, None) or (Field(parts[0], self._grid(), parts[1], channels, soft), parts)
        self._fields[key] = (field, parts)
        while len(self._fields) > _FIELDS_KEPT:
            del self._fields[next(iter(self._fields))]
        return field

    def _channels(self, labels) -> tuple[int, ...]:
        if self.volume.labels is None:
            raise RenderError("Channels for labels were asked for, but the volume has no labelmap.")
        labels = [labels] if isinstance(labels, (int, str, np.integer)) else labels
        channels = tuple(self.volume.label_id(label) if isinstance(label, str) else int(label) for label in labels)
        if not channels:
            raise RenderError("The list of labels to render is empty.")
        return channels

    def _grid(self) -> Tensor:
        """ras_to_ijk of the volume, inverted once."""
        affine = self.volume.ijk_to_ras
        if affine.requires_grad or affine.is_inference():
            return self.volume.ras_to_ijk
        if self._inverse is None or self._inverse[0] is not affine or self._inverse[1] != affine._version:
            self._inverse = (affine, affine._version, self.volume.ras_to_ijk)
        return self._inverse[2]

    def _rays(self, source, target) -> tuple[Tensor, Tensor]:
        """Both ends in float64 on the volume's device: rays are long, voxels are small."""
        source, target = (as_tensor(x).to(self.volume.device, torch.float64) for x in (source, target))
        return torch.broadcast_tensors(source, target)


def ray_blocks(camera: Camera, pose: Pose, device: torch.device, uv=None) -> Iterator[tuple[Tensor, Tensor]]:
    """The rays of an image (or of the pixels `uv`), a block at a time, so that they are never all in memory."""
    uv = None if uv is None else as_tensor(uv)
    count = camera.height * camera.width if uv is None else uv.shape[-2]
    batch = max(camera.K.shape[:-2].numel(), pose.matrix.shape[:-2].numel())
    size = max(1, _RAYS_AT_A_TIME // batch)
    for first in range(0, count, size):
        last = min(first + size, count)
        pixels = pixel_grid(camera, first, last, device) if uv is None else uv[..., first:last, :]
        yield pixel_rays(camera, pose, pixels, device)
