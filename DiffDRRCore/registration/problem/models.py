"""The CT at the resolution of each level, kept for the next registration of the same CT."""

from __future__ import annotations

from collections.abc import Generator
from weakref import WeakKeyDictionary

import numpy as np
import torch

from DiffDRRCore.imaging.volume import Volume
from DiffDRRCore.registration.problem.options import Options
from DiffDRRCore.rendering import Renderer

Block = tuple[int, int, int]
Labels = tuple[int, ...] | None  # numbers, None for everything

_MOST_KEPT = 8  # models of a volume with the same labels
_MOST_LABELS = 12  # sets of labels
_KEPT: WeakKeyDictionary[Volume, tuple[tuple, dict[Labels, dict[Block, Renderer]]]] = WeakKeyDictionary()


def making_renderers(
    volume: Volume, labels: Labels, options: Options, pixels: list[float]
) -> Generator[None, None, list[Renderer]]:
    """One renderer of those labels for each level, of `pixels` mm at the anatomy, coarse to fine.

    At each level the CT is averaged in blocks whose sides are at most `options.voxels_per_pixel` pixels; a level's
    blocks are whole ones of the next finer level, which makes them quick to average. Renderers are kept as long as the
    volume lives, and used again unless its voxels or the options have changed. A generator: averaging a whole CT takes
    a while, and whoever drives it can see to other things in between.
    """
    blocks = _factors(volume, [options.voxels_per_pixel * pixel for pixel in pixels])
    key = (options.integrator, options.step, state_of(volume))
    known, kept = _KEPT.get(volume, (None, {}))
    if known != key or (labels not in kept and len(kept) >= _MOST_LABELS):
        kept = {}
    models = kept.get(labels, {})
    if len(set(models) | set(blocks)) > _MOST_KEPT:
        models = {}
    if any(block not in models for block in blocks):
        models = models | (yield from _build(volume, labels, options, blocks, models))
        _KEPT[volume] = (key, {**kept, labels: models})
    return [models[block] for block in blocks]


def _build(
    volume: Volume, labels: Labels, options: Options, blocks: list[Block], models: dict[Block, Renderer]
) -> Generator[None, None, dict[Block, Renderer]]:
    """Those of the blocks that there is no model of yet."""
    built, finer = {}, (1, 1, 1)
    model = None
    for block in reversed(blocks):
        if block in models or block in built:
            model = (models.get(block) or built[block]).volume
        else:
            source, chosen = (volume.detached(), labels) if model is None else (model, None)
            ratio = tuple(a // b for a, b in zip(block, finer, strict=True))
            model = yield from source.coarsening(ratio, chosen)
            if chosen is not None:
                model = without_air(model)
            built[block] = Renderer(model, options.integrator, step=options.step)
        finer = block
    return built


def without_air(volume: Volume) -> Volume:
    """The part of a volume that attenuates, and one voxel of air around it: the rest costs time and adds nothing."""
    mu, ranges = volume.attenuation, []
    for axis in range(3):
        filled = (mu > 0).any(dim=(axis + 1) % 3, keepdim=True).any(dim=(axis + 2) % 3, keepdim=True).flatten()
        rows = torch.nonzero(filled)[:, 0]
        if len(rows) == 0:
            return volume
        ranges.append(slice(max(int(rows[0]) - 1, 0), min(int(rows[-1]) + 2, mu.shape[axis])))
    affine = volume.ijk_to_ras.clone()
    first = torch.tensor([part.start for part in reversed(ranges)], dtype=affine.dtype, device=affine.device)
    affine[:3, 3] += affine[:3, :3] @ first
    return Volume.from_attenuation(mu[tuple(ranges)].contiguous(), affine)


def _factors(volume: Volume, limits: list[float]) -> list[Block]:
    """Voxels (k, j, i) that make a block of each level, coarse to fine; each a multiple of the next."""
    spacing, found, finer = volume.spacing.flip(0).tolist(), [], (1, 1, 1)
    for limit in reversed(limits):
        finer = tuple(n * max(1, int(limit / (n * side))) for n, side in zip(finer, spacing, strict=True))
        found.append(finer)
    return found[::-1]


def label_numbers(volume: Volume, labels) -> Labels:
    """The labels by number: a name may come to mean another."""
    if labels is None:
        return None
    several = [labels] if isinstance(labels, (int, str, np.integer)) else labels
    return tuple(volume.label_id(label) if isinstance(label, str) else int(label) for label in several)


def state_of(volume: Volume) -> tuple:
    """Equal for two calls only where the voxels have not changed between them."""
    tensors = [x for x in (volume.ijk_to_ras, volume.source, volume.labels) if x is not None]
    versions = tuple((_Same(tensor), -1 if tensor.is_inference() else tensor._version) for tensor in tensors)
    return *versions, volume.attenuation_map


class _Same:
    """Equal to itself alone; holds its tensor, so that no other can take its place in memory."""

    def __init__(self, tensor):
        self.tensor = tensor

    def __eq__(self, other) -> bool:
        return self.tensor is other.tensor and not self.tensor.is_inference()

    def __hash__(self) -> int:
        return id(self.tensor)
