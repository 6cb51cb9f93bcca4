"""Calibration of C-arms by X-rays of a bead phantom: what is asked, step by step, and what was found.

What was found is kept in an attribute of each C-arm that took part, as a calibration file holds it, and is saved with
the scene. Nothing in the scene changes before all is done; the cameras not before
`calibration_use.apply_calibration`.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import slicer

from DiffDRRCore import Camera, Pose, XRay
from DiffDRRCore.calibration import (
    BeadPhantom,
    BeadView,
    CalibrationResult,
    Distortion,
    GridDistortion,
    RadialDistortion,
    calibrating_images,
)
from DiffDRRCore.calibration.files import read_calibrated
from DiffDRRCore.calibration.images import Step
from DiffDRRCore.errors import DiffDRRWarning
from DiffDRRCore.files import replacing
from DiffDRRCore.imaging.camera_file import calibrated_from_dict
from DiffDRRCore.values import read_values
from DiffDRRSlicerLib.scene import nodes
from DiffDRRSlicerLib.scene.calibration_marks import show_beads
from DiffDRRSlicerLib.scene.carm import CArmNode
from DiffDRRSlicerLib.scene.errors import SceneError
from DiffDRRSlicerLib.scene.undistortion import recorded_xray, undone_distortion

KEY = "DiffDRR.Calibration"  # attribute of a C-arm, JSON
DISTORTIONS = {"radial": ("distortion",), "tangential": ("distortion", "tangential"), "grid": ("distortion",)}
_QUANTITIES = {
    "source_to_detector": ("source to detector", "mm"),
    "principal_point_u": ("principal point, column", "px"),
    "principal_point_v": ("principal point, row", "px"),
    "pixel_size": ("pixel size", "mm"),
    "pixel_ratio": ("column over row size", ""),
}


@dataclass(frozen=True)
class CalibrationSettings:
    """What a calibration starts from, and what it may change.

    Attributes:
        source_to_detector, pixel_size: mm, to start from; None is the X-rays' own.
        free: of "source_to_detector", "principal_point", "pixel_size", "pixel_ratio".
        distortion: None for none, "radial" (k1, k2), "tangential" (p1, p2 as well) or "grid" (a smooth one).
        priors: standard deviations about the start, as of `DiffDRRCore.calibration.calibrate`.
        cells: of the grid, rows and columns.
        radius_range: of the beads in the images, pixels; None is what phantom and camera let expect.
    """

    source_to_detector: float | None = None
    pixel_size: float | None = None
    free: Sequence[str] = ("source_to_detector", "principal_point")
    distortion: str | None = None
    priors: dict[str, float] = field(default_factory=dict)
    cells: tuple[int, int] = (5, 5)
    radius_range: tuple[float, float] | None = None

    @classmethod
    def of(cls, **values) -> CalibrationSettings:
        """Settings by name. Raises SceneError for a name that there is not, and an unknown distortion."""
        names = [one.name for one in fields(cls)]
        wrong = [name for name in values if name not in names]
        if wrong:
            raise SceneError(f"A calibration has no setting '{wrong[0]}'; there are: {', '.join(names)}.")
        if values.get("distortion") not in (None, *DISTORTIONS):
            raise SceneError(f"A distortion is one of {', '.join(DISTORTIONS)}, not '{values['distortion']}'.")
        return cls(**values)

    def start(self, camera: Camera) -> Camera | None:
        """The camera to start from; None where that is the X-rays' own. The pixels keep their shape."""
        if self.source_to_detector is None and self.pixel_size is None:
            return None
        row, column = camera.pixel_spacing.tolist()
        scale = 1.0 if self.pixel_size is None else self.pixel_size / row
        distance = self.source_to_detector or float(camera.source_to_detector)
        spacing = (scale * row, scale * column)
        return Camera(camera.height, camera.width, spacing, distance, camera.principal_point, camera.view_from)

    def options(self, camera: Camera) -> dict[str, Any]:
        """Keywords of `calibrating_images`."""
        distortion = None
        if self.distortion is not None:
            of_grid = self.distortion == "grid"
            distortion = GridDistortion.of_image(camera, self.cells) if of_grid else RadialDistortion.of_image(camera)
        return {
            "free": (*self.free, *DISTORTIONS.get(self.distortion, ()), "poses"),
            "priors": dict(self.priors),
            "distortion": distortion,
            "radius_range": self.radius_range,
        }


