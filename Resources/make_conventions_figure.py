"""Draws Resources/conventions.png, the figure of the README: frames, pixels and C-arm angles.

Run it after `make test`, which installs what it needs: `.venv/bin/python Resources/make_conventions_figure.py`.
The drawing is computed with the library itself (CArm, backproject), so that it cannot disagree with the code.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Arc, Circle, Ellipse, Polygon, Rectangle

from DiffDRRCore import CArm, backproject

BODY, BODY_EDGE, INK, SOFT, BEAM = "#f3e3d3", "#c9a98a", "#20262e", "#6b7480", "#f4c542"
RED, GREEN, BLUE, DETECTOR = "#d1343a", "#2e8b45", "#2563c9", "#dbe6f2"
SID, SOD = 1020.0, 620.0
# centre and semi-axes (RAS mm) of the ellipsoids that make the figure of a supine patient
PATIENT = (
    ((75, 0, -640), (58, 55, 330)),
    ((0, 0, 0), (170, 105, 350)),
    ((-75, 0, -640), (58, 55, 330)),
    ((0, 0, 440), (78, 95, 115)),
)


def main() -> None:
    """Write the figure beside this script."""
    figure = Figure(figsize=(15, 8.2), facecolor="white")
    draw_room(figure.add_axes((0.0, 0.02, 0.51, 0.91)))
    draw_pixels(figure.add_axes((0.53, 0.53, 0.215, 0.41)), "source")
    draw_pixels(figure.add_axes((0.775, 0.53, 0.215, 0.41)), "detector")
    draw_angle(figure.add_axes((0.53, 0.01, 0.215, 0.46)), "primary")
    draw_angle(figure.add_axes((0.775, 0.01, 0.215, 0.46)), "secondary")
    figure.savefig(Path(__file__).with_name("conventions.png"), dpi=100)


def draw_room(axes) -> None:
    """Patient, source, beam, detector and their axes, all C-arm angles zero, seen from the patient's left."""
    carm = CArm(SID, SOD)
    camera = carm.camera(5, 5, (78.0, 78.0))
    pixels = [(u, v) for v, u in ((-0.5, -0.5), (-0.5, 4.5), (4.5, 4.5), (4.5, -0.5))]
    source, corners = _on_detector(camera, carm.pose, pixels)
    for first, second in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        axes.add_patch(Polygon(_screen([source, first, second]), color=BEAM, alpha=0.10, lw=0))
    for center, half in PATIENT:
        axes.add_patch(_ellipsoid(center, half))
    for corner in corners:
        axes.plot(*_screen([source, corner]).T, color=BEAM, lw=1.2)
    axes.add_patch(Polygon(_screen(corners), facecolor=DETECTOR, edgecolor=INK, lw=1.5, alpha=0.93))
    _draw_pixel_lines(axes, camera, carm.pose)
    center = _on_detector(camera, carm.pose, [(2, 2)])[1][0]
    axes.plot(*_screen([source, center]).T, color=SOFT, lw=1, ls=(0, (5, 4)))
    x, y, z = carm.pose.rotation.T.numpy()
    for direction, color, name, shift in ((x, RED, "x", (18, 16)), (y, GREEN, "y", (-28, 0)), (z, BLUE, "z", (26, 4))):
        _arrow3(axes, source, direction * 190, color, name, shift)
    axes.plot(*_screen([source]).T, "o", color=INK, ms=9)
    start, u_end, v_end = _on_detector(camera, carm.pose, [(0, 0), (2.2, 0), (0, 2.2)])[1]
    _arrow3(axes, start, u_end - start, RED, "u", (4, 26))
    _arrow3(axes, start, v_end - start, GREEN, "v", (-24, 4))
    axes.plot(*_screen([start]).T, "o", color=INK, ms=6)
    _label(axes, start, "pixel (0, 0)", (75, -8), ha="left")
    for direction, name, shift in (((1, 0, 0), "R", (20, 18)), ((0, 1, 0), "A", (28, -4)), ((0, 0, 1), "S", (26, -6))):
        _arrow3(axes, np.zeros(3), 210 * np.array(direction, float), INK, name, shift)
    _label(
        axes, source, "source = origin of the camera frame\nx right, y down, z to the detector", (60, -60), ha="left"
    )
    _label(axes, corners[1], "detector", (20, 30), ha="left")
    _label(axes, (0, -105, 250), "world = patient's RAS, mm", (20, -62), ha="left")
    axes.set(xlim=(-780, 640), ylim=(-730, 560), aspect="equal")
    _title(axes, "Frames, with both C-arm angles zero (beam from P to A)")


