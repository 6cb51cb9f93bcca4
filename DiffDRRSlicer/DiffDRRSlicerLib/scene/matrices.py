"""Geometry that is pasted as text: a 3 x 4 projection matrix, or the camera's K."""

from __future__ import annotations

import math
import re

import numpy as np

from DiffDRRCore import Camera
from DiffDRRCore.geometry.converters import from_projection_matrix
from DiffDRRCore.imaging.camera_file import check_units
from DiffDRRSlicerLib.scene import assumptions as words
from DiffDRRSlicerLib.scene import nodes
from DiffDRRSlicerLib.scene.assumptions import settle
from DiffDRRSlicerLib.scene.carm import CArmNode
from DiffDRRSlicerLib.scene.errors import SceneError
from DiffDRRSlicerLib.scene.xrays import set_camera

_BETWEEN = re.compile(r"[\s,;\[\](){}]+")
_PASTED = "The pasted matrix"


def apply_matrix(carm: CArmNode, text: str, in_front=None, source_to_detector: float | None = None) -> None:
    """Give a C-arm the geometry of a pasted matrix; the size of its image stays.

    Args:
        text: 12 numbers row by row, a 3 x 4 projection matrix from world RAS (mm) to pixels (u, v), integers at
            pixel centres, known up to a factor; or 16, the same with a last row 0 0 0 1; or 9, the K of a camera, which
            leaves the pose as it is. Spaces, commas, semicolons, brackets and line ends separate.
        in_front: [3] world mm, a point inside the patient, which tells on which side of the source the detector is;
            None is the C-arm's isocentre.
        source_to_detector: mm; None keeps what it was.

    Raises SceneError, GeometryError or ReadError for anything else; nothing is changed then.
    """
    numbers = parse_numbers(text)
    distance = float(carm.camera.source_to_detector) if source_to_detector is None else source_to_detector
    if len(numbers) == 9:
        _apply_K(carm, np.reshape(numbers, (3, 3)), distance)
    elif len(numbers) == 12:
        _apply_projection(carm, np.reshape(numbers, (3, 4)), distance, in_front)
    elif len(numbers) == 16:
        _apply_projection(carm, _upper_rows(np.reshape(numbers, (4, 4))), distance, in_front)
    else:
        raise SceneError(
            f"The text has {len(numbers)} numbers; paste the 12 of a 3 x 4 projection matrix or the 9 of K, row by row."
        )
    if source_to_detector is not None:
        settle(carm, [words.DISTANCE])


def parse_numbers(text: str) -> list[float]:
    """The numbers of a text. Raises SceneError for a word that is none, for no numbers, and for NaN and infinity."""
    numbers = []
    for word in filter(None, _BETWEEN.split(text)):
        try:
            number = float(word)
        except ValueError as error:
            raise SceneError(f"'{word[:40]}' is not a number; paste the numbers of the matrix alone.") from error
        if not math.isfinite(number) or "_" in word:
            raise SceneError(f"'{word[:40]}' is not a finite number; paste the numbers of the matrix alone.")
        numbers.append(number)
    if not numbers:
        raise SceneError("There is no matrix in the text; paste the 12 numbers of a projection matrix or the 9 of K.")
    return numbers


def _upper_rows(matrix: np.ndarray) -> np.ndarray:
    """The upper 3 rows of a 4 x 4 matrix that cannot be mistaken for a pose."""
    scale = matrix[3, 3]
    if scale == 0 or np.abs(matrix[3] / scale - [0, 0, 0, 1]).max() > 1e-9:
        raise SceneError(
            "This 4 x 4 matrix is no projection: its last row must be 0 0 0 1. Paste the 3 x 4 projection matrix alone."
        )
    rows = matrix[:3, :3]
    gram = rows @ rows.T
    if np.abs(gram - np.eye(3) * np.trace(gram) / 3).max() <= 1e-3 * np.trace(gram) / 3:
        raise SceneError(
            "This 4 x 4 matrix is a pose (a rotation and a translation), not a projection to pixels; multiply it by K "
            "first, or set it as the C-arm's transform in the Transforms module."
        )
    return matrix[:3]


def _apply_K(carm: CArmNode, K: np.ndarray, distance: float) -> None:
    if K[2, 2] == 0:
        raise SceneError("This is no K: its last number must not be zero (the last row of K is 0 0 1).")
    old = carm.camera
    camera = Camera.from_intrinsics(K / K[2, 2], old.height, old.width, source_to_detector=distance)
    check_units(camera, _PASTED)
    set_camera(carm, camera)
    settle(carm, (words.SPACING, words.POINT, words.SIDE))


def _apply_projection(carm: CArmNode, P: np.ndarray, distance: float, in_front) -> None:
    old = carm.camera
    isocenter = carm.arm.isocenter  # raises where the pose could not be set
    in_front = np.array([float(value) for value in (isocenter if in_front is None else in_front)])
    if in_front.shape != (3,):
        raise SceneError(f"The point inside the patient is three numbers in mm, not {len(in_front)}.")
    camera, pose = from_projection_matrix(P, old.height, old.width, source_to_detector=distance, in_front=in_front)
    check_units(camera, _PASTED)
    depth = float(nodes.transformed(np.linalg.inv(pose.matrix.numpy()), in_front)[2])
    set_camera(carm, camera)
    carm.pose = pose
    carm.source_to_isocenter = depth
    carm.set_depth(depth)
    settle(carm, (words.SPACING, words.POINT, words.SIDE, *words.POSE))
