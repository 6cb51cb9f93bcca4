"""The CT at the resolution of each level, kept for the next registration of the same CT."""

from __future__ import annotations

from collections.abc import Generator
from weakref import WeakKeyDictionary

import numpy as np

from DiffDRRCore.imaging.volume import Volume
from DiffDRRCore.registration.options import Options
from DiffDRRCore.registration.pieces import finished
from DiffDRRCore.rendering import Renderer

Block = tuple[int, int, int]

_MOST_KEPT = 8  # models of a volume
_KEPT: WeakKeyDictionary[Volume, tuple[tuple, dict[Block, Renderer]]] = WeakKeyDictionary()


def renderers(volume: Volume, options: Options, pixels: list[float]) -> list[Renderer]:
    """What `making_renderers` returns, at once."""
    return finished(making_renderers(volume, options, pixels))


def making_renderers(volume: Volume, options: Options, pixels: list[float]) -> Generator[None, None, list[Renderer]]:
    """One renderer for each level, of `pixels` mm at the anatomy, coarse to fine.

    At each level the CT is averaged in blocks whose sides are at most `options.voxels_per_pixel` pixels; a level's
    blocks are whole ones of the next finer level, which makes them quick to average. Renderers are kept as long as the
    volume lives, and used again unless its voxels or the options have changed. A generator: averaging a whole CT takes
    a while, and whoever drives it can see to other things in between.
    """
    blocks = _factors(volume, [options.voxels_per_pixel * pixel for pixel in pixels])
    key = (_numbers(volume, options.labels), options.integrator, options.step, _state(volume))
    known, models = _KEPT.get(volume, (None, {}))
    if known != key or len(models) + len(blocks) > _MOST_KEPT:
        models = {}
    if any(block not in models for block in blocks):
        built = yield from _build(volume, options, blocks, models)
        models = models | built
        _KEPT[volume] = (key, models)
    return [models[block] for block in blocks]


def _build(
    volume: Volume, options: Options, blocks: list[Block], models: dict[Block, Renderer]
) -> Generator[None, None, dict[Block, Renderer]]:
    """Those of the blocks that there is no model of yet."""
    built, finer = {}, (1, 1, 1)
    model = None
    for block in reversed(blocks):
        if block in models or block in built:
            model = (models.get(block) or built[block]).volume
        else:
            source, labels = (volume.detached(), _numbers(volume, options.labels)) if model is None else (model, None)
            ratio = tuple(a // b for a, b in zip(block, finer, strict=True))
            model = yield from source.coarsening(ratio, labels)
            built[block] = Renderer(model, options.integrator, step=options.step)
        finer = block
    return built


def _factors(volume: Volume, limits: list[float]) -> list[Block]:
    """Voxels (k, j, i) that make a block of each level, coarse to fine; each a multiple of the next."""
    spacing, found, finer = volume.spacing.flip(0).tolist(), [], (1, 1, 1)
    for limit in reversed(limits):
        finer = tuple(n * max(1, int(limit / (n * side))) for n, side in zip(finer, spacing, strict=True))
        found.append(finer)
    return found[::-1]


def _numbers(volume: Volume, labels) -> tuple[int, ...] | None:
    """The labels by number: a name may come to mean another."""
    if labels is None:
        return None
    several = [labels] if isinstance(labels, (int, str, np.integer)) else labels
    return tuple(volume.label_id(label) if isinstance(label, str) else int(label) for label in several)


def _state(volume: Volume) -> tuple:
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
