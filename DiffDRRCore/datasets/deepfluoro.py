"""DeepFluoro: CTs and fluoroscopies of six cadaver pelvises with reference poses.

R. Grupp et al., Automatic annotation of hip anatomy in fluoroscopy for robust and efficient 2D/3D registration, IJCARS
15, 2020; the file ipcai_2020_full_res_data.h5 of https://doi.org/10.7281/T1/IFSXNV, laid out as its authors describe
(github.com/rg2/DeepFluoroLabeling-IPCAI2020, hdf5_layouts). Its volumes, landmarks and poses are in LPS mm. A point x
of the CT has the pixel

    K @ extrinsic @ inverse(cam-to-pelvis-vol) @ x        (column, row, integers at pixel centres)

where the camera's z axis points at the source, so that the focal lengths in K are negative. Here all is in RAS, and the
pose is our camera's (z from the source); columns run as seen from the detector, hence `Camera.view_from` "detector".
The principal point is the image's centre, (767.5, 767.5): assumed, not calibrated.

What to know before comparing numbers:

- The reference poses are registrations themselves, checked by their makers, and the landmarks were placed in the CT.
- They were made with a renderer that drew voxel i at the place of i + 1/2, as the first author's later programs
  (github.com/rg2/xreg) correct for by -0.5 mm along L, P and S. `half_voxel` does the same. The 2D landmarks belong to
  the poses as they are in the file.
- DiffDRR-Datasets takes the pixel centres of K at half integers, so that its rays pass half a pixel (0.1 mm at the
  detector) to the lower right of these.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from DiffDRRCore.datasets.dataset import Dataset, View, inside
from DiffDRRCore.datasets.hdf5 import HDF5File, HDF5Subject, camera_and_pose, grid_center, naming, opened, read_image
from DiffDRRCore.errors import ReadError
from DiffDRRCore.imaging.image_files import LPS_TO_RAS, Grid
from DiffDRRCore.imaging.labelmap import resample_labels
from DiffDRRCore.imaging.preprocessing import preprocess
from DiffDRRCore.imaging.volume import Volume
from DiffDRRCore.imaging.xray import XRay

SPECIMENS = ("17-1882", "18-1109", "18-0725", "18-2799", "18-2800", "17-1905")
I0 = 65487.0  # the largest count of all images
COLLIMATOR = 50  # pixels
_FEMURS = ("left-femur", "right-femur")


class DeepFluoro(Dataset):
    """The specimens in a file of DeepFluoro's layout, in the order that papers number them 1 to 6, then others.

    Args:
        path: the HDF5 file.
        i0: counts of the unattenuated beam, for line integrals ln(i0 / counts) (`preprocessing.line_integrals`, which
            ends at i0 / 10^4, where DiffDRR-Datasets has infinity); "image" takes each image's largest count after
            the crop; None leaves the counts, meta["intensity"] "transmission".
        crop: pixels cut off at each side, where the collimator is; 0 for none.
        upright: turn the images by 180 degrees that lie upside down, with camera, pose, landmarks and segmentation.
        doubtful_femurs: also give femur poses where the authors say that too little of the femur is seen.
        half_voxel: move all reference poses by half a voxel, see the module's text.

    Raises ReadError for a file that cannot be read or has another layout, and for wrong options.
    """

    title = "DeepFluoro"

    def __init__(
        self,
        path: str | Path,
        i0: float | str | None = I0,
        crop: int = COLLIMATOR,
        upright: bool = True,
        doubtful_femurs: bool = False,
        half_voxel: bool = False,
    ):
        _check_options(i0, crop)
        self.path, self.i0, self.crop = Path(path), i0, int(crop)
        self.upright, self.doubtful_femurs, self.half_voxel = upright, doubtful_femurs, half_voxel
        with opened(self.path) as file:
            self._names = _specimens(file)

    @property
    def subject_names(self) -> tuple[str, ...]:
        """The specimens' ids, "17-1882" and so on."""
        return self._names

    def _subject(self, name: str) -> Specimen:
        return Specimen(self, name)


