"""Meshes from files, and to STL."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

from DiffDRRCore.errors import DiffDRRWarning, PhysicsError, ReadError
from DiffDRRCore.files import replacing
from DiffDRRCore.imaging.image_files import reading
from DiffDRRCore.physics.solids.mesh import Mesh
from DiffDRRCore.physics.solids.vtk import read_vtk

FRAMES = ("lps", "ras")
_LPS_TO_RAS = np.array([-1.0, -1.0, 1.0])
_FACET = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
_HEADER = 80  # bytes before the number of triangles in a binary STL
_SPACE = re.compile(rb"SPACE=(LPS|RAS)")
_SMALL = 1.0  # mm

Arrays = tuple[np.ndarray, np.ndarray]


def read_mesh(path: str | Path, frame: str | None = None, name: str | None = None) -> Mesh:
    """A mesh in RAS mm from an STL (ASCII or binary), legacy VTK (.vtk polydata), PLY or OBJ file.

    Coordinates are taken as mm. A mesh less than 1 mm across raises a DiffDRRWarning: it may be in other units.

    Args:
        frame: "lps" or "ras", the axes of the file's coordinates. None is what the header says where it has SPACE=LPS
            or SPACE=RAS, as files of 3D Slicer 5 do, and LPS where it says nothing.
        name: of the mesh; None is the file's name.

    Raises ReadError for a file that cannot be read, PhysicsError for a surface that `Mesh` refuses. PLY and OBJ need
    the package trimesh.
    """
    path = Path(path)
    if frame is not None and frame not in FRAMES:
        raise PhysicsError(f"The frame of a mesh is 'lps' or 'ras', got {frame!r}.")
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise ReadError(f"'{path}' is not a kind of mesh that is read; save it as STL, VTK (.vtk), PLY or OBJ.")
    with reading(path):
        data = path.read_bytes()
        vertices, triangles = reader(path, data)
    if (frame or _frame_in_header(data)) == "lps":
        vertices = vertices * _LPS_TO_RAS
    mesh = Mesh(vertices, triangles, path.stem if name is None else name)
    _warn_if_small(mesh, path)
    return mesh


def write_stl(mesh: Mesh, path: str | Path, frame: str = "lps") -> None:
    """Write a mesh in RAS mm as a binary STL in the axes of `frame`, with SPACE=... in its header as 3D Slicer has it.

    Raises PhysicsError for another frame and DiffDRRError where the file cannot be written.
    """
    if frame not in FRAMES:
        raise PhysicsError(f"The frame of a mesh is 'lps' or 'ras', got {frame!r}.")
    corners = mesh.corners.detach().cpu().numpy() * (_LPS_TO_RAS if frame == "lps" else 1.0)
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    length = np.linalg.norm(normal, axis=1, keepdims=True)
    facets = np.zeros(len(corners), _FACET)
    facets["normal"], facets["corners"] = normal / np.where(length > 0, length, 1), corners
    header = f"DiffDRRSlicer output. SPACE={frame.upper()}".encode().ljust(_HEADER)
    with replacing(path) as temporary:
        temporary.write_bytes(header + np.array(len(facets), "<u4").tobytes() + facets.tobytes())


def _frame_in_header(data: bytes) -> str:
    found = _SPACE.search(data[:1024])
    return found[1].decode().lower() if found else "lps"


def _warn_if_small(mesh: Mesh, path: Path) -> None:
    low, high = mesh.bounds
    size = float((high - low).max())
    if size < _SMALL:
        warnings.warn(
            f"The mesh '{path}' is only {size:g} mm across; if it is not in mm, scale it with Mesh.transformed.",
            DiffDRRWarning,
            stacklevel=3,
        )


def _read_stl(path: Path, data: bytes) -> Arrays:
    corners = _binary_stl(data)
    if corners is None:
        if not data.lstrip()[:5].lower() == b"solid":
            raise ReadError(f"'{path}' is not an STL file, or is cut short.")
        corners = _ascii_stl(path, data)
    return corners.reshape(-1, 3).astype(np.float64), np.arange(corners.shape[0] * 3).reshape(-1, 3)


def _binary_stl(data: bytes) -> np.ndarray | None:
    """Corners [M, 3, 3]; None where the file's length is not that of its number of triangles."""
    begin = _HEADER + 4
    if len(data) < begin:
        return None
    count = int(np.frombuffer(data, "<u4", 1, _HEADER)[0])
    if len(data) < begin + count * _FACET.itemsize or (data[:5] == b"solid" and b"facet" in data[:1024]):
        return None
    return np.frombuffer(data, _FACET, count, begin)["corners"]


def _ascii_stl(path: Path, data: bytes) -> np.ndarray:
    numbers = re.findall(rb"vertex\s+(\S+)\s+(\S+)\s+(\S+)", data, re.IGNORECASE)
    if len(numbers) % 3 or data.lower().count(b"endfacet") * 3 != len(numbers):
        raise ReadError(f"'{path}' is damaged: its facets are not all of three corners.")
    return np.array(numbers, dtype=np.float64).reshape(-1, 3, 3)


def _read_with_trimesh(path: Path, data: bytes) -> Arrays:
    try:
        import trimesh
    except ImportError as error:
        raise ReadError(f"Reading '{path}' needs trimesh (pip install trimesh); or save it as STL.") from error
    mesh = trimesh.load(path, force="mesh", process=False)
    return np.asarray(mesh.vertices, np.float64), np.asarray(mesh.faces, np.int64)


def _read_vtk(path: Path, data: bytes) -> Arrays:
    return read_vtk(data)


_READERS: dict[str, Callable[[Path, bytes], Arrays]] = {
    ".stl": _read_stl,
    ".vtk": _read_vtk,
    ".ply": _read_with_trimesh,
    ".obj": _read_with_trimesh,
}
