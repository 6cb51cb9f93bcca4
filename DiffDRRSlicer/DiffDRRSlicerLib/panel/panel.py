"""The panel: its sections, what happens when something changes, and the timer that keeps the picture up to date."""

from __future__ import annotations

import logging
import time
from contextlib import contextmanager

import qt
import slicer

from DiffDRRSlicerLib import install, scene
from DiffDRRSlicerLib.names import BODY, MARK
from DiffDRRSlicerLib.panel.bones import BonesSection
from DiffDRRSlicerLib.panel.calibrate import CalibrateSection
from DiffDRRSlicerLib.panel.camera import CameraSection
from DiffDRRSlicerLib.panel.dataset import DatasetSection
from DiffDRRSlicerLib.panel.keep import KeepSection
from DiffDRRSlicerLib.panel.landmarks import LandmarksSection
from DiffDRRSlicerLib.panel.learn import LearnSection
from DiffDRRSlicerLib.panel.load import LoadSection
from DiffDRRSlicerLib.panel.move import MoveSection
from DiffDRRSlicerLib.panel.packages import PackagesSection
from DiffDRRSlicerLib.panel.register import RegisterSection
from DiffDRRSlicerLib.panel.section import NotReadyError
from DiffDRRSlicerLib.panel.session import Session
from DiffDRRSlicerLib.panel.simulate import SimulateSection
from DiffDRRSlicerLib.panel.track import TrackSection
from DiffDRRSlicerLib.panel.view import ViewSection

_SECTIONS = (
    PackagesSection,
    LoadSection,
    DatasetSection,
    CameraSection,
    ViewSection,
    MoveSection,
    LandmarksSection,
    BonesSection,
    RegisterSection,
    TrackSection,
    LearnSection,
    SimulateSection,
    CalibrateSection,
    KeepSection,
)
_LOCKED = (  # while a registration, a tracking, a simulation or a calibration runs, but for its own
    LoadSection,
    DatasetSection,
    CameraSection,
    MoveSection,
    LandmarksSection,
    BonesSection,
    RegisterSection,
    TrackSection,
    SimulateSection,
    CalibrateSection,
)
_TICK = 20  # ms between looks at the scene


