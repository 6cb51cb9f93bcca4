"""Folders as datasets; the text of `DiffDRRCore.datasets.folder` says which files they have."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from torch import Tensor

from DiffDRRCore.datasets.dataset import Dataset, Subject, View
from DiffDRRCore.datasets.folder.convention import find_subjects
from DiffDRRCore.datasets.folder.manifest import MANIFEST, SubjectFiles, read_manifest
from DiffDRRCore.datasets.folder.reading import read_named_points, read_view, read_volume
from DiffDRRCore.errors import ReadError
from DiffDRRCore.imaging.volume import Volume


class Folder(Dataset):
    """A folder, or its dataset.json, as a dataset: see the text of `DiffDRRCore.datasets.folder`.

    Only names are read until a subject is used. Raises ReadError for a path that is not there or holds no subject, and
    for a dataset.json that is not as it must be.
    """

    title = "folder"

    def __init__(self, path: str | Path):
        self.path = path = Path(path)
        manifest = path / MANIFEST if path.is_dir() else path
        if not path.exists():
            raise ReadError(f"There is no folder or file '{path}'.")
        if path.is_dir() and not manifest.is_file():
            subjects = find_subjects(path)
        else:
            title, subjects = read_manifest(manifest)
            self.title = title or self.title
        self._files = {subject.name: subject for subject in subjects}

    @property
    def subject_names(self) -> tuple[str, ...]:
        """See `Dataset`."""
        return tuple(self._files)

    def _subject(self, name: str) -> FolderSubject:
        return FolderSubject(self._files[name])


class FolderSubject(Subject):
    """One subject of a `Folder`; `files` says where everything lies."""

    def __init__(self, files: SubjectFiles):
        self.files, self.name = files, files.name

    @cached_property
    def volume(self) -> Volume:
        """See `Subject`."""
        return read_volume(self.files)

    @cached_property
    def landmarks(self) -> dict[str, Tensor]:
        """See `Subject`."""
        return read_named_points(self.files.landmarks, 3, f"Subject {self.name}")

    @property
    def view_names(self) -> tuple[str, ...]:
        """See `Subject`."""
        return tuple(view.name for view in self.files.views)

    @property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """See `Subject`."""
        return self.files.groups

    def _view(self, name: str) -> View:
        return read_view(self.files.views[self.view_names.index(name)], lambda: self.volume.center)
