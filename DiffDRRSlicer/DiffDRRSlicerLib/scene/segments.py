"""The segments of a segmentation node as labels on a grid; nothing in the scene is changed."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import vtk_to_numpy

from DiffDRRCore.errors import VolumeError
from DiffDRRCore.imaging.image_files import Grid
from DiffDRRCore.imaging.labelmap import nearest_slices
from DiffDRRSlicerLib.scene import nodes
from DiffDRRSlicerLib.scene.errors import SceneError

_LABELMAP = slicer.vtkSegmentationConverter.GetBinaryLabelmapRepresentationName()
_SAME = 1e-3  # voxels


def reading(node, to_ct: nodes.Matrix, ct: Grid, result: np.ndarray) -> Iterator[None]:
    """Fill `result`, zeros [K, J, I] on the grid `ct`, slice by slice; segments are numbered from 1 in their order.

    Surfaces are converted to labelmaps in one piece.

    Args:
        to_ct: [4, 4], from the coordinates that the segmentation is stored in to those of the CT.

    Raises:
        SceneError: no segments, or a representation that no labelmap can be made of.
        VolumeError: segments that all lie outside the CT.
    """
    numbers = {identifier: number for number, (identifier, _) in enumerate(_segments(node), start=1)}
    layers = list(_layers(_with_labelmaps(node, to_ct, ct), numbers))
    for array, grid, values in layers:
        table = _numbers_of(values)
        ct_to_layer = np.linalg.inv(to_ct @ grid) @ ct.ijk_to_ras
        for here, section in zip(result, _sections(array, ct_to_layer, result.shape), strict=True):
            np.maximum(here, _renumbered(section, table), out=here)  # the later segment wins
            yield
    if not result.any() and any(_renumbered(array, _numbers_of(values)).any() for array, _, values in layers):
        raise VolumeError(
            f"None of the segments of '{node.GetName()}' lies inside the CT; are they those of another patient or scan?"
        )


def names(node) -> dict[int, str]:
    """{number: name}, numbered as by `reading`. Raises SceneError where there are no segments."""
    return {number: segment.GetName() for number, (_, segment) in enumerate(_segments(node), start=1)}


def state(node) -> tuple:
    """Changes whenever voxels, surfaces, names or the order of the segments do."""
    return tuple(
        (segment.GetName(), segment.GetLabelValue(), _data(node, segment).GetMTime()) for _, segment in _segments(node)
    )


def _segments(node) -> list:
    """(identifier, vtkSegment) in their order."""
    segmentation = node.GetSegmentation()
    count = 0 if segmentation is None else segmentation.GetNumberOfSegments()
    if count == 0:
        raise SceneError(f"The segmentation '{node.GetName()}' has no segments; add some, or choose another one.")
    identifiers = [segmentation.GetNthSegmentID(index) for index in range(count)]
    return [(identifier, segmentation.GetSegment(identifier)) for identifier in identifiers]


def _data(node, segment):
    """The labelmap of a segment, or else what the segmentation was made of."""
    data = segment.GetRepresentation(_LABELMAP)
    if data is None:
        data = segment.GetRepresentation(node.GetSegmentation().GetSourceRepresentationName())
    if data is None:
        raise SceneError(f"The segment '{segment.GetName()}' of '{node.GetName()}' is damaged: it has no shape.")
    return data


def _with_labelmaps(node, to_ct: nodes.Matrix, ct: Grid):
    """A vtkSegmentation whose segments have labelmaps: the node's own, or a copy that is converted on the CT's grid."""
    segmentation = node.GetSegmentation()
    if all(segment.GetRepresentation(_LABELMAP) for _, segment in _segments(node)):
        return segmentation
    copy = slicer.vtkSegmentation()
    copy.DeepCopy(segmentation)
    for identifier, segment in _segments(node):
        if _data(node, segment).GetNumberOfElements(0) == 0:  # 0: points; an empty surface cannot be converted
            copy.RemoveSegment(identifier)
    grid = nodes.to_vtk(np.linalg.inv(to_ct) @ ct.ijk_to_ras)
    extent = [bound for length in reversed(ct.array.shape) for bound in (0, length - 1)]
    converter = slicer.vtkSegmentationConverter
    copy.SetConversionParameter(
        converter.GetReferenceImageGeometryParameterName(), converter.SerializeImageGeometry(grid, extent)
    )
    if copy.GetNumberOfSegments() and not copy.CreateRepresentation(_LABELMAP):
        raise SceneError(
            f"The segmentation '{node.GetName()}' ({segmentation.GetSourceRepresentationName()}) cannot be converted "
            "to a labelmap; create its binary labelmap representation in the Segmentations module."
        )
    return copy


def _layers(segmentation, numbers: dict[str, int]):
    """(voxels [K, J, I], their grid, {value: number}) of each labelmap, which several segments may share."""
    shared: dict = {}
    for identifier, number in numbers.items():
        segment = segmentation.GetSegment(identifier)
        image = None if segment is None else segment.GetRepresentation(_LABELMAP)
        if image is not None and image.GetNumberOfPoints():
            shared.setdefault(image, {})[segment.GetLabelValue()] = number
    for image, values in shared.items():
        first = image.GetExtent()[::2]
        shape = tuple(reversed(image.GetDimensions()))
        yield vtk_to_numpy(image.GetPointData().GetScalars()).reshape(shape), _grid(image, first), values


def _grid(image, first) -> nodes.Matrix:
    """[4, 4] from the index in the array to the segmentation's coordinates; arrays begin at the voxel `first`."""
    matrix = vtk.vtkMatrix4x4()
    image.GetImageToWorldMatrix(matrix)
    shift = np.eye(4)
    shift[:3, 3] = first
    return nodes.from_vtk(matrix) @ shift


def _numbers_of(values: dict[int, int]) -> np.ndarray:
    """What each value in a labelmap becomes; the last entry is for all larger ones."""
    table = np.zeros(max(0, *values) + 2, np.int16)
    for value, number in values.items():
        table[value] = number
    return table


def _renumbered(array: np.ndarray, table: np.ndarray) -> np.ndarray:
    return table.take(array.astype(np.intp), mode="clip")


def _sections(layer: np.ndarray, ct_to_layer: nodes.Matrix, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    """[J, I] for each slice of the CT: nearest voxels; a copy where grids are shifted by whole voxels, as Slicer's."""
    shift = np.rint(ct_to_layer[:3, 3]).astype(int)
    whole = np.eye(4)
    whole[:3, 3] = shift
    if np.abs(ct_to_layer - whole).max() * max(*shape, 1) > _SAME:
        yield from nearest_slices(layer, ct_to_layer, shape)
        return
    spans = [(max(0, -s), min(n, m - s), s) for n, m, s in zip(shape, layer.shape, shift[::-1], strict=True)]
    (first, last, up), *across = spans
    inside = tuple(slice(start, max(start, stop)) for start, stop, _ in across)
    source = tuple(slice(start + s, max(start, stop) + s) for start, stop, s in across)
    for k in range(shape[0]):
        section = np.zeros(shape[1:], layer.dtype)
        if first <= k < last:
            section[inside] = layer[k + up][source]
        yield section
