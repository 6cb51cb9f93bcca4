"""What every dataset is: subjects, each with a CT and X-rays whose camera and reference pose are known.

    for subject in open_dataset("ipcai_2020_full_res_data.h5").subjects:
        for xray in subject.xrays:
            register(subject.volume, xray, ...)

Nothing is kept open: a dataset is a path and a few choices, small enough to be sent to worker processes, and every
access reads what it needs and closes the file. Nothing is downloaded.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Generic, TypeVar, overload

import torch
from torch import Tensor

from DiffDRRCore.errors import ReadError
from DiffDRRCore.geometry import Pose
from DiffDRRCore.imaging.volume import Volume
from DiffDRRCore.imaging.xray import XRay

Item = TypeVar("Item")


@dataclass(frozen=True)
class View:
    """One X-ray of a subject, and what the dataset knows of it.

    name          what the dataset calls it; unique in its subject
    xray          image, camera, and as `pose` the reference pose: camera_to_world in the RAS (mm) of the subject's CT;
                  None where the dataset has none
    header_pose   camera_to_world that the image's own header tells, a start for a registration, or None
    landmarks     annotated points of the image by name, (u, v) = (column, row) in pixels of `xray.image`, [2] float64;
                  those outside the image are left out
    segmentation  [H, W] int16, the number of the structure that covers each pixel (0: none), numbered as
                  `Subject.volume.label_names`; or None
    body_poses    reference poses, camera_to_world as above, of structures that lie otherwise than in the CT (a femur
                  that the hip turned), by the structure's name in `Subject.volume.label_names`
    """

    name: str
    xray: XRay
    header_pose: Pose | None = None
    landmarks: Mapping[str, Tensor] = field(default_factory=dict)
    segmentation: Tensor | None = None
    body_poses: Mapping[str, Pose] = field(default_factory=dict)


class Lazy(Sequence, Generic[Item]):
    """Items that are read anew at each access, by their name or by their place from 0; nothing is kept.

    `what` an item is called, and whose it is (`of`), is for messages. Raises ReadError for a name or a place that is
    not there.
    """

    def __init__(self, names: Sequence[str], read: Callable[[str], Item], what: str, of: str = ""):
        self.names, self._read, self._what, self._of = tuple(names), read, what, of

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, key: int | str) -> Item: ...

    @overload
    def __getitem__(self, key: slice) -> Lazy[Item]: ...

    def __getitem__(self, key):
        if isinstance(key, slice):
            return Lazy(self.names[key], self._read, self._what, self._of)
        return self._read(self.name(key))

    def __iter__(self) -> Iterator[Item]:  # not by __getitem__ until it fails: a failing read must not end the loop
        return (self._read(name) for name in self.names)

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def name(self, key: int | str) -> str:
        """The name of what `key` names, or of what is at that place."""
        if isinstance(key, str) and key in self.names:
            return key
        if not isinstance(key, str) and -len(self) <= key < len(self):
            return self.names[key]
        known = ", ".join(self.names[:8]) + (f", ... ({len(self)} in all)" if len(self) > 8 else "")
        lacking = f"{self._of} has no" if self._of else "There is no"
        raise ReadError(f"{lacking} {self._what} {key!r}; there are: {known or 'none'}.")


class Subject(ABC):
    """One patient or specimen. What is read of the CT is kept as long as the subject is.

    name    what the dataset calls it
    groups  names of views that show the same instant by C-arms calibrated to each other, so that one motion of the
            patient explains all of them; each view by itself where the dataset knows of no others
    """

    name: str

    @cached_property
    @abstractmethod
    def volume(self) -> Volume:
        """The CT, with labels where there are some, in its own RAS. Raises ReadError where it cannot be read."""

    @cached_property
    @abstractmethod
    def landmarks(self) -> dict[str, Tensor]:
        """Points in the CT by name, [3] float64 RAS mm; empty where there are none."""

    @property
    @abstractmethod
    def view_names(self) -> tuple[str, ...]:
        """Of all X-rays, in the dataset's order; found without reading images."""

    @abstractmethod
    def _view(self, name: str) -> View:
        """Read one view; `name` is one of `view_names`."""

    @property
    def views(self) -> Lazy[View]:
        """All views; each is read when it is asked for, by name or place."""
        return Lazy(self.view_names, self._view, "X-ray", f"Subject {self.name}")

    @property
    def xrays(self) -> Lazy[XRay]:
        """The X-rays of `views`."""
        return Lazy(self.view_names, lambda name: self._view(name).xray, "X-ray", f"Subject {self.name}")

    @property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """See the class."""
        return tuple((name,) for name in self.view_names)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {len(self.view_names)} X-rays)"


class Dataset(ABC):
    """A file or folder of subjects; `title` says of what kind."""

    title: str

    @property
    @abstractmethod
    def subject_names(self) -> tuple[str, ...]:
        """In the dataset's order; found without reading images."""

    @abstractmethod
    def _subject(self, name: str) -> Subject:
        """One subject; `name` is one of `subject_names`."""

    @property
    def subjects(self) -> Lazy[Subject]:
        """All subjects, each made anew when it is asked for, by name or place; images are read only when used."""
        return Lazy(self.subject_names, self._subject, "subject")


def inside(points: Mapping[str, Tensor], counts: Sequence[int]) -> dict[str, Tensor]:
    """The points that lie on an image or in a volume of so many pixels or voxels along each of their coordinates.

    points: by name, (column, row) or (i, j, k), [2] or [3], integers at centres. NaN lies nowhere.
    """
    ends = torch.tensor(counts, dtype=torch.float64) - 0.5
    return {name: point for name, point in points.items() if bool(((point >= -0.5) & (point <= ends)).all())}
