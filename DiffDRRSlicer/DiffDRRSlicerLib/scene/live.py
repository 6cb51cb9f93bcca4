"""The picture follows the scene: DRR, overlay, projected points and plane, brought up to date at every tick.

A tick compares what the scene is now with what was shown last, which costs a fraction of a millisecond. So nothing is
observed: there is nothing to remove, a burst of events is one change, and a node that goes away is simply not there at
the next tick. Whoever owns a LiveView calls `tick` from a timer; there is no Qt here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from DiffDRRCore.errors import DiffDRRError
from DiffDRRSlicerLib.scene import nodes, projections, reassembly
from DiffDRRSlicerLib.scene.anatomy import Anatomy
from DiffDRRSlicerLib.scene.carm import CAMERA, META, CArmNode
from DiffDRRSlicerLib.scene.drr import render_drr
from DiffDRRSlicerLib.scene.frustum import update_frustum
from DiffDRRSlicerLib.scene.overlay import OverlayMode, update_overlay

DRAG_SIZE = 128  # pixels
REST_AFTER = 0.15  # s


@dataclass(frozen=True)
class Look:
    """What is drawn: the arguments of `update_overlay`, and which points are shown where.

    structures: names or numbers to render, empty for everything.  fiducials: markups nodes on the CT.  rays: those of
    the X-rays' landmarks.  epipolar: their lines in the other X-rays.  rest_size: longest side in pixels of the DRR at
    rest, where the X-ray's own is not less.
    """

    mode: OverlayMode = OverlayMode.BLEND
    squares: int = 8
    strength: float = 0.25
    tint: str = "yellow"
    structures: tuple = ()
    fiducials: tuple = ()
    rays: bool = False
    epipolar: bool = False
    rest_size: int = 512

    @classmethod
    def of(cls, parameters) -> Look:
        """From the module's parameter node."""
        return cls(
            OverlayMode[parameters.overlayMode.name],
            int(parameters.squares),
            float(parameters.edgeStrength),
            parameters.tint.name.lower(),
            tuple(parameters.structures or ()),
            _lists(parameters.fiducials, parameters.ctLandmarks),
            parameters.showRays,
            parameters.showEpipolar,
            int(parameters.detail.value),
        )


@dataclass
class _Shown:
    """What is on the screen of one C-arm: the state of the scene, of the points, the camera, and how sharp."""

    picture: Any = None
    points: Any = None
    camera: str | None = None
    sharp: bool = False


