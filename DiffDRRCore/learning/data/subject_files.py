"""The CTs of a training from their files, with the labelmaps and warps that belong to them by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from DiffDRRCore.errors import GeometryError, LearningError, ReadError
from DiffDRRCore.geometry import Pose
from DiffDRRCore.geometry.itk_transform import SUFFIXES, read_itk_transform
from DiffDRRCore.geometry.tensors import as_tensor, homogeneous
from DiffDRRCore.imaging.camera_file import camera_from_dict
from DiffDRRCore.imaging.volume import Volume
from DiffDRRCore.learning.data.draws import Draws
from DiffDRRCore.learning.data.subjects import Subject
from DiffDRRCore.physics.simulation.ranges import Ranges

if TYPE_CHECKING:
    from DiffDRRCore.learning.training.options import TrainingOptions

IMAGES = (".nii.gz", ".nii", ".seg.nrrd", ".nrrd", ".nhdr", ".mha", ".mhd")
_VOXELS_PER_PIXEL = 1.0  # at the isocentre
_USUAL_SHARE = 0.65  # of the detector's distance at which the isocentre lies
_SEPARATORS = "_-. "
_HOLD = 10  # steps


class Subjects(Sequence):
    """Subjects, of which a step takes one at random.

    Args:
        subjects: one or more.
        weights: {name: how often it is taken}, 1 by default.
        crop_mm: size (R, A, S) of the random boxes that are taken of them; None is all of each.
        kept: how many stay in memory. Where there are more, a CT is trained on for some steps before the next one is
            read, or a training would wait for the disk.

    Raises LearningError for a weight of nobody, and weights that leave nothing.
    """

    def __init__(
        self,
        subjects: Sequence[Subject],
        weights: Mapping[str, float] | None = None,
        crop_mm: Sequence[float] | None = None,
        kept: int = 4,
    ):
        self._subjects, self._crop, self._kept = list(subjects), crop_mm, max(1, kept)
        names = [one.name for one in self._subjects]
        for name in weights or {}:
            if name not in names:
                raise LearningError(f"There is no CT '{name}' to have a weight; there are: {', '.join(names)}.")
        self._weights = torch.tensor([float((weights or {}).get(name, 1.0)) for name in names], dtype=torch.float64)
        if not (bool((self._weights >= 0).all()) and float(self._weights.sum()) > 0):
            raise LearningError("The weights of the CTs must be 0 or more, and one of them above 0.")
        self._recent: list[Subject] = []

    def __len__(self) -> int:
        return len(self._subjects)

    def __getitem__(self, index):
        return self._subjects[index]

    def __iter__(self) -> Iterator[Subject]:
        return iter(self._subjects)

    def chosen(self, seed: int, step: int, micro: int = 0) -> Subject:
        """The subject of a batch, cropped where that is asked for; it depends on the numbers alone.

        Where not all stay in memory, it is the same one for 10 steps, and a step has no more of them than stay there.
        """
        draws = Draws(seed, step, micro, "subject")
        which = draws if len(self) <= self._kept else Draws(seed, step // _HOLD, micro % self._kept, "subject")
        ends = (self._weights / self._weights.sum()).cumsum(0)
        index = int(torch.searchsorted(ends, which.uniform("which", 1), right=True).clamp(max=len(self) - 1))
        subject = self._subjects[index]
        self._recent = [one for one in self._recent if one is not subject] + [subject]
        while len(self._recent) > self._kept:
            self._recent.pop(0).release()
        return subject if self._crop is None else subject.cropped(self._crop, draws)


def read_subjects(options: TrainingOptions, device: torch.device | str | None = None) -> Subjects:
    """The subjects of a training's options; the CTs themselves are read when they are used.

    Args:
        device: where they are rendered; None is that of the options.

    Raises LearningError or ReadError for files that are not there or do not belong together, and warps that are not
    rigid.
    """
    labelmaps = find_files(options.labelmaps, IMAGES)
    cts = find_cts(options.cts, without=labelmaps)
    labelmaps = matched(labelmaps, cts, "labelmap", IMAGES)
    warps = matched(find_files(options.warps, SUFFIXES), cts, "warp", SUFFIXES)
    if options.isocenter is not None and len(cts) > 1:
        raise LearningError(
            "An isocentre is a point of one CT; several CTs begin at their own centres, or share warps."
        )
    voxel = _voxel_mm(options)
    subjects = [
        Subject(
            partial(_read, path, labelmaps.get(name), options.label_names if labelmaps else None),
            _frame(options, warps.get(name)),
            name,
            options.labels,
            voxel,
            options.device if device is None else device,
        )
        for name, path in cts.items()
    ]
    return Subjects(subjects, options.ct_weights, options.crop_mm)


def find_cts(paths: Sequence[str], without: Sequence[Path] = ()) -> dict[str, Path]:
    """{name: path} of CT files and DICOM folders; one folder stands for the CTs in it (files, or DICOM folders).

    Args:
        without: files of that folder that are no CTs (labelmaps).

    Raises ReadError where there is nothing, LearningError where two have one name.
    """
    found = []
    for path in map(Path, paths):
        if not path.exists():
            raise ReadError(f"There is no CT '{path}'.")
        found += _inside(path, without) if path.is_dir() and len(paths) == 1 else [path]
    cts: dict[str, Path] = {}
    for path in found:
        name = stem(path, IMAGES)
        if name in cts:
            raise LearningError(f"Two CTs are called '{name}', '{cts[name]}' and '{path}': give each its own name.")
        cts[name] = path
    return cts


def find_files(paths: Sequence[str], suffixes: Sequence[str]) -> list[Path]:
    """The files themselves, or those of one folder that end in one of the suffixes. Raises ReadError."""
    paths = [Path(path) for path in paths]
    for path in paths:
        if not path.exists():
            raise ReadError(f"There is no file or folder '{path}'.")
    if len(paths) == 1 and paths[0].is_dir():
        found = sorted(path for path in paths[0].iterdir() if path.name.lower().endswith(tuple(suffixes)))
        if not found:
            raise ReadError(f"The folder '{paths[0]}' has no file that ends in {', '.join(suffixes)}.")
        return found
    return paths


def matched(files: Sequence[Path], cts: Mapping[str, Path], what: str, suffixes: Sequence[str]) -> dict[str, Path]:
    """{CT's name: file} by the files' names: the CT's own, or that with more behind _, -, a point or a space.

    One file beside one CT is its own, whatever it is called. Raises LearningError where a file belongs to no CT, two to
    one, or a CT has none while others have.
    """
    if len(files) == 1 and len(cts) == 1:
        return dict(zip(cts, files, strict=True))
    pairs: dict[str, Path] = {}
    for path in files:
        name = _owner(stem(path, suffixes), cts)
        if name is None:
            raise LearningError(f"The {what} '{path.name}' is named after none of the CTs ({', '.join(cts)}).")
        if name in pairs:
            raise LearningError(f"The CT '{name}' has two {what}s by name: '{pairs[name].name}' and '{path.name}'.")
        pairs[name] = path
    if lacking := [name for name in cts if pairs and name not in pairs]:
        raise LearningError(f"There is no {what} named after the CT '{lacking[0]}': name one '{lacking[0]}_{what}'.")
    return pairs


def stem(path: Path, suffixes: Sequence[str]) -> str:
    """A file's name without the longest of these suffixes."""
    for suffix in sorted(suffixes, key=len, reverse=True):
        if path.name.lower().endswith(suffix) and len(path.name) > len(suffix):
            return path.name[: -len(suffix)]
    return path.name


def read_warp(path: str | Path, invert: bool = False) -> Pose:
    """The template's frame in the patient's world: frame_to_world of a rigid ITK transform file.

    Args:
        invert: False for a file that takes the patient's points to the template's (as ITK applies it to points); True
            for one that takes the template's to the patient's, which is what a registration with the template as the
            fixed image gives, and what Slicer writes of a transform that moves the patient to the template.

    Raises ReadError where it is no linear transform, LearningError where it is not rigid.
    """
    matrix = read_itk_transform(path)  # the inverse of what the file does to points
    try:
        pose = Pose(torch.linalg.inv(matrix) if invert else matrix)
    except GeometryError as error:
        raise LearningError(
            f"The warp '{path}' is not rigid: it scales, shears or mirrors. Register the CT to the template with a "
            "rigid transform (rotation and translation)."
        ) from error
    left, _, right = torch.linalg.svd(pose.rotation)
    return Pose._rigid(homogeneous(left @ right, pose.translation))


def _frame(options: TrainingOptions, warp: Path | None) -> Pose | None:
    if warp is not None:
        if options.isocenter is not None:
            raise LearningError("The frame is that of the template or begins at an isocentre: give one of the two.")
        return read_warp(warp, options.invert_warps)
    if options.isocenter is None:
        return None
    return Pose._rigid(homogeneous(torch.eye(3, dtype=torch.float64), as_tensor(list(options.isocenter)).double()))


def _voxel_mm(options: TrainingOptions) -> float:
    camera = camera_from_dict(dict(options.camera), "The camera")
    share = _USUAL_SHARE
    if options.around is None and "sod" in options.views:
        nearest = Ranges.from_dict({"sod": options.views["sod"]}).of["sod"].ends[0]
        share = min(max(nearest / float(camera.source_to_detector), 0.3), 1.0)
    return _VOXELS_PER_PIXEL * share * float(camera.pixel_spacing.min())


def _read(path: Path, labelmap: Path | None, label_names: str | None) -> Volume:
    return Volume.read(path, labelmap, label_names=None if label_names is None else Path(label_names))


def _inside(folder: Path, without: Sequence[Path]) -> list[Path]:
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name.lower().endswith(IMAGES))
    others = {path.resolve() for path in without}
    if cts := [path for path in files if path.resolve() not in others]:
        return cts
    folders = sorted(
        path for path in folder.iterdir() if path.is_dir() and any(one.is_file() for one in path.iterdir())
    )
    is_series = not files and any(path.is_file() for path in folder.iterdir())
    if not folders and not is_series:
        raise ReadError(f"The folder '{folder}' has no CT.")
    return [folder] if is_series else folders


def _owner(name: str, cts: Mapping[str, Path]) -> str | None:
    owners = [ct for ct in cts if name == ct or (name.startswith(ct) and name[len(ct)] in _SEPARATORS)]
    return max(owners, key=len) if owners else None
