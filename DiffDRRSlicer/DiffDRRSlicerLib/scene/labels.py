"""Structures named by a labelmap volume or a segmentation, on the grid of a CT."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator

import numpy as np
import slicer.util
import vtk

from DiffDRRCore.imaging.image_files import Grid
from DiffDRRCore.imaging.labelmap import resampled_slices
from DiffDRRCore.pieces import finished
from DiffDRRSlicerLib.scene import nodes, segments
from DiffDRRSlicerLib.scene.errors import SceneError

_NO_NAMES = ("", "none", "(none)", "background")
_RANGE = np.iinfo(np.int16)
_names: dict[int, tuple[tuple[int, str], ...]] = {}  # time stamp of a colour table: its names


def read_labels(labels, ct) -> tuple[np.ndarray, dict[int, str]]:
    """int16 [K, J, I] numbers on the grid of `ct`, and {number: name}.

    Args:
        labels: a labelmap volume on any grid (the same one is copied exactly, of another one the nearest voxel counts),
            named by its colour table, else by the number itself; or a segmentation, whose segments are numbered from 1
            in their order, hidden ones too, the later one where two overlap. Both may lie below other linear transforms
            than the CT. Names that are there twice get the number behind them.
        ct: a scalar volume node.

    Raises:
        SceneError: neither of them, without voxels, voxels that are no labels, a transform that is not linear.
        VolumeError: no label lies inside the CT. Warns with DiffDRRWarning where a part lies outside.
    """
    return finished(reading_labels(labels, ct))


def reading_labels(labels, ct) -> Generator[None, None, tuple[np.ndarray, dict[int, str]]]:
    """`read_labels` in pieces of some milliseconds; a segmentation without labelmaps is converted in one piece."""
    to_ct = _to_ct(labels, ct)
    reference = Grid(slicer.util.arrayFromVolume(ct), nodes.volume_grid(ct))
    result = np.zeros(reference.array.shape, np.int16)
    if labels.IsA("vtkMRMLSegmentationNode"):
        yield from segments.reading(labels, to_ct, reference, result)
        return result, _distinct(segments.names(labels))
    array = yield from _voxels(labels)
    grid, seen = Grid(array, to_ct @ nodes.volume_grid(labels)), np.zeros(1 << 16, bool)
    for here, section in zip(result, resampled_slices(labels.GetName(), grid, reference), strict=True):
        here[:] = section
        seen[section.astype(np.uint16)] = True
        yield
    known, present = dict(_table_names(labels)), np.flatnonzero(seen).astype(np.uint16).astype(np.int16)
    return result, _distinct({number: known.get(number, str(number)) for number in sorted(present.tolist())})


def _distinct(names: dict[int, str]) -> dict[int, str]:
    """Without 0, and so that each name chooses one structure."""
    count = Counter(names.values())
    return {number: name if count[name] == 1 else f"{name} ({number})" for number, name in names.items() if number != 0}


def labels_state(labels, ct) -> tuple:
    """Equal for two calls only where `read_labels` would give the same; quick. Raises SceneError as that does.

    Moving both nodes together changes nothing; moving one of them does.
    """
    to_ct = _to_ct(labels, ct)
    if labels.IsA("vtkMRMLSegmentationNode"):
        return (to_ct.tobytes(), *segments.state(labels))
    grid = to_ct @ nodes.volume_grid(labels)
    return grid.tobytes(), labels.GetImageData().GetMTime(), _table_names(labels)


def _to_ct(labels, ct) -> nodes.Matrix:
    """[4, 4] from the coordinates that the labels are stored in to those of the CT; checks the labels' node."""
    if labels is None or not (labels.IsA("vtkMRMLSegmentationNode") or labels.IsA("vtkMRMLScalarVolumeNode")):
        name = "nothing" if labels is None else f"'{labels.GetName()}'"
        raise SceneError(f"Structures are named by a labelmap volume or a segmentation, not by {name}.")
    image = None if labels.IsA("vtkMRMLSegmentationNode") else labels.GetImageData()
    if labels.IsA("vtkMRMLScalarVolumeNode") and (image is None or image.GetNumberOfPoints() == 0):
        raise SceneError(f"The labelmap '{labels.GetName()}' has no voxels; load it again, or choose another one.")
    nodes.parent_to_world(labels)  # raises where a transform above is not linear
    # By way of the world, the last bits would change whenever both are moved together.
    matrix = vtk.vtkMatrix4x4()
    slicer.vtkMRMLTransformNode.GetMatrixTransformBetweenNodes(
        labels.GetParentTransformNode(), ct.GetParentTransformNode(), matrix
    )
    return nodes.from_vtk(matrix)


def _voxels(labels) -> Generator[None, None, np.ndarray]:
    """int16 [K, J, I], slice by slice where they are of a type that has other numbers too."""
    name = labels.GetName()
    if labels.GetImageData().GetNumberOfScalarComponents() != 1:
        raise SceneError(f"'{name}' has colours; a labelmap has one whole number in each voxel.")
    array = slicer.util.arrayFromVolume(labels)
    if np.can_cast(array.dtype, np.int16):
        return array.astype(np.int16, copy=False)
    result, bounds = np.empty(array.shape, np.int16), []
    for here, section in zip(result, array, strict=True):
        if array.dtype.kind == "f" and not np.array_equal(section, np.rint(section)):
            raise SceneError(f"'{name}' has voxels that are not whole numbers; choose a labelmap.")
        bounds += [section.min(), section.max()]
        with np.errstate(invalid="ignore"):  # too large ones are told of below
            here[:] = section
        yield
    low, high = min(bounds), max(bounds)
    if low < _RANGE.min or high > _RANGE.max:
        raise SceneError(
            f"The labels of '{name}' go from {low} to {high}; only {_RANGE.min} to {_RANGE.max} can be used: "
            "renumber them."
        )
    return result


def _table_names(labels) -> tuple[tuple[int, str], ...]:
    """(number, name) of the colour table that a labelmap is shown in, in the order of the numbers."""
    display = labels.GetDisplayNode()
    table = None if display is None else display.GetColorNode()
    if table is None or not labels.IsA("vtkMRMLLabelMapVolumeNode"):
        return ()
    stamp = table.GetMTime()  # VTK gives none twice, so it stands for the table too
    if stamp not in _names:
        while len(_names) > 3:
            _names.pop(next(iter(_names)))
        _names[stamp] = tuple(_read_names(table))
    return _names[stamp]


def _read_names(table):
    defined = getattr(table, "GetColorDefined", lambda _: True)  # Slicer 5.8 and before have only the name "(none)"
    for number in range(1, table.GetNumberOfColors()):
        name = (table.GetColorName(number) or "").strip()
        if defined(number) and name.lower() not in _NO_NAMES:
            yield number, name
