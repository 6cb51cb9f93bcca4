"""Empty space, pieces of rays, limits, and what the GPU must have."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("warp", reason="the cuda backend needs the package warp-lang")

from DiffDRRCore.errors import RenderError
from DiffDRRCore.rendering.backends.cuda import available, interop, launch, tables
from DiffDRRCore.rendering.field import Field
from Testing.core.rendering.cuda import cases


def occupied(of: Field, integrator: str) -> list[list[int]]:
    """Bricks (k, j, i) that are not skipped."""
    bricks = [(n + 1) // 8 + 1 for n in of.attenuation.shape]
    return tables.tables_of(cases.grid(of, integrator)).arrays[2].reshape(bricks).nonzero().tolist()


def one_voxel(k: int, j: int, i: int, label: int = 0, channels: str = "plain") -> Field:
    of = cases.field("aligned", (20, 20, 20), channels)
    of.attenuation.zero_()
    of.attenuation[k, j, i] = 0.01
    if of.labels is not None:
        of.labels.zero_()
        of.labels[k, j, i] = label
    return of


@pytest.mark.parametrize("integrator, bricks", [("siddon", [[1, 1, 1]]), ("trilinear", [[0, 1, 1], [1, 1, 1]])])
def test_only_bricks_near_a_dense_voxel_are_visited(integrator, bricks):
    """Voxel 7 is the first of the second brick, as there is one of padding; the cell below it is the first brick's."""
    assert occupied(one_voxel(7, 10, 12), integrator) == bricks


@pytest.mark.parametrize("integrator", ["siddon", "trilinear"])
@pytest.mark.parametrize("channels", ["nearest", "soft"])
def test_bricks_without_a_wanted_label_are_skipped(integrator, channels):
    assert occupied(one_voxel(10, 10, 12, label=4, channels=channels), integrator) == []
    assert occupied(one_voxel(10, 10, 12, label=5, channels=channels), integrator) == [[1, 1, 1]]


@pytest.mark.parametrize("channels", cases.CHANNELS)
@pytest.mark.parametrize("integrator", ["trilinear", "siddon"])
def test_skipping_changes_nothing(integrator, channels):
    of = cases.field("oblique", (40, 37, 30), channels)
    s, t = cases.rays(of, 300)
    with_gaps, without = cases.grid(of, integrator), cases.grid(of, integrator)
    empty = tables.tables_of(without).arrays[2]
    assert 0 < int(empty.sum()) < len(empty)
    empty.fill_(1)
    skipped, visited = (launch.integrals(grid, s, t) for grid in (with_gaps, without))
    assert torch.allclose(skipped, visited, rtol=0, atol=1e-6 * float(visited.max()))
    skipped, visited = (launch.derivatives(grid, s, t) for grid in (with_gaps, without))
    for a, b in zip(skipped, visited, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-6 * float(b.abs().max()))


def test_few_rays_are_split_for_a_gpu_and_none_on_a_cpu():
    class OnGpu:
        device = torch.device("cuda")

        def __init__(self, count):
            self.count = count

        def __len__(self):
            return self.count

    grid = cases.grid(cases.field(), "siddon")
    assert launch.piece_count(grid, torch.zeros(5, 3), 1) == 1
    assert launch.piece_count(grid, OnGpu(0), 1) == 1
    assert 10**5 <= 10**4 * launch.piece_count(grid, OnGpu(10**4), 1) < 2 * 10**5
    assert launch.piece_count(grid, OnGpu(10**6), 1) == 1
    assert launch.piece_count(grid, OnGpu(10**4), 10**4) == 1  # partial sums would take too much memory
    assert launch.piece_count(cases.grid(cases.field(), "trilinear"), OnGpu(1), 1) == cases.PARTS // 16


def test_limits_are_errors(monkeypatch):
    of = cases.field("oblique", channels="nearest")
    monkeypatch.setattr(tables, "_MAX_CHANNELS", 2)
    with pytest.raises(RenderError, match="at most 2 labels"):
        tables.tables_of(cases.grid(of, "siddon"))
    monkeypatch.setattr(tables, "_MAX_VOXELS", 100)
    with pytest.raises(RenderError, match="too large"):
        tables.tables_of(cases.grid(of, "siddon"))


def test_what_a_gpu_must_have(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (6, 1))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
    monkeypatch.setattr(interop.wp, "get_cuda_driver_version", lambda: (12, 2))
    monkeypatch.setattr(interop.wp, "get_cuda_toolkit_version", lambda: (13, 4))
    monkeypatch.setattr(interop.wp, "get_cuda_supported_archs", lambda: [75, 80])
    monkeypatch.setattr(interop.wp, "is_cuda_available", lambda: False)
    assert available()[0] is False
    assert "supports CUDA 12.2" in available()[1]
    assert "made for CUDA 13.4" in available()[1]
    monkeypatch.setattr(interop.wp, "is_cuda_available", lambda: True)
    assert available() == (False, "The GPU's compute capability is 6.1, but this warp-lang needs 7.5.")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    assert available() == (True, "Warp runs on Some GPU.")


def test_tables_are_made_once_for_a_grid():
    grid = cases.grid(cases.field(), "siddon")
    assert tables.tables_of(grid) is tables.tables_of(grid)
