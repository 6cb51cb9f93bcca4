"""Closed meshes as arrays (vertices [V, 3], triangles [M, 3]), and rays at them, made without what they test."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import strategies as st
from scipy.spatial import ConvexHull

from DiffDRRCore import Camera, Pose
from DiffDRRCore.geometry import pixel_rays
from Testing.core import samples

Arrays = tuple[np.ndarray, np.ndarray]


def outward(vertices: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """The triangles of a convex surface, each counter-clockwise as seen from outside."""
    a, b, c = (vertices[triangles[:, n]] for n in range(3))
    inward = (np.cross(b - a, c - a) * (a - vertices.mean(0))).sum(1) < 0
    return np.where(inward[:, None], triangles[:, ::-1], triangles)


def box_arrays(low, high) -> Arrays:
    """A box between two corners, in 12 triangles."""
    corners = np.array([[x, y, z] for z in (0, 1) for y in (0, 1) for x in (0, 1)], float)
    vertices = np.array(low, float) + corners * (np.array(high, float) - np.array(low, float))
    quads = [(0, 1, 3, 2), (4, 5, 7, 6), (0, 1, 5, 4), (2, 3, 7, 6), (0, 2, 6, 4), (1, 3, 7, 5)]
    triangles = np.array([t for a, b, c, d in quads for t in ((a, b, c), (a, c, d))])
    return vertices, outward(corners, triangles)


def icosphere_arrays(radius: float, subdivisions: int, center=(0.0, 0.0, 0.0)) -> Arrays:
    """An icosahedron whose triangles are cut in four so many times, every vertex on the sphere."""
    golden = (1 + 5**0.5) / 2
    vertices = np.array(
        [p for a in (-1, 1) for b in (-golden, golden) for p in ((0, a, b), (a, b, 0), (b, 0, a))], float
    )
    vertices /= np.linalg.norm(vertices, axis=1, keepdims=True)
    triangles = ConvexHull(vertices).simplices
    for _ in range(subdivisions):
        edges = np.sort(triangles[:, [[0, 1], [1, 2], [2, 0]]], axis=2).reshape(-1, 2)
        unique, number = np.unique(edges, axis=0, return_inverse=True)
        middle = vertices[unique].sum(1)
        number = number.reshape(-1, 3) + len(vertices)
        vertices = np.concatenate([vertices, middle / np.linalg.norm(middle, axis=1, keepdims=True)])
        (a, b, c), (ab, bc, ca) = triangles.T, number.T
        triangles = np.concatenate([np.stack(t, 1) for t in ((a, ab, ca), (b, bc, ab), (c, ca, bc), (ab, bc, ca))])
    return vertices * radius + np.array(center), outward(vertices, triangles)


def hull_arrays(rng: np.random.Generator, points: int, lattice: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The convex hull of random points, and its half spaces [F, 4] (n x + d <= 0).

    lattice: 0, or the largest coordinate of points with whole numbers, whose hulls have large flat faces and rays
    through edges.
    """
    cloud = (
        rng.integers(-lattice, lattice + 1, (points, 3)).astype(float) if lattice else rng.normal(0, 20, (points, 3))
    )
    hull = ConvexHull(cloud, qhull_options="Qt")
    used, triangles = np.unique(hull.simplices, return_inverse=True)
    vertices = cloud[used]
    return vertices, outward(vertices, triangles.reshape(-1, 3)), hull.equations


def star_arrays(rng: np.random.Generator, subdivisions: int = 2) -> Arrays:
    """A sphere with random dents: not convex."""
    vertices, triangles = icosphere_arrays(1.0, subdivisions)
    return vertices * rng.uniform(10, 40, (len(vertices), 1)), triangles


def joined(*parts: Arrays) -> Arrays:
    """Several surfaces as one."""
    sizes = np.cumsum([0, *(len(vertices) for vertices, _ in parts)])
    triangles = [part[1] + size for part, size in zip(parts, sizes, strict=False)]
    return np.concatenate([part[0] for part in parts]), np.concatenate(triangles)


def convex_interval(planes: np.ndarray, source: np.ndarray, direction: np.ndarray, grown: float = 0.0):
    """(near, far) [N]: where lines source + a direction lie in all half spaces (n x + d <= grown)."""
    rate = direction @ planes[:, :3].T
    room = grown - planes[:, 3] - source @ planes[:, :3].T
    with np.errstate(divide="ignore", invalid="ignore"):
        a = room / rate
    near = np.where(rate < 0, a, np.where((rate == 0) & (room < 0), np.inf, -np.inf)).max(1)
    far = np.where(rate > 0, a, np.inf).min(1)
    return near, far


def line_lengths(vertices, triangles, source, target) -> np.ndarray:
    """Lengths inside a simple closed surface of segments [N, 3], by Moeller and Trumbore; generic rays only."""
    a, b, c = (vertices[triangles[:, n]] for n in range(3))
    d, s = (target - source)[:, None], source[:, None]
    p, q = np.cross(d, c - a), np.cross(s - a, b - a)
    with np.errstate(divide="ignore", invalid="ignore"):
        det = ((b - a) * p).sum(-1)
        u = ((s - a) * p).sum(-1) / det
        v = (q * d).sum(-1) / det
        t = ((c - a) * q).sum(-1) / det
    met = (u >= 0) & (v >= 0) & (u + v <= 1)
    # Where the surface faces the source (det > 0) the ray enters.
    steps = np.where(met, np.sign(det) * np.clip(t, 0, 1), 0)
    return -steps.sum(1) * np.linalg.norm(d[:, 0], axis=-1)


sides = st.sampled_from(["source", "detector"])
kinds = st.sampled_from(["cone", "parallel"])


def at(*translation: float) -> Pose:
    """The camera that looks along world z from a point."""
    matrix = np.eye(4)
    matrix[:3, 3] = translation
    return Pose(matrix)


def some_camera(rng: np.random.Generator, kind: str, side: str, size: float = 60.0) -> Camera:
    """A small image of non-square pixels, of about the field of view that holds `size` mm."""
    if kind == "cone":
        return samples.camera(rng, side)
    return Camera.parallel_beam(30, 40, rng.uniform(0.5, 2, 2) * size / 30, 900.0, rng.uniform(10, 25, 2), side)


def numpy_rays(camera: Camera, pose: Pose) -> tuple[np.ndarray, np.ndarray]:
    source, target = pixel_rays(camera, pose)
    return source.expand_as(target)[0].numpy(), target[0].numpy()


class Interval:
    """A shape with the method that a solid of one interval must have."""

    def __init__(self, shape):
        self.shape = shape

    def interval(self, source, target):
        near, far = self.shape._interval(source, target - source)
        length = torch.linalg.vector_norm(target - source, dim=-1)
        return near * length, far * length
