"""From torch's tensors to the compiled loops, and back."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from DiffDRRCore.errors import RenderError
from DiffDRRCore.rendering.backends.cpu import sample_walk, voxel_walk
from DiffDRRCore.rendering.backends.cpu.bricks import BRICK, occupied_bricks
from DiffDRRCore.rendering.backends.cpu.channels import Channels, make_channels
from DiffDRRCore.rendering.backends.cpu.compilation import announce, is_compiled
from DiffDRRCore.rendering.backends.cpu.prefix import Prefix, box_of_matter, make_prefix
from DiffDRRCore.rendering.backends.cpu.rimmed import rimmed, rimming
from DiffDRRCore.rendering.backends.cpu.siddon import siddon
from DiffDRRCore.rendering.backends.cpu.simd import LANES
from DiffDRRCore.rendering.backends.cpu.threads import in_parallel
from DiffDRRCore.rendering.backends.cpu.trilinear import RIM, trilinear
from DiffDRRCore.rendering.backends.fused.grid import Grid, RayDerivatives

_SLICES = 16  # that one thread writes gradients to at a time: fixed, so that results do not depend on threads
_WIDEST_RANGE = 50  # of the largest attenuation over the mean one, for 16 bits: one unit is 1/1300 of the mean
_PIECE = 2**22  # voxels that are looked at in one piece
_WALKED = 64  # rays of a walk that one thread takes at a time
_log = logging.getLogger(__name__)
_lock = threading.RLock()  # tables are made once, whoever asks first


class CpuKernels:
    """The kernels of the cpu backend; see the protocol `Kernels`."""

    def must_compile(self, integrator: str) -> bool:
        """Whether a kernel is neither in memory nor on disk."""
        return not is_compiled(trilinear if integrator == "trilinear" else siddon)

    def preparing(self, grid: Grid) -> Iterator[None]:
        """The volume in 16 bits, slab by slab, and its bricks; running sums are made by the first rays."""
        if grid.integrator == "siddon" or grid.field.channels:
            return
        yield from _making(grid, "fits", _fitting)
        if _fits_16_bits(grid):
            yield from _making(grid, "voxels", rimming)
            _bricks(grid)
            yield

    def integrals(self, grid: Grid, s: Tensor, t: Tensor) -> Tensor:
        """[C, N] float32."""
        rays = s.numpy(), t.numpy()
        if not grid.field.channels:
            return torch.from_numpy(_fast(grid, *rays, derivatives=False)[0])[None]
        channels = _channels(grid)
        result = np.empty((channels.count, len(s)), np.float32)
        walk = voxel_walk if grid.integrator == "siddon" else sample_walk
        before = (grid.field.attenuation.numpy(), *_walk_arguments(grid, channels), *rays)
        _over_rays(walk.integrals, len(s), _WALKED, before, (result,))
        return torch.from_numpy(result)[channels.rows]

    def integrals_with_derivatives(self, grid: Grid, s: Tensor, t: Tensor) -> RayDerivatives:
        """Of one channel of everything."""
        return RayDerivatives(*(torch.from_numpy(part) for part in _fast(grid, s.numpy(), t.numpy(), derivatives=True)))

    def ray_gradients(self, grid: Grid, s: Tensor, t: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """[N, 3] by s and by t."""
        channels = _channels(grid)
        results = tuple(np.zeros((len(s), 3), np.float32) for _ in range(2))
        walk = voxel_walk if grid.integrator == "siddon" else sample_walk
        before = (grid.field.attenuation.numpy(), *_walk_arguments(grid, channels), s.numpy(), t.numpy())
        _over_rays(walk.ray_gradients, len(s), _WALKED, (*before, _by_row(weight, channels)), results)
        return torch.from_numpy(results[0]), torch.from_numpy(results[1])

    def voxel_gradients(self, grid: Grid, s: Tensor, t: Tensor, weight: Tensor) -> Tensor:
        """[K, J, I]; every slice is written by one thread, in the order of the rays."""
        channels = _channels(grid)
        walk = (voxel_walk if grid.integrator == "siddon" else sample_walk).voxel_gradients
        before = (*_walk_arguments(grid, channels), s.numpy(), t.numpy(), _by_row(weight, channels))
        result = np.zeros(tuple(grid.field.attenuation.shape), np.float32)
        announce(walk)

        def fill(first: int, last: int) -> None:
            for low in range(first, last, _SLICES):
                walk(*before, low, min(low + _SLICES, last), result)

        in_parallel(fill, result.shape[0], _SLICES)
        return torch.from_numpy(result)


def _over_rays(kernel, count: int, grain: int, before: tuple, after: tuple) -> None:
    """Run kernel(*before, first, last, *after) over all rays, on all cores."""
    announce(kernel)
    in_parallel(lambda first, last: kernel(*before, first, last, *after), count, grain)


def _fast(grid: Grid, s: np.ndarray, t: np.ndarray, derivatives: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Integrals [N], and derivatives [N, 3] or [0, 3], of one channel of everything, by the vectorised kernels."""
    count = len(s)
    results = np.zeros(count, np.float32), *(np.zeros((count * derivatives, 3), np.float32) for _ in range(2))
    if grid.integrator == "trilinear":
        arguments = _table(grid, "trilinear", lambda: _trilinear_arguments(grid))
        if arguments is None:
            return _in_float(grid, s, t, derivatives)
        _over_rays(trilinear, count, LANES, (*arguments, s, t), results)
    elif _table(grid, "box", lambda: box_of_matter(grid.field.attenuation.numpy())) is not None:
        main = _main_axes(grid, s, t)
        for axis in range(3):
            chosen = np.flatnonzero(main == axis)
            if len(chosen) == count > 0:
                _over_rays(siddon, count, LANES, (*_prefix(grid, axis), s, t), results)
            elif len(chosen) > 0:
                parts = tuple(part[chosen[: len(part)]] for part in results)
                _over_rays(siddon, len(chosen), LANES, (*_prefix(grid, axis), s[chosen], t[chosen]), parts)
                for whole, part in zip(results, parts, strict=True):
                    whole[chosen[: len(part)]] = part
    return results