class Specimen(HDF5Subject):
    """One specimen: CT with 7 labelled structures, 14 landmarks, and its fluoroscopies "000", "001", ..."""

    def __init__(self, dataset: DeepFluoro, name: str):
        super().__init__(dataset.path, name)
        self.dataset = dataset

    @cached_property
    def volume(self) -> Volume:
        """The CT in HU, with labels where the file has them. Raises ReadError."""
        with opened(self.path) as file, naming(self.path, f"{self.name}/vol"):
            ct = _grid(file, f"{self.name}/vol")
            labels = self._labels(file, ct) if f"{self.name}/vol-seg/image" in file else None
            hu = torch.from_numpy(ct.array.astype(np.float32, copy=False))  # a tensor is not copied
            return Volume(hu, ct.ijk_to_ras, labels, self._label_names(file))

    @cached_property
    def landmarks(self) -> dict[str, Tensor]:
        """The anatomical landmarks of the pelvis, [3] float64 RAS mm. Raises ReadError."""
        with opened(self.path) as file:
            return {
                name: torch.from_numpy(LPS_TO_RAS[:3, :3] @ point)
                for name, point in _points(file, f"{self.name}/vol-landmarks", 3).items()
            }

    @cached_property
    def view_names(self) -> tuple[str, ...]:
        """Numbers from "000" on. Raises ReadError."""
        with opened(self.path) as file:
            return file.names(f"{self.name}/projections")

    def _view(self, name: str) -> View:
        where = f"{self.name}/projections/{name}"
        with opened(self.path) as file, naming(self.path, where):
            turn = self.dataset.upright and bool(file.number(f"{where}/rot-180-for-up"))
            view = self._as_stored(file, where, turn)
            view = _turned(view) if turn else view
            return _linearised(_cropped(view, self.dataset.crop), self.dataset.i0)

    def _as_stored(self, file: HDF5File, where: str, turn: bool) -> View:
        """The whole image as it lies in the file, with the poses of the turned one where it will be turned."""
        image = read_image(file, f"{where}/image/pixels")
        size, spacing = _detector(file, image)
        center = grid_center(*_affine_and_shape(file, f"{self.name}/vol"))

        def seen_from(body: str):
            projection = self._projection(file, f"{where}/gt-poses/cam-to-{body}-vol")
            return camera_and_pose(_half_turn(size) @ projection if turn else projection, size, spacing, center)

        camera, pose = seen_from("pelvis")
        seen = {body: bool(file.number(f"{where}/gt-poses/{body}-good-fov")) for body in _FEMURS}
        known = self._label_names(file).values()
        femurs = [body for body in _FEMURS if body in known and (seen[body] or self.dataset.doubtful_femurs)]
        name = where.rsplit("/", 1)[1]
        meta = {"intensity": "transmission", "dataset": "DeepFluoro", "specimen": self.name, "projection": name}
        meta |= {"i0": None, "turned": turn, **{f"{body}-good-fov": good for body, good in seen.items()}}
        return View(
            name,
            XRay(image, camera, pose, meta),
            landmarks={key: torch.from_numpy(uv) for key, uv in _points(file, f"{where}/gt-landmarks", 2).items()},
            segmentation=_segmentation(file, f"{where}/gt-seg/pixels", size),
            body_poses={body: seen_from(body)[1] for body in femurs},
        )

    def _projection(self, file: HDF5File, pose: str) -> np.ndarray:
        """P [3, 4], RAS mm to pixels of the image in the file."""
        camera_to_volume = file.rigid(pose)
        if self.dataset.half_voxel:
            camera_to_volume[:3, 3] -= 0.5 * _axes(file, f"{self.name}/vol").sum(axis=1)
        world_to_camera = file.rigid("proj-params/extrinsic") @ np.linalg.inv(camera_to_volume)
        return file.numbers("proj-params/intrinsic", 3, 3) @ (world_to_camera @ LPS_TO_RAS)[:3]

    def _label_names(self, file: HDF5File) -> dict[int, str]:
        group = f"{self.name}/vol-seg/labels-def"
        numbers = file.names(group) if group in file else ()
        return {int(number): file.text(f"{group}/{number}") for number in numbers if number.isdecimal()}

    def _labels(self, file: HDF5File, ct: Grid) -> Tensor:
        group = f"{self.name}/vol-seg/image"
        labels = _grid(file, group)
        labels = labels._replace(array=_int16(file, f"{group}/pixels", labels.array))
        return torch.from_numpy(resample_labels(f"{file.path}/{group}", labels, ct))


def _check_options(i0: float | str | None, crop: int) -> None:
    is_number = isinstance(i0, (int, float)) and not isinstance(i0, bool) and 0 < i0 < float("inf")
    if not (i0 is None or i0 == "image" or is_number):
        raise ReadError(f'i0 is a positive number of counts, "image" or None, not {i0!r}.')
    if isinstance(crop, bool) or not isinstance(crop, (int, float)) or crop != crop // 1 or crop < 0:
        raise ReadError(f"crop is a whole number of pixels, 0 or more, not {crop!r}.")