@dataclass(frozen=True)
class Calibration:
    """What a calibration found: `content` as a calibration file holds it, with "warnings", and "view", the image's."""

    content: dict[str, Any]

    @classmethod
    def of(cls, carm: CArmNode) -> Calibration | None:
        """That of a C-arm; None where it has none. Raises SceneError for a damaged one."""
        content = nodes.read_json(carm.node, KEY)
        return None if content is None else cls(content)

    @classmethod
    def read(cls, path: str | Path) -> Calibration:
        """That of a calibration file. Raises ReadError as `read_calibrated`."""
        read_calibrated(path)
        return cls(read_values(path))

    @property
    def parts(self) -> tuple[Camera, Distortion | None]:
        """Camera and distortion."""
        return calibrated_from_dict(self.content, "The calibration")

    @property
    def pose(self) -> Pose | None:
        """Camera to phantom of the C-arm's own image; None where it took no part."""
        own = [row for row in self.content.get("views", ()) if row["view"] == self.content.get("view")]
        return Pose(own[0]["pose"]) if own else None

    @property
    def warnings(self) -> list[str]:
        """Reasons to doubt it, in plain sentences."""
        return list(self.content.get("warnings", ()))

    @property
    def told(self) -> str:
        """A sentence: how many images, and how well they fit."""
        count, rms = len(self.content.get("views", ())), self.content.get("rms")
        images = f"{count} {'image' if count == 1 else 'images'}"
        return "Calibrated." if rms is None else f"Calibrated by {images}, {rms:.3f} pixels rms."

    def has(self, carm: CArmNode) -> bool:
        """Whether a C-arm keeps this calibration, with its own image or by `apply_calibration`."""
        kept = Calibration.of(carm)
        return kept is not None and {**kept.content, "view": None} == {**self.content, "view": None}

    def keep(self, carm: CArmNode, view: str | None = None) -> None:
        """Write it to a C-arm, whose image took part as `view`."""
        nodes.write_json(carm.node, KEY, {**self.content, "view": view})

    def values(self) -> list[tuple[str, str, str, str]]:
        """(quantity, value, standard deviation, unit) of what was found; the largest shift of a distortion, too."""
        rows = []
        for name, value in self.content.get("values", {}).items():
            title, unit = _QUANTITIES.get(name, (name, ""))
            rows.append((title, f"{value:.6g}", f"± {self.content['deviations'][name]:.2g}", unit))
        camera, distortion = self.parts
        if distortion is not None:
            rows.append(("distortion, at most", f"{distortion.largest(camera):.3g}", "", "px"))
        return rows

    def residuals(self) -> list[tuple[str, str, str, str, str]]:
        """(image, beads used, left out, rms, largest) of each image, pixels; all of them in the end."""
        views = self.content.get("views", ())
        rows = [(one["view"], one["used"], one["left_out"], one["rms"], one["largest"]) for one in views]
        if len(rows) > 1:
            used, left = (sum(row[k] for row in rows) for k in (1, 2))
            rows.append(("all", used, left, self.content["rms"], max(row[4] for row in rows)))
        return [(name, str(used), str(left), _pixels(rms), _pixels(worst)) for name, used, left, rms, worst in rows]

    def save(self, path: str | Path) -> Path:
        """Write the calibration file, which ends in .json; returns it. It is read wherever a JSON camera is."""
        path = Path(path)
        path = path if path.suffix.lower() == ".json" else path.with_name(f"{path.name}.json")
        content = {name: value for name, value in self.content.items() if name != "view"}
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        return path