class LiveView:
    """Keeps the C-arms' pictures up to date. The C-arm in use follows at once, the others when things rest.

    Args:
        drag_size: longest side in pixels of the DRR while something moves.
        rest_after: s without a change until the DRR is rendered at the look's size at rest.

    Attributes:
        error: what went wrong in a tick (a DiffDRRError), for the owner to show and to set to None; the same error is
            not reported again until something else has happened.
    """

    def __init__(self, scene, drag_size: int = DRAG_SIZE, rest_after: float = REST_AFTER):
        self.scene = scene
        self.drag_size, self.rest_after = drag_size, rest_after
        self.error: DiffDRRError | None = None
        self._anatomy: Anatomy | None = None
        self._carm: CArmNode | None = None
        self._look, self._source = Look(), None
        self._shown: dict[CArmNode, _Shown] = {}
        self._changed_at, self._told = -1e9, None
        self._invalid = self._busy = self._closed = False

    def show(self, anatomy: Anatomy | None, carm: CArmNode | None = None, look=None) -> None:
        """What to look at: the patient, the C-arm in use (None: all follow at once), and a `Look`.

        A parameter node in place of the `Look` is read here, and again after `invalidate`.
        """
        self._anatomy, self._carm = anatomy, carm
        if look is None or isinstance(look, Look):
            self._look, self._source = look or Look(), None
        elif look is not self._source:
            self._look, self._source = Look.of(look), look

    def watch_carm(self, carm: CArmNode) -> None:
        """Render a C-arm anew at the next tick, whatever is known of it."""
        self._shown.pop(carm, None)

    def invalidate(self) -> None:
        """Look at the choices again, and render everything anew at the next tick."""
        self._invalid = True  # a tick under way goes on with what it began with

    def close(self) -> None:
        """Let go of the scene; ticks do nothing from now on."""
        self._closed = True
        self._shown.clear()
        self._anatomy = self._carm = self._source = None
        self._look = Look()

    @property
    def resting(self) -> bool:
        """Whether all that was seen at the last tick is drawn at full size."""
        return not self._invalid and all(shown.sharp for shown in self._shown.values())

    def tick(self, now: float) -> bool:
        """Bring the picture to the scene as it is; whether anything has changed. `now` in s, of any clock."""
        if self._busy or self._closed or self.scene.IsBatchProcessing():
            return False
        self._busy = True
        try:
            return self._tick(now)
        finally:
            self._busy = False

    def _tick(self, now: float) -> bool:
        if self._invalid:
            self._invalid = False
            self._look = self._look if self._source is None else Look.of(self._source)
            self._shown.clear()
        carms = list(CArmNode.all(self.scene))
        self._shown = {carm: self._shown.get(carm, _Shown()) for carm in carms}
        self._drop_lost()
        for carm in carms:
            carm_now = self._attempt(self._state, carm) or ("unusable", carm.node.GetMTime())
            shown = self._shown[carm]
            if carm_now != shown.picture:
                self._changed_at = now
                shown.picture, shown.sharp = carm_now, False
                if self._carm in (None, carm):
                    self._draw(carm, min(self.drag_size, self._full(carm)))
                    return True
        return self._sharpen(carms, now) or self._move_points(carms)

    def _sharpen(self, carms: list[CArmNode], now: float) -> bool:
        """At rest, one C-arm a tick at full size, the one in use first."""
        if now - self._changed_at < self.rest_after:
            return False
        for carm in sorted(carms, key=lambda one: one != self._carm):
            if not self._shown[carm].sharp:
                self._draw(carm, self._full(carm))
                return True
        return False

    def _move_points(self, carms: list[CArmNode]) -> bool:
        changed = False
        for carm in carms:
            points = self._points_state(carm)
            if points != self._shown[carm].points:
                self._attempt(self._draw_points, carm, carms)
                self._shown[carm].points = points
                changed = True
        return changed

    def _draw(self, carm: CArmNode, size: int) -> None:
        shown = self._shown[carm]
        shown.sharp = size >= self._full(carm)
        if self._attempt(self._picture, carm, size):
            self._told = None
        camera = _attributes(carm)[0]
        if camera != shown.camera:
            shown.camera = camera
            self._attempt(update_frustum, carm)
        self._attempt(self._draw_points, carm, list(self._shown))
        shown.points = self._points_state(carm)

    def _picture(self, carm: CArmNode, size: int) -> bool:
        anatomy = self._patient()
        if anatomy is not None:
            look = self._look
            render_drr(carm, anatomy, look.structures, size, draft=size < self._full(carm))
            carm.look_at(anatomy.center)
            if self._carm in (None, carm) or carm.referred("xray") is not None:  # else there is nothing to compare
                update_overlay(carm, look.mode, look.squares, look.strength, look.tint)
        return True

    def _draw_points(self, carm: CArmNode, carms: list[CArmNode]) -> None:
        for markups in self._look.fiducials:
            projections.project_fiducials(carm, markups)
        landmarks = carm.referred("landmarks")
        if landmarks is not None and self._look.rays:
            projections.show_rays(carm, landmarks)
        for other in carms if self._look.epipolar else ():
            if other != carm and landmarks is not None:
                projections.show_epipolar_lines(carm, landmarks, other)
            if other != carm and other.referred("landmarks") is not None:
                projections.show_epipolar_lines(other, other.referred("landmarks"), carm)

    def _state(self, carm: CArmNode) -> tuple:
        """Equal for two calls only where the picture is the same."""
        anatomy, xray = self._patient(), carm.referred("xray")
        image = None if xray is None or xray.GetImageData() is None else xray.GetImageData().GetMTime()
        patient = None
        if anatomy is not None:
            patient = anatomy.state, anatomy.to_world.tobytes(), reassembly.state(anatomy)
        look = replace(self._look, fiducials=(), rays=False, epipolar=False)
        return carm.to_world.tobytes(), *_attributes(carm), image, patient, look

    def _points_state(self, carm: CArmNode) -> tuple:
        lists = [*self._look.fiducials, *(one.referred("landmarks") for one in self._shown)]
        poses = [one.node.GetTransformToWorldMTime() for one in self._shown] if self._look.epipolar else ()
        return self._look.rays, self._look.epipolar, *poses, *(_markups_state(one) for one in lists if one is not None)

    def _patient(self) -> Anatomy | None:
        """Of the nodes that are still there. Raises SceneError where the CT lost its voxels."""
        if self._anatomy is None or self._anatomy.ct.GetScene() is None:
            return None
        labels = self._anatomy.labels
        return Anatomy(self._anatomy.ct, labels if labels is not None and labels.GetScene() is not None else None)

    def _full(self, carm: CArmNode) -> int:
        return min(max(carm.camera.height, carm.camera.width), self._look.rest_size)

    def _drop_lost(self) -> None:
        """Forget lists that were deleted, and remove what was projected of them or is not asked for any more."""
        there = tuple(one for one in self._look.fiducials if one.GetScene() is not None)
        if there != self._look.fiducials:
            self._look = replace(self._look, fiducials=there)
        for carm in list(self._shown):
            for kind in ("fiducials", "rays", "epipolar"):
                for node, source in projections.companions(carm, kind):
                    if source is None:
                        nodes.remove_node(node)

    def _attempt(self, work: Callable, *arguments):
        """What `work` returns; None where it raised one of our errors, which is then kept in `error`, once."""
        try:
            return work(*arguments)
        except DiffDRRError as error:
            if str(error) != self._told:
                self.error, self._told = error, str(error)
            return None


def _lists(*markups) -> tuple:
    """Those that there are, each once."""
    return tuple({one.GetID(): one for one in markups if one is not None}.values())


def _attributes(carm: CArmNode) -> tuple:
    """The camera and what is known of the X-ray, as they are kept."""
    return carm.node.GetAttribute(CAMERA), carm.node.GetAttribute(META)


def _markups_state(markups) -> tuple:
    """Of all that is drawn of a list."""
    count = markups.GetNumberOfControlPoints()
    points = [
        (
            markups.GetNthControlPointLabel(index),
            markups.GetNthControlPointPositionStatus(index),
            tuple(markups.GetNthControlPointPositionWorld(index)),
        )
        for index in range(count)
    ]
    return markups.GetID(), tuple(points)
