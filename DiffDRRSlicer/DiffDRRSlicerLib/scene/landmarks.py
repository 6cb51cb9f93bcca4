"""Landmarks that are clicked in the CT and in the X-ray: pairs of equal labels, their errors, and the pose they give.

The lists in the CT may lie below any transforms. The list in the X-ray hangs below the C-arm's plane, where a point
stays on its pixel however the C-arm moves; a list that hangs elsewhere is taken as points in space, each standing for
the ray through it.
"""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass

import numpy as np
import slicer

from DiffDRRCore.geometry import project
from DiffDRRCore.registration import pose_from_landmarks
from DiffDRRSlicerLib.scene import nodes
from DiffDRRSlicerLib.scene.calibration_marks import BEADS
from DiffDRRSlicerLib.scene.carm import CArmNode, pixels_to_points, points_to_pixels
from DiffDRRSlicerLib.scene.errors import SceneError

LABEL_FORMAT = "L-%d"
"""Of new points, in both lists, so that the first point of one is the first of the other."""

_FEWEST = 3


@dataclass(frozen=True)
class Pair:
    """A landmark in both lists: its label and the numbers of its control points."""

    label: str
    ct: int
    xray: int


@dataclass(frozen=True)
class ReprojectionError:
    """How far a CT landmark is projected from where it was clicked.

    Attributes:
        pixels: distance in pixels.  detector_mm: on the detector.  anatomy_mm: at the landmark's depth. NaN where the
            landmark lies behind the source.
    """

    label: str
    pixels: float
    detector_mm: float
    anatomy_mm: float


@dataclass(frozen=True)
class ReprojectionErrors:
    """One `ReprojectionError` a pair, and their root mean squares (NaN without pairs)."""

    rows: list[ReprojectionError]
    rms_pixels: float
    rms_detector_mm: float
    rms_anatomy_mm: float


@dataclass(frozen=True)
class Alignment:
    """What `align` did: labels that the pose was fitted to, labels of wrong clicks, rms of the former in pixels."""

    used: list[str]
    wrong: list[str]
    rms_pixels: float

    @property
    def text(self) -> str:
        """A sentence or two for the user."""
        text = f"Aligned to {len(self.used)} landmarks, {self.rms_pixels:.1f} pixels off (rms)."
        if self.wrong:
            text += f" Left out, because they do not fit the others: {', '.join(self.wrong)}; check where they lie."
        if len(self.used) == _FEWEST:
            text += " Three landmarks do not show a wrong click; add a fourth."
        return text


def xray_landmarks(carm: CArmNode):
    """The fiducial list of the C-arm's X-ray, below its plane; made where there is none."""
    known = carm.referred("landmarks")
    markups = carm.below("landmarks", "vtkMRMLMarkupsFiducialNode", "landmarks")
    if known is None:
        markups.SetControlPointLabelFormat(LABEL_FORMAT)
        markups.CreateDefaultDisplayNodes()
    return markups


def xray_list_ids(scene) -> list[str]:
    """IDs of all C-arms' lists of points on X-rays, clicked or found, which are no points on the CT."""
    lists = [carm.referred(role) for carm in CArmNode.all(scene) for role in ("landmarks", *BEADS)]
    return [markups.GetID() for markups in lists if markups is not None]


def pairs(ct_markups, xray_markups) -> list[Pair]:
    """Landmarks that are placed in both lists, in the CT list's order.

    Raises SceneError where a list is missing, or has two placed points of the same label.
    """
    in_ct, in_xray = _placed(ct_markups, "CT"), _placed(xray_markups, "X-ray")
    return [Pair(label, number, in_xray[label]) for label, number in in_ct.items() if label in in_xray]


def missing_pairs(ct_markups, xray_markups) -> tuple[list[str], list[str]]:
    """Labels placed in the CT only, and in the X-ray only. Raises SceneError as `pairs`."""
    in_ct, in_xray = _placed(ct_markups, "CT"), _placed(xray_markups, "X-ray")
    return [label for label in in_ct if label not in in_xray], [label for label in in_xray if label not in in_ct]


def name_newest(ct_markups, xray_markups) -> None:
    """Give the X-ray list's last point the label of the first CT landmark without a partner, if there is one."""
    last = xray_markups.GetNumberOfControlPoints() - 1
    missing, extra = missing_pairs(ct_markups, xray_markups)
    if missing and last >= 0 and xray_markups.GetNthControlPointLabel(last).strip() in extra:
        xray_markups.SetNthControlPointLabel(last, missing[0])


def points_in_world(markups, numbers) -> nodes.Matrix:
    """[N, 3] world mm of control points, under whatever transforms."""
    points = np.zeros((len(numbers), 3))
    for row, number in zip(points, numbers, strict=True):
        markups.GetNthControlPointPositionWorld(number, row)
    return points


