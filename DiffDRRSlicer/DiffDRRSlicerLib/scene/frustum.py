"""A C-arm to look at in 3D: its source, the beam's edges and the detector with the X-ray on it."""

from __future__ import annotations

import numpy as np
import slicer.util
import vtk
from vtk.util.numpy_support import numpy_to_vtk

from DiffDRRCore import Camera
from DiffDRRSlicerLib.scene import nodes
from DiffDRRSlicerLib.scene.carm import CArmNode, pixels_to_points
from DiffDRRSlicerLib.scene.colors import apply_colors

_SOURCE_RADIUS = 0.008  # of the source-to-detector distance
_COLOR = (0.2, 0.8, 1.0)


def create_frustum(carm: CArmNode):
    """The model of role "frustum": source, four edges, detector frame, principal ray; mm, in camera coordinates.

    The edges end at the outer corners of the corner pixels. A second call gives the same node.
    """
    model = carm.below("frustum", "vtkMRMLModelNode", "beam", on_plane=False)
    if model.GetDisplayNode() is None:
        model.CreateDefaultDisplayNodes()
        display = model.GetDisplayNode()
        with slicer.util.NodeModify(display):
            display.SetColor(*_COLOR)
            display.SetLineWidth(2)
            display.SetLighting(False)
            display.SetBackfaceCulling(True)  # the C-arm view looks out of the source's sphere
            display.SetVisibility2D(False)
    model.SetAndObservePolyData(_beam(carm.camera))
    return model


def show_detector(carm: CArmNode):
    """The model of role "detector": the X-ray (or, without one, the DRR) on the detector, right way round, in 3D.

    The picture follows the volume's window and colours. The connection is not saved with a scene: call it again.
    """
    model = carm.below("detector", "vtkMRMLModelNode", "detector", on_plane=False)
    if model.GetDisplayNode() is None:
        model.CreateDefaultDisplayNodes()
        display = model.GetDisplayNode()
        with slicer.util.NodeModify(display):
            display.SetLighting(False)
            display.SetInterpolateTexture(True)
            display.SetVisibility2D(False)
            display.SetBackfaceCulling(False)
            display.SetBackfaceColorHSVOffset(0.0, 0.0, 0.0)
    model.SetAndObservePolyData(_detector(carm.camera))
    volume = carm.referred("xray") or carm.referred("drr")
    model.GetDisplayNode().SetTextureImageDataConnection(None if volume is None else _picture(volume))
    return model


def update_frustum(carm: CArmNode) -> None:
    """Bring those of the two models that there are to the camera as it is now."""
    if carm.referred("frustum") is not None:
        create_frustum(carm)
    if carm.referred("detector") is not None:
        show_detector(carm)


def _picture(volume):
    """The volume's pixels as they are coloured in slice views."""
    apply_colors(volume)
    return volume.GetDisplayNode().GetImageDataConnection()


def _beam(camera: Camera) -> vtk.vtkPolyData:
    corners, distance = _corners(camera), float(camera.source_to_detector)
    origins = corners * (1.0, 1.0, 0.0) if camera.parallel else np.zeros((4, 3))
    principal = np.array([[0.0, 0.0, 0.0], [0.0, 0.0, distance]])
    points = np.vstack([corners, origins, principal])
    lines = [(0, 1), (1, 2), (2, 3), (3, 0), (4, 0), (5, 1), (6, 2), (7, 3), (8, 9)]
    result = vtk.vtkAppendPolyData()
    result.AddInputData(lines_of(points, lines))
    sphere = vtk.vtkSphereSource()
    sphere.SetRadius(_SOURCE_RADIUS * distance)
    sphere.Update()
    bare = vtk.vtkPolyData()
    bare.SetPoints(sphere.GetOutput().GetPoints())
    bare.SetPolys(sphere.GetOutput().GetPolys())
    result.AddInputData(bare)
    result.Update()
    return result.GetOutput()


def _detector(camera: Camera) -> vtk.vtkPolyData:
    """A quad whose texture coordinates are (u + 1/2) / W and (v + 1/2) / H: an image's first row is at t = 0."""
    result = vtk.vtkPolyData()
    result.SetPoints(to_points(_corners(camera)))
    quad = vtk.vtkCellArray()
    quad.InsertNextCell(4, (0, 1, 2, 3))
    result.SetPolys(quad)
    texture = numpy_to_vtk(np.array([[0, 0], [1, 0], [1, 1], [0, 1]], dtype=np.float32), deep=True)
    texture.SetName("TextureCoordinates")
    result.GetPointData().SetTCoords(texture)
    return result


def _corners(camera: Camera) -> nodes.Matrix:
    """[4, 3] mm: the outer corners of the pixels (0, 0), (W - 1, 0), (W - 1, H - 1), (0, H - 1)."""
    right, bottom = camera.width - 0.5, camera.height - 0.5
    return pixels_to_points(camera, [(-0.5, -0.5), (right, -0.5), (right, bottom), (-0.5, bottom)])


def lines_of(points, pairs) -> vtk.vtkPolyData:
    """Lines between pairs of indices into points [N, 3]."""
    result = vtk.vtkPolyData()
    result.SetPoints(to_points(points))
    lines = vtk.vtkCellArray()
    for pair in pairs:
        lines.InsertNextCell(2, pair)
    result.SetLines(lines)
    return result


def to_points(points) -> vtk.vtkPoints:
    """vtkPoints (double) of an array [N, 3]."""
    result = vtk.vtkPoints()
    result.SetData(numpy_to_vtk(np.ascontiguousarray(np.reshape(points, (-1, 3)), dtype=np.float64), deep=True))
    return result
