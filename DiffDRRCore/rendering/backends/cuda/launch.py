"""The calls of the cuda backend: memory for the results, pieces of rays, launches. Nothing waits for the device."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import warp as wp
from torch import Tensor

from DiffDRRCore.rendering.backends.cuda import siddon_kernels, trilinear_kernels
from DiffDRRCore.rendering.backends.cuda.interop import array, launch
from DiffDRRCore.rendering.backends.cuda.segments import vec7f
from DiffDRRCore.rendering.backends.cuda.sharing import Channels
from DiffDRRCore.rendering.backends.cuda.tables import Tables, tables_of

if TYPE_CHECKING:
    from DiffDRRCore.rendering.backends.fused.grid import Grid

wp.set_module_options({"enable_backward": False})

_THREADS = 2**17  # enough to fill a large GPU
_SAMPLES_PER_PIECE = 16
_MAX_PIECES = 64
_PARTIAL_SUMS = 2**26  # numbers at most that pieces are kept in, beside one for each ray and channel


def integrals(grid: Grid, s: Tensor, t: Tensor) -> Tensor:
    """Integrals [C, N], float32."""
    tables, rays = tables_of(grid), _rays(s, t)
    pieces = piece_count(grid, s, tables.count)
    out = torch.zeros(pieces, tables.count, len(s), dtype=torch.float32, device=s.device)
    kernel = _kernel(grid, tables, "INTEGRALS")
    if len(s):
        launch(kernel, (pieces, len(s)), (tables.voxels, *rays, *_parts(grid), array(out)), s.device)
    total = out[0] if pieces == 1 else out.sum(0)
    return total if tables.order is None else total[tables.order]


def derivatives(grid: Grid, s: Tensor, t: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """The integral [N] and its derivatives [N, 3] by s and t, float32, of the sum of channels times weight [C, N]."""
    tables, rays = tables_of(grid), _rays(s, t)
    weight = _kernel_weight(tables, weight, s)
    pieces = piece_count(grid, s, 7)
    sums = torch.empty(pieces, len(s), 7, dtype=torch.float32, device=s.device)
    integral, by_s, by_t = (torch.empty(shape, dtype=torch.float32, device=s.device) for shape in _shapes(len(s)))
    if len(s):
        arrays = (*_parts(grid), array(weight), array(sums, vec7f))
        launch(_kernel(grid, tables, "DERIVATIVES"), (pieces, len(s)), (tables.voxels, *rays, *arrays), s.device)
        per_ray = weight if tables.channels == Channels.ONE else None
        results = (array(integral), array(by_s, wp.vec3), array(by_t, wp.vec3))
        launch(add_pieces, (len(s),), (array(sums, vec7f), array(per_ray), *results), s.device)
    return integral, by_s, by_t


def adjoint(grid: Grid, s: Tensor, t: Tensor, weight: Tensor) -> Tensor:
    """Sum over channels and rays of weight [C, N] times the derivative of the integrals by attenuation: [K, J, I]."""
    tables, rays = tables_of(grid), _rays(s, t)
    weight = _kernel_weight(tables, weight, s)
    out = torch.zeros(grid.field.attenuation.shape, dtype=torch.float32, device=s.device)
    pieces = piece_count(grid, s, 0)
    if len(s):
        arguments = (tables.voxels, *rays, *_parts(grid), pieces, array(weight), array(out))
        launch(_kernel(grid, tables, "ADJOINT"), (pieces, len(s)), arguments, s.device)
    return out


def piece_count(grid: Grid, s: Tensor, sums_per_ray: int) -> int:
    """Into how many pieces each ray is split: enough threads for a GPU from few rays, within bounded memory."""
    if s.device.type != "cuda" or len(s) == 0:
        return 1
    longest = grid.parts // _SAMPLES_PER_PIECE if grid.integrator == "trilinear" else _MAX_PIECES
    affordable = _PARTIAL_SUMS // max(1, sums_per_ray * len(s))
    return max(1, min(-(-_THREADS // len(s)), longest, _MAX_PIECES, affordable))


def _shapes(rays: int) -> tuple[tuple[int, ...], ...]:
    return (rays,), (rays, 3), (rays, 3)


def _kernel(grid: Grid, tables: Tables, name: str):
    if grid.integrator == "trilinear":
        return getattr(trilinear_kernels, name)[tables.channels]
    return getattr(siddon_kernels, name)[tables.channels != Channels.ONE]


def _parts(grid: Grid) -> tuple[int, ...]:
    return (grid.parts,) if grid.integrator == "trilinear" else ()


def _rays(s: Tensor, t: Tensor) -> tuple:
    return array(s, wp.vec3d), array(t, wp.vec3d)


def _kernel_weight(tables: Tables, weight: Tensor | None, s: Tensor) -> Tensor | None:
    """Weight of each of the kernels' channels [channels, N]; channels that were asked for twice have the sum."""
    if weight is None:
        if tables.channels == Channels.ONE:
            return None
        weight = torch.ones(tables.count if tables.order is None else len(tables.order), len(s), device=s.device)
    weight = weight.detach().to(torch.float32)
    if tables.order is None:
        return weight
    return weight.new_zeros(tables.count, weight.shape[1]).index_add_(0, tables.order, weight)


@wp.kernel
def add_pieces(
    sums: wp.array2d(dtype=vec7f),
    weight: wp.array2d(dtype=wp.float32),
    integral: wp.array(dtype=wp.float32),
    by_s: wp.array(dtype=wp.vec3),
    by_t: wp.array(dtype=wp.vec3),
):
    """Add the pieces of each ray in order, times the weight [1, N] where there is one."""
    ray = wp.tid()
    total = sums[0, ray]
    for piece in range(1, sums.shape[0]):
        total += sums[piece, ray]
    if weight:
        total *= weight[0, ray]
    integral[ray] = total[0]
    by_s[ray] = wp.vec3(total[1], total[2], total[3])
    by_t[ray] = wp.vec3(total[4], total[5], total[6])
