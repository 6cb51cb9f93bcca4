"""Which dataset a path is."""

from __future__ import annotations

import inspect
from pathlib import Path

from DiffDRRCore.datasets.dataset import Dataset
from DiffDRRCore.errors import ReadError

_HDF5 = b"\x89HDF\r\n\x1a\n"


def open_dataset(path: str | Path, /, **options) -> Dataset:
    """The dataset at `path`: DeepFluoro or Ljubljana (told apart by what is in the HDF5 file), or a folder.

    Args:
        path: an HDF5 file; a folder, or the dataset.json of one.
        options: keywords of `DeepFluoro`, `Ljubljana` or `Folder`.

    Raises ReadError for anything else, and for options that this kind of dataset does not have.
    """
    path = Path(path)
    if not path.exists():
        raise ReadError(f"'{path}' does not exist.")
    if path.is_dir() or path.suffix.lower() == ".json":
        from DiffDRRCore.datasets.folder import Folder

        return _made(Folder, path, options)
    if not is_hdf5(path):
        raise ReadError(f"'{path}' is no dataset: give an HDF5 file, a folder, or the dataset.json of one.")
    from DiffDRRCore.datasets.deepfluoro import DeepFluoro
    from DiffDRRCore.datasets.hdf5 import top_level_names
    from DiffDRRCore.datasets.ljubljana import Ljubljana

    names = top_level_names(path)
    if "proj-params" in names:
        return _made(DeepFluoro, path, options)
    if any(name.startswith("subject") for name in names):
        return _made(Ljubljana, path, options)
    raise ReadError(
        f"'{path}' is an HDF5 file, but neither DeepFluoro (it has no 'proj-params') nor Ljubljana (no 'subject01')."
    )


def is_hdf5(path: Path) -> bool:
    """Whether a file begins as HDF5 files do. Raises ReadError where it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(len(_HDF5)) == _HDF5
    except OSError as error:
        raise ReadError(f"Cannot read '{path}': {error.strerror or error}.") from error


def _made(kind: type[Dataset], path: Path, options: dict) -> Dataset:
    _, *known = inspect.signature(kind).parameters
    for name in options:
        if name not in known:
            has = f"there are: {', '.join(known)}" if known else "it takes none"
            raise ReadError(f"The dataset '{path}' ({kind.title}) has no option '{name}'; {has}.")
    return kind(path, **options)