def _pixels(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def phantom_of(source, radius: float = 1.0) -> tuple[BeadPhantom, list[str]]:
    """A phantom of a file (.json, .csv) or of a markups node, and the names of its beads.

    Args:
        radius: mm, of a markups node's beads; a control point whose description is a number has that radius.

    A markups node's beads are where its points are in the world. Raises SceneError without either, ReadError and
    CalibrationError for beads that are no phantom.
    """
    if source is None:
        raise SceneError("Choose the phantom first: its file, or a list of points with the places of its beads.")
    if isinstance(source, (str, Path)):
        phantom = BeadPhantom.read(source)
        return phantom, [str(number) for number in range(1, len(phantom) + 1)]
    defined = slicer.vtkMRMLMarkupsNode.PositionDefined
    points = [
        number
        for number in range(source.GetNumberOfControlPoints())
        if source.GetNthControlPointPositionStatus(number) == defined
    ]
    radii = [_number(source.GetNthControlPointDescription(number), radius) for number in points]
    positions = [list(source.GetNthControlPointPositionWorld(number)) for number in points]
    labels = [source.GetNthControlPointLabel(number) for number in points]
    return BeadPhantom(positions or [[0.0, 0.0, 0.0]], radii or [radius], source.GetName()), labels


def _number(text: str, otherwise: float) -> float:
    try:
        return float(text)
    except ValueError:
        return otherwise


def calibrating(
    carms: Sequence[CArmNode], phantom: BeadPhantom, labels: Sequence[str], settings: CalibrationSettings
) -> Generator[Step, None, Calibration]:
    """Calibrate the camera of these C-arms, a step at a time; returns the calibration, which each C-arm keeps.

    The beads are shown on each X-ray then: those found, and where the calibrated camera expects them. Closing the
    generator before its end leaves the scene as it was. X-rays are taken as they were recorded.

    Args:
        carms: C-arms with an X-ray of the phantom each, all of one setting.
        labels: names of the phantom's beads.

    Raises SceneError without a C-arm or its X-ray, and as `calibrating_images`.
    """
    if not carms:
        raise SceneError("Choose the X-rays of the phantom first.")
    xrays = [_recorded(carm, settings) for carm in carms]
    start = settings.start(xrays[0].camera)
    names = [carm.name for carm in carms]
    steps = calibrating_images(phantom, xrays, start, names=names, **settings.options(xrays[0].camera))
    told: list[str] = []
    while True:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", DiffDRRWarning)
            step, end = _next(steps)
        told += [str(one.message) for one in caught if issubclass(one.category, DiffDRRWarning)]
        if end is not None:
            break
        yield step
    return _kept(carms, phantom, labels, told, *end)


def _recorded(carm: CArmNode, settings: CalibrationSettings) -> XRay:
    xray = recorded_xray(carm)
    if settings.distortion is not None and "undistorted" in xray.meta:
        raise SceneError(
            f"'{carm.name}' was undistorted when it was read: load the image as it was recorded to find its distortion."
        )
    return xray


def _next(steps: Generator) -> tuple[Step | None, tuple | None]:
    """(step, None), or (None, what the generator returned)."""
    try:
        return next(steps), None
    except StopIteration as end:
        return None, end.value


def _kept(carms, phantom, labels, told: list[str], result: CalibrationResult, views: list[BeadView]) -> Calibration:
    calibration = Calibration({**result.to_dict(), "warnings": told})
    by_name = {view.name: number for number, view in enumerate(views)}
    for carm in carms:
        if carm.scene is not None and carm.name in by_name:  # else it was deleted meanwhile, or has no phantom in it
            calibration.keep(carm, carm.name)
            number = by_name[carm.name]
            show_beads(carm, views[number], result, number, phantom, labels, undone_distortion(carm))
    return calibration
