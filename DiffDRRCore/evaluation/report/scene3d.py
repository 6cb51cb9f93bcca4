"""All camera poses of a run in space, for a browser: drawn with plotly (optional; the extra `evaluate`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
import torch
from torch import Tensor

from DiffDRRCore.errors import DiffDRRError
from DiffDRRCore.evaluation.report.summary import Record, end_errors, method_of
from DiffDRRCore.geometry import Pose
from DiffDRRCore.geometry.projection import pixel_rays
from DiffDRRCore.imaging.camera_file import camera_from_dict
from DiffDRRCore.imaging.coarsening import block_mean
from DiffDRRCore.imaging.volume import Volume

KINDS = {"poses_true": ("reference", "#2ca02c"), "poses_start": ("start", "#e08214"), "poses_end": ("end", "#1f77b4")}
_BONE_HU, _MOST_POINTS, _MOST_CASES = 250.0, 4000, 400
_FRUSTUM = 0.12  # of the source-to-detector distance


@dataclass(frozen=True)
class Anatomy:
    """Of one subject, RAS mm: corners of the CT's grid [8, 3], points on the bone's surface [N, 3], targets [M, 3]."""

    corners: np.ndarray
    bone: np.ndarray
    targets: np.ndarray

    @classmethod
    def of(cls, volume: Volume, targets: Tensor | None = None) -> Anatomy:
        """What is drawn of a CT, coarse."""
        none = np.zeros((0, 3))
        points = none if targets is None else targets.detach().cpu().double().numpy()
        return cls(_corners(volume), _bone_points(volume), points[:: max(1, len(points) // 300)])


def scene_html(records: Sequence[Record], measure: str, anatomy: Mapping[str, Anatomy] | None = None) -> str:
    """A <div> with the scene and all it needs, plotly's own code included.

    Raises DiffDRRError where plotly is not installed.
    """
    figure = scene_figure(records, measure, anatomy)
    options = {"displaylogo": False, "responsive": True, "showSendToCloud": False, "plotlyServerURL": ""}
    return figure.to_html(full_html=False, include_plotlyjs=True, config=options, default_height="640px")


def scene_figure(records: Sequence[Record], measure: str, anatomy: Mapping[str, Anatomy] | None = None):
    """The plotly Figure: cameras as small pyramids with the source at their tip, by subject, method and kind.

    Subjects have worlds of their own, so a menu chooses one. Of many cases those with the largest end errors are drawn.
    """
    try:
        import plotly.graph_objects as plotly
    except ImportError as error:
        raise DiffDRRError("The 3D scene needs plotly; install it with: pip install plotly") from error
    subjects = list(dict.fromkeys(str(record.get("subject", "")) for record in records))
    figure, owners = plotly.Figure(), []
    for subject in subjects:
        own = [record for record in records if str(record.get("subject", "")) == subject]
        traces = [*_anatomy_traces(plotly, (anatomy or {}).get(subject)), *_camera_traces(plotly, own, measure)]
        for trace in traces:
            trace.visible = subject == subjects[0]
            figure.add_trace(trace)
            owners.append(subject)
    figure.update_layout(**_layout(subjects, owners))
    return figure


def left_out(records: Sequence[Record]) -> int:
    """How many cases the scene does not draw, because there are too many in a subject and method."""
    sizes: dict[tuple[str, str], int] = {}
    for record in records:
        key = (str(record.get("subject", "")), method_of(record))
        sizes[key] = sizes.get(key, 0) + 1
    return sum(max(0, size - _MOST_CASES) for size in sizes.values())


def frustum(record: Record, matrix) -> np.ndarray:
    """[16, 3], RAS mm: the edges of a pyramid from the source towards the detector, NaN where the pen is lifted."""
    camera = camera_from_dict(record["camera"], f"The camera of case '{record.get('case')}'")
    height, width = camera.height - 1, camera.width - 1
    corners = torch.tensor([[0, 0], [width, 0], [width, height], [0, height]], dtype=torch.float64)
    source, ends = (part.reshape(-1, 3).double().numpy() for part in pixel_rays(camera, Pose(matrix), corners))
    source = np.broadcast_to(source, ends.shape)
    a, b, c, d = source + _FRUSTUM * (ends - source)
    s, t, u, v = source
    gap = np.full(3, np.nan)
    return np.stack([s, a, b, t, gap, u, c, d, v, gap, b, c, gap, d, a, gap])


def _camera_traces(plotly, records: Sequence[Record], measure: str) -> list:
    traces = []
    for method in dict.fromkeys(map(method_of, records)):
        own = [record for record in records if method_of(record) == method]
        worst_first = sorted(own, key=lambda record: -end_errors([record], measure)[0])[:_MOST_CASES]
        traces += [_cameras(plotly, worst_first, method, kind) for kind in KINDS]
    return [trace for trace in traces if trace.x]


def _cameras(plotly, records: Sequence[Record], method: str, kind: str):
    name, color = KINDS[kind]
    lines, texts, seen = [np.zeros((0, 3))], [], set()
    for record in records:
        for view, matrix in zip(record.get("views") or [], record.get(kind) or [], strict=False):
            key = (str(view), str(matrix))
            if record.get("camera") and key not in seen:
                seen.add(key)
                lines.append(frustum(record, matrix))
                what = f"{view}: {name}" if kind == "poses_true" else f"{record.get('case', '')}: {name}"
                texts += [escape(what)] * len(lines[-1])
    x, y, z = np.round(np.concatenate(lines), 1).T.tolist()
    label = escape(f"{method}: {name}")
    line = {"color": color, "width": 5 if kind == "poses_true" else 2}
    return plotly.Scatter3d(x=x, y=y, z=z, mode="lines", line=line, name=label, text=texts, hoverinfo="text")


def _anatomy_traces(plotly, anatomy: Anatomy | None) -> list:
    if anatomy is None:
        return []
    edges = [(i, i | bit) for i in range(8) for bit in (1, 2, 4) if not i & bit]
    box = np.concatenate([[anatomy.corners[i], anatomy.corners[j], np.full(3, np.nan)] for i, j in edges])
    return [
        _points(plotly, box, "CT", mode="lines", line={"color": "#888888", "width": 2}),
        _points(plotly, anatomy.bone, "bone", mode="markers", marker={"size": 2, "color": "#a08c6c", "opacity": 0.6}),
        _points(plotly, anatomy.targets, "targets", mode="markers", marker={"size": 3, "color": "#d62728"}),
    ]


def _points(plotly, points: np.ndarray, name: str, **look):
    x, y, z = np.round(points, 1).T.tolist()
    return plotly.Scatter3d(x=x, y=y, z=z, name=name, hoverinfo="name", **look)


def _layout(subjects: list[str], owners: list[str]) -> dict:
    grid = {"backgroundcolor": "rgba(0,0,0,0)", "gridcolor": "rgba(128,128,128,0.25)", "zeroline": False}
    names = {"xaxis": "R (mm)", "yaxis": "A (mm)", "zaxis": "S (mm)"}
    scene = {axis: {**grid, "title": {"text": text}} for axis, text in names.items()}
    buttons = [
        {
            "label": escape(subject) or "–",
            "method": "update",
            "args": [{"visible": [owner == subject for owner in owners]}],
        }
        for subject in subjects
    ]
    menu = {"buttons": buttons, "x": 0, "xanchor": "left", "y": 1.0, "yanchor": "top", "bgcolor": "#f4f4f4"}
    return {
        "scene": {**scene, "aspectmode": "data"},
        "margin": {"l": 0, "r": 0, "t": 0, "b": 0},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "font": {"color": "#7a7a7a", "family": "system-ui, sans-serif"},
        "legend": {"orientation": "h", "y": 0, "yanchor": "top"},
        "updatemenus": [{**menu, "font": {"color": "#222222"}}] if len(subjects) > 1 else [],
    }


def _corners(volume: Volume) -> np.ndarray:
    k, j, i = (size - 0.5 for size in volume.shape)
    ijk = np.array([[(-0.5, i)[n & 1], (-0.5, j)[n >> 1 & 1], (-0.5, k)[n >> 2]] for n in range(8)])
    return _to_ras(volume, ijk)


def _bone_points(volume: Volume) -> np.ndarray:
    """Centres of coarse voxels of bone that have a neighbour without, at most `_MOST_POINTS` of them."""
    factors = [max(1, round(size / 64)) for size in volume.shape]
    hu = block_mean(volume.hu.detach().cpu().float(), factors)
    bone = np.pad((hu > _BONE_HU).numpy(), 1)
    inside = np.logical_and.reduce([np.roll(bone, step, axis) for axis in range(3) for step in (-1, 1)])
    kji = np.argwhere((bone & ~inside)[1:-1, 1:-1, 1:-1])
    kji = np.random.default_rng(0).permutation(kji)[:_MOST_POINTS]
    ijk = (kji * factors + (np.array(factors) - 1) / 2)[:, ::-1]
    return _to_ras(volume, ijk)


def _to_ras(volume: Volume, ijk: np.ndarray) -> np.ndarray:
    matrix = volume.ijk_to_ras.detach().cpu().double().numpy()
    return ijk @ matrix[:3, :3].T + matrix[:3, 3]
