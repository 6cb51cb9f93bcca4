"""Small HDF5 files with the published layouts of DeepFluoro and Ljubljana: beads, projected by hand in float64 numpy.

Nothing here calls what it tests: matrices, blobs and images come from numpy and scipy alone.
"""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
from scipy.spatial.transform import Rotation

LABELS = (
    "left-hemipelvis",
    "right-hemipelvis",
    "vertebrae",
    "upper-sacrum",
    "left-femur",
    "right-femur",
    "lower-sacrum",
)
I0 = 65487.0
CENTER = np.array([12.0, -31.0, -940.0])  # of the volumes, in the world of the file
# Beads by name, mm from CENTER.
PELVIS = {
    "FH-l": np.array([23.1, 4.7, -14.2]),
    "FH-r": np.array([-25.3, 7.9, -2.6]),
    "ASIS-l": np.array([3.2, -21.3, 27.7]),
    "GSN-r": np.array([-10.9, -24.8, -24.1]),
}
FEMURS = {"left-femur": np.array([4.3, 26.2, 1.4]), "right-femur": np.array([-22.4, 18.6, 26.8])}
# The same on voxel centres of Ljubljana's grid, where beads stay symmetric when small values are cut off.
LJUBLJANA_SPACING = np.array([2.6, 1.9, 2.2])  # along x, y, z
VESSELS = (np.floor(np.stack(list(PELVIS.values())) / LJUBLJANA_SPACING) + 0.5) * LJUBLJANA_SPACING
BLOB_VOXELS = 1.3  # standard deviation of a bead in the volume
BLOB_PIXELS = 1.3  # and in the image
DEPTH = 1.5  # line integral at the middle of a bead
OBLIQUE = Rotation.from_euler("xyz", [20, -35, 50], degrees=True).as_matrix()


def rigid(angles, translation) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    matrix[:3, 3] = translation
    return matrix


def pixel(projection: np.ndarray, point) -> np.ndarray:
    """(u, v) of a point by a 3 x 4 matrix."""
    w = projection @ np.append(np.asarray(point, np.float64).ravel(), 1.0)
    return w[:2] / w[2]


def deepfluoro_projection(file: h5py.File, specimen: str, projection: str, body: str = "pelvis") -> np.ndarray:
    """The dataset's own matrices as they are: K @ extrinsic @ inverse(cam-to-volume), LPS mm to stored pixels."""
    world_to_volume = file[f"{specimen}/projections/{projection}/gt-poses/cam-to-{body}-vol"][()].astype(np.float64)
    extrinsic = file["proj-params/extrinsic"][()].astype(np.float64)
    K = file["proj-params/intrinsic"][()].astype(np.float64)
    return K @ (extrinsic @ np.linalg.inv(world_to_volume))[:3]


def ljubljana_projection(file: h5py.File, subject: str, view: str) -> np.ndarray:
    """The dataset's own matrices as they are: K @ extrinsic, mm to pixels."""
    group = file[f"{subject}/proj-{view}"]
    return group["intrinsic"][()].astype(np.float64) @ group["extrinsic"][()].astype(np.float64)[:3]


def blobs_3d(shape, ijk_to_world: np.ndarray, points) -> np.ndarray:
    """[K, J, I], Gaussian beads of height 1 at points (mm), BLOB_VOXELS wide along every axis."""
    k, j, i = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    total = np.zeros(shape)
    for point in points:
        at = np.linalg.solve(ijk_to_world, np.append(point, 1.0))[:3]
        total += np.exp(-((i - at[0]) ** 2 + (j - at[1]) ** 2 + (k - at[2]) ** 2) / (2 * BLOB_VOXELS**2))
    return total


def blobs_2d(size, pixels) -> np.ndarray:
    """[H, W], Gaussian beads of height 1 at pixels (u, v)."""
    v, u = np.mgrid[: size[0], : size[1]]
    return sum(np.exp(-((u - p[0]) ** 2 + (v - p[1]) ** 2) / (2 * BLOB_PIXELS**2)) for p in pixels)


def centroid(image, around, radius: int = 5) -> np.ndarray:
    """(u, v) of the centre of mass of the values (>= 0) in a round window about a pixel."""
    image = np.asarray(image, np.float64)
    v, u = np.mgrid[: image.shape[0], : image.shape[1]]
    weights = image * ((u - around[0]) ** 2 + (v - around[1]) ** 2 <= radius**2)
    return np.array([(weights * u).sum(), (weights * v).sum()]) / weights.sum()