def _in_float(grid: Grid, s: np.ndarray, t: np.ndarray, derivatives: bool) -> tuple[np.ndarray, ...]:
    """What `_fast` gives, of a volume whose values are too far apart for 16 bits, ray by ray."""
    channels = _channels(grid)
    before = (grid.field.attenuation.numpy(), *_walk_arguments(grid, channels), s, t)
    integral = np.empty((1, len(s)), np.float32)
    slopes = tuple(np.zeros((len(s) * derivatives, 3), np.float32) for _ in range(2))
    _over_rays(sample_walk.integrals, len(s), _WALKED, before, (integral,))
    if derivatives:
        _over_rays(sample_walk.ray_gradients, len(s), _WALKED, (*before, np.ones_like(integral)), slopes)
    return integral[0], *slopes


def _main_axes(grid: Grid, s: np.ndarray, t: np.ndarray) -> np.ndarray:
    """[N], the axis of the grid along which each ray passes most voxels."""
    with np.errstate(invalid="ignore"):  # a ray of NaN has no main axis; any will do
        steps = np.abs((t - s) @ grid.field.ras_to_ijk[:3, :3].numpy().T)
    return steps.argmax(-1)


def _prefix(grid: Grid, axis: int) -> Prefix:
    field, box = grid.field, grid.tables["box"]
    try:
        return _table(
            grid,
            f"prefix{axis}",
            lambda: make_prefix(field.attenuation.numpy(), field.ras_to_ijk.numpy(), box, axis),
        )
    except MemoryError as error:
        raise RenderError(
            "There is not enough memory for the running sums of this volume, 4 bytes a voxel; crop or coarsen it, or "
            "use backend='torch'."
        ) from error


def _trilinear_arguments(grid: Grid) -> tuple | None:
    """What `trilinear` takes before the rays; None where 16 bits are too few."""
    attenuation = grid.field.attenuation.numpy()
    shape = attenuation.shape
    if np.prod([size + RIM for size in shape], dtype=np.int64) >= 2**31:
        raise RenderError("The volume has more than 2^31 voxels; crop or coarsen it, or use backend='torch'.")
    if not _fits_16_bits(grid):
        _log.warning("Metal, or a stray voxel, attenuates far more than the rest: rendering in float32, more slowly.")
        return None
    # Half a chunk and one voxel more must not reach beyond the neighbours of a brick.
    chunk = max(1, int(2 * (BRICK - 2) * grid.parts / (max(shape) + 1)))
    return *_voxels(grid), _bricks(grid), _matrix(grid), shape[::-1], grid.parts, chunk


def _fits_16_bits(grid: Grid) -> bool:
    """Whether the largest attenuation is not too far above the mean one."""
    return _table(grid, "fits", lambda: deque(_fitting(grid.field.attenuation.numpy()), maxlen=1).pop())


def _fitting(attenuation: np.ndarray) -> Iterator[bool | None]:
    """What `_fits_16_bits` gives, as the last thing; None between the pieces before."""
    total, count, largest, deep = 0.0, 0, 0.0, max(1, _PIECE // max(1, attenuation[:1].size))
    for first in range(0, len(attenuation), deep):
        slab = attenuation[first : first + deep]
        total += slab.sum(dtype=np.float64)
        count += np.count_nonzero(slab)
        largest = max(largest, float(slab.max()))
        yield
    yield not largest > _WIDEST_RANGE * total / max(1, count)


def _voxels(grid: Grid) -> tuple[np.ndarray, float]:
    return _table(grid, "voxels", lambda: rimmed(grid.field.attenuation.numpy()))


def _bricks(grid: Grid) -> np.ndarray:
    return _table(grid, "bricks", lambda: occupied_bricks(grid.field.attenuation.numpy()))


def _matrix(grid: Grid) -> np.ndarray:
    """[3, 4] float64, world mm to voxel centres (trilinear) or to voxel edges (siddon)."""
    matrix = grid.field.ras_to_ijk[:3].detach().numpy().copy()
    if grid.integrator == "siddon":
        matrix[:, 3] += 0.5
    return matrix


def _channels(grid: Grid) -> Channels:
    return _table(grid, "channels", lambda: make_channels(grid.field))


def _walk_arguments(grid: Grid, channels: Channels) -> tuple:
    """What a walk takes between the voxels and the rays."""
    if grid.integrator == "siddon":
        return channels.labels, channels.channel_of, _matrix(grid)
    return channels.labels, channels.channel_of, channels.soft, _matrix(grid), grid.parts


def _by_row(weight: Tensor, channels: Channels) -> np.ndarray:
    """Weights [C, N] added up where a label is asked for more than once."""
    rows = torch.tensor(channels.rows)
    return torch.zeros(channels.count, weight.shape[1]).index_add_(0, rows, weight.detach()).numpy()


def _making(grid: Grid, name: str, work: Callable) -> Iterator[None]:
    """Make a table in pieces; `work(attenuation)` gives it as the last thing."""
    if name not in grid.tables:
        for made in work(grid.field.attenuation.numpy()):
            yield
            last = made
        _table(grid, name, lambda: last)


def _table(grid: Grid, name: str, make: Callable):
    """What is derived from a grid, made once."""
    with _lock:
        if name not in grid.tables:
            grid.tables[name] = make()
        return grid.tables[name]