def draw_pixels(axes, side: str) -> None:
    """The 5 x 4 image of the same patient, seen from one side: pixel axes and patient's directions."""
    carm = CArm(SID, SOD)
    camera = carm.camera(4, 5, (78.0, 78.0), view_from=side)
    axes.add_patch(Rectangle((-0.5, -0.5), 5, 4, facecolor="#eef1f5", edgecolor=INK, lw=1.5))
    for u in range(5):
        axes.plot([u + 0.5] * 2, [-0.5, 3.5], color="white", lw=2)
        axes.plot([u] * 4, range(4), ".", color=SOFT, ms=4)
    for v in range(3):
        axes.plot([-0.5, 4.5], [v + 0.5] * 2, color="white", lw=2)
    sign = 1 if float(camera.K[0, 0]) > 0 else -1
    right, left = ("R", "L") if sign > 0 else ("L", "R")
    axes.add_patch(Ellipse((2 - 0.5 * sign, 2.0), 0.9, 1.2, angle=25 * sign, color="#e7a6a1", lw=0))
    axes.text(2 - 0.5 * sign, 2.01, "heart", ha="center", va="center", fontsize=11, color=INK)
    _arrow(axes, (0, 0), (1.4, 0), RED, "u (column)", (2.5, 0))
    _arrow(axes, (0, 0), (0, 1.4), GREEN, "v (row)", (0.75, 1.3))
    axes.plot(0, 0, "o", color=INK, ms=7)
    axes.text(-0.42, -0.66, "(0, 0): centre of the first pixel", fontsize=11.5, color=INK, ha="left", va="bottom")
    for where, letter in (((4.75, 1.5), right), ((-0.75, 1.5), left), ((2, 3.82), "F")):
        axes.text(*where, letter, fontsize=17, weight="bold", color=INK, ha="center", va="center")
    formula = "K[0, 0] > 0: columns along +x" if sign > 0 else "K[0, 0] < 0: radiological display"
    axes.text(2, 4.25, formula, fontsize=12.5, color=SOFT, ha="center", va="center")
    axes.set(xlim=(-1, 5), ylim=(4.45, -1.05), aspect="equal")
    _title(axes, f'view_from="{side}"')


def draw_angle(axes, which: str) -> None:
    """One positioner angle at +30 degrees: axial section seen from the feet, or sagittal section seen from the left."""
    turned, zero = CArm(SID, SOD, **{which: 30.0}).pose, CArm(SID, SOD).pose
    across = np.array([-1.0, 0, 0]) if which == "primary" else np.array([0, 0, 1.0])
    plane = np.stack([across, [0, 1.0, 0]])
    if which == "primary":
        axes.add_patch(Ellipse((0, 0), 340, 210, facecolor=BODY, edgecolor=BODY_EDGE, lw=1.5))
        marks = (((-205, -25), "R"), ((205, -25), "L"), ((45, -80), "P"))
        name, towards, side = "primary", "LAO", "from the feet"
    else:
        axes.add_patch(Ellipse((-40, 0), 620, 210, facecolor=BODY, edgecolor=BODY_EDGE, lw=1.5))
        axes.add_patch(Circle((330, 5), 85, facecolor=BODY, edgecolor=BODY_EDGE, lw=1.5))
        marks = (((335, 5), "H"), ((-310, -5), "F"), ((-120, -75), "P"))
        name, towards, side = "secondary", "CRA", "from the left"
    for where, letter in marks:
        axes.text(*where, letter, fontsize=15, weight="bold", color=SOFT, ha="center", va="center")
    for pose, color, width in ((zero, "#b9c0c9", 1.2), (turned, INK, 2.0)):
        source, beam = plane @ pose.translation.numpy(), plane @ pose.rotation[:, 2].numpy()
        detector, wide = source + SID * beam, 150 * np.array([-beam[1], beam[0]])
        if pose is turned:
            fan = np.stack([source, detector + wide, detector - wide])
            axes.add_patch(Polygon(fan, color=BEAM, alpha=0.22, lw=0))
        axes.plot(*np.stack([source, detector]).T, color=color, lw=width, ls=(0, (5, 4)))
        axes.plot(*np.stack([detector + wide, detector - wide]).T, color=color, lw=3 * width, solid_capstyle="butt")
        axes.plot(*source, "o", color=color, ms=9)
    turn = plane @ turned.rotation[:, 2].numpy()
    angle = np.degrees(np.arctan2(turn[1], turn[0]))
    axes.add_patch(Arc((0, 0), 500, 500, theta1=min(90, angle), theta2=max(90, angle), color=BLUE, lw=2.5))
    axes.text(*(300 * _unit(turn + np.array([0.0, 1.0]))), "+", fontsize=20, color=BLUE, ha="center")
    axes.plot(0, 0, "+", color=INK, ms=12, mew=2)
    axes.annotate(
        "isocentre", (0, 0), (-500, 140), fontsize=12, color=INK, arrowprops={"arrowstyle": "-", "color": SOFT}
    )
    axes.text(-500, 285, f"+ towards\n{towards}", fontsize=13, color=BLUE, ha="left", weight="bold")
    axes.set(xlim=(-560, 560), ylim=(-680, 500), aspect="equal")
    _title(axes, f"{name} angle, {side}")


