"""The result of a tracking, kept in the scene as text, and written to files."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from DiffDRRCore.registration.tracking import TrackingResult
from DiffDRRSlicerLib.scene import nodes
from DiffDRRSlicerLib.scene import tracking_course as courses
from DiffDRRSlicerLib.scene.errors import SceneError
from DiffDRRSlicerLib.scene.tracking_run import XRayRun

_TEXT = "tracking"  # role of the first C-arm's text node


def keep_result(run: XRayRun, result: TrackingResult) -> None:
    """As it was found, unsmoothed, in a text node of the first C-arm."""
    carm = run.carms[0]
    node = carm.referred(_TEXT)
    if node is None:
        node = nodes.add_node(carm.scene, "vtkMRMLTextNode", f"{carm.name} tracking")
        carm.refer(_TEXT, node)
    node.SetText(json.dumps(result.to_dict(), allow_nan=False))


def kept_result(run: XRayRun) -> TrackingResult | None:
    """What `keep_result` kept; None where nothing was tracked. Raises ReadError where somebody changed the text."""
    text = kept_text(run)
    if not text:
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tracking.json"
        path.write_text(text, encoding="utf-8")
        return TrackingResult.load(path)


def kept_text(run: XRayRun) -> str:
    """What is kept, as it is kept; "" where nothing was tracked."""
    node = run.carms[0].referred(_TEXT)
    return "" if node is None else node.GetText() or ""


def result_state(run: XRayRun) -> tuple | None:
    """Equal for two calls only where `kept_result` is the same; quick."""
    node = run.carms[0].referred(_TEXT)
    return None if node is None else (node.GetID(), node.GetMTime())


def save_tracking(run: XRayRun, path: str | Path, smooth: bool = True, interpolated: bool = True) -> Path:
    """Write the motions as a table (.csv), as Autoscoper's .tra, or all as .json.

    They take each bone (or the CT) from its place in the CT to where it is with the C-arms as they stood at the start
    of the tracking: CT's own RAS, mm.

    Raises SceneError where nothing was tracked, RegistrationError for another suffix, DiffDRRError for no file.
    """
    result = kept_result(run)
    if result is None:
        raise SceneError("There is no motion to save yet: track the run first.")
    result = result.smoothed() if smooth else result
    if Path(path).suffix.lower() == ".json":
        return result.save(path)
    return result.write_motions(path, interpolated)


def variant(smooth: bool) -> str:
    """Name of the courses that are smoothed, or not."""
    return courses.SMOOTHED if smooth else courses.UNSMOOTHED
