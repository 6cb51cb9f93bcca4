"""The real CTs and X-rays of the shared data folder, with the truth that comes with them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pydicom
import torch
from torch import Tensor

from DiffDRRCore import Camera, Pose, RegistrationResult, Volume, XRay, register
from DiffDRRCore.datasets.simulated import points_in_bone
from DiffDRRCore.geometry.converters import from_opencv, lps_to_ras
from DiffDRRCore.imaging import preprocess
from DiffDRRCore.registration import Limits
from DiffDRRCore.registration.masks.region import crop_to_volume
from DiffDRRCore.registration.masks.shadow import shadow_weights
from DiffDRRCore.similarity import LNCC

CT_FILES = {
    "chest": "chest_ct/cxr.nii.gz",
    "hips": "limb_ct/STS_001/ct.nii.gz",
    "hip": "limb_ct/STS_003/ct.nii.gz",
    "knee": "limb_ct/STS_010/ct.nii.gz",
    "pelvis": "pelvis_labels/ct.nii.gz",
}
FRAMES = (2, 99)
# The calibration files give focal lengths in pixels only. Any detector behind the wrist gives the same rays.
SOURCE_TO_DETECTOR = 1800.0
# The CT holds one bone, the X-ray a whole hand: local contrast is compared. All else is as it is by default.
WRIST_OPTIONS = {"similarity": LNCC(9)}
# A bone is a fifth of the X-ray's side: at the 24 pixels of a search that would be five.
WRIST_SEARCH = {"size": 48, "count": 256, "similarity": "gradient_ncc"}
# Rounds of a registration in the CT's shadow: mm around it on the detector, sizes, largest changes (degrees and mm).
SHADOW_ROUNDS = ((15.0, (96, 192), 20.0), (6.0, (192, 256), 8.0), (4.0, (256,), 8.0))
_DEPTH_DEVIATION, _LARGEST_DEPTH = 10.0, 30.0  # mm, of one view


@dataclass(frozen=True)
class Wrist:
    """The radius and its two X-rays at one frame; truth: each view's camera_to_world by the reference registration."""

    volume: Volume
    xrays: list[XRay]
    truth: list[Pose]
    targets: Tensor


def wrist(data: Path, frame: int) -> Wrist:
    """One frame of the biplane wrist."""
    folder = data / "wrist_biplane"
    reference = json.loads((folder / "reference.json").read_text(encoding="utf-8"))
    volume = Volume.read(folder / "ct" / "radius.nii.gz")
    motion = next(pose for pose in reference["reference_poses"] if pose["frame"] == frame)
    views = [_wrist_view(folder, reference["cameras"][f"cam{number}"], motion, frame, number) for number in (1, 2)]
    targets = points_in_bone(volume, threshold=0.0)
    return Wrist(volume, [xray for xray, _ in views], [pose for _, pose in views], targets)


def _wrist_view(folder: Path, calibration: dict, motion: dict, frame: int, number: int) -> tuple[XRay, Pose]:
    """X = R p + T brings the CT (LPS) to the calibration frame, and the calibration that to the camera."""
    R, t = _rotation(calibration["R"]), torch.tensor(calibration["t"]).double()
    bone_R, bone_T = _rotation(motion["R"]), torch.tensor(motion["T"]).double()
    size = (1760, 1760)
    extrinsics = (R @ bone_R, R @ bone_T + t)
    camera, pose = from_opencv(calibration["K"], *extrinsics, *size, source_to_detector=SOURCE_TO_DETECTOR)
    path = folder / "xray" / f"xr_rad_uln_cam{number:02d}_UND.{frame:04d}.tif"
    raw = XRay.read(path, camera=camera)
    raw = raw.with_image(raw.image, intensity="transmission")
    return preprocess(raw, i0=255.0), Pose(lps_to_ras(pose.matrix))


def _rotation(values) -> Tensor:
    """The nearest rotation: the files' matrices are rounded."""
    u, _, v = torch.linalg.svd(torch.tensor(values).double())
    return u @ v


