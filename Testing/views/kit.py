"""C-arms to look along, and where things must then be drawn, by closed forms. Nothing here calls what is tested."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import slicer.util
import torch
import vtk
from scipy import ndimage

from DiffDRRCore import Camera, CArm, Pose

SDD, SOD = 1000.0, 740.0
ROW, COLUMN = 1.9, 1.4  # mm
HEIGHT, WIDTH = 120, 160
PARENT = np.array([[0.8, -0.6, 0, 30], [0.6, 0.8, 0, -20], [0, 0, 1, 55], [0, 0, 0, 1]])


@dataclass(frozen=True)
class Setting:
    """One way in which a C-arm can stand; `parent` puts a rotated and shifted transform above it."""

    primary: float = 0.0
    secondary: float = 0.0
    roll: float = 0.0
    view_from: str = "source"
    side: str = "radiological"
    parent: bool = False

    @property
    def camera(self) -> Camera:
        return Camera(HEIGHT, WIDTH, (ROW, COLUMN), SDD, (70.3, 66.8), self.view_from)

    @property
    def isocenter(self) -> torch.Tensor:
        return torch.tensor([4.0, -7.0, 11.0], dtype=torch.float64)

    @property
    def local_pose(self) -> Pose:
        return CArm(SDD, SOD, self.isocenter, self.primary, self.secondary, self.roll).pose

    @property
    def pose(self) -> Pose:
        """camera_to_world, whatever is above the C-arm."""
        return Pose(torch.from_numpy(PARENT if self.parent else np.eye(4))) @ self.local_pose

    @property
    def center(self) -> np.ndarray:
        """[3] world mm of the isocentre."""
        return self.pose.translation.numpy() + SOD * self.pose.rotation.numpy()[:, 2]

    def to_picture(self, uv, size) -> np.ndarray:
        """Where the X-ray view of that size (width, height) draws pixels (u, v): [N, 2] picture pixels, y down."""
        uv = np.asarray(uv, float).reshape(-1, 2)
        pixel = max(WIDTH * COLUMN / size[0], HEIGHT * ROW / size[1])
        right = 1 if (self.view_from == "source") == (self.side == "source") else -1
        offset = (uv - [(WIDTH - 1) / 2, (HEIGHT - 1) / 2]) * [right * COLUMN, ROW] / pixel
        return np.array(size) / 2 + offset - 0.5

    def millimetres_a_pixel(self, size) -> float:
        """Size of a pixel of the X-ray view, on the plane through the isocentre."""
        return max(WIDTH * COLUMN / size[0], HEIGHT * ROW / size[1]) * SOD / SDD


SETTINGS = [
    Setting(),
    Setting(180, 0, view_from="detector"),
    Setting(90, 0, 7, view_from="detector", side="source"),
    Setting(-35, 28, -13, view_from="source", side="source", parent=True),
    Setting(24, -31, 20, view_from="detector", side="radiological", parent=True),
]


def matrix(array) -> vtk.vtkMatrix4x4:
    result = vtk.vtkMatrix4x4()
    result.DeepCopy(np.asarray(array, float).ravel().tolist())
    return result


def array(matrix) -> np.ndarray:
    return np.array([[matrix.GetElement(row, column) for column in range(4)] for row in range(4)])


def add_transform(scene, values, name="transform"):
    node = scene.AddNewNodeByClass("vtkMRMLLinearTransformNode", name)
    node.SetMatrixTransformToParent(matrix(values))
    return node


def add_ct(scene, volume, parent=None):
    """A CT node of a Core volume."""
    node = scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "CT")
    slicer.util.updateVolumeFromArray(node, volume.hu.numpy())
    node.SetIJKToRASMatrix(matrix(volume.ijk_to_ras))
    if parent is not None:
        node.SetAndObserveTransformNodeID(parent.GetID())
    return node


def blobs(mask) -> np.ndarray:
    """[N, 2] middles (x, y) of the connected parts of a mask."""
    parts, count = ndimage.label(mask)
    return np.array(ndimage.center_of_mass(mask, parts, range(1, count + 1))).reshape(-1, 2)[:, ::-1]


def red(picture) -> np.ndarray:
    return (picture[..., 0] > 100) & (picture[..., 1] < 60) & (picture[..., 2] < 60)


def world_points(setting: Setting) -> np.ndarray:
    """[5, 3] points about the isocentre, near and far from the source, whose shadows do not touch."""
    points = [(-55, -40, 60), (50, -35, -55), (5, 45, 30), (-40, 30, -60), (45, 15, 70)]
    return setting.center + np.array(points) @ setting.pose.rotation.numpy().T


def nearest(found, expected) -> np.ndarray:
    """[N] distance from each expected position to the nearest one found."""
    return np.linalg.norm(np.asarray(expected)[:, None] - np.asarray(found)[None], axis=-1).min(axis=1)
