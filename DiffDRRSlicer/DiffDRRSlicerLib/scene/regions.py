"""Which pixels of an X-ray count: what a markup in the X-ray view surrounds, and the field within the collimator."""

from __future__ import annotations

import itertools

import numpy as np
import torch
import vtk
from numpy.typing import NDArray
from scipy.spatial import ConvexHull, QhullError

from DiffDRRCore.geometry import project
from DiffDRRCore.imaging.collimation import collimation_mask
from DiffDRRSlicerLib.scene import nodes
from DiffDRRSlicerLib.scene.carm import CArmNode
from DiffDRRSlicerLib.scene.errors import SceneError

Mask = NDArray[np.bool_]

_ATTACHED = "DiffDRR.OnXRay"  # the attribute of a region that was put on an X-ray
_COLLIMATOR_SIZE = 256  # pixels of the longer side in which the collimator is looked for
_CORNERS = np.array(list(itertools.product((-0.5, 0.5), repeat=3)))
_EDGES = [(a, b) for a, b in itertools.combinations(range(8), 2) if np.abs(_CORNERS[a] - _CORNERS[b]).sum() == 1]


def attach(carm: CArmNode, markups) -> None:
    """Put a region below the C-arm's plane, where it stays on its pixels however the C-arm moves.

    It keeps its place in the world now. One that hangs below a transform already is left there.
    """
    if markups.GetParentTransformNode() is not None:
        return
    plane = carm.plane
    known = markups.GetAttribute(_ATTACHED) is not None  # its plane was deleted: its points are those below a plane
    if not known and markups.GetNumberOfControlPoints():  # an empty box gets its axes from the image
        markups.ApplyTransformMatrix(nodes.to_vtk(np.linalg.inv(nodes.transform_to_world(plane))))
    markups.SetAttribute(_ATTACHED, "1")
    markups.SetAndObserveTransformNodeID(plane.GetID())


def region_mask(carm: CArmNode, markups) -> Mask:
    """[H, W] the pixels whose centres a markup surrounds, seen from the source.

    Args:
        markups: a vtkMRMLMarkupsROINode (what of its box lies in the X-ray's plane, as the X-ray view draws it; its
            shadow, where it does not meet that plane), a vtkMRMLMarkupsClosedCurveNode, or a vtkMRMLMarkupsPlaneNode (a
            rectangle).

    Raises SceneError for another node, for one that is not drawn yet, and for a region beside the image.
    """
    camera = carm.camera
    mask = polygon_mask(_outline(carm, markups), camera.height, camera.width)
    if not mask.any():
        raise SceneError(f"The region '{markups.GetName()}' lies beside the X-ray of '{carm.name}'; move it there.")
    return mask


def collimator_mask(carm: CArmNode) -> Mask:
    """[H, W] the exposed field of the C-arm's X-ray, all True where nothing is shielded.

    By meta["intensity"]; an X-ray that does not say what is bright is taken as transmitted intensity. In a large image
    the blades' edges are found to a few pixels. Raises SceneError where there is no X-ray.
    """
    image = nodes.get_image(carm.referred("xray")).astype(np.float32)
    if carm.meta.get("intensity") == "attenuation":
        image = -image
    step = -(-max(image.shape) // _COLLIMATOR_SIZE)
    small = collimation_mask(torch.from_numpy(np.ascontiguousarray(image[::step, ::step]))).numpy()
    return small.repeat(step, axis=0).repeat(step, axis=1)[: image.shape[0], : image.shape[1]]


def combined_mask(carm: CArmNode, markups=None, find_collimator: bool = True) -> Mask | None:
    """[H, W] the pixels that count, None where all do. Raises SceneError as the others, and where none is left."""
    masks = [] if markups is None else [region_mask(carm, markups)]
    if find_collimator:
        masks.append(collimator_mask(carm))
    mask = np.logical_and.reduce(masks) if masks else None
    if mask is None or mask.all():
        return None
    if not mask.any():
        raise SceneError(f"The region '{markups.GetName()}' lies behind the collimator of '{carm.name}'; move it.")
    return mask


def polygon_mask(polygon, height: int, width: int) -> Mask:
    """[H, W] the pixels whose centres lie inside a closed polygon [N, 2] of pixels (u, v), by the even-odd rule."""
    ends = np.asarray(polygon, dtype=float)
    crossings = np.zeros((height, width + 1), dtype=np.int32)
    for (u0, v0), (u1, v1) in zip(ends, np.roll(ends, -1, axis=0), strict=True):
        low, high = min(v0, v1), max(v0, v1)
        rows = np.arange(max(0, int(np.ceil(low))), min(height, int(np.ceil(high))))
        if len(rows) == 0:
            continue
        at = u0 + (rows - v0) * (u1 - u0) / (v1 - v0)
        np.add.at(crossings, (rows, np.clip(np.ceil(at), 0, width).astype(int)), 1)
    return crossings[:, :width].cumsum(axis=1) % 2 == 1


def _outline(carm: CArmNode, markups) -> nodes.Matrix:
    """[N, 2] pixels."""
    if markups is None:
        raise SceneError("Draw a region in the X-ray view first, or choose none.")
    if markups.IsA("vtkMRMLMarkupsROINode"):
        uv = _box_outline(carm, _box(markups))
    elif markups.IsA("vtkMRMLMarkupsClosedCurveNode"):
        uv = _project(carm, _points(markups.GetCurvePointsWorld()))
    elif markups.IsA("vtkMRMLMarkupsPlaneNode"):
        corners = vtk.vtkPoints()
        markups.GetPlaneCornerPointsWorld(corners)
        uv = _project(carm, _points(corners))
    else:
        raise SceneError(f"'{markups.GetName()}' does not surround anything; draw a ROI, a closed curve or a plane.")
    if len(uv) < 3:
        raise SceneError(f"The region '{markups.GetName()}' is not drawn yet; draw it in the X-ray view.")
    if not np.isfinite(uv).all():
        raise SceneError(f"A part of the region '{markups.GetName()}' lies behind the X-ray source; move it.")
    return uv


def _box(roi) -> nodes.Matrix:
    """[8, 3] world corners, or [0, 3] where it is not placed yet."""
    size = np.array(roi.GetSize())
    if roi.GetNumberOfDefinedControlPoints() == 0 or not size.all():
        return np.zeros((0, 3))
    return nodes.transformed(nodes.from_vtk(roi.GetObjectToWorldMatrix()), _CORNERS * size)


def _box_outline(carm: CArmNode, corners: nodes.Matrix) -> nodes.Matrix:
    """The box's section with the X-ray's plane in pixels, else its shadow."""
    if len(corners) == 0:
        return np.zeros((0, 2))
    above = nodes.transformed(np.linalg.inv(carm.pose.matrix.numpy()), corners)[:, 2] - carm.depth
    cut = [
        corners[a] + above[a] / (above[a] - above[b]) * (corners[b] - corners[a])
        for a, b in _EDGES
        if above[a] * above[b] < 0
    ]
    uv = _project(carm, np.array(cut) if len(cut) >= 3 else corners)
    if not np.isfinite(uv).all():
        return uv
    try:
        return uv[ConvexHull(uv).vertices]
    except QhullError:
        return np.zeros((0, 2))


def _project(carm: CArmNode, points: nodes.Matrix) -> nodes.Matrix:
    return project(carm.camera, carm.pose, points)[0].numpy()


def _points(points) -> nodes.Matrix:
    count = 0 if points is None else points.GetNumberOfPoints()
    return np.array([points.GetPoint(number) for number in range(count)]).reshape(-1, 3)
