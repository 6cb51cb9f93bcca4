"""Closed triangle meshes: implants, wires, screws and tools in the beam."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from DiffDRRCore.errors import PhysicsError
from DiffDRRCore.geometry import Pose, as_tensor
from DiffDRRCore.geometry.tensors import transform_points

_FLAT = 1e-12  # volume, as a fraction of the cube of the mesh's extent, below which it is rounding


@dataclass(frozen=True, eq=False)
class Mesh:
    """A solid bounded by triangles.

    vertices    [V, 3] in mm of the mesh's own coordinates, kept in float64 (with their graph); world RAS where nothing
                else is said
    triangles   [M, 3] int64, the vertices of each, counter-clockwise as seen from outside
    name        what messages call it

    Vertices in exactly the same place become one, and triangles that use a vertex twice are left out. Several closed
    parts may make one mesh; where they overlap there is still one solid, and a part inside another and turned inside
    out is a cavity.

    Raises PhysicsError for arrays of the wrong shape, numbers that are not finite, no triangles, an open surface (an
    edge without its opposite in a neighbouring triangle), one that is inside out (negative volume), or a flat one.
    """

    vertices: Tensor
    triangles: Tensor
    name: str = "mesh"

    def __post_init__(self):
        vertices = as_tensor(self.vertices).double()
        triangles = _whole_numbers(self.triangles, self.name).to(vertices.device)
        _check_arrays(vertices, triangles, self.name)
        vertices, triangles = _merged(vertices, triangles)
        object.__setattr__(self, "vertices", vertices)
        object.__setattr__(self, "triangles", triangles)
        self._check_surface()

    def _check_surface(self) -> None:
        if len(self.triangles) == 0:
            raise PhysicsError(f"The mesh '{self.name}' has no triangles; give a closed surface.")
        unpaired = _unpaired_edges(self.triangles, len(self.vertices))
        if unpaired:
            raise PhysicsError(
                f"The mesh '{self.name}' is not closed: {unpaired} edges lack a neighbour of the same orientation; "
                "close its holes and make its normals consistent (in Slicer: Surface Toolbox)."
            )
        low, high = self.bounds
        extent, volume = (high - low).max() ** 3, self.volume.detach()
        if volume < -_FLAT * extent:
            raise PhysicsError(f"The mesh '{self.name}' is inside out: flip its normals (the order of each triangle).")
        if volume <= _FLAT * extent:
            raise PhysicsError(f"The mesh '{self.name}' is flat: it encloses no volume.")

    def transformed(self, transform) -> Mesh:
        """The mesh moved by a `Pose` or a matrix [4, 4] (mm), which may scale, shear and mirror; gradients flow.

        Raises PhysicsError for a matrix that is not affine or not invertible.
        """
        matrix = as_tensor(transform.matrix if isinstance(transform, Pose) else transform).double()
        bottom = torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=torch.float64, device=matrix.device)
        if matrix.shape != (4, 4) or not bool(torch.isfinite(matrix).all()) or not torch.equal(matrix[3], bottom):
            raise PhysicsError(f"A mesh is moved by one affine matrix [4, 4], got {matrix.tolist()}.")
        size = torch.linalg.det(matrix[:3, :3].detach())
        if size == 0:
            raise PhysicsError(f"The matrix flattens the mesh '{self.name}': {matrix.tolist()}.")
        vertices = transform_points(matrix.to(self.vertices.device), self.vertices)
        return self._of(vertices, self.triangles.flip(-1) if size < 0 else self.triangles)

    def to(self, device) -> Mesh:
        """The same mesh on another device."""
        return self._of(self.vertices.to(device), self.triangles.to(device))

    def _of(self, vertices: Tensor, triangles: Tensor) -> Mesh:
        """Of the same surface, which needs no second check."""
        mesh = object.__new__(Mesh)
        for field, value in (("vertices", vertices), ("triangles", triangles), ("name", self.name)):
            object.__setattr__(mesh, field, value)
        return mesh

    @property
    def corners(self) -> Tensor:
        """The vertices of each triangle, [M, 3, 3] mm."""
        return self.vertices[self.triangles]

    @property
    def volume(self) -> Tensor:
        """The enclosed volume, mm^3: the sum of signed tetrahedra, in which overlapping parts count twice."""
        a, b, c = (self.corners - self.vertices.detach().mean(dim=0)).unbind(dim=1)
        return (a * torch.linalg.cross(b, c)).sum() / 6

    @property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """Opposite corners [3] of the box around it, mm: lowest and highest coordinates."""
        return self.vertices.detach().amin(dim=0), self.vertices.detach().amax(dim=0)

    def __repr__(self) -> str:
        return f"Mesh({self.name!r}, {len(self.vertices)} vertices, {len(self.triangles)} triangles)"


def _whole_numbers(triangles, name: str) -> Tensor:
    array = triangles.cpu().numpy() if isinstance(triangles, Tensor) else np.array(triangles)
    if array.size and array.dtype.kind not in "iu":
        raise PhysicsError(f"The triangles of the mesh '{name}' are numbers of vertices, so integers.")
    return torch.from_numpy(array.astype(np.int64))


def _check_arrays(vertices: Tensor, triangles: Tensor, name: str) -> None:
    if triangles.numel() == 0:
        raise PhysicsError(f"The mesh '{name}' has no triangles; give a closed surface.")
    if vertices.ndim != 2 or vertices.shape[1] != 3 or triangles.ndim != 2 or triangles.shape[1] != 3:
        shapes = f"{list(vertices.shape)} and {list(triangles.shape)}"
        raise PhysicsError(f"The mesh '{name}' needs vertices [V, 3] and triangles [M, 3], got {shapes}.")
    if not bool(torch.isfinite(vertices).all()):
        raise PhysicsError(f"The mesh '{name}' has coordinates that are not finite numbers.")
    if int(triangles.min()) < 0 or int(triangles.max()) >= len(vertices):
        raise PhysicsError(f"The triangles of the mesh '{name}' name vertices that it does not have.")


def _merged(vertices: Tensor, triangles: Tensor) -> tuple[Tensor, Tensor]:
    """Without copies of vertices (the first of each stays) and triangles that have a vertex twice."""
    first = _first_copies(vertices.detach())
    kept = first == torch.arange(len(first), device=first.device)
    if not bool(kept.all()):
        vertices, triangles = vertices[kept], (kept.cumsum(dim=0) - 1)[first[triangles]]
    a, b, c = triangles.unbind(dim=1)
    return vertices, triangles[(a != b) & (b != c) & (c != a)]


def _first_copies(points: Tensor) -> Tensor:
    """For each of points [V, 3] the lowest number of a point with exactly its coordinates."""
    order = torch.arange(len(points), device=points.device)
    for axis in range(3):
        order = order[torch.argsort(points[order, axis], stable=True)]
    ordered = points[order]
    new = torch.ones(len(points), dtype=torch.bool, device=points.device)
    new[1:] = (ordered[1:] != ordered[:-1]).any(dim=1)
    first = torch.empty_like(order)
    first[order] = order[new][new.cumsum(dim=0) - 1]
    return first


def _unpaired_edges(triangles: Tensor, vertices: int) -> int:
    """How many edges lack an opposite: each from a to b needs one from b to a, also where more than two faces meet."""
    start, end = triangles.flatten(), triangles.roll(-1, dims=1).flatten()
    upward = start < end
    edge = torch.where(upward, start * vertices + end, end * vertices + start)
    _, number = torch.unique(edge, return_inverse=True)
    surplus = torch.zeros(int(number.max()) + 1, dtype=torch.int64, device=edge.device)
    surplus.index_add_(0, number, torch.where(upward, 1, -1))
    return int((surplus != 0).sum())
