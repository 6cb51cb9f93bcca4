"""Beads on an X-ray of a phantom: those found in it, where the calibrated camera expects them, and arrows between."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import slicer.util

from DiffDRRCore.geometry import project
from DiffDRRSlicerLib.scene.carm import CArmNode, pixels_to_points, points_to_pixels
from DiffDRRSlicerLib.scene.frustum import lines_of

if TYPE_CHECKING:
    from DiffDRRCore.calibration import BeadPhantom, BeadView, CalibrationResult, Distortion

BEADS = FOUND, EXPECTED = "beads found", "beads expected"  # roles of a C-arm's nodes
RESIDUALS = "bead residuals"
_NONE = "?"  # name of a blob that is none of the beads
_LOOKS = {FOUND: ("Circle2D", 3.5, (1.0, 0.55, 0.1)), EXPECTED: ("Cross2D", 2.5, (0.1, 0.83, 1.0))}
_LENGTH = 0.04  # of the image's width: arrow of the largest residual, about
_EXAGGERATION = "DiffDRR.Exaggeration"  # attribute of the residuals' model


def show_beads(
    carm: CArmNode,
    view: BeadView,
    result: CalibrationResult,
    number: int,
    phantom: BeadPhantom,
    labels: Sequence[str],
    undone: Distortion | None = None,
) -> None:
    """Mark the beads of one image of a calibration on its X-ray; a second call rewrites the same nodes.

    Args:
        number: of the image in the result.
        labels: names of the phantom's beads. A blob that was taken for none is called "?".
        undone: distortion that the X-ray had when it was recorded, and has no more as it is shown.
    """
    centers = view.beads.centers.numpy()
    away = np.linalg.norm(view.observed[:, None] - centers[None], axis=-1)
    names = [_NONE] * len(centers)
    for bead in np.flatnonzero(np.isfinite(view.observed).all(axis=-1)):
        names[int(np.argmin(away[bead]))] = labels[bead]
    expected = project(result.camera, result.poses[number], phantom.positions)[0]
    if result.distortion is not None:
        expected = result.distortion.distort(expected)
    expected, camera = expected.numpy(), carm.camera
    inside = ((expected >= 0) & (expected <= [camera.width - 1, camera.height - 1])).all(axis=-1)
    expected, others = expected[inside], [labels[bead] for bead in np.flatnonzero(inside)]
    if undone is not None:
        centers, expected = (undone.undistort(pixels).numpy() for pixels in (centers, expected))
    _write(carm, FOUND, centers, names)
    _write(carm, EXPECTED, expected, others)
    draw_residuals(carm)


def draw_residuals(carm: CArmNode) -> None:
    """Lines from each bead found towards where it is expected, exaggerated; nothing where there are no beads."""
    ends = [_pixels(carm, role) for role in BEADS]
    if None in ends:
        return
    found, expected = ends
    pairs = [(found[name], expected[name]) for name in found if name in expected]
    starts, stops = (np.reshape([pair[k] for pair in pairs], (-1, 2)) for k in (0, 1))
    residuals = stops - starts
    times = _round(_LENGTH * carm.camera.width / max(float(np.linalg.norm(residuals, axis=-1).max(initial=0)), 1e-6))
    model = carm.below(RESIDUALS, "vtkMRMLModelNode", RESIDUALS)
    model.SetAttribute(_EXAGGERATION, f"{times:g}")
    tips = pixels_to_points(carm.camera, starts + times * residuals)
    points = np.stack([pixels_to_points(carm.camera, starts), tips], axis=1).reshape(-1, 3)
    if model.GetDisplayNode() is None:
        _dress(model)
    model.SetAndObservePolyData(lines_of(points, [(2 * one, 2 * one + 1) for one in range(len(pairs))]))


def exaggeration(carm: CArmNode) -> float | None:
    """How many times longer than they are the residuals are drawn; None where none are."""
    model = carm.referred(RESIDUALS)
    return None if model is None else float(model.GetAttribute(_EXAGGERATION))


def show_only(scene, carm: CArmNode | None, views: Sequence = ()) -> None:
    """Show the beads of this C-arm alone, None for none, and only in these views where there are some."""
    ids = [view.GetID() for view in views]
    for one in CArmNode.all(scene):
        for role in (*BEADS, RESIDUALS):
            node = one.referred(role)
            display = None if node is None else node.GetDisplayNode()
            if display is None:
                continue
            if bool(display.GetVisibility()) != (one == carm):
                display.SetVisibility(one == carm)
            if ids and list(display.GetViewNodeIDs()) != ids:
                display.SetViewNodeIDs(ids)


def _round(times: float) -> float:
    """1, 2 or 5 times a power of ten, not above."""
    power = 10.0 ** np.floor(np.log10(times))
    return float(max(step * power for step in (1, 2, 5) if step * power <= times * (1 + 1e-9)))


def _pixels(carm: CArmNode, role: str) -> dict[str, np.ndarray] | None:
    """{name: pixel [2]} of the beads of a role, without nameless ones; None without the node."""
    markups = carm.referred(role)
    if markups is None:
        return None
    count = markups.GetNumberOfControlPoints()
    points = np.array([markups.GetNthControlPointPosition(number) for number in range(count)]).reshape(-1, 3)
    pixels = points_to_pixels(carm.camera, points)
    names = [markups.GetNthControlPointLabel(number) for number in range(count)]
    return {name: pixel for name, pixel in zip(names, pixels, strict=True) if name != _NONE}


def _write(carm: CArmNode, role: str, pixels, names: Sequence[str]) -> None:
    markups = carm.below(role, "vtkMRMLMarkupsFiducialNode", role)
    if markups.GetDisplayNode() is None:
        markups.CreateDefaultDisplayNodes()
    display, (glyph, scale, color) = markups.GetDisplayNode(), _LOOKS[role]
    with slicer.util.NodeModify(display):
        display.SetGlyphTypeFromString(glyph)
        display.SetGlyphScale(scale)
        display.SetColor(*color)
        display.SetSelectedColor(*color)
        display.SetPointLabelsVisibility(False)
        display.SetPropertiesLabelVisibility(False)
    seen = np.flatnonzero(np.isfinite(pixels).all(axis=-1))
    with slicer.util.NodeModify(markups):
        markups.SetLocked(False)
        markups.RemoveAllControlPoints()
        for number, point in zip(seen, pixels_to_points(carm.camera, pixels[seen]), strict=True):
            added = markups.AddControlPoint(*(float(value) for value in point))
            markups.SetNthControlPointLabel(added, names[number])
        markups.SetLocked(True)


def _dress(model) -> None:
    model.CreateDefaultDisplayNodes()
    display = model.GetDisplayNode()
    with slicer.util.NodeModify(display):
        display.SetColor(*_LOOKS[EXPECTED][-1])
        display.SetLineWidth(2)
        display.SetLighting(False)
        display.SetVisibility2D(True)
        display.SetSliceDisplayModeToProjection()
        display.SetSliceIntersectionThickness(2)
