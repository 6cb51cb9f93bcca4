"""Makes the pictures of the README's tutorial: start, landmarks, registered (.jpg) and panel (.png) in this folder.

Run it after `make test`, which installs what it needs: `.venv/bin/python Resources/make_screenshots.py`. The views are
Slicer's own (slicer-core, offscreen) and the panel is the module's widget, both in the stand-in for the application
that the tests use; only Slicer's window around them is missing. The CT is that of `make demo`, or a phantom where it
cannot be had; the X-ray is simulated from it with a fixed seed, so that every run makes the same pictures.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "DiffDRRSlicer")]
os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

import numpy as np  # noqa: E402
import slicer  # noqa: E402
import slicer.util  # noqa: E402
from PIL import Image  # noqa: E402
from PySide6 import QtGui, QtWidgets  # noqa: E402

from DiffDRRCore import DiffDRRError, Volume, project  # noqa: E402
from DiffDRRCore.datasets.chest import fetch_chest_ct  # noqa: E402
from DiffDRRCore.datasets.phantom import phantom  # noqa: E402
from Testing.mrml.offscreen import prefer_offscreen  # noqa: E402
from Testing.panel import standin  # noqa: E402
from Testing.panel.conftest import SlicerDouble  # noqa: E402

WIDTH, GAP = 400, 2  # of the panel and between views, pixels
FLAT = {"DiffDRRXRay": (430, 500), "Red": (398, 258), "Yellow": (398, 258), "Green": (398, 258)}
DEEP = {"DiffDRRCArm": (430, 500), "1": (334, 500)}
COLUMNS = (
    ("Load", "Camera", "Keep"),
    ("View", "Landmarks"),
    ("Move", "Dataset"),
    ("Register",),
    ("Learn",),
    ("Simulate",),
    ("Bones and X-rays",),
    ("Track", "Calibrate"),
)
LANDMARKS = {  # RAS mm from the CT's centre
    "sternal notch": (0, 60, 130),
    "right rib": (110, 0, -40),
    "left rib": (-110, 0, -40),
    "T8": (0, -60, 0),
    "T12": (0, -55, -100),
}
DARK = {"Window": 53, "Base": 42, "AlternateBase": 53, "Button": 53, "ToolTipBase": 53, "PlaceholderText": 140}
BRIGHT = ("WindowText", "Text", "ButtonText", "BrightText", "ToolTipText")


def main(arguments=None) -> None:
    """Write the pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path(__file__).parent, help="folder; default: Resources")
    parser.add_argument("--ct", type=Path, help="CT file; default: the chest CT of `make demo`")
    parser.add_argument("--dark", action="store_true", help="the dark theme, to look at; with --output")
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    make_pictures(read_ct(options.ct), options.output, options.dark)


def make_pictures(volume: Volume, output: Path, dark: bool = False) -> None:
    """Go through the tutorial with this CT."""
    prefer_offscreen()
    kit = standin.install()
    app = SlicerDouble(kit, standin)
    try:
        set_theme(dark)
        Tutorial(app, output).run(volume)
    finally:
        app.clean()
        standin.uninstall(kit)


def read_ct(path: Path | None) -> Volume:
    """The CT to show."""
    try:
        return Volume.read(path or fetch_chest_ct(ROOT / ".cache" / "chest_ct").ct)
    except DiffDRRError as error:
        print(f"{error} A phantom takes its place.")
        return phantom()


def set_theme(dark: bool) -> None:
    """The colours of Slicer's light or dark style."""
    application = QtWidgets.QApplication.instance()
    application.setStyle("Fusion")
    palette = QtGui.QPalette(QtGui.QColor(239, 239, 239))
    if dark:
        palette = QtGui.QPalette(QtGui.QColor(53, 53, 53))
        for name, grey in DARK.items():
            palette.setColor(getattr(QtGui.QPalette, name), QtGui.QColor(grey, grey, grey))
        for name in BRIGHT:
            palette.setColor(getattr(QtGui.QPalette, name), QtGui.QColor(255, 255, 255))
            palette.setColor(QtGui.QPalette.Disabled, getattr(QtGui.QPalette, name), QtGui.QColor(127, 127, 127))
    application.setPalette(palette)