def centroid_3d(values, around, radius: int = 5) -> np.ndarray:
    """(i, j, k) of the centre of mass of the values (>= 0) about a voxel."""
    values = np.asarray(values, np.float64)
    k, j, i = np.meshgrid(*(np.arange(n) for n in values.shape), indexing="ij")
    near = (i - around[0]) ** 2 + (j - around[1]) ** 2 + (k - around[2]) ** 2 <= radius**2
    weights = values * near
    return np.array([(weights * axis).sum() for axis in (i, j, k)]) / weights.sum()


def write_deepfluoro(
    path: Path,
    specimens=("18-0725", "17-1882"),
    size=(92, 104),
    dtype=np.float32,
    direction=OBLIQUE,
    spacing=(1.7, 2.3, 2.9),
    principal_point=(53.8, 44.1),
) -> Path:
    """Three projections a specimen; "001" lies upside down, and the left femur is well seen in "000" and "001"."""
    K = np.array([[-1020 / 2.2, 0, principal_point[0]], [0, -1020 / 2.6, principal_point[1]], [0, 0, 1]])
    extrinsic = rigid([31, -12, 47], [15, -40, 230])
    with h5py.File(path, "w") as file:
        parameters = file.create_group("proj-params")
        parameters["extrinsic"], parameters["intrinsic"] = extrinsic.astype(dtype), K.astype(dtype)
        parameters["num-rows"], parameters["num-cols"] = np.uint64(size[0]), np.uint64(size[1])
        parameters["pixel-row-spacing"], parameters["pixel-col-spacing"] = dtype(2.6), dtype(2.2)
        for number, specimen in enumerate(specimens):
            _write_volume(file.create_group(specimen), dtype, np.asarray(direction), np.asarray(spacing))
            for index, angles in enumerate(([95, 4, 8], [-80, 12 + number, 185], [70, 25, -38])):
                _write_projection(file, specimen, index, angles, extrinsic, size, dtype)
    return path


def _write_volume(group: h5py.Group, dtype, direction: np.ndarray, spacing: np.ndarray) -> None:
    shape = tuple(int(n) for n in np.ceil(104 / spacing[::-1]))
    ijk_to_lps = np.eye(4)
    ijk_to_lps[:3, :3] = direction * spacing
    ijk_to_lps[:3, 3] = CENTER - ijk_to_lps[:3, :3] @ ((np.array(shape[::-1]) - 1) / 2)
    beads = [CENTER + offset for offset in (*PELVIS.values(), *FEMURS.values())]
    hu = -1000 + 900 * blobs_3d(shape, ijk_to_lps, beads)
    labels = np.zeros(shape, np.uint8)
    for number, offset in [*((1, p) for p in PELVIS.values()), *zip((5, 6), FEMURS.values(), strict=True)]:
        labels[blobs_3d(shape, ijk_to_lps, [CENTER + offset]) > 1e-4] = number
    for name, pixels in (("vol", hu.astype(np.float32)), ("vol-seg/image", labels)):
        _write_image(group.create_group(name), pixels, direction, ijk_to_lps[:3, 3], spacing, dtype)
    for number, name in enumerate(LABELS, start=1):
        group[f"vol-seg/labels-def/{number}"] = name
    for name, offset in PELVIS.items():
        group[f"vol-landmarks/{name}"] = (CENTER + offset)[:, None].astype(dtype)


def _write_image(group: h5py.Group, pixels: np.ndarray, direction, origin, spacing, dtype) -> None:
    group["pixels"], group["dir-mat"] = pixels, np.asarray(direction, dtype)
    group["origin"], group["spacing"] = np.asarray(origin, dtype)[:, None], np.asarray(spacing, dtype)[:, None]


