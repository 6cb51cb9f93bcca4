"""Integral of the trilinearly interpolated attenuation, in plain torch: the readable reference."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from DiffDRRCore.rendering.field import NEAREST_TIE, Field
from DiffDRRCore.rendering.rays import clip_to_grid


@dataclass(frozen=True)
class TorchTrilinear:
    """Midpoint rule over equal parts of each ray's own interval inside the volume.

    The interpolated field ends in zero one voxel outside the outermost voxel centres, and so does the interval. Every
    ray has the same number of parts, enough for the volume's diagonal at `step` mm, so that a pixel never depends on
    other pixels and is a smooth function of the pose.
    """

    step: float

    def bytes_per_ray(self, field: Field) -> int:
        """Working memory of one ray without gradients: sample positions, a few numbers at each, voxel indices."""
        indices = 48 if field.channels and not field.soft else 0
        return field.samples(self.step) * (6 * field.attenuation.element_size() + indices)

    def __call__(self, field: Field, s: Tensor, t: Tensor) -> Tensor:
        """Integrals [C, N] of rays s -> t [N, 3]."""
        count, dtype = field.samples(self.step), field.attenuation.dtype
        inside = clip_to_grid(s, t, field.ras_to_ijk, field.size, margin=1.0)
        start, end = (self._normalized(points, field).to(dtype) for points in (inside.start, inside.end))
        weight = (torch.arange(count, dtype=dtype, device=start.device) + 0.5) / count
        points = torch.lerp(start[:, None], end[:, None], weight[:, None])
        sums = torch.stack([samples.sum(-1) for samples in _channel_samples(field, points)])
        return sums * (inside.length / count).to(dtype)

    @staticmethod
    def _normalized(points: Tensor, field: Field) -> Tensor:
        """Voxel coordinates as `grid_sample` wants them (align_corners=False, good for a single slice too)."""
        return (2 * points + 1) / field.size - 1


def _channel_samples(field: Field, points: Tensor):
    """Attenuation [N, n] of each channel at the points [N, n, 3]."""
    if not field.channels:
        yield _sample(field.attenuation, points)
    elif field.soft:
        for label in field.channels:
            yield _sample(field.of_label(label), points)
    else:
        everything = _sample(field.attenuation, points)
        nearest = _nearest_labels(field, points.detach())
        for label in field.channels:
            yield torch.where(nearest == label, everything, 0.0)


def _nearest_labels(field: Field, points: Tensor) -> Tensor:
    """Label [N, n] of the voxel nearest to each point; on the rim beyond the outermost faces that is the last one."""
    size = field.size.to(points.dtype)
    index = torch.floor((points + 1) / 2 * size + NEAREST_TIE).long()
    i, j, k = torch.minimum(index.clamp(min=0), (size - 1).long()).unbind(-1)
    return field.labels[k, j, i]


def _sample(volume: Tensor, points: Tensor) -> Tensor:
    """Volume [K, J, I] at points [N, n, 3]. Torch's threads on a CPU are by batch item, so the rays become a batch."""
    rays = points.shape[0]
    threads = torch.get_num_threads() if points.device.type == "cpu" and rays % torch.get_num_threads() == 0 else 1
    grid = points.reshape(threads, 1, rays // threads, *points.shape[1:])
    batch = volume[None, None].expand(threads, -1, -1, -1, -1)
    return grid_sample(batch, grid, mode="bilinear", padding_mode="zeros", align_corners=False).reshape(
        points.shape[:-1]
    )