class Tutorial:
    """The steps of the README's tutorial, with a picture after each."""

    def __init__(self, app, output: Path):
        self.app, self.output = app, output
        self.widget = app.make_widget()
        self.panel = self.widget.panel
        self.sections = {section.title: section for section in self.panel.sections.values()}
        self.views = {}

    def run(self, volume: Volume) -> None:
        """From loading to keeping."""
        self.load(volume)
        self.show()
        self.picture("start.jpg", "Load", "View")
        self.mark()
        self.picture("landmarks.jpg", "Landmarks", "Camera")
        self.register()
        self.picture_of_sections("panel.png")
        self.hide_landmarks()
        self.picture("registered.jpg", "Register")

    def load(self, volume: Volume) -> None:
        """What the sample of the Sample Data module does, with another CT."""
        from DiffDRRSlicerLib import sample_data, selftest

        ct = selftest.add_volume(self.app.scene, volume, "CTChest")
        ct.CreateDefaultDisplayNodes()
        ct.GetDisplayNode().AutoWindowLevelOff()
        ct.GetDisplayNode().SetWindowLevel(1200, 100)
        carm = sample_data.simulate(self.app.scene, ct)
        self.panel.parameters.ct, self.panel.parameters.carm = ct, carm.node
        self.settle()

    def show(self) -> None:
        """The layout with the bone in 3D, and CT slices through the middle."""
        manager = slicer.app.layoutManager()
        self.sections["View"].ui.layoutButton.click()
        self.panel.parameters.showBone = True
        self.views = {name: manager.sliceWidget(name).view for name in FLAT}
        self.views |= {name: manager.threeDWidget(name).view for name in DEEP}
        for name, size in (FLAT | DEEP).items():
            self.views[name].resize(*size)
        for name in ("Red", "Yellow", "Green"):
            self.views[name].show(self.panel.parameters.ct, fit=True)
            self.views[name].node.JumpSliceByCentering(*self.panel.anatomy.center)
        self.sections["View"].ui.layoutButton.click()  # fits the X-ray to the view's size
        self.settle()

    def mark(self) -> None:
        """Points on the CT, and a click within a pixel of each on the X-ray."""
        from DiffDRRCore import Pose
        from DiffDRRSlicerLib.scene.carm import pixels_to_points
        from DiffDRRSlicerLib.scene.nodes import transform_to_world

        carm = self.panel.carm
        points = np.array(list(LANDMARKS.values())) + self.panel.anatomy.center
        on_ct = self.app.scene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "Landmarks")
        for name, point in zip(LANDMARKS, points, strict=True):
            on_ct.AddControlPoint(*point, name)
        self.panel.parameters.ctLandmarks = on_ct
        self.settle()
        truth = Pose(transform_to_world(carm.referred("reference")))
        on_xray = self.sections["Landmarks"].ui.xrayPlaceWidget.currentNode()
        for point in pixels_to_points(carm.camera, project(carm.camera, truth, points)[0].round().numpy()):
            on_xray.AddControlPoint(*point)
            self.settle()

    def hide_landmarks(self) -> None:
        """Without them the picture of the result is clearer."""
        on_xray = self.sections["Landmarks"].ui.xrayPlaceWidget.currentNode()
        for node in (self.panel.parameters.ctLandmarks, on_xray):
            node.GetDisplayNode().SetVisibility(False)
        self.panel.parameters.ctLandmarks = None
        self.settle()

    def register(self) -> None:
        """Press Register and wait."""
        section = self.sections["Register"]
        section.ui.registerButton.click()
        self.app.wait_until(lambda: section.running is None, 300)
        self.settle()
        section.ui.plotPlace.visible = False  # the stand-in does not draw plots

    def settle(self) -> None:
        """Wait until the picture is sharp."""
        self.panel.changed()
        self.panel.tick()
        self.app.wait_until(lambda: self.panel.at_rest, 120)
        self.app.process_events()

    def picture(self, name: str, *open_sections: str) -> None:
        """Panel and views side by side, as in Slicer's window."""
        grabs = {view: self.views[view].grab() for view in (*FLAT, *DEEP)}
        top = beside(grabs[view] for view in ("DiffDRRXRay", "DiffDRRCArm", "1"))
        views = below([top, beside(grabs[view] for view in ("Red", "Yellow", "Green"))])
        panel = self.grab_panel(open_sections, views.shape[0])
        Image.fromarray(beside([panel, views])).save(self.output / name, quality=88)

    def picture_of_sections(self, name: str) -> None:
        """All sections, opened."""
        columns = [trimmed(self.grab_panel(titles, 0, only=True)) for titles in COLUMNS]
        height = max(column.shape[0] for column in columns)
        padded = [np.pad(one, ((0, height - len(one)), (0, 0), (0, 0)), mode="edge") for one in columns]
        Image.fromarray(beside(padded)).save(self.output / name, optimize=True)

    def grab_panel(self, titles, height: int, only: bool = False) -> np.ndarray:
        """The panel [height, WIDTH, 3] with these sections open; `only`: without the others, as high as it needs."""
        for title, section in self.sections.items():
            section.button.collapsed = False  # a change is needed to collapse
            section.button.collapsed = title not in titles
            section.button.visible = title != "Before the first use" and (not only or title in titles)
        root = self.widget.parent
        self.app.process_events()
        root.resize(WIDTH, height or root.layout().minimumSize().height())
        self.app.process_events()
        if root.width > WIDTH:
            print(f"{', '.join(titles)}: {root.width} pixels wide, {WIDTH} wanted")
        with tempfile.TemporaryDirectory() as folder:
            self.app.grab(root, Path(folder) / "panel.png")
            picture = np.asarray(Image.open(Path(folder) / "panel.png").convert("RGB"))
        return picture[: height or None, :WIDTH]


def trimmed(picture) -> np.ndarray:
    """Without the empty rows at the bottom."""
    filled = np.flatnonzero((picture != picture[-1, 0]).any(axis=(1, 2)))
    return picture[: filled[-1] + 10]


def beside(pictures) -> np.ndarray:
    """Pictures of one height, side by side."""
    return join(list(pictures), 1)


def below(pictures) -> np.ndarray:
    """Pictures of one width, one below the other."""
    return join(list(pictures), 0)


def join(pictures, axis: int) -> np.ndarray:
    """Pictures with a dark line between them."""
    shape = list(pictures[0].shape)
    shape[axis] = GAP
    line = np.full(shape, 60, np.uint8)
    return np.concatenate([part for one in pictures for part in (one, line)][:-1], axis)


if __name__ == "__main__":
    main()
