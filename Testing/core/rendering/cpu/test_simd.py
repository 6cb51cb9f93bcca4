"""Vectors of lanes, each operation against NumPy."""

from __future__ import annotations

import numpy as np
from numba import njit

from DiffDRRCore.rendering.backends.cpu.simd import (
    LANES,
    any_of,
    as_floats,
    gather,
    gather_pair,
    int_maximum,
    int_minimum,
    load,
    maximum,
    minimum,
    product,
    splat,
    store,
    truncated,
    where_float,
    where_int,
)

F, I = np.float32, np.int32


@njit
def floats_of(a, b, c, out):
    x, y = load(a, 0), load(a, LANES)
    store(out, 0 * LANES, x + y)
    store(out, 1 * LANES, x - y)
    store(out, 2 * LANES, x * y)
    store(out, 3 * LANES, minimum(x, y))
    store(out, 4 * LANES, maximum(x, y))
    store(out, 5 * LANES, product(x, y))
    store(out, 6 * LANES, where_float(x < y, x, splat(F(7))))
    store(out, 7 * LANES, where_float((x <= y) & (y < splat(F(1))), x, y))
    store(out, 8 * LANES, as_floats(truncated(x * splat(F(10)))))
    index = load(b, 0)
    store(out, 9 * LANES, gather(a, index))
    first, second = gather_pair(c, index)
    store(out, 10 * LANES, first)
    store(out, 11 * LANES, second)


@njit
def ints_of(a, out):
    x, y = load(a, 0), load(a, LANES)
    store(out, 0 * LANES, x + y)
    store(out, 1 * LANES, x - y)
    store(out, 2 * LANES, x * y)
    store(out, 3 * LANES, int_minimum(x, y))
    store(out, 4 * LANES, int_maximum(x, y))
    store(out, 5 * LANES, (x >> splat(I(2))) + (y << splat(I(3))))
    store(out, 6 * LANES, where_int(x != y, x & splat(I(3)), splat(I(-1))))
    store(out, 7 * LANES, gather(a, x & splat(I(15))))


@njit
def any_differs(a):
    return any_of(load(a, 0) != load(a, LANES))


def test_floats():
    rng = np.random.default_rng(0)
    a = rng.normal(size=2 * LANES).astype(F)
    b = rng.permutation(2 * LANES - 1)[:LANES].astype(I)
    out = np.zeros(12 * LANES, F)
    c = rng.integers(0, 2**16, 2 * LANES).astype(np.uint16)
    floats_of(a, b, c, out)
    x, y = a[:LANES], a[LANES:]
    expected = [x + y, x - y, x * y, np.minimum(x, y), np.maximum(x, y), x * y, np.where(x < y, x, 7)]
    expected += [np.where((x <= y) & (y < 1), x, y), np.trunc(x * F(10)), a[b], c[b], c[b + 1]]
    np.testing.assert_allclose(out.reshape(12, LANES), np.array(expected, F), rtol=1e-6)


def test_ints():
    a = np.random.default_rng(1).integers(-1000, 1000, 2 * LANES).astype(I)
    a[3] = a[LANES + 3]
    out = np.zeros(8 * LANES, I)
    ints_of(a, out)
    x, y = a[:LANES], a[LANES:]
    expected = [x + y, x - y, x * y, np.minimum(x, y), np.maximum(x, y), (x >> 2) + (y << 3)]
    expected += [np.where(x != y, x & 3, -1), a[x & 15]]
    np.testing.assert_array_equal(out.reshape(8, LANES), np.array(expected))


def test_any_lane():
    a = np.zeros(2 * LANES, I)
    assert not any_differs(a)
    a[LANES - 1] = 1
    assert any_differs(a)
