"""Track: bones, CT or C-arm through the frames of a run, step by step on a timer; keyframes, lost frames, motions."""

from __future__ import annotations

from pathlib import Path

import qt
import slicer
import vtk

from DiffDRRSlicerLib import scene
from DiffDRRSlicerLib.panel.register import RegisterSection
from DiffDRRSlicerLib.panel.section import NotReadyError, Section, fill_table
from DiffDRRSlicerLib.panel.track_joints import TrackJointsPart

_NOT_TRACKED = ("landmarks", "use_landmarks", "reference")  # options of a registration that a run does not have


class TrackSection(Section):
    """The run and its frames; keyframes; run, cancel; lost frames, smoothing, files."""

    title = "Track"
    ui_file = "Track.ui"
    collapsed = True

    def setup(self) -> None:
        self.running = None
        self._steps, self._observed = None, None
        self._found = (None, None)  # state of the kept result, and what there is to tell of it
        self._keys, self._ended = [], ""
        self.timer = qt.QTimer()
        self.timer.interval = 0
        self.timer.timeout.connect(self.step)
        self.click("useRunButton", self.use, "The run cannot be used.")
        self.click("loadRunButton", self.load, "The run could not be loaded.")
        self.click("setKeyframeButton", self.set_keyframe, "The keyframe cannot be set.")
        self.click("removeKeyframeButton", self.remove_keyframe, "The keyframe cannot be removed.")
        self.click("trackButton", self.start, "The tracking cannot start.")
        self.click("cancelTrackButton", self.cancel, "The tracking cannot be stopped.")
        self.click("saveMotionsButton", self.save, "The motions could not be saved.")
        self.ui.frameSlider.connect("valueChanged(double)", self._frame_chosen)
        self.ui.keyframesTable.connect("cellClicked(int,int)", self._keyframe_clicked)
        self.ui.lostTable.connect("cellClicked(int,int)", self._lost_clicked)
        self.button.connect("contentsCollapsed(bool)", lambda *_: self.panel.changed())
        self.joints = TrackJointsPart(self)

    # the run

    @property
    def run(self):
        """Of the X-rays that are used together, or of the chosen one alone; None where it is a single image."""
        carm = self.panel.carm
        if carm is None:
            return None
        used = scene.tracking_run.find_run(scene.view_settings.used_carms(carm))
        return used or scene.tracking_run.find_run([carm])

    def _require_run(self):
        return scene.tracking_run.require_run(scene.view_settings.used_carms(self.panel.require_carm()))

    def use(self) -> None:
        """Make the chosen sequence the run of the chosen C-arm."""
        carm, images = self.panel.require_carm(), self.panel.parameters.trackImages
        if images is None:
            raise NotReadyError("Choose the run's images first: a sequence, or a volume of many slices.")
        find_file = getattr(slicer, "dicomDatabase", None) and slicer.dicomDatabase.fileForInstance
        with slicer.util.WaitCursor():
            scene.tracking_run.use_run(carm, images, scene.view_settings.used_carms(carm), find_file)

    def load(self) -> None:
        """Make the frames of a file, or of numbered images beside each other, the run of a C-arm of their own.

        That is the chosen one where its X-ray is one of them; else its X-ray would be lost.
        """
        path = self.ui.runPath.currentPath.strip()
        if not path:
            raise NotReadyError("Choose a file of the run first.")
        with slicer.util.WaitCursor():
            images = scene.tracking_run.run_path(path)
            carm = self.panel.carm
            if carm is not None and scene.tracking_run.is_frame_of(carm, images):
                scene.tracking_run.use_run(carm, images, scene.view_settings.used_carms(carm))
            else:
                self._load_apart(path, images)
        self.ui.runPath.addCurrentPathToHistory()

    def _load_apart(self, path: str, images) -> None:
        """A C-arm with the run; nothing is left of it where that is none."""
        parameters = self.panel.parameters
        with scene.xrays.all_or_nothing(slicer.mrmlScene):
            node = self.panel.logic.loadXRay(path, frame=0 if images.is_file() else None, ct=parameters.ct)
            carm = scene.carm.CArmNode(node)
            scene.tracking_run.use_run(carm, images, scene.view_settings.used_carms(carm))
        parameters.carm = node
        self.panel.added(carm)

    def _frame_chosen(self, number: float) -> None:
        self.go(round(number))

    def go(self, number: int) -> None:
        """Show a frame."""
        run = self.run
        if run is not None and run.frame != number:
            with self.panel.attempt("The frame cannot be shown."):
                run.show(number)

    def _played(self, *_) -> None:
        """Another frame is shown: what somebody has moved off its motion, without a keyframe, goes back to it."""
        run = self.run
        if run is not None and self.running is None and run.frame != self._observed[2]:
            self._observed = (*self._observed[:2], run.frame)
            scene.tracking_course.drop_moves(run)
        self.panel.changed()

    def _observe(self, run) -> None:
        browser = None if run is None else run.browser
        if self._observed is not None and self._observed[0] is browser:
            return
        if self._observed is not None:
            self._observed[0].RemoveObserver(self._observed[1])
        self._observed = None
        if browser is not None:
            self._observed = browser, browser.AddObserver(vtk.vtkCommand.ModifiedEvent, self._played), run.frame

    # keyframes

    def set_keyframe(self) -> None:
        """Remember where all stands now, in the frame that is shown."""
        scene.tracking_keys.set_keyframe(self._require_run(), self.panel.require_anatomy())

    def remove_keyframe(self) -> None:
        """Forget the one of the frame that is shown."""
        run = self._require_run()
        if run.frame not in scene.tracking_keys.keyframes(run):
            raise NotReadyError(f"Frame {run.frame} has no keyframe; click on one in the list first.")
        scene.tracking_keys.remove_keyframe(run, self.panel.require_anatomy(), run.frame)

    def _keyframe_clicked(self, row: int, _column: int) -> None:
        """Go there; before anything is tracked, put all to where it has it."""
        run, anatomy = self.run, self.panel.anatomy
        if run is None or anatomy is None or self.running is not None or row >= len(self._keys):
            return
        with self.panel.attempt("The keyframe cannot be shown."):
            if scene.tracking_course.moved_nodes(run):
                run.show(self._keys[row])
            else:
                self.panel.remember("keyframe")
                target = self.panel.parameters.moves.name.lower()
                scene.tracking_keys.show_keyframe(run, anatomy, self._keys[row], target)

    # tracking

    def start(self) -> None:
        """Begin; the timer takes one step at a time, so that the panel stays alive."""
        if self.running is not None:
            return
        carm, anatomy, parameters = self.panel.require_carm(), self.panel.require_anatomy(), self.panel.parameters
        carms = scene.view_settings.used_carms(carm)
        options = self.panel.sections[RegisterSection].options(*carms)
        last = round(parameters.trackLast)
        self.running = scene.tracking.SceneTracking(
            anatomy,
            carms,
            round(parameters.trackFirst),
            None if last < 0 else last,
            round(parameters.trackStep),
            smooth=parameters.trackSmooth,
            **{name: value for name, value in options.items() if name not in _NOT_TRACKED},
        )
        self._steps, self._ended = self.running.steps(), ""
        self.panel.rested()
        self._show_running(True)
        self.timer.start()

    def step(self) -> None:
        """Take one step."""
        if self.running is None:
            return
        self.advance(self._steps, "The tracking failed.", "trackProgress", "trackText", self._stepped_through)
        self.panel.changed()

    def _stepped_through(self, _) -> None:
        self._finish(self.running.ending)

    def cancel(self) -> None:
        """Stop and keep the frames so far."""
        if self.running is not None:
            self.running.cancel()

    def _finish(self, text: str) -> None:
        self.timer.stop()
        self.running, self._steps, self._ended = None, None, text
        self._show_running(False)
        if self.panel.history is not None:
            self.panel.history.forget()  # nodes hang elsewhere now
        self._found = (None, None)
        self.panel.changed()

    def _show_running(self, running: bool) -> None:
        self.ui.cancelTrackButton.enabled = running
        self.panel.lock(running, self)
        self.panel.changed()

    # what was found

    def save(self) -> None:
        """Write the motions to the chosen file."""
        path = self.ui.motionsPath.currentPath.strip()
        if not path:
            raise NotReadyError("Choose the file to write first: .csv, .tra or .json.")
        path = path if Path(path).suffix else f"{path}.csv"
        run = self._require_run()
        scene.tracking_results.save_tracking(run, path, self.panel.parameters.trackSmooth)
        self.joints.save(run, path)
        self.ui.motionsPath.addCurrentPathToHistory()

    def _lost_clicked(self, row: int, _column: int) -> None:
        lost = self._found[1] and self._found[1].lost
        if lost and self.running is None and row < len(lost):
            self.go(list(lost)[row])

    def _show_found(self, run) -> None:
        """How many frames were lost, and why; read anew only where it changed."""
        state = None if run is None else scene.tracking_results.result_state(run)
        if state != self._found[0] or (state is None) != (self._found[1] is None):
            self._found = state, None if state is None else scene.tracking_results.kept_result(run)
            lost = {} if self._found[1] is None else self._found[1].lost
            fill_table(self.ui.lostTable, ("Lost, because", "Frame"), [(why, str(one)) for one, why in lost.items()])
            self.ui.lostTable.visible = bool(lost)
        self.ui.saveMotionsButton.enabled = self._found[1] is not None and self.running is None
        if self.running is None:
            self.ui.trackText.text = "\n".join(text for text in (self._ended, _summary(self._found[1])) if text)
            self.ui.trackProgress.value = self.ui.trackProgress.maximum if self._found[1] is not None else 0

    # the widgets

    def apply(self) -> None:
        """Play the motions as chosen, smoothed or not; what a deleted node left goes."""
        if self.running is None:
            scene.tracking_tidy.remove_leftovers(slicer.mrmlScene)
        run = self.run if self.running is None else None
        if run is not None:
            kind = scene.tracking_results.variant(self.panel.parameters.trackSmooth)
            scene.tracking_course.show_variant(run, scene.tracking_course.moved_nodes(run), kind)
            self.joints.apply(run)

    def refresh(self) -> None:
        run = self.run
        self._observe(run)
        if self.button.collapsed:
            return
        busy = self.panel.running
        self._show_frame(run)
        ready = run is not None and self.panel.anatomy is not None and not busy
        for name in ("setKeyframeButton", "removeKeyframeButton", "trackButton"):
            getattr(self.ui, name).enabled = ready
        xray = self.panel.carm is not None and self.panel.carm.referred("xray") is not None
        self.ui.useRunButton.enabled = xray and not busy
        self.ui.loadRunButton.enabled = not busy
        self._show_keyframes(run)
        self._show_found(run)
        self.joints.refresh(run, () if self._found[1] is None else self._found[1].bodies)

    def _show_frame(self, run) -> None:
        slider = self.ui.frameSlider
        with self.quiet("frameSlider"):
            slider.maximum = 1 if run is None else len(run) - 1
            slider.value = 0 if run is None else run.frame
        slider.enabled = run is not None and self.running is None
        self.ui.runText.text = self._told(run)

    def _told(self, run) -> str:
        carm = self.panel.carm
        if carm is None or carm.referred("xray") is None:
            return "Load an X-ray first."
        if run is None:
            return f"The X-ray of {carm.name} is a single image: choose the images of its run above."
        names = ", ".join(one.name for one in run.carms)
        itself = [one.name for one in run.carms if scene.tracking_course.carrier_of(one.node, run) is not None]
        known = f"Known motion of {', '.join(itself)} with the frames." if itself else ""
        return "\n".join(text for text in (f"{len(run)} frames of {names}.", known, run.assumed) if text)

    def _show_keyframes(self, run) -> None:
        keys = [] if run is None else scene.tracking_keys.keyframes(run)
        if keys != self._keys or not self.ui.keyframesTable.columnCount:
            self._keys = keys
            fill_table(self.ui.keyframesTable, ("Keyframes",), [(f"Frame {number}",) for number in keys])

    def close(self) -> None:
        """The scene goes away, perhaps under a running tracking."""
        if self.running is not None:
            self._steps.close()
            self._finish("")
        self._observe(None)
        self._found, self._ended = (None, None), ""
        self.joints.close()


def _summary(result) -> str:
    if result is None:
        return ""
    count, between = len(result.frames), int(result.interpolated.sum()) - len(result.lost)
    text = f"{count - int(result.interpolated.sum())} of {count} frames found, {len(result.lost)} lost"
    return f"{text}, {between} between them interpolated." if between > 0 else f"{text}."
