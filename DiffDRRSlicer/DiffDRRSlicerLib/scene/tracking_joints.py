"""Joint angles of a tracked run: how one bone moves on another, as a table and two plots that belong to the C-arm."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import slicer
import torch

from DiffDRRCore import Pose
from DiffDRRCore.geometry.joints import JointMotion, Side, body_frame
from DiffDRRCore.geometry.tensors import homogeneous
from DiffDRRCore.registration.tracking import TrackingResult, joint_motion, write_joint_motion
from DiffDRRSlicerLib.scene import nodes
from DiffDRRSlicerLib.scene.anatomy import Anatomy
from DiffDRRSlicerLib.scene.bodies import BodyNode
from DiffDRRSlicerLib.scene.errors import SceneError
from DiffDRRSlicerLib.scene.tables import add_rows, begin_table, node_of
from DiffDRRSlicerLib.scene.tracking_results import kept_result, kept_text
from DiffDRRSlicerLib.scene.tracking_run import XRayRun

ANGLES = ("flexion", "abduction", "rotation")
TRANSLATIONS = ("lateral", "anterior", "distraction")
_COLUMNS = {
    "frame": int,
    **{f"{name}, deg": float for name in ANGLES},
    **{f"{name}, mm": float for name in TRANSLATIONS},
}
_SOURCE = "DiffDRR.JointSource"  # attribute of the table: what it was computed from
_POINTS = ("distal end", "proximal end", "left", "right")  # of a bone's list, in this order
_TABLE, _CHARTS = "joint table", {"deg": "joint angles chart", "mm": "joint translations chart"}
_COLORS = ((0.84, 0.37, 0.00), (0.00, 0.45, 0.70), (0.00, 0.62, 0.45))  # M. Okabe and K. Ito, 2008


@dataclass(frozen=True)
class Joint:
    """Two bones and their axes.

    Attributes:
        proximal, distal: names of tracked bodies.  side: of the body.
        points: a point list of each bone, or None. Four points: the distal and the proximal end of its long axis, then
            a point on the patient's left and one on the right, between which its origin lies. None has the CT's axes
            (right, anterior, superior), with the origin at the distal bone's pivot; the CT's own pose is then zero.
    """

    proximal: str
    distal: str
    side: Side = Side.RIGHT
    points: tuple = field(default=(None, None))


def joint_course(
    run: XRayRun, anatomy: Anatomy, joint: Joint, smooth: bool = True, interpolated: bool = True
) -> tuple[tuple[int, ...], JointMotion]:
    """(frames, Grood and Suntay's six numbers [F]) of the last tracking; NaN in lost frames if not `interpolated`.

    Raises SceneError where nothing was tracked, or for one bone twice, another number of points, or one list alone;
    DiffDRRError for a bone that was not tracked; GeometryError for points that make no axes.
    """
    result = kept_result(run)
    if result is None:
        raise SceneError("There are no motions yet: track the run first.")
    if joint.proximal == joint.distal:
        raise SceneError("A joint has two bones: choose another one than the first.")
    result = result.smoothed() if smooth else result
    motions = {name: result.motion(name, interpolated) for name in result.bodies}
    frames = _frames(anatomy, joint, result)
    return joint_motion(motions, (joint.proximal, frames[0]), (joint.distal, frames[1]), joint.side)


def show_joint(run: XRayRun, joint: Joint, frames: Sequence[int], motion: JointMotion) -> None:
    """Write the table and the plots, nodes of the first C-arm; those there are are used again."""
    carm = run.carms[0]
    table = node_of(carm, _TABLE, "vtkMRMLTableNode", "joint angles")
    table.SetAttribute("DiffDRR.Joint", f"{joint.distal} on {joint.proximal}")
    table.SetAttribute(_SOURCE, _digest(run))
    begin_table(table, _COLUMNS)
    values = torch.cat([motion.angles, motion.translations], dim=-1).tolist()
    add_rows(table, [(number, *row) for number, row in zip(frames, values, strict=True)])
    for names, unit in ((ANGLES, "deg"), (TRANSLATIONS, "mm")):
        _plot(carm, table, names, unit)


def is_stale(run: XRayRun) -> bool:
    """Whether there is a table of a tracking that is gone, or that another one has replaced."""
    table = run.carms[0].referred(_TABLE)
    if table is None:
        return False
    return not kept_text(run) or table.GetAttribute(_SOURCE) not in (None, _digest(run))


def clear_joint(run: XRayRun) -> None:
    """Remove table and plots."""
    carm = run.carms[0]
    series = [f"joint {name}" for name in (*ANGLES, *TRANSLATIONS)]
    for role in (*_CHARTS.values(), *series, _TABLE):
        nodes.remove_node(carm.referred(role))


def joint_charts(run: XRayRun) -> tuple:
    """The plots of angles and of translations, None where there are none."""
    return tuple(run.carms[0].referred(role) for role in _CHARTS.values())


def joint_rows(run: XRayRun) -> list[tuple[float, ...]]:
    """(frame, three angles, three translations) of each row of the table; empty where there is none."""
    node = run.carms[0].referred(_TABLE)
    content = None if node is None else node.GetTable()
    if content is None or content.GetNumberOfColumns() != len(_COLUMNS):
        return []
    columns = [content.GetColumn(number) for number in range(len(_COLUMNS))]
    return [tuple(column.GetValue(row) for column in columns) for row in range(content.GetNumberOfRows())]


def save_joint(run: XRayRun, anatomy: Anatomy, joint: Joint, path: str | Path, smooth: bool = True) -> Path:
    """Write the angles as .csv, lost frames as interpolated. Raises SceneError for another suffix, else as above."""
    path = Path(path)
    if path.suffix.lower() != ".csv":
        raise SceneError(f"Joint angles are written as .csv, not as '{path.suffix}'.")
    write_joint_motion(path, *joint_course(run, anatomy, joint, smooth))
    return path


def _digest(run: XRayRun) -> str:
    return hashlib.sha256(kept_text(run).encode()).hexdigest()


def _frames(anatomy: Anatomy, joint: Joint, result: TrackingResult) -> list[Pose]:
    """body_to_world of both bones in the CT."""
    given = [points is not None for points in joint.points]
    if any(given) and not all(given):
        raise SceneError("Give the points of both bones, or of neither: axes of two kinds make no joint.")
    if all(given):
        names = joint.proximal, joint.distal
        return [_axes(anatomy, name, points) for name, points in zip(names, joint.points, strict=True)]
    place = result.about[result.number(joint.distal)] if joint.distal in result.bodies else torch.zeros(3)
    frame = Pose(homogeneous(torch.eye(3, dtype=torch.float64), place.double()))
    return [frame, frame]


def _axes(anatomy: Anatomy, bone: str, points) -> Pose:
    """From a list of four points, in the CT or moving with the bone."""
    count = points.GetNumberOfControlPoints()
    if count != len(_POINTS):
        raise SceneError(
            f"The points of '{bone}' are four ({', '.join(_POINTS)}), in this order; '{points.GetName()}' has {count}."
        )
    to_ct = np.linalg.inv(anatomy.to_world) @ nodes.parent_to_world(points)
    for body in BodyNode.of(anatomy, any_labels=True):
        if body.node in _above(points):
            to_ct = np.linalg.inv(body.motion(anatomy)) @ to_ct
    places = {}
    for number, name in enumerate(_POINTS):
        position = [0.0, 0.0, 0.0]
        points.GetNthControlPointPosition(number, position)
        places[name] = torch.from_numpy(nodes.transformed(to_ct, position))
    return body_frame(places, ("left", "right"), ("distal end", "proximal end"), ("left", "right"))


def _above(node) -> list:
    found = []
    while (node := node.GetParentTransformNode()) is not None:
        found.append(node)
    return found


def _plot(carm, table, names: Sequence[str], unit: str) -> None:
    chart = node_of(carm, _CHARTS[unit], "vtkMRMLPlotChartNode", f"joint, {unit}")
    chart.RemoveAllPlotSeriesNodeIDs()
    for name, color in zip(names, _COLORS, strict=True):
        series = node_of(carm, f"joint {name}", "vtkMRMLPlotSeriesNode", name)
        series.SetName(name)  # what the legend shows
        series.SetAndObserveTableNodeID(table.GetID())
        series.SetXColumnName("frame")
        series.SetYColumnName(f"{name}, {unit}")
        series.SetPlotType(slicer.vtkMRMLPlotSeriesNode.PlotTypeScatter)
        series.SetMarkerStyle(slicer.vtkMRMLPlotSeriesNode.MarkerStyleNone)
        series.SetColor(*color)
        chart.AddAndObservePlotSeriesNodeID(series.GetID())
    chart.SetTitleVisibility(False)  # it is as wide as the panel
    chart.SetAxisTitleFontSize(12)
    chart.SetAxisLabelFontSize(10)
    chart.SetXAxisTitle("frame")
    chart.SetYAxisTitle({"deg": "degrees", "mm": "mm"}[unit])
    chart.SetLegendVisibility(True)