def points_in_xray(carm: CArmNode, markups, numbers) -> nodes.Matrix:
    """[N, 2] pixels of control points; NaN for a point in space that lies behind the source."""
    plane = carm.plane
    if plane is None or markups.GetParentTransformNode() is not plane:
        return project(carm.camera, carm.pose, points_in_world(markups, numbers))[0].numpy()
    points = np.zeros((len(numbers), 3))
    for row, number in zip(points, numbers, strict=True):
        markups.GetNthControlPointPosition(number, row)
    return points_to_pixels(carm.camera, points)


def paired_points(carm: CArmNode, ct_markups, xray_markups) -> tuple[list[str], nodes.Matrix, nodes.Matrix]:
    """(labels, world mm [N, 3], pixels [N, 2]) of all pairs. Raises SceneError as `pairs`.

    `ct_markups`: one list of points on the CT, or several, one after the other.
    """
    if isinstance(ct_markups, (list, tuple)):
        parts = [paired_points(carm, markups, xray_markups) for markups in ct_markups]
        labels, *columns = zip(*parts, strict=True) if parts else ([], [np.zeros((0, 3))], [np.zeros((0, 2))])
        return list(itertools.chain(*labels)), *(np.concatenate(column) for column in columns)
    found = pairs(ct_markups, xray_markups)
    world = points_in_world(ct_markups, [pair.ct for pair in found])
    return [pair.label for pair in found], world, points_in_xray(carm, xray_markups, [pair.xray for pair in found])


def reprojection_errors(carm: CArmNode, ct_markups, xray_markups) -> ReprojectionErrors:
    """The errors of all pairs at the present pose. Raises SceneError as `pairs`."""
    labels, world, clicked = paired_points(carm, ct_markups, xray_markups)
    camera, pose = carm.camera, carm.pose
    projected = project(camera, pose, world)[0].numpy()
    pixels = np.linalg.norm(projected - clicked, axis=-1)
    on_detector = np.linalg.norm(pixels_to_points(camera, projected) - pixels_to_points(camera, clicked), axis=-1)
    depth = nodes.transformed(np.linalg.inv(pose.matrix.numpy()), world)[:, 2]
    shrunk = np.ones(len(depth)) if camera.parallel else depth / float(camera.source_to_detector)
    columns = np.column_stack([pixels, on_detector, on_detector * shrunk])
    rms = np.sqrt((columns**2).mean(axis=0)) if len(columns) else np.full(3, np.nan)
    rows = [ReprojectionError(label, *row) for label, row in zip(labels, columns.tolist(), strict=True)]
    return ReprojectionErrors(rows, *rms.tolist())


def align(carm: CArmNode, ct_markups, xray_markups) -> Alignment:
    """Move the C-arm to where the landmarks are seen where they were clicked; wrong clicks are left out.

    Four pairs or more; of three, the pose next to the present one. Raises SceneError for fewer pairs, and
    RegistrationError where they do not make a pose; nothing is moved then.
    """
    labels, world, clicked = paired_points(carm, ct_markups, xray_markups)
    if len(labels) < _FEWEST:
        raise SceneError(_too_few(len(labels), *missing_pairs(ct_markups, xray_markups)))
    fit = pose_from_landmarks(world, clicked, carm.camera, prior=carm.pose)
    used = fit.inliers.tolist()
    carm.pose = fit.pose
    return Alignment(
        [label for label, good in zip(labels, used, strict=True) if good],
        [label for label, good in zip(labels, used, strict=True) if not good],
        fit.rms,
    )


def _too_few(count: int, only_ct: list[str], only_xray: list[str]) -> str:
    text = f"Aligning needs at least four landmark pairs, or three near the right pose; there are {count}."
    if only_ct:
        text += f" Not placed in the X-ray: {', '.join(only_ct)}."
    if only_xray:
        text += f" Not placed in the CT: {', '.join(only_xray)}."
    return text


def _placed(markups, where: str) -> dict[str, int]:
    """{label: number} of the control points whose position is defined."""
    if markups is None:
        raise SceneError(f"Choose the list of landmarks in the {where} first.")
    defined = slicer.vtkMRMLMarkupsNode.PositionDefined
    numbers = [
        number
        for number in range(markups.GetNumberOfControlPoints())
        if markups.GetNthControlPointPositionStatus(number) == defined
    ]
    labels = [markups.GetNthControlPointLabel(number).strip() for number in numbers]
    twice = [label for label, count in Counter(labels).items() if count > 1]
    if twice:
        raise SceneError(
            f"The label '{twice[0]}' is used more than once in '{markups.GetName()}'; give each landmark a name of "
            "its own."
        )
    return dict(zip(labels, numbers, strict=True))
