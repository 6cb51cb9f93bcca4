"""The model of a calibration: pixels of known points as a function of camera, distortion and poses, with derivatives.

The unknowns are one vector x, zero at the start: offsets of the free intrinsics, of the distortion's coefficients (in a
basis that leaves out what camera and pose can explain), and six numbers for each free pose: a rotation vector and a
shift (mm) of the points about their centroid.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from DiffDRRCore.geometry import Camera, Pose
from DiffDRRCore.imaging.distortion import Distortion
from DiffDRRCore.imaging.distortion_grid import GridDistortion

Array = NDArray[np.float64]
INTRINSICS = {
    "source_to_detector": ("source_to_detector",),
    "principal_point": ("principal_point_u", "principal_point_v"),
    "pixel_size": ("pixel_size",),
    "pixel_ratio": ("pixel_ratio",),
}
"""The unknowns of each free part: mm; pixels; mm (of a row, the column's with it); column size over row size."""
_NEAREST = 1e-3  # mm from the source: what comes nearer in a step is held there
_SAMPLES = 15  # a side, of the image for the gauge


class Bundle:
    """Predicted pixels [V, N, 2] of N points in V images.

    Args:
        points: [N, 3] mm.
        camera, distortion: the start; distortion may be None.
        free: names of `INTRINSICS`, "poses", and groups of the distortion.
        to_camera: [V, 4, 4] reference_to_camera of each image; with poses of their own, all are the identity.
        starts: [B, 4, 4] points_to_reference at the start: of each image (B = V), or one for all (B = 1).
    """

    def __init__(
        self,
        points: Array,
        camera: Camera,
        distortion: Distortion | None,
        free: Sequence[str],
        to_camera: Array,
        starts: Array,
    ):
        self.camera, self.distortion = camera, distortion
        self.to_camera, self.block = to_camera, np.arange(len(to_camera)) if len(starts) > 1 else [0] * len(to_camera)
        self.names = [name for part, names in INTRINSICS.items() if part in free for name in names]
        self.coefficients = _freed(distortion, free)
        self.poses_free = "poses" in free
        self.start = _intrinsics(camera)
        self._skew = float(camera.K[0, 1])
        self._arms = np.einsum("bij,nj->bni", starts[:, :3, :3], points - points.mean(0))
        self._pivots = starts[:, :3, :3] @ points.mean(0) + starts[:, :3, 3]
        self._centroid, self._starts = points.mean(0), starts
        self.basis = self._gauge_free() if len(self.coefficients) else np.zeros((0, 0))
        self.shared = len(self.names) + self.basis.shape[1]
        self.size = self.shared + 6 * len(starts) * self.poses_free

    def intrinsics(self, x: Array) -> dict[str, float]:
        """SDD, principal point, pixel size and ratio."""
        return self.start | {name: self.start[name] + float(x[k]) for k, name in enumerate(self.names)}

    def all_coefficients(self, x: Array) -> Array:
        """[P] of the distortion."""
        values = self.distortion.coefficients.detach().numpy().copy()
        values[self.coefficients] += self.basis @ x[len(self.names) : self.shared]
        return values

    def camera_of(self, x: Array) -> Camera:
        """The camera at x."""
        value = self.intrinsics(x)
        K = np.array(self._K(value))
        return Camera.from_intrinsics(
            K, self.camera.height, self.camera.width, source_to_detector=value["source_to_detector"]
        )

    def distortion_of(self, x: Array) -> Distortion | None:
        """The distortion at x."""
        return None if self.distortion is None else self.distortion.with_coefficients(self.all_coefficients(x))

    def points_to_reference(self, x: Array) -> Array:
        """[B, 4, 4]"""
        turns, shifts = self._motion(x)
        result = np.tile(np.eye(4), (len(self._starts), 1, 1))
        result[:, :3, :3] = turns @ self._starts[:, :3, :3]
        result[:, :3, 3] = self._pivots + shifts - result[:, :3, :3] @ self._centroid
        return result

    def poses_of(self, x: Array) -> list[Pose]:
        """camera_to_world of each image, world being the points' own frame."""
        world_to_camera = self.to_camera @ self.points_to_reference(x)[self.block]
        return [Pose(matrix).inverse() for matrix in world_to_camera]

    def predict(self, x: Array) -> tuple[Array, Array]:
        """Pixels [V, N, 2] and their derivatives [V, N, 2, size]."""
        local, by_pose = self._local(x)
        depth = np.maximum(local[..., 2], _NEAREST)
        plane = local[..., :2] / depth[..., None]
        value = self.intrinsics(x)
        K = np.array(self._K(value))
        uv = plane @ K[:2, :2].T + K[:2, 2]
        by_plane = np.broadcast_to(K[:2, :2], (*plane.shape[:2], 2, 2))
        jacobian = np.zeros((*uv.shape, self.size))
        for k, name in enumerate(self.names):
            jacobian[..., k] = _by_intrinsic(name, plane, K, value)
        if self.poses_free:
            to_plane = np.zeros((*plane.shape[:2], 2, 3))
            to_plane[..., 0, 0] = to_plane[..., 1, 1] = 1 / depth
            to_plane[..., 2] = -plane / depth[..., None]
            block = by_plane @ to_plane @ by_pose
            for view, place in enumerate(self.block):
                first = self.shared + 6 * place
                jacobian[view, ..., first : first + 6] = block[view]
        return (uv, jacobian) if self.distortion is None else self._distorted(x, uv, jacobian)

    def _distorted(self, x: Array, uv: Array, jacobian: Array) -> tuple[Array, Array]:
        distortion, flat = self.distortion_of(x), torch.from_numpy(uv.reshape(-1, 2))
        slope = distortion.jacobian(flat).numpy().reshape(*uv.shape, 2)
        jacobian = slope @ jacobian
        observed = distortion.distort(flat).numpy().reshape(uv.shape)
        if len(self.coefficients):
            fields = distortion.fields(flat).numpy()[..., self.coefficients] @ self.basis
            jacobian[..., len(self.names) : self.shared] = fields.reshape(*uv.shape, -1)
        return observed, jacobian

    def _local(self, x: Array) -> tuple[Array, Array]:
        """Points in the camera frame [V, N, 3], and their derivatives by pose [V, N, 3, 6]."""
        turns, shifts = self._motion(x)
        turned = np.einsum("bij,bnj->bni", turns, self._arms)
        reference = (turned + (self._pivots + shifts)[:, None])[self.block]
        rotation = self.to_camera[:, None, :3, :3]
        local = (rotation @ reference[..., None])[..., 0] + self.to_camera[:, None, :3, 3]
        if not self.poses_free:
            return local, np.zeros((*local.shape, 6))
        left = np.stack([_left_jacobian(xi[:3]) for xi in self._twists(x)])
        by_turn = -_cross(turned) @ left[:, None]
        by_pose = np.concatenate([by_turn, np.broadcast_to(np.eye(3), by_turn.shape)], axis=-1)
        return local, rotation @ by_pose[self.block]

    def _twists(self, x: Array) -> Array:
        return x[self.shared :].reshape(-1, 6) if self.poses_free else np.zeros((len(self._starts), 6))

    def _motion(self, x: Array) -> tuple[Array, Array]:
        twists = self._twists(x)
        return Rotation.from_rotvec(twists[:, :3]).as_matrix(), twists[:, 3:]

    def _K(self, value: dict[str, float]) -> list[list[float]]:
        side = np.sign(float(self.camera.K[0, 0]))
        row, column = value["pixel_size"], value["pixel_size"] * value["pixel_ratio"]
        distance = value["source_to_detector"]
        return [
            [side * distance / column, self._skew, value["principal_point_u"]],
            [0.0, distance / row, value["principal_point_v"]],
            [0.0, 0.0, 1.0],
        ]

    def _gauge_free(self) -> Array:
        """[P, Q]: an orthonormal basis of the coefficients that are free.

        A grid could turn, shift or scale the image as camera and poses can, too. What is free of it has no such part
        over the image, in least squares: then the camera is the pinhole that fits the image best.
        """
        count = len(self.coefficients)
        if not isinstance(self.distortion, GridDistortion):
            return np.eye(count)
        steps = [
            torch.linspace(0, size - 1, _SAMPLES, dtype=torch.float64)
            for size in (self.camera.width, self.camera.height)
        ]
        uv = torch.cartesian_prod(*steps)
        K = np.array(self._K(self.start))
        plane = (uv.numpy() - K[:2, 2]) @ np.linalg.inv(K[:2, :2]).T
        explained = [_by_intrinsic(name, plane, K, self.start) for name in self.names]
        if self.poses_free:
            a, b = plane.T
            turns = [(-a * b, -1 - b * b), (1 + a * a, a * b), (-b, a)]
            explained += [np.stack(turn, axis=-1) @ K[:2, :2].T for turn in turns]
        if not explained:
            return np.eye(count)
        fields = self.distortion.fields(uv).numpy().reshape(-1, count)
        explained = np.stack([one.ravel() / np.linalg.norm(one) for one in explained])
        _, size, rows = np.linalg.svd(explained @ fields)
        rank = int((size > 1e-8 * size[0]).sum())
        return rows[rank:].T


def _intrinsics(camera: Camera) -> dict[str, float]:
    row, column = camera.pixel_spacing.detach().tolist()
    u, v = camera.principal_point.detach().tolist()
    return {
        "source_to_detector": float(camera.source_to_detector.detach()),
        "principal_point_u": u,
        "principal_point_v": v,
        "pixel_size": row,
        "pixel_ratio": column / row,
    }


def _freed(distortion: Distortion | None, free: Sequence[str]) -> list[int]:
    if distortion is None:
        return []
    return [index for name, indices in distortion.groups.items() if name in free for index in indices]


def _by_intrinsic(name: str, plane: Array, K: Array, value: dict[str, float]) -> Array:
    """Derivative [..., 2] of the ideal pixel."""
    result = np.zeros_like(plane)
    x, y = K[0, 0] * plane[..., 0], K[1, 1] * plane[..., 1]
    if name == "principal_point_u":
        result[..., 0] = 1
    elif name == "principal_point_v":
        result[..., 1] = 1
    elif name == "pixel_ratio":
        result[..., 0] = -x / value["pixel_ratio"]
    else:
        result[..., 0], result[..., 1] = x, y
        result *= (1 if name == "source_to_detector" else -1) / value[name]
    return result


def _cross(vectors: Array) -> Array:
    """[..., 3, 3] with M w = v x w."""
    x, y, z = np.moveaxis(vectors, -1, 0)
    zero = np.zeros_like(x)
    rows = [np.stack(row, axis=-1) for row in ((zero, -z, y), (z, zero, -x), (-y, x, zero))]
    return np.stack(rows, axis=-2)


def _left_jacobian(rotvec: Array) -> Array:
    """J with exp(w + dw) = exp(J dw) exp(w) (Sola et al., A micro Lie theory, 2018, eq. 145)."""
    angle, turn = np.linalg.norm(rotvec), _cross(rotvec)
    if angle < 1e-6:
        return np.eye(3) + turn / 2
    square = angle**2
    return np.eye(3) + (1 - np.cos(angle)) / square * turn + (angle - np.sin(angle)) / (square * angle) * turn @ turn