def _on_detector(camera, pose, uv) -> tuple[np.ndarray, np.ndarray]:
    """Source [3] and the points [N, 3] of the detector at pixels, world mm."""
    origin, direction = backproject(camera, pose, np.array(uv, float))
    origin, direction = origin[0], direction[0]
    depth = direction @ pose.rotation[:, 2]
    points = origin + direction * (camera.source_to_detector / depth)[:, None]
    return origin.reshape(-1, 3)[0].numpy(), points.numpy()


def _draw_pixel_lines(axes, camera, pose) -> None:
    for n in np.arange(0.5, 4):
        for ends in (((n, -0.5), (n, 4.5)), ((-0.5, n), (4.5, n))):
            axes.plot(*_screen(_on_detector(camera, pose, ends)[1]).T, color="white", lw=1.4)


def _unit(vector) -> np.ndarray:
    return np.asarray(vector, float) / np.linalg.norm(vector)


# The drawing's own view: up on paper is mostly A, to the right mostly S, towards the reader mostly L.
_RIGHT = _unit([0.34, 0.0, 0.94])
_BACK = np.array([-0.86, 0.40, 0.31])
_BACK = _unit(_BACK - _RIGHT * (_BACK @ _RIGHT))
_VIEW = np.stack([_RIGHT, np.cross(_BACK, _RIGHT)])


def _screen(points) -> np.ndarray:
    """[N, 2] on paper of world points [N, 3]."""
    return np.asarray(points, float) @ _VIEW.T


def _ellipsoid(center, half) -> Ellipse:
    """The outline of an axis-aligned ellipsoid, an ellipse."""
    sizes, directions = np.linalg.eigh(_VIEW @ np.diag(np.square(half).astype(float)) @ _VIEW.T)
    width, height = 2 * np.sqrt(sizes)
    angle = np.degrees(np.arctan2(directions[1, 0], directions[0, 0]))
    place = _screen([center])[0]
    return Ellipse(place, width, height, angle=angle, facecolor=BODY, edgecolor=BODY_EDGE, lw=1.5)


def _arrow3(axes, start, along, color, name, shift) -> None:
    first, last = _screen([start, np.asarray(start) + along])
    _arrow(axes, first, last, color, name, last + shift)


def _arrow(axes, start, end, color, name, where) -> None:
    style = {"arrowstyle": "-|>,head_width=0.35,head_length=0.7", "color": color, "lw": 2.6, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", xy=end, xytext=start, arrowprops=style)
    size = 17 if len(name) == 1 else 12.5
    axes.text(*where, name, fontsize=size, color=color, weight="bold", ha="center", va="center")


def _label(axes, point, text, shift, ha="center") -> None:
    axes.text(*(_screen([point])[0] + shift), text, fontsize=12.5, color=INK, ha=ha, va="center")


def _title(axes, text) -> None:
    axes.set_axis_off()
    axes.set_title(text, fontsize=13, color=INK, weight="bold", pad=8)


if __name__ == "__main__":
    main()
