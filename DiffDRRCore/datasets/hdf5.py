"""Reading the HDF5 files of published datasets: opened for each access, closed after it, every failure one ReadError.

Files are opened read-only and without a lock, so that many processes can read one, on read-only media too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from DiffDRRCore.datasets.dataset import Subject
from DiffDRRCore.errors import DiffDRRError, ReadError
from DiffDRRCore.geometry import Camera, Pose
from DiffDRRCore.geometry.converters.projection_matrix import from_projection_matrix

_RIGID = 1e-3  # largest deviation of a rotation's singular values from 1 that passes for rounding


def top_level_names(path: str | Path) -> tuple[str, ...]:
    """Names of the groups and datasets at the root of an HDF5 file, sorted. Raises ReadError."""
    with opened(path) as file:
        return file.names()


@contextmanager
def opened(path: str | Path) -> Iterator[HDF5File]:
    """An HDF5 file for reading. Raises ReadError: h5py missing, no such file, no permission, not HDF5, cut short."""
    path = Path(path)
    try:
        import h5py
    except ImportError as error:
        raise ReadError("HDF5 files need h5py; install it with: pip install h5py") from error
    try:
        path.open("rb").close()  # says plainly what h5py wraps in its own words
    except OSError as error:
        raise ReadError(f"Cannot read '{path}': {error.strerror or error}.") from error
    if not h5py.is_hdf5(path):
        raise ReadError(f"'{path}' is not an HDF5 file, or its beginning is lost.")
    with _open(h5py.File, path) as file:
        yield HDF5File(path, file)


@contextmanager
def naming(path: Path, what: str) -> Iterator[None]:
    """Errors of geometry, volumes and images made of a file's numbers become a ReadError that says which ones."""
    try:
        yield
    except ReadError:
        raise
    except DiffDRRError as error:
        raise ReadError(f"'{path}': '{what}' cannot be used: {error}") from error


