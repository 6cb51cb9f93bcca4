"""How far an estimated pose is from the true one. The papers disagree on these measures; the formulas are here.

Throughout, `estimate` and `truth` are camera poses (`camera_to_world`), one or a batch of B, and T = inverse of such a
pose is the map from the CT's world (RAS, mm) into the camera frame: x to the right as seen from the source, y down the
image, z from source to detector. `targets` are the world points x_1 ... x_N that matter, [N, 3] or [B, N, 3] in mm.
Every result has the batch first, with B = 1 for single poses.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from DiffDRRCore.errors import GeometryError
from DiffDRRCore.geometry.camera import Camera
from DiffDRRCore.geometry.converters.diffdrr import diffdrr_extrinsic
from DiffDRRCore.geometry.pose import Pose
from DiffDRRCore.geometry.se3 import log_so3
from DiffDRRCore.geometry.tensors import as_tensor, promote, transform_points

EXTRA_MEASURES = ("xvr_mtre_mm", "diffpose_mtre_mm")


class TargetErrors(NamedTuple):
    """Displacements of targets in the camera frame, in mm.

    `vectors` [B, N, 3] is T_estimate(x_i) - T_true(x_i). The means over the targets, each [B]: `total` of its length
    (the mTRE), `in_plane` of the length of its part parallel to the detector, `depth` of the absolute part along z.
    """

    vectors: Tensor
    total: Tensor
    in_plane: Tensor
    depth: Tensor


class RotationErrors(NamedTuple):
    """Parts of a rotation error in degrees, each [B]; total^2 = in_plane^2 + out_of_plane^2.

    `in_plane` about the true camera's z axis, the beam: it turns the image. `out_of_plane` about an axis in the
    detector's plane: it changes what the image shows.
    """

    total: Tensor
    in_plane: Tensor
    out_of_plane: Tensor


class DoubleGeodesic(NamedTuple):
    """`rotation` and `translation`, and `total` = sqrt(rotation^2 + translation^2); each [B] in mm."""

    rotation: Tensor
    translation: Tensor
    total: Tensor


def target_registration_error(estimate: Pose, truth: Pose, targets) -> Tensor:
    """Mean target registration error (mTRE) in mm, [B]: (1/N) sum_i |T_estimate(x_i) - T_true(x_i)|.

    T maps the world into the camera, so this is how far the registration misplaces the patient's targets in the frame
    of the C-arm; |T_true^-1 T_estimate x_i - x_i|, the same distance seen in the patient, is equal to it. It is the
    definition of E. B. van de Kraats et al., "Standardized evaluation methodology for 2-D-3-D registration", IEEE
    Transactions on Medical Imaging 24(9), 2005.

    xvr and DiffPose call other things mTRE: see `xvr_target_registration_error`, by which turning the C-arm by 1 degree
    about an isocentre 850 mm away is 14.84 mm while targets 50 mm around the isocentre move by less than 1 mm, and
    `diffpose_target_registration_error`. Numbers of different definitions must not be compared.
    Raises GeometryError for targets that are not [N, 3] or [B, N, 3] and for batches that do not fit.
    """
    return components(estimate, truth, targets).total


def components(estimate: Pose, truth: Pose, targets) -> TargetErrors:
    """The target registration errors along the axes of the true camera, and their means.

    One view determines the part parallel to the detector well and the depth badly, so they are worth telling apart.
    Raises GeometryError as `target_registration_error`.
    """
    estimated, true = _in_camera(estimate, truth, targets)
    vectors = estimated - true
    return TargetErrors(
        vectors=vectors,
        total=_length(vectors).mean(dim=-1),
        in_plane=_length(vectors[..., :2]).mean(dim=-1),
        depth=vectors[..., 2].abs().mean(dim=-1),
    )


def reprojection_error(estimate: Pose, truth: Pose, camera: Camera, targets, at: str = "detector") -> Tensor:
    """Mean reprojection error (mRPE) in mm, [B]: the distance between the projections of a target by both poses.

    With (x, y, z) = T(x_i) and SDD the source-to-detector distance, a target's projection lies at q = SDD (x/z, y/z) mm
    on the detector (at (x, y) in a parallel beam).

    Args:
        at: "detector" for (1/N) sum_i |q_estimate - q_true|; "object" for the same distance brought back to the
            target, (1/N) sum_i (z_true / SDD) |q_estimate - q_true|, which does not grow with magnification and can be
            compared with the in-plane part of the mTRE. (Van de Kraats et al., 2005, measure the latter at a right
            angle to the ray and not in the plane; for errors small against z the two differ by the ray's obliquity.)

    A target level with the source or behind it, by either pose, makes the mean NaN, as it has no projection.
    Raises GeometryError as `target_registration_error`, and for an unknown `at`.
    """
    if at not in ("detector", "object"):
        raise GeometryError(f"A reprojection error is taken at the 'detector' or at the 'object', got {at!r}.")
    estimated, true = _in_camera(estimate, truth, targets)
    if camera.parallel:
        return _length((estimated - true)[..., :2]).mean(dim=-1)
    at_unit_depth = _length(_on_plane(estimated) - _on_plane(true))
    distance = camera.source_to_detector.to(true)[..., None] if at == "detector" else true[..., 2]
    return (distance * at_unit_depth).mean(dim=-1)


def rotation_error(estimate: Pose, truth: Pose) -> Tensor:
    """The angle of R_estimate^T R_true in degrees, [B], from 0 to 180; the same wherever a frame has its origin.

    atan2(sin, cos) of the relative rotation: accurate for small angles, where arccos of the trace is not.
    """
    a, b = _paired(estimate, truth)
    relative = a[:, :3, :3].mT @ b[:, :3, :3]
    skew = relative - relative.mT
    axis = torch.stack([skew[:, 2, 1], skew[:, 0, 2], skew[:, 1, 0]], dim=-1)
    trace = relative.diagonal(dim1=-2, dim2=-1).sum(dim=-1)
    return torch.atan2(_length(axis), trace - 1) * (180 / math.pi)


def rotation_components(estimate: Pose, truth: Pose) -> RotationErrors:
    """The rotation error split by the rotation vector w of R_estimate^T R_true, in the true camera's axes.

    That is the rotation the patient seems to have made before the true camera (w is the same in both cameras' axes,
    as a rotation leaves its own axis alone): in_plane = |w_z|, out_of_plane = |(w_x, w_y)|.
    """
    a, b = _paired(estimate, truth)
    w = log_so3(a[:, :3, :3].mT @ b[:, :3, :3]) * (180 / math.pi)
    return RotationErrors(rotation_error(estimate, truth), w[:, 2].abs(), _length(w[:, :2]))


def translation_error(estimate: Pose, truth: Pose, point) -> Tensor:
    """How far a world point p is misplaced, in mm, [B]: |T_estimate(p) - T_true(p)|.

    The translation between two poses is a different number at each point where it is taken, so the point has to be
    said: [3] or [B, 3], in world mm, mostly the anatomy's centre. It is not the distance between the two source
    positions, which a rotation about the anatomy makes large.
    """
    return components(estimate, truth, as_tensor(point)[..., None, :]).total


def double_geodesic(estimate: Pose, truth: Pose, source_to_detector, isocenter) -> DoubleGeodesic:
    """The double geodesic distance of DiffDRR and xvr, in mm.

    rotation = (SDD / 2) angle(R_estimate^T R_true) with the angle in radians: an arc at half the source-to-detector
    distance; translation = |R_estimate^T (c_estimate - o) - R_true^T (c_true - o)| with c the source and o the
    isocentre, which is |T_estimate(o) - T_true(o)|.
    Source: V. Gopalakrishnan et al., CVPR 2024; `DoubleGeodesicSE3` of diffdrr.metrics (there with eps under the root).

    Args:
        source_to_detector: SDD in mm, a number or [B].
        isocenter: o [3] or [B, 3], in world mm. DiffDRR moves the CT's centre to the origin: there it is that.
    """
    angle = rotation_error(estimate, truth) * (math.pi / 180)
    rotation = as_tensor(source_to_detector).to(angle) / 2 * angle
    translation = translation_error(estimate, truth, isocenter)
    return DoubleGeodesic(rotation, translation, _length(torch.stack([rotation, translation], dim=-1)))


def xvr_target_registration_error(
    estimate: Pose, truth: Pose, targets, volume_center, orientation: str | None = "AP"
) -> Tensor:
    """What xvr prints as mTRE, in mm, [B]: (1/N) sum_i |E_estimate(x_i - c) - E_true(x_i - c)|.

    E is DiffDRR's pose, `diffdrr_extrinsic`: camera-to-world, before `orientation` is applied, in RAS shifted so
    that the CT's centre c is the origin. Ours applies the inverse, world-to-camera. This one takes the targets for
    points of the (not yet oriented) camera's frame, so a rotation error counts with the distance to the source and
    not with the size of the anatomy: 1 degree of orbit about an isocentre 850 mm away is 14.84 mm, where targets
    50 mm around it move by 0.58 mm. Where both poses have the same rotation the two definitions agree. It depends on
    where the CT's centre lies and on the orientation. Neither does it agree with DiffPose's.
    Source: `Evaluator` of xvr.metrics, `scripts/evaluate.py` (2026), which brings all data sets to "AP".

    Args:
        volume_center: c [3], RAS mm of the grid's centre (`Volume.center`); zero for center_volume=False.
        orientation: DiffDRR's "AP", "PA" or None.
    """
    estimated, true = (Pose(diffdrr_extrinsic(pose, orientation, volume_center)) for pose in (estimate, truth))
    a, b = _paired(estimated, true)
    a, b, points = promote(a, b, as_tensor(_checked(targets, len(a))) - as_tensor(volume_center).to(a))
    return _length(transform_points(a, points) - transform_points(b, points)).mean(dim=-1)


def diffpose_target_registration_error(
    estimate: Pose, truth: Pose, camera: Camera, targets, factor: float | None = None
) -> Tensor:
    """What DiffPose prints as mTRE, [B]: factor (1/N) sum_i |P_estimate(q_estimate,i) - P_true(q_true,i)|.

    q = SDD (x/z, y/z, 1), with (x, y, z) = T(x_i), is where the target's ray meets the detector, in the pose's own
    camera, and P the camera-to-world pose that puts it into the room. So it is the distance in the room, in mm,
    between two points on two detectors; DiffPose takes it for pixels and multiplies it by the pixel size. Without
    that (factor=1) it is what xvr prints as mRPE. The detector moves with the pose, so a C-arm 1 mm too far to the
    side is 0.194 (SDD/z - 1), 0.04 mm for SDD = 1020 mm and z = 850 mm, and 1 mm along the beam about 0.194 mm, where
    ours says 1 mm for both. It depends on no origin.
    Source: `Evaluator` of diffpose.deepfluoro and of diffpose.ljubljana (2025).

    Args:
        factor: None is the size of a pixel of the (full-size) camera in mm, as in DiffPose: 0.194 for DeepFluoro, 0.154
            for Ljubljana.

    A target level with the source or behind it, by either pose, makes the mean NaN.
    """
    a, b = _paired(estimate, truth)
    factor = camera.pixel_spacing.to(a).mean(dim=-1) if factor is None else factor
    distance = camera.source_to_detector.to(a)[..., None, None]
    on_detector = [
        torch.cat([xy, torch.ones_like(xy[..., :1])], dim=-1) * distance
        for xy in map(_on_plane, _in_camera(estimate, truth, targets))
    ]
    a, b, *on_detector = promote(a, b, *on_detector)
    return factor * _length(transform_points(a, on_detector[0]) - transform_points(b, on_detector[1])).mean(dim=-1)


def pose_errors(
    estimate: Pose, truth: Pose, camera: Camera, targets, extra: Sequence[str] = (), volume_center=None
) -> dict[str, Tensor]:
    """All measures of this module for a report, each [B], named with their unit.

    `translation_mm`, its parts and `double_geodesic_mm` are taken at the mean of the targets. Parts combine as
    rotation^2 = in_plane^2 + out_of_plane^2 and translation^2 = in_plane^2 + depth^2; those of the mTRE are means
    over the targets each for itself, so they do not.

    Args:
        extra: names of `EXTRA_MEASURES`, the peers' own definitions, to have as well: "xvr_mtre_mm", which needs
            `volume_center`, and "diffpose_mtre_mm" (`camera` is that of the full-size X-ray).
        volume_center: [3], RAS mm of the CT's centre.

    Raises GeometryError as `target_registration_error`, for an unknown name, and for a missing `volume_center`.
    """
    targets = as_tensor(targets)
    split = components(estimate, truth, targets)
    rotation = rotation_components(estimate, truth)
    center = targets.mean(dim=-2)
    at_center = components(estimate, truth, center[..., None, :])
    return {
        "mtre_mm": split.total,
        "mtre_in_plane_mm": split.in_plane,
        "mtre_depth_mm": split.depth,
        "mrpe_detector_mm": reprojection_error(estimate, truth, camera, targets, at="detector"),
        "mrpe_object_mm": reprojection_error(estimate, truth, camera, targets, at="object"),
        "rotation_deg": rotation.total,
        "rotation_in_plane_deg": rotation.in_plane,
        "rotation_out_of_plane_deg": rotation.out_of_plane,
        "translation_mm": at_center.total,
        "translation_in_plane_mm": at_center.in_plane,
        "translation_depth_mm": at_center.depth,
        "double_geodesic_mm": double_geodesic(estimate, truth, camera.source_to_detector, center).total,
        **{name: _extra(name, estimate, truth, camera, targets, volume_center) for name in extra},
    }


def _extra(name: str, estimate: Pose, truth: Pose, camera: Camera, targets: Tensor, volume_center) -> Tensor:
    if name not in EXTRA_MEASURES:
        raise GeometryError(f"There is no measure {name!r} to ask for; there are {' and '.join(EXTRA_MEASURES)}.")
    if name == "diffpose_mtre_mm":
        return diffpose_target_registration_error(estimate, truth, camera, targets)
    if volume_center is None:
        raise GeometryError("xvr's mTRE depends on where the CT's centre lies: give volume_center.")
    return xvr_target_registration_error(estimate, truth, targets, volume_center)


def _in_camera(estimate: Pose, truth: Pose, targets) -> tuple[Tensor, Tensor]:
    """T_estimate(x_i) and T_true(x_i), both [B, N, 3]."""
    a, b = _paired(estimate.inverse(), truth.inverse())
    a, b, targets = promote(a, b, _checked(targets, len(a)))
    return transform_points(a, targets), transform_points(b, targets)


def _checked(targets, poses: int) -> Tensor:
    targets = as_tensor(targets)
    if targets.ndim not in (2, 3) or targets.shape[-1] != 3 or targets.shape[-2] == 0:
        raise GeometryError(f"Targets are world points [N, 3] or [B, N, 3], at least one, got {list(targets.shape)}.")
    if targets.ndim == 3 and 1 not in (len(targets), poses) and len(targets) != poses:
        raise GeometryError(f"There are targets for {len(targets)} poses, but {poses} poses.")
    return targets


def _paired(estimate: Pose, truth: Pose) -> tuple[Tensor, Tensor]:
    """Both matrices [B, 4, 4]."""
    a, b = promote(estimate.matrix.reshape(-1, 4, 4), truth.matrix.reshape(-1, 4, 4))
    if len(a) != len(b) and 1 not in (len(a), len(b)):
        raise GeometryError(f"There are {len(a)} estimated and {len(b)} true poses: give as many, or one for all.")
    batch = max(len(a), len(b))
    return a.expand(batch, 4, 4), b.expand(batch, 4, 4)


def _on_plane(points: Tensor) -> Tensor:
    """(x/z, y/z), NaN where z <= 0."""
    z = points[..., 2:]
    return points[..., :2] / torch.where(z > 0, z, torch.nan)


def _length(vectors: Tensor) -> Tensor:
    return torch.linalg.vector_norm(vectors, dim=-1)
