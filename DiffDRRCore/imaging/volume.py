"""The CT volume: voxels in HU, where they lie in the patient, and the labelled structures in them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from DiffDRRCore.errors import VolumeError
from DiffDRRCore.geometry.tensors import as_tensor
from DiffDRRCore.imaging.attenuation import AttenuationMap
from DiffDRRCore.imaging.coarsening import block_majority, block_mean, coarse_grid

_AIR_HU = -1000.0
_SLAB = 2**20  # voxels that are computed at a time: what they need stays in the processor's memory


class Volume:
    """A CT on its own grid, in the patient's RAS coordinates; never recentred or resampled.

    hu              [K, J, I] Hounsfield units; floating types keep their dtype, integers become float32. A floating
                    torch tensor is used as it is, not copied: gradients flow to it, in-place changes are seen.
    ijk_to_ras      [4, 4], voxel index (i, j, k, 1) to RAS mm; any invertible affine (oblique, left-handed,
                    anisotropic, sheared). Integer indices are voxel centres.
    labels          [K, J, I] whole numbers, 0 for background, or None
    label_names     {number: name}
    attenuation_map HU to 1/mm; the default is `AttenuationMap()`, 70 keV

    Raises VolumeError where the voxels are not 3D, not finite or none, the affine is not invertible, or the labels do
    not fit.
    """

    def __init__(
        self,
        hu,
        ijk_to_ras,
        labels=None,
        label_names: Mapping[int, str] | None = None,
        attenuation_map: AttenuationMap | None = None,
    ):
        self._fill(_voxels(hu, "HU"), True, ijk_to_ras, labels, label_names, attenuation_map)

    @classmethod
    def from_attenuation(
        cls,
        mu,
        ijk_to_ras,
        labels=None,
        label_names: Mapping[int, str] | None = None,
        attenuation_map: AttenuationMap | None = None,
    ) -> Volume:
        """A volume of linear attenuation `mu` [K, J, I], 1/mm, >= 0, kept exactly; `hu` follows by the inverse map."""
        mu = _voxels(mu, "attenuation")
        if bool(mu.min() < 0):
            negative = int((mu < 0).sum())
            raise VolumeError(f"Attenuation cannot be negative, but {negative} voxels are; set them to 0.")
        volume = cls.__new__(cls)
        volume._fill(mu, False, ijk_to_ras, labels, label_names, attenuation_map)
        return volume

    @classmethod
    def read(
        cls,
        path: str | Path,
        labelmap: str | Path | None = None,
        *,
        series: str | None = None,
        uneven: str = "error",
        label_names: str | Path | Mapping[int, str] | None = None,
        attenuation_map: AttenuationMap | None = None,
    ) -> Volume:
        """Read a CT: a NIfTI, NRRD or MetaImage file, or DICOM (a folder, one slice of a series, an Enhanced CT).

        labelmap     image file of whole numbers; on another grid it is resampled to the CT by nearest neighbour
        series       SeriesInstanceUID, where a folder holds more than one CT
        uneven       "error", or "resample" to interpolate slices at uneven distances on to even ones
        label_names  CSV file with a number and a name in each row, or a mapping; without it the names come from the
                     labelmap file, or from a CSV file beside it

        Raises ReadError (MissingGeometryError where a header lacks values) or VolumeError. Warns with DiffDRRWarning
        of a tilted gantry and of other things that were read but are unusual.
        """
        from DiffDRRCore.imaging.volume_reading import read_ct, read_labels

        if labelmap is None and label_names is not None:
            raise VolumeError("label_names were given without a labelmap; give the labelmap as well.")
        ct = read_ct(path, series=series, uneven=uneven)
        labels, names = (None, None) if labelmap is None else read_labels(labelmap, ct, label_names)
        return cls(torch.from_numpy(ct.array), ct.ijk_to_ras, labels, names, attenuation_map)

    def write(self, path: str | Path, labelmap: str | Path | None = None) -> None:
        """Write the HU to `path` (.nii, .nii.gz, .nrrd or .mha) and, where asked for, the labels to `labelmap`.

        Label names are kept in .nrrd only. Raises VolumeError for a sheared grid, which these formats cannot hold
        through ITK, and DiffDRRError where the file cannot be written.
        """
        from DiffDRRCore.imaging.image_files import write_image
        from DiffDRRCore.imaging.labelmap import segment_metadata

        if labelmap is not None and self.labels is None:
            raise VolumeError("This volume has no labels to write.")
        affine = self.ijk_to_ras.detach().cpu().numpy()
        hu = self.hu.detach().cpu()
        hu = hu if hu.dtype in (torch.float32, torch.float64) else hu.float()
        write_image(path, hu.numpy(), affine)
        if labelmap is not None:
            write_image(labelmap, self.labels.cpu().numpy(), affine, segment_metadata(self.label_names))

    @property
    def hu(self) -> Tensor:
        """[K, J, I] Hounsfield units."""
        return self._source if self._source_is_hu else self._derive(self.attenuation_map.inverse)

    @property
    def attenuation(self) -> Tensor:
        """[K, J, I] linear attenuation, 1/mm, >= 0; gradients flow to the voxels the volume was made of.

        Computed once and kept, unless those voxels require a gradient or change in place.
        """
        return self._derive(self.attenuation_map) if self._source_is_hu else self._source

    @property
    def source(self) -> Tensor:
        """[K, J, I] what the volume was made of, and all its voxels follow from: HU, or attenuation."""
        return self._source

    @property
    def shape(self) -> torch.Size:
        """(K, J, I)."""
        return self._source.shape

    @property
    def device(self) -> torch.device:
        """Where the voxels are."""
        return self._source.device

    @property
    def dtype(self) -> torch.dtype:
        """Floating type of the voxels, and so of what is rendered from them."""
        return self._source.dtype

    @property
    def ras_to_ijk(self) -> Tensor:
        """[4, 4] float64, RAS mm to voxel index."""
        return torch.linalg.inv(self.ijk_to_ras)

    @property
    def spacing(self) -> Tensor:
        """[3] float64, mm between voxel centres along i, j, k."""
        return self.ijk_to_ras[:3, :3].norm(dim=0)

    @property
    def center(self) -> Tensor:
        """[3] float64, RAS mm of the middle of the grid."""
        middle = (self.ijk_to_ras.new_tensor(self.shape[::-1]) - 1) / 2
        return self.ijk_to_ras[:3, :3] @ middle + self.ijk_to_ras[:3, 3]

    @property
    def present_labels(self) -> set[int]:
        """The numbers that voxels have, 0 for background too; none where there are no labels."""
        if self.labels is None:
            return set()
        return self._numbers_in(slice(None))

    def label_id(self, name: str) -> int:
        """The number of the structure called `name`. Raises VolumeError, with the names there are, for another."""
        numbers = [number for number, known in self.label_names.items() if known == name]
        if len(numbers) == 1:
            return numbers[0]
        if numbers:
            raise VolumeError(f"The labels {numbers} are all called '{name}'; choose by number.")
        raise VolumeError(f"There is no structure called '{name}'; the labels are: {self._label_list()}.")

    def select(self, labels: int | str | Iterable[int | str]) -> Volume:
        """A volume in which only the structures of these numbers or names are left; the rest is air (mu = 0).

        Raises VolumeError for a label that has no voxels, with a list of those there are.
        """
        if self.labels is None:
            raise VolumeError("This volume has no labels to select from; read it with a labelmap.")
        chosen = [labels] if isinstance(labels, (int, str, np.integer)) else list(labels)
        numbers = [self.label_id(label) if isinstance(label, str) else label for label in chosen]
        if not numbers:
            raise VolumeError("Name at least one label to select.")
        present = self.present_labels
        if missing := [label for label, number in zip(chosen, numbers, strict=True) if number not in present]:
            raise self._no_voxel_of(missing[0])
        inside = _in_slabs(_is_one_of(numbers, self.labels), self.labels, torch.bool)
        air = self._source.new_tensor(_AIR_HU if self._source_is_hu else 0.0)
        names = {number: name for number, name in self.label_names.items() if number in numbers}
        return self._with(
            _source=torch.where(inside, self._source, air), labels=self.labels * inside, label_names=names
        )

    def coarsened(self, factor: int | tuple[int, int, int]) -> Volume:
        """A volume of blocks of voxels: `factor`, or one for each of (k, j, i), voxels long.

        A block has the mean attenuation of its voxels and their most frequent label. The last block of an axis that
        does not divide evenly is filled up with air, so line integrals are kept and nothing shifts.
        """
        factors = _factors(factor)
        return self._with(
            _source=block_mean(self.attenuation, factors),
            _source_is_hu=False,
            ijk_to_ras=coarse_grid(self.ijk_to_ras, factors),
            labels=None if self.labels is None else block_majority(self.labels, factors),
        )

    def coarsening(self, factor, labels: Iterable[int] | None = None) -> Generator[None, None, Volume]:
        """What `coarsened` gives, without labels, in pieces: yields after each some million voxels, returns the volume.

        The attenuation of the whole is neither needed nor kept. With `labels` (numbers), only those structures are
        left, as by `select`, with its errors.
        """
        factors, missing = _factors(factor), set(labels or ())
        if labels is not None and (self.labels is None or not missing):
            self.select(labels)  # raises
        grid = coarse_grid(self.ijk_to_ras, factors)
        bare = {"_source_is_hu": False, "ijk_to_ras": grid, "labels": None, "label_names": {}}
        if max(factors) == 1 and labels is None and self._attenuation_is_known:
            return self._with(_source=self.attenuation, **bare)
        counts = [-(-length // size) for length, size in zip(self.shape, factors, strict=True)]
        blocks, chosen = self._source.new_empty(counts), None if labels is None else _is_one_of(missing, self.labels)
        deep = max(1, _SLAB // (factors[0] * self.shape[1] * self.shape[2]))
        for first in range(0, counts[0], deep):
            rows = slice(first * factors[0], (first + deep) * factors[0])
            mu = self.attenuation_of(rows)
            if labels is not None:
                missing -= self._numbers_in(rows) if missing else set()
                mu = mu * chosen(self.labels[rows])
            blocks[first : first + deep] = block_mean(mu, factors)
            yield
        if missing:
            raise self._no_voxel_of(min(missing))
        return self._with(_source=blocks, **bare)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Volume:
        """The volume on another device, or with voxels of another floating type; `ijk_to_ras` stays float64."""
        source = self._source.to(device=device, dtype=dtype)
        return self._with(
            _source=source,
            ijk_to_ras=self.ijk_to_ras.to(source.device),
            labels=None if self.labels is None else self.labels.to(source.device),
        )

    def detached(self) -> Volume:
        """The volume without the graph of its voxels, which are shared."""
        return self._with(_source=self._source.detach()) if self._source.requires_grad else self

    def __repr__(self) -> str:
        k, j, i = self.shape
        spacing = " x ".join(f"{value:.4g}" for value in self.spacing.tolist())
        labels = "no labels" if self.labels is None else f"{len(self.present_labels - {0})} labels"
        return f"Volume({i} x {j} x {k} voxels of {spacing} mm, {labels}, {self.dtype}, {self.device})"

    def _fill(self, source, is_hu, ijk_to_ras, labels, label_names, attenuation_map) -> None:
        self._source, self._source_is_hu, self._cache = source, is_hu, None
        self.ijk_to_ras = _affine(ijk_to_ras).to(source.device)
        self.labels = None if labels is None else _labels(labels, source)
        self.label_names = {int(number): str(name) for number, name in (label_names or {}).items()}
        self.attenuation_map = attenuation_map or AttenuationMap()

    def _with(self, **changes) -> Volume:
        volume = copy.copy(self)
        volume.__dict__.update(changes, _cache=None)
        return volume

    def _derive(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        source = self._source
        # A kept result would hold on to one autograd graph, which a second backward pass finds freed; and inference
        # tensors count no versions, so a change in place would go unseen.
        if source.requires_grad or source.is_inference():
            return function(source)
        key = (source._version, self.attenuation_map)
        if self._cache is None or self._cache[0] != key:
            with torch.inference_mode(False), torch.no_grad():
                self._cache = (key, _in_slabs(function, source))
        return self._cache[1]

    def attenuation_of(self, rows: slice) -> Tensor:
        """Of some slices; that of the whole is used where it is known, but not computed."""
        return self.attenuation[rows] if self._attenuation_is_known else self.attenuation_map(self._source[rows])

    @property
    def _attenuation_is_known(self) -> bool:
        if not self._source_is_hu or self._source.is_inference():
            return not self._source_is_hu
        return self._cache is not None and self._cache[0] == (self._source._version, self.attenuation_map)

    def _numbers_in(self, rows: slice) -> set[int]:
        """The labels of some slices."""
        labels = self.labels[rows]
        low, high = (int(number) for number in torch.aminmax(labels))
        counts = sum(torch.bincount(section.flatten().int() - low, minlength=high - low + 1) for section in labels)
        return {low + index for index in torch.nonzero(counts)[:, 0].tolist()}

    def _no_voxel_of(self, label: int | str) -> VolumeError:
        return VolumeError(f"No voxel has the label {label!r}; the labels are: {self._label_list()}.")

    def _label_list(self) -> str:
        present = sorted(self.present_labels - {0}) if self.labels is not None else sorted(self.label_names)
        return (
            ", ".join(
                f"{number} {self.label_names[number]}" if number in self.label_names else str(number)
                for number in present
            )
            or "none"
        )


def _is_one_of(numbers: Iterable[int], labels: Tensor) -> Callable[[Tensor], Tensor]:
    """A function of int16 labels that says where they are one of these: a table, since many numbers take no longer."""
    table = torch.zeros(2**16, dtype=torch.bool, device=labels.device)
    table[[number + 2**15 for number in numbers if -(2**15) <= number < 2**15]] = True
    return lambda some: table.index_select(0, some.flatten().int() + 2**15).view(some.shape)


def _in_slabs(function: Callable[[Tensor], Tensor], voxels: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """function(voxels) of [K, J, I], voxel by voxel, some slices at a time; of another type where one is given."""
    result, deep = torch.empty_like(voxels, dtype=dtype), max(1, _SLAB // voxels[0].numel())
    for first in range(0, len(voxels), deep):
        result[first : first + deep] = function(voxels[first : first + deep])
    return result


def _voxels(values, what: str) -> Tensor:
    values = values if isinstance(values, Tensor) else _from_numpy(np.asarray(values), what)
    if values.is_complex():
        raise VolumeError(f"The {what} voxels are complex numbers; give real ones.")
    if values.ndim != 3:
        raise VolumeError(f"A volume needs 3 dimensions [K, J, I]; this array has shape {list(values.shape)}.")
    if values.numel() == 0:
        raise VolumeError(f"The volume has no voxels: its shape is {list(values.shape)}.")
    values = values if values.is_floating_point() else values.to(torch.float32)
    if bool(torch.isfinite(torch.stack(torch.aminmax(values))).all()):  # both are NaN where any voxel is
        return values
    if (bad := values.numel() - int(torch.isfinite(values).sum())) > 0:
        raise VolumeError(
            f"{bad} of the {values.numel()} {what} voxels are NaN or infinite; replace them, for example by -1000 HU."
        )
    return values


def _from_numpy(values: np.ndarray, what: str) -> Tensor:
    """A copy of an array of any byte order, in a type that torch can compute with."""
    if values.dtype.kind not in "buif":
        raise VolumeError(f"The {what} voxels must be real numbers, not {values.dtype}.")
    if values.dtype.kind == "u" and values.dtype.itemsize > 1:
        return torch.from_numpy(values.astype(np.int64))
    wide = values.dtype.itemsize > 8
    return torch.from_numpy(values.astype(np.float64 if wide else values.dtype.newbyteorder("="), copy=True))


def _affine(ijk_to_ras) -> Tensor:
    matrix = as_tensor(ijk_to_ras, torch.float64)
    if matrix.shape != (4, 4):
        raise VolumeError(f"ijk_to_ras must be a 4 x 4 matrix; its shape is {list(matrix.shape)}.")
    values = matrix.detach()
    if not bool(torch.isfinite(values).all()):
        raise VolumeError("ijk_to_ras holds NaN or infinite numbers.")
    if values[3].tolist() != [0, 0, 0, 1]:
        raise VolumeError(f"The last row of ijk_to_ras must be 0 0 0 1, not {values[3].tolist()}.")
    lengths = values[:3, :3].norm(dim=0)
    if bool((lengths == 0).any()) or float(torch.linalg.det(values[:3, :3] / lengths).abs()) < 1e-6:
        raise VolumeError("ijk_to_ras is singular: its axes must be three directions that do not lie in one plane.")
    return matrix


def _labels(labels, source: Tensor) -> Tensor:
    labels = labels if isinstance(labels, Tensor) else _from_numpy(np.asarray(labels), "label")
    if labels.shape != source.shape:
        raise VolumeError(
            f"The labels have shape {list(labels.shape)}, the volume {list(source.shape)}; they must be the same."
        )
    if labels.is_complex() or (labels.is_floating_point() and not bool((labels == labels.round()).all())):
        raise VolumeError("The labels must be whole numbers; is this a labelmap?")
    low, high = (float(value) for value in torch.aminmax(labels))
    if low < -32768 or high > 32767:
        raise VolumeError(f"The labels must lie between -32768 and 32767; these go from {low:g} to {high:g}.")
    return labels.to(device=source.device, dtype=torch.int16)


def _factors(factor) -> tuple[int, int, int]:
    factors = tuple(factor) if isinstance(factor, (tuple, list)) else (factor,) * 3
    if len(factors) != 3 or any(int(value) != value or value < 1 for value in factors):
        raise VolumeError(f"The factor must be a whole number of 1 or more, or three of them, not {factor!r}.")
    return tuple(int(value) for value in factors)