class HDF5File:
    """What an open file holds, by the names of its groups and datasets ("17-1882/vol/pixels").

    Numbers come as float64 except for `array`. Every method raises ReadError for what is missing, damaged or of
    another shape than asked for.
    """

    def __init__(self, path: Path, file: Any):
        self.path, self._file = path, file

    def __contains__(self, name: str) -> bool:
        with self._reading(name):
            return name in self._file

    def names(self, group: str = "/") -> tuple[str, ...]:
        """Of what is in a group; numbers in their order."""
        with self._reading(group):
            found = self._item(group)
            if not hasattr(found, "keys"):
                raise ReadError(f"'{self.path}': '{group}' is a dataset, where a group is expected.")
            return tuple(sorted(found.keys(), key=lambda name: (int(name) if name.isdecimal() else 0, name)))

    def shape(self, name: str, dimensions: int) -> tuple[int, ...]:
        """Of a dataset of so many dimensions, without reading it."""
        with self._reading(name):
            return self._checked_shape(name, self._dataset(name), dimensions)

    def array(self, name: str, dimensions: int | None = None) -> np.ndarray:
        """Real numbers of the file's own type, of so many dimensions."""
        with self._reading(name):
            dataset = self._dataset(name)
            if dataset.dtype.kind not in "biuf":
                raise ReadError(f"'{self.path}': '{name}' does not hold real numbers ({dataset.dtype}).")
            if dimensions is not None:
                self._checked_shape(name, dataset, dimensions)
            return np.asarray(dataset[()])

    def numbers(self, name: str, *shape: int) -> np.ndarray:
        """Finite numbers in that shape; axes of length 1 may be missing or too many."""
        values = self.array(name).astype(np.float64)
        if [n for n in values.shape if n != 1] != [n for n in shape if n != 1]:
            raise self._wrong_shape(name, values.shape, f"{' x '.join(map(str, shape)) or 'one'} number(s)")
        if not np.isfinite(values).all():
            raise ReadError(f"'{self.path}': '{name}' has values that are not finite numbers.")
        return values.reshape(shape)

    def number(self, name: str) -> float:
        """One number, alone or in an array."""
        return float(self.numbers(name))

    def text(self, name: str) -> str:
        """One string, alone or in an array."""
        with self._reading(name):
            values = np.asarray(self._dataset(name)[()]).ravel()
            if values.size != 1 or not isinstance(values[0], (bytes, str)):
                raise ReadError(f"'{self.path}': '{name}' is not a text.")
            text = values[0]
        return (text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)).rstrip("\0")

    def rotation(self, name: str) -> np.ndarray:
        """[3, 3], the nearest orthogonal matrix, of either handedness."""
        return self._nearest_orthogonal(name, self.numbers(name, 3, 3))

    def rigid(self, name: str) -> np.ndarray:
        """[4, 4] of which the rotation is made exact: files hold it rounded."""
        matrix = self.numbers(name, 4, 4)
        matrix[:3, :3] = self._nearest_orthogonal(name, matrix[:3, :3])
        if np.abs(matrix[3] - [0, 0, 0, 1]).max() > 1e-6 or np.linalg.det(matrix[:3, :3]) < 0:
            raise ReadError(f"'{self.path}': '{name}' is not a rigid transform (a rotation and a translation).")
        return matrix

    def _nearest_orthogonal(self, name: str, matrix: np.ndarray) -> np.ndarray:
        left, values, right = np.linalg.svd(matrix)
        if np.abs(values - 1).max() > _RIGID:
            raise ReadError(f"'{self.path}': '{name}' is not a rotation: it stretches by {values.round(4).tolist()}.")
        return left @ right

    def _dataset(self, name: str) -> Any:
        found = self._item(name)
        if not hasattr(found, "dtype"):
            raise ReadError(f"'{self.path}': '{name}' is a group, where a dataset is expected.")
        return found

    def _item(self, name: str) -> Any:
        if name != "/" and name not in self._file:
            raise ReadError(f"'{self.path}' has no '{name}'.")
        return self._file[name]

    def _checked_shape(self, name: str, dataset: Any, dimensions: int) -> tuple[int, ...]:
        shape = tuple(dataset.shape or ())
        if len(shape) != dimensions or 0 in shape:
            raise self._wrong_shape(name, shape, f"{dimensions} dimensions")
        return shape

    def _wrong_shape(self, name: str, shape: tuple[int, ...], wanted: str) -> ReadError:
        found = " x ".join(map(str, shape)) or "a single number"
        return ReadError(f"'{self.path}': '{name}' should have {wanted}, but is {found}.")

    @contextmanager
    def _reading(self, name: str) -> Iterator[None]:
        try:
            yield
        except ReadError:
            raise
        except MemoryError as error:
            raise ReadError(f"'{self.path}': '{name}' does not fit into the memory.") from error
        except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:  # all of these come from h5py
            raise _damaged(self.path, error, name) from error


class HDF5Subject(Subject):
    """A subject in an HDF5 file. What was read of it stays behind when it is sent to another process."""

    def __init__(self, path: Path, name: str):
        self.path, self.name = path, name

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("volume", "landmarks")}


def read_image(file: HDF5File, name: str) -> Tensor:
    """Pixels [H, W] as float32."""
    return torch.from_numpy(file.array(name, 2).astype(np.float32))


def camera_and_pose(
    projection: np.ndarray, size: tuple[int, int], pixel_spacing: tuple[float, float], in_front: np.ndarray
) -> tuple[Camera, Pose]:
    """Of P [3, 4], RAS mm to pixels, an image size (H, W) and (row_mm, col_mm). Raises GeometryError."""
    return from_projection_matrix(projection, *size, pixel_spacing=pixel_spacing, in_front=in_front)


def grid_center(ijk_to_ras: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """RAS mm [3] of the middle of a grid of (K, J, I) voxels."""
    return (ijk_to_ras @ [*((n - 1) / 2 for n in reversed(shape)), 1])[:3]


def _open(open_file: Callable[..., Any], path: Path) -> Any:
    try:
        try:
            return open_file(path, "r", locking=False)
        except (OSError, ValueError) as error:
            if "locking" not in str(error):  # HDF5's rule: all openings of a file by one process lock it, or none
                raise
            return open_file(path, "r")
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception, name: str | None = None) -> ReadError:
    where = "" if name is None else f" at '{name}'"
    reason = " ".join(str(error).split()).strip("'\"").rstrip(".")
    return ReadError(f"'{path}' is damaged or incomplete{where} ({reason}); copy or download it again.")
