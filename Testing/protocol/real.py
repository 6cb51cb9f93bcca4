"""The real CTs and X-rays of the shared data folder, with the truth that comes with them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pydicom
import torch
from torch import Tensor

from DiffDRRCore import Pose, Volume, XRay
from DiffDRRCore.datasets.simulated import points_in_bone
from DiffDRRCore.geometry.converters import from_opencv, lps_to_ras
from DiffDRRCore.imaging import preprocess
from DiffDRRCore.registration.masks.region import crop_to_volume
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
    """The X-rays cut to the radius's shadow at the starts, 30 mm wider on the detector at each side."""
    return [crop_to_volume(xray, case.volume, start, 30.0) for xray, start in zip(case.xrays, starts, strict=True)]


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