class Panel(Session):
    """All sections, on one parameter node.

    Args:
        layout: of the module's widget.
        logic: the module's `DiffDRRSlicerLogic`.
        resource: takes the name of a file in Resources to its path.
    """

    def __init__(self, layout, logic, resource):
        super().__init__()
        self.logic, self.resource = logic, resource
        self._live = None
        self._dirty = False
        self._ready = self._busy = False
        self._told = ""
        self._orphans, self._lost = [], False
        self.sections = {kind: kind(self) for kind in _SECTIONS}
        for section in self.sections.values():
            layout.addWidget(section.button)
        layout.addStretch(1)
        self.timer = qt.QTimer()
        self.timer.interval = _TICK
        self.timer.timeout.connect(self.tick)
        self.packages_changed()

    # what happens

    @property
    def at_rest(self) -> bool:
        """Whether the picture is sharp and the widgets show the scene as it was at the last tick."""
        return not (self._dirty or self._lost) and (self._live is None or self._live.resting)

    def changed(self) -> None:
        """Something changed: show it at the next tick."""
        self._dirty = True

    @property
    def running(self) -> bool:
        """Whether a registration, a tracking, a simulation or a calibration runs."""
        at_work = RegisterSection, TrackSection, SimulateSection, CalibrateSection
        return any(self.sections[kind].running is not None for kind in at_work)

    def added(self, carm) -> None:
        """A C-arm was added: show it."""
        if self._live is not None:
            self._live.watch_carm(carm)
        self.sections[ViewSection].show_new(carm)
        self.changed()

    def node_removed(self, node) -> None:
        """A node is about to be removed; what belongs to a C-arm or a bone goes with it, at the next tick.

        Pictures and models that were deleted alone are made anew then.
        """
        if self._live is None:
            return
        if node.IsA("vtkMRMLSequenceBrowserNode"):
            self.changed()  # what it played goes
        if not node.IsA("vtkMRMLTransformableNode"):
            return
        if not slicer.mrmlScene.IsClosing():
            scene.tracking_tidy.keep_place(node)
        if node.GetAttribute(MARK) is not None:
            self._orphans += [one.GetID() for one in scene.carm.belongings(scene.carm.CArmNode(node))]
        if node.GetAttribute(BODY) is not None:
            body = scene.bodies.BodyNode(node)
            scene.body_parts.show_sources(body)
            self._orphans += [one.GetID() for one in scene.body_parts.belongings(body)]
        self._lost = self._lost or not self._busy

    def _remove_orphans(self) -> None:
        orphans, self._orphans = self._orphans, []
        for identifier in orphans:
            scene.nodes.remove_node(slicer.mrmlScene.GetNodeByID(identifier))

    def lock(self, running: bool, by) -> None:
        """While a section's work runs, what would disturb it cannot be used."""
        for kind in _LOCKED:
            if self.sections[kind] is not by:
                self.sections[kind].root.enabled = not running

    # errors

    @contextmanager
    def attempt(self, text: str):
        """Show what goes wrong inside, below the sentence `text`; nothing is raised."""
        try:
            yield
        except Exception as error:
            self.show_error(text, error)
        self.changed()

    def show_error(self, text: str, error: Exception) -> None:
        """One message: what failed, and the sentence of the error. Anything unexpected is logged with its traceback."""
        from DiffDRRCore.errors import DiffDRRError

        expected = isinstance(error, (DiffDRRError, NotReadyError, install.InstallError, OSError))
        logging.log(logging.WARNING if expected else logging.ERROR, text, exc_info=None if expected else error)
        more = "" if expected else "\n\nThis was not to be expected; the error log has the details."
        slicer.util.errorDisplay(f"{text}\n\n{str(error) or type(error).__name__}{more}")

    # the life of the panel

    def enter(self) -> None:
        """The module is shown."""
        self.packages_changed()
        self.sections[MoveSection].enter()

    def exit(self) -> None:
        """Another module is shown; the picture goes on following the scene."""
        self.sections[MoveSection].exit()

    def set_parameters(self, parameters) -> None:
        """Work on another parameter node; None lets go of the scene."""
        if parameters is None:
            self._let_go()
        self.parameters = parameters
        self.timer.stop() if parameters is None else self.timer.start()
        self.changed()

    def parameters_changed(self) -> None:
        """A choice changed."""
        if self._live is not None:
            self._live.invalidate()
        self.changed()

    def packages_changed(self) -> None:
        """Enable what the packages there are allow."""
        missing = install.missing_packages()
        self._ready = not missing
        self.sections[PackagesSection].show_missing(missing)
        for section in list(self.sections.values())[1:]:
            section.button.enabled = self._ready

    def tick(self) -> None:
        """Bring picture and widgets up to date; cheap where nothing changed, and never inside itself."""
        loading = slicer.mrmlScene.IsBatchProcessing()  # the nodes are not all there, or are to be many
        if self._busy or loading or self.parameters is None or not self._ready:
            return
        self._busy = True
        try:
            if self._tick():
                self._told = ""
        except Exception as error:
            if str(error) != self._told:  # else the message would come back with every tick
                self._told = str(error)
                self.show_error("The picture cannot be brought up to date.", error)
        finally:
            self._busy = False

    def _tick(self) -> bool:
        """Whether anything was brought up to date."""
        if self._live is None and self.parameters.carm is None and self.parameters.ct is None:
            if self._dirty:
                self._dirty = False
                self._bring_up_to_date(None, [section.refresh for section in self.sections.values()])
            return False
        self._remove_orphans()
        if self._lost:
            self._lost, self._dirty = False, True
            self._live.invalidate()
        self.sections[RegisterSection].follow_labels()
        self._start()
        moved = self._live.tick(time.monotonic())
        error, self._live.error = self._live.error, None
        if self._live.resting and not self.running:
            self.rested()
        if not (moved or self._dirty):
            return False
        self._dirty = False
        work = [section.apply for section in self.sections.values()]
        work += [self.sections[ViewSection].aim, *(section.refresh for section in self.sections.values())]
        self._bring_up_to_date(error, work)
        return True

    @staticmethod
    def _bring_up_to_date(error, work) -> None:
        """Do all of it, whatever fails; then raise the first error: the one given, or of the work."""
        for piece in work:
            try:
                piece()
            except Exception as problem:
                error = error or problem
        if error is not None:
            raise error

    def _start(self) -> None:
        """Watch the scene, from the first CT or C-arm on: that loads torch."""
        if self._live is None:
            self._live = scene.live.LiveView(slicer.mrmlScene)
            self.history = scene.poses.PoseHistory(slicer.mrmlScene, self._patient)
        parameters = self.parameters
        self._live.show(self.anatomy, self.carm, parameters)

    def _patient(self):
        """The patient transform, or None."""
        anatomy = self.anatomy
        return None if anatomy is None else scene.handles.find_patient_transform(anatomy)

    def _let_go(self) -> None:
        self.timer.stop()
        for section in self.sections.values():
            section.close()
        if self._live is not None:
            self._live.close()
            scene.anatomy.forget()
            scene.simulation.forget()
            scene.overlay.forget()
        self._orphans, self._lost = [], False
        self._live = self.history = self.outcome = None

    def close(self) -> None:
        """The widget goes away."""
        self.exit()
        self._let_go()
        self.parameters = None