def crop_wrist(case: Wrist, starts: list[Pose]) -> list[XRay]:
    """The X-rays of the first views, one a start, cut to the radius's shadow there, 30 mm wider at each side."""
    pairs = zip(case.xrays[: len(starts)], starts, strict=True)
    return [crop_to_volume(xray, case.volume, start, 30.0) for xray, start in pairs]


def register_in_shadow(volume: Volume, xrays: list[XRay], starts: list[Pose]) -> RegistrationResult:
    """Edges within the CT's shadow at the start are compared, then within that at the pose found, twice.

    One view hardly sees the depth, so a prior keeps it near the start's.
    """
    poses = starts
    for number, (margin, sizes, most) in enumerate(SHADOW_ROUNDS):
        alone = len(xrays) == 1
        limits = Limits(
            bounds=[most] * 5 + [_LARGEST_DEPTH if alone else most],
            deviations=[None] * 5 + [_DEPTH_DEVIATION if alone else None],
        )
        options = {"similarity": "gradient_ncc", "sizes": sizes, "limits": limits}
        options |= {"weights": shadow_weights(xrays, volume, poses, margin)} | ({"search": 0} if number else {})
        result = register(volume, xrays, poses, **options)
        poses = list(result.poses)
    return result


@dataclass(frozen=True)
class Scout:
    """The skull phantom's CT, its lateral localizer [H, W], and the ends [H, W, 3] of each pixel's ray.

    inside: [H, W], where the CT's field of view covers the image, less a rim.
    """

    volume: Volume
    image: Tensor
    source: Tensor
    target: Tensor
    inside: Tensor


def skull_scout(data: Path) -> Scout:
    """The localizer in push-broom geometry: a fan across y, parallel along z; numbers from its headers."""
    folder = data / "skull_phantom"
    header = pydicom.dcmread(next((folder / "localizer").iterdir()))
    image = torch.from_numpy(header.pixel_array.astype("float32"))
    rows, columns = (torch.arange(size).double() for size in image.shape)
    z = (916.5 - 0.9765625 * rows)[:, None].expand(image.shape)
    y = (-124.8 + 0.9765625 * columns)[None, :].expand(image.shape)
    source = torch.stack([torch.full_like(z, 570.0), torch.full_like(z, 124.71), z], dim=-1)
    plane = torch.stack([torch.zeros_like(z), y, z], dim=-1)
    target = source + (plane - source) * (1040.0 / 570.0)
    inside = torch.zeros(image.shape)
    inside[96:232, 150:360] = 1.0
    return Scout(Volume.read(folder / "ct_bone"), image, lps_to_ras(source), lps_to_ras(target), inside)


def scout_views(scout: Scout, rows: int = 8) -> tuple[list[XRay], list[Pose]]:
    """The localizer as strips of `rows` rows, each a pinhole's image with the source beside its middle; their poses.

    Within a strip a pinhole spreads z by the magnification, a push-broom does not. At the isocentre, where a row's
    height is told, the two agree; 80 mm from there they differ by half a millimetre at the edge of a strip of 8 rows.
    """
    inside = scout.inside.nonzero()
    (top, left), (bottom, right) = inside.amin(0).tolist(), (inside.amax(0) + 1).tolist()
    found = [_strip(scout, slice(row, row + rows), slice(left, right)) for row in range(top, bottom - rows + 1, rows)]
    return [xray for xray, _ in found], [pose for _, pose in found]


def _strip(scout: Scout, rows: slice, columns: slice) -> tuple[XRay, Pose]:
    """Square pixels at the detector are those of a row's height at the isocentre; the beam looks along +x (RAS)."""
    image, source, target = (part[rows, columns] for part in (scout.image, scout.source, scout.target))
    height, width = image.shape
    across, (sx, sy, _) = float(target[0, 0, 1] - target[0, 1, 1]), source[0, 0].tolist()
    distance, z = float(target[0, 0, 0]) - sx, float(source[:, 0, 2].mean())
    center = ((float(target[0, 0, 1]) - sy) / across, (height - 1) / 2)
    matrix = torch.tensor([[0.0, 0, 1, sx], [-1, 0, 0, sy], [0, -1, 0, z], [0, 0, 0, 1]]).double()
    return XRay(image, Camera(height, width, (across, across), distance, center)), Pose(matrix)
