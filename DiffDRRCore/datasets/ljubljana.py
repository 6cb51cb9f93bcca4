"""Ljubljana: 3D and 2D subtraction angiographies of ten patients with reference poses from fiducial markers.

U. Mitrovic et al., 3D-2D registration of cerebral angiograms: a method and evaluation on clinical images, IEEE TMI 32,
2013; as the file ljubljana.h5 of DiffDRR-Datasets. A point x (mm) of a subject's world has the pixel

    K @ extrinsic @ x        (column, row, integers at pixel centres)

where the camera's z axis points at the source, so that the focal lengths in K are negative. The volume's pixels are
indexed along the world's x, y, z; the first index runs against x: [a, b, c] lies at

    (origin_x + spacing_x (N - 1 - a), origin_y + spacing_y b, origin_z + spacing_z c).

The voxels are kept in their order, so `ijk_to_ras` is left-handed. The file does not say how its world lies in the
patient: it is taken for RAS, as DiffDRR-Datasets does. The names of directions depend on that, the geometry does not.

DiffDRR-Datasets takes the pixel centres of K at half integers, so that its rays pass half a pixel to the lower right.
"""

from __future__ import annotations

import math
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from DiffDRRCore.datasets.dataset import Dataset, View
from DiffDRRCore.datasets.hdf5 import HDF5File, HDF5Subject, camera_and_pose, grid_center, naming, opened, read_image
from DiffDRRCore.errors import ReadError
from DiffDRRCore.imaging.volume import Volume
from DiffDRRCore.imaging.xray import XRay

_VIEWS = ("ap", "lat")
_MAXIMA = ("ap-max", "lat-max")
_VESSELS = 1000.0  # the file's units; less is background
_AIR = -1000.0


class Ljubljana(Dataset):
    """The patients of ljubljana.h5, "subject01" and so on.

    Args:
        path: the HDF5 file.
        subtracted: True leaves nothing but contrast agent: voxels below 1000 become air, and images line integrals
            (`contrast_integrals`). Other voxels keep their values as HU, though a 3D angiography is not calibrated to
            HU. False gives voxels and pixels as they are in the file, meta["intensity"] "transmission".
        maxima: also list the views "ap-max" and "lat-max", the maxima over time.

    Raises ReadError for a file that cannot be read or has another layout.
    """

    title = "Ljubljana"

    def __init__(self, path: str | Path, subtracted: bool = True, maxima: bool = False):
        self.path, self.subtracted, self.maxima = Path(path), subtracted, maxima
        with opened(self.path) as file:
            self._names = tuple(name for name in file.names() if name.startswith("subject"))
        if not self._names:
            raise ReadError(f"'{self.path}' is not laid out as the Ljubljana file: it has no 'subject01'.")

    @property
    def subject_names(self) -> tuple[str, ...]:
        """As they are in the file."""
        return self._names

    def _subject(self, name: str) -> Patient:
        return Patient(self, name)


class Patient(HDF5Subject):
    """One patient: a 3D angiography, points on the vessels' centrelines, named "1", "2", ..., and two X-rays."""

    def __init__(self, dataset: Ljubljana, name: str):
        super().__init__(dataset.path, name)
        self.dataset = dataset

    @cached_property
    def volume(self) -> Volume:
        """The 3D angiography, see `Ljubljana`; no labels. Raises ReadError."""
        where = f"{self.name}/volume"
        with opened(self.path) as file, naming(self.path, where):
            voxels = file.array(f"{where}/pixels", 3).astype(np.float32).transpose()
            if self.dataset.subtracted:
                voxels = np.where(voxels < _VESSELS, np.float32(_AIR), voxels)
            return Volume(torch.from_numpy(np.ascontiguousarray(voxels)), _affine(file, where))

    @cached_property
    def landmarks(self) -> dict[str, Tensor]:
        """Points on the centrelines, [3] float64 mm. Raises ReadError."""
        with opened(self.path) as file:
            name = f"{self.name}/points"
            points = file.numbers(name, *_rows_of_three(file, name))
        return {str(number): torch.from_numpy(point.copy()) for number, point in enumerate(points, start=1)}

    @cached_property
    def view_names(self) -> tuple[str, ...]:
        """ "ap" and "lat", then the maxima where they are wanted. Raises ReadError."""
        with opened(self.path) as file:
            wanted = _VIEWS + (_MAXIMA if self.dataset.maxima else ())
            return tuple(name for name in wanted if f"{self.name}/proj-{name}" in file)

    @property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """AP with lateral, and their maxima: both C-arm positions are calibrated to one position of the patient."""
        groups = (tuple(name for name in self.view_names if name in kind) for kind in (_VIEWS, _MAXIMA))
        return tuple(group for group in groups if group)

    def _view(self, name: str) -> View:
        where = f"{self.name}/proj-{name}"
        meta = {"intensity": "transmission", "dataset": "Ljubljana", "subject": self.name, "view": name}
        with opened(self.path) as file, naming(self.path, where):
            image = read_image(file, f"{where}/pixels")
            volume = f"{self.name}/volume"
            center = grid_center(_affine(file, volume), file.shape(f"{volume}/pixels", 3)[::-1])
            projection = file.numbers(f"{where}/intrinsic", 3, 3) @ file.rigid(f"{where}/extrinsic")[:3]
            spacing = file.number(f"{where}/row-spacing"), file.number(f"{where}/col-spacing")
            camera, pose = camera_and_pose(projection, tuple(image.shape), spacing, center)
            xray = XRay(image, camera, pose, meta)
        if self.dataset.subtracted:
            level = commonest_value(image)
            integrals = contrast_integrals(image, level)
            xray = xray.with_image(integrals, intensity="attenuation", logarithmic=True, background=level)
        return View(name, xray)


def contrast_integrals(image: Tensor, background: float) -> Tensor:
    """ln(2 / (2 + x)) with x = image - background, cut to -1 .. 0: 0 where there is no contrast agent, at most ln 2.

    The numbers of DiffDRR-Datasets, which takes the logarithm of (x + 2) and subtracts it from that of the largest: as
    some pixel has the background's value, the largest is always 2.
    """
    return math.log(2) - torch.log(2 + (image - background).clamp(-1, 0))


def commonest_value(image: Tensor) -> float:
    """The value that most pixels have, of several the smallest: the background of a subtracted image.

    Over all pixels at once; DiffDRR-Datasets takes the commonest of the rows' commonest values. Both find a background
    that fills the image, but a row that the vessels fill should not count as much as an empty one.
    """
    values, counts = torch.unique(image, return_counts=True)
    return float(values[counts.argmax()])


def _affine(file: HDF5File, group: str) -> np.ndarray:
    """ijk_to_ras [4, 4] of the volume with its axes in reverse order, [K, J, I]: i is the first index in the file."""
    spacing, ijk_to_ras = file.numbers(f"{group}/spacing", 3), np.eye(4)
    shape = file.shape(f"{group}/pixels", 3)
    ijk_to_ras[:3, :3] = np.diag(spacing * [-1, 1, 1])
    ijk_to_ras[:3, 3] = file.numbers(f"{group}/origin", 3)
    ijk_to_ras[0, 3] += spacing[0] * (shape[0] - 1)
    return ijk_to_ras


def _rows_of_three(file: HDF5File, name: str) -> tuple[int, int]:
    shape = file.shape(name, 2)
    if shape[1] != 3:
        raise ReadError(f"'{file.path}': '{name}' should be a list of points, N x 3, but is {list(shape)}.")
    return shape