def _write_projection(file: h5py.File, specimen: str, index: int, angles, extrinsic, size, dtype) -> None:
    group = file.create_group(f"{specimen}/projections/{index:03d}")
    camera_to_lps = rigid(angles, [0, 0, 0])
    camera_to_lps[:3, 3] = CENTER + 640 * camera_to_lps[:3, 2] + [3, -2, 4]  # z points from the patient to the source
    pelvis = camera_to_lps @ extrinsic
    group["gt-poses/cam-to-pelvis-vol"] = pelvis.astype(dtype)
    for body, turn in (("left-femur", [9, -6, 4]), ("right-femur", [-7, 3, 11])):
        about = rigid([0, 0, 0], np.add(CENTER, [0, 5, 0]))
        moved = about @ rigid(turn, [2, -3, 4]) @ np.linalg.inv(about) @ pelvis
        group[f"gt-poses/cam-to-{body}-vol"] = moved.astype(dtype)
        group[f"gt-poses/{body}-good-fov"] = np.uint8(body == "left-femur" and index < 2)
    group["rot-180-for-up"] = np.uint8(index == 1)
    seen = {name: deepfluoro_projection(file, specimen, f"{index:03d}", name) for name in ("pelvis", *FEMURS)}
    beads = {name: pixel(seen["pelvis"], CENTER + offset) for name, offset in PELVIS.items()}
    femurs = {body: pixel(seen[body], CENTER + offset) for body, offset in FEMURS.items()}
    for name, uv in {**beads, "MOF-l": [-30.0, 12.0], "SPS-r": [2.0, 3.0]}.items():  # outside, and near the corner
        group[f"gt-landmarks/{name}"] = np.asarray(uv, dtype)[:, None]
    depth = DEPTH * blobs_2d(size, [*beads.values(), *femurs.values()])
    seg = np.zeros(size, np.uint8)
    for number, uv in [*((1, uv) for uv in beads.values()), (5, femurs["left-femur"]), (6, femurs["right-femur"])]:
        seg[blobs_2d(size, [uv]) > 0.3] = number
    flat = (np.eye(2), np.zeros(2), (2.2, 2.6), dtype)
    _write_image(group.create_group("image"), (I0 * np.exp(-depth)).astype(np.float32), *flat)
    _write_image(group.create_group("gt-seg"), seg, *flat)


def write_ljubljana(path: Path, subjects: int = 2, dtype=np.float64, maxima: bool = True) -> Path:
    """Beads as vessels: 3D values of up to 3000 on a background of 500, images darker there by up to 0.8."""
    shape, spacing, size = (34, 44, 38), LJUBLJANA_SPACING, (92, 104)
    with h5py.File(path, "w") as file:
        for number in range(1, subjects + 1):
            group = file.create_group(f"subject{number:02d}")
            origin = CENTER - spacing * (np.array(shape) - 1) / 2
            axes = [first + step * np.arange(n) for first, step, n in zip(origin, spacing, shape, strict=True)]
            x, y, z = np.meshgrid(*axes, indexing="ij")
            values = np.full(shape, 500.0)
            for offset in VESSELS:
                p = CENTER + offset
                squares = sum(((axis - q) / s) ** 2 for axis, q, s in zip((x, y, z), p, spacing, strict=True))
                values = np.maximum(values, 3000 * np.exp(-squares / (2 * BLOB_VOXELS**2)))
            group["volume/pixels"] = values[::-1].astype(np.float32)  # the first index runs against x
            group["volume/spacing"], group["volume/origin"] = spacing.astype(dtype), origin.astype(dtype)
            group["points"] = (CENTER + VESSELS).astype(dtype)
            for view, angles, focal in (("ap", [94, 5 * number, 10], 1195.0), ("lat", [88, 84, -14], 1210.0)):
                for name in (view, f"{view}-max") if maxima else (view,):
                    _write_view(group.create_group(f"proj-{name}"), file, name, angles, focal, size, dtype)
    return path


def _write_view(group: h5py.Group, file: h5py.File, name: str, angles, focal: float, size, dtype) -> None:
    camera_to_world = rigid(angles, [0, 0, 0])
    camera_to_world[:3, 3] = CENTER + 750 * camera_to_world[:3, 2] + [1, 2, -3]
    group["extrinsic"] = np.linalg.inv(camera_to_world).astype(dtype)
    group["intrinsic"] = np.array([[-focal / 2.2, 0, 50.7], [0, -focal / 2.2, 47.9], [0, 0, 1]]).astype(dtype)
    group["row-spacing"], group["col-spacing"] = dtype(2.2), dtype(2.2)
    beads = [pixel(ljubljana_projection(file, group.parent.name[1:], name), CENTER + offset) for offset in VESSELS]
    image = 0.25 - 0.8 * blobs_2d(size, beads)
    image[blobs_2d(size, beads) < 1e-6] = 0.25
    image[0, :7] = 0.9  # brighter than the background, as where something moved
    group["pixels"] = image.astype(np.float32)


def read_everything(dataset) -> float:
    """The sum of all pixels of all subjects: what a worker process does."""
    return sum(float(view.xray.image.double().sum()) for subject in dataset.subjects for view in subject.views)