def _specimens(file: HDF5File) -> tuple[str, ...]:
    names = file.names()
    if "proj-params" not in names:
        raise ReadError(f"'{file.path}' is not laid out as DeepFluoro's full-resolution file: it has no 'proj-params'.")
    found = [name for name in names if name != "proj-params" and f"{name}/projections" in file]
    if not found:
        raise ReadError(f"'{file.path}' has no specimen: no group with 'projections' in it.")
    return tuple(sorted(found, key=lambda name: SPECIMENS.index(name) if name in SPECIMENS else len(SPECIMENS)))


def _axes(file: HDF5File, group: str) -> np.ndarray:
    """LPS mm from voxel to voxel along i, j, k: the columns of [3, 3]."""
    return file.rotation(f"{group}/dir-mat") * file.numbers(f"{group}/spacing", 3)


def _affine_and_shape(file: HDF5File, group: str) -> tuple[np.ndarray, tuple[int, ...]]:
    ijk_to_lps = np.eye(4)
    ijk_to_lps[:3, :3] = _axes(file, group)
    ijk_to_lps[:3, 3] = file.numbers(f"{group}/origin", 3)
    return LPS_TO_RAS @ ijk_to_lps, file.shape(f"{group}/pixels", 3)


def _grid(file: HDF5File, group: str) -> Grid:
    return Grid(file.array(f"{group}/pixels", 3), _affine_and_shape(file, group)[0])


def _detector(file: HDF5File, image: Tensor) -> tuple[tuple[int, int], tuple[float, float]]:
    """(H, W) and (row_mm, col_mm), which are one for all images."""
    size = tuple(int(file.number(f"proj-params/num-{what}")) for what in ("rows", "cols"))
    if size != tuple(image.shape):
        raise ReadError(
            f"'{file.path}': 'proj-params' promises images of {size[0]} x {size[1]} pixels, but one has "
            f"{image.shape[0]} x {image.shape[1]}."
        )
    return size, tuple(file.number(f"proj-params/pixel-{what}-spacing") for what in ("row", "col"))


def _points(file: HDF5File, group: str, length: int) -> dict[str, np.ndarray]:
    names = file.names(group) if group in file else ()
    return {name: file.numbers(f"{group}/{name}", length) for name in names}


def _segmentation(file: HDF5File, name: str, size: tuple[int, int]) -> Tensor | None:
    if name not in file:
        return None
    pixels = _int16(file, name, file.array(name, 2))
    if pixels.shape != size:
        raise ReadError(f"'{file.path}': '{name}' has {pixels.shape} pixels, but its image {size}.")
    return torch.from_numpy(pixels)


def _int16(file: HDF5File, name: str, values: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # NaN, which the comparison finds
        numbers = values.astype(np.int16)
    if not np.array_equal(numbers, values):
        raise ReadError(f"'{file.path}': '{name}' is no segmentation: it has values that are not small whole numbers.")
    return numbers


def _half_turn(size: tuple[int, int]) -> np.ndarray:
    """Pixels of an image of (H, W) to those of the image turned by 180 degrees."""
    height, width = size
    return np.array([[-1.0, 0.0, width - 1.0], [0.0, -1.0, height - 1.0], [0.0, 0.0, 1.0]])


def _turned(view: View) -> View:
    """By 180 degrees, except camera and poses, which are of the turned image already."""
    last = torch.tensor([view.xray.camera.width - 1.0, view.xray.camera.height - 1.0], dtype=torch.float64)
    return replace(
        view,
        xray=view.xray.with_image(view.xray.image.flip(0, 1)),
        landmarks={name: last - uv for name, uv in view.landmarks.items()},
        segmentation=None if view.segmentation is None else view.segmentation.flip(0, 1),
    )


def _cropped(view: View, crop: int) -> View:
    """Without `crop` pixels at each side, and without the landmarks that are then outside."""
    xray = view.xray.cropped(crop, crop, crop, crop)
    height, width = xray.image.shape
    landmarks = inside({name: uv - crop for name, uv in view.landmarks.items()}, (width, height))
    segmentation = view.segmentation
    if segmentation is not None:
        segmentation = segmentation[crop : crop + height, crop : crop + width].clone()
    return replace(view, xray=xray, landmarks=landmarks, segmentation=segmentation)


def _linearised(view: View, i0: float | str | None) -> View:
    if i0 is None:
        return view
    level = float(view.xray.image.max()) if i0 == "image" else float(i0)
    xray = preprocess(view.xray, i0=level)
    return replace(view, xray=xray.with_image(xray.image, i0=level))
